"""Each block that a checkpoint command made beside the one that it made it of, alone, with the weights that were written.

So no model has to be in memory, nor a layer: a weight is read when a block computes with it.
Dimension letters: T tokens, H hidden, E experts.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mocomp import terminal
from mocomp.errors import Unsupported
from mocomp.executors import Executor
from mocomp.models.modality_blocks import is_experts
from mocomp.models.source import Source, open_source
from mocomp.nn.mixture import Experts, Mixture, TokenModality
from mocomp.nn.on_disk import on_disk
from mocomp.plans.plan import MixturePlan
from mocomp.verify.measures import relative_error

FEWEST, MOST = 64, 1024
"""Tokens of a block: enough for its experts, as long as they are not too many."""


@dataclass(frozen=True)
class Model:
    """A model by its place on disk; whoever runs one of its blocks opens it there."""

    directory: Path
    trust_remote_code: bool
    task: str

    @staticmethod
    def of(source: Source, task: str) -> Model:
        """That of an opened source."""
        return Model(source.directory, source.trust_remote_code, task)


@dataclass(frozen=True)
class Site:
    """Where a block is in both models: the modules that are it, one after the other; H, and the E of the larger one."""

    modules: tuple[str, ...]
    hidden: int
    experts: int

    @staticmethod
    def of(plan: MixturePlan) -> Site:
        """That of a mixture, or of the block whose place it takes; experts that stand in a mixture are proven as all of it."""
        modules = (plan.enter, *plan.leave) if plan.replaces == "dense" else (plan.enter.rpartition(".")[0],)
        return Site(modules, plan.hidden, plan.experts)

    @property
    def tokens(self) -> int:
        return min(max(FEWEST, 8 * self.experts), MOST)


@dataclass(frozen=True)
class BlockProof:
    """A task: one block of two models on the same seeded tokens, which are of each of `modalities` in turn."""

    before: Model
    after: Model
    site: Site
    seed: int
    modalities: tuple[int, ...]
    nbytes: int

    def __call__(self) -> tuple[float, list[int]]:
        """(relative error of the new block, its experts that no token came to)."""
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(1, self.site.tokens, self.site.hidden, generator=generator)
        expected, _ = self._run(self.before, x)
        actual, idle = self._run(self.after, x)
        return relative_error(actual.numpy(), expected.numpy()), idle

    def _run(self, model: Model, x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """x [1, T, H] -> (what the block of a model gives [1, T, H], its idle experts)."""
        modules = [_opened(model).get_submodule(name) for name in self.site.modules]
        every, seen = set[int](), set[int]()
        of_tokens = torch.tensor(self.modalities).repeat(-(-x.shape[1] // len(self.modalities)))[None, : x.shape[1]]

        def see(experts: Any, args: tuple, kwargs: dict) -> None:
            _, ids, weights = (*args, *kwargs.values())[:3]
            every.update(range(experts.num_experts))
            seen.update(ids[weights != 0].tolist())

        parts = [part for module in modules for part in module.modules()]
        banks = [part for part in parts if isinstance(part, Experts) or is_experts(part)]
        hooks = [bank.register_forward_pre_hook(see, with_kwargs=True) for bank in banks]
        for part in parts:
            if isinstance(part, Mixture):
                part.modality = TokenModality(ids=of_tokens)
        with torch.no_grad():
            for module in modules:
                x = _first(_alone(module)(x))
        for hook in hooks:
            hook.remove()
        return x.reshape(1, -1, x.shape[-1]), sorted(every - seen)


def known_to_both(before: Source, after: Source) -> tuple[int, ...]:
    """The modalities of tokens that both models know, by number: a new one has no function of before."""
    plan = after.plan if before.plan is None else before.plan
    added = before.plan is None and plan is not None and any(m.replaces == "experts" for m in plan.mixtures)
    known = None if plan is None or added else plan.modality
    return tuple(range(1 if known is None else len(known.names)))


@dataclass
class Found:
    """The largest relative error of a block, and what the user should know."""

    error: float
    notes: list[str]


def prove_blocks(
    before: Model,
    after: Model,
    sites: Sequence[Site],
    executor: Executor,
    seed: int,
    modalities: Sequence[int] = (0,),
) -> Found:
    """All blocks in turn. Raises Unsupported for one that cannot be run alone."""
    worst, idle = 0.0, 0
    largest = {site.hidden: 4 * site.hidden * site.tokens * 8 for site in sites}
    tasks = [BlockProof(before, after, site, seed, tuple(modalities), largest[site.hidden]) for site in sites]
    with terminal.progress("proof, block by block", len(tasks), "blocks") as advance:
        for _, (error, unseen) in executor.run(tasks):
            worst, idle = max(worst, error), idle + len(unseen)
            advance(1)
    _opened.cache_clear()
    notes = [f"proof: block by block, each alone, on {max((site.tokens for site in sites), default=0)} seeded tokens"]
    return Found(worst, notes + [f"{idle} experts were chosen by no token of the proof"] * bool(idle))


@lru_cache(maxsize=2)
def _opened(model: Model) -> Any:
    return on_disk(open_source(str(model.directory), model.trust_remote_code, model.task), 0)


def _alone(module: torch.nn.Module) -> torch.nn.Module:
    """The module. Raises Unsupported where it wants to know more than x."""
    wanted = [p.name for p in inspect.signature(module.forward).parameters.values() if p.default is p.empty]
    positional = [name for name in wanted if name not in ("args", "kwargs", "choice_of_the_caller")]
    if len(positional) > 1:
        raise Unsupported(f"{type(module).__name__} wants {positional[1]} besides its input, so it cannot be run alone")
    return module


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output
