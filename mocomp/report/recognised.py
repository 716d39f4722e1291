"""What recognition found in a user's module, as a report keeps it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mocomp.experts import Expert
from mocomp.models.recognition import Found
from mocomp.models.source import Source
from mocomp.models.user.loading import look
from mocomp.models.user.source import ModuleSource
from mocomp.report.console import line
from mocomp.routers import Router

SHOWN = 12


@dataclass(frozen=True)
class Recognised:
    """A block that was proven to be a mixture: its name in the module, the kinds of its router and of its experts, how many
    these are, and the largest relative error of its canonical form in float64. `router` is empty where the experts alone are
    canonical, and the module's own code sends them their tokens."""

    block: str
    router: str
    expert: str
    experts: int
    error: float

    def words(self) -> str:
        """All of it on one line."""
        kinds = f"{self.router} over {self.experts} experts {self.expert}"
        alone = f"{self.experts} experts {self.expert}, their tokens sent by the module itself"
        return f"{self.block or 'the module'}: {kinds if self.router else alone}, proven to {self.error:.0e}"


def recognised_in(source: Source) -> list[Recognised]:
    """The mixtures of a module, in its order; none for a checkpoint, whose class says what it has."""
    if not isinstance(source, ModuleSource):
        return []
    return [_recognised(found) for found in look(source).recognition.blocks]


def _recognised(found: Found) -> Recognised:
    experts = found.form.experts.count  # type: ignore[attr-defined]
    return Recognised(found.name, _kind(found.router) if found.router else "", _kind(found.expert), experts, found.error)


def _kind(extension: Router | Expert) -> str:
    """A router or an expert as `name(k=2)`, `name(silu)`: parameters that are as they are by default go without saying."""
    told = []
    for field in dataclasses.fields(extension):
        value = getattr(extension, field.name)
        if field.name == "activation":
            told.append(value)
        elif value != field.default:
            told.append(f"{field.name}={value}")
    return f"{extension.name}({', '.join(told)})"


def print_recognised(recognised: list[Recognised]) -> None:
    """A line for each of the first blocks, and how many more there are."""
    for one in recognised[:SHOWN]:
        line(f"  {one.words()}")
    if len(recognised) > SHOWN:
        line(f"  and {len(recognised) - SHOWN} more mixtures")
