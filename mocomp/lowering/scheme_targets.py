"""`quantization_config` of compressed-tensors: which modules are stored how, in as few patterns as tell them apart."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from mocomp.lowering.compressed_tensors import scheme
from mocomp.quant.formats import parse

CLASS = "Linear"
"""What readers take every matrix for that they know no better of, the experts among them."""


def quantization_config(formats: Mapping[str, str], plain: Iterable[str]) -> dict[str, Any]:
    """For modules by name with the format of each, and those that are `plain`.

    The format of most modules is that of all linear layers, others are said by name; names go before classes.
    """
    most, _ = Counter(formats.values()).most_common(1)[0]
    named = patterns({**formats, **dict.fromkeys(plain, "")})
    groups = {most: [CLASS]} | {text: targets for text, targets in named.items() if text not in ("", most)}
    schemes = [scheme(parse(text)) | {"targets": targets} for text, targets in groups.items()]
    stored = {str(made["format"]) for made in schemes}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": stored.pop() if len(stored) == 1 else "mixed-precision",
        "config_groups": {f"group_{i}": made for i, made in enumerate(schemes)},
        "ignore": named.get("", []),
    }


def patterns(kinds: Mapping[str, str]) -> dict[str, list[str]]:
    """Module names by their kind: as a pattern for any number at the end of a name, or at several, where all modules that it
    fits are of one kind; else by their names."""
    found: dict[str, list[str]] = {}
    left = set(kinds)
    for free in range(max((len(_numbers(name)) for name in kinds), default=0), 0, -1):
        alike: dict[str, set[str]] = defaultdict(set)
        for name in kinds:
            alike[_pattern(name, free)].add(name)
        for pattern, names in alike.items():
            same = {kinds[name] for name in names}
            if len(same) == 1 and len(names) > 1 and names <= left:
                found.setdefault(same.pop(), []).append(pattern)
                left -= names
    for name in kinds:
        if name in left:
            found.setdefault(kinds[name], []).append(name)
    return found


def _numbers(name: str) -> list[re.Match[str]]:
    return list(re.finditer(r"(?<=\.)\d+(?=\.)", name))


def _pattern(name: str, free: int) -> str:
    """`name` with its last `free` numbers left open."""
    made, end = "$", len(name)
    for number in reversed(_numbers(name)[-free:]):
        made = rf"\d+{re.escape(name[number.end() : end])}{made}"
        end = number.start()
    return f"re:{re.escape(name[:end])}{made}"
