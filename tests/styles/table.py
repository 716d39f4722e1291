"""Every style, small, in a host that norms its input and adds its output, with inputs of any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.styles import deepseek, deepspeed, fastmoe, gshard, megablocks, multimodal, notebook, published, tutel, vision
from tests.styles import transformers4 as tf4

HIDDEN, WIDTH, EXPERTS = 16, 24, 4


class Host(nn.Module):
    """x [B, S, H] -> x + block(norm(x)), whatever else the block gives."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.norm, self.block = nn.LayerNorm(HIDDEN), block

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(self.norm(x))
        return x + (y[0] if isinstance(y, tuple) else y)


class Alone(nn.Module):
    """x [B, S, H] -> the first of what the block gives, for blocks whose output is not as wide as their input."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return y[0] if isinstance(y, tuple) else y


@dataclass(frozen=True)
class Style:
    """A module with a mixture; `drops` says that experts have no room for all tokens at the sizes of the tests, and `names`
    what its inputs are called."""

    build: Callable[[], nn.Module]
    drops: bool = False
    names: tuple[str, ...] = ("x",)

    def module(self, seed: int = 0) -> nn.Module:
        """The module in evaluation, with weights from `seed`, routers sharp enough for weights to differ."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.build().eval()


def _fairseq_experts() -> list[nn.Module]:
    return [gshard.FairseqFeedForward(HIDDEN, WIDTH) for _ in range(EXPERTS)]


def _deepspeed(k: int, residual: bool = False, **options: Any) -> nn.Module:
    gate = deepspeed.TopKGate(HIDDEN, EXPERTS, k, **options)
    return deepspeed.MoE(HIDDEN, _fairseq_experts(), gate, gshard.FairseqFeedForward(HIDDEN, WIDTH) if residual else None)


def _vmoe(k: int, ratio: float) -> nn.Module:
    return vision.VMoEBlock(HIDDEN, WIDTH, EXPERTS, k, ratio)


def _llava() -> nn.Module:
    gate = deepspeed.TopKGate(HIDDEN, EXPERTS, 2, eval_capacity_factor=0.75, min_capacity=0)
    mixture = deepspeed.MoE(HIDDEN, [tf4.GatedMLP(HIDDEN, WIDTH) for _ in range(EXPERTS)], gate)
    return Alone(nn.Sequential(multimodal.MoELLaVALayer(HIDDEN, 2, mixture)))


def _deepseek(gate: nn.Module) -> nn.Module:
    return Host(deepseek.DeepseekBlock(HIDDEN, WIDTH, 2 * EXPERTS, gate))


SMALL = (HIDDEN, WIDTH, EXPERTS)
STYLES: dict[str, Style] = {
    "mixtral": Style(lambda: Host(tf4.MixtralBlock(*SMALL, 2))),
    "qwen2-moe": Style(lambda: Host(tf4.Qwen2MoeBlock(*SMALL, 2))),
    "qwen2-moe normalised": Style(lambda: Host(tf4.Qwen2MoeBlock(*SMALL, 2, normalise=True))),
    "deepseek-v2": Style(lambda: _deepseek(deepseek.SoftmaxGroupGate(HIDDEN, 2 * EXPERTS, 3, 4, 2, 1.5))),
    "deepseek-v3": Style(lambda: _deepseek(deepseek.SigmoidGroupGate(HIDDEN, 2 * EXPERTS, 3, 4, 2, 2.5))),
    "switch": Style(lambda: Host(tf4.SwitchBlock(*SMALL, capacity=2)), drops=True),
    "mesh switch": Style(lambda: Host(gshard.MeshSwitch(*SMALL, capacity_factor=1.25)), drops=True),
    "gshard": Style(lambda: Host(gshard.GShardLayer(*SMALL)), drops=True),
    "fairseq": Style(lambda: Host(gshard.FairseqMOELayer(*SMALL)), drops=True),
    "deepspeed top-1": Style(lambda: Host(_deepspeed(1, eval_capacity_factor=0.8, min_capacity=2)), drops=True),
    "deepspeed top-2": Style(lambda: Host(_deepspeed(2, eval_capacity_factor=0.8, min_capacity=2)), drops=True),
    "deepspeed no drop": Style(lambda: Host(_deepspeed(2, drop_tokens=False))),
    "deepspeed residual": Style(lambda: Host(_deepspeed(1, True, eval_capacity_factor=0.8, min_capacity=2)), drops=True),
    "tutel": Style(lambda: Host(tutel.TutelLayer(*SMALL, 2, 1.0)), drops=True),
    "tutel top-1": Style(lambda: Host(tutel.TutelLayer(*SMALL, 1, 1.0, normalize_gate=False)), drops=True),
    "fastmoe": Style(lambda: Host(fastmoe.FMoE(*SMALL, 2))),
    "megablocks": Style(lambda: Host(megablocks.DroplessMoE(*SMALL, 2))),
    "megablocks normalised": Style(lambda: Host(megablocks.DroplessMoE(*SMALL, 2, 1.0))),
    "lucidrains all": Style(lambda: Host(published.lucidrains(HIDDEN, EXPERTS, second_policy_eval="all")), drops=True),
    "lucidrains none": Style(lambda: Host(published.lucidrains(HIDDEN, EXPERTS, second_policy_eval="none"))),
    "st-moe": Style(lambda: Host(published.st_moe(HIDDEN, EXPERTS, threshold_eval=0.0, capacity_factor_eval=1.25)), drops=True),
    "st-moe top-3": Style(
        lambda: Host(published.st_moe(HIDDEN, EXPERTS, gating_top_n=3, threshold_eval=0.0, capacity_factor_eval=1.25)),
        drops=True,
    ),
    "st-moe block": Style(lambda: Host(published.st_moe_block(published.st_moe(HIDDEN, EXPERTS, threshold_eval=0.0)))),
    "soft-moe": Style(lambda: Host(published.soft_moe(HIDDEN, EXPERTS, 3, geglu=False))),
    "soft-moe geglu": Style(lambda: Host(published.soft_moe(HIDDEN, EXPERTS, 3, geglu=True))),
    "v-moe": Style(lambda: Host(_vmoe(2, 0.6)), drops=True),
    "v-moe top-1": Style(lambda: Host(_vmoe(1, 1.05)), drops=True),
    "limoe": Style(lambda: vision.LIMoE(HIDDEN, _vmoe(1, 1.05)), drops=True, names=("patches", "words")),
    "moe-llava": Style(_llava, drops=True),
    "uni-moe": Style(lambda: Host(multimodal.UniMoEBlock(*SMALL))),
    "cumo wider": Style(lambda: Alone(multimodal.CuMoConnector(HIDDEN, 20, EXPERTS))),
    "cumo narrower": Style(lambda: Alone(multimodal.CuMoConnector(HIDDEN, 12, EXPERTS))),
    "notebook": Style(lambda: Host(notebook.HandWritten(*SMALL, 2))),
    "notebook residual": Style(lambda: Host(notebook.HandWrittenResidual(*SMALL, 2))),
}
