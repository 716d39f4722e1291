"""The target that a name means, set up for where its artifact is to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mocomp.capability import Gap, blocking
from mocomp.deployment import Deployment
from mocomp.errors import BadInput, MissingDependency, Unsupported, Usage
from mocomp.models.source import Source, directory_of, open_source
from mocomp.models.user.given import open_module
from mocomp.models.user.named import EXPORTED, Name, is_module
from mocomp.models.user.source import ModuleSource
from mocomp.options import ConvertOptions
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


OF_MODULES = ("inputs", "dynamic", "outputs", "state")
OF_CHECKPOINTS = ("task", "trust_remote_code", "calibration", "link_weights", "expert_parallel", "usage", "bits", "target_size")
"""Options of a conversion that mean something for one kind of source alone."""


def opened(asked: str | Source, options: ConvertOptions) -> Source:
    """The source of a conversion: that which was opened already, a checkpoint, or a module of the user's own, by whose name its
    code runs. Raises Usage for options that mean nothing for it, and what opening it raises."""
    if isinstance(asked, Source) and not isinstance(asked, ModuleSource):
        return asked
    if not isinstance(asked, Source) and not is_module(asked):
        options.refuse_for("a checkpoint, which says itself what it takes", OF_MODULES)
        return open_source(asked, options.trust_remote_code, options.task)
    options.refuse_for("a module", OF_CHECKPOINTS)
    if options.parity == "blocks":
        raise Usage("--parity blocks, and the source is a module", fix="Say full, or off.")
    if options.target == "huggingface":
        raise Usage("--target huggingface, and the source is a module", fix="It makes checkpoints of checkpoints.")
    if isinstance(asked, Source):
        options.refuse_for("a module in memory, which says itself what it takes", OF_MODULES)
        return asked
    return open_module(asked, options)


class Again(Protocol):
    """How an artifact's module is found again: where it is now, example inputs in place of its own, whether code may run."""

    @property
    def reference(self) -> str: ...
    @property
    def inputs(self) -> str: ...
    @property
    def trust_remote_code(self) -> bool: ...


def reopened(directory: Path, data: dict[str, Any], again: Again) -> ModuleSource:
    """The module that an artifact was made of. Raises Unsupported where that would run code which nobody named but its report,
    BadInput where it cannot be found again or was changed."""
    name = again.reference or data["source"]
    if not is_module(name):
        what = f"it was made of {name}, a module in memory" if not again.reference else "it was made of a module"
        raise BadInput(what, where=str(directory), fix="Name the module with --reference package.module:attribute.")
    if not again.reference and not name.endswith(EXPORTED) and not again.trust_remote_code:
        raise Unsupported(
            f"it was made by the code of {name}, which would run again",
            where=str(directory),
            fix="Look at that code, then pass --trust-remote-code; or name it with --reference.",
        )
    changed = [file for file, size in data["source_files"].items() if not _has_size(Path(file), size)]
    if changed and not again.reference:
        fix = "Convert again, or name the module with --reference."
        raise BadInput(f"{changed[0]} is not the file that it was made from", where=str(directory), fix=fix)
    told = data["options"]
    dynamic, outputs, state = tuple(told.get("dynamic") or ()), told.get("outputs") or "", told.get("state") or ""
    inputs = again.inputs or told.get("inputs") or ""
    return open_module(name, ConvertOptions(inputs=inputs, dynamic=dynamic, outputs=outputs, state=state))


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def refuse_what_it_cannot(target: Target, options: ConvertOptions) -> None:
    """Raises Usage, before any work, for options that mean nothing, or that the target does not know what to do with."""
    refuse_unknown_pass(options.print_after)
    if options.tune and not target.tunes:
        where = f"target {options.target} on {options.device}"
        raise Usage(f"--tune with {where}, which has one way to run a mixture", fix="Use --target onnxruntime --device cpu.")
    if options.link_weights and not target.links:
        raise Usage(f"--link-weights with target {options.target}", fix="Use --target onnxruntime, or --target onnx.")
    if options.link_weights and options.weights == "none":
        raise Usage("--link-weights with --weights none", fix="Say one of them.")


def refuse_unknown_pass(name: str) -> None:
    """Raises Usage, before any work, for a name that no pass has."""
    known = discover("mocomp.passes", "Pass")
    if name and name not in known:
        raise Usage(f"no pass {name!r}; they are {', '.join(known)}")


def as_asked(name: str, options: Any, *sources: str | Source) -> Command | None:
    """A command as it was asked for, which goes on with what it wrote before; None for a module in memory, of which nobody can
    say whether it is the same."""
    texts = tuple(source for source in sources if isinstance(source, str))
    return Command(name, options, texts, _place_of) if len(texts) == len(sources) else None


def _place_of(source: str) -> Path:
    """The file or directory that a source is read from."""
    if not is_module(source):
        return directory_of(source)
    path = name.path() if (name := Name.parsed(source)) is not None else Path(source)
    if path is None or not path.exists():
        what = "no such file" if name is None or name.file is not None else "no such package or module"
        raise BadInput(what, where=source, fix="Say FILE.pt2, FILE.py:ATTRIBUTE or PACKAGE.MODULE:ATTRIBUTE, as it is spelt.")
    return path
