"""Extension packages: every module in the folder is one extension, and being a file is being registered."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from mocomp.errors import MocompError


@cache
def discover(package: str, contract: str) -> dict[str, type]:
    """All extensions of `package`: the classes derived from its `contract` class, by their `name`.

    Importing happens here and nowhere else, so `mocomp --help` pays for none of it. Two extensions of one
    name are an error: silently preferring one would make the result depend on the order of files.
    """
    home = importlib.import_module(package)
    base = getattr(home, contract)
    found: dict[str, type] = {}
    for info in pkgutil.iter_modules(home.__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        for extension in vars(module).values():
            if not _is_extension(extension, base, module.__name__):
                continue
            if extension.name in found:
                raise MocompError(f"two extensions are called {extension.name!r}", where=package)
            found[extension.name] = extension
    return dict(sorted(found.items()))


def _is_extension(candidate: object, base: type, module: str) -> bool:
    return (
        inspect.isclass(candidate)
        and issubclass(candidate, base)
        and candidate.__module__ == module
        and not inspect.isabstract(candidate)
        and getattr(candidate, "name", "") != ""
    )
