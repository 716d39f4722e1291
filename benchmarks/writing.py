"""How fast weights come to disk, beside `dd` copying the same bytes on the same disk in the same run.

    python benchmarks/writing.py

A seeded bfloat16 checkpoint is written anew through recipes, with a journal and a checksum of every part. Turns alternate, and
medians are compared. `to disk` waits at its end until all is on disk, `to the cache` does not; `read cold` has the source
dropped from the system's cache first. Weights are as they are, or rearranged on the way: gate and up parted, or transposed.
Then plain rounding and HQQ to int4:32, which look at no data, by one worker and by all. What else runs on the machine can only
take away from a rate.
The bar: 0.7 of what dd gives where all of it goes to disk, by all workers.
"""

import json
import os
import statistics
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch
from peers import RESULTS, machine
from rich.console import Console
from rich.table import Table

from mocomp.executors.local import Local
from mocomp.quant.formats import parse
from mocomp.quant.parts import quantised
from mocomp.quant.weight import promised
from mocomp.quantising import algorithm_of
from mocomp.resources import Resources
from mocomp.weights import disk, recipes
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.journal import Journal
from mocomp.weights.parts import complete
from mocomp.weights.recipes import Recipe
from mocomp.weights.scratch import Scratch
from mocomp.weights.writer import Writer

BANK = (32, 2048, 768)
"""[E, N, K] of each weight."""
BAR, MB = 0.7, 1e6


