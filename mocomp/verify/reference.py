"""The original model, run by transformers in eager mode, with what its routers chose written down."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import numpy as np
import torch

from mocomp import terminal
from mocomp.models import canonical
from mocomp.models.interface import Interface, is_per_token, tensors_of
from mocomp.models.modality_blocks import mixtures, pool_of
from mocomp.models.source import Source
from mocomp.nn.mixture import Experts
from mocomp.nn.model import assemble
from mocomp.nn.on_disk import on_disk
from mocomp.verify.inputs import Case, Drawn, Takes, arrays, cases
from mocomp.verify.memory import WHILE_LOADING
from mocomp.weights.checkpoint import Checkpoint


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
        self.mixtures = mixtures(model) | {n: [m] for n, m in model.named_modules() if isinstance(m, Experts)}
        self.experts = {name: sum(e.num_experts for e in stack) for name, stack in self.mixtures.items()}

    @classmethod
    def load(cls, source: Source, interface: Interface, memory: int | None = None) -> Reference:
        """The model of a source. What has mixtures of ours, or weights that are quantised already, is filled by mocomp: for
        the latter transformers would want a GPU, or a package for each scheme; the reference are the floats they stand for.
        Where `memory` bytes do not hold it, its weights are read from disk when they are used, to the same numbers.
        """
        with Checkpoint(source.directory) as checkpoint:  # what is damaged is refused here, before transformers sees it
            if memory is not None and _while_loading(checkpoint) > memory:
                return cls(on_disk(source, memory), interface)
            if source.plan is not None or source.quantization is not None:
                return cls(assemble(source, checkpoint), interface)
        model = source.model_class.from_pretrained(
            source.directory,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
            trust_remote_code=source.trust_remote_code,
            use_safetensors=True,
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
            now = {n: t[:, case.past :] if is_per_token(n) else t for n, t in tensors.items()}
            if self.interface.past:
                now |= {"use_cache": True} | ({"past_key_values": cache} if cache is not None else {})
            with self._recorded() as routed:
                result = self.model(**now)
        outputs = {n: v.numpy() for n, v in tensors_of(result).items() if n in self.interface.outputs}
        present = []
        if self.interface.past:
            present = [(layer.keys.numpy(), layer.values.numpy()) for layer in result.past_key_values.layers]
        return Observation(outputs, present, routed, before)

    def run_experts(self, layer: str, x: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> Routed:
        """One layer's experts alone on x [T, H], with ids and weights [T, K] of the caller's choice."""
        tokens, chosen, shares = (torch.from_numpy(array) for array in (x, ids, weights))
        y, first = torch.zeros_like(tokens), 0
        for experts in self.mixtures[layer]:
            own = chosen - first
            inside = (own >= 0) & (own < experts.num_experts)
            with torch.no_grad():
                y += experts(tokens, own.where(inside, 0), shares.where(inside, 0.0))
            first += experts.num_experts
        return Routed(x, ids, weights, y.numpy())

    def put_experts(self, layer: str, expert: int, w_in: np.ndarray | None, w_out: np.ndarray | None) -> None:
        """Give one expert of a layer other weights: w_in [F or 2F, H], w_out [H, F]; None leaves what it has.

        Of several pools in one bank the narrower experts are filled up there; what fills them up is nobody's here.
        """
        pools = iter(self.mixtures[layer])
        experts = next(pools)
        while expert >= experts.num_experts:
            expert -= experts.num_experts
            experts = next(pools)
        first, second = (None if w is None else torch.from_numpy(w) for w in (w_in, w_out))
        if isinstance(experts, Experts):
            for weight, own in ((first, experts.w_in), (second, experts.w_out)):
                own.data[expert] = own.data[expert] if weight is None else weight
            return
        width = canonical.bank(experts).w_out.shape[2]
        if first is not None:
            first = torch.cat([part[:width] for part in first.chunk(2 if experts.has_gate else 1)])
        canonical.put(experts, expert, first, None if second is None else second[:, :width])

    def round_to(self, dtype: str, within: str = "") -> None:
        """Round each parameter of a module to float16 or bfloat16, and compute with it in float32. Buffers, such as the biases
        of a router's choice and the frequencies of rotary angles, are read in float32 by all who run models in 16 bits, and
        stay."""
        for parameter in self.model.get_submodule(within).parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype)).to(torch.float32)

    def put_linear(self, name: str, weight: np.ndarray) -> None:
        """Give a linear layer another weight [N, K]; what it was tied to keeps the old one."""
        owner = self.model.get_submodule(name.removesuffix(".weight"))
        owner.weight = torch.nn.Parameter(torch.from_numpy(weight), requires_grad=False)

    def baseline(
        self,
        longest: int | None,
        seed: int = 0,
        drawn: Drawn | None = None,
        label: str = "running the original",
        takes: Takes | None = None,
    ) -> Baseline:
        """Observe every case that this kind of model calls for; `longest` is the end of its table of positions, `takes` which
        calls the artifact runs."""
        wanted, runs = cases(self.interface, longest, takes), []
        with terminal.progress(label, len(wanted), "cases") as advance:
            for case in wanted:
                given = arrays(self.interface, case, seed, drawn)
                runs.append((case, given, self.observe(case, given)))
                advance(1)
        routed = {layer: max((seen.routed[layer] for _, _, seen in runs), key=lambda r: len(r.x)) for layer in self.experts}
        forced = {layer: self.every_expert(layer, r.x, r.ids.shape[1]) for layer, r in routed.items()}
        return Baseline(self.interface, self.experts, runs, forced)

    def every_expert(self, layer: str, x: np.ndarray, k: int) -> Routed:
        """A layer's experts on tokens x [T, H] that it saw, sent to K of them so that each gets some, routed there or not."""
        experts = self.experts[layer]
        tokens = np.resize(x, (max(experts, len(x)), x.shape[1]))
        ids = (np.arange(len(tokens))[:, None] + np.arange(k)[None, :] * max(experts // k, 1)) % experts
        weights = np.random.default_rng(0).uniform(0.1, 1.0, ids.shape).astype(np.float32)
        return self.run_experts(layer, tokens, ids, weights)

    @contextmanager
    def _recorded(self) -> Iterator[dict[str, Routed]]:
        """What the mixtures do meanwhile, in this thread: in others the same model may be running on other inputs."""
        routed: dict[str, Routed] = {}
        hooks = [hook for name in self.experts for hook in self._watch(name, routed)]
        try:
            yield routed
        finally:
            for hook in hooks:
                hook.remove()

    def _watch(self, name: str, routed: dict[str, Routed]) -> list[Any]:
        """Hooks that put what a mixture does into `routed`; pools of experts are seen as the one bank that they become."""
        stack, parts = self.mixtures[name], {}
        if len(stack) == 1:
            return [stack[0].register_forward_hook(_recorder(name, routed), with_kwargs=True)]
        hooks = [experts.register_forward_hook(_recorder(i, parts), with_kwargs=True) for i, experts in enumerate(stack)]

        thread = get_ident()

        def merge(block: Any, args: tuple, kwargs: dict, output: Any) -> None:
            if get_ident() != thread:
                return
            routed[name] = _merged(parts, pool_of(*args, **kwargs).numpy(), [experts.num_experts for experts in stack])
            parts.clear()

        return [*hooks, self.model.get_submodule(name).register_forward_hook(merge, with_kwargs=True)]


def _recorder(key: Any, routed: dict[Any, Routed]) -> Any:
    thread = get_ident()

    def record(module: Any, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
        if get_ident() != thread:
            return
        x, ids, weights = (*args, *kwargs.values())[:3]
        routed[key] = Routed(*(t.detach().clone().numpy() for t in (x, ids, weights, output)))

    return record


def _merged(parts: dict[int, Routed], pools: np.ndarray, sizes: list[int]) -> Routed:
    """What each pool did with its own tokens, as one mixture: `pools` [T] says whose each token is, ids count through."""
    seen = next(iter(parts.values()))
    whole = Routed(*(np.zeros((len(pools), a.shape[1]), a.dtype) for a in (seen.x, seen.ids, seen.weights, seen.y)))
    for i, part in parts.items():
        own = pools == i
        whole.x[own], whole.ids[own] = part.x, part.ids + sum(sizes[:i])
        whole.weights[own], whole.y[own] = part.weights, part.y
    return whole


def _while_loading(checkpoint: Checkpoint) -> int:
    """Bytes that a model takes at most while it is loaded whole."""
    return int(WHILE_LOADING * 4 * sum(math.prod(entry.shape) for entry in checkpoint.entries.values()))
