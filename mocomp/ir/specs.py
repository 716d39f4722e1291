"""Routers and experts as text in the graph: a name and its parameters, as JSON with sorted keys."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from typing import Any

from mocomp.errors import MocompError
from mocomp.registry import discover


def spell(extension: Any) -> str:
    """A frozen dataclass of an extension package as canonical text; `parse` gives it back."""
    return json.dumps({"kind": extension.name, **dataclasses.asdict(extension)}, sort_keys=True)


@cache
def parse(package: str, contract: str, spec: str) -> Any:
    """The extension that `spec` names, with its parameters. An unknown kind or parameter is an error."""
    fields = json.loads(spec)
    kind = fields.pop("kind")
    known = discover(package, contract)
    if kind not in known:
        raise MocompError(f"unknown kind {kind!r}; known are {', '.join(known)}", where=package)
    try:
        return known[kind](**fields)
    except TypeError as error:
        raise MocompError(f"{kind}: {error}", where=package) from error
