"""Blocks as transformers 4 wrote them before experts had an interface of their own: a loop over the experts that were hit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GatedMLP(nn.Module):
    """One expert of LLaMA's kind: down(silu(gate(x)) * up(x)), x [N, H] -> [N, H]."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MixtralExpert(nn.Module):
    """One expert of Mixtral: w2(silu(w1(x)) * w3(x)), with its names."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden, width, bias=False)
        self.w2 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(hidden, width, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.w2(self.act_fn(self.w1(hidden_states)) * self.w3(hidden_states))


class MixtralBlock(nn.Module):
    """Mixtral: hidden_states [B, S, H] -> (y [B, S, H], router logits [B * S, E]); routed in float32, whatever x is."""

    def __init__(self, hidden: int, width: int, experts: int, k: int) -> None:
        super().__init__()
        self.num_experts, self.top_k = experts, k
        self.gate = nn.Linear(hidden, experts, bias=False)
        self.experts = nn.ModuleList(MixtralExpert(hidden, width) for _ in range(experts))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        batch, length, hidden = hidden_states.shape
        rows = hidden_states.view(-1, hidden)
        logits = self.gate(rows)
        chosen, ids = F.softmax(logits, dim=1, dtype=torch.float32).topk(self.top_k, dim=-1)
        chosen = (chosen / chosen.sum(-1, keepdim=True)).to(rows.dtype)
        total = torch.zeros_like(rows)
        hits = F.one_hot(ids, self.num_experts).permute(2, 1, 0)
        for number in torch.nonzero(hits.sum((1, 2))).flatten().tolist():
            slot, token = torch.where(hits[number])
            total.index_add_(0, token, self.experts[number](rows[token]) * chosen[token, slot].unsqueeze(-1))
        return total.view(batch, length, hidden), logits


class Qwen2MoeBlock(nn.Module):
    """Qwen2-MoE: weights as they come out of the softmax, and a shared expert behind a sigmoid gate of its own."""

    def __init__(self, hidden: int, width: int, experts: int, k: int, normalise: bool = False) -> None:
        super().__init__()
        self.num_experts, self.top_k, self.norm_topk_prob = experts, k, normalise
        self.gate = nn.Linear(hidden, experts, bias=False)
        self.experts = nn.ModuleList(GatedMLP(hidden, width) for _ in range(experts))
        self.shared_expert = GatedMLP(hidden, 2 * width)
        self.shared_expert_gate = nn.Linear(hidden, 1, bias=False)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        shape = hidden_states.shape
        rows = hidden_states.reshape(-1, shape[-1])
        logits = self.gate(rows)
        weights, ids = torch.topk(F.softmax(logits, dim=-1, dtype=torch.float32), self.top_k, dim=-1)
        if self.norm_topk_prob:
            weights /= weights.sum(dim=-1, keepdim=True)
        weights = weights.to(rows.dtype)
        total = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(ids == number)
            if token.numel() == 0:
                continue
            total.index_add_(0, token, expert(rows[token]) * weights[token, slot, None])
        total = total + torch.sigmoid(self.shared_expert_gate(rows)) * self.shared_expert(rows)
        return total.reshape(shape), logits


class SwitchFeedForward(nn.Module):
    """One expert of T5's kind: wo(relu(wi(x))), with the dropout that eval() turns off."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.wi = nn.Linear(hidden, width, bias=False)
        self.wo = nn.Linear(width, hidden, bias=False)
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.wo(self.dropout(F.relu(self.wi(hidden_states))))


class SwitchRouter(nn.Module):
    """Top-1 of a softmax with a fixed capacity per sequence: x [B, S, H] -> one-hot mask [B, S, E], p [B, S, 1], logits."""

    def __init__(self, hidden: int, experts: int, capacity: int) -> None:
        super().__init__()
        self.num_experts, self.expert_capacity = experts, capacity
        self.classifier = nn.Linear(hidden, experts, bias=False)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.classifier(hidden_states)
        probabilities = F.softmax(logits, dim=-1)
        mask = F.one_hot(probabilities.argmax(dim=-1), self.num_experts)
        mask = mask * (mask.cumsum(dim=-2) <= self.expert_capacity)
        return mask, probabilities.max(dim=-1, keepdim=True).values, logits


class SwitchBlock(nn.Module):
    """Switch Transformer as transformers 4 has it: a token over capacity goes on as it is, times its probability."""

    def __init__(self, hidden: int, width: int, experts: int, capacity: int) -> None:
        super().__init__()
        self.router = SwitchRouter(hidden, experts, capacity)
        self.experts = nn.ModuleDict({f"expert_{i}": SwitchFeedForward(hidden, width) for i in range(experts)})

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        mask, probability, logits = self.router(hidden_states)
        following = hidden_states.clone()
        for number, expert in enumerate(self.experts.values()):
            taken = mask[..., number].bool()
            if taken.any():
                following[taken] = expert(hidden_states[taken])
        return probability * following, (logits, mask.argmax(dim=-1))
