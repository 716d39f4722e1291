"""A conversion that is disturbed leaves a whole directory or none, and the same command ends with the same bytes.

The tests marked `faults` disturb it at every operation of the disk; a sample of them runs among all others.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mocomp.commands.verify import verify
from mocomp.errors import BadInput
from mocomp.weights import disk, journal, output
from tests.faults import children, conversion
from tests.faults.disks import FailingDisk

BESIDE = {".out.partial", ".out.journal"}
SAMPLED, EVERY = 10, {"checkpoint": 1, "upcycle": 2, "calibrated": 8, "onnx": 12}
"""How many are a sample; of all operations, every how many-th is disturbed."""


class Workshop:
    """A directory in which conversions are disturbed, and what each of them makes when nothing disturbs it."""

    def __init__(self, directory: Path):
        self.directory, self.sources = directory, directory / "sources"
        self.made: dict[str, tuple[dict, int, float]] = {}
        self.resumed = 0
        conversion.make_sources(self.sources)

    def undisturbed(self, kind: str) -> tuple[dict, int, float]:
        """(the content, the number of operations of the disk, the seconds it takes)."""
        if kind not in self.made:
            conversion.run(kind, self.sources, self.emptied("first") / "out")  # which traces
            target = self.emptied("first") / "out"
            began, counting = time.perf_counter(), FailingDisk()
            self.run(kind, target, counting)
            made = conversion.content(target)
            self.made[kind] = made, len(counting.calls), time.perf_counter() - began
        return self.made[kind]

    def emptied(self, name: str = "place") -> Path:
        """An empty directory, to write `out` into."""
        shutil.rmtree(self.directory / name, ignore_errors=True)
        (self.directory / name).mkdir()
        return self.directory / name

    def run(self, kind: str, target: Path, system: disk.System) -> str:
        """A conversion on a disk; the message it ends with where it fails. Raises what is no BadInput."""
        before, disk.system = disk.system, system
        try:
            conversion.run(kind, self.sources, target)
            return ""
        except BadInput as error:
            return str(error)
        finally:
            disk.system = before

    def check(self, kind: str, where: Path) -> None:
        """That the output is whole or not there, and is made by the same command."""
        target, whole = where / "out", self.undisturbed(kind)[0]
        assert {path.name for path in where.iterdir()} <= {*BESIDE, "out"}
        if target.exists():
            assert conversion.content(target) == whole
            return
        self.resumed += (where / ".out.partial").exists()
        conversion.run(kind, self.sources, target, workers=2)
        assert conversion.content(target) == whole
        assert [path.name for path in where.iterdir()] == ["out"]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def context(workshop) -> Iterator:
    return children.server(workshop.sources)


def disturb_in_process(workshop: Workshop, kind: str, numbers: list[int]) -> list[str]:
    """One run, and its repetition, for each number of an operation; which calls failed, and how.

    The journal is flushed by the clock, so a run may have a few operations less than the first one had: the last are not met.
    """
    ways = []
    for i, number in enumerate(numbers):
        where, system = workshop.emptied(), FailingDisk(number, i)
        message = workshop.run(kind, where / "out", system)
        assert system.failed or number >= len(system.calls)
        assert message == "" or ("run the same command" in message) == (where / ".out.partial").exists()
        ways += [system.failed] if system.failed else []
        workshop.check(kind, where)
        if i % 20 == 0:
            with conversion.small_parts():  # which says nothing
                assert verify(where / "out").whole
    return ways


def lose_power(workshop: Workshop, context, kind: str, numbers: list[int]) -> int:
    """How many runs came to the operation at which the power was to be lost."""
    lost = 0
    for number in numbers:
        where = workshop.emptied()
        child = children.start(context, children.lost, kind, workshop.sources, where / "out", number)
        child.join()
        assert child.exitcode in (0, 1)
        lost += child.exitcode
        workshop.check(kind, where)
    return lost


def kill(workshop: Workshop, context, kind: str, count: int, seed: int, number: int = signal.SIGKILL) -> list[int]:
    """Send a signal at moments all over the run; the exit codes."""
    seconds, drawn, codes = workshop.undisturbed(kind)[2], random.Random(seed), []
    for i in range(count):
        where = workshop.emptied()
        child = children.start(context, children.converted, kind, workshop.sources, where / "out")
        while child.is_alive() and not (where / ".out.journal").exists():
            time.sleep(0.001)
        time.sleep((i + drawn.random()) / count * seconds)
        if child.is_alive():
            os.kill(child.pid, number)
        child.join()
        codes.append(child.exitcode)
        workshop.check(kind, where)
    return codes


def numbers_of(workshop: Workshop, kind: str, count: int, seed: int = 0) -> list[int]:
    """Some operations, from all over a run and in order."""
    total, drawn = workshop.undisturbed(kind)[1], random.Random(seed)
    return sorted(drawn.sample(range(total), min(count, total)))


@pytest.mark.parametrize("kind", ["checkpoint", "upcycle"])
def test_a_sample_of_failures_of_the_disk(workshop, kind):
    before = workshop.resumed
    assert len(disturb_in_process(workshop, kind, numbers_of(workshop, kind, SAMPLED))) >= SAMPLED - 1
    assert workshop.resumed > before  # some of them went on with what was there


def test_a_sample_of_power_losses(workshop, context):
    total = workshop.undisturbed("checkpoint")[1]
    numbers = [*numbers_of(workshop, "checkpoint", 3), total - 3, total - 2, total - 1]
    assert lose_power(workshop, context, "checkpoint", numbers) >= 3


def test_a_sample_of_kills(workshop, context):
    codes = kill(workshop, context, "checkpoint", 2, seed=1)
    assert len(codes) == 2 and set(codes) <= {-signal.SIGKILL, 0}


@pytest.mark.faults
@pytest.mark.parametrize("kind", list(EVERY))
def test_every_operation_of_the_disk_may_fail(workshop, kind):
    total = workshop.undisturbed(kind)[1]
    ways = disturb_in_process(workshop, kind, list(range(0, total, EVERY[kind])))
    print(f"{kind}: {len(ways)} disturbed runs, {len(set(ways))} kinds of failure: {sorted(set(ways))}")
    assert len(ways) >= 0.95 * total // EVERY[kind]


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["checkpoint", "upcycle"])
def test_power_may_be_lost_at_any_operation(workshop, context, kind):
    total = workshop.undisturbed(kind)[1]
    numbers = sorted({*range(0, total, 10), *range(total - 30, total)})
    lost = lose_power(workshop, context, kind, numbers)
    print(f"{kind}: the power was lost {lost} times")
    assert lost >= 0.8 * len(numbers)


@pytest.mark.faults
@pytest.mark.parametrize(("kind", "count"), [("checkpoint", 20), ("upcycle", 20), ("onnx", 5)])
def test_a_process_may_be_killed_at_any_moment(workshop, context, kind, count):
    codes = kill(workshop, context, kind, count, seed=7)
    print(f"{kind}: {codes.count(-signal.SIGKILL)} processes killed, {codes.count(0)} were done before")
    assert codes.count(-signal.SIGKILL) >= count // 2


@pytest.mark.faults
def test_a_user_may_stop_it_at_any_moment(workshop, context):
    codes = kill(workshop, context, "checkpoint", 6, seed=3, number=signal.SIGINT)
    print(f"{codes.count(130)} stopped, {codes.count(0)} were done before")
    assert set(codes) <= {130, 0} and 130 in codes


@pytest.mark.faults
@pytest.mark.parametrize("largest", [5_000, 20_000, 60_000])
def test_a_file_may_not_fit(workshop, context, largest):
    where = workshop.emptied()
    child = children.start(context, children.converted, "checkpoint", workshop.sources, where / "out", largest)
    child.join()
    assert child.exitcode == BadInput.exit_code and not (where / "out").exists()
    workshop.check("checkpoint", where)


# what these tests would not let through


def full_at_the_end(workshop: Workshop, kind: str) -> Path:
    """A conversion that was cut short with most of its parts written."""
    workshop.undisturbed(kind)
    where = workshop.emptied()
    writes = [i for i, call in enumerate(calls_of(workshop, kind)) if call == "pwrite"]
    assert "stays" in workshop.run(kind, where / "out", FailingDisk(writes[-8], 2))
    return where


def calls_of(workshop: Workshop, kind: str) -> list[str]:
    counting = FailingDisk()
    workshop.run(kind, workshop.emptied("counted") / "out", counting)
    return counting.calls


def test_a_part_that_was_damaged_is_written_again_and_a_journal_that_trusts_is_noticed(workshop, monkeypatch):
    for trusting in (False, True):
        where = full_at_the_end(workshop, "checkpoint")
        part = journal.read_journal(where / ".out.journal").parts[-1]
        with disk.File(where / ".out.partial" / part.file) as file:
            file.write_at(part.offset, bytes(byte ^ 1 for byte in os.pread(file.handle, part.length, part.offset)))
        if trusting:
            monkeypatch.setattr(output, "intact", lambda directory, parts, *rest: ((part, True) for part in parts))
            with pytest.raises(AssertionError):
                workshop.check("checkpoint", where)
        else:
            workshop.check("checkpoint", where)


def test_files_that_no_journal_knows_do_not_stay(workshop):
    where = full_at_the_end(workshop, "checkpoint")
    (where / ".out.partial" / "model-00009-of-00009.safetensors").write_bytes(b"of nobody")
    workshop.check("checkpoint", where)


def test_a_rename_before_what_it_names_is_on_disk_is_noticed(workshop, monkeypatch):
    workshop.undisturbed("checkpoint")
    monkeypatch.setattr(disk, "sync_tree", lambda path: None)
    total = len(calls_of(workshop, "checkpoint"))
    where = workshop.emptied()
    forking = multiprocessing.get_context("fork")  # a child that has what is patched here
    child = children.start(forking, children.lost, "checkpoint", workshop.sources, where / "out", total - 1)
    child.join()
    assert child.exitcode == 1 and (where / "out").exists()
    with pytest.raises((AssertionError, ValueError)):
        workshop.check("checkpoint", where)
