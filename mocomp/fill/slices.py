"""Parts of a dense block: any of its neurons make an expert, since the block is the sum over its neurons.

Dimension letters: H hidden, F width.
"""

from __future__ import annotations

import torch

from mocomp.plans.blocks import Block, Dense
from mocomp.weights import recipes
from mocomp.weights.arithmetic import pick, scaled
from mocomp.weights.recipes import Recipe


def neurons(block: Block, indices: list[int] | range, bias: float) -> Dense:
    """The expert made of the neurons `indices` of a block, with `bias` times the block's output bias."""
    dense, gated = block.dense, block.expert.gated
    rows = [*indices, *(i + dense.width for i in indices)] if gated else [*indices]
    if isinstance(indices, range) and indices.step == 1:
        parts = [indices, range(indices.start + dense.width, indices.stop + dense.width)] if gated else [indices]
        w_in = recipes.concat([recipes.slice_of(dense.w_in, 0, p.start, p.stop) for p in parts], 0)
        w_out = recipes.slice_of(dense.w_out, 1, indices.start, indices.stop)
    else:
        w_in, w_out = pick(dense.w_in, 0, rows), pick(dense.w_out, 1, list(indices))
    b_in = None if dense.b_in is None else pick(dense.b_in, 0, rows)
    b_out = None if dense.b_out is None else scaled(dense.b_out, bias) if bias else zeros_like(dense.b_out)
    return Dense(w_in, b_in, w_out, b_out)


def zeros_like(recipe: Recipe) -> Recipe:
    """Zeros of a small tensor's shape and type."""
    return recipes.literal(torch.zeros(recipe.shape, dtype=recipe.dtype))


def rounded(block: Block, parts: int) -> str:
    """What is to be said when the block's output bias, cut into `parts`, is not stored exactly; empty when it is."""
    bias = block.dense.b_out
    dtype = None if bias is None else next((leaf.dtype for leaf in bias.leaves() if leaf.dtype.itemsize < 4), None)
    return f"a bias of {dtype} is rounded when it is cut into {parts}" if dtype is not None and parts & (parts - 1) else ""


def bank(experts: list[Dense]) -> dict[str, Recipe]:
    """Experts of one width as the weights of a bank."""
    parts = {name: [getattr(expert, name) for expert in experts] for name in ("w_in", "b_in", "w_out", "b_out")}
    return {f"experts.{name}": recipes.stack(part, 0) for name, part in parts.items() if part[0] is not None}


def shared(expert: Dense) -> dict[str, Recipe]:
    """An expert that all tokens go through, as weights."""
    parts = {"w_in": expert.w_in, "b_in": expert.b_in, "w_out": expert.w_out, "b_out": expert.b_out}
    return {f"shared.{name}": part for name, part in parts.items() if part is not None}
