"""Blocks with a pool of experts per modality, as one router over one bank, and the proof that they are that.

ERNIE 4.5 VL gives text and images experts of their own, each pool with its router, and sorts tokens into them by control
flow that no trace can follow. Stacked, the pools are one bank; side by side, their logits are one router's, in which a
token finds the other pools at -inf (MoMa, arXiv 2407.21770). So a layer stays one mixture, and it is its input that tells
modalities apart.

Dimension letters: T tokens, B batch, S sequence, H hidden, F expert width, E experts of all pools, M pools, K chosen.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mocomp.errors import Unsupported
from mocomp.experts import Expert
from mocomp.ir.specs import spell
from mocomp.models import canonical
from mocomp.models.canonical import Bank, is_experts
from mocomp.routers import Evidence, Router, candidates


def pools(module: nn.Module) -> list[Any]:
    """The children of a block that route and compute on their own, [text, images]; none for any other module."""
    found = [child for child in module.children() if hasattr(child, "gate") and is_experts(getattr(child, "experts", child))]
    return found if len(found) == 2 else []


def mixtures(model: nn.Module) -> dict[str, list[Any]]:
    """Each mixture of a model by name, with the experts modules whose stack is its bank: one, or one per pool of a block."""
    blocks = {name: [pool.experts for pool in pools(module)] for name, module in model.named_modules() if pools(module)}
    inside = {id(experts) for stack in blocks.values() for experts in stack}
    return {
        name: blocks.get(name, [module])
        for name, module in model.named_modules()
        if name in blocks or (is_experts(module) and id(module) not in inside)
    }


def pool_of(hidden_states: Tensor, moe_mm_token_type_ids: Tensor | None = None) -> Tensor:
    """The arguments of a block, [B, S, H] and [B, S] of 0 text, 1 image, 2 video -> the pool [T] of each token."""
    if moe_mm_token_type_ids is None:
        return torch.zeros(hidden_states.shape[:-1], dtype=torch.long, device=hidden_states.device).reshape(-1)
    return (moe_mm_token_type_ids != 0).long().reshape(-1)


def block_forward(self: Any, hidden_states: Tensor, moe_mm_token_type_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What takes the place of a block's own forward: [B, S, H] -> ([B, S, H], logits [T, E]), without control flow."""
    x = hidden_states.reshape(-1, hidden_states.shape[-1])
    gates, owner = [pool.gate for pool in pools(self)], _owner(self, x.device)
    # the class routes in float32, whatever the type of the rest
    logits = F.linear(x.float(), torch.cat([gate.weight.float() for gate in gates]))
    # where, and no sum: what is not a token's own cannot reach it, even if it is no number
    own = owner[None] == pool_of(hidden_states, moe_mm_token_type_ids)[:, None]
    logits = torch.where(own, logits, float("-inf"))
    vectors = [torch.cat(parts) for parts in zip(*map(_vectors, gates), strict=True)]
    ids, weights = torch.ops.mocomp.route(logits, vectors, self.mocomp_router)
    b, spec = bank(self), pools(self)[0].experts.mocomp_spec
    y = torch.ops.mocomp.experts(x, ids, weights.to(x.dtype), b.w_in, b.b_in, b.w_out, b.b_out, spec)
    y = y.reshape(hidden_states.shape)
    shared = getattr(self, "shared_experts", None)
    return y if shared is None else y + shared(hidden_states), logits


def bank(block: nn.Module) -> Bank:
    """The experts of all pools, one after the other, narrower ones filled up with zeros; traceable."""
    banks = [canonical.bank(pool.experts) for pool in pools(block)]
    width = max(b.w_out.shape[2] for b in banks)
    parts = [_widened(b, width, pool.experts.has_gate) for b, pool in zip(banks, pools(block), strict=True)]
    return Bank(*(None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True)))


def prove(block: Any, where: str) -> tuple[Router, Expert]:
    """The kinds of router and of expert with which `block_forward` is the block, established by running both.

    Raises Unsupported when the pools hold different kinds of experts, or no known kind of router reproduces the block.
    """
    instance = _instance(block, where)
    kinds = [canonical.identify(pool.experts, f"{where}, pool {i}") for i, pool in enumerate(pools(instance))]
    if len(set(kinds)) > 1:
        raise Unsupported(f"its pools hold different kinds of experts: {', '.join(map(spell, kinds))}", where=where)
    runs = list(_inputs(instance))
    with torch.no_grad():
        expected = [type(block).forward(instance, *run)[0] for run in runs]
        misses: list[tuple[float, str]] = []
        for guess in _guesses(instance):
            mark(instance, guess, kinds[0])
            actual = [block_forward(instance, *run)[0] for run in runs]
            error = max(float((a - e).abs().max() / e.abs().max()) for a, e in zip(actual, expected, strict=True))
            if error < 1e-5:  # and no less, since the class routes in float32
                return guess, kinds[0]
            misses.append((error, spell(guess)))
    error, nearest = min(misses, default=(float("inf"), "none"))
    raise Unsupported(
        f"{type(block).__name__} is not one router over the experts of its pools; the nearest, {nearest}, is off by "
        f"{error:.1e} relative",
        where=where,
        fix="Report the model type; its pools were read as children with a gate and experts each.",
    )


