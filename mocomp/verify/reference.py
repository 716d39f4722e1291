"""The original model, run by transformers in eager mode, with what its routers chose written down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mocomp.models.canonical import is_experts
from mocomp.models.interface import Interface
from mocomp.models.source import Source
from mocomp.verify.inputs import Case, arrays, cases


@dataclass
class Routed:
    """One layer's experts in one run: x [T, H], ids [T, K], weights [T, K], y [T, H]."""

    x: np.ndarray
    ids: np.ndarray
    weights: np.ndarray
    y: np.ndarray


@dataclass
class Observation:
    """Outputs of a case's last call by name, the cache after it, and each mixture's routing in that call and before."""

    outputs: dict[str, np.ndarray]
    present: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    routed: dict[str, Routed] = field(default_factory=dict)
    routed_before: dict[str, Routed] = field(default_factory=dict)


@dataclass
class Baseline:
    """All that the original was asked, so that it can be let go before the artifact is loaded: each case with its inputs
    and what was observed, and each layer's experts on a choice of ours that reaches every one of them."""

    interface: Interface
    experts: dict[str, int]
    runs: list[tuple[Case, dict[str, np.ndarray], Observation]]
    forced: dict[str, Routed]


class Reference:
    """A model as transformers loads it: eager attention, eager experts, float32."""

    def __init__(self, model: Any, interface: Interface):
        self.model, self.interface = model, interface
        self.experts = {name: module.num_experts for name, module in model.named_modules() if is_experts(module)}

    @classmethod
    def load(cls, source: Source, interface: Interface) -> Reference:
        model = source.model_class.from_pretrained(
            source.directory,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
            trust_remote_code=source.trust_remote_code,
        )
        return cls(model.eval(), interface)

    def observe(self, case: Case, arrays: dict[str, np.ndarray]) -> Observation:
        """Run a case as its description says: what is past in a call of its own, then the rest."""
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        cache, before = None, {}
        with torch.no_grad():
            if case.past:
                first = {name: tensor[:, : case.past] for name, tensor in tensors.items()}
                with self._recorded() as before:
                    cache = self.model(**first, use_cache=True).past_key_values
            now = {n: t[:, case.past :] if n in ("input_ids", "token_type_ids") else t for n, t in tensors.items()}
            if self.interface.past:
                now |= {"use_cache": True} | ({"past_key_values": cache} if cache is not None else {})
            with self._recorded() as routed:
                result = self.model(**now)
        outputs = {n: v.numpy() for n, v in result.items() if isinstance(v, torch.Tensor) and n in self.interface.outputs}
        present = []
        if self.interface.past:
            present = [(layer.keys.numpy(), layer.values.numpy()) for layer in result.past_key_values.layers]
        return Observation(outputs, present, routed, before)

    def run_experts(self, layer: str, x: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> Routed:
        """One layer's experts alone on x [T, H], with ids and weights [T, K] of the caller's choice."""
        module = self.model.get_submodule(layer)
        with torch.no_grad():
            y = module(*(torch.from_numpy(array) for array in (x, ids, weights)))
        return Routed(x, ids, weights, y.numpy())

    def baseline(self, longest: int | None, seed: int = 0) -> Baseline:
        """Observe every case that this kind of model calls for; `longest` is the end of its table of positions."""
        runs = []
        for case in cases(self.interface, longest):
            given = arrays(self.interface, case, seed)
            runs.append((case, given, self.observe(case, given)))
        routed = {layer: max((seen.routed[layer] for _, _, seen in runs), key=lambda r: len(r.x)) for layer in self.experts}
        return Baseline(
            self.interface, self.experts, runs, {layer: self._every_expert(layer, r) for layer, r in routed.items()}
        )

    def _every_expert(self, layer: str, routed: Routed) -> Routed:
        """A layer's experts on tokens that it saw, sent round so that each expert gets some, routed there or not."""
        experts, k = self.experts[layer], routed.ids.shape[1]
        tokens = np.resize(routed.x, (max(experts, len(routed.x)), routed.x.shape[1]))
        ids = (np.arange(len(tokens))[:, None] + np.arange(k)[None, :] * max(experts // k, 1)) % experts
        weights = np.random.default_rng(0).uniform(0.1, 1.0, ids.shape).astype(np.float32)
        return self.run_experts(layer, tokens, ids, weights)

    @contextmanager
    def _recorded(self) -> Iterator[dict[str, Routed]]:
        routed: dict[str, Routed] = {}
        hooks = []
        for name, module in self.model.named_modules():
            if name in self.experts:
                hooks.append(module.register_forward_hook(_recorder(name, routed), with_kwargs=True))
        try:
            yield routed
        finally:
            for hook in hooks:
                hook.remove()


def _recorder(name: str, routed: dict[str, Routed]) -> Any:
    def record(module: Any, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
        x, ids, weights = (*args, *kwargs.values())[:3]
        routed[name] = Routed(*(t.detach().clone().numpy() for t in (x, ids, weights, output)))

    return record
