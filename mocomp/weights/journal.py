"""What of an output is written already, so that a command that was cut short goes on where it was.

A file beside the output, of a line of JSON each: the command that it belongs to, processes that worked on it, and parts that
are on disk. A part is told of only when it is on disk; since to wait for the disk takes time, several are told of together. A
last line that was cut short is no line.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mocomp.weights import disk
from mocomp.weights.checksums import Part, is_span

HEAD = b'{"belongs": '
"""How one begins."""
SECONDS, BYTES = 1.0, 256 << 20
"""After so long, or so much, that is not told of yet, it is."""


@dataclass
class Told:
    """What a journal says: the identity of its command, the last process, the parts, the number of the finished directory, and
    the bytes up to the first line that is none."""

    belongs: dict[str, Any] | None = None
    pid: int = 0
    parts: list[Part] = field(default_factory=list)
    finished: int = 0
    end: int = 0


class Journal:
    """Parts of the files in `directory` that are written, each with its checksum; `file` is a path relative to that.

    `log` is where it is kept; without one nothing is. Raises OSError when the disk refuses.
    """

    def __init__(self, directory: Path = Path(), log: disk.File | None = None):
        self.directory, self._log = directory, log
        self._told = read_journal(log.path) if log is not None else Told()
        self._parts: dict[tuple[str, int, int], Part] = {}
        self._waiting: list[Part] = []
        self._since = time.monotonic()
        self.keeps = False
        """Whether there is something on disk that another run need not do again."""

    @property
    def parts(self) -> list[Part]:
        """Those that are written and as they should be, in order."""
        return sorted(self._parts.values())

    @property
    def told(self) -> list[Part]:
        """Those that an earlier run told of, whether they are still there or not."""
        return self._told.parts

    @property
    def belongs(self) -> dict[str, Any] | None:
        """The identity of the earlier run's command."""
        return self._told.belongs

    def known(self, file: str, offset: int, length: int) -> str | None:
        """The SHA-256 of bytes that this run wrote or an earlier one, and that are there; None for those to be written."""
        part = self._parts.get((file, offset, length))
        return part.sha256 if part is not None else None

    def forget(self, file: str) -> None:
        """A file of the directory is removed, that was only there to make others."""
        self._parts = {key: part for key, part in self._parts.items() if part.file != file}
        self._waiting = [part for part in self._waiting if part.file != file]

    def done(self, file: str, offset: int, length: int, sha256: str) -> None:
        """These bytes are written, though not on disk for certain yet."""
        part = Part(file, offset, length, sha256)
        self._parts[file, offset, length] = part
        if self._log is None:
            return
        self._waiting.append(part)
        if time.monotonic() - self._since > SECONDS or sum(waiting.length for waiting in self._waiting) > BYTES:
            self.flush()

    def flush(self) -> None:
        """Wait until the parts that are done are on disk, and tell of them."""
        waiting, self._waiting = self._waiting, []
        for file in dict.fromkeys(part.file for part in waiting):
            disk.sync_file(self.directory / file)
        self._tell(*map(asdict, waiting))
        self.keeps = self.keeps or bool(waiting and self._told.belongs)
        self._since = time.monotonic()

    def begin(self, identity: dict[str, Any] | None) -> None:
        """This process works on it, for the command of this identity; what the journal says of another one is forgotten."""
        if self._told.belongs != identity or identity is None:
            self._told = Told()
            self._tell({"belongs": identity})
        self._told.belongs = identity
        self._tell({"pid": os.getpid()})

    def keep(self, part: Part) -> None:
        """What an earlier run told of this part is so."""
        self._parts[part.file, part.offset, part.length] = part
        self.keeps = True

    def finish(self, number: int) -> None:
        """All is on disk, and the directory of this number (st_ino) is about to get its place."""
        self._tell({"finished": number})

    def _tell(self, *lines: dict[str, Any]) -> None:
        if self._log is None or not lines:
            return
        text = "".join(json.dumps(line) + "\n" for line in lines)
        self._log.truncate(self._told.end)
        end = self._log.write_at(self._told.end, text.encode())
        self._log.sync()
        self._told.end = end


def read_journal(path: Path) -> Told:
    """What the journal at `path` says; of parts that are told of twice the last, of files outside its directory nothing."""
    told, parts = Told(), {}
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            found = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(found, dict):
            break
        told.end += len(line)
        told.belongs = found.get("belongs", told.belongs)
        told.pid, told.finished = found.get("pid", told.pid), found.get("finished", told.finished)
        if found.keys() == {"file", "offset", "length", "sha256"} and _is_own(found):
            part = Part(**found)
            parts[part.file, part.offset, part.length] = part
    told.parts = list(parts.values())
    return told


def _is_own(found: dict[str, Any]) -> bool:
    file = found["file"]
    inside = isinstance(file, str) and ".." not in Path(file).parts and not Path(file).is_absolute()
    return inside and is_span(found["offset"], found["length"])
