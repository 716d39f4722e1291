"""Every failure that a user can act on: what is wrong, where, and what to do about it.

The exit code is part of the class, so that a script can tell a wrong number from a missing file.
"""

from __future__ import annotations


class MocompError(Exception):
    """Base of all expected failures; anything else that escapes is our fault (exit code 70)."""

    exit_code = 70
    lasting = True
    """Whether the same command would meet it again, so that nothing of its output is worth keeping."""

    def __init__(self, what: str, *, where: str = "", fix: str = ""):
        self.what, self.where, self.fix = what, where, fix
        super().__init__("\n".join(part for part in (f"{where}: {what}" if where else what, fix) if part))


class ParityFailed(MocompError):
    """The artifact was made, but its numbers are not those of the original."""

    exit_code = 1


class Usage(MocompError):
    """The command line or an option's value cannot be meant that way."""

    exit_code = 2


class Unsupported(MocompError):
    """The model or the target cannot be done; `gaps` lists each reason."""

    exit_code = 3

    def __init__(self, what: str, *, where: str = "", fix: str = "", gaps: list[str] | None = None):
        self.gaps = gaps or []
        listed = "".join(f"\n  - {gap}" for gap in self.gaps)
        super().__init__(what + listed, where=where, fix=fix)


class MissingDependency(MocompError):
    """An optional package is needed; the fix is the command that installs it."""

    exit_code = 4


class BadInput(MocompError):
    """What was handed over is damaged, incomplete or in the way: a checkpoint, a directory, a full disk."""

    exit_code = 5


class OutOfReach(BadInput):
    """Who was to do the work cannot: a cluster that does not answer, a worker that died. Another time it may."""

    lasting = False


class Interrupted(MocompError):
    """Ctrl-C, where parts of the output stay that the same command goes on with."""

    exit_code = 130
