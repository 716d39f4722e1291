"""What the user asked for, as data; an unknown key in a file is an error."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from mocomp.errors import Usage


@dataclass(frozen=True)
class ConvertOptions:
    """Options of `mocomp convert`, with their defaults."""

    target: str = "onnxruntime"
    task: str = "auto"
    parity: str = "full"
    weights: str = "all"
    seed: int = 0
    force: bool = False
    trust_remote_code: bool = False
    print_after: str = ""

    def __post_init__(self) -> None:
        _one_of("parity", self.parity, ("full", "off"))
        _one_of("weights", self.weights, ("all", "none"))

    @classmethod
    def read(cls, path: Path) -> ConvertOptions:
        """From a JSON or YAML file. Raises Usage for an unknown key or a value of the wrong type."""
        values = _mapping(path)
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = [name for name in values if name not in known]
        if unknown:
            raise Usage(f"unknown option {unknown[0]!r}; known are {', '.join(known)}", where=str(path))
        for name, value in values.items():
            wanted = type(known[name].default)
            if type(value) is not wanted:
                raise Usage(f"{name} is {value!r}, expected {wanted.__name__}", where=str(path))
        try:
            return cls(**values)
        except Usage as error:
            raise Usage(error.what, where=str(path)) from error


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


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise Usage(f"{name} is {value!r}, expected one of {', '.join(allowed)}")