def mark(block: Any, router: Router, expert: Expert) -> None:
    """Tell a block of what kinds its router and its experts are."""
    block.mocomp_router = spell(router)
    for pool in pools(block):
        pool.experts.mocomp_spec = spell(expert)


def install(block: Any, router: Router, expert: Expert) -> None:
    """Give this one block, and not its class, the forward that was proven for it."""
    mark(block, router, expert)
    block.forward = types.MethodType(block_forward, block)


def _owner(block: nn.Module, device: torch.device) -> Tensor:
    """The pool [E] to which each expert of the bank belongs."""
    sizes = [pool.experts.num_experts for pool in pools(block)]
    return torch.cat([torch.full((size,), i, device=device) for i, size in enumerate(sizes)])


def _vectors(gate: Any) -> list[Tensor]:
    """The parameters [E of its pool] that a gate has besides its weight."""
    return [parameter.reshape(-1) for parameter in gate.parameters() if parameter is not gate.weight]


def _widened(b: Bank, width: int, gated: bool) -> tuple[Tensor | None, ...]:
    """A bank whose experts have `width` F: zero rows come out as act(0) * 0, and zero columns take nothing in."""
    missing = width - b.w_out.shape[2]
    if not missing:
        return b.w_in, b.b_in, b.w_out, b.b_out
    halves = 2 if gated else 1
    w_in = torch.cat([F.pad(half, (0, 0, 0, missing)) for half in b.w_in.chunk(halves, 1)], 1)
    b_in = None if b.b_in is None else torch.cat([F.pad(half, (0, missing)) for half in b.b_in.chunk(halves, 1)], 1)
    return w_in, b_in, F.pad(b.w_out, (0, missing)), b.b_out


def _instance(block: Any, where: str) -> Any:
    """The same class with random weights in float64, small if the block is large, whose routing is not all bias."""
    first = pools(block)[0]
    config = copy.deepcopy(first.experts.config)
    if canonical.elements(block) > canonical.LARGEST_PROOF:
        banks = [canonical.bank(pool.experts) for pool in pools(block)]
        widths = sorted({b.w_out.shape[2] for b in banks})
        experts, _, hidden = banks[0].w_in.shape
        # no fewer experts than are chosen, and pools that differ in width go on to do so
        narrow = {width: 8 * (i + 1) for i, width in enumerate(widths)}
        config = canonical.shrunk(config, {experts: 2 * first.gate.top_k + 1}, narrow, {hidden: 16})
    config._experts_implementation = "eager"
    instance = canonical.randomised(type(block), config, where)
    for pool in pools(instance):
        for parameter in pool.gate.parameters():
            parameter.data *= 0.1
    return instance


def _inputs(instance: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Hidden states [1, T, H] with modalities [1, T]: of both, of text alone, of images alone."""
    b = bank(instance)
    generator = torch.Generator().manual_seed(2)
    x = 3 * torch.randn(1, 4 * b.w_in.shape[0], b.w_in.shape[2], generator=generator, dtype=torch.float64)
    mixed = torch.randint(0, 3, x.shape[:2], generator=generator)
    yield from ((x, mixed), (x, torch.zeros_like(mixed)), (x, torch.ones_like(mixed)))


def _guesses(instance: Any) -> Iterator[Router]:
    gate = pools(instance)[0].gate
    evidence = Evidence(
        experts=bank(instance).w_in.shape[0],
        k=gate.top_k,
        tensors=tuple(tuple(vector.shape) for vector in _vectors(gate)),
        ops=frozenset({"softmax", "sigmoid", "div", "clamp"}),
        topks=(gate.top_k,),
        numbers=frozenset(value for value in vars(gate).values() if isinstance(value, float)),
    )
    for guess in candidates(evidence):
        yield replace(guess, masked=True) if "masked" in {f.name for f in fields(guess)} else guess
