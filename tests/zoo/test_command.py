"""`mocomp zoo`: one line of the table at a time, and what becomes of those that are wrong."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from mocomp.commands import zoo
from mocomp.errors import BadInput, Usage
from mocomp.targets.onnxruntime import OnnxRuntime
from mocomp.zoo.entries import ENTRIES

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from zoo_page import BEGIN, END, page

NAME = "nested_by_priority"
DOCS = Path(__file__).parents[2] / "docs" / "zoo.md"


@pytest.fixture
def table(monkeypatch):
    """table(name, ...): the zoo's table with these lines alone; a line is an entry's name, or an entry."""

    def made(*lines):
        entries = [ENTRIES[one] if isinstance(one, str) else one for one in lines]
        monkeypatch.setattr(zoo, "ENTRIES", {entry.name: entry for entry in entries})

    return made


def test_an_entry_is_proven_and_told(command, tmp_path):
    done = command("zoo", "run", NAME, "--json", "-o", tmp_path / "kept", "--target", "onnx")
    report = json.loads(done.out)
    assert done.code == 0 and (report["passed"], report["refused"], report["failed"]) == (1, 0, 0)
    line = report["lines"][0]
    on = line["targets"].pop("onnx")
    assert line["name"] == NAME and line["verdict"] == "passed" and line["host"] == "vision" and not line["targets"]
    assert 0 < on["error"] < 1e-4 and on["original_ms"] > 0 and on["artifact_ms"] > 0
    kept = tmp_path / "kept" / NAME / "onnx"
    assert on["nodes"] == len(onnx.load(kept / "model.onnx", load_external_data=False).graph.node)
    cases = json.loads((kept / "mocomp.json").read_text())["parity"]["cases"]
    assert len({case["name"] for case in cases}) >= 3  # the sizes that were traced are one of them
    assert "1 of 1 conversions" in done.err or "1 conversions in" in done.err
    assert "weights:" not in done.err  # what a conversion alone would say


def test_one_that_is_wrong_fails_the_command_and_stops_no_other(command, table, monkeypatch):
    """The artifact of one entry is written with a changed weight; the other's is not."""
    table("convolutions", NAME)
    lower = OnnxRuntime.lower

    def tampered(self, program, directory, writer):
        artifact = lower(self, program, directory, writer)
        if "convolutions" in str(directory):
            file = directory / "model.onnx"
            model = onnx.load(file)
            weight = next(w for w in model.graph.initializer if "head" in w.name and len(w.dims) == 2)
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, weight.name))
            onnx.save(model, file)
        return artifact

    monkeypatch.setattr(OnnxRuntime, "lower", tampered)
    done = command("zoo", "run", "--target", "onnxruntime")
    assert done.code == 1
    assert "convolutions on onnxruntime failed" in done.out and "parity failed" in done.out
    assert re.search(rf"^{NAME} .* passed ", done.out, re.M)
    assert done.out.splitlines()[-1] == "1 passed, 0 refused, 1 failed"


def test_a_refusal_is_as_the_table_says_or_a_failure(table, monkeypatch):
    """By a conversion that refuses; an entry that was to be refused and converts is not what the table says either."""
    known = ENTRIES[NAME]
    told, another = replace(known, refused="its length decides"), replace(known, refused="another reason")

    def refuses(*arguments):
        raise zoo.Unsupported("its length decides what is computed")

    with monkeypatch.context() as patched:
        patched.setattr(zoo, "convert", refuses)
        lines = [zoo.run([entry], ["onnx"]).lines[0] for entry in (told, another, known)]
    assert [line.verdict for line in lines] == ["refused", "failed", "failed"]
    assert lines[0].targets["onnx"].why == "its length decides"
    assert "its length decides what is computed" in lines[1].targets["onnx"].why
    line = zoo.run([replace(told, recognised="softmax_topk + ffn")], ["onnx"]).lines[0]
    assert line.verdict == "failed" and line.targets["onnx"].why == "it was to be refused: its length decides"


