"""Damaged checkpoints: exit code 5 or 3, a message with the file and the tensor, nothing left, soon, in little memory."""

import resource
import shutil
import time
from pathlib import Path

import pytest

from mocomp.errors import BadInput
from mocomp.weights.checkpoint import Checkpoint
from tests import damaged_checkpoints as damaged
from tests.damaged_configs import CARRIED, CONFIGS

ALL = damaged.WEIGHT_DAMAGES | damaged.DATA | damaged.POISONED | CONFIGS | CARRIED
SECONDS, BYTES = 5.0, 1e9
TRACED = 15.0
"""Seconds for what is seen only beside the graph, or when it is written: 3 s on an idle processor, and tests share one."""
BY_WEIGHTS = {
    "more experts than there are",
    "a vocabulary of another size",
    "a few hundred layers too many",
    "quantization_config of nobody",
    "quantization_config without a method",
    "quantization_config of wrong types",
}
"""What is wrong only beside the weights, which `inspect` does not look at."""


@pytest.fixture
def source(checkpoint, tmp_path) -> Path:
    return shutil.copytree(checkpoint("qwen3_moe"), tmp_path / "source")


def limited(command, *arguments: object, seconds: float = SECONDS):
    """The command, which has to end soon and without much memory."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    done = command(*arguments)
    assert time.process_time() - began < seconds
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES
    return done


def refused(done, source: Path, name: str) -> None:
    _, fragment, code = ALL[name]
    assert (done.code, done.out) == (code, ""), done.err
    assert fragment in done.err and (str(source) in done.err or name in CONFIGS), done.err
    assert "Traceback" not in done.err and "\x1b" not in done.err and done.err.startswith("mocomp: "), done.err


def test_the_checkpoint_itself_is_taken(command, source, tmp_path):
    """Else every test below could pass for a reason of its own; and it imports what is imported late, which takes seconds."""
    assert command("convert", source, "-o", tmp_path / "made", "--parity", "off").code == 0


def test_there_are_enough_of_them():
    kinds = (damaged.WEIGHT_DAMAGES, damaged.DATA, damaged.POISONED, CONFIGS, CARRIED)
    assert len(ALL) >= 60 and len(ALL) == sum(map(len, kinds))


@pytest.mark.parametrize("name", [name for name in ALL if name not in damaged.POISONED])
def test_convert_refuses(command, source, tmp_path, name):
    ALL[name][0](source)
    seconds = TRACED if name in damaged.DATA or name in BY_WEIGHTS else SECONDS
    done = limited(command, "convert", source, "-o", tmp_path / "out" / "made", "--parity", "off", seconds=seconds)
    lines = [line for line in done.err.splitlines(keepends=True) if not line.startswith(("trace", "weights"))]
    done = type(done)(done.code, done.out, "".join(lines))
    refused(done, source, name)
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in BY_WEIGHTS])
def test_inspect_refuses(command, source, name):
    ALL[name][0](source)
    refused(limited(command, "inspect", source), source, name)


@pytest.mark.parametrize("name", damaged.POISONED)
def test_reading_refuses(source, name):
    """A good file gives all of its tensors first, so that it is the damage that is seen."""
    read_all(source)
    ALL[name][0](source)
    with pytest.raises(BadInput, match=f"tensor {ALL[name][1]} holds NaN or infinity") as caught:
        read_all(source)
    assert caught.value.where == str(source / damaged.WEIGHTS)


def read_all(source: Path) -> None:
    with Checkpoint(source) as checkpoint:
        for name in checkpoint.entries:
            checkpoint.recipe(name).evaluate(checkpoint.read)


@pytest.mark.parametrize("name", ["header of 2^60 bytes", "tensors that overlap", "a pipe", "config nested absurdly"])
@pytest.mark.parametrize(
    "words", [("quantize", "--try", "int8"), ("prune", "--experts", "4", "-o")], ids=lambda words: words[0]
)
def test_other_commands_refuse(command, source, tmp_path, name, words):
    ALL[name][0](source)
    output = [tmp_path / "out" / "made"] if "-o" in words else []
    done = command(words[0], source, *words[1:], *output)
    assert done.code == 5 and ALL[name][1] in done.err and str(source) in done.err, done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["header of 2^60 bytes", "a NaN", "config nested absurdly"])
def test_upcycle_refuses(command, checkpoint, tmp_path, name):
    source = shutil.copytree(checkpoint("llama"), tmp_path / "source")
    ALL[name][0](source)
    done = command("upcycle", source, "-o", tmp_path / "out" / "made", "--groups", "4", "--parity", "off")
    assert done.code == 5 and ALL[name][1] in done.err and str(source) in done.err, done.err
    assert not (tmp_path / "out").exists()
