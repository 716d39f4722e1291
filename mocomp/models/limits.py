"""Sizes in a config, looked at before a class of transformers allocates anything by them.

A layer count of 1e9 would build modules until the memory is gone, and lists of that length are made before a class can object.
Families call their sizes differently, so fields are told by how their names end or begin. -1, which some write for none, is
left to the class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mocomp.errors import BadInput

LAYERS = re.compile(r"(^|_)(layers?|depths?|blocks?)$")
SIZES = re.compile(r"^(n|num|d|max|top)_|_(size|dim|rank|width|heads|experts|embeddings|channels|length|groups?|window|k)$")
MOST_LAYERS = 1_000
MOST = 1 << 24
"""Above the longest context there is (10 million positions), and the largest vocabulary by far."""
DEEPEST = 16
"""Objects inside each other; published configs have three."""


def check_config(raw: dict[str, Any], where: str) -> None:
    """Raises BadInput for a config with a size that no model has, that is nested absurdly, or that refers to other files."""
    if "configuration_files" in raw:
        raise BadInput("it refers to other configs by `configuration_files`", where=where, fix="Name the one that holds here.")
    for name, value, depth in _fields(raw, "", 0):
        if depth > DEEPEST:
            raise BadInput(f"it is nested more than {DEEPEST} deep", where=where, fix=CORRECT)
        own = name.rpartition(".")[2]
        most = MOST_LAYERS if LAYERS.search(own) else MOST if SIZES.search(own) else None
        if most is not None and not _fits(value, most):
            raise BadInput(f"{name} is {str(value)[:60]}, and {most:,} at most is believed", where=where, fix=CORRECT)


CORRECT = "Correct the named field."


def refuse_more_layers(config: Any, tensors: int, where: str) -> None:
    """Raises BadInput for more layers than tensors, since each has one at least: to trace so many would take hours."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > tensors:
        raise BadInput(f"config.json says {layers:,} layers, and the weights are {tensors:,} tensors", where=where, fix=CORRECT)


def _fits(value: Any, most: int) -> bool:
    """Whether a number, or each of a list, is no more than `most` and no less than -1; other types are the class's to judge."""
    values = value if isinstance(value, list) else [value]
    return all(-1 <= number <= most for number in values if type(number) in (int, float))


def _fields(value: Any, name: str, depth: int) -> Iterator[tuple[str, Any, int]]:
    """(dotted name, value, depth) of everything in a config; entries of a list have the name of the list."""
    yield name, value, depth
    if depth > DEEPEST:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _fields(inner, f"{name}.{key}" if name else key, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, (dict, list)):
                yield from _fields(inner, name, depth + 1)
