"""Which of an expert's tensors is what, and the bank in canonical layout that follows.

Dimension letters: E experts, H hidden, F expert width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product

import torch
import torch.nn.functional as F
from torch import Tensor

from mocomp.models.canonical import Bank

FUSED = ("gate first", "up first", "gate even", "up even")
"""How gate and up may share one tensor: as its halves, or row by row in turn."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Roles:
    """A hypothesis: the names of an expert's tensors by what they do; "" is none.

    `up` goes into the activation where there is no gate. `fused` says how `up` holds gate rows too; `transposed` names
    the matrices that are stored [in, out]. `scale` [F] multiplies what comes into `down`.
    """

    up: str
    down: str
    gate: str = ""
    fused: str = ""
    transposed: frozenset[str] = frozenset()
    bias_up: str = ""
    bias_gate: str = ""
    bias_down: str = ""
    scale: str = ""

    @property
    def gated(self) -> bool:
        """Whether there are gate rows."""
        return bool(self.gate or self.fused)

    def bank(self, stacks: list[dict[str, Tensor]]) -> Bank:
        """The experts of all stacks in canonical layout, narrower ones filled up with zeros; traceable.

        Raises ValueError where a stack's shapes do not fit the roles.
        """
        banks = [self._bank(stack) for stack in stacks]
        if len(banks) == 1:
            return banks[0]
        width = max(b.w_out.shape[2] for b in banks)
        parts = [widened(b, width, 2 if self.gated else 1) for b in banks]
        return Bank(*(None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True)))  # type: ignore[arg-type]

    def _bank(self, stack: dict[str, Tensor]) -> Bank:
        def matrix(name: str) -> Tensor:
            return stack[name].transpose(1, 2) if name in self.transposed else stack[name]

        w_out, w_in = matrix(self.down), self._arranged(matrix(self.up))
        if self.gate:
            w_in = torch.cat([matrix(self.gate), w_in], 1)
        if w_in.shape[1] != w_out.shape[2] * (2 if self.gated else 1):
            raise ValueError(f"{list(w_in.shape)} and {list(w_out.shape)} do not go together")
        if self.scale:
            w_out = w_out * stack[self.scale].flatten(1)[:, None]
        return Bank(w_in, self._b_in(stack), w_out, stack[self.bias_down].flatten(1) if self.bias_down else None)

    def _b_in(self, stack: dict[str, Tensor]) -> Tensor | None:
        up = self._arranged(stack[self.bias_up].flatten(1)) if self.bias_up else None
        gate = stack[self.bias_gate].flatten(1) if self.bias_gate else None
        if not self.gate or (up is None and gate is None):
            return up
        if gate is None:
            return F.pad(up, (up.shape[1], 0))  # type: ignore[arg-type]
        return F.pad(gate, (0, gate.shape[1])) if up is None else torch.cat([gate, up], 1)

    def _arranged(self, w: Tensor) -> Tensor:
        """Gate rows, then up rows, of a tensor [E, 2F, ...] that holds both."""
        if self.fused in ("", "gate first"):
            return w
        first, second = w.chunk(2, 1) if self.fused == "up first" else (w[:, 0::2], w[:, 1::2])
        return torch.cat([first, second] if self.fused == "gate even" else [second, first], 1)


def squared(b: Bank) -> Bank:
    """A bank that gives as many numbers as it takes: columns of zeros in w_in, or rows of zeros in w_out."""
    missing = b.w_out.shape[1] - b.w_in.shape[2]
    if not missing:
        return b
    if missing > 0:
        return Bank(F.pad(b.w_in, (0, missing)), b.b_in, b.w_out, b.b_out)
    b_out = None if b.b_out is None else F.pad(b.b_out, (0, -missing))
    return Bank(b.w_in, b.b_in, F.pad(b.w_out, (0, 0, 0, -missing)), b_out)


