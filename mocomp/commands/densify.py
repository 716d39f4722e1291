"""mocomp densify: average the experts of each mixture into a dense block, and write the model as transformers has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mocomp import terminal
from mocomp.calibration.capture import loaded, usage
from mocomp.calibration.data import data_for
from mocomp.checkpoints import blocks_alone, refuse_if_moved, way_of_proof
from mocomp.errors import Unsupported, Usage
from mocomp.fill.densify import Densify
from mocomp.models.binding import bind, bind_nothing
from mocomp.models.huggingface import Traced, build, trace
from mocomp.models.source import Source, open_source
from mocomp.nn.model import empty
from mocomp.opening import as_asked
from mocomp.options import DensifyOptions
from mocomp.passes import run
from mocomp.passes.clean import Clean
from mocomp.passes.fold_weights import FoldWeights
from mocomp.plans.blocks import Block, Dense, find_blocks
from mocomp.plans.mixtures import Found, of_plan
from mocomp.plans.plan import ModelPlan
from mocomp.report import RECEIPT, CheckpointReceipt
from mocomp.resources import Resources
from mocomp.verify.inputs import with_modality
from mocomp.verify.two_models import moved
from mocomp.verify.untouched import refuse_touched
from mocomp.weights import disk, recipes
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.output import Output, new_directory
from mocomp.weights.recipes import Concat, Reader, Recipe, Slice, Tensor
from mocomp.weights.shards import write_checkpoint


@dataclass
class Opened:
    """A model with mixtures of ours, and the same model without them: traced, and its blocks by name."""

    source: Source
    base: Traced
    blocks: dict[str, Block]
    bound: dict[str, Recipe]
    read: Reader


def densify(source_name: str, output: Path, options: DensifyOptions, resources: Resources | None = None) -> CheckpointReceipt:
    """MIXTURE as the dense model that it was made from, with the average of its experts in each block."""
    with (
        new_directory(output, options.force, RECEIPT, resources, as_asked("densify", options, source_name)) as made,
        opened(source_name, options) as model,
    ):
        directory = made.path
        plan: Any = model.source.plan
        shares, notes = _shares(model, options, made.executor.resources.nbytes())
        weights, changes = dict(_others(model, plan)), []
        for found in of_plan(plan, model.bound):
            block = model.blocks[found.enter]
            dense = Densify(model.read)(found.plan, block.dense.width, found.weights, shares.get(f"{found.enter}.experts"))
            weights |= _stored(block, dense.dense, found)
            changes.append(dense.changes)
        with terminal.progress("weights", sum(r.nbytes for r in weights.values())) as advance:
            write_checkpoint(directory, weights, made.writer(model.read, advance), options.shard_bytes())
        described = model.source.config
        described.architectures = [model.source.model_class.__name__]
        disk.write_text(directory / "config.json", described.to_json_string())
        for path in model.source.files_to_carry:
            disk.copy(path, directory / path.name)
        receipt = CheckpointReceipt(
            "densify",
            str(model.source.directory.resolve()),
            dataclasses.asdict(options),
            described.architectures[0],
            f"transformers.{described.architectures[0]}",
            0,
            0,
            _count(weights),
            _count({leaf.name: leaf for recipe in model.bound.values() for leaf in recipe.leaves()}),
            None,
            "; ".join(dict.fromkeys(change for change in changes if change)),
            notes=notes,
        )
        _prove(receipt, model, made)
        receipt.write(directory)
        refuse_if_moved(receipt)
        return receipt


@contextmanager
def opened(source_name: str, options: DensifyOptions) -> Iterator[Opened]:
    """A checkpoint of ours. Raises Unsupported for a model that has no dense form."""
    source = open_source(source_name, options.trust_remote_code, options.task)
    source.refuse_quantised()
    if source.plan is None:
        raise Unsupported(
            "it has no mixtures of mocomp",
            where=source_name,
            fix="Give a directory that mocomp made with --layout mocomp, which knows the dense model that it came from.",
        )
    if options.layers != "all" or options.layout == "mocomp":
        raise Usage("densify takes all layers, to a model of transformers", fix="Leave out --layers and --layout.")
    if source.plan.depths:
        raise Unsupported("it has layers that tokens go past, which no dense model has", where=source_name)
    added = [mixture.enter for mixture in source.plan.mixtures if mixture.replaces != "dense"]
    if added:
        raise Unsupported(f"{added[0]} was a mixture before mocomp, so there is no block to go back to", where=source_name)
    with Checkpoint(source.directory) as checkpoint:
        base = trace(build(dataclasses.replace(source, plan=None)))
        base.program.recipes |= bind_nothing(base.model)
        for step in (Clean(), FoldWeights()):
            run(step, base.program)
        blocks = {block.enter: block for block in find_blocks(base.program, base.model.state_dict())[0]}
        bound, _ = bind(empty(source), checkpoint)
        yield Opened(source, base, blocks, bound, checkpoint.read)


def _shares(model: Opened, options: DensifyOptions, memory: int) -> tuple[dict[str, torch.Tensor], list[str]]:
    """(how much each expert is used, by the names of their modules, notes on the data); nothing where all count alike."""
    if options.weights == "mean":
        if options.calibration:
            raise Usage("--calibration is for --weights usage")
        return {}, []
    data = data_for(model.source, model.base.interface, options.calibration, options.seed, model.source.plan)
    reference = loaded(model.source, model.base.interface.with_plan(model.source.plan), data, memory)
    return usage(reference, data), data.notes


def _others(model: Opened, plan: ModelPlan) -> Iterator[tuple[str, Recipe]]:
    """The weights of the base that no mixture stands for, in the type that they have on disk; tied ones once."""
    inside = {name for mixture in plan.mixtures for name in model.blocks[mixture.enter].parameters}
    seen: set[str] = set()
    for name in model.base.model.state_dict():
        if name in inside:
            continue
        recipe = model.bound[name]
        leaves = {leaf.name for leaf in recipe.leaves()}
        if leaves and not leaves <= seen:
            seen |= leaves
            yield name, _as_on_disk(recipe)


def _as_on_disk(recipe: Recipe) -> Recipe:
    return recipes.cast(recipe, next(leaf.dtype for leaf in recipe.leaves()))


def _stored(block: Block, made: Dense, found: Found) -> dict[str, Recipe]:
    """The parameters of a block, by their names in the model, in the type that the experts have on disk."""
    pieces: dict[str, dict[int, Recipe]] = {}
    for part in ("w_in", "b_in", "w_out", "b_out"):
        place, value = getattr(block.dense, part), getattr(made, part)
        for name, start, piece in _placed(place, value, found.enter) if place is not None else []:
            pieces.setdefault(name, {})[start] = piece
    dtype = next(found.weights["experts.w_in"].leaves()).dtype
    return {name: recipes.cast(recipes.concat([rows[i] for i in sorted(rows)], 0), dtype) for name, rows in pieces.items()}


def _placed(place: Recipe, value: Recipe, where: str) -> Iterator[tuple[str, int, Recipe]]:
    """(parameter, first row, rows) of each part of a value, given how the block's own is made of parameters."""
    if isinstance(place, Tensor):
        yield place.name, 0, value
    elif isinstance(place, Slice) and isinstance(place.source, Tensor) and place.dim == 0 and place.step == 1:
        yield place.source.name, place.start, value
    elif isinstance(place, Concat) and place.dim == 0:
        offset = 0
        for part in place.parts:
            yield from _placed(part, recipes.slice_of(value, 0, offset, offset + part.shape[0]), where)
            offset += part.shape[0]
    else:
        raise Unsupported("its block keeps weights in a way that cannot be gone back to", where=where)


def _count(weights: dict[str, Recipe]) -> int:
    return sum(int(np.prod(recipe.shape)) for recipe in weights.values())


def _prove(receipt: CheckpointReceipt, model: Opened, made: Output) -> None:
    """As `checkpoints.prove`, of the mixtures and the dense model, which may not know an input that tells modalities."""
    way, plan, interface = way_of_proof(receipt), model.source.plan, model.base.interface
    dense = open_source(str(made.path), model.source.trust_remote_code, receipt.options["task"])
    if way == "blocks" and plan is not None:
        stayed = refuse_touched(made.path, dict(_others(model, plan)), model.read)
        blocks_alone(receipt, model.source, dense, plan.mixtures, made.executor, stayed)
    elif way == "full":
        both = (model.source, interface.with_plan(plan)), (dense, interface)
        memory = made.executor.resources.nbytes()
        receipt.moved, receipt.kl = moved(*both, receipt.options["seed"], with_modality(plan), memory)
