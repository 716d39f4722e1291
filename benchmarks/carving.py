"""What is left of a real model when its feed-forward blocks are carved into experts and a token goes through some of them.

    python benchmarks/carving.py

The dense digits model (examples/digits) is carved by each method, without any training, at 75 % and 50 % of the width of
its blocks, with captions and drawings of the training split as calibration data, and judged on the held-out images.
Random and clusters draw anew for each seed, and so does the sample of calibration tokens of every method; all routers are
made in the same way, so that the methods differ only in which neurons go together.
The bar: CMoE has the lowest perplexity of both modalities at both widths.
"""

import json
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mocomp.commands.carve import carve
from mocomp.options import CarveOptions
from mocomp.terminal import quiet

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
sys.path.insert(0, str(DIGITS))

import captions  # noqa: E402
import data  # noqa: E402
import evaluate  # noqa: E402

RESULT = Path(__file__).with_name("results") / "carving-digits.json"
METHODS = ("random", "clusters", "cmoe")
WIDTHS = {0.75: 6, 0.5: 4}
"""Share of the neurons that a token goes through, and how many of 8 experts that is."""
EXPERTS, SHARED = 8, 2
IMAGES = 480
FIGURES = ("caption_accuracy", "image_accuracy", "text_perplexity", "image_perplexity")


def write_calibration(file: Path) -> None:
    """A document in either order for some images of the training split: several times the tokens that are kept of them."""
    rng, codes = np.random.default_rng(1), data.load_codebook()
    images, digits = (array[:IMAGES] for array in data.split()[0])
    documents = [
        order(tokens, captions.caption(image, digit, rng))
        for image, tokens, digit in zip(images, data.quantise(images, codes), digits, strict=True)
        for order in (data.image_first, data.caption_first)
    ]
    file.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))


def measure(checkpoint: Path) -> dict[str, float]:
    model, tokenizer = evaluate.load(checkpoint)
    return evaluate.evaluate(evaluate.torch_logits(model), tokenizer)


def measured(dense: Path, work: Path, method: str, active: int, shared: int, seed: int) -> dict[str, float]:
    """The figures of the dense model carved so that a token goes through `active` of the experts."""
    options = CarveOptions(
        experts=EXPERTS,
        shared=shared,
        top_k=active - shared,
        method=method,
        calibration=str(work / "calibration.jsonl"),
        seed=seed,
        parity="off",
        force=True,
    )
    carve(str(dense), work / "carved", options)
    return measure(work / "carved")


def summary(runs: list[dict]) -> dict[str, list[float]]:
    """Mean and standard deviation of each figure over the seeds."""
    columns = {figure: [run[figure] for run in runs] for figure in FIGURES}
    return {figure: [statistics.mean(column), statistics.pstdev(column)] for figure, column in columns.items()}


def print_table(result: dict) -> None:
    table = Table("active width", "method", *(figure.replace("_", " ") for figure in FIGURES), title="Digits, carved")
    table.add_row("100%", "dense", *(f"{result['dense'][figure]:.3f}" for figure in FIGURES))
    for width, methods in result["means"].items():
        for method, figures in methods.items():
            cells = (f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in figures.values())
            table.add_row(f"{float(width):.0%}", method, *cells)
    Console(width=130).print(table)


def reached(result: dict) -> bool:
    """Whether CMoE is the best of all by the perplexity of both modalities at every width."""
    return all(
        figures["cmoe"][figure][0] <= other[figure][0]
        for figures in result["means"].values()
        for other in figures.values()
        for figure in ("text_perplexity", "image_perplexity")
    )


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--dense", type=click.Path(path_type=Path), default=DIGITS / "dense", show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--shared", default=SHARED, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=RESULT, show_default=True)
def main(dense: Path, seeds: int, shared: int, output: Path) -> None:
    """Carve, judge, print the table and write the JSON; exit with 1 when the bar is not reached."""
    torch.set_num_threads(1)  # matrices of this size gain nothing from more
    runs = []
    with TemporaryDirectory() as directory, quiet():
        work = Path(directory)
        write_calibration(work / "calibration.jsonl")
        reference = measure(dense)
        for width, active in WIDTHS.items():
            for method in METHODS:
                for seed in range(seeds):
                    figures = measured(dense, work, method, active, shared, seed)
                    runs.append({"width": width, "method": method, "seed": seed, **figures})
    means = {
        str(width): {method: summary([r for r in runs if (r["width"], r["method"]) == (width, method)]) for method in METHODS}
        for width in WIDTHS
    }
    result = {"experts": EXPERTS, "shared": shared, "dense": reference, "means": means, "runs": runs}
    output.write_text(json.dumps(result | {"reached": reached(result)}, indent=1) + "\n")
    print_table(result)
    sys.exit(0 if reached(result) else 1)


if __name__ == "__main__":
    main()
