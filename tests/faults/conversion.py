"""Small conversions that are made many times: what they read is made once, and tracing, which writes nothing, is remembered."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from mocomp import checkpoints as pages
from mocomp import pipeline, terminal
from mocomp.commands.upcycle import upcycle
from mocomp.models.huggingface import Traced
from mocomp.options import ConvertOptions, UpcycleOptions
from mocomp.report.measured import without_measured
from mocomp.resources import Resources
from mocomp.weights import journal, parts
from tests import checkpoints

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "moe_intermediate_size": 32, "vocab_size": 64}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "checkpoint": ("qwen3_moe", {"target": "huggingface", "quantize": "int4:16", "parity": "off"}),
    "calibrated": ("qwen3_moe", {"target": "huggingface", "quantize": "int4:16", "algorithm": "gptq", "parity": "off"}),
    "onnx": ("qwen3_moe", {"parity": "off", "quantize": "int4", "group_size": 16}),
    "upcycle": ("llama", {"groups": "4", "top_k": 2, "parity": "off", "shard_size": "100KB"}),
}
"""The family that is read, and options."""
PART = 4096
"""Bytes of a part here, so that there are several of a weight."""


def make_sources(directory: Path) -> None:
    """The checkpoints that are read."""
    checkpoints.make("qwen3_moe", directory / "qwen3_moe", **SMALL)
    checkpoints.make("llama", directory / "llama", num_hidden_layers=1)


def run(kind: str, sources: Path, output: Path, workers: int = 1, force: bool = False) -> None:
    """One of the conversions. Raises what it raises."""
    family, options = KINDS[kind]
    source, resources = str(sources / family), Resources(workers=workers)
    with small_parts(), remembered_traces():
        if kind == "upcycle":
            upcycle(source, output, UpcycleOptions(force=force, **options), resources)
        else:
            pipeline.convert(source, output, ConvertOptions(force=force, **options), resources)


def content(directory: Path) -> dict[str, Any]:
    """Each file with its bytes; of a report those things that are not measured."""
    files: dict[str, Any] = {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }
    for name in ("mocomp.json", "receipt.json"):
        if name in files:
            files[name] = without_measured(json.loads(files[name]))
    return {name: value for name, value in files.items() if name != "report.html"}


@contextmanager
def small_parts() -> Iterator[None]:
    """Weights are cut into parts so small that they have several; the journal tells of four together, whatever the time is, so
    that every run has the same operations. Nothing is said."""
    before = parts.PART, journal.BYTES, journal.SECONDS, terminal.say
    parts.PART, journal.BYTES, journal.SECONDS, terminal.say = PART, 4 * PART, math.inf, lambda line: None
    try:
        yield
    finally:
        parts.PART, journal.BYTES, journal.SECONDS, terminal.say = before


@contextmanager
def remembered_traces() -> Iterator[None]:
    """A model is traced the first time only."""
    before = [(module, module.trace) for module in (pipeline, pages)]
    try:
        for module, trace in before:
            module.trace = _remembering(trace)
        yield
    finally:
        for module, trace in before:
            module.trace = trace


def _remembering(trace: Callable[..., Traced]) -> Callable[..., Traced]:
    def once(model: Any, *rest: Any) -> Traced:
        key = (type(model).__name__, repr(model.config))
        if key not in _traces():
            _traces()[key] = trace(model, *rest)
        kept = _traces()[key]
        return dataclasses.replace(kept, program=kept.program.copy())

    return once


@cache
def _traces() -> dict[Any, Traced]:
    return {}
