"""Calls of a block with more and fewer tokens, many of them alike: where a capacity shows, if there is one.

An expert has room for so many tokens: how many follows from their number by a rule that a few draws do not tell, and
where there is room for all nothing shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mocomp.models.recognition.calls import Call, Port, redrawn
from mocomp.models.recognition.feed_forward import relative
from mocomp.models.recognition.measured import Draw

CROWD = 2, 384, 2.0
"""The largest draw, as in `SEVERAL`; a capacity that is larger and does not grow with their number is not seen."""
TAIL = 16
APART = 1e-9
SEVERAL = ((1, 3, 0.0), (2, 17, 2.0), (3, 5, 0.0), (1, 31, 2.0), (2, 9, 0.0), (1, 200, 2.0))
"""(sequences, tokens of each, how much they are alike): few and many, so that no two rules of capacity agree on all."""


def several(block: nn.Module, call: Call, port: Port) -> list[Draw]:
    """The draws of `SEVERAL`, but for those on which the block's own code fails."""
    return list(_drawn(block, call, port, SEVERAL))


def crowd(block: nn.Module, call: Call, port: Port) -> list[Draw]:
    """The draw `CROWD`; none where the block's own code fails on it."""
    return list(_drawn(block, call, port, [CROWD]))


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
    rank = port.x(call.args, call.kwargs).dim() - 1
    hidden = port.x(call.args, call.kwargs).shape[-1]
    for seed, (sequences, length, common) in enumerate(leads):
        lead = (sequences, *[1] * (rank - 2), length) if rank > 1 else (sequences * length,)
        generator = torch.Generator().manual_seed(100 + seed)
        x = torch.randn(*lead, hidden, generator=generator, dtype=torch.float64)
        x = x + common * torch.randn(hidden, generator=generator, dtype=torch.float64)
        args, kwargs = redrawn(call, port, x, generator)
        try:
            block(*args, **kwargs)
        except Exception:  # whatever the user's code raises on a shape that it does not take
            continue
        yield Draw(args, kwargs, x)
