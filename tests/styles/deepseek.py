"""Blocks as the code that DeepSeek publishes with its checkpoints writes them: a gate that gives ids and weights, and
inference by sorted tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.styles.transformers4 import GatedMLP


class SoftmaxGroupGate(nn.Module):
    """DeepSeek-V2: softmax, the best groups by their best expert, times a factor; x [B, S, H] -> ids, weights [T, K]."""

    def __init__(self, hidden: int, experts: int, k: int, groups: int, groups_kept: int, factor: float) -> None:
        super().__init__()
        self.top_k, self.n_group, self.topk_group, self.routed_scaling_factor = k, groups, groups_kept, factor
        self.weight = nn.Parameter(torch.randn(experts, hidden) * hidden**-0.5)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        scores = F.linear(rows, self.weight).softmax(dim=-1)
        best = scores.view(len(rows), self.n_group, -1).amax(dim=-1)
        kept = torch.zeros_like(best).scatter_(1, best.topk(self.topk_group, dim=-1, sorted=False).indices, 1)
        open_to = kept.repeat_interleave(scores.shape[-1] // self.n_group, dim=1)
        weights, ids = torch.topk(scores.masked_fill(open_to == 0, 0.0), self.top_k, dim=-1, sorted=False)
        return ids, weights * self.routed_scaling_factor


class SigmoidGroupGate(nn.Module):
    """DeepSeek-V3: sigmoid scores, chosen with a correction bias in groups judged by their two best, weights without it."""

    def __init__(self, hidden: int, experts: int, k: int, groups: int, groups_kept: int, factor: float) -> None:
        super().__init__()
        self.top_k, self.n_group, self.topk_group, self.routed_scaling_factor = k, groups, groups_kept, factor
        self.weight = nn.Parameter(torch.randn(experts, hidden) * hidden**-0.5)
        self.e_score_correction_bias = nn.Parameter(0.1 * torch.randn(experts))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        scores = F.linear(rows, self.weight).sigmoid()
        corrected = scores + self.e_score_correction_bias.unsqueeze(0)
        grouped = corrected.view(len(rows), self.n_group, -1)
        best = grouped.topk(2, dim=-1).values.sum(dim=-1)
        kept = torch.zeros_like(best).scatter_(1, best.topk(self.topk_group, dim=-1, sorted=False).indices, 1)
        corrected = grouped.masked_fill(kept.unsqueeze(-1) == 0, float("-inf")).flatten(1)
        ids = corrected.topk(self.top_k, dim=-1, sorted=False).indices
        weights = scores.gather(1, ids)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return ids, weights * self.routed_scaling_factor


class DeepseekBlock(nn.Module):
    """hidden_states [B, S, H] -> [B, S, H]: experts on slices of the sorted tokens, and shared experts for all."""

    def __init__(self, hidden: int, width: int, experts: int, gate: nn.Module, shared: int = 1) -> None:
        super().__init__()
        self.experts = nn.ModuleList(GatedMLP(hidden, width) for _ in range(experts))
        self.gate = gate
        self.shared_experts = GatedMLP(hidden, shared * width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        ids, weights = self.gate(hidden_states)
        rows = hidden_states.view(-1, hidden_states.shape[-1])
        return self.moe_infer(rows, ids, weights).view_as(hidden_states) + self.shared_experts(hidden_states)

    @torch.no_grad()
    def moe_infer(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """x [T, H], ids, weights [T, K] -> [T, H]; the ends of the slices leave the graph as numbers."""
        ends = torch.bincount(ids.flatten(), minlength=len(self.experts)).cpu().numpy().cumsum()
        order = ids.flatten().argsort()
        sorted_rows = x[order // ids.shape[1]]
        outputs, start = [], 0
        for expert, end in zip(self.experts, ends, strict=True):
            if end > start:
                outputs.append(expert(sorted_rows[start:end]))
            start = end
        back = torch.empty_like(sorted_rows)
        back[order] = torch.cat(outputs)
        return (back.view(*ids.shape, -1).type(weights.dtype) * weights.unsqueeze(-1)).sum(dim=1).type(x.dtype)
