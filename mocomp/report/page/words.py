"""Numbers as the page says them; they are the filters of its templates."""

from __future__ import annotations

import math
from collections.abc import Sequence


def error(value: float) -> str:
    """A relative error: 1.2e-06, as the terminal prints it."""
    return f"{value:.1e}" if math.isfinite(value) else "not finite"


def size(nbytes: float) -> str:
    """Bytes: 964 B, 27 kB, 5.1 MB, 1.21 GB."""
    if nbytes < 1e3:
        return f"{nbytes:.0f} B"
    if nbytes < 1e6:
        return f"{nbytes / 1e3:.0f} kB"
    return f"{nbytes / 1e6:.1f} MB" if nbytes < 1e9 else f"{nbytes / 1e9:.2f} GB"


def gigabytes(value: float) -> str:
    """Memory, given in GB: 90 MB, 0.58 GB."""
    return f"{value:.2f} GB" if value >= 0.0995 else f"{value * 1e3:.0f} MB"


def duration(seconds: float) -> str:
    """Seconds: 0.5 ms, 166 ms, 5.7 s, 2 min 14 s."""
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def figures(value: float) -> str:
    """Three figures: 0.134, 12.3, 1,240."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "not finite"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 6)}f}"


def milliseconds(value: float) -> str:
    """Milliseconds: 0.134 ms."""
    return f"{figures(value)} ms"


def times(ratio: float) -> str:
    """A ratio: 8.8×, 120×."""
    return f"{ratio:.2f}×" if ratio < 2 else f"{ratio:.1f}×" if ratio < 100 else f"{ratio:,.0f}×"


def percent(share: float) -> str:
    """A share of one: 0.012 %, 4.2 %, 99.97 %, 100 %."""
    value = 100 * share
    if value == 0 or value >= 99.995:
        return f"{value:.0f} %"
    if value < 0.1:
        return f"{value:.2g} %"
    return f"{value:.1f} %" if value < 99.95 else f"{value:.2f} %"


def count(number: float) -> str:
    """How many: 1,284, 1.28 M, 30.5 B."""
    if number < 1e5:
        return f"{number:,.0f}"
    return f"{number / 1e6:.2f} M" if number < 1e9 else f"{number / 1e9:.1f} B"


def change(number: int) -> str:
    """More or fewer: +3, −65."""
    return f"{number:+,}".replace("-", "−")


def drift(ratio: float) -> str:
    """How far a ratio is from one: +0.19 %, −0.02 %."""
    return f"{100 * (ratio - 1):+.2f} %".replace("-", "−")


def places(number: int) -> str:
    """How many places a pass changed."""
    return f"{number:,} place" if number == 1 else f"{number:,} places"


def sentences(texts: Sequence[str] | None) -> list[str]:
    """Notes, each with a capital letter and a full stop; none where a file has none."""
    return [text[:1].upper() + text[1:].rstrip(".") + "." for text in texts or [] if text]


def shortened(names: Sequence[str]) -> tuple[str, list[str]]:
    """What dotted names share, and what tells them apart: ("model.layers.*.mlp", ["0", "1"])."""
    parts = [name.split(".") for name in names]
    if len(set(names)) < 2:
        return "", list(names)
    shortest = min(len(part) for part in parts)
    before = next(i for i in range(shortest + 1) if i == shortest or len({part[i] for part in parts}) > 1)
    room = shortest - before
    after = next(i for i in range(room + 1) if i == room or len({part[-1 - i] for part in parts}) > 1)
    labels = [".".join(part[before : len(part) - after]) for part in parts]
    if not all(labels) or before + after == 0:
        return "", list(names)
    return ".".join([*parts[0][:before], "*", *parts[0][len(parts[0]) - after :]]), labels


FILTERS = {
    function.__name__: function
    for function in (error, size, gigabytes, duration, figures, milliseconds, times, percent, count, change, places)
}
