"""Weights in parts: cut by what they are, made at no more work than whole, in no more memory than is said."""

import pickle  # noqa: TID251 - how tasks travel
import threading
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mocomp.weights import recipes
from mocomp.weights.arithmetic import noise, pick, redrawn
from mocomp.weights.checkpoint import Checkpoint, reader_of
from mocomp.weights.parts import Place, Span, written
from mocomp.weights.recipe import Recipe, whole
from tests.weights.test_recipes import expressions, same

EXPERTS = recipes.Tensor((6, 8, 4), torch.float32, "experts")
MATRIX = recipes.Tensor((12, 10), torch.float32, "matrix")


def needed(recipe: Recipe, start: int, stop: int) -> dict[str, set[int]]:
    """The rows of each leaf that a recipe says it needs."""
    if isinstance(recipe, recipes.Tensor):
        return {recipe.name: set(range(start, stop))}
    found: dict[str, set[int]] = {}
    for child, first, last in recipe.needs(start, stop):
        for name, rows in needed(child, first, last).items():
            found[name] = found.get(name, set()) | rows
    return found


@given(expressions(), st.data())
def test_what_is_read_is_what_a_recipe_says_it_needs(expression, data):
    shelf, recipe, value = expression
    _, start, stop = whole(recipe)
    if value.dim():
        start = data.draw(st.integers(0, len(value)))
        stop = data.draw(st.integers(start, len(value)))
    recipe.rows(shelf.read, start, stop)
    told = needed(recipe, start, stop)
    for name, first, last in shelf.reads:
        assert set(range(first, last)) <= told[name]


@given(expressions(), st.integers(1, 300))
def test_ranges_are_all_rows_and_cost_little_more_than_whole(expression, limit):
    _, recipe, _ = expression
    found = recipe.ranges(limit)
    _, start, stop = whole(recipe)
    assert (found[0][0], found[-1][1]) == (start, stop)
    assert all(a[1] == b[0] for a, b in pairwise(found))
    assert len(found) == 1 or sum(recipe.cost(*rows) for rows in found) <= 1.5 * recipe.cost(start, stop)


BY_ROWS = {
    "tensor": MATRIX,
    "experts transposed": recipes.permute(EXPERTS, (0, 2, 1)),
    "stack": recipes.stack([MATRIX] * 5, 0),
    "stack of transposed": recipes.stack([recipes.permute(MATRIX, (1, 0))] * 5, 0),
    "gate and up": recipes.concat([EXPERTS, EXPERTS], 1),
    "cast": recipes.cast(MATRIX, torch.float16),
    "experts in one bank": recipes.reshape(recipes.Tensor((48, 4), torch.float32, "rows"), (6, 8, 4)),
    "noise": noise(MATRIX, 0.1, 1),
    "drawn anew": redrawn(MATRIX, 1, [2], 1),
    "picked": pick(MATRIX, 0, [3, 4, 1, 1, 0, 7]),
}
AT_ONCE = {
    "transposed": recipes.permute(MATRIX, (1, 0)),
    "function": recipes.Apply((12, 10), torch.float32, lambda w: w[0] * 2, (MATRIX,)),
    "cast of transposed": recipes.cast(recipes.permute(MATRIX, (1, 0)), torch.float16),
    "one expert": recipes.reshape(recipes.slice_of(EXPERTS, 0, 2, 3), (8, 4)),
}


@pytest.mark.parametrize("name", BY_ROWS)
def test_rows_that_can_be_made_apart_are(name):
    assert len(BY_ROWS[name].ranges(1)) == BY_ROWS[name].shape[0]


def test_rows_of_a_bank_are_cut_where_experts_are_not():
    """An expert is what a checkpoint's bank is read by, so the few rows of one would cost all of it each time."""
    rows = recipes.reshape(recipes.Tensor((60, 8, 4), torch.float32, "experts"), (480, 4))
    assert len(rows.ranges(1)) == 1 and len(rows.ranges(8 * 4 * 4)) == 60


@pytest.mark.parametrize("name", AT_ONCE)
def test_what_needs_whole_tensors_is_made_once(tmp_path, name, monkeypatch):
    """And not once for each of its parts; it still goes to disk in pieces."""
    monkeypatch.setattr("mocomp.weights.parts.PART", 40)
    values = {"matrix": torch.randn(12, 10), "experts": torch.randn(6, 8, 4)}
    read: list[str] = []

    def reader(tensor: str, start: int, stop: int) -> torch.Tensor:
        read.append(tensor)
        return values[tensor][start:stop]

    (part,) = written(AT_ONCE[name], reader, tmp_path / "data", 0, buffer=40)
    part()
    assert len(read) == 1
    meant = AT_ONCE[name].evaluate(reader)
    assert (tmp_path / "data").read_bytes() == meant.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    assert part.nbytes >= values[read[0]].nbytes * (1 if name != "one expert" else 1 / 6)


def test_the_memory_that_is_told_is_not_exceeded(tmp_path):
    """Of a weight whose rows are made apart a piece is held, whatever its size; torch's memory is counted by what is read."""
    bank = recipes.stack([recipes.Tensor((256, 64), torch.float32, f"{i}") for i in range(64)], 0)
    held: list[int] = []

    def read(name: str, start: int, stop: int) -> torch.Tensor:
        held.append((stop - start) * 64 * 4)
        return torch.zeros(stop - start, 64)

    for part in written(bank, read, tmp_path / "data", 0, buffer=4 * 256 * 64 * 4):
        held.clear()
        part()
        assert part.nbytes < bank.nbytes / 4 and max(sum(held[i : i + 4]) for i in range(0, len(held), 4)) <= part.nbytes


def test_a_part_that_was_not_filled_is_a_fault(tmp_path):
    with pytest.raises(AssertionError, match="was not filled"), Place(Span(tmp_path / "data", 0, 8)) as place:
        place.write(torch.zeros(1))
    with pytest.raises(ValueError, match="first"), Place(Span(tmp_path / "data", 0, 8)):
        raise ValueError("the first of two errors is the one that is told")


@pytest.fixture
def source(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "source").mkdir()
    save_file({f"w{i}": torch.full((64, 3), float(i)) for i in range(8)}, tmp_path / "source" / "model.safetensors")
    with Checkpoint(tmp_path / "source", "its:") as opened:
        yield opened


def test_a_checkpoint_is_read_by_threads_at_once(source):
    """Each file is opened once, whoever is the first to ask."""
    wrong, start = [], threading.Barrier(8)

    def read(i: int) -> None:
        start.wait()
        for row in range(64):
            if not torch.equal(source.read(f"its:w{i}", row, row + 1), torch.full((1, 3), float(i))):
                wrong.append((i, row))

    threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(source._handles) == 1


def test_a_reader_travels(source):
    """Without what is open: it is opened again where it arrives, once for all tasks."""
    sent = pickle.dumps(reader_of([source]))
    first, second = pickle.loads(sent), pickle.loads(sent)
    assert same(first("its:w5", 3, 9), torch.full((6, 3), 5.0))
    assert first.checkpoints[0] is second.checkpoints[0] is not source
    assert len(sent) < 1000
