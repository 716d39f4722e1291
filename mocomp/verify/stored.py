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
from mocomp.verify.module_reference import ModuleReference
from mocomp.verify.reference import Reference
from mocomp.weights.recipes import Reader

FAULT = "Nothing was kept. This is a fault of mocomp: report the model type and the format."


def put(reference: Reference | ModuleReference, target: Target, directory: Path, artifact: Artifact) -> bool:
    """Give a reference what the artifact was to be made of: its own weights rounded to the artifact's type, and, of those that
    were quantised, what the artifact's operators read. Returns whether that changed anything.

    No other weight is taken from the artifact: what it has is to be judged by the checkpoint's. `compare` holds those that are
    taken to what was quantised, when the artifact is made.
    """
    if not changes(target, artifact):
        return False
    put_part(reference, target, directory, artifact, "")
    return True


def changes(target: Target, artifact: Artifact) -> bool:
    """Whether the artifact was to be made of other weights than those of its source."""
    return bool(artifact.formats) or target.deployment.dtype != "float32"


def put_part(reference: Reference | ModuleReference, target: Target, directory: Path, artifact: Artifact, part: str) -> None:
    """As `put`, for the weights of one module."""
    reference.round_to(target.deployment.dtype, part)
    banks = {layer: names for layer, names in _banks(artifact).items() if _within(layer, part)}
    packed = {layer: names for layer, names in banks.items() if layer in reference.experts}  # another model may have none
    for layer, experts in _experts(target, directory, artifact, packed):
        is_packed = [name in artifact.formats for name in packed[layer]]
        for expert, *pair in experts:
            taken = (np.ascontiguousarray(w) if own else None for own, w in zip(is_packed, pair, strict=True))
            reference.put_experts(layer, expert, *taken)
    if not any(_within(module, part) for module in artifact.linears.values()):
        return
    weights = target.linear_weights(directory)
    for name in [name for name in weights if _within(artifact.linears[name], part)]:
        reference.put_linear(artifact.linears[name], weights[name])


def compare(weights: Mapping[str, QuantisedWeight], read: Reader, target: Target, directory: Path, artifact: Artifact) -> None:
    """Raises ParityFailed unless what the artifact's operators read is, bit for bit, what was quantised."""
    banks = _banks(artifact)
    found: set[str] = set()
    dtype: torch.dtype = getattr(torch, target.deployment.dtype)
    for layer, experts in _experts(target, directory, artifact, banks):
        known = [(i, name) for i, name in enumerate(banks[layer]) if name in weights]
        for expert, *pair in experts:
            for i, name in known:
                _equal(f"{layer}, expert {expert}, {name}", _meant(weights[name], read, expert, dtype), pair[i])
        found |= {name for _, name in known}
    for name, weight in target.linear_weights(directory).items():
        _equal(artifact.linears[name], _meant(weights[name], read, None, dtype), weight)
        found.add(name)
    if unread := weights.keys() - found:
        raise ParityFailed(
            f"of {len(unread)} quantised weights nothing was found in the artifact", where=min(unread), fix=FAULT
        )


def _within(name: str, module: str) -> bool:
    return not module or f"{name}.".startswith(f"{module}.")


def _banks(artifact: Artifact) -> dict[str, tuple[str, ...]]:
    """The names (of w_in, of w_out) of the weights of each layer of experts of which any are quantised."""
    found = {mixture.layer: mixture.bank for mixture in artifact.mixtures if mixture.bank}
    return found | {layer: tuple(names) for layer, names in artifact.banks.items()}


def _experts(
    target: Target, directory: Path, artifact: Artifact, banks: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, Iterator[tuple[int, Any, Any]]]]:
    """(layer, (expert, w_in, w_out) of each of its experts) of each of these layers, whether or not an operator fuses it."""
    for mixture in artifact.mixtures:
        if mixture.layer in banks:
            yield mixture.layer, target.weights(directory, mixture)
    apart = {layer: names for layer, names in artifact.banks.items() if layer in banks}
    for layer, w_in, w_out in target.bank_weights(directory, apart) if apart else ():
        yield layer, zip(range(len(w_in)), w_in, w_out, strict=True)


def _meant(weight: QuantisedWeight, read: Reader, expert: int | None, dtype: torch.dtype) -> torch.Tensor:
    """One expert's weight [N, K], or that of a linear layer, with what its inputs are multiplied by; operators that compute in
    16 bits have scales that are rounded to them."""
    own = (lambda r: r.evaluate(read)) if expert is None else (lambda r: r.rows(read, expert, expert + 1)[0])
    parts = {part: own(recipe) for part, recipe in weight.parts.items()}
    if parts["scales"].dtype == torch.float32:
        parts["scales"] = parts["scales"].to(dtype).to(torch.float32)
    w = weight.form.dequantise(Stored(**parts), weight.columns)
    return w if weight.inputs is None else w * weight.inputs.evaluate(read).to(dtype).to(torch.float32)


def _equal(where: str, meant: torch.Tensor, found: np.ndarray) -> None:
    if not np.array_equal(meant.numpy(), found):
        raise ParityFailed(
            "the artifact holds other weights than were quantised",
            where=where,
            fix=FAULT,
        )
