"""From checkpoint to checkpoint on one page: open, find the blocks, fill experts, write, prove.

`pipeline.py` is the same for artifacts; what is made here is trained further, or converted there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from mocomp import terminal
from mocomp.errors import ParityFailed, Unsupported, Usage
from mocomp.executors import Executor
from mocomp.fill import Filled, stock
from mocomp.fill.depth import FilledDepth
from mocomp.fill.merge import Merge
from mocomp.fill.stock import StockClass
from mocomp.fill.upcycle import Upcycle
from mocomp.models.binding import bind
from mocomp.models.huggingface import Traced, build, trace
from mocomp.models.limits import refuse_more_layers
from mocomp.models.source import Source, open_source
from mocomp.nn.model import empty, write_config
from mocomp.passes import run
from mocomp.passes.clean import Clean
from mocomp.passes.fold_weights import FoldWeights
from mocomp.pipeline import parameters
from mocomp.plans import modality as modalities
from mocomp.plans.blocks import Block, find_blocks
from mocomp.plans.mixtures import Found
from mocomp.plans.modality import Modality
from mocomp.plans.plan import MixturePlan, ModelPlan
from mocomp.report import CheckpointReceipt
from mocomp.verify.block_proof import Model, Site, known_to_both, prove_blocks
from mocomp.verify.inputs import Drawn, with_modality
from mocomp.verify.memory import fits
from mocomp.verify.two_models import moved
from mocomp.verify.untouched import refuse_touched
from mocomp.weights import disk, recipes
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.output import Output
from mocomp.weights.recipes import Reader, Recipe
from mocomp.weights.shards import write_checkpoint

PRESERVED = 1e-5
"""Relative error of any output up to which a function counts as preserved: float32 sums in another order."""


Place = TypeVar("Place", Block, Found)
"""What experts take the place of: a dense block, or a mixture that stands."""


Fill = TypeVar("Fill", Upcycle, Merge)


@dataclass
class Opened(Generic[Place]):
    """A model, traced: its blocks in order, why others are none, and the recipes of its parameters as on disk.

    `read` reads what the recipes name, which may be more than the one checkpoint.
    """

    source: Source
    checkpoint: Checkpoint
    traced: Traced
    bound: dict[str, Recipe]
    blocks: list[Place]
    skipped: list[str]
    read: Reader


def in_tower(fill: Fill, block: Block, modality: Modality | None) -> Fill:
    """The same with the one group that a block of a tower of its own has."""
    if modality is None or modality.per_token:
        return fill
    own = modality.of_layer(block.enter)
    groups = tuple((name, count) for name, count in fill.groups if name == own)
    return dataclasses.replace(fill, groups=groups, reach=((own,),) * len(fill.groups))


@contextmanager
def opened(source_name: str, options: Any, label: str = "") -> Iterator[Opened]:
    """The source's blocks, from a trace of it without weights; `label` tells its tensors from those of others."""
    source = open_source(source_name, options.trust_remote_code, options.task)
    source.refuse_quantised()
    if source.plan is not None:
        raise Unsupported("it has mixtures of mocomp already", where=source_name, fix="Add to them with mocomp extend.")
    with Checkpoint(source.directory, label) as checkpoint:
        refuse_more_layers(source.config, len(checkpoint.entries), source_name)
        traced = trace(build(source))
        bound, traced.unused = bind(traced.model, checkpoint)
        traced.program.recipes |= bound
        for step in (Clean(), FoldWeights()):
            run(step, traced.program)
        blocks, skipped = find_blocks(traced.program, traced.model.state_dict())
        if not blocks:
            raise Unsupported("no dense feed-forward block was found in it", where=source_name, gaps=skipped)
        yield Opened(source, checkpoint, traced, bound, blocks, skipped, checkpoint.read)


def groups_of(options: Any, source: Source) -> tuple[tuple[tuple[str, int], ...], Modality | None]:
    """(name and number of experts of each group, where a token's modality comes from if there are several)."""
    groups = options.group_sizes()
    if len(groups) == 1:
        if options.modality or options.otherwise:
            given = "--modality" if options.modality else "--otherwise"
            raise Usage(f"{given} with one group", fix="Say --groups, for example --groups text=4,image=4.")
        return groups, None
    return groups, modalities.parse([name for name, _ in groups], options.modality, options.otherwise or None, source.config)


