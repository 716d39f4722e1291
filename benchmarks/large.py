"""The memory and time that converting a checkpoint much larger than memory takes, measured from outside the process.

    python benchmarks/large.py --work DIRECTORY

A seeded random Qwen3-MoE checkpoint of 12 GB, bfloat16, in shards of 1 GB, is written, and converted to float16 for CUDA
(emulated: what no GPU has run is unproven there) and to int4 for the CPU, with the proof, which comes to be made in parts, and
without. Each conversion is a process of its own, whose whole tree is looked at every 50 ms. Resident memory counts pages of
mapped files, which the system may take back at any time; anonymous memory is what it cannot.
The bar: less than 2 GB resident.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import checkpoints
import click
from peers import RESULTS, machine
from rich.console import Console
from rich.table import Table

LAYOUT = checkpoints.Layout(
    hidden=2048, expert_width=128, vocabulary=65536, heads=32, head_width=128, layers=48, dtype="bfloat16"
)
SHARD = 1_000_000_000
EVERY = 0.05
"""Seconds between two looks at a process."""
LIMIT = 2.0
GB, MB = 1e9, 1e6
CONVERSIONS = {
    "float16": ("--target", "onnxruntime", "--device", "cuda", "--dtype", "float16", "--emulate"),
    "int4": ("--target", "onnxruntime", "--quantize", "int4"),
}
PROOFS = ("off", "full")


def layout_of(gigabytes: float) -> checkpoints.Layout:
    """The layout with as many layers as make a checkpoint of about that size."""
    one, two = (replace(LAYOUT, layers=count).nbytes for count in (1, 2))
    return replace(LAYOUT, layers=max(round((gigabytes * GB - one) / (two - one)) + 1, 1))


def tree(pid: int) -> list[int]:
    """A process and all that it started, as far as they are there."""
    found = [pid]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def held(pid: int) -> tuple[int, int]:
    """(resident bytes, anonymous bytes of those) of a process and all that it started."""
    resident = anonymous = 0
    for process in tree(pid):
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:
            continue
        sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith("Rss")}
        resident, anonymous = resident + sum(sizes.values()), anonymous + sizes.get("RssAnon", 0)
    return resident, anonymous


def watched(command: list[str], log: Path) -> dict:
    """What a command takes: seconds, and peaks in GB with the second at which they were."""
    peaks = {"resident": (0, 0.0), "anonymous": (0, 0.0)}
    begin = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            now = time.perf_counter() - begin
            for name, size in zip(peaks, held(process.pid), strict=True):
                peaks[name] = max(peaks[name], (size, now))
            time.sleep(EVERY)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {process.returncode}:\n{log.read_text()[-3000:]}")
    told = {f"{name}_gb": size / GB for name, (size, _) in peaks.items()}
    return told | {"resident_at_s": peaks["resident"][1], "seconds": time.perf_counter() - begin}


def converted(source: Path, artifact: Path, name: str, proof: str, size: int) -> dict:
    """One conversion, from outside and as its report tells it."""
    command = [sys.executable, "-m", "mocomp", "convert", source, "-o", artifact, *CONVERSIONS[name], "--parity", proof]
    spent = watched([str(word) for word in command], artifact.parent / f"{name}-{proof}.log")
    report = json.loads((artifact / "mocomp.json").read_text())
    shutil.rmtree(artifact)
    seconds = report["seconds"]
    parity = report["parity"] or {}
    return spent | {
        "phases_s": seconds,
        "phases_peak_gb": report["memory"],
        "MB/s": {phase: size / MB / s for phase, s in seconds.items() if phase in ("quantise", "lower and write", "parity")},
        "weights_gb": report["artifact"]["weight_bytes"] / GB,
        "proof": parity.get("how", "none"),
        "worst": parity.get("worst"),
        "agreement": parity.get("agreement"),
        "notes": parity.get("notes", [])[:3],
    }


def show(result: dict, console: Console) -> None:
    table = Table("", "proof", "resident GB", "anonymous GB", "seconds", "", title=f"{result['checkpoint_gb']:.1f} GB")
    for row in result["rows"]:
        mark = "[green]met" if row["resident_gb"] < LIMIT else "[red]missed"
        numbers = [f"{row[key]:.2f}" for key in ("resident_gb", "anonymous_gb")]
        table.add_row(row["name"], row["proof"], *numbers, f"{row['seconds']:.0f}", mark)
    console.print(table)


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--gigabytes", default=12.0, show_default=True)
@click.option("--conversion", "names", multiple=True, default=tuple(CONVERSIONS), show_default=True, help="Repeatable.")
@click.option("--parity", "proofs", multiple=True, default=PROOFS, show_default=True, help="Repeatable.")
@click.option("--work", type=click.Path(path_type=Path), help="Directory on a disk with 30 GB; a temporary one by default.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file; by default one named after the machine.")
def main(*, gigabytes, names, proofs, work, output) -> None:
    """Write, convert, print the table and write the JSON; exit with 1 when the bar is missed."""
    layout = layout_of(gigabytes)
    with TemporaryDirectory(dir=work) as temporary:
        place = Path(work or temporary)
        source = place / f"large-{layout.name}"
        checkpoints.make(source, layout, shard_bytes=SHARD)
        rows = [
            {"name": name, **converted(source, Path(temporary) / "artifact", name, proof, layout.nbytes)}
            for name in names
            for proof in proofs
        ]
    result = {
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "layout": asdict(layout),
        "checkpoint_gb": layout.nbytes / GB,
        "limit_gb": LIMIT,
        "met": all(row["resident_gb"] < LIMIT for row in rows),
        "rows": rows,
    }
    show(result, Console())
    file = output or RESULTS / f"large-{result['machine']['name']}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if result["met"] else 1)


if __name__ == "__main__":
    main()
