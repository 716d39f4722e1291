"""How often others got the processor: what a timing has to know to tell a slow run from a run that was made to wait."""

from __future__ import annotations

try:
    import resource
except ImportError:  # Windows has none
    resource = None


def interruptions() -> int:
    """How often the system took a processor from this process to give it to another; 0 where it does not say."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def undisturbed(taken: list[tuple[float, int]], fewest: int) -> list[float]:
    """The times of (time, interruptions meanwhile) that nothing interrupted, or of all where fewer than `fewest` are left."""
    alone = [time for time, others in taken if not others]
    return alone if len(alone) >= fewest else [time for time, _ in taken]
