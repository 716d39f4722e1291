"""Experts modules of transformers in canonical form, and the proof that the form is right.

transformers stores the experts of a layer packed, in one of several layouts that flags of the class tell. The
flags are a hypothesis: a module is canonicalised only after the class's own eager code and `mocomp::experts` gave
the same numbers, in float64, on random weights and tokens that reach every expert.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mocomp.errors import BadInput, Unsupported
from mocomp.experts import Expert
from mocomp.ir import ops  # noqa: F401  (registers mocomp::experts)
from mocomp.ir.specs import spell
from mocomp.registry import discover

NAME = "mocomp"
LARGEST_PROOF = 1 << 24
"""Elements of weight up to which a module is proven at its own size; a larger one is shrunk first."""


@dataclass(frozen=True)
class Bank:
    """The weights of a layer's experts: w_in [E, F or 2F, H], b_in, w_out [E, H, F], b_out."""

    w_in: Tensor
    b_in: Tensor | None
    w_out: Tensor
    b_out: Tensor | None


def is_experts(module: nn.Module) -> bool:
    """Whether a module goes through the experts interface of transformers."""
    return all(hasattr(module, flag) for flag in ("is_transposed", "is_concatenated", "has_gate", "has_bias"))


def bank(module: Any) -> Bank:
    """The weights of an experts module in canonical layout, as its flags tell; traceable."""
    name = "gate_up_proj" if module.has_gate else "up_proj"
    w_in, w_out = getattr(module, name), module.down_proj
    b_in, b_out = (getattr(module, f"{n}_bias") for n in (name, "down_proj")) if module.has_bias else (None, None)
    if module.is_transposed:
        w_in, w_out = w_in.transpose(1, 2), w_out.transpose(1, 2)
    if module.has_gate and not module.is_concatenated:
        w_in = torch.cat([w_in[:, 0::2], w_in[:, 1::2]], 1)
        b_in = b_in if b_in is None else torch.cat([b_in[:, 0::2], b_in[:, 1::2]], 1)
    return Bank(w_in, b_in, w_out, b_out)


def put(module: Any, expert: int, w_in: Tensor | None, w_out: Tensor | None) -> None:
    """Write one expert's weights, w_in [F or 2F, H] and w_out [H, F], into an experts module, as its flags want them; None
    leaves what is there."""
    if w_in is not None and module.has_gate and not module.is_concatenated:
        w_in = torch.stack(w_in.chunk(2), 1).flatten(0, 1)
    for name, w in (("gate_up_proj" if module.has_gate else "up_proj", w_in), ("down_proj", w_out)):
        if w is not None:
            getattr(module, name).data[expert] = w.T if module.is_transposed else w


