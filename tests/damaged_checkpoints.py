"""Ways to damage the weights of a checkpoint, each a small function of its directory.

Each entry has the damage, what the message has to name besides the directory, and the exit code. Those of `POISONED` are seen
when the weights are read.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TENSOR = "model.norm.weight"
MATRIX = "lm_head.weight"
Damage = tuple[Callable[[Path], Any], str, int]


def header_of(file: Path) -> dict[str, Any]:
    raw = file.read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])


def put_header(file: Path, header: bytes, length: int | None = None) -> None:
    """Another header before the same data; `length` is what the file says that it has."""
    raw = file.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    file.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


def header(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        entries = header_of(directory / WEIGHTS)
        edit(entries)
        put_header(directory / WEIGHTS, json.dumps(entries).encode())

    return damage


def field(name: str, value: Any) -> Callable[[Path], None]:
    return header(lambda entries: entries[TENSOR].update({name: value}))


def text(content: bytes, length: int | None = None) -> Callable[[Path], None]:
    return lambda directory: put_header(directory / WEIGHTS, content, length)


def cut(length: int | float) -> Callable[[Path], None]:
    """The file ends after so many bytes, or that share of them."""

    def damage(directory: Path) -> None:
        size = (directory / WEIGHTS).stat().st_size
        os.truncate(directory / WEIGHTS, length if isinstance(length, int) and length >= 0 else int(size * length))

    return damage


def tensors(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        loaded = load_file(directory / WEIGHTS)
        edit(loaded)
        save_file(loaded, directory / WEIGHTS, {"format": "pt"})

    return damage


def overlapping(entries: dict[str, Any]) -> None:
    """Two tensors of one size in the place of the first; the file keeps its length by a third in the place of the second."""
    names = [name for name, item in entries.items() if name != "__metadata__" and len(item["shape"]) == 1]
    entries[names[1]]["data_offsets"] = entries[names[0]]["data_offsets"]


def twice_in_header(directory: Path) -> None:
    entries = header_of(directory / WEIGHTS)
    again = f', "{TENSOR}": {json.dumps(entries[TENSOR])}}}'
    put_header(directory / WEIGHTS, (json.dumps(entries)[:-1] + again).encode())


def appended(directory: Path) -> None:
    with (directory / WEIGHTS).open("ab") as file:
        file.write(b"\0" * 64)


def split(directory: Path) -> dict[str, Any]:
    """The same weights in two shards; gives the index's map."""
    loaded = load_file(directory / WEIGHTS)
    places = {name: (FIRST, SECOND)[i % 2] for i, name in enumerate(loaded)}
    for shard in (FIRST, SECOND):
        save_file({n: t for n, t in loaded.items() if places[n] == shard}, directory / shard, {"format": "pt"})
    (directory / WEIGHTS).unlink()
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def index(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        places = split(directory)
        edit(places)
        (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))

    return damage


def indexed(content: bytes) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        split(directory)
        (directory / INDEX).write_bytes(content)

    return damage


def sharded(damage: Callable[[Path], Any]) -> Callable[[Path], None]:
    def both(directory: Path) -> None:
        split(directory)
        damage(directory / SECOND)

    return both


def elsewhere(file: Path) -> None:
    """The file as a link to one of another directory."""
    secret = file.parent.parent / "secret"
    file.rename(secret)
    file.symlink_to(secret)


def instead(file: Path, make: Callable[[Path], Any]) -> None:
    file.unlink(missing_ok=True)
    make(file)


def twice(directory: Path) -> None:
    split(directory)
    save_file(load_file(directory / FIRST) | load_file(directory / SECOND), directory / SECOND)


def poisoned(value: float, dtype: torch.dtype = torch.float32) -> Callable[[Path], None]:
    def edit(loaded: dict[str, torch.Tensor]) -> None:
        loaded[MATRIX] = loaded[MATRIX].to(dtype)
        loaded[MATRIX][77, 5] = value

    return tensors(edit)


