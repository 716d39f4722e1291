"""Quantisation end to end: the command line, its options, and what a failure leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mocomp import quantising
from mocomp.calibration.quantiser import Candidate
from mocomp.errors import MocompError, Usage
from mocomp.options import ConvertOptions
from mocomp.passes.quantize_weights import dense_weights
from mocomp.pipeline import convert
from mocomp.quant.algorithms.rtn import RTN
from mocomp.quant.formats import parse
from mocomp.quant.weight import promised
from mocomp.weights.scratch import Scratch
from tests.calibration.models import Opened, opened

SQUARE = {"num_hidden_layers": 1, "moe_intermediate_size": 64}
LAYER = "model.layers.0.mlp.experts"


@pytest.fixture
def source(checkpoint) -> Path:
    return checkpoint("qwen3_moe", experts=4, **SQUARE)


@pytest.fixture
def fails(command, source, tmp_path, monkeypatch):
    """fails(code, command, ...): what it says; nothing may be left, here or in the directory of temporary files."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()

    def run(code: int, name: str, *arguments: object) -> str:
        monkeypatch.setattr("tempfile.tempdir", str(temporary))
        output = ("-o", tmp_path / "out" / "artifact") if name == "convert" else ()
        done = command(name, source, *output, *arguments)
        assert done.code == code and done.out == "", done.err
        assert "Traceback" not in done.err and "this is a fault of mocomp, please" not in done.err
        assert not (tmp_path / "out").exists() and {path.suffix for path in temporary.iterdir()} <= {".log"}
        return done.err

    return run


def test_a_conversion(command, source, tmp_path):
    rows = "".join(json.dumps({"input_ids": [i % 128 for i in range(r, r + 8)]}) + "\n" for r in range(6))
    (tmp_path / "rows.jsonl").write_text(rows)
    arguments = (
        "--quantize",
        "int4",
        "--quantize-dense",
        "int8",
        "--algorithm",
        "gptq",
        "--few-tokens",
        "rtn",
        "--group-size",
        64,
    )
    data = ("--calibration", tmp_path / "rows.jsonl")
    done = command("convert", source, "-o", tmp_path / "made", *arguments, *data, "--json")
    report = json.loads(done.out)
    assert done.code == 0 and done.out.count("\n") == 1 and report["parity"]["failures"] == []
    assert set(report["artifact"]["formats"].values()) == {"int4:64", "int8:64"} and "quantise" in report["seconds"]
    assert [q["data"] for q in report["quality"]] == [f"1 rows of {tmp_path / 'rows.jsonl'}", "the cases of parity"]
    assert {q["format"] for q in report["quality"]} == {"int4, dense int8", "artifact"}
    assert any(set(layer["few"].values()) == {"rtn"} for layer in report["quality"][0]["layers"])
    assert report["artifact"]["files"] == ["model.onnx", "model.onnx.data"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "rows.jsonl"]
    assert not [path for path in (tmp_path / "made").iterdir() if "quantised" in path.name or path.name.startswith(".")]


def test_ways_side_by_side(command, source, tmp_path, monkeypatch):
    monkeypatch.setattr("mocomp.verify.latency.SECONDS", 0.0)
    monkeypatch.setattr("mocomp.verify.latency.FEWEST", 1)
    done = command("quantize", source, "--try", "int4:64,nvfp4", "--algorithm", "rtn,search", "--json")
    assert done.code == 0 and done.out.count("\n") == 1, done.err
    ways = json.loads(done.out)["ways"]
    assert [(way["format"], way["algorithm"]) for way in ways] == [
        ("float", ""), ("int4:64", "rtn"), ("nvfp4", "rtn"), ("int4:64", "search"), ("nvfp4", "search"),
    ]  # fmt: skip
    assert [way["bits"] for way in ways] == pytest.approx([32, 4.5, 4.51, 4.5, 4.51], abs=0.01)
    assert [bool(way["obstacle"]) for way in ways] == [False, False, True, False, True]
    assert [bool(way["ms"]) for way in ways] == [True, True, False, True, False]
    assert ways[0]["nbytes"] > ways[1]["nbytes"] == ways[3]["nbytes"] and ways[0]["front"] and ways[0]["quality"] is None
    assert ways[3]["quality"]["experts_error" if "experts_error" in ways[3]["quality"] else "error"] > 0


WRONG = {
    "no such block": (2, {"quantize": "int4:33"}, "int4:33"),
    "no dense format": (2, {"quantize_dense": "float7"}, "no format 'float7'"),
    "no algorithm": (2, {"quantize": "int4", "algorithm": "magic"}, "no algorithm 'magic'; they are awq, gptq"),
    "mixed without a budget": (2, {"quantize": "mixed"}, "a budget to spend"),
    "data for nothing": (2, {"calibration": "rows.jsonl"}, "--calibration is for weights that are quantised"),
    "no data": (5, {"quantize": "int4", "calibration": "absent.jsonl"}, "absent.jsonl: not readable"),
    "no arrays": (5, {"quantize": "int4", "calibration": "absent.npz"}, "absent.npz: not readable"),
    "a bad array": (5, {"quantize": "int4", "calibration": "rows.npz"}, "rows.npz: it has no input_ids, only tokens"),
}


@pytest.fixture(scope="module")
def model(checkpoint):
    with opened(checkpoint("qwen3_moe", experts=4, **SQUARE)) as made:
        yield made


