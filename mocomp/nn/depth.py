"""Mixture-of-depths: a token goes through a decoder layer or past it (Raposo et al. 2024; MoMa, section 2.3).

A token that goes past is not there for the others either: its key is stored as zeros, which no key that went through a
projection is, and keys of zeros are masked. So the cache itself remembers, and decoding needs nothing more.
Dimension letters: B batch, S sequence, P past and present positions, H hidden.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mocomp.errors import Unsupported
from mocomp.plans.plan import HIDDEN, DepthPlan


class Depth(nn.Module):
    """x [B, S, H] -> x + r * (layer(x) - x) for tokens that go through, x for the others; r = sigmoid(score).

    It stands in the layer that it decides about, as `layer.depth`, so that the layer's own weights keep their names.
    `scores` [B, S] of the last call are kept for losses on them; `decisions` [B, S] are the logits of going through.
    """

    router: Tensor
    aux_in: Tensor
    aux_out: Tensor

    def __init__(self, plan: DepthPlan):
        super().__init__()
        self.plan = plan
        for name, shape in plan.shapes().items():
            self.register_parameter(name.removeprefix("depth."), nn.Parameter(torch.empty(shape)))
        self.scores: Tensor | None = None
        self.decisions: Tensor | None = None
        self._through: Tensor | None = None

    def around(self, layer: Any, forward: Any, hidden_states: Tensor, *args: Any, **rest: Any) -> Tensor:
        """What the layer's forward becomes; `forward` is the class's own."""
        mask = rest.get("attention_mask")
        if args or mask is None:
            raise Unsupported("mixture-of-depths needs the mask of eager attention, by its name", where=self.plan.layer)
        scores = F.linear(hidden_states, self.router)[..., 0]
        through = self._decide(hidden_states, scores)
        absent = ~through
        cache, index = rest.get("past_key_values"), layer.self_attn.layer_idx
        if cache is not None and cache.get_seq_length(index):
            past = cache.layers[index].keys.abs().amax((1, 3)) == 0
            absent = torch.cat([past, absent], 1)
        rest["attention_mask"] = mask + torch.where(absent[:, None, None, :], HIDDEN, 0.0).to(mask.dtype)
        self._through = through
        y = forward(hidden_states, **rest)
        self._through = None
        update = torch.sigmoid(scores)[..., None] * (y - hidden_states)
        return hidden_states + torch.where(through[..., None], update, 0.0)

    def hide(self, module: nn.Module, args: tuple, key: Tensor) -> Tensor:
        """Zeros for the keys of tokens that go past; key [B, S, heads * width]."""
        return key if self._through is None else torch.where(self._through[..., None], key, 0.0)

    def _decide(self, x: Tensor, scores: Tensor) -> Tensor:
        """x [B, S, H], scores [B, S] -> which tokens go through [B, S] bool."""
        self.scores = self.decisions = scores
        if self.plan.auxiliary:  # learns to foretell the choice, and must not shape what it reads
            hidden = F.silu(F.linear(x.detach(), self.aux_in))
            self.decisions = F.linear(hidden, self.aux_out)[..., 0]
        if not self.training:
            return self.decisions > 0  # sigmoid above 0.5
        count = max(math.ceil(self.plan.capacity * x.shape[1] - 1e-6), 1)  # 7 of 100 and not 8, which 0.07 * 100 is above
        return scores >= scores.topk(count, 1).values[:, -1:]


def attach(layer: Any, plan: DepthPlan) -> None:
    """Give a decoder layer its mixture-of-depths. Raises Unsupported for a layer of another build."""
    key = getattr(getattr(layer, "self_attn", None), "k_proj", None)
    if key is None:
        raise Unsupported("mixture-of-depths needs a decoder layer with self_attn.k_proj", where=plan.layer)
    layer.depth = Depth(plan)
    key.register_forward_hook(layer.depth.hide)
    layer.forward = partial(layer.depth.around, layer, layer.forward)