HEADERS: dict[str, Damage] = {
    "header of 2^60 bytes": (text(b"{}", 1 << 60), WEIGHTS, 5),
    "header of 2^64 - 1 bytes": (text(b"{}", (1 << 64) - 1), WEIGHTS, 5),
    "header of 0 bytes": (text(b"", 0), WEIGHTS, 5),
    "header as long as the file": (text(b"{}", 900_000), WEIGHTS, 5),
    "header shorter than it is": (text(b'{"a": {}}', 4), WEIGHTS, 5),
    "header is not JSON": (text(b"{oops"), WEIGHTS, 5),
    "header is not UTF-8": (text(b'{"\xff\xfe": 1}'), WEIGHTS, 5),
    "header is a list": (text(b"[]"), WEIGHTS, 5),
    "header is nested deeply": (text(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested", 5),
    "header is a list nested deeply": (text(b"[" * 200_000), "nested", 5),
    "header without a tensor": (text(b"{}"), "belong to no tensor", 5),
    "header is made of spaces": (text(b" " * 64), WEIGHTS, 5),
    "a tensor twice in the header": (twice_in_header, TENSOR, 5),
    "a tensor that is a number": (header(lambda e: e.update({TENSOR: 3})), TENSOR, 5),
    "a tensor without a place": (header(lambda e: e[TENSOR].pop("data_offsets")), TENSOR, 5),
    "tensors that overlap": (header(overlapping), "overlap", 5),
    "a gap between tensors": (header(lambda e: e.pop(TENSOR)), "belong", 5),
    "bytes after the last tensor": (appended, "belong to no tensor", 5),
    "an offset below 0": (field("data_offsets", [-256, 0]), TENSOR, 5),
    "offsets the wrong way round": (field("data_offsets", [512, 256]), TENSOR, 5),
    "offsets beyond the file": (field("data_offsets", [1 << 40, (1 << 40) + 256]), TENSOR, 5),
    "three offsets": (field("data_offsets", [0, 256, 512]), TENSOR, 5),
    "offsets that are texts": (field("data_offsets", ["0", "256"]), TENSOR, 5),
    "a type that nobody knows": (field("dtype", "F128"), TENSOR, 5),
    "a type that is a number": (field("dtype", 32), TENSOR, 5),
    "a wider type": (field("dtype", "F64"), TENSOR, 5),
    "a size below 0": (field("shape", [-64]), TENSOR, 5),
    "sizes whose product overflows": (field("shape", [1 << 62, 1 << 62]), TENSOR, 5),
    "sizes whose product wraps to the right one": (field("shape", [(1 << 62) + 64, 4]), TENSOR, 5),
    "sizes of other bytes": (field("shape", [63]), TENSOR, 5),
    "a size that is not whole": (field("shape", [64.0]), TENSOR, 5),
    "a thousand dimensions": (field("shape", [1] * 999 + [64]), TENSOR, 5),
    "a name with an escape sequence": (header(lambda e: e.update({"\x1b[2J": e.pop(TENSOR)})), r"\x1b[2J", 5),
    "metadata that is a list": (header(lambda e: e.update({"__metadata__": []})), "__metadata__", 5),
}
FILES: dict[str, Damage] = {
    "cut to nothing": (cut(0), WEIGHTS, 5),
    "cut inside the length": (cut(5), WEIGHTS, 5),
    "cut inside the header": (cut(100), WEIGHTS, 5),
    "cut inside the data": (cut(0.5), WEIGHTS, 5),
    "cut by one byte": (lambda d: os.truncate(d / WEIGHTS, (d / WEIGHTS).stat().st_size - 1), WEIGHTS, 5),
    "garbage": (lambda d: (d / WEIGHTS).write_bytes(bytes(range(256)) * 16), WEIGHTS, 5),
    "a link to another directory": (lambda d: elsewhere(d / WEIGHTS), "outside", 5),
    "a link to nothing": (lambda d: instead(d / WEIGHTS, lambda f: f.symlink_to(d / "gone")), WEIGHTS, 5),
    "a link to itself": (lambda d: instead(d / WEIGHTS, lambda f: f.symlink_to(f)), WEIGHTS, 5),
    "a directory": (lambda d: instead(d / WEIGHTS, Path.mkdir), "not a regular file", 5),
    "a pipe": (lambda d: instead(d / WEIGHTS, os.mkfifo), "not a regular file", 5),
    "only a pickle": (lambda d: (d / WEIGHTS).rename(d / "pytorch_model.bin"), "pickled weights (pytorch_model.bin)", 5),
    "only a checkpoint of a trainer": (lambda d: (d / WEIGHTS).rename(d / "last.ckpt"), "pickled weights (last.ckpt)", 5),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "no model.safetensors", 5),
}
INDICES: dict[str, Damage] = {
    "index is not JSON": (indexed(b"{"), INDEX, 5),
    "index is a list": (indexed(b"[]"), INDEX, 5),
    "index without a map": (indexed(b"{}"), INDEX, 5),
    "index whose map is a list": (indexed(b'{"weight_map": [1]}'), INDEX, 5),
    "index in another encoding": (indexed('{"weight_map": {}}'.encode("utf-16")), INDEX, 5),
    "index nested deeply": (indexed(b'{"weight_map":' * 100_000), INDEX, 5),
    "index names the directory above": (index(lambda p: p.update({TENSOR: "../model.safetensors"})), "outside", 5),
    "index names an absolute path": (index(lambda p: p.update({TENSOR: "/etc/passwd"})), "/etc/passwd", 5),
    "index names the directory itself": (index(lambda p: p.update({TENSOR: "."})), INDEX, 5),
    "index names a number": (index(lambda p: p.update({TENSOR: 7})), INDEX, 5),
    "index names no shard that is there": (index(lambda p: p.update({TENSOR: "gone.safetensors"})), "gone.safetensors", 5),
    "index with a name of a thousand letters": (index(lambda p: p.update({TENSOR: "a" * 1000})), "aaaa", 5),
    "index with a zero byte": (index(lambda p: p.update({TENSOR: "a\0b"})), r"a\x00b", 5),
    "index promises a tensor": (index(lambda p: p.update({"model.extra": FIRST})), "model.extra", 5),
    "a tensor in two shards": (twice, "is also in", 5),
    "a shard is missing": (sharded(Path.unlink), SECOND, 5),
    "a shard is cut": (sharded(lambda f: os.truncate(f, 5_000)), SECOND, 5),
    "a shard is a link to another directory": (sharded(elsewhere), SECOND, 5),
    "a shard is a pipe": (sharded(lambda f: instead(f, os.mkfifo)), SECOND, 5),
    "a shard is a directory": (sharded(lambda f: instead(f, Path.mkdir)), SECOND, 5),
}
DATA: dict[str, Damage] = {
    "a parameter is missing": (tensors(lambda t: t.pop(TENSOR)), TENSOR, 5),
    "a parameter of another shape": (tensors(lambda t: t.update({TENSOR: t[TENSOR][:9].clone()})), TENSOR, 5),
    "a parameter turned round": (tensors(lambda t: t.update({MATRIX: t[MATRIX].T.contiguous()})), MATRIX, 5),
    "an expert of another shape": (
        tensors(lambda t: t.update({"model.layers.1.mlp.experts.3.up_proj.weight": torch.zeros(5, 64)})),
        "model.layers.1.mlp.experts.3.up_proj.weight",
        5,
    ),
    "a NaN": (poisoned(float("nan")), MATRIX, 5),
}
POISONED: dict[str, Damage] = {
    "an infinity": (poisoned(float("-inf")), MATRIX, 5),
    "a NaN in bfloat16": (poisoned(float("nan"), torch.bfloat16), MATRIX, 5),
    "a NaN in float8": (poisoned(float("nan"), torch.float8_e4m3fn), MATRIX, 5),
}
WEIGHT_DAMAGES = HEADERS | FILES | INDICES
