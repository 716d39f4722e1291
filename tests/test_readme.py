"""The commands of the README run, in its order, and print what it shows, numbers aside."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def sessions() -> list[tuple[str, list[str]]]:
    """(command, lines shown under it) for each `$ mocomp ...` of the README's console blocks."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = part.rstrip().splitlines()
            found.append((command, shown))
    return found


def masked(line: str) -> str:
    """A line without its numbers, its bars and its spacing."""
    line = re.sub(r"[▁▂▃▄▅▆▇█·]{2,}", "▁", line)
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.e+-]*", "#", line)).strip()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the README's relative paths mean what they mean in a clone."""
    path = tmp_path_factory.mktemp("clone")
    (path / "examples").symlink_to(ROOT / "examples")
    return path


@pytest.mark.parametrize(("command", "shown"), sessions(), ids=[command for command, _ in sessions()])
def test_command_prints_what_the_readme_shows(command: str, shown: list[str], directory: Path) -> None:
    words = shlex.split(command)
    assert words[0] == "mocomp"
    done = subprocess.run([sys.executable, "-m", *words], cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = {masked(line) for line in done.stdout.splitlines()}
    missing = [line for line in shown if masked(line) and masked(line) not in printed]
    assert not missing, f"the README shows {missing}, printed was {done.stdout}"
