"""What `mocomp list` shows."""

from __future__ import annotations

import inspect

from mocomp.models.families import FAMILIES
from mocomp.registry import discover

CONTRACTS = {
    "routers": ("mocomp.routers", "Router"),
    "scorers": ("mocomp.scorers", "Scorer"),
    "experts": ("mocomp.experts", "Expert"),
    "formats": ("mocomp.quant.formats", "Format"),
    "algorithms": ("mocomp.quant.algorithms", "Algorithm"),
    "targets": ("mocomp.targets", "Target"),
    "executors": ("mocomp.executors", "Executor"),
    "passes": ("mocomp.passes", "Pass"),
}


def listing(what: str) -> list[tuple[str, str]]:
    """(name, one line about it) of every extension; a target that cannot run here says why."""
    if what == "models":
        return list(FAMILIES.items())
    found = discover(*CONTRACTS[what])
    return [(name, _summary(what, extension)) for name, extension in found.items()]


def _summary(what: str, extension: type) -> str:
    if what in ("targets", "executors") and (reason := extension().missing()) is not None:
        return f"not here: {reason}"
    if what in ("targets", "executors"):
        return extension.summary  # type: ignore[attr-defined]
    module = inspect.getmodule(extension)
    text = (inspect.getdoc(module) or "") if what != "passes" else (inspect.getdoc(extension) or "")
    return " ".join(text.splitlines()[0].split())
