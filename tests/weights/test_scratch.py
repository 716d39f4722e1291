"""Tensors that are made before they are written: filled by rows, read by rows, and gone when they are no longer needed."""

import pickle  # noqa: TID251 - how tasks travel

import pytest
import torch

from mocomp.weights.journal import Journal
from mocomp.weights.recipes import Tensor
from mocomp.weights.scratch import Scratch

TYPES = (torch.uint8, torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e8m0fnu)


@pytest.fixture
def store(tmp_path):
    opened = Scratch(tmp_path / "deep" / ".scratch", "made:")
    yield opened
    opened.close()


def noise(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Any bits at all."""
    size = torch.empty(shape, dtype=dtype).nbytes
    return torch.randint(0, 256, (size,), dtype=torch.uint8).view(dtype).reshape(shape)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_rows_come_back_bit_for_bit(store, dtype):
    """Several tensors are filled in turns, as a layer's codes and scales are, and from views."""
    recipes = {name: Tensor((7, 3, 2), dtype, f"made:{name}") for name in "ab"}
    meant = {name: noise((7, 2, 3), dtype).transpose(1, 2) for name in recipes}
    for start, stop in ((0, 2), (2, 3), (3, 7)):
        for name, recipe in recipes.items():
            store.append(recipe, meant[name][start:stop])
    for start, stop in ((0, 7), (1, 4), (6, 7), (3, 3)):
        for name in recipes:
            found = store.read(f"made:{name}", start, stop)
            assert found.shape == (stop - start, 3, 2) and torch.equal(bits(found), bits(meant[name][start:stop].contiguous()))


def test_a_number_alone(store):
    """The scale of all scales of a linear layer."""
    store.append(Tensor((), torch.float32, "made:whole"), torch.tensor(2.5))
    assert store.read("made:whole", 0, 1) == torch.tensor(2.5)


def test_what_is_read_may_be_written_to(store):
    recipe = Tensor((2, 2), torch.float32, "made:w")
    store.append(recipe, torch.ones(2, 2))
    store.read("made:w", 0, 2).zero_()
    assert torch.equal(store.read("made:w", 0, 2), torch.ones(2, 2))


@pytest.mark.parametrize("rows", [torch.ones(2, 3), torch.ones(2, 2, dtype=torch.float64)], ids=["shape", "type"])
def test_rows_of_another_kind_are_refused(store, rows):
    with pytest.raises(AssertionError, match="made:w"):
        store.append(Tensor((4, 2), torch.float32, "made:w"), rows)


def test_rows_that_were_never_made_are_missed(store):
    store.append(Tensor((4, 2), torch.float32, "made:w"), torch.ones(3, 2))
    with pytest.raises(AssertionError, match="made:w was never filled"):
        store.read("made:w", 2, 4)


def test_closing_leaves_nothing(tmp_path):
    store = Scratch(tmp_path / ".scratch", "made:")
    for name in "abc":
        store.append(Tensor((1,), torch.float32, f"made:{name}"), torch.ones(1))
    assert (tmp_path / ".scratch").is_dir()
    store.close()
    assert not (tmp_path / ".scratch").exists()


def test_another_process_reads_what_is_there(store):
    recipe = Tensor((4, 2), torch.float32, "made:w")
    store.append(recipe, torch.arange(8.0).view(4, 2))
    assert torch.equal(pickle.loads(pickle.dumps(store)).read("made:w", 1, 3), torch.arange(2.0, 6.0).view(2, 2))


def test_rows_that_an_earlier_run_left_are_taken(tmp_path):
    """As far as it came, and only where all that belongs together is there."""
    codes, scales = Tensor((6, 4), torch.uint8, "made:codes"), Tensor((6,), torch.float32, "made:scales")
    journal = Journal(tmp_path)
    first = Scratch(tmp_path / ".scratch", "made:", journal=journal)
    for start in (0, 2):
        first.append(codes, torch.full((2, 4), start, dtype=torch.uint8))
    first.append(scales, torch.ones(2))

    second = Scratch(tmp_path / ".scratch", "made:", journal=journal)
    found = second.kept({codes: 2, scales: 2})
    assert found is not None and torch.equal(found[0], torch.zeros(2, 4, dtype=torch.uint8))
    assert torch.equal(found[1], torch.ones(2))
    assert second.kept({codes: 2, scales: 2}) is None  # the scales of these were never written
    second.append(codes, torch.full((2, 4), 7, dtype=torch.uint8))
    assert second.read("made:codes", 0, 4)[:, 0].tolist() == [0, 0, 7, 7]


def test_nothing_is_known_of_what_was_closed(tmp_path):
    journal = Journal(tmp_path)
    store = Scratch(tmp_path / ".scratch", "made:", journal=journal)
    store.append(Tensor((1,), torch.float32, "made:w"), torch.ones(1))
    assert [part.file for part in journal.parts] == [".scratch/0"]
    store.close()
    assert journal.parts == []
