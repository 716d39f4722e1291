"""Blocks in float32, as they will run: what rounds to fewer bits on purpose is not the canonical form, which does not.

The proof is in float64, casts to narrower floats among it, so that it sees what is computed and not how it is rounded. A
router that computes in float16 passes it, and chooses other experts.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mocomp.models.recognition.calls import Call, redrawn
from mocomp.models.recognition.contract import Form, Missed, Recognition

ROUNDED = 5e-6
"""Relative error of half of the tokens in float32: its own rounding gives 1e-6, float16 and bfloat16 1e-4 and more.

Half, since a choice between two experts that are nearly as good may fall either way.
"""


def leave_what_rounds(module: nn.Module, seen: dict[str, list[Call]], recognition: Recognition) -> None:
    """Take back blocks that in float32 are not their canonical form; `seen` are calls of them in float64."""
    for found in list(recognition.blocks):
        error = _error(copy.deepcopy(module.get_submodule(found.name)).float(), seen[found.name][0], found.form)
        if error > ROUNDED:
            recognition.blocks.remove(found)
            reason = f"in float32 its canonical form is off by {error:.1e}, in float64 it is exact: it rounds to fewer bits"
            recognition.refused.append(Missed(found.name, reason, error))


@torch.no_grad()
def _error(block: nn.Module, call: Call, form: Form) -> float:
    """The median over tokens of the largest difference, by the largest number that the block gives."""
    x = form.port.x(call.args, call.kwargs)  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(7)
    rows = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    args, kwargs = _narrow(redrawn(call, form.port, rows, generator))  # type: ignore[attr-defined]
    expected, actual = (
        form.port.y(result)  # type: ignore[attr-defined]
        for result in (block(*args, **kwargs), form.forward(block, args, kwargs))
    )
    differences = (actual - expected).abs().flatten(0, -2).amax(-1)
    return float(differences.median() / expected.abs().max().clamp(min=1e-30))


def _narrow(values: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda value: value.float() if value.is_floating_point() else value, values)
