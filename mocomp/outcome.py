"""How a command ends: with its result, or with one message and the exit code of what went wrong."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from mocomp import terminal
from mocomp.errors import Interrupted, MocompError


def outcome_of(work: Callable[[], Any]) -> Any:
    """Do the work with the libraries silenced; a failure becomes one message and the exit code of its class."""
    loud = os.environ.get("MOCOMP_LOUD") == "1"
    log: Path | None = None
    try:
        with terminal.interruptible(), nullcontext() if loud else terminal.quiet() as log:
            try:
                with nullcontext() if loud else terminal.starting():
                    return work()
            except BaseException:
                traceback.print_exc()  # into the log
                raise
    except (KeyboardInterrupt, Interrupted) as error:
        if log is not None:
            log.unlink(missing_ok=True)
        _fail(str(error) or "interrupted; nothing was left behind", Interrupted.exit_code, None)
    except MocompError as error:
        _fail(str(error), error.exit_code, log)
    except MemoryError:
        _fail("out of memory", 5, log)
    except Exception as error:
        _fail(f"this is a fault of mocomp, please report it: {type(error).__name__}: {error}", 70, log)
    finally:
        if log is not None and sys.exc_info()[0] is None:
            log.unlink(missing_ok=True)
    return None


def _fail(message: str, code: int, log: Path | None) -> None:
    click.echo(f"mocomp: {terminal.printable(message)}", err=True)
    if log is not None:
        click.echo(f"The libraries' own messages: {log}", err=True)
    sys.exit(code)
