"""Damage at random: mutated safetensors headers and config.json, each given to mocomp in this process.

    python benchmarks/fuzz.py --seconds 300

Good ends are success and the errors of exit code 3 and 5; anything else is a finding, told with the number that makes it again
(`--only NUMBER`): another exception, more than a gigabyte of new memory, more than 20 seconds of
the processor.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
import transformers

from mocomp import terminal
from mocomp.errors import MocompError
from mocomp.weights.checkpoint import Checkpoint

WEIGHTS, CONFIG = "model.safetensors", "config.json"
GOOD, MEMORY, SECONDS = (3, 5), 1e9, 20
CONVERTED = 20
"""One in so many cases goes through a whole conversion, which takes as long as many others."""
JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 1 << 31, 1 << 63, -(1 << 63), 10**12, 10**30, 0.5, -1.5, 1e300, float("nan")),
    *("", "x", "../../etc/passwd", "\x1b[2J", "\u202e", "<script>", "a" * 5000, "\ud800", "F32", "none", "inf"),
    *([], {}, [0], [[]], [None], {"a": 1}, [1] * 300, [-1, 5], ["x"], {"": {}}),
]


class TooLong(BaseException):
    """A case that does not end; no library catches what is no Exception."""


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *places(value[key])]]


def mutate(value: Any, draw: random.Random) -> Any:
    """A JSON value with one to three things in it replaced, removed, renamed, doubled or exchanged."""
    value = deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        found = places(value)
        if not found:
            return draw.choice(JUNK)
        (holder, key), (other, its) = draw.choice(found), draw.choice(found)
        match draw.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[str(draw.choice(JUNK))] = holder.pop(key)
            case 2:
                holder[key] = deepcopy(other[its])
            case 3 if type(holder[key]) is int:
                holder[key] = draw.choice((holder[key] + 1, holder[key] - 1, -holder[key], holder[key] * 2, holder[key] * 1000))
            case _:
                holder[key] = deepcopy(draw.choice(JUNK))
    return value


def scramble(raw: bytes, draw: random.Random) -> bytes:
    """Bytes with some of them changed, removed or put in."""
    for _ in range(draw.choice((1, 1, 2, 5))):
        at, some = draw.randrange(len(raw) + 1), draw.randbytes(draw.choice((1, 1, 2, 8)))
        raw = draw.choice(
            (raw[:at] + some + raw[at + len(some) :], raw[:at] + raw[at + len(some) :], raw[:at] + some + raw[at:])
        )
    return raw if draw.random() < 0.9 else raw[: draw.randrange(len(raw) + 1)]


def damage_config(directory: Path, draw: random.Random) -> None:
    file = directory / CONFIG
    if draw.random() < 0.15:
        file.write_bytes(scramble(file.read_bytes(), draw))
    else:
        file.write_text(json.dumps(mutate(json.loads(file.read_text()), draw)))


def damage_header(directory: Path, draw: random.Random) -> None:
    file = directory / WEIGHTS
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, data = raw[8 : 8 + size], raw[8 + size :]
    header = scramble(header, draw) if draw.random() < 0.3 else json.dumps(mutate(json.loads(header), draw)).encode()
    told = (
        len(header) if draw.random() < 0.9 else draw.choice((0, 1, len(raw), 1 << 60, (1 << 64) - 1, draw.randrange(len(raw))))
    )
    file.write_bytes(told.to_bytes(8, "little") + header + data)


def look(directory: Path) -> None:
    from mocomp.models.inspection import inspect

    inspect(str(directory))


def read(directory: Path) -> None:
    with Checkpoint(directory) as checkpoint:
        for name in checkpoint.entries:
            checkpoint.recipe(name).evaluate(checkpoint.read)


def convert(directory: Path) -> None:
    from mocomp.options import ConvertOptions
    from mocomp.pipeline import convert as run

    run(str(directory), directory.parent / "made", ConvertOptions(parity="off"))


def seeds(directory: Path) -> list[Path]:
    """Good checkpoints: a mixture of transformers, a dense one, and one with mixtures of ours in it."""
    from mocomp.commands.upcycle import upcycle
    from mocomp.options import UpcycleOptions

    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    mixture: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    configs = {
        "mixture": transformers.Qwen3MoeConfig(**sizes, **heads, **mixture),
        "dense": transformers.LlamaConfig(**sizes, **heads),
    }
    torch.manual_seed(0)
    for name, config in configs.items():
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory / name)
    options = UpcycleOptions(groups="text=2,image=2", modality=("image=40..59",), layout="mocomp", parity="off")
    upcycle(str(directory / "dense"), directory / "ours", options)
    return [directory / name for name in (*configs, "ours")]


def tried(number: int, good: list[Path], directory: Path) -> str:
    """How case `number` ends: `success`, `exit code 5`, or a finding, which has the error in it."""
    draw = random.Random(number)
    source = shutil.copytree(draw.choice(good), directory / "source")
    damage, check = draw.choice(((damage_config, look), (damage_header, read)))
    damage(source, draw)
    steps = [check, convert] if draw.randrange(CONVERTED) == 0 else [check]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        ended = outcome(steps, source)
    finally:
        for made in (source, directory / "made"):
            shutil.rmtree(made, ignore_errors=True)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    left = [path.name for path in directory.iterdir()]
    return f"finding: left {left}" if left else f"finding: {grown / 1e9:.1f} GB" if grown > MEMORY else ended


def outcome(steps: list[Callable[[Path], None]], source: Path) -> str:
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        for step in steps:
            step(source)
    except MocompError as error:
        return f"exit code {error.exit_code}" if error.exit_code in GOOD else f"finding: exit code {error.exit_code}: {error}"
    except TooLong:
        return f"finding: longer than {SECONDS} s"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/mocomp/" in frame.filename] or frames
        place = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (ours[-1], frames[-1]))
        return f"finding: {type(error).__name__}: {str(error)[:120]} ({place})"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "success"


def _too_long(number: int, frame: Any) -> None:
    raise TooLong


@contextmanager
def workplace():
    """Good checkpoints and a place for damaged ones, with the libraries silent."""
    with TemporaryDirectory(prefix="mocomp-fuzz-") as name, terminal.quiet():
        (Path(name) / "case").mkdir()
        good = seeds(Path(name))
        convert(shutil.copytree(good[0], Path(name) / "first" / "source"))  # what is imported late is no case's fault
        yield good, Path(name) / "case"


@click.command()
@click.option("--seconds", default=300, help="How long.")
@click.option("--first", default=0, help="The number to begin with.")
@click.option("--only", type=int, help="This case alone.")
def main(seconds: int, first: int, only: int | None) -> None:
    ends: Counter[str] = Counter()
    findings: dict[str, int] = {}
    until, number = time.monotonic() + seconds, first if only is None else only
    with workplace() as (good, place):
        while time.monotonic() < until:
            ended = tried(number, good, place)
            ends[ended.split(":")[0]] += 1
            if ended.startswith("finding"):
                findings.setdefault(ended, number)
            if only is not None:
                break
            number += 1
    for ended, count in ends.most_common():
        print(f"{count:6} {ended}")
    for ended, example in findings.items():
        print(f"case {example}: {ended}")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
