"""Whether the proof fits: it holds the whole original, once, unless it is made in parts."""

from __future__ import annotations

from pathlib import Path

from mocomp.errors import Unsupported
from mocomp.resources import Resources

WHILE_LOADING = 2.2
"""Times the float32 weights that transformers holds at most: the tensors read, and their packing into one per layer."""


def fits(parameters: int) -> bool:
    """Whether a model can be loaded whole into the memory that is free."""
    free = available()
    return free is None or WHILE_LOADING * 4 * parameters <= free


def refuse_if_too_large(parameters: int, source: str) -> None:
    """Raises Unsupported, before any long work, when the original would not fit into the memory that is free."""
    needed, free = WHILE_LOADING * 4 * parameters, available()
    if free is not None and needed > free:
        raise Unsupported(
            f"the proof takes about {needed / 1e9:.1f} GB, since the original runs too, and {free / 1e9:.1f} GB are free",
            where=source,
            fix="Prove it on a larger machine with `mocomp parity DIR`, and convert here with --parity off.",
        )


def way_to_prove(
    asked: str, parameters: int, source: str, resources: Resources | None, in_parts: bool
) -> tuple[str, list[str]]:
    """(full, blocks or off, notes on why): what was `asked`, but blocks in place of full where the original does not fit.

    It fits when the memory that is free holds it, and that which was said to be used, where anything was said. `in_parts` is
    whether the artifact can be run so. Raises Unsupported, before any long work, when neither is possible.
    """
    if asked == "blocks" and not in_parts:
        raise Unsupported("--parity blocks, and this target makes no graph that can be run in parts", where=source, fix=WHOLE)
    if asked != "full":
        return asked, []
    needed = WHILE_LOADING * 4 * parameters
    given = resources.nbytes() if resources is not None and resources.memory else None
    limits = [limit for limit in (available(), given) if limit is not None]
    if not limits or needed <= min(limits):
        return "full", []
    if not in_parts:
        refuse_if_too_large(parameters, source)
        return "full", ["this target makes no graph that can be run in parts, so the proof held the whole original"]
    why = f"the whole proof takes about {needed / 1e9:.1f} GB, {min(limits) / 1e9:.1f} GB may be used: proven in parts"
    return "blocks", [why]


WHOLE = "Leave it out, and prove it whole."


def available() -> int | None:
    """Bytes of memory that can be had without swapping, or None where the system does not say."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    fields = dict(line.split(":") for line in path.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024