def experts_forward(self: nn.Module, hidden_states: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """The implementation that mocomp registers with transformers: one op, whatever the layout and the number."""
    b = bank(self)
    return torch.ops.mocomp.experts(
        hidden_states, ids, weights.to(hidden_states.dtype), b.w_in, b.b_in, b.w_out, b.b_out, self.mocomp_spec
    )


def prove(module: nn.Module, where: str) -> Expert:
    """The kind of expert that `module` (its weights may be fake) computes, established by running it.

    Raises Unsupported, with the nearest miss, when no known kind reproduces the class's own code, BadInput for sizes of 0.
    """
    if empty := [name for name, parameter in module.named_parameters() if parameter.numel() == 0]:
        raise BadInput(f"{empty[0]} has no elements: a size in config.json is 0", where=where, fix="Correct the size.")
    return identify(_instance(module, where), where)


def identify(instance: Any, where: str) -> Expert:
    """The kind of expert that a module with weights in float64 computes; refuses as `prove` does."""
    if getattr(instance, "has_post_expert_norm", False):  # a flag that transformers 5.17 does not have yet
        raise Unsupported("its experts end in a norm of their own, which mocomp has no kind of expert for", where=where)
    forward = getattr(type(instance).forward, "__wrapped__", None)
    if forward is None:
        raise Unsupported(f"{type(instance).__name__} goes past the experts interface of transformers", where=where)
    b = bank(instance)
    experts = b.w_in.shape[0]
    generator = torch.Generator().manual_seed(0)
    tokens = 2 * experts + 1
    x = 3 * torch.randn(tokens, b.w_in.shape[2], generator=generator, dtype=torch.float64)
    ids = torch.rand(tokens, experts, generator=generator).topk(min(2, experts), -1).indices
    ids[:experts, 0] = torch.arange(experts)  # every expert is reached
    ids[:, 1:] = torch.where(ids[:, 1:] == ids[:, :1], (ids[:, :1] + 1) % experts, ids[:, 1:])
    weights = torch.rand(*ids.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected = forward(instance, x, ids, weights)
        misses: list[tuple[float, Expert]] = []
        for guess in _guesses(instance):
            actual = guess.mixture(x, ids, weights, b.w_in, b.b_in, b.w_out, b.b_out)
            error = float((actual - expected).abs().max() / expected.abs().max())
            if error < 1e-9:
                return guess
            misses.append((error, guess))
    error, nearest = min(misses, key=lambda miss: miss[0])
    raise Unsupported(
        f"no known kind of expert computes what {type(instance).__name__} does; the nearest, {spell(nearest)}, "
        f"is off by {error:.1e} relative",
        where=where,
        fix="Report the model type; the class and its flags were read as transformers declares them.",
    )


def _guesses(module: nn.Module) -> Iterator[Expert]:
    numbers = {name: value for name, value in vars(module).items() if isinstance(value, float)}
    for kind in discover("mocomp.experts", "Expert").values():
        if kind.gated == module.has_gate:
            yield from kind.guesses(numbers)


def _instance(module: nn.Module, where: str) -> nn.Module:
    """The same class with random weights in float64, small if the module is large."""
    return randomised(type(module), module.config if elements(module) <= LARGEST_PROOF else _shrunk(module), where)


def randomised(module_class: Any, config: Any, where: str) -> nn.Module:
    """A class that is built from a config alone, with random weights in float64."""
    try:
        with torch.device("meta"):
            size = elements(module_class(config))
        if size > LARGEST_PROOF:
            raise ValueError(f"its config does not tell how to make it smaller than {size:,} elements")
        instance = module_class(config).to(torch.float64)
    except Exception as error:
        name = module_class.__name__
        raise Unsupported(f"{name} could not be built alone to prove its layout: {error}", where=where) from error
    instance.eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in instance.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return instance


def elements(module: nn.Module) -> int:
    """How many parameters a module has."""
    return sum(parameter.numel() for parameter in module.parameters())


def _shrunk(module: nn.Module) -> Any:
    b = bank(module)
    return shrunk(module.config, {b.w_in.shape[0]: 5}, {b.w_out.shape[2]: 24}, {b.w_in.shape[2]: 16})


def shrunk(config: Any, experts: dict[int, int], widths: dict[int, int], hidden: dict[int, int]) -> Any:
    """A copy of a config in which numbers of experts, expert widths and hidden sizes are others, as {size: new}.

    They are found by value and name in the config, alone or in lists, since every family names them differently.
    """
    config = copy.deepcopy(config)
    small = ((experts, r"expert"), (widths, r"intermediate|ffn|inner"), (hidden, r"hidden_size|d_model|n_embd|dim"))
    for name, value in list(vars(config).items()):
        for sizes, pattern in small:
            if not re.search(pattern, name) or "per_tok" in name:
                continue
            if type(value) is int and value in sizes:
                setattr(config, name, sizes[value])
            elif isinstance(value, list) and value and all(size in sizes for size in value):
                setattr(config, name, [sizes[size] for size in value])
    return config


def register() -> None:
    """Tell transformers of the implementation under the name `mocomp`."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
