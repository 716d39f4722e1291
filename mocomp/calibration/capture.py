"""What the blocks and the experts of a model see when it runs over data.

Dimension letters: T tokens, H hidden, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mocomp import terminal
from mocomp.calibration.data import Data, Row, data_for, modality_of
from mocomp.calibration.sample import Sample, Seen
from mocomp.errors import BadInput
from mocomp.models.interface import Interface, tensors_of
from mocomp.models.source import Source
from mocomp.nn.mixture import TokenModality
from mocomp.plans.modality import Modality
from mocomp.plans.plan import ModelPlan
from mocomp.resources import Resources
from mocomp.verify.reference import Reference

TOKENS = 4096
"""Tokens that are kept of each block, however many the data has."""


def observed(
    source: Source,
    interface: Interface,
    names: list[str],
    file: str,
    seed: int,
    modality: Modality | None = None,
    memory: int | None = None,
) -> tuple[Mapping[str, Seen], list[str]]:
    """(what came into the modules `names` of the source, notes for the user), on the data of `file` or random data."""
    data = data_for(source, interface, file, seed, ModelPlan(modality))
    return capture(loaded(source, interface, data, memory), data, names, modality, seed=seed), data.notes


def loaded(source: Source, interface: Interface, data: Data, memory: int | None = None) -> Reference:
    """The model, to run on data, with about `memory` bytes of its weights at most in memory at a time."""
    terminal.say(f"calibration: running the model on {len(data.rows)} rows")
    return Reference.load(source, interface, Resources().nbytes() if memory is None else memory)


class Samples(Mapping[str, Seen]):
    """What came to each of some modules; read from disk each time that it is asked for, one at a time in memory."""

    def __init__(self, samples: dict[str, Sample]):
        self.samples = samples

    def __getitem__(self, name: str) -> Seen:
        return self.samples[name].seen  # type: ignore[return-value]

    def __iter__(self) -> Iterator[str]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)


def capture(
    reference: Reference, data: Data, names: list[str], modality: Modality | None = None, limit: int = TOKENS, seed: int = 0
) -> Mapping[str, Seen]:
    """What came into the modules `names`: of all tokens of the data a sample of at most `limit`, the same for each module.

    Raises BadInput when no token comes to one of them.
    """
    grouped = modality is not None and modality.per_token
    context = TokenModality(modality)
    samples = {name: Sample(limit, seed) for name in names}

    def watch(name: str) -> Callable[..., None]:
        def record(module: Any, args: tuple, kwargs: dict) -> None:
            x = next(iter((*args, *kwargs.values()))).detach()
            samples[name].add(x.reshape(-1, x.shape[-1]).float(), context.of(x) if grouped else None)

        return record

    hooks = [reference.model.get_submodule(n).register_forward_pre_hook(watch(n), with_kwargs=True) for n in names]
    for row in _run(reference, data, hooks):
        context.ids = modality_of(row, modality)
    unseen = [name for name in names if not samples[name].added]
    if unseen:
        raise BadInput(f"no token of the calibration data comes to {unseen[0]}")
    return Samples(samples)


def usage(reference: Reference, data: Data) -> dict[str, torch.Tensor]:
    """How much the experts of each mixture are used: their shares [E] of all the weight that its router gives."""
    given = {name: torch.zeros(reference.experts[name], dtype=torch.float64) for name in reference.mixtures}

    def add(name: str, call: Routing) -> None:
        given[name].index_add_(0, call.ids.reshape(-1), call.weights.reshape(-1).double())

    for _ in watched(reference, data, add):
        pass
    alone = [name for name, stack in reference.mixtures.items() if len(stack) == 1]
    return {name: (given[name] / given[name].sum().clamp(min=1e-30)).float() for name in alone}


@dataclass(frozen=True)
class Routing:
    """What the experts of a mixture are called with: x [T, H], ids [T, K] of the whole bank, weights [T, K].

    `pool` says which of several pools of experts in one bank was called.
    """

    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    pool: int = 0


def watched(reference: Reference, data: Data, see: Callable[[str, Routing], None]) -> Iterator[Row]:
    """Give each row before the model is run on it, and to `see` the name of each mixture with what its experts are given."""

    def watch(name: str, pool: int, first: int) -> Callable[..., None]:
        def record(module: Any, args: tuple, kwargs: dict) -> None:
            x, ids, weights = (*args, *kwargs.values())[:3]
            see(name, Routing(x, ids + first, weights, pool))

        return record

    hooks = []
    for name, stack in reference.mixtures.items():
        first = 0
        for pool, experts in enumerate(stack):
            hooks.append(experts.register_forward_pre_hook(watch(name, pool, first), with_kwargs=True))
            first += experts.num_experts
    return _run(reference, data, hooks)


def outputs_of(reference: Reference, row: Row) -> dict[str, torch.Tensor]:
    """What the model gives for one row, without caches, by name."""
    known = {name: value for name, value in row.items() if name in reference.interface.inputs}
    with torch.no_grad():
        outputs = reference.model(**known, **({"use_cache": False} if reference.interface.past else {}))
    return {name: value for name, value in tensors_of(outputs).items() if name in reference.interface.outputs}


def _run(reference: Reference, data: Data, hooks: list[Any]) -> Iterator[Row]:
    """Give each row before the model is run on it; the hooks are removed at the end."""
    try:
        for row in data.rows:
            yield row
            outputs_of(reference, row)
    finally:
        for hook in hooks:
            hook.remove()
