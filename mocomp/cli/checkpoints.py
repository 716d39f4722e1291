"""The commands that make a checkpoint of a checkpoint: parse options, call one function, print one receipt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from mocomp.cli.resources import resourced, taken
from mocomp.outcome import outcome_of

Decorator = Callable[[Any], Any]


def _all(*options: Decorator) -> Decorator:
    """Several options as one decorator; --help lists them in this order."""
    return lambda command: reduce(lambda inner, option: option(inner), reversed(options), command)


OUTPUT = click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory to make.")
COMMON = _all(
    click.option("--layers", help="all, every:2, or blocks by number such as 0,4..7.  [default: all]"),
    click.option(
        "--target",
        type=click.Choice(["huggingface"]),
        default="huggingface",
        help="What to make; a checkpoint, which mocomp convert takes to other targets.  [default: huggingface]",
    ),
    click.option(
        "--layout",
        type=click.Choice(["auto", "stock", "mocomp"]),
        help="stock: a class that transformers has; mocomp: modules of mocomp.nn; auto: stock where one can hold it.",
    ),
    click.option("--shard-size", metavar="SIZE", help="Largest file of weights.  [default: 5GB]"),
    click.option(
        "--parity", type=click.Choice(["full", "blocks", "off"]), help="Run both, or block by block.  [default: full]"
    ),
    click.option("--task", help="text-generation, feature-extraction, ...; by default what config.json says."),
    click.option("--seed", type=int, help="Seed of everything drawn.  [default: 0]"),
    click.option("--force", is_flag=True, default=None, help="Replace the output directory if mocomp made it."),
    click.option("--trust-remote-code", is_flag=True, default=None, help="Run the Python code that the checkpoint brings."),
    click.option(
        "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Options from a JSON or YAML file."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the receipt as one JSON object on standard output."),
    resourced,
)
MODALITY = click.option(
    "--modality",
    multiple=True,
    metavar="NAME=SPEC",
    help="Whose tokens are whose: image=200..255 (ids), image=config (ids as config.json has them), "
    "image=INPUT:1 (values of an input, or of a new one), image=position:0..99, image=tower:vision_model.",
)
OTHERWISE = click.option("--otherwise", metavar="NAME", help="The modality of tokens in no range, or error.")
GROUPS = _all(
    click.option("--groups", metavar="GROUPS", help="Experts by modality, text=4,image=4; or a number.  [default: 8]"),
    MODALITY,
    OTHERWISE,
)


@click.command()
@click.argument("source")
@OUTPUT
@GROUPS
@click.option("--top-k", type=int, help="Experts per token.  [default: 1]")
@click.option("--router", metavar="KIND[:FIELD=VALUE]", help="See `mocomp list routers`.  [default: softmax_topk]")
@click.option("--router-init", type=click.Choice(["random", "zero", "hidden"]), help="Rows of the router.  [default: random]")
@click.option("--calibration", metavar="FILE", help="Data for --router-init hidden: JSON lines with text or input_ids.")
@click.option("--granularity", type=int, help="Cut the block into that many slices, each an expert.  [default: 1]")
@click.option("--shared", type=int, help="Slices that every token goes through.  [default: 0]")
@click.option("--noise", type=float, help="Noise on the copies, as a share of each row's size.  [default: 0]")
@click.option("--redraw", type=float, help="Share of each expert's neurons drawn anew (drop-upcycling).  [default: 0]")
@click.option("--auxiliary", type=int, help="Width of the causal router that inference uses.  [default: 0, none]")
@click.option("--depth", metavar="LAYERS", help="Layers that tokens may go past (mixture-of-depths), as in --layers.")
@click.option("--capacity", type=float, help="Share of tokens that go through such a layer in training.  [default: 0.5]")
@COMMON
def upcycle(**given: Any) -> None:
    """Give the dense model SOURCE mixtures whose experts are copies of its feed-forward blocks, or slices of them."""
    _make("commands.upcycle.upcycle", "UpcycleOptions", **given)


@click.command()
@click.argument("source")
@OUTPUT
@click.option("--experts", type=int, help="Parts of one size, the shared ones among them.  [default: 8]")
@click.option("--shared", type=int, help="Experts that every token goes through.  [default: 1]")
@click.option("--top-k", type=int, help="Experts that a token goes through besides the shared ones.  [default: 3]")
@click.option("--method", type=click.Choice(["random", "clusters", "cmoe"]), help="Which neurons go together.  [default: cmoe]")
@click.option("--calibration", metavar="FILE", help="Data to measure activity on: JSON lines with text or input_ids.")
@COMMON
def carve(**given: Any) -> None:
    """Divide the feed-forward blocks of the dense model SOURCE into experts, every neuron into one."""
    _make("commands.carve.carve", "CarveOptions", **given)


@click.command()
@click.argument("source")
@OUTPUT
@click.option("--weights", type=click.Choice(["mean", "usage"]), help="How experts are averaged.  [default: mean]")
@click.option("--calibration", metavar="FILE", help="Data for --weights usage: JSON lines with text or input_ids.")
@COMMON
def densify(**given: Any) -> None:
    """Make a dense model of the mixture SOURCE, of the average of its experts."""
    _make("commands.densify.densify", "DensifyOptions", **given)


@click.command()
@click.argument("source")
@OUTPUT
@click.option("--groups", metavar="NAME=N,...", help="New groups of experts, each for tokens of a new modality.")
@MODALITY
@click.option("--reach", type=click.Choice(["own", "both"]), help="New tokens: their group, or old ones too.  [default: own]")
@click.option("--experts", metavar="N", help="More experts for the group there is; text=2,image=2 where there are several.")
@click.option("--old-group", metavar="NAME", help="What the experts of a class of transformers are called.  [default: text]")
@click.option("--expert", multiple=True, metavar="GROUP=DENSE", help="Copy a dense model's blocks for new experts.")
@click.option("--copies", type=click.Choice(["in_turn", "usage"]), help="Which experts to copy first.  [default: in_turn]")
@click.option(
    "--router-init", type=click.Choice(["random", "copy", "hidden"]), help="The router's new rows.  [default: random]"
)
@click.option("--calibration", metavar="FILE", help="Data for usage and hidden: JSON lines with text or input_ids.")
@COMMON
def extend(**given: Any) -> None:
    """Give the mixtures of SOURCE more experts; tokens that were there before do not notice those of a new modality."""
    _make("commands.extend.extend", "ExtendOptions", **given)


@click.command()
@click.argument("source")
@OUTPUT
@click.option("--expert", multiple=True, metavar="NAME=MODEL", help="A model that was trained from SOURCE.")
@MODALITY
@OTHERWISE
@click.option("--rest", type=click.Choice(["base", "average"]), help="What is not in the mixtures.  [default: base]")
@click.option(
    "--gate", type=click.Choice(["random", "hidden", "cheap_embed", "domain"]), help="Rows of the router.  [default: random]"
)
@click.option("--prompts", multiple=True, metavar="NAME=FILE", help="What an expert is for: JSON lines with text or input_ids.")
@click.option("--top-k", type=int, help="Experts per token.  [default: 1]")
@click.option("--router", metavar="KIND[:FIELD=VALUE]", help="See `mocomp list routers`.  [default: softmax_topk]")
@COMMON
def merge(**given: Any) -> None:
    """Give the dense model SOURCE mixtures whose experts are models of its architecture."""
    _make("commands.merge.merge", "MergeOptions", **given)


def _make(
    function: str,
    options_class: str,
    source: Any,
    output: Path,
    config: Path | None,
    as_json: bool,
    target: str,
    **given: Any,
) -> None:
    """Run a function of mocomp and print its receipt."""

    def work() -> Any:
        from mocomp import options
        from mocomp.resources import Resources

        module, _, name = function.rpartition(".")
        known, resources = getattr(options, options_class), Resources(**taken(given))
        chosen = {name: value for name, value in given.items() if value not in (None, ())}
        merged = dataclasses.replace(known.read(config) if config else known(), **chosen)
        return getattr(import_module(f"mocomp.{module}"), name)(source, output, merged, resources)

    receipt = outcome_of(work)
    from mocomp.report import RECEIPT, as_line
    from mocomp.report.table import print_receipt

    print(as_line(output, RECEIPT)) if as_json else print_receipt(receipt, output)