def test_an_entry_that_is_recognised_as_another_fails(monkeypatch):
    monkeypatch.setattr(zoo, "_converted", lambda *given: zoo.OnTarget(zoo.PASSED))
    monkeypatch.setattr(zoo, "_recognised", lambda source: "softmax_topk + ffn")
    expected = [(None, "passed"), ("softmax_topk + ffn", "passed"), ("top_p + ffn", "failed")]
    for recognised, verdict in expected:
        assert zoo.run([replace(ENTRIES[NAME], recognised=recognised)], ["onnx"]).lines[0].verdict == verdict


def test_a_mechanism_that_cannot_be_built_is_a_failure():
    line = zoo.run([replace(ENTRIES[NAME], mechanism="experts.nested:Missing")]).lines[0]
    assert line.verdict == "failed" and "Missing" in line.targets["onnx"].why


def test_a_fault_of_ours_is_told_and_is_a_failure(monkeypatch):
    monkeypatch.setattr(zoo, "convert", lambda *given: 1 / 0)
    line = zoo.run([ENTRIES[NAME]], ["onnx"]).lines[0]
    assert line.verdict == "failed" and line.targets["onnx"].why == "ZeroDivisionError: division by zero"


def test_names_are_known_or_the_nearest_is_told():
    assert [entry.name for entry in zoo.entries_of(["nested", "depths", "nested"])] == ["nested", "depths"]
    assert zoo.entries_of([]) == list(ENTRIES.values())
    with pytest.raises(Usage, match="the zoo has no 'nestde'\nDid you mean nested"):
        zoo.entries_of(["nested", "nestde"])
    with pytest.raises(Usage, match="mocomp zoo list names them"):
        zoo.entries_of(["qqqqqq"])
    with pytest.raises(Usage, match="not made for target tensorrt"):
        zoo.run([ENTRIES[NAME]], ["tensorrt"])


def test_what_is_there_is_not_written_over(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(BadInput, match="there already"):
        zoo.run([ENTRIES[NAME]], output=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_list_has_every_line_and_converts_nothing(command):
    done = command("zoo", "list")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == list(ENTRIES)


def test_names_and_classes_are_each_there_once():
    mechanisms = [(entry.host, entry.mechanism) for entry in ENTRIES.values()]
    assert len(set(mechanisms)) == len(mechanisms) and len(ENTRIES) >= 45


def test_the_page_has_a_row_for_each_line_and_no_other():
    rows = re.findall(r"^\| (\w+) \|", DOCS.read_text(), re.M)[1:]
    assert sorted(rows) == sorted(ENTRIES)


def test_the_page_is_made_of_a_report():
    on = {"verdict": "passed", "error": 3e-7, "nodes": 5, "original_ms": 1.0, "artifact_ms": 0.25}
    line = {"name": "one", "host": "early_fusion", "paper": "Somebody 2020", "recognised": "", "note": ""}
    lines = [
        line | {"targets": {"onnxruntime": on, "onnx": on | {"nodes": 7}}},
        line
        | {
            "name": "two",
            "recognised": "softmax_topk + ffn",
            "targets": {"onnxruntime": on, "onnx": on | {"verdict": "refused"}},
        },
    ]
    machine = {"cpu": "a processor", "threads": 2}
    text = page(
        f"before\n{BEGIN}| old |\n{END}after\n", {"passed": 1, "refused": 1, "failed": 0, "machine": machine, "lines": lines}
    )
    assert "old" not in text and text.startswith("before\n") and text.endswith("after\n")
    assert "| one | early fusion | Somebody 2020 | plain operators | 3.0e-07 | 3.0e-07 | 5, 7 | 1 | 0.25 | 0.25 |" in text
    assert "| two | early fusion | Somebody 2020 | softmax_topk + ffn | 3.0e-07 | refused | 5 |" in text
    assert page(text, {"passed": 1, "refused": 1, "failed": 0, "machine": machine, "lines": lines}) == text