def widened(b: Bank, width: int, halves: int) -> tuple[Tensor | None, ...]:
    """A bank whose experts have `width` F: zero rows of w_in are taken in by zero columns of w_out, so nothing changes."""
    missing = width - b.w_out.shape[2]
    if not missing:
        return b.w_in, b.b_in, b.w_out, b.b_out
    w_in = torch.cat([F.pad(half, (0, 0, 0, missing)) for half in b.w_in.chunk(halves, 1)], 1)
    b_in = None if b.b_in is None else torch.cat([F.pad(half, (0, missing)) for half in b.b_in.chunk(halves, 1)], 1)
    return w_in, b_in, F.pad(b.w_out, (0, missing)), b.b_out


def hypotheses(shapes: Shapes, sizes: tuple[int, int], upright: frozenset[str] = frozenset()) -> list[Roles]:
    """Every assignment of roles that the shapes of one expert's tensors allow, the likeliest first.

    `sizes` are what an expert takes and gives, both H in most; `upright` names the matrices that are known to be stored
    [out, in].
    """
    found = [pair for frame in _frames(shapes) for pair in _filled(frame, shapes, sizes, upright)]
    return [roles for _, roles in sorted(found, key=lambda pair: pair[0])]


def _frames(shapes: Shapes) -> list[Roles]:
    """Roles of the matrices, where there are two or three of them."""
    matrices = [name for name in shapes if name not in _vectors(shapes)]
    if len(matrices) == 3:
        return [Roles(up, down, gate) for gate, up, down in permutations(matrices)]
    if len(matrices) == 2:
        return [Roles(up, down, fused=fused) for up, down in permutations(matrices) for fused in ("", *FUSED)]
    return []


def _vectors(shapes: Shapes) -> dict[str, int]:
    """The tensors that are vectors, with their lengths; in packed experts they may be [1, n]."""
    return {name: max(shape) for name, shape in shapes.items() if len(shape) == 1 or (1 in shape and len(shapes) > 3)}


def _filled(frame: Roles, shapes: Shapes, sizes: tuple[int, int], upright: frozenset[str]) -> Iterator[tuple[int, Roles]]:
    for transposed, width in _orientations(frame, shapes, sizes, upright):
        yield from _with_vectors(frame, transposed, _vectors(shapes), sizes[1], width)


def _orientations(
    frame: Roles, shapes: Shapes, sizes: tuple[int, int], upright: frozenset[str]
) -> Iterator[tuple[frozenset[str], int]]:
    """(matrices stored [in, out], F) for each way in which the shapes go together."""
    names = [name for name in (frame.gate, frame.up, frame.down) if name]
    for flags in product(*((False,) if name in upright else (False, True) for name in names)):
        turned = dict(zip(names, flags, strict=True))
        out_in = {name: shapes[name][::-1] if turned[name] else shapes[name] for name in names}
        width = out_in[frame.down][1]
        rows = {frame.up: 2 * width if frame.fused else width, frame.gate: width}
        fits = all(out_in[name] == (rows[name], sizes[0]) for name in names if name != frame.down)
        if fits and out_in[frame.down][0] == sizes[1]:
            yield frozenset(name for name in names if turned[name]), width


def _with_vectors(
    frame: Roles, transposed: frozenset[str], vectors: dict[str, int], out: int, width: int
) -> Iterator[tuple[int, Roles]]:
    """The frame with each vector as a bias or scale of its length, and how many are not named like their matrix."""
    lengths = {"bias_up": 2 * width if frame.fused else width, "bias_down": out, "scale": width}
    if frame.gate:
        lengths["bias_gate"] = width
    matrix_of = {"bias_up": frame.up, "bias_gate": frame.gate, "bias_down": frame.down}
    for slots in permutations(lengths, len(vectors)):
        if all(lengths[slot] == size for slot, size in zip(slots, vectors.values(), strict=True)):
            strangers = sum(_stem(name) != _stem(matrix_of.get(slot, "")) for slot, name in zip(slots, vectors, strict=True))
            named = dict(zip(slots, vectors, strict=True))
            yield strangers, Roles(frame.up, frame.down, frame.gate, frame.fused, transposed, **named)


def _stem(name: str) -> str:
    return name.removesuffix("weight").removesuffix("bias")
