"""The ops that mocomp adds to the traced graph, each with a shape function and a meaning in plain torch.

A kind of router or expert travels in the graph as text (`spec`), so that a new kind is a new file and no new op.
Dimension letters: T tokens, H hidden, F feed-forward width, E experts, K chosen per token, B batch, S sequence,
N query heads, J key heads, P past and present positions, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mocomp.ir.specs import parse
from mocomp.quant import formats


def _like_x(x: Tensor, *rest: object) -> Tensor:
    """The shape function of an op whose result is like its first argument."""
    return torch.empty_like(x)


@torch.library.custom_op("mocomp::route", mutates_args=())
def route(logits: Tensor, tensors: Sequence[Tensor], spec: str) -> tuple[Tensor, Tensor]:
    """logits [T, E], or [B, S, E] for routers that are per sequence, -> ids [T, K] int64, weights [T, K]; T is B * S.

    `tensors` are the router's own, such as a bias [E].
    """
    ids, weights = parse("mocomp.routers", "Router", spec).choose(logits, *tensors)
    return ids.clone(), weights.clone()


@route.register_fake
def _(logits: Tensor, tensors: Sequence[Tensor], spec: str) -> tuple[Tensor, Tensor]:
    shape = (math.prod(logits.shape[:-1]), parse("mocomp.routers", "Router", spec).k)
    return logits.new_empty(shape, dtype=torch.int64), logits.new_empty(shape)


@torch.library.custom_op("mocomp::experts", mutates_args=())
def experts(
    x: Tensor, ids: Tensor, weights: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, b_out: Tensor | None, spec: str
) -> Tensor:
    """y [T, H] = sum over K of weights[t, k] * expert[ids[t, k]](x [T, H]).

    w_in [E, F or 2F, H] (gate rows, then up rows), b_in [E, F or 2F], w_out [E, H, F], b_out [E, H].
    """
    return parse("mocomp.experts", "Expert", spec).mixture(x, ids, weights, w_in, b_in, w_out, b_out)


experts.register_fake(_like_x)


@torch.library.custom_op("mocomp::mixture", mutates_args=())
def mixture(
    x: Tensor,
    logits: Tensor,
    tensors: Sequence[Tensor],
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    router: str,
    expert: str,
) -> Tensor:
    """`route` followed by `experts`, for targets that do both in one operator."""
    ids, weights = route(logits, tensors, router)
    return experts(x, ids, weights.to(x.dtype), w_in, b_in, w_out, b_out, expert)


mixture.register_fake(_like_x)


@torch.library.custom_op("mocomp::dequantize", mutates_args=())
def dequantize(parts: Sequence[Tensor], spec: str, columns: int) -> Tensor:
    """w [..., N, K=columns] float32 from the tensors that the format `spec` keeps of it, in the order of its `shapes`."""
    form = formats.parse(spec)
    names = form.shapes((*parts[0].shape[:-1], columns))
    return form.dequantise(formats.Stored(**dict(zip(names, parts, strict=True))), columns)


@dequantize.register_fake
def _(parts: Sequence[Tensor], spec: str, columns: int) -> Tensor:
    return parts[0].new_empty((*parts[0].shape[:-1], columns), dtype=torch.float32)


@torch.library.custom_op("mocomp::quantized_mixture", mutates_args=())
def quantized_mixture(
    x: Tensor,
    logits: Tensor,
    w_in: Sequence[Tensor],
    b_in: Tensor | None,
    w_out: Sequence[Tensor],
    b_out: Tensor | None,
    router: str,
    expert: str,
    spec_in: str,
    spec_out: str,
) -> Tensor:
    """`mixture` of weights in the formats `spec_in` and `spec_out`, for targets that compute on packed weights."""
    gated = parse("mocomp.experts", "Expert", expert).gated
    first = dequantize(w_in, spec_in, x.shape[-1])
    second = dequantize(w_out, spec_out, first.shape[1] // (2 if gated else 1))
    return mixture(x, logits, [], first, b_in, second, b_out, router, expert)


quantized_mixture.register_fake(_like_x)


@torch.library.custom_op("mocomp::quantized_linear", mutates_args=())
def quantized_linear(x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, spec: str) -> Tensor:
    """x [..., K] -> x w^T + bias [..., N], for targets that compute on packed weights."""
    return torch.nn.functional.linear(x, dequantize(weight, spec, x.shape[-1]), bias)


@quantized_linear.register_fake
def _(x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, spec: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight[0].shape[0]))


@torch.library.custom_op("mocomp::attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """Grouped-query attention that never repeats keys and values.

    q [B, N, S, D], k [B, J, P, D], v [B, J, P, D'], with J dividing N; mask [B or 1, 1 or N, S, P] is added to the
    scores; sinks [N] are logits that take part in the softmax and carry no value (gpt-oss); softcap 0 is none.
    Result [B, S, N, D'].
    """
    batch, heads, queries, width = q.shape
    groups = k.shape[1]
    grouped = q.reshape(batch, groups, -1, width)
    scores = (grouped @ k.transpose(-1, -2)).reshape(batch, heads, queries, -1) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        column = sinks.reshape(1, -1, 1, 1).expand(batch, -1, queries, 1).to(scores.dtype)
        scores = torch.cat([scores, column], -1)
    weights = torch.softmax(scores, -1)[..., : k.shape[2]]
    y = (weights.reshape(batch, groups, -1, k.shape[2]) @ v).reshape(batch, heads, queries, -1)
    return y.transpose(1, 2).contiguous()


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None, scale: float, softcap: float) -> Tensor:
    batch, heads, queries, _ = q.shape
    return q.new_empty(batch, queries, heads, v.shape[-1])


@torch.library.custom_op("mocomp::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x [..., H] / sqrt(mean of its squares + epsilon) * weight [H] (Zhang and Sennrich 2019)."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


rms_norm.register_fake(_like_x)


@torch.library.custom_op("mocomp::rotary", mutates_args=())
def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in the two-halves form (Su et al. 2021, as GPT-NeoX lays it out).

    x [B, N, S, D]; cos, sin [B, 1, S, D], whose two halves along D are equal.
    """
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


rotary.register_fake(_like_x)
