"""How the experts of a model are used, for its placement: by the file of `mocomp usage`, or measured now.

Dimension letters: E experts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mocomp.calibration.capture import loaded
from mocomp.calibration.data import data_for
from mocomp.calibration.steps import parsed
from mocomp.calibration.usage import count, layer_usage, modality_names
from mocomp.errors import BadInput
from mocomp.models.interface import Interface
from mocomp.models.source import Source
from mocomp.placement.traffic import Traffic
from mocomp.plans.plan import ModelPlan
from mocomp.weights.json_files import read_object

AGAIN = "Run mocomp usage on this model again, with -o FILE."


def from_file(path: Path, layers: list[str], experts: list[int]) -> Traffic:
    """What `mocomp usage` saved. Raises BadInput for a file that is none of its own, or of another model."""
    if not path.is_file():
        raise BadInput("no such file", where=str(path), fix="It is what mocomp usage writes with -o FILE.")
    raw = read_object(path)
    try:
        known = {str(layer["layer"]): layer for layer in raw["layers"]}
        if list(known) != layers or [known[name]["experts"] for name in layers] != experts:
            raise BadInput(
                f"it is of another model: {_words(list(known), [layer['experts'] for layer in known.values()])}, "
                f"and this one has {_words(layers, experts)}",
                where=str(path),
                fix=AGAIN,
            )
        return _traffic(layers, experts, known)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        why = f"not what mocomp usage writes: {type(error).__name__}: {error}"
        raise BadInput(why, where=str(path), fix=AGAIN) from error


def from_data(
    source: Source, interface: Interface, file: str, seed: int, layers: list[str], experts: list[int], memory: int | None = None
) -> Traffic:
    """Measured by running the model over the data of a file, with about `memory` bytes of its weights in memory."""
    modality = source.plan.modality if source.plan is not None else None
    data = data_for(source, interface, file, seed, ModelPlan(modality))
    reference = loaded(source, interface.with_plan(source.plan), data, memory)
    names = modality_names(reference, modality)
    counted = count(reference, data, modality, seed)
    return _traffic(layers, experts, {name: vars(layer_usage(name, counted[name], names)) for name in layers})


def _traffic(layers: list[str], experts: list[int], known: dict[str, dict[str, Any]]) -> Traffic:
    modalities: dict[str, list[np.ndarray]] = {}
    for name, size in zip(layers, experts, strict=True):
        for modality, tokens in known[name]["tokens"].items():
            modalities.setdefault(modality, []).append(_counts(tokens, size))
    load = [np.stack(parts).sum(0) for parts in zip(*modalities.values(), strict=True)]
    steps = []
    for before, name, rows, size in zip(layers, layers[1:], experts, experts[1:], strict=False):
        told = known[name].get("steps", []) if known[name].get("after") == before else []
        found = parsed(told, size).numpy() if told else np.zeros((rows, size), np.int64)
        if found.shape != (rows, size):
            raise ValueError(f"{name}: steps from {len(found)} experts, and {before} has {rows}")
        steps.append(found)
    return Traffic(layers, load, steps, modalities)


def _counts(tokens: Any, experts: int) -> np.ndarray:
    counts = np.array(tokens, np.int64)
    if counts.shape != (experts,) or (counts < 0).any():
        raise ValueError(f"tokens of {experts} experts are {counts.shape}, or fewer than 0")
    return counts


def _words(layers: list[str], experts: list[int]) -> str:
    sizes = sorted(set(experts))
    return f"{len(layers)} mixtures of {', '.join(map(str, sizes))} experts, the first {layers[0] if layers else 'none'}"
