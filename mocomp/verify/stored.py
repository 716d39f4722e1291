"""The weights that an artifact really holds: that they are those that were to be stored, and what a model is with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from mocomp.errors import ParityFailed
from mocomp.quant.formats import Stored
from mocomp.quant.weight import QuantisedWeight
from mocomp.targets import Artifact, Target
from mocomp.verify.reference import Reference
from mocomp.weights.recipes import Reader


def put(reference: Reference, target: Target, directory: Path, artifact: Artifact) -> None:
    """Give a reference the weights that the artifact's operators read."""
    for mixture in artifact.mixtures:
        for expert, w_in, w_out in target.weights(directory, mixture):
            reference.put_experts(mixture.layer, expert, np.ascontiguousarray(w_in), np.ascontiguousarray(w_out))
    for name, weight in target.linear_weights(directory).items():
        reference.put_linear(artifact.linears[name], weight)


def compare(weights: Mapping[str, QuantisedWeight], read: Reader, target: Target, directory: Path, artifact: Artifact) -> None:
    """Raises ParityFailed unless what the artifact's operators read is, bit for bit, what was quantised."""
    banks = iter(name for name in weights if name not in artifact.linears)
    for mixture in artifact.mixtures if artifact.formats else ():
        names = next(banks), next(banks)
        for expert, *pair in target.weights(directory, mixture):
            for name, found in zip(names, pair, strict=True):
                _equal(f"{mixture.layer}, expert {expert}, {name}", _meant(weights[name], read, expert), found)
    for name, found in target.linear_weights(directory).items():
        _equal(artifact.linears[name], _meant(weights[name], read, None), found)


def _meant(weight: QuantisedWeight, read: Reader, expert: int | None) -> torch.Tensor:
    """One expert's weight [N, K], or that of a linear layer, with what its inputs are multiplied by."""
    own = (lambda r: r.evaluate(read)) if expert is None else (lambda r: r.rows(read, expert, expert + 1)[0])
    w = weight.form.dequantise(Stored(**{part: own(recipe) for part, recipe in weight.parts.items()}), weight.columns)
    return w if weight.inputs is None else w * weight.inputs.evaluate(read)


def _equal(where: str, meant: torch.Tensor, found: np.ndarray) -> None:
    if not np.array_equal(meant.numpy(), found):
        raise ParityFailed(
            "the artifact holds other weights than were quantised",
            where=where,
            fix="Nothing was kept. This is a fault of mocomp: report the model type and the format.",
        )
