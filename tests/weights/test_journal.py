"""What a journal tells is so: parts are on disk before it tells of them, and what it cannot vouch for it does not tell."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from mocomp.options import ConvertOptions
from mocomp.weights import disk, journal
from mocomp.weights.checksums import Part, parts_of, sha256_of
from mocomp.weights.identity import Command, difference
from mocomp.weights.journal import Journal, read_journal

SHA = hashlib.sha256(b"abc").hexdigest()


@pytest.fixture
def log(tmp_path):
    with disk.File(tmp_path / "log") as file:
        yield file


@pytest.fixture
def filled(tmp_path, log):
    """A journal that tells of two parts of a file."""
    (tmp_path / "data").write_bytes(b"abcabc")
    made = Journal(tmp_path, log)
    made.begin({"command": "x"})
    made.done("data", 0, 3, SHA)
    made.done("data", 3, 3, SHA)
    made.flush()
    return made


def test_one_without_a_file_remembers():
    made = Journal()
    made.done("data", 0, 3, SHA)
    assert made.known("data", 0, 3) == SHA and made.known("data", 0, 4) is None and not made.keeps


def test_what_it_tells_is_read_again(filled, log):
    told = read_journal(log.path)
    assert told.belongs == {"command": "x"} and told.pid == os.getpid() and not told.finished
    assert told.parts == [Part("data", 0, 3, SHA), Part("data", 3, 3, SHA)] and filled.keeps


def test_a_part_is_not_known_before_it_is_checked(filled, log, tmp_path):
    again = Journal(tmp_path, log)
    assert again.told and again.known("data", 0, 3) is None
    again.keep(again.told[0])
    assert again.known("data", 0, 3) == SHA


def test_a_part_is_on_disk_before_it_is_told_of(tmp_path, log, monkeypatch):
    order = []

    class Watching(disk.System):
        @staticmethod
        def sync(handle: int) -> None:
            order.append(Path(f"/proc/self/fd/{handle}").readlink().name)
            os.fsync(handle)

    (tmp_path / "data").write_bytes(b"abc")
    made = Journal(tmp_path, log)
    made.begin({})
    monkeypatch.setattr(disk, "system", Watching)
    made.done("data", 0, 3, SHA)
    assert order == []  # several are told of together
    made.flush()
    assert order == ["data", "log"]


@pytest.mark.parametrize(("limit", "value"), [("SECONDS", -1.0), ("BYTES", 2)])
def test_it_tells_after_some_time_and_after_some_bytes(tmp_path, log, monkeypatch, limit, value):
    (tmp_path / "data").write_bytes(b"abc")
    monkeypatch.setattr(journal, limit, value)
    made = Journal(tmp_path, log)
    made.begin({})
    made.done("data", 0, 3, SHA)
    assert read_journal(log.path).parts == [Part("data", 0, 3, SHA)]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_last_line_that_was_cut_short_is_none(filled, log, tmp_path, cut):
    log.truncate(log.path.stat().st_size - cut)
    assert read_journal(log.path).parts == [Part("data", 0, 3, SHA)]
    again = Journal(tmp_path, log)
    again.begin({"command": "x"})
    again.done("data", 3, 3, SHA)
    again.flush()
    assert len(read_journal(log.path).parts) == 2


@pytest.mark.parametrize("name", ["../data", "/etc/passwd", "a/../../b"])
def test_files_outside_its_directory_are_of_no_journal(filled, log, name):
    log.write_at(log.path.stat().st_size, (json.dumps({"file": name, "offset": 0, "length": 3, "sha256": SHA}) + "\n").encode())
    assert {part.file for part in read_journal(log.path).parts} == {"data"}


def test_another_command_begins_anew(filled, log, tmp_path):
    again = Journal(tmp_path, log)
    again.begin({"command": "y"})
    assert read_journal(log.path).parts == [] and read_journal(log.path).belongs == {"command": "y"}


def test_the_parts_of_a_file_cover_it(tmp_path):
    data = os.urandom(1000)
    (tmp_path / "data").write_bytes(data)
    known = [Part("data", at, 100, hashlib.sha256(data[at : at + 100]).hexdigest()) for at in (300, 100)]
    parts = parts_of(tmp_path, "data", known)
    assert [(part.offset, part.length) for part in parts] == [(0, 100), (100, 100), (200, 100), (300, 100), (400, 600)]
    assert all(part.sha256 == hashlib.sha256(data[part.offset : part.offset + part.length]).hexdigest() for part in parts)
    overlapping = [*known, Part("data", 150, 100, SHA)]
    assert [(part.offset, part.length) for part in parts_of(tmp_path, "data", overlapping)] == [(0, 1000)]


def test_bytes_that_are_not_there_have_no_checksum(tmp_path):
    (tmp_path / "data").write_bytes(b"abc")
    assert sha256_of(tmp_path / "data", 0, 3) == SHA
    assert sha256_of(tmp_path / "data", 1, 3) is None and sha256_of(tmp_path / "other", 0, 1) is None


def test_a_command_is_known_by_what_it_reads_and_how(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("{}")

    def asked(**options: object) -> dict:
        return Command("convert", ConvertOptions(**options), (str(tmp_path),)).identity()

    first = asked(quantize="int4", calibration=str(tmp_path / "rows.jsonl"))
    assert (
        difference(
            first, json.loads(json.dumps(asked(quantize="int4", force=True, calibration=first["options"]["calibration"])))
        )
        == ""
    )
    assert "mocomp convert" in difference(first, asked()) and "--quantize int4" in difference(first, asked())
    assert difference(first | {"versions": {"torch": "1"}}, first).endswith("than now")
    (tmp_path / "rows.jsonl").write_text("[]")
    assert "rows.jsonl has changed since" in difference(
        first, asked(quantize="int4", calibration=first["options"]["calibration"])
    )
