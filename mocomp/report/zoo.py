"""What `mocomp zoo run` saw of each line of the zoo's table, and how it is printed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mocomp.report.console import line, table

PASSED, REFUSED, FAILED = "passed", "refused", "failed"


@dataclass(frozen=True)
class OnTarget:
    """An entry on one target: its verdict, and where it was converted its largest relative error, the nodes of the graph, and
    milliseconds of a run of the original and of the artifact; `why` is what was wrong, or the reason of a refusal."""

    verdict: str
    why: str = ""
    error: float | None = None
    nodes: int | None = None
    original_ms: float | None = None
    artifact_ms: float | None = None


@dataclass(frozen=True)
class ZooLine:
    """An entry with what recognition found in it ("" for nothing), and how it fared on each target."""

    name: str
    host: str
    paper: str
    recognised: str = ""
    note: str = ""
    targets: dict[str, OnTarget] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The worst of the verdicts of its targets."""
        return max((on.verdict for on in self.targets.values()), key=(PASSED, REFUSED, FAILED).index)


@dataclass(frozen=True)
class ZooReport:
    """All lines, and the machine they were seen on."""

    lines: list[ZooLine]
    machine: dict[str, Any]

    @property
    def failed(self) -> list[ZooLine]:
        """The lines that are to blame for the exit code."""
        return [one for one in self.lines if one.verdict == FAILED]

    def counts(self) -> dict[str, int]:
        """How many lines passed, were refused and failed."""
        verdicts = [one.verdict for one in self.lines]
        return {verdict: verdicts.count(verdict) for verdict in (PASSED, REFUSED, FAILED)}

    def as_json(self) -> dict[str, Any]:
        """One object: the counts, the machine, and the lines with their verdicts."""
        return self.counts() | {
            "machine": self.machine,
            "lines": [asdict(one) | {"verdict": one.verdict} for one in self.lines],
        }


def print_zoo(report: ZooReport) -> None:
    """The table, the reasons under it, and the counts last."""
    names = list(dict.fromkeys(name for one in report.lines for name in one.targets))
    measured = [f"{word}, {name}" for word in ("error", "nodes", "ms") for name in names]
    rows = [_row(one, names) for one in report.lines]
    table(["name", "host", "paper", "recognised as", "verdict", "original ms", *measured], rows, left=5)
    for one in report.lines:
        for name, on in one.targets.items():
            if on.why:
                line(f"{one.name} on {name} {on.verdict}: {on.why}", style="red" if on.verdict == FAILED else "")
    line(", ".join(f"{count} {verdict}" for verdict, count in report.counts().items()))


def _row(one: ZooLine, names: list[str]) -> list[str]:
    seen = [one.targets[name] for name in names]
    original = next((on.original_ms for on in seen if on.original_ms is not None), None)
    errors = ["" if on.error is None else f"{on.error:.1e}" for on in seen]
    nodes = ["" if on.nodes is None else str(on.nodes) for on in seen]
    told = [one.name, one.host, one.paper, one.recognised or "plain operators", one.verdict]
    return [*told, milliseconds(original), *errors, *nodes, *(milliseconds(on.artifact_ms) for on in seen)]


def milliseconds(ms: float | None) -> str:
    """Milliseconds as the tables have them, "" for none."""
    return "" if ms is None else f"{ms:.3g}"
