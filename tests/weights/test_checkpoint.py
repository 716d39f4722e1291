"""Checkpoints are read exactly, and every damage has a message of its own."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mocomp.errors import BadInput
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.headers import DTYPES

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def tensors() -> dict[str, torch.Tensor]:
    """One tensor of every type, besides a scalar and two that are empty."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for code, dtype in DTYPES.items():
        bits = torch.randint(0, 2 if code == "BOOL" else 256, (3, 4, dtype.itemsize), dtype=torch.uint8, generator=generator)
        if dtype.is_floating_point:
            bits[..., -1] &= 0xBF  # the highest bit of the exponent: with it, some would be no finite numbers
        made[code] = bits.view(dtype).reshape(3, 4)
    return made | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "rows of nothing": torch.zeros(4, 0)}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(*bits)


def single(directory: Path) -> Path:
    save_file(tensors(), directory / "model.safetensors")
    return directory


def sharded(directory: Path) -> Path:
    items = list(tensors().items())
    places = {name: SHARDS[i % 2] for i, (name, _) in enumerate(items)}
    for shard in SHARDS:
        save_file({name: tensor for name, tensor in items if places[name] == shard}, directory / shard)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return directory


@pytest.mark.parametrize("layout", [single, sharded])
def test_every_type_comes_back_bit_for_bit(tmp_path, layout):
    with Checkpoint(layout(tmp_path)) as opened:
        assert opened.entries.keys() == tensors().keys()
        for name, tensor in tensors().items():
            recipe = opened.recipe(name)
            assert (recipe.shape, recipe.dtype) == (tuple(tensor.shape), tensor.dtype)
            assert same_bits(recipe.evaluate(opened.read), tensor)
        assert opened.nbytes == sum(tensor.nbytes for tensor in tensors().values())
        assert opened.sizes() == {path.name: path.stat().st_size for path in opened.files}


def test_rows_come_back_alone(tmp_path):
    with Checkpoint(single(tmp_path)) as opened:
        for name, tensor in tensors().items():
            if tensor.dim():
                assert same_bits(opened.read(name, 1, len(tensor) - 1 if len(tensor) else 1), tensor[1:-1])


def test_a_read_that_the_system_cuts_short_goes_on(tmp_path, monkeypatch):
    """One call gives at most 2 GiB; here, 7 bytes."""
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda handle, views, offset: whole(handle, [views[0][:7]], offset))
    with Checkpoint(single(tmp_path)) as opened:
        assert same_bits(opened.read("F64", 0, 3), tensors()["F64"])


def test_files_are_closed_again(tmp_path):
    before = sorted(Path("/proc/self/fd").iterdir())
    with Checkpoint(sharded(tmp_path)) as opened:
        for name in opened.entries:
            opened.recipe(name).evaluate(opened.read)
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def edit_index(directory: Path, **places: object) -> None:
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"].update(places)
    (directory / INDEX).write_text(json.dumps(index))


def shorten(path: Path, by: int = 5) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def rewrite_header(path: Path, header: bytes) -> None:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])


def of_a_type_of_tomorrow(directory: Path) -> None:
    header = {"t": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}
    (directory / SHARDS[1]).unlink()
    (directory / INDEX).write_text(json.dumps({"weight_map": {"t": SHARDS[0]}}))
    rewrite_header(directory / SHARDS[0], json.dumps(header).encode())
    os.truncate(directory / SHARDS[0], 8 + len(json.dumps(header)) + 3)


DAMAGES = {
    "truncated shard": (lambda d: shorten(d / SHARDS[1]), SHARDS[1], "damaged or truncated", "again"),
    "empty shard": (lambda d: (d / SHARDS[0]).write_bytes(b""), SHARDS[0], "damaged or truncated", "again"),
    "header is not JSON": (lambda d: rewrite_header(d / SHARDS[0], b"{oops"), SHARDS[0], "damaged or truncated", "again"),
    "header of garbage": (lambda d: (d / SHARDS[0]).write_bytes(os.urandom(64)), SHARDS[0], "damaged or truncated", "again"),
    "a pointer": (lambda d: (d / SHARDS[0]).write_text("oid sha256:0"), SHARDS[0], "damaged or truncated", "again"),
    "unknown type": (of_a_type_of_tomorrow, SHARDS[0], "F6_E2M3", ""),
    "missing shard": (lambda d: (d / SHARDS[1]).unlink(), "", f"1 of 2 shards are missing: {SHARDS[1]}", "missing files"),
    "tensor in two shards": (lambda d: save_file(tensors(), d / SHARDS[1]), SHARDS[1], f"is also in {SHARDS[0]}", ""),
    "tensor in no shard": (lambda d: edit_index(d, absent=SHARDS[0]), INDEX, f"absent (of {SHARDS[0]})", "again"),
    "index points outside": (lambda d: edit_index(d, F32="../model.safetensors"), INDEX, "outside its directory", "trust"),
    "index names no file": (lambda d: edit_index(d, F32=3), INDEX, "no usable weight_map", "again"),
    "index is not JSON": (lambda d: (d / INDEX).write_text("{"), INDEX, "not readable as JSON", "again"),
    "index without a map": (lambda d: (d / INDEX).write_text("{}"), INDEX, "no usable weight_map", "again"),
    "index of a list": (lambda d: (d / INDEX).write_text("[]"), INDEX, "not a JSON object", "again"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_with_its_place_and_its_remedy(tmp_path, damage):
    inflict, file, what, fix = DAMAGES[damage]
    inflict(sharded(tmp_path))
    with pytest.raises(BadInput) as caught:
        Checkpoint(tmp_path)
    assert what in caught.value.what
    assert caught.value.where == str(tmp_path / file if file else tmp_path)
    assert fix in caught.value.fix


def test_a_file_cut_after_it_was_opened_is_told(tmp_path):
    with Checkpoint(single(tmp_path)) as opened, pytest.raises(BadInput, match="ends inside tensor"):
        os.truncate(tmp_path / "model.safetensors", opened.entries["F64"].offset + 8)
        opened.read("F64", 0, 3)


def test_pickles_are_not_loaded(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(BadInput, match="run code when loaded") as caught:
        Checkpoint(tmp_path)
    assert "safe_serialization=True" in caught.value.fix


def test_a_directory_without_weights_is_told(tmp_path):
    with pytest.raises(BadInput, match=r"no model[.]safetensors") as caught:
        Checkpoint(tmp_path)
    assert str(tmp_path) == caught.value.where
