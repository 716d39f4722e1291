"""The layers that `gpu.py` measures: one-layer models of stock classes with seeded random weights, and what goes into them.

Weights are drawn once and rounded to bfloat16, which float16 and float32 hold as well, so that every subject computes with
the same numbers. The vocabulary is small: the mixture is what takes the time.

Dimension letters: T tokens, H hidden, F expert width, E experts, K chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

SCOPES = ("model", "mixture")
"""The whole one-layer model (embedding, attention, mixture, output layer), and its router with its experts alone."""
VOCABULARY = 1024
CANDIDATES = 32
"""Tokens from which one is taken where it is alone."""


@dataclass(frozen=True)
class Layout:
    """A layer's dimensions; with `groups` 2 the first half of the experts is for text, the other for images (MoMa), and so is
    the vocabulary."""

    name: str
    config_class: str
    hidden: int
    width: int
    experts: int
    chosen: int
    heads: int
    kv_heads: int
    head_width: int
    groups: int = 1

    @property
    def weights_per_expert(self) -> int:
        return 3 * self.hidden * self.width

    def config(self) -> Any:
        """The config of the stock class."""
        import transformers

        width = {"num_experts": self.experts, "moe_intermediate_size": self.width, "norm_topk_prob": True}
        if self.config_class == "MixtralConfig":
            width = {"num_local_experts": self.experts, "intermediate_size": self.width}
        return getattr(transformers, self.config_class)(
            **width,
            num_experts_per_tok=self.chosen,
            hidden_size=self.hidden,
            num_hidden_layers=1,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_width,
            vocab_size=VOCABULARY,
            max_position_embeddings=8192,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )


LAYERS = {
    "qwen3": Layout("Qwen3-30B-A3B", "Qwen3MoeConfig", 2048, 768, 128, 8, 32, 4, 128),
    "mixtral": Layout("Mixtral-8x7B", "MixtralConfig", 4096, 14336, 8, 2, 32, 8, 128),
    # the width of a 1.1 B Llama's block, an expert a block, as upcycling makes them; one expert of the token's own four
    "moma": Layout("MoMa 4 text + 4 image", "MixtralConfig", 2048, 5632, 8, 1, 32, 4, 64, groups=2),
}


def tiny(layout: Layout) -> Layout:
    """The same kind of layer, small enough for any machine."""
    small = {"hidden": 64, "width": 48, "experts": 8, "chosen": min(layout.chosen, 2)}
    return replace(layout, **small, heads=4, kv_heads=2, head_width=16)


class ModalityRouter(nn.Module):
    """A stock router whose tokens find the experts of the other modality at -inf (MoMa, arXiv 2407.21770).

    `modality` [T] is told before each call.
    """

    mask: Tensor

    def __init__(self, stock: Any):
        super().__init__()
        self.weight, self.top_k, self.hidden_dim = stock.weight, stock.top_k, stock.hidden_dim
        owner = torch.arange(len(stock.weight), device=stock.weight.device) // (len(stock.weight) // 2)
        own = owner[None] == torch.arange(2, device=owner.device)[:, None]
        mask = torch.zeros(own.shape, device=owner.device).masked_fill(~own, float("-inf"))
        self.register_buffer("mask", mask, persistent=False)
        self.modality: Tensor | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, H] -> logits [T, E], weights [T, K], ids [T, K]."""
        assert self.modality is not None
        logits = nn.functional.linear(x.reshape(-1, self.hidden_dim), self.weight).float() + self.mask[self.modality].float()
        weights, ids = torch.topk(torch.softmax(logits, -1), self.top_k, -1)
        return logits, weights / weights.sum(-1, keepdim=True), ids


