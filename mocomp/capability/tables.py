"""The tables: data files beside this one, each with its source and version."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@cache
def table(name: str) -> dict[str, Any]:
    """The content of `tables/NAME.yaml`; not to be changed."""
    return yaml.safe_load(files("mocomp.capability").joinpath("tables", f"{name}.yaml").read_text(encoding="utf-8"))


def types_by_operator(groups: dict[str, list[str]], types: dict[str, list[str]]) -> dict[str, frozenset[str]]:
    """Operators listed by the name of their set of types, as {operator: names of types}."""
    return {operator: frozenset(types[name]) for name, operators in groups.items() for operator in operators}


def release(text: str) -> tuple[int, int]:
    """A version such as 10.15 as numbers that can be compared."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
