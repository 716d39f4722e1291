"""The weights that an artifact really holds: that they are those that were to be stored, and what a model is with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mocomp.errors import ParityFailed
from mocomp.quant.formats import Stored
from mocomp.quant.weight import QuantisedWeight
from mocomp.targets import Artifact, Target
from mocomp.verify.reference import Reference
from mocomp.weights.recipes import Reader

FAULT = "Nothing was kept. This is a fault of mocomp: report the model type and the format."


def put(reference: Reference, target: Target, directory: Path, artifact: Artifact) -> None:
    """Give a reference the weights that the artifact's operators read."""
    for layer, experts in _experts(target, directory, artifact):
        for expert, w_in, w_out in experts:
            reference.put_experts(layer, expert, np.ascontiguousarray(w_in), np.ascontiguousarray(w_out))
    for name, weight in target.linear_weights(directory).items():
        reference.put_linear(artifact.linears[name], weight)


def compare(weights: Mapping[str, QuantisedWeight], read: Reader, target: Target, directory: Path, artifact: Artifact) -> None:
    """Raises ParityFailed unless what the artifact's operators read is, bit for bit, what was quantised."""
    banks = {mixture.layer: mixture.bank for mixture in artifact.mixtures} | artifact.banks
    found: set[str] = set()
    for layer, experts in _experts(target, directory, artifact) if artifact.formats else ():
        known = [(i, name) for i, name in enumerate(banks[layer]) if name in weights]
        for expert, *pair in experts:
            for i, name in known:
                _equal(f"{layer}, expert {expert}, {name}", _meant(weights[name], read, expert), pair[i])
        found |= {name for _, name in known}
    for name, weight in target.linear_weights(directory).items():
        _equal(artifact.linears[name], _meant(weights[name], read, None), weight)
        found.add(name)
    if unread := weights.keys() - found:
        raise ParityFailed(
            f"of {len(unread)} quantised weights nothing was found in the artifact", where=min(unread), fix=FAULT
        )


def _experts(target: Target, directory: Path, artifact: Artifact) -> Iterator[tuple[str, Iterator[tuple[int, Any, Any]]]]:
    """(layer, (expert, w_in, w_out) of each of its experts) of each mixture, whether or not an operator fuses it."""
    for mixture in artifact.mixtures:
        yield mixture.layer, target.weights(directory, mixture)
    for layer, w_in, w_out in target.bank_weights(directory, artifact.banks) if artifact.banks else ():
        yield layer, zip(range(len(w_in)), w_in, w_out, strict=True)


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
            fix=FAULT,
        )
