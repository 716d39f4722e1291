"""What the page is made from: an artifact's report, and whatever later commands learnt of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mocomp import report as reports
from mocomp.errors import BadInput
from mocomp.report import results

COMMANDS = {
    reports.NAME: "mocomp convert",
    results.BENCH: "mocomp bench DIR",
    results.USAGE: "mocomp usage DIR --data FILE",
    results.EVAL: "mocomp eval DIR --data FILE",
    results.BISECT: "mocomp parity DIR --bisect",
}
"""What writes each file."""


@dataclass(frozen=True)
class Findings:
    """One artifact's files; None for those whose command was never run."""

    directory: Path
    report: dict[str, Any]
    bench: dict[str, Any] | None
    quality: dict[str, Any] | None
    usage: dict[str, Any] | None
    bisect: dict[str, Any] | None

    @property
    def present(self) -> list[str]:
        """The files that there are."""
        return [name for name in COMMANDS if name not in self.absent]

    @property
    def absent(self) -> dict[str, str]:
        """The command that would write each file that there is not."""
        found = {results.BENCH: self.bench, results.USAGE: self.usage, results.EVAL: self.quality, results.BISECT: self.bisect}
        return {name: COMMANDS[name] for name, data in found.items() if data is None}


def collect(directory: Path) -> Findings:
    """All that is there. Raises BadInput when `directory` is no artifact, or holds a file that is not readable."""
    loaded = {name: results.load(directory, name) for name in COMMANDS if name != reports.NAME}
    return Findings(
        directory,
        reports.recorded(directory),
        bench=loaded[results.BENCH],
        quality=loaded[results.EVAL],
        usage=loaded[results.USAGE],
        bisect=loaded[results.BISECT],
    )


def has_weights(report: dict[str, Any]) -> bool:
    """Whether the artifact is more than a graph; only then can it be run."""
    return report["options"].get("weights") != "none"


@contextmanager
def reading(directory: Path, name: str) -> Iterator[None]:
    """Raises BadInput, naming the file, when what is read inside has not the shape that its command gives it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        what = f"no {error} in it" if isinstance(error, KeyError) else str(error)
        raise BadInput(
            f"not what `{COMMANDS[name]}` writes: {what}", where=str(directory / name), fix="Run that command again."
        ) from error
