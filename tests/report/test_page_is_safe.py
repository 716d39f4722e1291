"""Whatever a checkpoint calls its layers and whatever is wrong in a file: nothing runs, nothing is fetched, nothing is lost."""

import copy
import json
import re

import pytest

from mocomp.errors import BadInput
from mocomp.report.page import environment, write
from tests.report import samples
from tests.report.html import read, words

FILES = {
    "bench.json": samples.bench,
    "usage.json": samples.usage,
    "eval.json": samples.evaluation,
    "bisect.json": samples.bisect,
}


EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def planted(data: object) -> object:
    """Every text in it, and every key that is a name of ours to show, with markup in it."""
    if isinstance(data, dict):
        return {key: planted(value) for key, value in data.items()}
    if isinstance(data, list):
        return [planted(value) for value in data]
    return f"{data} {EVIL}" if isinstance(data, str) else data


def planted_texts(options):
    """Options with something planted in those that may be any text."""
    return options | {name: planted(options[name]) for name in ("calibration", "quantize", "algorithm")}


def test_names_of_a_checkpoint_cannot_run(full):
    whole = read(write(full))
    for path in full.glob("*.json"):
        data = json.loads(path.read_text())
        # what a command chooses among is checked when the file is read
        kept = {"modalities": data.get("modalities")} if path.name == "usage.json" else {}
        kept |= {"options": planted_texts(data["options"])} if path.name == "mocomp.json" else {}
        path.write_text(json.dumps(planted(data) | kept))
    written = write(full)
    page = read(written)
    assert EVIL in words(page.one(class_="model")) and EVIL in words(page.one(id="experts"))
    assert len(page.all("script")) == len(whole.all("script")) == 1 and page.all("img") == []
    assert not [e for e in page.all() if any(name.startswith("on") for name in e.attributes)]
    assert "<script>alert" not in written.read_text()


def test_escaping_is_what_keeps_them_from_running(full, edit, monkeypatch):
    """The test above would see it."""
    monkeypatch.setattr(environment(), "autoescape", False)
    monkeypatch.setattr(environment(), "cache", {})
    edit("mocomp.json", notes=[EVIL])
    assert len(read(write(full)).all("img")) == 1


def test_page_needs_nothing_from_elsewhere(full):
    written = write(full)
    page = read(written)
    for element in page.all():
        for name in ("src", "href"):
            assert element.attributes.get(name, "#").startswith(("#", "data:")), element.attributes
    assert not re.search(r"https?://|@import|url\(", written.read_text())
    ids = [element.attributes["id"] for element in page.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    targets = {e.attributes["href"][1:] for e in page.all("a") if e.attributes["href"].startswith("#")}
    assert targets <= set(ids)


def test_large_models_stay_small(full, edit):
    edit("usage.json", **samples.usage(layers=61, experts=256))
    parity = json.loads((full / "mocomp.json").read_text())["parity"]
    layers = [parity["layers"][0] | {"layer": f"model.layers.{i}.mlp.experts"} for i in range(61)]
    edit("mocomp.json", parity=parity | {"layers": layers})
    written = write(full)
    assert written.stat().st_size < 500_000
    assert len(read(written).one(id="experts").all("g")) == 2 * 61


def test_damaged_files_are_named_and_the_old_page_stays(full):
    before = write(full).read_text()
    for name in ("mocomp.json", *FILES):
        good = (full / name).read_text()
        for bad in ("{", "[]", '{"points": 3}'):
            (full / name).write_text(bad)
            with pytest.raises(BadInput, match=re.escape(str(full / name))):
                write(full)
        (full / name).write_text(good)
    assert (full / "report.html").read_text() == before and not list(full.glob(".*"))


def spoilt(data: object):
    """(where, copy of data with one thing in it gone or of another kind), once for each place; of lists the first item."""
    if isinstance(data, dict):
        for key in data:
            yield key, {name: value for name, value in data.items() if name != key}
            yield key, data | {key: None}
            yield key, data | {key: "?"}
            yield from ((f"{key}.{where}", data | {key: inner}) for where, inner in spoilt(data[key]))
    elif isinstance(data, list) and data:
        yield from ((f"0.{where}", [inner, *data[1:]]) for where, inner in spoilt(data[0]))


@pytest.mark.parametrize("name", FILES)
def test_whatever_is_wrong_in_a_result_is_bad_input_or_shown(artifact, edit, name):
    data = FILES[name]()
    refused = 0
    for where, changed in spoilt(copy.deepcopy(data)):
        (artifact / name).write_text(json.dumps(changed))
        try:
            write(artifact)
        except BadInput as error:
            assert name in str(error), where
            refused += 1
    assert refused > 5
