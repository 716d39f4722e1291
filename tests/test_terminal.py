"""What long work shows: bars on a terminal, lines in a log, and nothing of the libraries on either."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mocomp import terminal

ROOT = Path(__file__).parents[1]
WORK = """
import sys, time
from mocomp import terminal
with terminal.quiet() as log, terminal.starting():
    time.sleep(0.15)
    with terminal.phase("trace"):
        print("LIBRARY"); time.sleep(0.15)
    with terminal.progress("weights", 5_100_000) as advance:
        for _ in range(3):
            print("LIBRARY"); print("LIBRARY", file=sys.stderr); advance(1_700_000); time.sleep(0.15)
    with terminal.progress("eval", 4, "rows") as advance:
        for i in range(4):
            advance(1)
            if i == 1:
                terminal.say("a line in between")
    assert log.read_text().count("LIBRARY") == 7
    log.unlink()
print('{"result": 1}')
"""
ENDS = (r"trace: \d+\.\d s, peak memory \d+\.\d\d GB", r"weights: 5\.1 MB in 0\.\d s, peak memory", r"eval: 4 rows in \d")


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS")}
    return kept | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "80"} | changes


def on_terminal(script: str, **changes: str) -> tuple[str, str]:
    """(standard output, what came to the screen) of a script whose standard error is a terminal."""
    ours, its = pty.openpty()
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdin=its, stdout=subprocess.PIPE, stderr=its, env=environment(**changes))
    os.close(its)
    screen = b""
    while part := _read(ours):
        screen += part
    os.close(ours)
    assert process.stdout is not None
    out = process.stdout.read().decode()
    process.stdout.close()
    assert process.wait() == 0, screen.decode()
    return out, screen.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how Linux says that nobody has the other end any more
        return b""


def left_on(screen: str) -> list[str]:
    """The lines that are there in the end: what was drawn is erased by the codes that a terminal obeys."""
    lines, row = [""], 0
    for code, text in re.findall(r"(\x1b\[[?\d;]*[A-Za-z]|\r|\n)|([^\x1b\r\n]+)", screen):
        if code == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif code.endswith("A"):
            row -= int(code[2:-1] or 1)
        elif code in ("\x1b[2K", "\x1b[K"):
            lines[row] = ""
        lines[row] += text
    return [line for line in lines if line.strip()]


def test_a_terminal_shows_bars_and_keeps_one_line_of_each():
    out, screen = on_terminal(WORK)
    assert out == '{"result": 1}\n' and "LIBRARY" not in screen
    assert "starting" in screen and screen.rfind("starting") < screen.find("trace")
    assert "━" in screen and re.search(r"1\.7 of 5\.1 MB, \d\.\d s, \d\.\d s left", screen)
    left = left_on(screen)
    assert len(left) == 4 and left[2] == "a line in between"
    for line, pattern in zip((left[0], left[1], left[3]), ENDS, strict=True):
        assert re.match(pattern, line)
    assert screen.rstrip().rfind("\x1b[?25h") > screen.rfind("\x1b[?25l")  # the cursor is there again


def test_colours_are_those_that_the_user_wants():
    colour = re.compile(r"\x1b\[[\d;]*(?:3[0-9]|38;[\d;]+|9[0-7])m")
    assert colour.search(on_terminal(WORK)[1])
    plain = on_terminal(WORK, NO_COLOR="1")[1]
    assert not colour.search(plain) and "━" in plain


def test_a_terminal_that_cannot_erase_gets_lines():
    out, screen = on_terminal(WORK, TERM="dumb")
    assert out == '{"result": 1}\n' and "\x1b" not in screen and "━" not in screen and "LIBRARY" not in screen
    assert screen.split("\r\n")[:3:2] == ["trace", "weights: 5.1 MB"]


@pytest.mark.parametrize("changes", [{}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}], ids=str)
def test_a_log_holds_plain_lines(changes):
    command = [sys.executable, "-c", WORK]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**changes), check=True)
    assert done.stdout == '{"result": 1}\n'
    expected = ["trace", ENDS[0], r"weights: 5\.1 MB", ENDS[1], "eval: 4 rows", "a line in between", ENDS[2]]
    lines = done.stderr.splitlines()
    assert len(lines) == len(expected) and "\x1b" not in done.stderr
    assert all(re.match(pattern, line) for pattern, line in zip(expected, lines, strict=True)), lines


def test_what_says_nothing_leaves_nothing():
    out, screen = on_terminal(
        "import sys, time\nfrom mocomp.outcome import outcome_of\nprint(outcome_of(lambda: time.sleep(0.3) or 7), flush=True)"
    )
    assert out == "7\n" and "starting" in screen and left_on(screen) == []


def test_a_failure_is_told_after_the_clock_is_gone():
    script = (
        "from mocomp.outcome import outcome_of\nfrom mocomp.errors import BadInput\n"
        "def work():\n    raise BadInput('it is damaged', where='x')\n"
        "try:\n    outcome_of(work)\nexcept SystemExit as end:\n    print(end.code)"
    )
    out, screen = on_terminal(script)
    assert out == "5\n" and left_on(screen)[-2].endswith("mocomp: x: it is damaged") and "Traceback" not in screen


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The lines said in this process, whose standard error is no terminal."""
    lines: list[str] = []
    monkeypatch.setattr(terminal, "say", lines.append)
    monkeypatch.setattr(terminal, "_draws", lambda: False)
    return lines


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock that stands still until a test sets it."""
    now = [0.0]
    monkeypatch.setattr(terminal, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_a_log_hears_of_long_work_now_and_then(said, clock):
    """Every ten seconds at most, and only of a tenth more; but of slow work every five minutes."""
    with terminal.progress("weights", 100_000_000) as advance:
        for _ in range(100):
            clock[0] += 1
            advance(1_000_000)
    amounts = [line.split(",")[0] for line in said[1:-1]]
    assert amounts == [f"weights: {i}0.0 of 100.0 MB" for i in range(1, 10)] and said[0] == "weights: 100.0 MB"
    assert said[1] == "weights: 10.0 of 100.0 MB, 10%, 1.0 MB/s, 1 min 30 s left"
    assert said[-1].startswith("weights: 100.0 MB in 1 min 40 s, peak memory ")
    said.clear()
    with terminal.progress("layers", 1000, "parts") as advance:
        for _ in range(20):
            clock[0] += 100
            advance(1)
    assert said[1:3] == [
        "layers: 3 of 1000 parts, 0%, 0.01 parts/s, 27 h 41 min left",
        "layers: 6 of 1000 parts, 1%, 0.01 parts/s, 27 h 36 min left",
    ]
    assert len(said) == 8


def test_quick_work_says_two_lines_whatever_it_is_told(said, clock):
    with terminal.progress("eval", 1000, "rows") as advance:
        for _ in range(1000):
            clock[0] += 0.009
            advance(1)
    assert said[0] == "eval: 1000 rows" and len(said) == 2


def test_work_that_fails_is_not_said_to_be_done(said):
    with pytest.raises(ValueError), terminal.progress("weights", 10):
        raise ValueError
    with pytest.raises(ValueError), terminal.phase("trace"):
        raise ValueError
    assert said == ["weights: 0.0 MB", "trace"]


def test_work_that_tells_nothing_has_a_time_and_no_amount(said, clock):
    with terminal.progress("weights", 10_000_000):
        clock[0] += 2
    assert said[1].startswith("weights: 2.0 s, peak memory ")


def test_an_interruption_that_was_swallowed_ends_a_phase(said, monkeypatch):
    monkeypatch.setattr(terminal, "_interrupted", True)
    with pytest.raises(KeyboardInterrupt), terminal.phase("trace"):
        pass
    assert said == ["trace"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min 0 s"),
        (185.4, "3 min 5 s"),
        (3599.6, "1 h 0 min"),
        (4330, "1 h 12 min"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds, words):
    assert terminal.duration(seconds) == words


def test_peak_memory_is_that_of_the_process():
    before = terminal.peak_memory()
    held = bytearray(200_000_000)
    held[::4096] = b"1" * len(held[::4096])
    assert 0.01 < before < 50 and terminal.peak_memory() >= 0.2
