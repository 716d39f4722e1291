"""mocomp against what its users would pick instead, in one run on one machine.

    pip install mocomp[bench] -c constraints.txt
    python benchmarks/peers.py --python mobius=/path/to/other/venv/bin/python

Measures mocomp, the transformers exporter with ONNX Runtime's fusions, mobius-onnx 0.1 and torch in eager mode on a
seeded random Qwen3-MoE checkpoint: conversion, peak memory, nodes, session load, decoding and prefill. Conversions and
models run in processes of their own, each with the interpreter named for it, so that the dependencies of a peer cannot
disturb mocomp. Timed turns alternate, and the result is judged by ratios. `--layers 40` is a model of 2 B.
mocomp's own artifacts in 4 bits, by plain rounding, take part as well: no peer quantises this model to run on the CPU, so
they stand beside the float ones.

By hand: `pip install torch==2.13.0 mobius-onnx==0.1.0 -c constraints.txt`. Never let pip choose torch.
"""

import json
import os
import platform
import re
import statistics
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import checkpoints
import click
import timing
import verdict
from rich.console import Console

CONVERTERS = ("mocomp", "transformers", "mobius")
OPTIONS = {
    "mocomp tuned": ("--tune", "1,128,512"),
    "mocomp int4:32": ("--quantize", "int4:32", "--accuracy-level", "4"),
    "mocomp int4:128": ("--quantize", "int4:128", "--accuracy-level", "4"),
    "mocomp int4:32, float activations": ("--quantize", "int4:32"),
}
"""Further artifacts of mocomp, with what its command line is told for them."""
RESULTS = Path(__file__).with_name("results")
# Gathers the weights of every token: gigabytes for a prefill, and only ever the best choice for one token.
SKIP = {("torch batched_mm", "128 tokens"), ("torch batched_mm", "512 tokens")}


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--layers", default=4, show_default=True)
@click.option("--experts", default=128, show_default=True)
@click.option("--hidden", default=512, show_default=True)
@click.option("--expert-width", default=256, show_default=True)
@click.option("--only", multiple=True, type=click.Choice([*CONVERTERS, "torch"]), help="Measure only these; repeatable.")
@click.option("--python", "pythons", multiple=True, metavar="NAME=PATH", help="Interpreter of one of them; repeatable.")
@click.option("--threads", default=2, show_default=True)
@click.option("--repeats", default=7, show_default=True, help="Turns per model and workload.")
@click.option("--loads", default=3, show_default=True, help="Sessions loaded per artifact.")
@click.option("--work", type=click.Path(path_type=Path), help="Directory to work in; a temporary one by default.")
@click.option("--reuse", is_flag=True, help="Take conversions that --work holds already. Not for results to publish.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file; by default one named after the machine.")
def main(*, layers, experts, hidden, expert_width, only, pythons, threads, repeats, loads, work, reuse, output) -> None:
    console = Console()
    chosen = only or (*CONVERTERS, "torch")
    interpreters: dict[str, str] = dict.fromkeys((*CONVERTERS, "torch"), sys.executable)
    interpreters.update(pair.split("=", 1) for pair in pythons)
    layout = checkpoints.Layout(layers=layers, experts=experts, hidden=hidden, expert_width=expert_width)
    with TemporaryDirectory() as temporary:
        work = (work or Path(temporary)) / layout.name
        checkpoint = checkpoints.make(work / "checkpoint", layout)
        rows: dict[str, verdict.Row] = {}
        for name in (*CONVERTERS, *OPTIONS):
            tool = name.split(maxsplit=1)[0]
            if tool not in chosen:
                continue
            console.print(f"converting with {name}")
            try:
                rows[name] = convert(name, interpreters[tool], checkpoint, work, reuse)
            except RuntimeError as error:  # a peer that fails is a result, and the others are still worth having
                console.print(f"[red]{error}")
        if "torch" in chosen:
            rows["torch"] = {}
        console.print("loading and running")
        measure(rows, interpreters, checkpoint, work, threads=threads, repeats=repeats, loads=loads)
    checks = [bar.check(rows) for bar in verdict.BARS]
    verdict.show(rows, checks, console)
    result = {
        "machine": machine(),
        "layout": asdict(layout) | {"parameters": layout.parameters},
        "settings": {"threads": threads, "repeats": repeats, "loads": loads, "reused": reuse},
        "rows": rows,
        "ratios": verdict.ratios(rows),
        "ratios_to_best_peer": verdict.ratios_to_best_peer(rows),
        "bars": checks,
    }
    suffix = "" if layout == checkpoints.Layout() else f"-{layout.name}"
    output = output or RESULTS / f"peers-{machine()['name']}{suffix}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"written to {output.name}")


