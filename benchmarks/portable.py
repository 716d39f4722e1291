"""What portability costs: target onnx against target onnxruntime on the CPU, in one run.

    python benchmarks/portable.py

The same checkpoints are converted twice: to com.microsoft.MoE, and to standard operators alone. Two sessions take turns on the
same tokens, so that noise of the machine hits both alike, and what is judged is the median of the ratios of neighbouring
turns. Sessions are loaded anew in every round, in either order: where the weights happen to lie moves one for as long as it
lives. `--mixture` measures the bodies of a mixture one by one beside the one that is chosen by itself.
The bars: decoding one token at most 2 times, and a prompt at most 1.5 times the time of target onnxruntime.
"""

import json
import os
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import checkpoints
import click
import numpy as np
import onnx
import onnxruntime
from rich.console import Console
from rich.table import Table

from mocomp.bench.machine import machine
from mocomp.models.interface import Interface
from mocomp.opening import open_target
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.report import Report
from mocomp.terminal import quiet
from mocomp.verify.inputs import Case, arrays

RESULTS = Path(__file__).with_name("results") / "portable.json"
DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "checkpoint"
TOKENS = (1, 16, 128, 512)
DECODE, PREFILL = 2.0, 1.5
FUSED = "onnxruntime"
REST = 0.02
"""Seconds before a turn: the threads of the other session go on waiting for work for some time."""
Options = tuple[str, str]
"""Target, and body of its mixtures."""


def convert_all(source: Path, work: Path, ways: dict[str, Options]) -> dict[str, Report]:
    """An artifact for each way, beside each other in `work`."""
    reports = {}
    for name, (target, mixture) in ways.items():
        with quiet():
            options = ConvertOptions(target=target, mixture=mixture, parity="off")
            reports[name] = convert(str(source), work / name, options)
    return reports


def given(interface: Interface, tokens: int) -> dict[str, np.ndarray]:
    """Random tokens, nothing past."""
    past = {
        f"past_key_values.{i}.{part}": np.zeros((1, heads, 0, width), np.float32)
        for i, (heads, *widths) in enumerate(interface.past)
        for part, width in zip(("key", "value"), widths, strict=True)
    }
    return arrays(interface, Case(f"{tokens} tokens", 1, tokens), 0, None) | past


def turn(runner, inputs: dict[str, np.ndarray], runs: int) -> float:
    """Median milliseconds of some runs, after one that does not count."""
    time.sleep(REST)
    runner.run(inputs)
    taken = []
    for _ in range(runs):
        begin = time.perf_counter()
        runner.run(inputs)
        taken.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(taken)


def measure(work: Path, reports: dict[str, Report], ways: dict[str, Options], tokens: list[int], rounds: int) -> dict:
    """{tokens: {way: turns in ms}}, all ways in turn, the order turned around in every other round."""
    interface = reports[FUSED].interface
    times: dict[int, dict[str, list[float]]] = {count: {name: [] for name in ways} for count in tokens}
    for i in range(rounds):
        names = list(ways) if i % 2 == 0 else list(reversed(ways))
        runners = {name: open_target(ways[name][0]).open(work / name) for name in names}
        for count in tokens:
            inputs = given(interface, count)
            for name in names:
                times[count][name].append(turn(runners[name], inputs, runs=15 if count == 1 else 5))
    return times


def judged(times: dict[int, dict[str, list[float]]]) -> dict[str, dict]:
    """Medians, and the ratios to the fused operator, by the number of tokens."""
    found = {}
    for count, by_way in times.items():
        fused = by_way[FUSED]
        rows = {
            name: {
                "ms": round(statistics.median(own), 4),
                "ratio": round(statistics.median([a / b for a, b in zip(own, fused, strict=True)]), 3),
            }
            for name, own in by_way.items()
        }
        found[str(count)] = {"ways": rows, "bar": DECODE if count == 1 else PREFILL}
    return found


def show(title: str, found: dict[str, dict], console: Console) -> None:
    """A table of the ratios."""
    table = Table("tokens", *next(iter(found.values()))["ways"], "bar", title=title)
    for count, row in found.items():
        cells = [f"{way['ms']:.2f} ms ({way['ratio']:.2f})" for way in row["ways"].values()]
        table.add_row(count, *cells, f"{row['bar']:g}")
    console.print(table)


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--rounds", default=11, show_default=True)
@click.option("--tokens", multiple=True, type=int, default=TOKENS, show_default=True)
@click.option("--mixture", multiple=True, type=click.Choice(["dense", "gathered", "sorted"]), help="Bodies; repeatable.")
@click.option("--only", type=click.Choice(["layout", "digits"]), help="Measure one of the two models.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS)
def main(*, rounds, tokens, mixture, only, output) -> None:
    console, models = Console(), {}
    ways = {FUSED: (FUSED, "auto"), "onnx": ("onnx", "auto")} | {f"onnx {body}": ("onnx", body) for body in mixture}
    layout = checkpoints.Layout()
    with TemporaryDirectory() as temporary:
        sources = {"layout": checkpoints.make(Path(temporary) / "checkpoint", layout), "digits": DIGITS}
        for name, source in sources.items():
            if only in (None, name):
                work = Path(temporary) / name
                reports = convert_all(source, work, ways)
                models[name] = judged(measure(work, reports, ways, list(tokens), rounds))
                show(name, models[name], console)
    versions = {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}
    result = {
        "machine": machine(os.cpu_count() or 1, versions),
        "layout": asdict(layout),
        "settings": {"rounds": rounds, "tokens": list(tokens)},
        "models": models,
        "bars_met": all(row["ways"]["onnx"]["ratio"] <= row["bar"] for model in models.values() for row in model.values()),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"bars met: {result['bars_met']}; written to {output.name}")


if __name__ == "__main__":
    main()
