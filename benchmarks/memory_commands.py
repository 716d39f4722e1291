"""The memory that each command takes on checkpoints larger than it may hold, measured from outside the process.

    python benchmarks/memory_commands.py --work DIRECTORY

Two seeded random checkpoints of 1 GB in bfloat16 are written, a dense Qwen3 and a Qwen3-MoE, and each command is run on one
of them with --memory 256MB, in a process of its own whose whole tree is looked at every 50 ms. What counts is its peak above
that of the imports alone. A model in float32 is 2 GB.
The bar: less than 1 GB above the imports, for every command.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import checkpoints
import click
import numpy as np
from large import EVERY, GB, watched
from peers import RESULTS, machine
from rich.console import Console
from rich.table import Table

SHARD = 500_000_000
MEMORY = "256MB"
LIMIT = 1.0
ROWS, LENGTH = 2, 128


@dataclass(frozen=True)
class Dense(checkpoints.Layout):
    """The dimensions of a dense Qwen3; `expert_width` is that of its blocks."""

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        inside = set[str]()
        for name, shape in super().tensors():
            block = name.partition(".mlp.")[0]
            if ".mlp." not in name:
                yield name, shape
            elif block not in inside:
                inside.add(block)
                yield f"{block}.mlp.gate_proj.weight", (self.expert_width, self.hidden)
                yield f"{block}.mlp.up_proj.weight", (self.expert_width, self.hidden)
                yield f"{block}.mlp.down_proj.weight", (self.hidden, self.expert_width)

    def config(self) -> dict[str, object]:
        kept = {name: value for name, value in super().config().items() if "expert" not in name and name != "norm_topk_prob"}
        named = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "intermediate_size": self.expert_width}
        return kept | named | {"moe_intermediate_size": None}


SIZES = {"hidden": 1024, "vocabulary": 16384, "heads": 16, "dtype": "bfloat16"}
DENSE = Dense(**SIZES, expert_width=4096, layers=30)
MOE = checkpoints.Layout(**SIZES, expert_width=512, experts=32, layers=9)

COMMANDS = {
    "upcycle": ("dense", "upcycle DENSE -o OUT --groups 2 --router-init hidden --calibration ROWS"),
    "upcycle, blocks": ("dense", "upcycle DENSE -o OUT --groups 2 --parity blocks"),
    "carve": ("dense", "carve DENSE -o OUT --method random --calibration ROWS --parity blocks"),
    "merge": ("dense", "merge DENSE -o OUT --expert a=DENSE --expert b=DENSE --rest average --parity blocks"),
    "extend": ("moe", "extend MOE -o OUT --experts 2 --copies usage --calibration ROWS --parity blocks"),
    "prune": ("moe", "prune MOE -o OUT --experts 24 --data ROWS"),
    "densify": ("mixture", "densify MIXTURE -o OUT --parity blocks"),
    "usage": ("moe", "usage MOE --data ROWS"),
    "quantize": ("moe", "quantize MOE --try int4:32 --algorithm gptq --calibration ROWS"),
    "convert": ("moe", "convert MOE -o OUT --quantize int4 --algorithm gptq --calibration ROWS"),
    "eval": ("artifact", "eval ARTIFACT --data ROWS"),
}
PREPARED = {
    "mixture": "upcycle DENSE -o MIXTURE --groups 2 --layout mocomp --parity off",
    "artifact": "convert MOE -o ARTIFACT --parity off",
}


def write_rows(file: Path) -> Path:
    """Uniform tokens."""
    ids = np.random.default_rng(1).integers(3, SIZES["vocabulary"], (ROWS, LENGTH))
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ids.tolist()))
    return file


def taken(text: str, places: dict[str, Path], log: Path) -> dict:
    """What a command takes whose words may be names of places."""
    words = [str(places.get(word, word)) for word in text.replace("=", " = ").split(" ")]
    command = " ".join(words).replace(" = ", "=").split(" ")
    shutil.rmtree(places["OUT"], ignore_errors=True)
    return watched([sys.executable, "-m", "mocomp", *command], log)


def imports(log: Path) -> float:
    """GB of a process that has imported what commands import, and done nothing."""
    code = "import torch, transformers, onnxruntime, mocomp.checkpoints, mocomp.pipeline, mocomp.models.huggingface as h; "
    code += "import onnx_ir, onnxscript, transformers.models.qwen3_moe.modeling_qwen3_moe, time; time.sleep(0.3)"
    return watched([sys.executable, "-c", code], log)["resident_gb"]


def show(result: dict, console: Console) -> None:
    table = Table("command", "above imports GB", "anonymous GB", "seconds", "", title=f"imports {result['imports_gb']:.2f} GB")
    for name, row in result["commands"].items():
        above = row["resident_gb"] - result["imports_gb"]
        mark = "[green]met" if above < LIMIT else "[red]missed"
        table.add_row(name, f"{above:.2f}", f"{row['anonymous_gb']:.2f}", f"{row['seconds']:.0f}", mark)
    console.print(table)


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--command", "names", multiple=True, default=tuple(COMMANDS), show_default=True, help="Repeatable.")
@click.option("--work", type=click.Path(path_type=Path), help="Directory on a disk with 15 GB; a temporary one by default.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file; by default one named after the machine.")
def main(*, names, work, output) -> None:
    """Write, run, print the table and write the JSON; exit with 1 when the bar is missed."""
    with TemporaryDirectory(dir=work) as temporary:
        base = Path(work or temporary)
        places = {word: base / f"memory-{word.lower()}" for word in ("DENSE", "MOE", "MIXTURE", "ARTIFACT", "OUT")}
        checkpoints.make(places["DENSE"], DENSE, shard_bytes=SHARD)
        checkpoints.make(places["MOE"], MOE, shard_bytes=SHARD)
        places["ROWS"], log = write_rows(base / "rows.jsonl"), base / "log"
        own, rows = imports(log), {}
        for name in names:
            kind, command = COMMANDS[name]
            if kind in PREPARED and not places[kind.upper()].exists():
                taken(PREPARED[kind], places, log)
            rows[name] = taken(f"{command} --memory {MEMORY}", places, log)
            print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
    result = {
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "every_s": EVERY,
        "memory": MEMORY,
        "limit_gb": LIMIT,
        "dense": asdict(DENSE) | {"gb": DENSE.nbytes / GB},
        "moe": asdict(MOE) | {"gb": MOE.nbytes / GB},
        "imports_gb": own,
        "commands": rows,
    }
    show(result, Console())
    path = output or RESULTS / f"memory-commands-{result['machine']['name']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(any(row["resident_gb"] - own >= LIMIT for row in rows.values()))


if __name__ == "__main__":
    main()