class OneLayer(nn.Module):
    """A stock model of one layer, run as a whole or its mixture alone."""

    def __init__(self, stock: Any, layout: Layout):
        super().__init__()
        self.stock, self.layout = stock, layout

    @property
    def block(self) -> Any:
        """The mixture: x [1, T, H] -> y [1, T, H]."""
        model: Any = self.stock
        return model.model.layers[0].mlp

    def forward(self, ids: Tensor, x: Tensor | None = None) -> Tensor:
        """ids [1, T] -> logits [1, T, V]; with x [1, T, H] the y [1, T, H] of the mixture."""
        grouped = self.layout.groups > 1
        if grouped:
            self.block.gate.modality = modality_of(ids)
        output = self.stock(input_ids=ids, use_cache=False).logits if x is None else self.block(x)
        if grouped:
            self.block.gate.modality = None  # what a CUDA graph has made must not outlive it
        return output


def modality_of(ids: Tensor) -> Tensor:
    """ids [1, T] -> 0 for text, 1 for images, [T]."""
    return (ids.reshape(-1) >= VOCABULARY // 2).long()


def build(layout: Layout, device: str, seed: int = 0) -> OneLayer:
    """The layer in bfloat16, the same for the same seed and device."""
    import transformers

    config = layout.config()
    stock_class = getattr(transformers, layout.config_class.replace("Config", "ForCausalLM"))
    with torch.device(device):
        stock = stock_class._from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in stock.named_parameters():
        parameter.requires_grad_(False)
        if parameter.dim() < 2:
            parameter.fill_(1.0)
        else:
            # sizes that keep activations near 1
            scale = 1.0 if "embed_tokens" in name else parameter.shape[-1] ** -0.5
            parameter.normal_(std=scale, generator=generator)
    if layout.groups > 1:
        block = stock.model.layers[0].mlp
        block.gate = ModalityRouter(block.gate)
    return OneLayer(stock, layout)


@dataclass(frozen=True)
class Inputs:
    """ids [1, T] int64 of the whole model, x [1, T, H] float32 of the mixture alone, and the experts that each finds."""

    ids: Tensor
    x: Tensor

    def of(self, scope: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The arguments of `OneLayer` in a scope."""
        return (self.ids,) if scope == "model" else (self.ids, self.x.to(dtype))


def draw(layer: OneLayer, tokens: int, device: str, seed: int = 1) -> Inputs:
    """Inputs of T tokens, all of them other ones; where the layer tells modalities apart, half are of images.

    A token that is alone is one of many whose choice of experts is clear, since nothing else could tell a wrong subject from
    one that rounds.
    """
    generator = torch.Generator(device).manual_seed(seed + tokens)
    candidates = tokens if tokens > 1 else CANDIDATES
    ids = torch.randint(3, VOCABULARY, (candidates, 1), generator=generator, device=device)
    x = torch.randn(candidates, 1, layer.layout.hidden, generator=generator, device=device).bfloat16().float()
    if tokens > 1:
        return Inputs(ids.T, x.transpose(0, 1))
    both = Inputs(ids, x)
    clear = [chosen_by(layer, both, scope)[2].argmax() for scope in SCOPES]
    if layer.layout.groups > 1:
        clear[1] = clear[0]  # the same token's modality is told to both
    return Inputs(ids[clear[0]][None], x[clear[1]][None])


def chosen_by(layer: OneLayer, inputs: Inputs, scope: str) -> tuple[Tensor, Tensor, Tensor]:
    """(output [T, ...], the chosen experts [T, K], margin [T]) of the layer.

    The margin is the distance of the logits of the K-th and the next expert, which rounding can close.
    """
    seen: list[tuple[Tensor, ...]] = []
    hook = layer.block.gate.register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        with torch.inference_mode():
            output = layer(*inputs.of(scope, next(layer.parameters()).dtype))
    finally:
        hook.remove()
    logits = next(value for value in seen[0] if value.shape[-1] == layer.layout.experts).float()
    ids = next(value for value in seen[0] if not value.is_floating_point())
    ordered = logits.sort(-1, descending=True).values
    k = layer.layout.chosen
    return output.flatten(0, 1).float(), ids, (ordered[:, k - 1] - ordered[:, k])
