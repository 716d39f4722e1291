"""What the machine can do at best, measured in the same run, and the least time that a layer could take by it (Williams 2009).

Bandwidth is that of a sum over an array that no cache holds, since between runs the caches are filled with other data. The
matrix rate is that of a product of square matrices in the type in which a subject multiplies.

Dimension letters: T tokens, H hidden, F expert width, E experts, K chosen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from gpu_layers import VOCABULARY, Layout

from mocomp.bench.roofline import Roofline, Work

TIMES, SECONDS = 5, 0.1
SIDES = {"cuda": 8192, "cpu": 512}
SIZES = {"cuda": 2 << 30, "cpu": 64 << 20}


@dataclass(frozen=True)
class Limits:
    """GB/s of memory, and GFLOP/s of matrix products by the name of a type."""

    bandwidth_gb_s: float
    gflop_s: dict[str, float]

    def bound_ms(self, work: Work, dtype: str) -> float:
        """The least time of so much work with products in `dtype`."""
        bound = Roofline(weights_gb_s=self.bandwidth_gb_s, gflop_s=self.gflop_s[dtype]).bound_ms(work)
        assert bound is not None
        return bound


def measure(device: str, dtypes: list[str]) -> Limits:
    """The limits of this machine."""
    array = torch.ones(SIZES[device] // 4, device=device)
    bandwidth = 1e-9 * array.nbytes / _best(array.sum, device)
    del array
    return Limits(bandwidth, {dtype: _rate(dtype, device) for dtype in dtypes})


def synchronise(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def _rate(dtype: str, device: str) -> float:
    side = SIDES[device]
    matrix = torch.randn(side, side, device=device).to(getattr(torch, dtype))
    return 1e-9 * 2 * side**3 / _best(lambda: matrix @ matrix, device)


def _best(run: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of several runs."""
    best, end, runs = float("inf"), time.perf_counter() + SECONDS, 0
    while runs < TIMES or time.perf_counter() < end:
        synchronise(device)
        begin = time.perf_counter()
        run()
        synchronise(device)
        best, runs = min(best, time.perf_counter() - begin), runs + 1
    return best


def work_of(layout: Layout, scope: str, tokens: int, experts_hit: int, bits: float, dense_bits: float = 16) -> Work:
    """What a run cannot do without: bytes of the weights that it reads, of experts those hit, and operations.

    `bits` are those of a weight of the experts with its share of scales, `dense_bits` of any other weight.
    """
    h, width = layout.hidden, layout.heads * layout.head_width
    mixture = tokens * (layout.chosen * layout.weights_per_expert + layout.experts * h)
    held = experts_hit * layout.weights_per_expert * bits / 8 + layout.experts * h * dense_bits / 8
    if scope == "mixture":
        return Work(int(held), 2 * mixture)
    projections = 2 * h * width + 2 * h * layout.kv_heads * layout.head_width
    dense = projections + VOCABULARY * h
    products = mixture + tokens * dense + tokens * tokens * width  # a token attends to half of them on average
    return Work(int(held + (dense + tokens * h) * dense_bits / 8), 2 * products)
