"""The memory and time that quantising a checkpoint larger than the memory it may take needs.

    python benchmarks/memory.py

A seeded random Qwen3-MoE checkpoint of 3.4 GB in several files is written, some rows at a time, and converted to 4 bits by
each algorithm, calibrated on 64 rows of 64 tokens. Every conversion is a process of its own, and its memory is what it takes
at its peak above that of importing its libraries. The rate is that of the experts' float weights through the phase that
quantises, the run of the model over the data included.
The bar: less than 1.5 GB for each algorithm.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import checkpoints
import click
import numpy as np
import timing
from peers import RESULTS, machine
from rich.console import Console
from rich.table import Table

ALGORITHMS = ("rtn", "hqq", "gptq", "awq")
LAYOUT = checkpoints.Layout(hidden=1024, expert_width=512, experts=64, layers=8, vocabulary=16384, heads=16)
SHARD = 1_000_000_000
ROWS, LENGTH = 64, 64
LIMIT = 1.5
"""GB above the imports."""
GB, MB = 1e9, 1e6


def write_rows(file: Path, layout: checkpoints.Layout) -> Path:
    """Calibration data: uniform tokens, so that every expert gets some."""
    ids = np.random.default_rng(1).integers(3, layout.vocabulary, (ROWS, LENGTH))
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ids.tolist()))
    return file


def measured(command: list, log: Path, threads: int) -> tuple[float, float]:
    """(seconds, peak GB) of a conversion, or of its imports alone."""
    spent = timing.cost(command, log, {"OMP_NUM_THREADS": str(threads)})
    return spent.seconds, spent.peak_gib * timing.GIB / GB


def quantised(algorithm: str, checkpoint: Path, rows: Path, layout: checkpoints.Layout, threads: int) -> dict:
    """What one algorithm takes, in all and, as the report of the conversion tells it, up to the end of each phase."""
    script, artifact, log = Path(__file__).with_name("converters.py"), checkpoint.parent / "artifact", checkpoint.parent / "log"
    importing = [sys.executable, script, "mocomp"]
    options = ["--quantize", "int4", "--algorithm", algorithm, "--calibration", rows]
    _, imports = measured(importing, log, threads)
    seconds, peak = measured([*importing, checkpoint, artifact, *options], log, threads)
    report = json.loads((artifact / "mocomp.json").read_text())
    experts = 4 * layout.layers * layout.experts * 3 * layout.hidden * layout.expert_width
    return {
        "memory_gb": peak - imports,
        "imports_gb": imports,
        "conversion_s": seconds,
        "MB/s": experts / MB / report["seconds"]["quantise"],
        "phases_s": report["seconds"],
        "phases_peak_gb": report["memory"],
        "weights_gb": (artifact / "model.onnx.data").stat().st_size / GB,
    }


def show(result: dict, console: Console) -> None:
    table = Table(
        "", "GB above imports", "seconds", "MB/s", "", title=f"{result['checkpoint_gb']:.2f} GB to int4, in {LIMIT} GB"
    )
    for name, row in result["rows"].items():
        mark = "[green]met" if result["bars"][name] else "[red]missed"
        table.add_row(name, f"{row['memory_gb']:.2f}", f"{row['conversion_s']:.0f}", f"{row['MB/s']:.0f}", mark)
    console.print(table)


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--layers", default=LAYOUT.layers, show_default=True)
@click.option("--vocabulary", default=LAYOUT.vocabulary, show_default=True)
@click.option("--algorithm", "algorithms", multiple=True, default=ALGORITHMS, show_default=True, help="Repeatable.")
@click.option("--threads", default=2, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Directory for the checkpoint; a temporary one by default.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file; by default one named after the machine.")
def main(*, layers, vocabulary, algorithms, threads, work, output) -> None:
    """Write, convert, print the table and write the JSON; exit with 1 when the bar is missed."""
    layout = checkpoints.Layout(**asdict(LAYOUT) | {"layers": layers, "vocabulary": vocabulary})
    with TemporaryDirectory(dir=work) as directory:
        rows = write_rows(Path(directory) / "rows.jsonl", layout)
        checkpoint = checkpoints.make(Path(directory) / "checkpoint", layout, shard_bytes=SHARD)
        taken = {name: quantised(name, checkpoint, rows, layout, threads) for name in algorithms}
    result = {
        "machine": machine(),
        "layout": asdict(layout) | {"parameters": layout.parameters},
        "checkpoint_gb": 4 * layout.parameters / GB,
        "data": {"rows": ROWS, "length": LENGTH},
        "threads": threads,
        "rows": taken,
        "limit_gb": LIMIT,
        "bars": {name: row["memory_gb"] < LIMIT for name, row in taken.items()},
    }
    suffix = "" if layout == LAYOUT else f"-{layout.name}-V{layout.vocabulary}"
    output = output or RESULTS / f"memory-{machine()['name']}{suffix}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    show(result, Console())
    sys.exit(0 if all(result["bars"].values()) else 1)


if __name__ == "__main__":
    main()