def convert(name: str, python: str, checkpoint: Path, work: Path, reuse: bool) -> verdict.Row:
    """Convert in a process of its own; memory is what the conversion takes above importing its libraries."""
    artifact, tool = directory_of(name, work), name.split(maxsplit=1)[0]
    script, receipt, log = (
        Path(__file__).with_name("converters.py"),
        *(Path(f"{artifact}.{kind}") for kind in ("json", "log")),
    )
    if reuse and receipt.exists():
        return json.loads(receipt.read_text())
    imports = timing.cost([python, script, tool], log)
    conversion = timing.cost([python, script, tool, checkpoint, artifact, *OPTIONS.get(name, ())], log)
    row: verdict.Row = {
        "conversion_s": conversion.seconds,
        "imports_s": imports.seconds,
        "peak_gib": conversion.peak_gib,
        "memory_gib": conversion.peak_gib - imports.peak_gib,
        "nodes": nodes(artifact / "model.onnx"),
        "weights_mb": sum(file.stat().st_size for file in artifact.glob("*onnx*")) / 1e6,
    }
    receipt.write_text(json.dumps(row))
    return row


def directory_of(name: str, work: Path) -> Path:
    """Where the artifact of a row lies, in letters that every file system takes."""
    return work / re.sub(r"\W+", "-", name)


def nodes(path: Path) -> int:
    """The nodes of the graph, those of its subgraphs and local functions included."""
    import onnx_ir  # late: a light parent keeps the memory of its children measurable

    model = onnx_ir.load(path)
    graphs = (model.graph, *model.functions.values())
    return sum(1 for graph in graphs for _ in onnx_ir.traversal.RecursiveGraphIterator(graph))


def measure(
    rows: dict[str, verdict.Row],
    interpreters: dict[str, str],
    checkpoint: Path,
    work: Path,
    *,
    threads: int,
    repeats: int,
    loads: int,
) -> None:
    """Fill in session load, latency and error; peers' artifacts run on mocomp's ONNX Runtime, as mocomp's does."""
    config = json.loads((checkpoint / "config.json").read_text())
    where = {name: ("onnx", directory_of(name, work)) if name != "torch" else ("torch", checkpoint) for name in rows}
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(loads):
        for name, (kind, directory) in where.items():
            times[name] += timing.load_times(interpreters["torch"], kind, directory, threads, repeats=1)
    workers = {name: timing.Worker(interpreters["torch"], *where[name], threads) for name in rows}
    samples = timing.take_turns(workers, config, repeats, SKIP)
    for worker in workers.values():
        worker.close()
    for name, row in rows.items():
        row["load_s"] = statistics.median(times[name])
        best = Counter()
        for workload in timing.WORKLOADS:
            taken = {key: times for (key, load), times in samples.items() if load == workload.name}
            own = [f"{name} {variant}".strip() for variant in workers[name].variants]
            runs = {key: taken[key] for key in own if key in taken}
            fastest = min(runs, key=lambda key: runs[key].median)
            row[workload.name] = runs[fastest].median
            best[fastest.removeprefix(name).strip()] += 1
            reference = samples.get(("torch eager", workload.name))
            if reference and name != "torch":
                error = max(abs(a - b) for a, b in zip(runs[fastest].logits, reference.logits, strict=True))
                row["error"] = max(float(row.get("error", 0.0)), error)
        if name == "torch":
            row["variants"] = ", ".join(best)


def machine() -> dict[str, str | int]:
    """The processor, without anything that names the computer."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    cores = os.cpu_count() or 0
    name = "-".join(model.replace("(R)", "").replace("(TM)", "").replace("@", "").split())
    versions = {"python": platform.python_version(), "system": platform.system()}
    return {"name": f"{name}-{cores}-cores", "model": model, "cores": cores} | versions


if __name__ == "__main__":
    main()
