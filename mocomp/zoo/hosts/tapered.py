"""A decoder whose layers differ in how many experts they have: few below, many above (PR-MoE 2022, MoLA 2024)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mocomp.zoo.hosts import Slot
from mocomp.zoo.hosts.decoder import Decoder

EXPERTS = (3, 5)
"""Of each layer."""


class TaperedDecoder(Decoder):
    """input_ids [B, S] -> logits [B, S, V]; the mechanism is made with as many `experts` as its layer has."""

    def __init__(self, mechanism: Callable[..., nn.Module]):
        super().__init__(mechanism)
        for layer, experts in zip(self.layers, EXPERTS, strict=True):
            layer.mixture = Slot(mechanism(experts=experts))
