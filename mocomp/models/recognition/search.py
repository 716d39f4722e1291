"""Every mixture of a module: candidates, smallest blocks around them, and the proof of each."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from torch import Tensor, nn

from mocomp.models.recognition import dispatched, feed_forward, mixture, nested
from mocomp.models.recognition.calls import Call, Port, leaves, ports, record
from mocomp.models.recognition.candidates import ExpertSet, expert_sets, untie
from mocomp.models.recognition.canonical_block import Mixture
from mocomp.models.recognition.contract import Found, Missed, Recognition
from mocomp.models.recognition.feed_forward import Kind
from mocomp.models.recognition.logits import own_tensors
from mocomp.models.recognition.mixture import PROVEN
from mocomp.models.recognition.probing import NotAMixture, copied, in_float64, widen
from mocomp.models.recognition.rounding import leave_what_rounds
from mocomp.models.recognition.routing import Routing

HIGHEST = 4
"""How many modules above the experts are tried as the block that they belong to."""

ALIKE = 2
"""How many blocks of one class and one set of settings are refused before the rest of them is not tried."""

_Prove = Callable[[nn.Module, Call, Port, ExpertSet, Kind | None, Routing | None], tuple[Mixture, float]]


@dataclass
class _Memory:
    """What blocks of a class turned out to be, so that the next of them is proven at the first try."""

    kinds: dict[Any, Kind] = field(default_factory=dict)
    routings: dict[Any, Routing] = field(default_factory=dict)
    missed: dict[Any, list[NotAMixture]] = field(default_factory=lambda: defaultdict(list))


def recognise(module: nn.Module, calls: list[dict[str, Tensor]]) -> Recognition:
    """The mixtures of `module`, proven on a copy; `calls` are inputs by name on which the module runs.

    What only looks like one, or like one that mocomp does not know, is among the refused, with the nearest miss.
    """
    sets = expert_sets(module)
    whole = nested.feed_forwards(module)
    recognition = Recognition()
    if not sets and not whole:
        return recognition
    with in_float64():
        try:
            trial = copied(module)
            for experts in sets:
                untie(trial, experts)
            names = {name for experts in sets for name in _above(experts.holder)}
            seen = record(trial, calls, names | {one.holder for one in whole})
        except Exception as error:  # whatever the user's code raises in float64
            first = str(error).partition("\n")[0]
            recognition.refused += [Missed("", f"it cannot be copied and run in float64: {first}")] if sets else []
            return recognition
        memory = _Memory()
        for readings in _readings(sets):
            if not any(_belongs(readings[0], found) for found in recognition.blocks):
                _prove(trial, readings, seen, memory, recognition)
        _prove_nested(trial, whole, seen, memory, recognition)
        _leave_what_is_read(trial, calls, recognition)
    leave_what_rounds(module, seen, recognition)
    order = [name for name, _ in module.named_modules()]
    recognition.blocks.sort(key=lambda found: order.index(found.name))
    return recognition


def _readings(sets: list[ExpertSet]) -> list[list[ExpertSet]]:
    """Sets of the same tensors, or nearly: which of them are the experts', and how many experts they are, is open."""
    found = defaultdict(list)
    for experts in sets:
        found[experts.paths()[0]].append(experts)
    return list(found.values())


def _above(name: str) -> list[str]:
    """A module's name, then those of the modules that it is in, the nearest first."""
    parts = name.split(".") if name else []
    return [".".join(parts[:i]) for i in range(len(parts), max(-1, len(parts) - HIGHEST), -1)]


def _belongs(experts: ExpertSet, found: Found) -> bool:
    """Whether experts, or some of their tensors, are those of a block that was found."""
    own: ExpertSet = found.form.experts  # type: ignore[attr-defined]
    prefix = f"{found.name}." if found.name else ""
    return bool({f"{prefix}{path}" for path in own.paths()} & set(experts.paths()))


def _prove(
    trial: nn.Module,
    readings: list[ExpertSet],
    seen: dict[str, list[Call]],
    memory: _Memory,
    recognition: Recognition,
) -> None:
    """Add to the recognition what the experts are part of, or what they missed."""
    before = {found.name for found in recognition.blocks}
    missed: list[tuple[int, float, Missed]] = []
    for attempt, experts in product((_mixture, _dispatched), readings):
        for name in _above(experts.holder):
            if name in before or not seen[name]:
                continue
            try:
                recognition.blocks.append(attempt(trial, name, seen[name][0], experts, memory))
                return
            except NotAMixture as reason:
                missed.append((-reason.depth, reason.error, Missed(name, str(reason), reason.error)))
    if not any(_looks_routed(trial, experts) for experts in readings):
        return
    unreached = Missed(readings[0].holder, "the example inputs do not reach it")
    recognition.refused.append(min(missed, key=lambda one: one[:2])[2] if missed else unreached)


