"""A user's module by its name in code: `package.module:attribute`, or `file.py:attribute`."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from mocomp.errors import BadInput

EXPORTED = ".pt2"


@dataclass(frozen=True)
class Name:
    """Where code is: a `file`, or a `module` that Python finds; and what in it gives the module."""

    module: str
    file: Path | None
    attribute: str

    @classmethod
    def parsed(cls, text: str) -> Name | None:
        """A name, or None for a text that is none: an existing directory, a name on the hub, an exported program."""
        place, colon, attribute = text.rpartition(":")
        if not colon or Path(text).is_dir() or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", attribute):
            return None
        if place.endswith(".py"):
            return cls(Path(place).stem, Path(place).expanduser(), attribute)
        return cls(place, None, attribute) if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", place) else None

    @property
    def label(self) -> str:
        """What to call it, wherever one is then."""
        return f"{self.file.resolve() if self.file else self.module}:{self.attribute}"

    def path(self) -> Path | None:
        """The file of its code, found without running any; None where that is not where one would look."""
        if self.file is not None:
            return self.file
        inner = Path(*self.module.split("."))
        for folder in dict.fromkeys([str(Path.cwd()), *sys.path]):
            for file in (Path(folder) / inner.with_suffix(".py"), Path(folder) / inner / "__init__.py"):
                if file.is_file():
                    return file
        return None


def is_module(text: str) -> bool:
    """Whether a source is a module of the user's own: named by its code, or exported."""
    return Name.parsed(text) is not None or (text.endswith(EXPORTED) and not Path(text).is_dir())


def made_by(name: Name) -> nn.Module:
    """The module that a name stands for: it is imported, and what it names is called if it is a function or a class.

    Raises BadInput for what cannot be imported, is not there, fails, or is no module.
    """
    with _importing(name) as code:
        found: Any = code
        for part in name.attribute.split("."):
            if not hasattr(found, part):
                raise BadInput(f"{name.module} has no {name.attribute}", where=name.label, fix=_offers(code))
            found = getattr(found, part)
        if not isinstance(found, nn.Module):
            if not callable(found):
                raise BadInput(f"it is a {type(found).__name__}, and no nn.Module, nor what makes one", where=name.label)
            with _told(name, "calling it without arguments"):
                found = found()
    if not isinstance(found, nn.Module):
        raise BadInput(f"it gives a {type(found).__name__}, expected an nn.Module", where=name.label)
    return found


@contextmanager
def _importing(name: Name) -> Iterator[ModuleType]:
    """The code of a name, with the current directory, or that of its file, among those in which Python looks."""
    before = list(sys.path)
    sys.path.insert(0, str(name.file.resolve().parent) if name.file else str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        with _told(name, "importing it"):
            code = _of_file(name) if name.file else importlib.import_module(name.module)
        yield code
    finally:
        sys.path[:] = before


def _of_file(name: Name) -> ModuleType:
    if name.file is None or not name.file.is_file():
        raise BadInput("no such file", where=name.label)
    spec = importlib.util.spec_from_file_location(name.module, name.file)
    if spec is None or spec.loader is None:
        raise BadInput("no file of Python code", where=name.label)
    code = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name.module)
    sys.modules[name.module] = code  # dataclasses and pickles look their own module up while it runs
    try:
        spec.loader.exec_module(code)
    finally:
        if before is not None:
            sys.modules[name.module] = before
    return code


@contextmanager
def _told(name: Name, doing: str) -> Iterator[None]:
    """While inside, what the user's code raises is a BadInput that names the line of that code."""
    try:
        yield
    except BadInput:
        raise
    except ModuleNotFoundError as error:
        if name.file is None and error.name and (name.module + ".").startswith(error.name + "."):
            fix = "Run it from the directory in which Python finds it, or name the file: path/to/file.py:attribute."
            raise BadInput(f"Python finds no module {error.name}", where=name.label, fix=fix) from error
        raise BadInput(f"{doing} failed: {_line(error)}", where=name.label, fix="Install what it needs.") from error
    except (Exception, SystemExit) as error:
        raise BadInput(f"{doing} failed: {_line(error)}", where=name.label) from error


def _line(error: BaseException) -> str:
    """The error and the line of code that raised it."""
    said = f"{type(error).__name__}: {str(error)[:300]}"
    if isinstance(error, SyntaxError):
        return f"{said} ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line})" if frames else said


def _offers(code: ModuleType) -> str:
    own = [n for n, value in vars(code).items() if callable(value) and getattr(value, "__module__", "") == code.__name__]
    return f"It has {', '.join(own[:8])}." if own else ""
