"""Whether `mocomp bench` twice in a row agrees within the spread that it prints itself.

    python benchmarks/bench_repeats.py

The digits artifact and that of a seeded random Qwen3-MoE checkpoint are each timed twice, in processes of their own. A point
agrees when the median of each run lies in the spread that the other prints, for the artifact and for its baselines.
The bar: every point agrees. Leave the machine alone meanwhile: what no run can see, it cannot print.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import checkpoints
import click
from peers import RESULTS, machine
from rich.console import Console
from rich.table import Table

DIGITS = Path(__file__).parents[1] / "examples/digits/checkpoint"
LAYOUT = checkpoints.Layout()
KEPT = ("subject", "workload", "ms", "bound_ms", "of_bound", "tokens_per_s")


def mocomp(*arguments: object) -> str:
    """What a command of mocomp prints."""
    command = [sys.executable, "-m", "mocomp", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def agreement(first: dict, second: dict) -> list[dict]:
    """Each point of both: the medians, and whether each lies in the other's spread."""
    found = []
    for one, other in zip(first["points"], second["points"], strict=True):
        assert (one["subject"], one["workload"]) == (other["subject"], other["workload"])
        a, b = one["ms"], other["ms"]
        agrees = b["low"] <= a["median"] <= b["high"] and a["low"] <= b["median"] <= a["high"]
        told = {"subject": one["subject"], "workload": one["workload"]}
        found.append(told | {"ratio": b["median"] / a["median"], "agrees": agrees})
    return found


def repeated(artifact: Path, options: list) -> dict:
    """Two runs on an artifact."""
    runs = [json.loads(mocomp("bench", artifact, "--json", *options)) for _ in range(2)]
    return {
        "runs": [
            {
                "roofline": run["roofline"],
                "notes": run["notes"],
                "subjects": run["subjects"],
                "points": [{key: point[key] for key in KEPT} for point in run["points"]],
            }
            for run in runs
        ],
        "agreement": agreement(*runs),
    }


def show(taken: dict, console: Console) -> None:
    for name, result in taken.items():
        table = Table("subject", "workload", "first ms", "its spread", "second ms", "its spread", "", title=name)
        for first, second, told in zip(*(run["points"] for run in result["runs"]), result["agreement"], strict=True):
            cells = [f"{ms['median']:.3f}|{ms['low']:.3f} to {ms['high']:.3f}".split("|") for ms in (first["ms"], second["ms"])]
            mark = "[green]agree" if told["agrees"] else "[red]differ"
            table.add_row(told["subject"], told["workload"], *cells[0], *cells[1], mark)
        console.print(table)


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--layers", default=LAYOUT.layers, show_default=True)
@click.option("--experts", default=LAYOUT.experts, show_default=True)
@click.option("--baseline", "baselines", multiple=True, default=("torch",), show_default=True, help="Repeatable.")
@click.option("--threads", default=0, help="By default all.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--only", type=click.Choice(["digits", "seeded"]), help="One of the two models.")
@click.option("--work", type=click.Path(path_type=Path), help="Directory for what is made; a temporary one by default.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file; by default one named after the machine.")
def main(*, layers, experts, baselines, threads, rounds, only, work, output) -> None:
    """Convert, time twice, print the tables and write the JSON; exit with 1 when a point differs."""
    layout = checkpoints.Layout(**asdict(LAYOUT) | {"layers": layers, "experts": experts})
    options = ["--threads", threads, "--rounds", rounds, *(part for name in baselines for part in ("--baseline", name))]
    taken = {}
    with TemporaryDirectory(dir=work) as directory:
        sources = {"digits": DIGITS, "seeded": Path(directory) / "checkpoint"}
        for name, source in sources.items():
            if only not in (None, name):
                continue
            if name == "seeded":
                checkpoints.make(source, layout)
            mocomp("convert", source, "-o", Path(directory) / name, "--parity", "off")
            taken["digits" if name == "digits" else layout.name] = repeated(Path(directory) / name, options)
    points = [told["agrees"] for result in taken.values() for told in result["agreement"]]
    result = {
        "machine": machine(),
        "settings": {"threads": threads, "rounds": rounds, "baselines": list(baselines)},
        "models": taken,
        "bars": {"points": len(points), "agree": sum(points), "met": all(points)},
    }
    output = output or RESULTS / f"bench-repeats-{machine()['name']}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    show(taken, Console())
    sys.exit(0 if all(points) else 1)


if __name__ == "__main__":
    main()
