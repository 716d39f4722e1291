"""Whether the proof fits: it holds the whole original, once."""

from __future__ import annotations

from pathlib import Path

from mocomp.errors import Unsupported

WHILE_LOADING = 2.2
"""Times the float32 weights that transformers holds at most: the tensors read, and their packing into one per layer."""


def refuse_if_too_large(parameters: int, source: str) -> None:
    """Raises Unsupported, before any long work, when the original would not fit into the memory that is free."""
    needed, free = WHILE_LOADING * 4 * parameters, available()
    if free is not None and needed > free:
        raise Unsupported(
            f"the proof takes about {needed / 1e9:.1f} GB, since the original runs too, and {free / 1e9:.1f} GB are free",
            where=source,
            fix="Prove it on a larger machine with `mocomp parity DIR`, and convert here with --parity off.",
        )


def available() -> int | None:
    """Bytes of memory that can be had without swapping, or None where the system does not say."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    fields = dict(line.split(":") for line in path.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024