def chosen(blocks: list[Place], layers: str, option: str = "--layers") -> list[Place]:
    """The blocks that --layers asks for: `all`, `every:2`, or indices and ranges such as `0,4..7`."""
    if layers == "all":
        return blocks
    try:
        if layers.startswith("every:"):
            step = int(layers.removeprefix("every:"))
            indices = list(range(step - 1, len(blocks), step))
        else:
            ends = [[int(end) for end in part.split("..", 1)] for part in layers.split(",")]
            ranges = [range(pair[0], pair[-1] + 1) for pair in ends]
            indices = [i for i in chain(*ranges) if all(ranges)]
        if not indices or min(indices) < 0:
            raise ValueError("none of them")
        return [blocks[i] for i in sorted(set(indices))]
    except (ValueError, IndexError) as error:
        raise Usage(f"{option} {layers}: the model has blocks 0 to {len(blocks) - 1}") from error


def finish(
    command: str,
    dense: Opened,
    filled: list[Filled],
    modality: Modality | None,
    options: Any,
    made: Output,
    depths: Sequence[FilledDepth] = (),
    drawn: Drawn | None = None,
    notes: Sequence[str] = (),
    rest: dict[str, Recipe] | None = None,
) -> CheckpointReceipt:
    """Write the checkpoint, prove what it claims (of `drawn` inputs, if not of all), and leave the receipt with it.

    `rest` are the tensors that are in no mixture; None keeps the source's.
    """
    directory = made.path
    standing = dense.source.plan.depths if dense.source.plan is not None else ()
    plan = ModelPlan(modality, tuple(f.plan for f in filled), (*standing, *(d.plan for d in depths)))
    holder, why_none = stock_class(dense, filled, plan, options.layout)
    weights = kept(dense, filled) if rest is None else rest
    weights = weights | {name: recipe for f in filled for name, recipe in stored(f, holder).items()}
    weights |= {f"{d.plan.layer}.{name}": recipe for d in depths for name, recipe in d.weights.items()}
    count = sum(int(np.prod(r.shape)) for r in weights.values())
    with terminal.progress("weights", sum(r.nbytes for r in weights.values())) as advance:
        write_checkpoint(directory, weights, made.writer(dense.read, advance), options.shard_bytes())
    if holder is not None:
        holder.write_config(directory, dense.source, plan)
    else:
        write_config(directory, dense.source.config, plan, [dense.source.model_class.__name__])
    for path in dense.source.files_to_carry:
        disk.copy(path, directory / path.name)
    receipt = CheckpointReceipt(
        command,
        str(dense.source.directory.resolve()),
        dataclasses.asdict(options),
        dense.source.model_class.__name__,
        f"AutoModelForCausalLM: {holder.model_class}" if holder is not None else "mocomp.nn.load",
        len(filled),
        sum(f.plan.experts for f in filled),
        count,
        parameters(dense.traced),
        plan.to_json(),
        "; ".join(dict.fromkeys(f.changes for f in (*filled, *depths) if f.changes)),
        notes=[*notes, *dense.skipped] + [f"layout mocomp: {reason}" for reason in why_none],
        tokens=drawn.words if drawn is not None else "",
    )
    prove(receipt, dense, filled, made, kept(dense, filled) if rest is None else rest, drawn, rest is not None)
    if receipt.moved is None and holder is None:  # what cannot be loaded is told here, and not when training begins
        with Checkpoint(directory) as written:
            bind(empty(open_source(str(directory))), written)
    receipt.write(directory)
    refuse_if_moved(receipt)
    return receipt


