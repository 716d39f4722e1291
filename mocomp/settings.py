"""Options of a command as data: read from a file, an unknown key an error."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mocomp.errors import Usage


@dataclass(frozen=True)
class Options:
    """Options of a command as a frozen dataclass, each with its default; `read` takes them from a file."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a JSON or YAML file. Raises Usage for an unknown key or a value of the wrong type."""
        values = _mapping(path)
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise Usage(f"unknown option {unknown[0]!r}; known are {', '.join(known)}", where=str(path))
        try:
            return cls(**cls.typed(values))
        except Usage as error:
            raise Usage(error.what, where=str(path)) from error

    @classmethod
    def typed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Options as JSON or YAML has them, in their own types. Raises Usage for a value of another type."""
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        return {name: _typed(name, value, defaults[name]) for name, value in values.items()}


def size_in_bytes(text: str, what: str) -> int:
    """`1.5GB` as a number. Raises Usage for what is no size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)B", text)
    if match is None or float(match[1]) == 0:
        raise Usage(f"{what} {text!r} is not a size such as 5GB or 500MB")
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2] or " "))


def token_counts(text: str) -> list[int]:
    """`1,16,128` as numbers of tokens, in order, none twice. Raises Usage for what is none."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise Usage(f"{text!r} is no list of numbers of tokens", fix="Such as 1,128,512.")
    return sorted({int(part) for part in parts})


def _typed(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, tuple) and isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise Usage(f"{name} is {value!r}, expected {type(default).__name__}")
    return value


def _mapping(path: Path) -> dict:
    """The content of a JSON or YAML file; every JSON file is one of YAML."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Usage(f"not readable as JSON or YAML: {error}", where=str(path)) from error
    if not isinstance(values, dict):
        raise Usage("not a mapping of options to values", where=str(path))
    return values


def not_negative(name: str, value: int) -> None:
    """Raises Usage for a value below 0."""
    if value < 0:
        raise Usage(f"{name} is {value}, and less than 0")


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raises Usage for a value that is not among those allowed."""
    if value not in allowed:
        raise Usage(f"{name} is {value!r}, expected one of {', '.join(map(str, allowed))}")
