"""Mixtures as trainable modules: `load` gives a transformers model with the mixtures of a checkpoint of ours inside.

model = mocomp.nn.load("MOMA")            # a model of transformers: train it, generate with it
mocomp.nn.save(model, "MOMA-trained")     # mocomp convert MOMA-trained -o OUT
"""

from __future__ import annotations

from typing import Any

_HOMES = {
    "Depth": "mocomp.nn.depth",
    "Mixture": "mocomp.nn.mixture",
    "insert": "mocomp.nn.model",
    "load": "mocomp.nn.model",
    "save": "mocomp.nn.model",
}
__all__ = ["Depth", "Mixture", "insert", "load", "save"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mocomp.nn' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
