"""mocomp: a compiler from PyTorch models, dense or mixture-of-experts, to artifacts whose numbers are proven.

`convert` and `parity` do what the commands of those names do, `from_module` makes a source of a module in memory; nothing
heavy is imported before they are used.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["ConvertOptions", "MocompError", "convert", "from_module", "parity"]

_HOMES = {
    "ConvertOptions": "mocomp.options",
    "MocompError": "mocomp.errors",
    "convert": "mocomp.pipeline",
    "from_module": "mocomp.models.user.source",
    "parity": "mocomp.commands.parity",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mocomp' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