def _prove_nested(
    trial: nn.Module, whole: list[ExpertSet], seen: dict[str, list[Call]], memory: _Memory, recognition: Recognition
) -> None:
    """Add to the recognition the blocks of a router and one feed-forward, or what those missed that looked nested."""
    missed: dict[str, Missed] = {}
    for one in whole:
        around = any(path in missed for path in one.paths())  # of a block that has been told of
        if around or not seen[one.holder] or any(_belongs(one, found) for found in recognition.blocks):
            continue
        try:
            recognition.blocks.append(_mixture(trial, one.holder, seen[one.holder][0], one, memory, nested.prove))
        except NotAMixture as reason:
            told = Missed(one.holder, str(reason), reason.error)
            missed |= dict.fromkeys(one.paths() if reason.depth else [], told)
    found = {block.name for block in recognition.blocks}
    recognition.refused = [told for told in recognition.refused if told.name not in found]
    recognition.refused += dict.fromkeys(missed.values())


def _looks_routed(trial: nn.Module, experts: ExpertSet) -> bool:
    """Whether something near the experts has a size of their number, as a router has."""
    for name in _above(experts.holder)[:2]:
        inside = experts.within(name)
        near = trial.get_submodule(name).named_parameters()
        if any(experts.count in p.shape and not inside.owns(n) for n, p in near):
            return True
    return False


def _mixture(
    trial: nn.Module, name: str, call: Call, experts: ExpertSet, memory: _Memory, prove: _Prove = mixture.prove
) -> Found:
    """The block `name` as a router over the experts, plus a rest."""
    block, inside = trial.get_submodule(name), experts.within(name)
    key = (type(block), inside)
    earlier = memory.missed[key, _settings(block, inside)]
    if len(earlier) == ALIKE:
        raise earlier[0]
    missed = NotAMixture("it does not map hidden states to hidden states")
    for port in ports(call):
        try:
            form, error = prove(block, call, port, inside, memory.kinds.get(key), memory.routings.get(key))
        except NotAMixture as reason:
            missed = max(missed, reason, key=lambda one: one.depth)
            continue
        memory.kinds[key], memory.routings[key] = form.kind, form.routing
        return Found(name, form.routing.router, form.kind.expert, error, "mixture", form)
    earlier.append(missed)
    raise missed


def _settings(block: nn.Module, experts: ExpertSet) -> frozenset[tuple[str, str, Any]]:
    """The shapes and constants that tell two blocks of one class apart, but for which layer they are."""
    constants = {
        (name, attribute, value)
        for name, module in block.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and not re.search("layer|index|idx|id$", attribute)
    }
    return frozenset(constants | {("", name, tensor.shape) for name, tensor in own_tensors(block, experts).items()})


def _dispatched(trial: nn.Module, name: str, call: Call, experts: ExpertSet, memory: _Memory) -> Found:
    """The block `name` as experts that are given their slices."""
    block, inside = trial.get_submodule(name), experts.within(name)
    kept = {path: value.clone() for path, value in feed_forward.values_of(block, inside).items()}
    key = (type(block), inside)
    missed = NotAMixture("it does not map hidden states to hidden states")
    for port in ports(call):
        try:
            form, error = dispatched.recognise(block, call, port, inside, memory.kinds.get(key))
        except NotAMixture as reason:
            missed = reason
            continue
        finally:
            feed_forward.put(block, kept)
        memory.kinds[key] = form.kind
        return Found(name, None, form.kind.expert, error, "dispatched", form)
    raise missed


def _leave_what_is_read(trial: nn.Module, calls: list[dict[str, Tensor]], recognition: Recognition) -> None:
    """Take back blocks until the whole model gives with them what it gives without.

    A block's canonical form gives no number where the block gave something besides hidden states, so it is seen here
    whether anybody reads that.
    """
    expected = _outputs(trial, calls)
    while recognition.blocks:
        try:
            with recognition.install(trial):
                actual = _outputs(trial, calls)
        except Exception as reason:  # whatever the user's code raises on what it did not expect
            error, why = float("inf"), str(reason)
        else:
            error = max((feed_forward.relative(a, e) for a, e in zip(actual, expected, strict=True)), default=0.0)
            why = f"the model's outputs are off by {error:.1e}"
        if error < 10 * PROVEN:
            return
        left = next((one for one in recognition.blocks if _gives_more(one)), recognition.blocks[-1])
        recognition.blocks.remove(left)
        reason = f"with its canonical form in place {why}: the model reads more of it than hidden states"
        recognition.refused.append(Missed(left.name, reason, error))


def _gives_more(found: Found) -> bool:
    return any(not aside.logits and aside.constant != aside.constant for aside in getattr(found.form, "asides", {}).values())


def _outputs(trial: nn.Module, calls: list[dict[str, Tensor]]) -> list[Tensor]:
    given = [trial(**{name: widen(value) for name, value in call.items()}) for call in calls]
    values = [value for one in given for value in leaves(one) if isinstance(value, Tensor)]
    return [value.double() for value in values if value.numel()]
