"""Where in a block the scores of its experts may come from: submodules called as they are, and products with parameters.

Dimension letters: T tokens, E experts, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mocomp.models.recognition.calls import leaves
from mocomp.models.recognition.candidates import ExpertSet
from mocomp.models.recognition.measured import Draw
from mocomp.models.recognition.probing import tensor_at

DEEPEST = 3
"""Submodules that may stand between the hidden states and the scores, such as a norm, a projection and a gate."""


@dataclass(frozen=True)
class Called:
    """Scores that submodules give, one after the other; `leaf` of what the last gives. `flat`: they are given [T, H]."""

    modules: tuple[str, ...]
    leaf: int
    flat: bool

    def scores(self, block: nn.Module, x: Tensor) -> Tensor:
        """x [.., H] -> [T, E]."""
        value: Any = x.reshape(-1, x.shape[-1]) if self.flat else x
        for name in self.modules[:-1]:
            value = block.get_submodule(name)(value)
        value = leaves(block.get_submodule(self.modules[-1])(value))[self.leaf]
        return value.reshape(-1, value.shape[-1])


@dataclass(frozen=True)
class Product:
    """x times a parameter, plus a bias; `transposed`: the parameter is [H, E]."""

    weight: str
    transposed: bool
    bias: str = ""

    def scores(self, block: nn.Module, x: Tensor) -> Tensor:
        """x [.., H] -> [T, E]."""
        w = tensor_at(block, self.weight)
        flat = x.reshape(-1, x.shape[-1]).to(w.dtype)
        bias = tensor_at(block, self.bias).reshape(-1) if self.bias else None
        return nn.functional.linear(flat, w.T if self.transposed else w, bias)


Scores = Called | Product


def own_tensors(block: nn.Module, experts: ExpertSet) -> dict[str, Tensor]:
    """The floating parameters and buffers of a block that are not the experts'."""
    named = [*block.named_parameters(), *block.named_buffers()]
    return {name: tensor for name, tensor in named if tensor.is_floating_point() and not experts.owns(name)}


def vectors(block: nn.Module, experts: ExpertSet) -> list[str]:
    """Tensors with a number for each expert."""
    found = own_tensors(block, experts).items()
    return [name for name, tensor in found if tensor.numel() == experts.count and max(tensor.shape) == experts.count]


def candidates(block: nn.Module, experts: ExpertSet, draw: Draw) -> Iterator[Scores]:
    """Everything in a block that might give a number for each token and expert, submodules first."""
    yield from _called(block, experts, draw)
    hidden = draw.x.shape[-1]
    for name, tensor in own_tensors(block, experts).items():
        for transposed, shape in ((False, (experts.count, hidden)), (True, (hidden, experts.count))):
            if tuple(tensor.shape) == shape:
                yield Product(name, transposed)
                yield from (Product(name, transposed, bias) for bias in vectors(block, experts))


@dataclass(frozen=True)
class _Heard:
    name: str
    given: Tensor
    made: list[Any]


def _called(block: nn.Module, experts: ExpertSet, draw: Draw) -> Iterator[Called]:
    heard = _listen(block, experts, draw)
    frontier: list[tuple[tuple[str, ...], Tensor, bool]] = [((), draw.tokens, True), ((), draw.x, False)]
    for _ in range(DEEPEST):
        reached = []
        for path, value, flat in frontier:
            for one in heard:
                if one.given.shape != value.shape or not torch.equal(one.given, value) or one.name in path:
                    continue
                for leaf, made in enumerate(one.made):
                    if not isinstance(made, Tensor) or not made.is_floating_point():
                        continue
                    if made.shape[-1:] == (experts.count,) and made.numel() == draw.tokens.shape[0] * experts.count:
                        yield Called((*path, one.name), leaf, flat)
                    if len(one.made) == 1:
                        reached.append(((*path, one.name), made, flat))
        frontier = reached


def _listen(block: nn.Module, experts: ExpertSet, draw: Draw) -> list[_Heard]:
    """What the submodules of a block, but for its experts, are given and give while it runs."""
    heard: list[_Heard] = []

    def hook(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and args[0].is_floating_point():
            heard.append(_Heard(name, args[0].clone(), [v.clone() if isinstance(v, Tensor) else v for v in leaves(result)]))

    children = [(name, child) for name, child in block.named_modules() if name and not experts.owns(name)]
    handles = [
        child.register_forward_hook(lambda _, args, kwargs, made, n=name: hook(n, args, kwargs, made), with_kwargs=True)
        for name, child in children
    ]
    try:
        block(*draw.args, **draw.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return heard
