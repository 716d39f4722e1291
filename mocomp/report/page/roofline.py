"""The roofline plot (Williams, Waterman and Patterson 2009): arithmetic done per byte read, against the rate reached."""

from __future__ import annotations

from typing import Any

from mocomp.report.page import words
from mocomp.report.page.plots import Scale, log_scale
from mocomp.report.page.speed import colours_of, workload_of


def roofline(bench: dict[str, Any]) -> dict[str, Any] | None:
    """Roofs and points in percent of the plot, from its lower left; None where machine or work was not measured."""
    measured = bench.get("roofline")
    points = [point for point in bench["points"] if point.get("bytes") and point.get("flop")]
    if not measured or not points:
        return None
    arithmetic, bandwidths = measured["gflop_s"], _bandwidths(measured)
    intensities = [point["flop"] / point["bytes"] for point in points]
    rates = [point["flop"] / point["ms"]["median"] / 1e6 for point in points]
    ridges = [arithmetic / bandwidth for bandwidth in bandwidths]
    x = log_scale([*intensities, min(ridges) / 2, max(ridges) * 4])
    y = log_scale([*rates, arithmetic])
    colours = colours_of(list(bench["subjects"]))
    return {
        "roofs": [{"line": _line(bandwidth, arithmetic, x, y), "words": said} for bandwidth, said in bandwidths.items()],
        "top": y.at(arithmetic),
        "arithmetic": f"{arithmetic:,.0f} GFLOP/s",
        "words": words.sentences([measured.get("words", "")]),
        "x": x.ticks(),
        "y": y.ticks(),
        "points": [
            _point(point, intensity, rate, colours) | {"number": i + 1, "at": x.at(intensity), "up": y.at(rate)}
            for i, (point, intensity, rate) in enumerate(zip(points, intensities, rates, strict=True))
        ],
    }


def _bandwidths(measured: dict[str, Any]) -> dict[float, str]:
    """What bounds the points first: weights that fit in the cache are read faster than memory is."""
    memory = measured["bandwidth_gb_s"]
    cached = measured.get("weights_gb_s") or memory
    if cached < 1.1 * memory:
        return {max(memory, cached): f"{memory:,.0f} GB/s"}
    return {cached: f"{cached:,.0f} GB/s, weights in the cache", memory: f"{memory:,.0f} GB/s, memory"}


def _line(bandwidth: float, arithmetic: float, x: Scale, y: Scale) -> str:
    """Rises with the bandwidth and is flat from the ridge on."""
    ridge, start = arithmetic / bandwidth, max(x.low, y.low / bandwidth)
    corners = [(start, bandwidth * start), (ridge, arithmetic), (x.high, arithmetic)]
    return " ".join(f"{x.at(intensity)},{100 - y.at(rate):.2f}" for intensity, rate in corners)


def _point(point: dict[str, Any], intensity: float, rate: float, colours: dict[str, str]) -> dict[str, str]:
    """What the table says of a point, and its colour."""
    return {
        "subject": point["subject"],
        "colour": colours.get(point["subject"], "peer0"),
        "workload": workload_of(point),
        "intensity": words.figures(intensity),
        "rate": words.figures(rate),
        "ms": words.figures(point["ms"]["median"]),
        "bound": words.figures(point["bound_ms"]) if point.get("bound_ms") else "",
        "of_bound": words.percent(point["of_bound"]) if point.get("of_bound") else "",
    }
