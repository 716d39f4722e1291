"""Which command an output belongs to: what was asked for, of which files, with which versions."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

TOOLS = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors")
CHANGES_NOTHING = ("force", "print_after")
PATHS = ("calibration", "data", "expert", "inputs", "prompts", "state", "usage")
"""Options that name files or directories which are read, by themselves or as NAME=PATH."""
READ = 1 << 20
"""Bytes at the start of a file that are looked at; of longer ones the size and the time of the last change tell the rest."""


@dataclass(frozen=True)
class Command:
    """A command as it was asked for. `find` gives the directory of a source."""

    name: str
    options: Any
    sources: tuple[str, ...]
    find: Callable[[str], Path] = Path

    @property
    def text(self) -> str:
        """As it is typed, without the place that it writes to."""
        parts = ["mocomp", self.name, *self.sources]
        for field in dataclasses.fields(self.options):
            value = getattr(self.options, field.name)
            if field.name in CHANGES_NOTHING or value == field.default:
                continue
            flag = f"--{field.name.replace('_', '-')}"
            for one in value if isinstance(value, tuple) else (value,):
                parts += [flag] if one is True else [flag, str(one)]
        return shlex.join(parts)

    def named(self) -> list[Path]:
        """Files and directories that its options name and that are there."""
        given = [getattr(self.options, field.name) for field in dataclasses.fields(self.options) if field.name in PATHS]
        texts = [text for value in given for text in (value if isinstance(value, tuple) else (value,))]
        return _present([part for text in texts for part in dict.fromkeys((text, text.partition("=")[2]))])

    def places(self) -> list[Path]:
        """All that it reads and that is on this machine now; a source that the hub would give is not asked for."""
        return [*_present(self.sources), *self.named()]

    def identity(self) -> dict[str, Any]:
        """All that the bytes depend on, as JSON. Raises what `find` raises."""
        given = dataclasses.asdict(self.options)
        options = {name: given[name] for name in sorted(given) if name not in CHANGES_NOTHING}
        inputs: dict[str, list] = {}
        for source in self.sources:
            inputs |= _looks(self.find(source))
        for path in self.named():
            inputs |= _looks(path)
        told = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
        return {"command": self.text, "options": told, "inputs": inputs, "versions": versions()}


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """In what two identities differ, in words; nothing where they do not."""
    if before.get("command") != now["command"] or before.get("options") != now["options"]:
        return f"another command was cut short there: {before.get('command', 'of another version')}"
    for what in ("inputs", "versions"):
        old, new = before.get(what, {}), now[what]
        changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
        if changed:
            kind = "of which" if what == "inputs" else "with another version of"
            verb = "has changed since" if what == "inputs" else "than now"
            return f"the same command was cut short there, {kind} {changed[0]} {verb}"
    return ""


def versions() -> dict[str, str]:
    """The versions of Python and of every library that the numbers may depend on; those not installed are left out."""
    found = {"python": platform.python_version()}
    for tool in ("mocomp", *TOOLS):
        try:
            found[tool] = metadata.version(tool.replace("_", "-"))
        except metadata.PackageNotFoundError:
            continue
    return found


def _present(texts: Iterable[str]) -> list[Path]:
    paths = [Path(text).expanduser() for text in texts if text]
    return [path for path in paths if os.path.exists(path)]  # noqa: PTH110 - a name that is too long exists nowhere


def _looks(path: Path) -> dict[str, list]:
    """Of a file, or each file of a directory: its size, the checksum of its start, and of a long one when it was changed.
    Journals, this command's own or another's, are read by no model."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file() and not _is_journal(file))
    return {str(file.resolve()): _look(file) for file in files}


def _is_journal(file: Path) -> bool:
    return file.name.startswith(".") and file.name.endswith(".journal")


def _look(file: Path) -> list:
    about = file.stat()
    with file.open("rb") as opened:
        start = hashlib.sha256(opened.read(READ)).hexdigest()
    return [about.st_size, start, about.st_mtime_ns if about.st_size > READ else 0]
