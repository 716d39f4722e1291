"""Calls of a block with more and fewer tokens, many of them alike: where a capacity shows, if there is one.

An expert has room for so many tokens: how many follows from their number by a rule that a few draws do not tell, and
where there is room for all nothing shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mocomp.models.recognition.calls import Call, Port, redrawn
from mocomp.models.recognition.feed_forward import relative
from mocomp.models.recognition.measured import Draw

CROWD = 2, 384, 2.0
"""The largest draw, as in `SEVERAL`; a capacity that is larger, does not grow with their number and is no attribute of a module
is not seen."""
LARGEST = 1 << 22
"""Numbers in a draw that is made for the sake of an attribute."""
ALIKE = (4.0, 16.0, 200.0)
"""How much tokens of such a draw are alike: so that one expert is wanted by most, while their weights are not all one yet."""
TAIL = 16
APART = 1e-9
SEVERAL = ((1, 3, 0.0), (2, 17, 2.0), (3, 5, 0.0), (1, 31, 2.0), (2, 9, 0.0), (1, 200, 2.0))
"""(sequences, tokens of each, how much they are alike): few and many, so that no two rules of capacity agree on all."""


def several(block: nn.Module, call: Call, port: Port) -> list[Draw]:
    """The draws of `SEVERAL`, but for those on which the block's own code fails."""
    return list(_drawn(block, call, port, SEVERAL))


def crowd(block: nn.Module, call: Call, port: Port) -> list[Draw]:
    """The draw `CROWD`, and one with more tokens than each integer that the block carries, for it may be a capacity; none where
    the block's own code fails on it."""
    x = port.x(call.args, call.kwargs)
    told = [(2, 2 * size + 1, alike) for size in _integers(block) if CROWD[0] * CROWD[1] < size for alike in ALIKE]
    return list(_drawn(block, call, port, [CROWD, *(lead for lead in told if lead[0] * lead[1] * x.shape[-1] <= LARGEST)]))


def _integers(block: nn.Module) -> list[int]:
    """The integers among the attributes of a block and its children that are no size of a parameter."""
    sizes = {size for parameter in block.parameters() for size in parameter.shape}
    found = {value for module in block.modules() for value in vars(module).values() if type(value) is int}
    return sorted(found - sizes)


def keeps_tokens_apart(block: nn.Module, port: Port, draw: Draw) -> bool:
    """Whether the last tokens of each sequence of a draw have without the others what they have among them."""
    tail = draw.x[..., -TAIL:, :]

    def cut(value: Any) -> Any:
        same = isinstance(value, Tensor) and value.shape[: draw.x.dim() - 1] == draw.x.shape[:-1]
        return value[(slice(None),) * (draw.x.dim() - 2) + (slice(-TAIL, None),)] if same else value

    args, kwargs = pytree.tree_map(cut, (draw.args, draw.kwargs))
    try:
        alone = port.y(block(*args, **kwargs))
    except Exception:  # whatever the user's code raises on a shape that it does not take
        return True
    among = port.y(block(*draw.args, **draw.kwargs))[..., -TAIL:, :]
    return alone.shape[:-1] == tail.shape[:-1] and relative(alone, among) < APART


def _drawn(block: nn.Module, call: Call, port: Port, leads: Iterable[tuple[int, int, float]]) -> Iterator[Draw]:
    *recorded, hidden = port.x(call.args, call.kwargs).shape
    rank = len(recorded)
    for seed, (sequences, length, common) in enumerate(leads):
        wanted = (sequences, *[1] * (rank - 2), length) if rank > 1 else (sequences * length,)
        as_long = (-(-sequences * length // math.prod(recorded[1:])), *recorded[1:])
        for lead in (wanted, as_long):
            generator = torch.Generator().manual_seed(100 + seed)
            x = torch.randn(*lead, hidden, generator=generator, dtype=torch.float64)
            x = x + common * torch.randn(hidden, generator=generator, dtype=torch.float64)
            args, kwargs = redrawn(call, port, x, generator)
            try:
                block(*args, **kwargs)
            except Exception:  # whatever the user's code raises on a shape that it does not take
                continue
            yield Draw(args, kwargs, x)
            break
