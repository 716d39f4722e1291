"""The original in torch on the CPU: as transformers runs it, or compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mocomp.bench.worker import Timed
from mocomp.models.source import Source, open_source

SHAPES = 64
"""Shapes that one function may be compiled for; torch's own limit is lower, and beyond it it goes on uncompiled."""


class TorchSubject(Timed):
    """The model of `source` in float32; with `compiled`, through torch.compile, for each shape on its own.

    Attention is what transformers takes by default. Experts are run one after the other in eager mode, and compiled in the
    way that transformers takes by default, since no compiler follows the other. What has mixtures of ours is filled by mocomp.
    """

    def __init__(self, request: dict[str, Any]):
        torch.set_num_threads(request["threads"])
        source = open_source(request["source"], request["trust_remote_code"], request["task"])
        self.model = load(source, {} if request["compiled"] else {"experts_implementation": "eager"})
        self.call: Callable[..., Any] = self.model
        config = self.model.config
        attention, experts = (getattr(config, f"_{part}_implementation", None) for part in ("attn", "experts"))
        told = [f"{attention} attention"] if attention else []
        self.words = ", ".join([f"torch {torch.__version__}", *told, *([f"{experts} experts"] if experts else [])])
        if request["compiled"]:
            torch._dynamo.config.recompile_limit = SHAPES
            self.call = torch.compile(self.model, dynamic=False)

    def ready(self, file: str) -> Callable[[], Callable[[], Any]]:
        """The arrays of `file`; the cache is made anew for every run, which adds to it."""
        with np.load(file, allow_pickle=False) as given:
            tensors = {name: torch.from_numpy(array) for name, array in given.items()}
        cached = [tensors.pop(name) for name in list(tensors) if name.startswith("past_key_values")]
        filled = self._filled(cached)

        def make() -> Callable[[], Any]:
            arguments = dict(tensors)
            if filled is not None:
                arguments |= {"past_key_values": _apart(filled), "use_cache": True}

            @torch.inference_mode()
            def run() -> Any:
                return self.call(**arguments)

            return run

        return make

    def _filled(self, cached: list[torch.Tensor]) -> Any:
        """A cache of keys and values in turn, None for a model that has none."""
        if not cached:
            return None
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        if cached[0].shape[2]:
            for layer in range(len(cached) // 2):
                cache.update(cached[2 * layer], cached[2 * layer + 1], layer)
        return cache


def load(source: Source, chosen: dict[str, Any]) -> Any:
    """The model in float32, with what is `chosen` of transformers' implementations."""
    if source.plan is not None or source.quantization is not None:
        from mocomp.nn.model import assemble
        from mocomp.weights.checkpoint import Checkpoint

        with Checkpoint(source.directory) as checkpoint:
            return assemble(source, checkpoint)
    told = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": source.trust_remote_code}
    return source.model_class.from_pretrained(source.directory, **told, **chosen).eval()


def _apart(cache: Any) -> Any:
    """A cache of the same tensors that can be added to without the other noticing."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other
