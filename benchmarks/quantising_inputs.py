"""What `quantising.py` quantises: weights, moments of calibration data, and of the data that errors are judged by.

Dimension letters: T tokens, E experts, N rows, K columns, H hidden, F expert width.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mocomp.quant.algorithms import Moments

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
OUTLIERS = 6
IMAGES = 240


@dataclass
class Weight:
    """w [E, N, K] float32; `shared` where all experts read the same tensor, of which each sees its own tokens."""

    w: Tensor
    learned: Moments
    held_out: Moments
    shared: bool = True


def moments(inputs: list[Tensor], shares: list[Tensor] | None = None) -> Moments:
    """inputs: x [T, K] of each expert; shares: the router's weights [T]."""
    weighed = [x * share[:, None] for x, share in zip(inputs, shares, strict=True)] if shares else inputs
    tokens = [len(x) for x in inputs]
    magnitude = torch.stack([x.abs().sum(0) / max(len(x), 1) for x in inputs])
    return Moments(torch.stack([x.mT @ x for x in weighed]), magnitude, torch.tensor(tokens))


def planted(experts: int = 8, rows: int = 256, columns: int = 256, tokens: int = 2048, seed: int = 0) -> Weight:
    """Normal weights; inputs that are mixtures of a quarter as many sources, and noise, with some channels far larger."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    w, mix = normal(experts, rows, columns) / columns**0.5, normal(columns // 4, columns) / (columns // 4) ** 0.5
    size = torch.ones(columns)
    size[torch.randperm(columns, generator=generator)[:OUTLIERS]] = 10 + 40 * torch.rand(OUTLIERS, generator=generator)

    def draw() -> Moments:
        return moments(
            [(0.8 * normal(tokens, columns // 4) @ mix + 0.6 * normal(tokens, columns)) * size for _ in range(experts)]
        )

    return Weight(w, draw(), draw())


def digits() -> list[Weight]:
    """Both weights of the experts of each layer of the digits model, with what its training and held-out documents put in."""
    sys.path.insert(0, str(DIGITS))
    import captions
    import data
    import evaluate

    model, tokenizer = evaluate.load()
    rng, codes = np.random.default_rng(1), data.load_codebook()
    images, numbers = (array[:IMAGES] for array in data.split()[0])
    documents = [
        order(tokens, captions.caption(image, digit, rng))
        for image, tokens, digit in zip(images, data.quantise(images, codes), numbers, strict=True)
        for order in (data.image_first, data.caption_first)
    ]
    learned = routed(model, data.encode(tokenizer, documents), tokenizer.pad_token_id)
    held_out = routed(model, evaluate.held_out_documents(tokenizer), tokenizer.pad_token_id)
    weights = []
    for layer, one, other in zip(model.model.layers, learned, held_out, strict=True):
        w_in, w_out = layer.mlp.experts.gate_up_proj.detach(), layer.mlp.experts.down_proj.detach()
        weights += [Weight(w_in, one[0], other[0]), Weight(w_out, one[1], other[1], shared=False)]
    return weights


@torch.no_grad()
def routed(model: nn.Module, ids: np.ndarray, pad: int) -> list[tuple[Moments, Moments]]:
    """Of each layer, the moments of what comes into w_in and into w_out of its experts."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    layers = [layer.mlp.experts for layer in model.model.layers]  # type: ignore[union-attr]
    hooks = [experts.register_forward_pre_hook(lambda _, given: seen.append(given)) for experts in layers]
    model(torch.from_numpy(ids), use_cache=False)
    for hook in hooks:
        hook.remove()
    words = torch.from_numpy(ids).flatten() != pad
    return [both(experts, *(part[words] for part in given)) for experts, given in zip(layers, seen, strict=True)]


def both(experts: nn.Module, x: Tensor, chosen: Tensor, weights: Tensor) -> tuple[Moments, Moments]:
    """x [T, H], the k chosen of each token and their weights -> the moments into w_in and w_out."""
    inputs, inner, shares = [], [], []
    for e in range(experts.num_experts):  # type: ignore[arg-type]
        token, place = torch.where(chosen == e)
        gate, up = (x[token] @ experts.gate_up_proj[e].mT).chunk(2, -1)  # type: ignore[index]
        inputs.append(x[token])
        inner.append(nn.functional.silu(gate) * up)
        shares.append(weights[token, place])
    return moments(inputs, shares), moments(inner, shares)
