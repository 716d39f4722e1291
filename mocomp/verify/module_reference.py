"""The user's module as it is, run on inputs by name, with what its mixtures chose written down.

What a block chose is told by its canonical form, which was proven to be the block, on what came into the block; what comes out
is the block's own. Dimension letters: T tokens, K chosen per token, H hidden.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mocomp.ir.rewrite import MOCOMP
from mocomp.models.recognition import Found
from mocomp.models.user.loading import Looked
from mocomp.models.user.running import run
from mocomp.models.user.source import ModuleSource
from mocomp.models.user.tracing import call_of
from mocomp.targets import Arrays
from mocomp.verify.reference import Routed


@dataclass
class Given:
    """One call of `mocomp::experts`: x [T, H], ids and weights [T, K], the weights of the experts, the kind, and y [T, H]."""

    x: Tensor
    ids: Tensor
    weights: Tensor
    bank: tuple[Any, ...]
    y: Tensor

    def routed(self) -> Routed:
        """As parity compares it."""
        x, ids, weights, y = (t.detach().clone().numpy() for t in (self.x, self.ids, self.weights, self.y))
        return Routed(x, ids, weights, y)


@dataclass
class Seen:
    """The outputs of a run by name, and what each mixture did, by the name of its block, as `call_of` has it."""

    outputs: Arrays
    given: dict[str, Given] = field(default_factory=dict)


Replaced = dict[int, tuple[np.ndarray | None, np.ndarray | None]]
"""Other weights (w_in [F or 2F, H], w_out [H, F]) of experts, by their numbers."""


class _Experts(TorchDispatchMode):
    """Remembers the calls of `mocomp::experts`, with other weights where some are to be `replaced`."""

    def __init__(self, replaced: Replaced | None = None):
        super().__init__()
        self.replaced, self.calls = replaced or {}, []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is not MOCOMP.experts.default:
            return func(*args, **(kwargs or {}))
        x, ids, weights, w_in, b_in, w_out, b_out, spec = args
        if self.replaced:
            w_in, w_out = w_in.clone(), w_out.clone()
        for expert, (first, second) in self.replaced.items():
            if first is not None:
                w_in[expert] = torch.from_numpy(first)
            if second is not None:
                w_out[expert] = torch.from_numpy(second)
        bank = (w_in, b_in, w_out, b_out, spec)
        y = func(x, ids, weights, *bank)
        self.calls.append(Given(x, ids, weights, bank, y))
        return y


class ModuleReference:
    """A module, in float32, beside which an artifact is judged. Nothing of the user's own module is changed: `put_*` and
    `round_to` change a copy."""

    def __init__(self, source: ModuleSource, looked: Looked):
        self.source, self.looked = source, looked
        self.found = {found.name: found for found in looked.recognition.blocks}
        self.experts: dict[str, int] = {}
        self._replaced: dict[str, Replaced] = {}
        self._copied = False

    def observe(self, inputs: Mapping[str, Tensor]) -> Seen:
        """Run the module, and beside each recognised block its canonical form."""
        given: dict[str, Given] = {}
        with self._watched(given):
            outputs = run(self.source, inputs)
        self.experts |= {name: one.bank[0].shape[0] for name, one in given.items()}
        return Seen({name: tensor.numpy() for name, tensor in outputs.items()}, given)

    def forced(self, one: Given) -> Routed:
        """A mixture's experts on tokens that it saw, sent to K of them so that each gets some, routed there or not."""
        experts, k = one.bank[0].shape[0], one.ids.shape[1]
        tokens = torch.from_numpy(np.resize(one.x.numpy(), (max(experts, len(one.x)), one.x.shape[1])))
        ids = (torch.arange(len(tokens))[:, None] + torch.arange(k)[None, :] * max(experts // k, 1)) % experts
        random = np.random.default_rng(0)
        weights = torch.from_numpy(random.uniform(0.1, 1.0, tuple(ids.shape)).astype(np.float32))
        y = MOCOMP.experts(tokens, ids, weights, *one.bank)
        return Given(tokens, ids, weights, one.bank, y).routed()

    def put_experts(self, layer: str, expert: int, w_in: np.ndarray | None, w_out: np.ndarray | None) -> None:
        """Give one expert of a layer other weights: w_in [F or 2F, H], w_out [H, F]; None leaves what it has."""
        self._replaced.setdefault(layer, {})[expert] = (w_in, w_out)

    def put_linear(self, name: str, weight: np.ndarray) -> None:
        """Give a linear layer another weight [N, K]; what it was tied to keeps the old one."""
        owner = self._copy().get_submodule(name.removesuffix(".weight"))
        owner.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)

    def round_to(self, dtype: str, within: str = "") -> None:
        """Round each parameter to float16 or bfloat16, and compute with it in float32."""
        if dtype == "float32":
            return
        for parameter in self._copy().get_submodule(within).parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype)).to(torch.float32)

    def _copy(self) -> nn.Module:
        if not self._copied:
            self.source, self._copied = self.source.with_module(copy.deepcopy(self.source.module)), True
        return self.source.module

    @contextmanager
    def _watched(self, given: dict[str, Given]) -> Iterator[None]:
        """Hooks on the recognised blocks; one whose experts were given other weights gives what its canonical form does."""
        module = self.source.module
        hooks = [
            module.get_submodule(name).register_forward_hook(self._recorder(found, given), with_kwargs=True)
            for name, found in self.found.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _recorder(self, found: Found, given: dict[str, Given]) -> Callable[..., Any]:
        calls: Counter[str] = Counter()

        def record(block: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
            replaced = self._replaced.get(found.name)
            with _Experts(replaced) as seen:
                result = found.form.forward(block, args, kwargs)
            for call in seen.calls:
                calls[found.name] += 1
                given[call_of(found.name, calls[found.name])] = call
            return result if replaced else output

        return record
