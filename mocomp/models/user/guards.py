"""Sizes at which a module takes another way than the one that was traced.

A trace follows one way through the code. Where a size decides, such as in `if x.shape[0] > 100`, torch.export notes a
condition on sizes and does not say whether the graph is wrong where it fails. So both are run where it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product
from typing import Any

import torch
from sympy import Symbol
from torch import Tensor
from torch.export import ExportedProgram

from mocomp.errors import Unsupported
from mocomp.ir.program import Program
from mocomp.models.user.running import run
from mocomp.models.user.sizes import inputs_at
from mocomp.models.user.source import ModuleSource
from mocomp.weights.recipes import Reader

PROBED: tuple[int, ...] = (1, 2, 3, 8, 50, 400, 5000)
"""Sizes at which a condition is asked, each with each."""
MOST_PROBED = 2401
LARGEST_RUN = 1 << 18
"""Numbers of an input with which both are run."""
RUNS = 2
"""Sizes at which both are run for each condition: the smallest, and the largest that is not too large."""
OFF = 1e-3
FEW = 0.01
"""So many numbers may be off by more than `OFF` of the largest: a choice between experts that are as good may fall any way."""


def refuse_other_ways(program: Program, source: ModuleSource, words: dict[Any, str], read: Reader) -> None:
    """Raises Unsupported where a program is not its module, at sizes that a condition of the trace leaves out and at which
    the module runs; `words` names the symbols of sizes."""
    for guard in _guards(program.exported):
        if not all(symbol in words for symbol in guard.free_symbols):
            continue
        failing = [sizes for sizes in _probes(source) if not _holds(guard, sizes, words)]
        for sizes in failing[:: max(1, len(failing) - 1)][:RUNS]:
            if _differ(program, source, sizes, read):
                told = guard.subs({symbol: Symbol(words[symbol], integer=True, positive=True) for symbol in guard.free_symbols})
                at = ", ".join(f"{name} {size}" for name, size in sizes.items())
                raise Unsupported(
                    f"which way it takes depends on sizes: the traced one is for {told}, and it runs at {at} as well",
                    where=source.label,
                    fix="Leave out of --dynamic what decides, and convert for each way.",
                )


def _guards(exported: ExportedProgram) -> list[Any]:
    """The conditions on sizes that the trace relied on."""
    for node in exported.graph_module.graph.find_nodes(op="placeholder"):
        for size in getattr(node.meta.get("val"), "shape", ()):
            if isinstance(size, torch.SymInt):
                return [guard.expr for guard in size.node.shape_env.guards]
    return []


def _probes(source: ModuleSource) -> Iterator[dict[str, int]]:
    """Sizes by name that are not too large to run, small ones first."""
    names = list(source.sizes)
    for sizes in sorted(islice(product(PROBED, repeat=len(names)), MOST_PROBED), key=sum):
        probe = dict(zip(names, sizes, strict=True))
        if max(_numbers(source, name, probe) for name in source.inputs) <= LARGEST_RUN:
            yield probe


def _numbers(source: ModuleSource, name: str, sizes: dict[str, int]) -> int:
    axes = source.axes[name]
    return torch.Size(sizes[axes[i]] if i in axes else size for i, size in enumerate(source.inputs[name].shape)).numel()


def _holds(guard: Any, sizes: dict[str, int], words: dict[Any, str]) -> bool:
    try:
        return bool(guard.subs({symbol: sizes[words[symbol]] for symbol in guard.free_symbols}))
    except ZeroDivisionError:  # of a size that is divided away, which a condition holds nothing of
        return False


def _differ(program: Program, source: ModuleSource, sizes: dict[str, int], read: Reader) -> bool:
    """Whether a program is not its module there; where the module itself does not run, it is not asked."""
    inputs = inputs_at(source, sizes, seed=0)
    try:
        expected = run(source, inputs)
    except Exception:  # whatever the user's code raises on a shape that it does not take
        return False
    try:
        actual = program.run({name: value.clone() for name, value in inputs.items()}, read)
    except Exception:  # what no longer fits
        return True
    return any(_off(a, e) for a, e in zip(actual, expected.values(), strict=True))


def _off(actual: Tensor, expected: Tensor) -> bool:
    if actual.shape != expected.shape:
        return True
    if not expected.numel():
        return False
    difference = (actual.double() - expected.double()).abs()
    return float((difference > OFF * expected.double().abs().max()).double().mean()) > FEW
