"""The target that a name means, set up for where its artifact is to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mocomp.capability import Gap, blocking
from mocomp.deployment import Deployment
from mocomp.errors import MissingDependency, Unsupported, Usage
from mocomp.models.source import directory_of
from mocomp.registry import discover
from mocomp.targets import Target
from mocomp.weights.identity import Command


def open_target(name: str, deployment: Deployment | None = None) -> Target:
    """The target of that name. Raises Usage for one that is none or is asked for what it has not, MissingDependency for one
    that cannot run here."""
    target = named_target(name, deployment)
    if (reason := target.missing()) is not None:
        raise MissingDependency(reason.split(": ")[0], where=f"target {name}", fix=reason.partition(": ")[2])
    return target


def named_target(name: str, deployment: Deployment | None = None) -> Target:
    """The target of that name, whether it can run here or not. Raises Usage for one that is none or is asked for what it has
    not."""
    known = discover("mocomp.targets", "Target")
    if name not in known:
        raise Usage(f"no target {name!r}; they are {', '.join(known)}")
    return known[name](deployment)


def as_recorded(data: dict[str, Any], changed: Mapping[str, Any] | None = None) -> Deployment:
    """What a report says of where its artifact is to run, but for what is `changed`, and without what its target does not
    read: older versions took that too."""
    kind = discover("mocomp.targets", "Target").get(data["target"]["target"], Target)
    recorded = kind.reading(Deployment.of(data["options"]))  # type: ignore[attr-defined]
    return dataclasses.replace(recorded, **changed or {})


def reopen(data: dict[str, Any], timed: bool = False) -> Target:
    """The target of the artifact that a report tells of: on the device that it was made for where that is here, else emulated
    on the CPU, unless it is to be `timed`. Raises what `open_target` raises."""
    name = data["target"]["target"]
    try:
        return open_target(name, as_recorded(data, {"emulate": False}))
    except MissingDependency as missing:
        if timed:
            raise
        try:
            return open_target(name, as_recorded(data, {"emulate": True}))
        except Usage:  # it runs on the CPU as it is
            raise missing from None


def refuse(gaps: list[Gap]) -> None:
    """Raises Unsupported with everything that keeps the target from taking the program, if there is anything."""
    if found := blocking(gaps):
        raise Unsupported("the target cannot take this program:", gaps=found)


def as_asked(name: str, options: Any, *sources: str) -> Command:
    """A command as it was asked for, which goes on with what it wrote before."""
    return Command(name, options, sources, directory_of)
