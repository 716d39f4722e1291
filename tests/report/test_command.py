"""mocomp report, as a shell sees it."""

import json
from functools import partial

import pytest


@pytest.fixture
def made(command):
    """made(*arguments): what `mocomp report` gives."""
    return partial(command, "report")


def test_page_is_made_and_what_is_absent_is_named(made, artifact, edit):
    done = made(artifact)
    assert (done.code, done.err) == (0, "")
    first, *absent = done.out.splitlines()
    assert first.startswith(f"{artifact}/report.html: ") and first.endswith("from mocomp.json")
    assert [line.split()[2] for line in absent] == ["bench.json", "usage.json", "eval.json", "bisect.json"]
    assert "Parity passed" in (artifact / "report.html").read_text()


def test_json_is_one_object_and_nothing_else(made, full, tmp_path):
    done = made(full, "-o", tmp_path / "page.html", "--json")
    assert (done.code, done.err) == (0, "")
    shown = json.loads(done.out)
    assert shown["page"] == str(tmp_path / "page.html") and shown["bytes"] == (tmp_path / "page.html").stat().st_size
    assert shown["absent"] == {} and len(shown["shows"]) == 5
    assert not (full / "report.html").exists()


def test_damaged_results_are_one_message(made, full):
    (full / "usage.json").write_text("{")
    done = made(full)
    assert (done.code, done.out) == (5, "") and done.err.startswith(f"mocomp: {full}/usage.json: not readable as JSON")
    assert not (full / "report.html").exists()


@pytest.mark.parametrize("where", ["nowhere", "."])
def test_what_is_no_artifact_is_refused(made, tmp_path, where):
    done = made(tmp_path / where)
    assert (done.code, done.out) == (5, "") and "no mocomp.json" in done.err and "mocomp convert" in done.err


@pytest.mark.parametrize("where", ["missing/page.html", "."])
def test_where_nothing_can_be_written_is_said(made, artifact, tmp_path, where):
    before = sorted(tmp_path.iterdir())
    done = made(artifact, "-o", tmp_path / where)
    assert (done.code, done.out) == (5, "") and "cannot be written" in done.err and "Traceback" not in done.err
    assert sorted(tmp_path.iterdir()) == before