@pytest.fixture
def data(tmp_path) -> Path:
    """A directory of rows, none of them right."""
    (tmp_path / "rows.jsonl").write_text('{"input_ids": [1, 2]}\n\n{"ids": [3]}\n')
    np.savez(tmp_path / "rows.npz", tokens=np.zeros((2, 3), int))
    return tmp_path


@pytest.mark.parametrize("case", WRONG)
def test_options_that_cannot_be_meant_so(model: Opened, data: Path, case: str):
    code, options, message = WRONG[case]
    options = options | ({"calibration": str(data / options["calibration"])} if "calibration" in options else {})
    job = model.job(**options)
    with pytest.raises(MocompError) as caught, quantising.scratch(data) as store:
        quantising.fill(job, [quantising.plan(job, []).candidate(model.program, store)], [])
    assert caught.value.exit_code == code and message in str(caught.value)
    assert sorted(path.name for path in data.iterdir()) == ["rows.jsonl", "rows.npz"]


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, ["--quantize", "int5"], "no format 'int5'; they are fp8, int2"),
        (2, ["--bits", "4"], "without --quantize mixed"),
        (2, ["--quantize", "mixed", "--bits", "1"], "The smallest budget that can be met is 18,432 bytes"),
        (3, ["--quantize", "int4:128"], f"- {LAYER}: a block of 128 does not divide 64 columns"),
        (5, ["--quantize", "int4", "--calibration", "rows.jsonl"], "rows.jsonl, line 3: expected an object with"),
    ],
)
def test_a_conversion_that_fails(fails, data, code, arguments, message):
    assert message in fails(code, "convert", *(data / a if a.endswith("jsonl") else a for a in arguments))


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, ["--try", "int4,int7"], "no format 'int7'"),
        (2, ["--try", "mixed"], "mixed precision is a choice among them"),
        (2, ["--try", ""], "--try wants formats"),
        (2, ["--target", "abacus"], "no target 'abacus'"),
        (5, ["--calibration", "absent.jsonl"], "not readable"),
    ],
)
def test_ways_that_are_none(fails, code, arguments, message):
    assert message in fails(code, "quantize", *arguments)


def test_nothing_is_left_of_what_was_quantised_when_parity_fails(fails, monkeypatch):
    from mocomp.verify.tolerance import TABLE, Tolerance

    monkeypatch.setitem(TABLE, ("onnxruntime", "float32"), Tolerance(1e-30, 1e-30, 1e-4, "for this test"))
    assert "parity failed" in fails(1, "convert", "--quantize", "int4", "--quantize-dense", "int4")


def test_a_graph_alone_is_of_the_packed_weights_too(command, source, tmp_path):
    done = command("convert", source, "-o", tmp_path / "a", "--quantize", "int4", "--weights", "none", "--json")
    assert done.code == 0 and json.loads(done.out)["artifact"]["operators"]["QMoE"] == 1


def test_nothing_to_quantise(checkpoint, tmp_path):
    with pytest.raises(Usage, match="it has no mixtures") as caught:
        convert(str(checkpoint("bert", num_hidden_layers=1)), tmp_path / "a", ConvertOptions(quantize="int4"))
    assert "--quantize-dense" in caught.value.fix


@pytest.mark.parametrize("text", ["fp8:tensor", "fp8:128x128", "nvfp4", "int4:32:asym", "fp8"])
def test_a_linear_layer_that_is_quantised_in_pieces_is_as_if_whole(checkpoint, tmp_path, monkeypatch, text):
    """Where rows share a scale it is not cut."""
    monkeypatch.setattr("mocomp.quant.parts.CHUNK", 10_000)
    monkeypatch.setattr("mocomp.quant.parts.PART", 25_000)
    with opened(checkpoint("bert", num_hidden_layers=1, intermediate_size=160)) as made:
        form, store = parse(text), Scratch(tmp_path / "scratch", "made:")
        shapes = {name: made.program.recipes[name].shape for name in dense_weights(made.program)}
        weights = {name: promised(f"made:{name}", shape, form) for name, shape in shapes.items()}
        quantising.fill(made.job(), [Candidate(text, weights, RTN(), store)], [])
        for name, weight in weights.items():
            w = made.program.recipes[name].evaluate(made.checkpoint.read)
            grid = form.fit(w[None])
            meant = form.pack(form.encode(w[None], grid), grid).tensors()
            for part, recipe in weight.parts.items():
                found = recipe.evaluate(store.read)
                assert torch.equal(found.float(), meant[part][0].float()), (name, part)
        store.close()


@pytest.mark.parametrize(
    ("text", "size", "full"),
    [
        ("int4", 0, "int4:32"), ("int2", 0, "int2:32"), ("int4:asym", 0, "int4:32:asym"), ("int4:64", 128, "int4:64"),
        ("int4", 128, "int4:128"), ("int8", 0, "int8"), ("int8", 64, "int8:64"), ("fp8", 0, "fp8"), ("nvfp4", 0, "nvfp4"),
    ],
)  # fmt: skip
def test_formats_as_options_give_them(text, size, full):
    assert quantising.spelled(text, size) == full and parse(full).text == full


@pytest.mark.parametrize(("text", "full"), [("int8", "int8:32"), ("int4", "int4:32"), ("fp8", "fp8"), ("mxfp4", "mxfp4")])
def test_formats_of_linear_layers(checkpoint, text, full):
    with opened(checkpoint("bert", num_hidden_layers=1)) as made:
        chosen = quantising.plan(made.job(quantize_dense=text), [])
        assert chosen.formats and {form.text for form in chosen.formats.values()} == {full}
