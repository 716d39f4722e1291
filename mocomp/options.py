"""What the user asked for, as data; an unknown key in a file is an error."""

from __future__ import annotations

import dataclasses
import json
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
    verify_each: bool = False
    print_after: str = ""
    stop_after: str = ""

    def __post_init__(self) -> None:
        _one_of("parity", self.parity, ("full", "off"))
        _one_of("weights", self.weights, ("all", "none"))

    @classmethod
    def read(cls, path: Path) -> ConvertOptions:
        """From a JSON or YAML file. Raises Usage for an unknown key or a value of the wrong type."""
        text = path.read_text()
        if path.suffix == ".json":
            values = json.loads(text)
        else:
            import yaml

            values = yaml.safe_load(text)
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise Usage(f"unknown option {unknown[0]!r}; known are {', '.join(known)}", where=str(path))
        for name, value in values.items():
            wanted = type(known[name].default)
            if not isinstance(value, wanted):
                raise Usage(f"{name} is {value!r}, expected {wanted.__name__}", where=str(path))
        return cls(**values)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise Usage(f"--{name} is {value!r}, expected one of {', '.join(allowed)}")
