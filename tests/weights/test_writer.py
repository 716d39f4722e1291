"""What is written is what the recipes say, for any number of workers and any buffer."""

import dataclasses
import hashlib
from itertools import product

import pytest
import torch

from mocomp.errors import BadInput
from mocomp.executors import Executor
from mocomp.executors.local import Local
from mocomp.resources import Resources
from mocomp.weights import recipes
from mocomp.weights.journal import Journal
from mocomp.weights.writer import ALIGNMENT, Writer

VALUES = {
    "matrix": torch.arange(35, dtype=torch.float32).reshape(7, 5),
    "byte": torch.tensor([7], dtype=torch.uint8),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "nothing": torch.zeros(0, 3),
    "half": torch.randn(11, 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
}


def read(name: str, start: int, stop: int) -> torch.Tensor:
    return VALUES[name][start:stop] if VALUES[name].dim() else VALUES[name]


def weights() -> dict[str, recipes.Recipe]:
    plain = {name: recipes.Tensor(tuple(value.shape), value.dtype, name) for name, value in VALUES.items()}
    return plain | {"turned": recipes.permute(plain["matrix"], (1, 0))}


@pytest.mark.parametrize("buffer", [1, 20, 64, 1 << 20])
def test_bytes_are_those_of_the_tensors(tmp_path, buffer):
    told: list[int] = []
    placed = Writer(read, told.append, buffer=buffer).write(tmp_path / "data", weights())
    data = (tmp_path / "data").read_bytes()
    for name, value in (VALUES | {"turned": VALUES["matrix"].T}).items():
        at = placed[name]
        assert at.offset % ALIGNMENT == 0
        assert data[at.offset : at.offset + at.length] == value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    assert sum(told) == sum(recipe.nbytes for recipe in weights().values())
    assert len(data) == placed["turned"].offset + placed["turned"].length


@pytest.fixture
def small(monkeypatch):
    """Parts of so few bytes that every weight but the smallest is in several."""
    monkeypatch.setattr("mocomp.weights.parts.PART", 40)


def workers(count: int) -> Executor:
    return Local(Resources(workers=count))


def expected() -> bytes:
    """The file, as plain torch lays it out."""
    made = b"head"
    for value in (VALUES | {"turned": VALUES["matrix"].T}).values():
        made += b"\0" * (-len(made) % ALIGNMENT)
        made += value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return made


def test_bytes_are_the_same_for_any_number_of_workers_and_any_buffer(tmp_path, small):
    noted = set()
    for count, buffer in product((1, 2, 5), (1, 20, 1 << 20)):
        file, journal = tmp_path / f"{count} {buffer}", Journal(tmp_path)
        Writer(read, executor=workers(count), journal=journal, buffer=buffer).write(file, weights(), b"head")
        assert file.read_bytes() == expected()
        noted.add(tuple((part.offset, part.length, part.sha256) for part in journal.parts))
    assert len(noted) == 1
    (parts,) = noted
    assert len(parts) >= len(weights()) + 4  # else nothing was cut
    for offset, length, checksum in parts:
        assert hashlib.sha256(expected()[offset : offset + length]).hexdigest() == checksum


def test_a_file_that_was_longer_and_full_of_other_bytes_is_written_over(tmp_path):
    (tmp_path / "data").write_bytes(b"\xff" * 10_000)
    Writer(read).write(tmp_path / "data", {"byte": weights()["byte"]})
    assert (tmp_path / "data").read_bytes() == b"\7"


class Shifting(Local):
    """A fault: the part at `offset` goes to the place of another, or, with no `by`, nowhere."""

    offset, by = ALIGNMENT, 0

    def run(self, tasks):
        for task in tasks:
            if task.span.offset != self.offset:
                yield from super().run([task])
            elif self.by:
                other = dataclasses.replace(task.span, offset=self.offset + self.by)
                yield from super().run([dataclasses.replace(task, span=other)])
            else:
                yield task, ("0" * 64,)


@pytest.mark.parametrize("by", [0, 20])
def test_a_part_at_a_wrong_place_or_nowhere_is_seen(tmp_path, small, by):
    """Were it not, the tests above would prove nothing."""
    executor = Shifting()
    executor.by = by
    Writer(read, executor=executor).write(tmp_path / "data", weights(), b"head")
    assert (tmp_path / "data").read_bytes() != expected()


def test_parts_that_are_there_are_not_made_again(tmp_path, small):
    journal, told, whole = Journal(tmp_path), [], expected()
    Writer(read, journal=journal).write(tmp_path / "data", weights(), b"head")
    known = journal.parts
    kept = Journal(tmp_path)
    for part in known[::2]:
        kept.done(part.file, part.offset, part.length, part.sha256)
    asked: list[int] = []

    def counted(name: str, start: int, stop: int) -> torch.Tensor:
        asked.append(read(name, start, stop).nbytes)
        return read(name, start, stop)

    Writer(counted, told.append, journal=kept).write(tmp_path / "data", weights(), b"head")
    assert (tmp_path / "data").read_bytes() == whole and kept.parts == known
    assert 0 < sum(asked) < sum(recipe.nbytes for recipe in weights().values())
    assert sum(told) == sum(recipe.nbytes for recipe in weights().values())


@pytest.mark.parametrize("count", [1, 3])
def test_what_reading_raises_comes_out(tmp_path, count):
    def damaged(name: str, start: int, stop: int) -> torch.Tensor:
        if name == "half":
            raise BadInput("tensor half holds NaN")
        return read(name, start, stop)

    with pytest.raises(BadInput, match="half holds NaN"):
        Writer(damaged, executor=workers(count)).write(tmp_path / "data", weights())
