"""Checkpoints are written as the safetensors library and transformers read them."""

import json
from collections.abc import Callable

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mocomp.weights import recipes
from mocomp.weights.arithmetic import noise
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.disk import File
from mocomp.weights.headers import DTYPES
from mocomp.weights.recipes import Recipe
from mocomp.weights.shards import write_checkpoint
from mocomp.weights.writer import Writer
from tests.weights.test_checkpoint import same_bits, tensors

INDEX = "model.safetensors.index.json"
VALUES = tensors()


def read(name: str, start: int, stop: int) -> torch.Tensor:
    return VALUES[name][start:stop] if VALUES[name].dim() else VALUES[name]


def leaf(name: str) -> Recipe:
    return recipes.Tensor(tuple(VALUES[name].shape), VALUES[name].dtype, name)


def every() -> dict[str, Recipe]:
    """A tensor of every type; one byte before, so that nothing stands at an even place by chance."""
    VALUES["byte"] = torch.tensor([7], dtype=torch.uint8)
    return {name: leaf(name) for name in ("byte", *VALUES)}


def quiet(count: int) -> None:
    pass


def counting(pieces: list[int]) -> Callable[..., int]:
    """What writes bytes to a file, and notes how many they were."""
    write = File.write_at

    def write_at(file: File, offset: int, data: memoryview) -> int:
        pieces.append(len(data))
        return write(file, offset, data)

    return write_at


def test_the_library_reads_what_was_written(tmp_path):
    told: list[int] = []
    assert write_checkpoint(tmp_path, every(), Writer(read, told.append)) == ["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == VALUES.keys() == DTYPES.keys() | {"scalar", "empty", "rows of nothing", "byte"}
    assert all(same_bits(found[name], value) for name, value in VALUES.items())
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}  # transformers refuses files without it
        assert all(same_bits(opened.get_tensor(name), value) for name, value in VALUES.items())
        assert same_bits(opened.get_slice("F64")[1:], VALUES["F64"][1:])
    assert sum(told) == sum(value.nbytes for value in VALUES.values())


def test_numbers_stand_where_a_processor_wants_them(tmp_path):
    """At a multiple of their size in the file, as the library writes them, so that maps of the file can be used."""
    write_checkpoint(tmp_path, every(), Writer(read, quiet))
    raw = (tmp_path / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    assert (8 + size) % 8 == 0 and header.pop("__metadata__") == {"format": "pt"}
    places = sorted(entry["data_offsets"] for entry in header.values())
    assert [start for start, _ in places] == [0, *(stop for _, stop in places[:-1])] and places[-1][1] == len(raw) - 8 - size
    for name, entry in header.items():
        assert entry["data_offsets"][0] % DTYPES[entry["dtype"]].itemsize == 0, name


def test_our_own_reader_reads_it_too(tmp_path):
    write_checkpoint(tmp_path, every(), Writer(read, quiet), largest=100)
    with Checkpoint(tmp_path) as opened:
        assert opened.entries.keys() == VALUES.keys()
        assert all(same_bits(opened.recipe(name).evaluate(opened.read), value) for name, value in VALUES.items())


def sizes(*rows: int) -> dict[str, Recipe]:
    """Tensors of so many bytes each, named by their order backwards."""
    made = {}
    for i, count in enumerate(rows):
        made[f"t{len(rows) - i}"] = recipes.literal(torch.full((count,), i, dtype=torch.uint8))
    return made


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((10, 10, 10, 10), [["t4", "t3"], ["t2", "t1"]]),
        ((10, 11, 20), [["t3"], ["t2"], ["t1"]]),
        ((5, 50, 5, 5), [["t4"], ["t3"], ["t2", "t1"]]),  # one is larger than a shard
        ((50, 50), [["t2"], ["t1"]]),
        ((0, 20, 0), [["t3", "t2", "t1"]]),
    ],
)
def test_shards_hold_what_fits(tmp_path, rows, expected):
    names = write_checkpoint(tmp_path, sizes(*rows), Writer(read, quiet), largest=20)
    assert [sorted(load_file(tmp_path / name)) for name in names] == [sorted(shard) for shard in expected]
    if len(expected) == 1:
        assert names == ["model.safetensors"] and not (tmp_path / INDEX).exists()
        return
    assert names == [f"model-0000{i}-of-0000{len(expected)}.safetensors" for i in range(1, len(expected) + 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, INDEX])
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": sum(rows)}
    assert index["weight_map"] == {name: names[i] for i, shard in enumerate(expected) for name in shard}
    assert list(index["weight_map"]) == sorted(index["weight_map"])


def test_a_checkpoint_of_nothing(tmp_path):
    assert write_checkpoint(tmp_path, {}, Writer(read, quiet)) == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors") == {}


def test_the_buffer_does_not_show(tmp_path, monkeypatch):
    """Noise is drawn by row, so that pieces of any size make up the same file."""
    weights = {"a": noise(leaf("F32"), 0.1, 3), "b": recipes.stack([leaf("BF16")] * 5, 0)}
    contents = []
    for buffer in (1, 16, 50, 1 << 20):
        pieces: list[int] = []
        monkeypatch.setattr("mocomp.weights.parts.File.write_at", counting(pieces))
        write_checkpoint(tmp_path, weights, Writer(read, quiet, buffer=buffer))
        monkeypatch.undo()
        contents.append((tmp_path / "model.safetensors").read_bytes())
        header, *rest = pieces
        assert header >= 100 and max(rest) <= max(buffer, VALUES["BF16"].nbytes)
    assert len(set(contents)) == 1
