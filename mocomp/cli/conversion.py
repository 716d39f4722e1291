"""Commands that make an artifact, or try ways to make one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from mocomp.cli.deployment import deployed
from mocomp.cli.module import of_module
from mocomp.cli.resources import bounded, resourced, taken
from mocomp.outcome import outcome_of


@click.command()
@click.argument("source")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory to make.")
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Options from a JSON or YAML file."
)
@click.option("--target", help="What to make; see `mocomp list targets`.  [default: onnxruntime]")
@click.option("--task", help="text-generation, feature-extraction, ...; by default what config.json says.")
@click.option(
    "--parity", type=click.Choice(["full", "blocks", "off"]), help="Prove it: whole, or mixture by mixture.  [default: full]"
)
@click.option("--weights", type=click.Choice(["all", "none"]), help="none: the graph alone, from config.json.  [default: all]")
@click.option("--seed", type=int, help="Seed of the inputs of parity.  [default: 0]")
@click.option("--force", is_flag=True, default=None, help="Replace the output directory if it is an earlier artifact.")
@click.option("--trust-remote-code", is_flag=True, default=None, help="Run the Python code that the checkpoint brings.")
@click.option("--quantize", metavar="FORMAT", help="Experts in few bits: int4, int4:64:asym, int8, nvfp4, mixed, ...")
@click.option("--group-size", type=int, help="Columns that share a scale.  [default: 32 for int2 and int4, a row for int8]")
@click.option("--algorithm", help="Who chooses the numbers; see `mocomp list algorithms`.  [default: rtn]")
@click.option("--calibration", metavar="FILE", help="Data to learn and judge from: JSON lines, .npz or .safetensors.")
@click.option("--few-tokens", type=click.Choice(["all", "rtn"]), help="For experts with few tokens.  [default: all]")
@click.option("--quantize-dense", metavar="FORMAT", help="The same for attention, shared experts and the head.")
@click.option("--bits", type=float, help="With --quantize mixed: the bits that a weight of an expert has on average.")
@click.option("--target-size", metavar="SIZE", help="With --quantize mixed: the size of all weights, such as 1.5GB.")
@click.option("--accuracy-level", type=int, help="4 has ONNX Runtime round activations to int8, for speed.  [default: 0]")
@click.option("--tune", metavar="N,...", help="Time the ways to run a mixture at these numbers of tokens; the best are taken.")
@click.option("--link-weights", is_flag=True, default=None, help="Leave weights that stay as they are in the checkpoint.")
@click.option(
    "--expert-parallel", type=int, metavar="N", help="Graphs for N ranks besides, each with its share of the experts."
)
@click.option("--usage", metavar="FILE", help="With --expert-parallel: what mocomp usage measured.")
@of_module
@deployed
@resourced
@click.option("--print-after", metavar="PASS", help="Print the program after a pass.")
@click.option("--time-passes", is_flag=True, help="Print what each pass changed and took.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object on standard output.")
def convert(source: str, output: Path, config: Path | None, time_passes: bool, as_json: bool, **given: Any) -> None:
    """Convert SOURCE and prove the result.

    SOURCE is a Hugging Face directory or hub name; a module of your own, as package.module:attribute or file.py:attribute, for
    which its code is run; or a .pt2 file of torch.export.
    """

    def work() -> Any:
        from mocomp.options import ConvertOptions
        from mocomp.pipeline import convert as run
        from mocomp.resources import Resources

        options = ConvertOptions.read(config) if config else ConvertOptions()
        resources = Resources(**taken(given))
        chosen = {name: value for name, value in given.items() if value not in (None, ())}
        return run(source, output, dataclasses.replace(options, **chosen), resources)

    report = outcome_of(work)
    from mocomp.report import NAME, as_line
    from mocomp.report.table import print_conversion

    print(as_line(output, NAME)) if as_json else print_conversion(report, output, time_passes)


@click.command()
@click.argument("source")
@click.option("--try", "formats", metavar="FORMAT,...", help="Formats.  [default: int8,int4:32,int4:128,int2:64]")
@click.option("--algorithm", metavar="NAME,...", help="Algorithms; see `mocomp list algorithms`.  [default: rtn]")
@click.option("--calibration", metavar="FILE", help="Data to learn and judge from: JSON lines, .npz or .safetensors.")
@click.option("--few-tokens", type=click.Choice(["all", "rtn"]), help="For experts with few tokens.  [default: all]")
@click.option("--target", help="What to time on; see `mocomp list targets`.  [default: onnxruntime]")
@click.option("--task", help="text-generation, feature-extraction, ...; by default what config.json says.")
@click.option("--accuracy-level", type=int, help="4 has ONNX Runtime round activations to int8, for speed.  [default: 0]")
@click.option("--seed", type=int, help="Seed of random data.  [default: 0]")
@click.option("--trust-remote-code", is_flag=True, default=None, help="Run the Python code that the checkpoint brings.")
@bounded
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def quantize(source: str, as_json: bool, **given: Any) -> None:
    """Try ways to quantise SOURCE: size, quality and speed of each, and which are on the Pareto front. Keeps nothing."""

    def work() -> Any:
        from mocomp.commands.quantize import quantize as run
        from mocomp.options import SweepOptions
        from mocomp.resources import Resources

        resources = Resources(**taken(given))
        return run(source, SweepOptions(**{name: value for name, value in given.items() if value is not None}), resources)

    sweep = outcome_of(work)
    from mocomp.report.table import print_sweep

    print(json.dumps(sweep.as_json())) if as_json else print_sweep(sweep)
