"""What runtimes and GPUs can do, as tables with their source and version, and the checks of a graph against them.

Nothing here needs the runtime or the GPU that it speaks of.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Gap:
    """What a target cannot take of a program or a graph: `where` (a node or a weight), why, and what to do `instead`.

    Where it does not block, `instead` is the fallback that will be used; else the option that avoids it, if there is any.
    """

    where: str
    why: str
    instead: str = ""
    blocks: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.why}" + (f"; {self.instead}" if self.instead else "")


def blocking(gaps: Iterable[Gap]) -> list[str]:
    """Those that keep an artifact from being made, as texts, none twice."""
    return list(dict.fromkeys(str(gap) for gap in gaps if gap.blocks))


def fallbacks(gaps: Iterable[Gap]) -> list[str]:
    """Those that something slower is used for, as texts, one for each reason."""
    return [str(gap) for gap in gathered(gaps) if not gap.blocks]


def gathered(gaps: Iterable[Gap]) -> list[Gap]:
    """What blocks first, and one gap for all places of one reason: a model has as many of each as it has layers."""
    places: dict[tuple[bool, str, str], list[str]] = {}
    for gap in gaps:
        found = places.setdefault((gap.blocks, gap.why, gap.instead), [])
        if gap.where not in found:
            found.append(gap.where)
    ordered = sorted(places.items(), key=lambda item: not item[0][0])
    return [Gap(_listed(where), why, instead, blocks) for (blocks, why, instead), where in ordered]


def _listed(places: list[str]) -> str:
    return places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more"