def checkpoint(directory: Path, nbytes: int) -> Path:
    """Seeded normal weights in one file, a bank after the other."""
    directory.mkdir()
    generator = torch.Generator().manual_seed(0)
    size = 2 * torch.Size(BANK).numel()
    count = max(nbytes // size, 1)
    entries = {f"bank{i}": {"dtype": "BF16", "shape": BANK, "data_offsets": [i * size, (i + 1) * size]} for i in range(count)}
    head = json.dumps(entries).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for _ in range(count):
            w = torch.randn(BANK, generator=generator).mul_(0.02).to(torch.bfloat16)
            file.write(w.view(-1).view(torch.uint8).numpy().data)
        os.fsync(file.fileno())
    return directory / "model.safetensors"


def parted(w: Recipe) -> Recipe:
    """Gate and up rows that take turns, as two blocks."""
    return recipes.concat([recipes.slice_of(w, 1, i, w.shape[1], 2) for i in range(2)], 1)


LAYOUTS: dict[str, Callable[[Recipe], Recipe]] = {
    "as they are": lambda w: w,
    "gate and up parted": parted,
    "transposed": lambda w: recipes.permute(w, (0, 2, 1)),
}


def copied(source: Path, target: Path, durable: bool) -> None:
    """What dd does."""
    command = ["dd", f"if={source}", f"of={target}", "bs=4M", *(["conv=fdatasync"] if durable else [])]
    subprocess.run(command, check=True, capture_output=True)


def written(source: Path, target: Path, workers: int, layout: str, durable: bool) -> None:
    """What mocomp does, with a journal where it is to last."""
    with Checkpoint(source.parent) as opened, disk.File(target.with_suffix(".journal")) as log:
        journal = Journal(target.parent, log if durable else None)
        weights = {name: LAYOUTS[layout](opened.recipe(name)) for name in opened.entries}
        Writer(opened.read, executor=Local(Resources(workers=workers)), journal=journal).write(target, weights)
        if durable:
            journal.flush()


def rate(work: Callable[[], None], source: Path, target: Path, cold: bool) -> float:
    """MB of the source per second; what was there is removed first, with what of it waited for the disk."""
    target.unlink(missing_ok=True)
    target.with_suffix(".journal").unlink(missing_ok=True)
    if cold:
        with source.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    begin = time.perf_counter()
    work()
    return source.stat().st_size / MB / (time.perf_counter() - begin)


def writing(source: Path, target: Path, rounds: int, counts: list[int]) -> dict[str, dict[str, float]]:
    """Median rates, by what is measured and by who does it."""
    turns: list[tuple[str, str, bool, Callable[[], None]]] = []
    for what, durable, cold in (("to disk", True, False), ("to disk, read cold", True, True), ("to the cache", False, False)):
        turns.append((what, "dd", cold, lambda d=durable: copied(source, target, d)))
        for n in counts:
            turns.append((what, f"{n} workers", cold, lambda d=durable, n=n: written(source, target, n, "as they are", d)))
    for layout in list(LAYOUTS)[1:]:
        for n in counts:
            turns.append(
                (f"to the cache, {layout}", f"{n} workers", False, lambda la=layout, n=n: written(source, target, n, la, False))
            )
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for what, who, cold, work in turns:
            found.setdefault(what, {}).setdefault(who, []).append(rate(work, source, target, cold))
    return {what: {who: statistics.median(rates) for who, rates in by.items()} for what, by in found.items()}


def quantising(source: Path, directory: Path, rounds: int, counts: list[int]) -> dict[str, dict[str, float]]:
    """Median rates of float32 weights, of two banks."""
    found: dict[str, dict[str, list[float]]] = {}
    with Checkpoint(source.parent) as opened:
        names = list(opened.entries)[:2]
        elements = len(names) * torch.Size(BANK).numel()
        for name, n in [(name, n) for _ in range(rounds) for name in ("rtn", "hqq") for n in counts]:
            store = Scratch(directory / "quantised", "q:", Local(Resources(workers=n)))
            weights = {w: promised(f"q:{w}", BANK, parse("int4:32")) for w in names}
            begin = time.perf_counter()
            parts = (p for w in names for p in quantised(opened.recipe(w), opened.read, weights[w], algorithm_of(name), store))
            complete(parts, store.executor, store.journal)
            seconds = time.perf_counter() - begin
            found.setdefault(f"{name}, int4:32", {}).setdefault(f"{n} workers", []).append(4 * elements / MB / seconds)
            store.close()
    return {what: {who: statistics.median(rates) for who, rates in by.items()} for what, by in found.items()}


@click.command()
@click.option("--gigabytes", default=3.0, show_default=True, help="Of the checkpoint.")
@click.option("--rounds", default=3, show_default=True)
@click.option(
    "--place", type=click.Path(path_type=Path), help="A directory of the disk to measure.  [default: the temporary one]"
)
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS / "writing.json", show_default=True)
def main(gigabytes: float, rounds: int, place: Path | None, output: Path) -> None:
    """Measure, print a table, write JSON; fails when the bar is missed."""
    counts = sorted({1, Resources().count()})
    load = os.getloadavg()[0]
    with TemporaryDirectory(prefix="mocomp-writing-", dir=place) as name:
        source = checkpoint(Path(name) / "source", int(gigabytes * 1e9))
        rates = writing(source, Path(name) / "written", rounds, counts)
        rates |= quantising(source, Path(name), rounds, counts)
    ratios = {what: by[f"{counts[-1]} workers"] / by["dd"] for what, by in rates.items() if "dd" in by}
    columns = ["dd", *(f"{n} workers" for n in counts)]
    table = Table("MB/s, medians", *columns, "all workers / dd")
    for what, by in rates.items():
        ratio = f"{ratios[what]:.2f}" if what in ratios else ""
        table.add_row(what, *(f"{by[who]:,.0f}" if who in by else "" for who in columns), ratio)
    Console().print(table)
    result = {"machine": machine(), "load_before": load, "gigabytes": gigabytes, "rounds": rounds, "mb_per_s": rates,
              "ratio": ratios, "bar": BAR}  # fmt: skip
    output.write_text(json.dumps(result, indent=2) + "\n")
    if ratios["to disk"] < BAR:
        raise SystemExit(f"writing at {ratios['to disk']:.2f} of dd; the bar is {BAR}")


if __name__ == "__main__":
    main()