def prove(
    receipt: CheckpointReceipt,
    model: Opened,
    filled: Sequence[Filled],
    made: Output,
    outside: Mapping[str, Recipe],
    drawn: Drawn | None = None,
    averaged: bool = False,
) -> None:
    """Put into the receipt how far the function moved: that of the model, or of each block alone; what is `outside` of them was
    to stay as it is, or to be `averaged`."""
    way, options = way_of_proof(receipt), receipt.options
    source = open_source(str(made.path), model.source.trust_remote_code, options["task"])
    if way == "blocks":
        was = "to be the mean over all models" if averaged else "to stay as it is"
        stayed = refuse_touched(made.path, outside, model.read, was)
        blocks_alone(receipt, model.source, source, [f.plan for f in filled], made.executor, stayed)
    elif way == "full":
        interface, drawn = model.traced.interface, drawn or with_modality(source.plan)
        both = (model.source, interface), (source, interface.with_plan(source.plan))
        receipt.moved, receipt.kl = moved(*both, options["seed"], drawn, made.executor.resources.nbytes())


def blocks_alone(
    receipt: CheckpointReceipt, before: Source, after: Source, plans: Sequence[MixturePlan], executor: Executor, stayed: str
) -> None:
    """Put into the receipt how far the blocks moved that have these plans, with a note of what `stayed`."""
    task, seed = receipt.options["task"], receipt.options["seed"]
    sites = [Site.of(plan) for plan in plans]
    found = prove_blocks(Model.of(before, task), Model.of(after, task), sites, executor, seed, known_to_both(before, after))
    receipt.moved, receipt.notes = found.error, [*found.notes, stayed, *receipt.notes]


def way_of_proof(receipt: CheckpointReceipt) -> str:
    """full, blocks or off: what was asked for, but blocks where a model would not fit into memory, with a note of it."""
    asked = receipt.options["parity"]
    if asked != "full" or fits(max(receipt.parameters, receipt.parameters_before)):
        return asked
    receipt.notes.append("the models do not fit into the memory that is free, so each block is proven alone")
    return "blocks"


def refuse_if_moved(receipt: CheckpointReceipt) -> None:
    """Raises ParityFailed when the function was to be the same and is not."""
    if receipt.preserved and receipt.moved is not None and not receipt.moved <= PRESERVED:
        raise ParityFailed(
            f"{receipt.command} was to preserve the function, and an output moved by {receipt.moved:.1e} of its largest value",
            where=receipt.source,
            fix="Nothing was kept. This is a fault of mocomp: report the model type.",
        )


def kept(dense: Opened, filled: list[Filled]) -> dict[str, Recipe]:
    """The tensors of the source that the new model still has, as they are on disk."""
    replaced = {name for block in dense.blocks for name in block.parameters if block.enter in {f.plan.enter for f in filled}}
    live = {leaf.name for name in dense.bound if name not in replaced for leaf in dense.bound[name].leaves()}
    gone = {leaf.name for name in replaced for leaf in dense.bound[name].leaves()} - live
    return {name: dense.checkpoint.recipe(name) for name in dense.checkpoint.entries if name not in gone}


def stock_class(dense: Opened, filled: list[Filled], plan: ModelPlan, layout: str) -> tuple[StockClass | None, list[str]]:
    """(the class of transformers to write for, why there is none). Raises Unsupported when there has to be one."""
    if layout == "mocomp":
        return None, []
    holder, gaps = stock.find(dense.source, plan, {type_on_disk(f) for f in filled})
    if layout == "stock" and holder is None:
        raise Unsupported("no class of transformers can hold the result", gaps=gaps, fix="Leave out --layout stock.")
    return holder, gaps


def type_on_disk(filled: Filled) -> torch.dtype:
    """The type that a mixture's block has there; of models of several types, one that holds the numbers of all."""
    return reduce(torch.promote_types, {leaf.dtype for leaf in filled.weights["experts.w_in"].leaves()})


def stored(filled: Filled, holder: StockClass | None) -> dict[str, Recipe]:
    """A mixture's weights by their names in the checkpoint, in the type of what they are made of, or the block's."""
    own = {f"{filled.plan.enter}.{name}": recipe for name, recipe in filled.weights.items()}
    named = own if holder is None else holder.tensors(filled.plan, filled.weights)
    made_of = {name: {leaf.dtype for leaf in recipe.leaves()} or {type_on_disk(filled)} for name, recipe in named.items()}
    return {name: recipes.cast(recipe, reduce(torch.promote_types, made_of[name])) for name, recipe in named.items()}
