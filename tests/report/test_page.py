"""The page says what the files say."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.report.page import CHAPTERS, write
from tests.report import samples
from tests.report.html import read, words

FILES = {
    "bench.json": samples.bench,
    "usage.json": samples.usage,
    "eval.json": samples.evaluation,
    "bisect.json": samples.bisect,
}


def report_of(directory: Path) -> dict:
    return json.loads((directory / "mocomp.json").read_text())


def tile(page, name: str) -> str:
    return words(page.one(id=f"tile-{name}"))


def test_first_screen_says_what_the_report_says(artifact):
    page, report = read(write(artifact)), report_of(artifact)
    assert words(page.one("h1")).endswith("Parity passed")
    assert f"{report['parity']['worst']:.1e}" in tile(page, "error") and "tolerance 1e-04" in tile(page, "error")
    assert "5.1 MB" in tile(page, "size") and "100 % of float32" in tile(page, "size")
    assert f"{max(report['memory'].values()):.2f} GB" in tile(page, "memory")
    assert "peak of the conversion" in tile(page, "memory")
    assert "Qwen3MoeForCausalLM" in words(page.one(class_="model")) and "onnxruntime" in words(page.one(class_="model"))


def test_speed_is_of_the_conversion_until_there_is_a_benchmark(artifact, edit):
    edit("mocomp.json", latency={})
    page = read(write(artifact))
    assert "not timed" in tile(page, "speed") and "mocomp bench DIR" in tile(page, "speed")
    edit("mocomp.json", latency=samples.latency())
    assert "12.7×" in tile(read(write(artifact)), "speed")  # 5.1 ms / 0.4 ms
    edit("bench.json", **samples.bench())
    page = read(write(artifact))
    assert "12.1×" in tile(page, "speed")  # 5.1 ms / 0.42 ms
    assert "90 MB peak when running eager PyTorch 0.48 GB" in tile(page, "memory")


def test_slower_than_eager_is_not_called_faster(artifact, edit):
    slow = samples.latency()
    slow["artifact"]["1 token"]["median"] = 10.2
    edit("mocomp.json", latency=slow)
    assert "0.50× of the speed of eager PyTorch at 1 token" in tile(read(write(artifact)), "speed")


def test_failed_parity_is_what_the_page_opens_with(artifact, edit):
    parity = report_of(artifact)["parity"]
    parity["cases"][1]["errors"]["logits"] = 0.31
    edit(
        "mocomp.json",
        parity=parity | {"failures": ["one token, past 9: logits off by 3.1e-01"], "passed": False, "worst": 0.31},
    )
    page = read(write(artifact))
    assert words(page.one("h1")).endswith("Parity failed") and page.all("section", class_="bad")
    assert "3.1e-01" in tile(page, "error") and "logits off by 3.1e-01" in words(page.one(class_="failures"))
    assert [mark.attributes["title"] for mark in page.all(class_="out")] == ["one token, past 9: 3.1e-01"]
    culprits = page.one(id="parity").all(class_="culprit")
    assert [words(row) for row in culprits] == ["one token, past 9 3.1e-01 1 of 1 100 % " + f"{parity['cases'][1]['kl']:.1e}"]


def test_an_error_that_is_no_number_fails_visibly(artifact, edit):
    parity = report_of(artifact)["parity"]
    parity["cases"][0]["errors"]["logits"] = float("inf")
    edit("mocomp.json", parity=parity | {"failures": ["logits"], "passed": False, "worst": float("inf")})
    page = read(write(artifact))
    assert "not finite" in tile(page, "error") and len(page.one(id="parity").all(class_="culprit")) == 1


def test_bisection_names_the_culprit_on_the_first_screen(artifact, edit):
    edit("bisect.json", **samples.bisect())
    page = read(write(artifact))
    assert "fuse_routing is the first to leave the tolerance" in words(page.one(class_="verdict").one(class_="warning"))
    assert [words(row) for row in page.one(id="parity").all(class_="culprit")] == ["fuse_routing 2.3e-01", "1 1.1e-01"]


def test_the_first_of_two_passes_of_one_name_is_the_culprit(artifact, edit):
    found = samples.bisect(passed=True)
    again = {"name": "clean", "error": 1e30, "layers": [{"layer": "model.layers.0", "error": 1e30}]}
    edit("bisect.json", **found | {"passed": False, "first_pass": "clean", "passes": [*found["passes"], again, again]})
    strips = read(write(artifact)).one(id="parity").all("figure")[2:]
    rows = strips[0].all("div", class_="row")[1:-1]
    assert [words(row) for row in rows if "culprit" in row.attributes["class"]] == ["clean not finite"]
    assert len(rows) == len(found["passes"]) + 3 and "culprit" in rows[-3].attributes["class"]


def test_every_pass_is_in_the_picture(artifact):
    page, report = read(write(artifact)), report_of(artifact)
    rows = page.one("ol", class_="passes").inside
    assert [words(row.one("b")) for row in rows] == [step["name"] for step in report["passes"]]
    assert [str(step["nodes"]) in words(row.one(class_="nodes")) for row, step in zip(rows, report["passes"], strict=True)]
    changed = [row for row in rows if "changed" in row.attributes["class"].split()]
    assert len(changed) == sum(step["changed"] > 0 for step in report["passes"])
    assert "rms_norm" in words(page.one(class_="passes")), "what fuse_norms says of itself"


def test_skipped_places_have_their_reasons(artifact, edit):
    passes = report_of(artifact)["passes"]
    passes[3]["skipped"] = ["layers.0: dense"]
    edit("mocomp.json", passes=passes)
    assert "layers.0: dense" in words(read(write(artifact)).one(class_="passes"))


def test_heat_map_draws_every_expert_that_got_tokens(artifact, edit):
    found = samples.usage()
    edit("usage.json", **found)
    figures = read(write(artifact)).one(id="experts").all("figure", class_="heat")
    assert len(figures) == 2
    for figure, modality in zip(figures, found["modalities"], strict=True):
        for group, layer in zip(figure.all("g"), found["layers"], strict=True):
            shades = [path for path in group.all("path") if re.fullmatch(r"l\d", path.attributes["class"])]
            drawn = {i for path in shades for i in experts_of(path.attributes["d"])}
            assert drawn == {i for i, count in enumerate(layer["tokens"][modality]) if count}
            assert {i for path in group.all("path", class_="dead") for i in experts_of(path.attributes["d"])} == set(
                layer["dead"]
            )


def experts_of(path: str) -> set[int]:
    """The experts that a line of the heat map covers."""
    runs = re.findall(r"M(\d+) \.5h(\d+)", path)
    assert "".join(f"M{start} .5h{length}" for start, length in runs) == path
    return {int(start) + i for start, length in runs for i in range(int(length))}


def test_points_stand_under_the_roof_that_bounds_them(artifact, edit):
    """Share of the roof as the file has it, and as it can be measured on the plot."""
    found = samples.bench()
    edit("bench.json", **found)
    section = read(write(artifact)).one(id="speed")
    near, far = section.all("polyline")
    assert "far" in far.attributes["class"]
    ticks = [float(words(tick)) for tick in section.one(class_="plot").all(class_="y")]
    decades = math.log10(max(ticks) / min(ticks))
    points = [point for point in found["points"] if point["bytes"]]
    for spot, point in zip(section.all(class_="spot"), points, strict=True):
        at, up = (float(number) for number in re.findall(r"([\d.]+)%", spot.attributes["style"]))
        corners = np.array([pair.split(",") for pair in near.attributes["points"].split()], float)
        roof = np.interp(at, corners[:, 0], 100 - corners[:, 1])
        share = 10 ** ((up - roof) / 100 * decades)
        bound = max(point["bytes"] / 64.0e6, point["flop"] / 118e6)
        assert share == pytest.approx(bound / point["ms"]["median"], rel=0.01)


def test_chosen_way_is_marked(full):
    table = read(write(full)).one("table", class_="tuning")
    assert [words(cell) for cell in table.all(class_="chosen")] == ["0.110 chosen", "2.80 chosen", "8.80 chosen"]


def test_command_makes_it_again(artifact, edit):
    options = report_of(artifact)["options"] | {"quantize": "int4:32", "force": True, "calibration": "my data.jsonl"}
    edit("mocomp.json", options=options, source="/some where/checkpoint")
    shown = words(read(write(artifact)).one(id="command"))
    assert shown.startswith("mocomp convert '/some where/checkpoint' -o DIR --target onnxruntime")
    assert "--quantize int4:32" in shown and "--calibration 'my data.jsonl'" in shown and "--force" not in shown


@pytest.mark.parametrize("name", ["bench.json", "usage.json", "eval.json", "bisect.json"])
def test_what_is_missing_shows_its_command_and_no_empty_plot(full, name):
    whole = read(write(full))
    (full / name).unlink()
    page = read(write(full))
    assert len(page.all(class_="missing")) == len(whole.all(class_="missing")) + 1
    assert len(page.all("figure")) < len(whole.all("figure")) or name == "eval.json"


VARIANTS = {
    "weights none": ConvertOptions(weights="none"),
    "onnx, parity off": ConvertOptions(target="onnx", parity="off"),
    "huggingface": ConvertOptions(target="huggingface"),
    "int4": ConvertOptions(quantize="int4:16", accuracy_level=4),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_page_of_other_artifacts(checkpoint, name, tmp_path):
    convert(str(checkpoint("mixtral")), tmp_path / "artifact", VARIANTS[name])
    page = read(write(tmp_path / "artifact"))
    proven = VARIANTS[name].parity == "full" and VARIANTS[name].weights == "all"
    assert words(page.one("h1")).endswith("Parity passed" if proven else "Not proven")
    assert bool(page.all(class_="cost")) == (name == "int4")
    assert ("not written" in tile(page, "size")) == (name == "weights none")
    assert [section.attributes["id"] for section in page.all("section", class_="chapter")] == list(CHAPTERS)


@pytest.mark.parametrize("family", ["bert", "mixtral"])
def test_page_of_other_families(converted, family, tmp_path):
    page = read(write(shutil.copytree(converted(family).directory, tmp_path / "artifact")))
    assert words(page.one("h1")).endswith("Parity passed")
    assert ("By layer" in words(page.one(id="parity"))) == (family == "mixtral")


def test_encoders_have_cosine_and_no_perplexity(artifact, edit):
    edit("eval.json", **samples.embedding())
    section = words(read(write(artifact)).one(id="quality"))
    assert "0.999998, 0.999910" in section and "99.8 %" in section and "Perplexity" not in section
