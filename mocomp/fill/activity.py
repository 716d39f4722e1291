"""What the neurons of a dense block do on given tokens.

Dimension letters: T tokens, H hidden, F width of the block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mocomp.plans.blocks import Block
from mocomp.weights.recipes import Reader


def activations(block: Block, x: Tensor, read: Reader) -> Tensor:
    """x [T, H] -> the value of each neuron [T, F], between the two products of the block."""
    w_in, b_in = block.dense.w_in.evaluate(read).float(), block.dense.b_in
    return block.expert.inner(F.linear(x, w_in, None if b_in is None else b_in.evaluate(read).float()))


def markers(h: Tensor, count: int) -> Tensor:
    """h [T, F] -> [T, F], 1 where a neuron is among the `count` largest of its token by size, else 0 (ATopK of CMoE)."""
    return torch.zeros_like(h).scatter_(1, h.abs().topk(count, 1).indices, 1.0)
