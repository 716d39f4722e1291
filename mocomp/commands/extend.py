"""mocomp extend: open a mixture, add experts to it, write it, and prove that tokens of before do not notice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mocomp.calibration.capture import observed, usage
from mocomp.calibration.data import data_for
from mocomp.checkpoints import Opened, chosen, finish, opened
from mocomp.errors import Unsupported, Usage
from mocomp.fill.extend import Extend, Order, Rows
from mocomp.fill.routing import centre_rows, drawn_rows
from mocomp.models.binding import bind
from mocomp.models.huggingface import build, trace
from mocomp.models.interface import Interface
from mocomp.models.source import open_source
from mocomp.nn.model import empty
from mocomp.opening import as_asked
from mocomp.options import ExtendOptions, sources_by_name
from mocomp.passes import run
from mocomp.passes.clean import Clean
from mocomp.passes.common_subexpressions import CommonSubexpressions
from mocomp.passes.fold_router_scale import FoldRouterScale
from mocomp.passes.fold_weights import FoldWeights
from mocomp.passes.fuse_routing import FuseRouting
from mocomp.plans.blocks import Block
from mocomp.plans.mixtures import Found, find_mixtures, of_plan
from mocomp.plans.modality import IDS, POSITION, Modality, extended
from mocomp.plans.plan import ModelPlan
from mocomp.report import RECEIPT, CheckpointReceipt
from mocomp.resources import Resources
from mocomp.verify.inputs import Drawn
from mocomp.verify.reference import Reference
from mocomp.weights.checkpoint import Checkpoint, reader_of
from mocomp.weights.output import new_directory


def extend(source_name: str, output: Path, options: ExtendOptions, resources: Resources | None = None) -> CheckpointReceipt:
    """MOE with more experts, for tokens of a new modality or for those that there are."""
    if not options.groups and not options.experts:
        raise Usage("nothing to add", fix="Say --groups audio=4 --modality audio=A..B, or --experts 4.")
    if options.calibration and options.copies != "usage" and options.router_init != "hidden":
        raise Usage("--calibration is for --copies usage and --router-init hidden")
    with (
        new_directory(output, options.force, RECEIPT, resources, as_asked("extend", options, source_name)) as made,
        opened_mixtures(source_name, options) as moe,
        ExitStack() as stack,
    ):
        more, fresh, modality = additions(moe, options)
        blocks = dense_blocks(moe, options, [name for name, _ in more], stack)
        order, rows, notes = beginnings(moe, fresh, modality, options, made.executor.resources.nbytes())
        rest = None if modality is None or not modality.otherwise else modality.names.index(modality.otherwise)
        fill = Extend(more, fresh, options.reach == "both", rest, rows, order)
        asked = chosen(moe.blocks, options.layers)
        # a plan of ours says of every mixture what a new modality reaches; a mixture of the class's own goes on as it is
        touched = moe.blocks if moe.source.plan is not None else asked
        filled = [
            fill(found, blocks_at(blocks, found)) if found in asked else replace(fill, more=())(found, {}) for found in touched
        ]
        drawn, why = old_tokens(modality, fresh, moe.traced.interface)
        filled = [replace(f, changes=f.changes or why) for f in filled]
        # no class of transformers has experts of another reach, so why none does is not worth a word
        written = replace(options, layout="mocomp") if options.layout == "auto" else options
        return finish("extend", moe, filled, modality, written, made, drawn=drawn, notes=notes)


@contextmanager
def opened_mixtures(source_name: str, options: ExtendOptions) -> Iterator[Opened]:
    """The source's mixtures, with `Found` for blocks; of the class's own those that its trace shows, of ours its plan's.

    Raises Unsupported, with all reasons, when one of them cannot be extended.
    """
    source = open_source(source_name, options.trust_remote_code, options.task)
    source.refuse_quantised()
    with Checkpoint(source.directory) as checkpoint:
        traced = trace(build(source))
        if source.plan is not None:
            traced.model, traced.interface = empty(source), traced.interface.with_plan(source.plan)
        bound, traced.unused = bind(traced.model, checkpoint)
        if source.plan is not None:
            found, skipped = of_plan(source.plan, bound), []
        else:
            traced.program.recipes |= bound
            steps = (Clean(), FoldWeights(), CommonSubexpressions(), FuseRouting(), FoldRouterScale())
            reasons = [reason for step in steps for reason in run(step, traced.program).skipped]
            found, skipped = find_mixtures(traced.program, traced.model.state_dict(), options.old_group)
            skipped += reasons if skipped else []
        if skipped or not found:
            raise Unsupported("it has no mixtures that can be extended", where=source_name, gaps=skipped)
        yield Opened(source, checkpoint, traced, bound, found, [], checkpoint.read)


def additions(
    moe: Opened[Found], options: ExtendOptions
) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...], Modality | None]:
    """((group, new experts) of each group that gets some, the names of new modalities, all modalities)."""
    plan = moe.source.plan or ModelPlan()
    old = list(dict.fromkeys(name for found in moe.blocks for name, _ in found.plan.groups))
    new = options.new_groups()
    modality, names = plan.modality, [name for name, _ in new]
    taken = [name for name in names if name in old]
    if taken:
        raise Usage(f"group {taken[0]} is there already", fix=f"More experts for it: --experts {taken[0]}=N")
    if names:
        modality = extended(modality or old[0], names, list(options.modality), moe.source.config)
    elif options.modality:
        raise Usage("--modality without a new group", fix="Say --groups, for example --groups audio=4.")
    of_images = IDS not in moe.traced.interface.inputs and not moe.source.plan
    if of_images and modality is not None and modality.key == POSITION:
        raise Unsupported("the experts of a model of images are not told the positions of what they are given")
    return (*options.more_experts(old), *new), tuple(names), modality


def dense_blocks(
    moe: Opened[Found], options: ExtendOptions, groups: list[str], stack: ExitStack
) -> dict[str, list[list[Block]]]:
    """Per group the blocks of each dense model that --expert names for it; they stay open as long as `stack`."""
    named = sources_by_name(options.expert, "expert")
    unknown = [name for name in named if name not in groups]
    if unknown:
        raise Usage(f"--expert for {unknown[0]}, which gets no new experts")
    dense: dict[str, list[Opened[Block]]] = {}
    for name, sources in named.items():
        given = [stack.enter_context(opened(source, options, f"{name}.{i}/")) for i, source in enumerate(sources)]
        dense[name] = given
    everyone = [one.checkpoint for given in dense.values() for one in given]
    moe.read = reader_of([moe.checkpoint, *everyone])
    return {name: [one.blocks for one in given] for name, given in dense.items()}


def blocks_at(dense: dict[str, list[list[Block]]], found: Found) -> dict[str, list[Block]]:
    """The blocks of the same layer as a mixture."""

    def layer(enter: str) -> list[str]:
        return re.findall(r"\d+", enter)[:1]

    matching = {name: [[b for b in blocks if layer(b.enter) == layer(found.enter)] for blocks in dense[name]] for name in dense}
    for name, models in matching.items():
        if any(len(blocks) != 1 for blocks in models):
            raise Unsupported(f"a dense model of --expert {name} has no one feed-forward block of its layer", where=found.enter)
    return {name: [blocks[0] for blocks in models] for name, models in matching.items()}


def beginnings(
    moe: Opened[Found], fresh: tuple[str, ...], modality: Modality | None, options: ExtendOptions, memory: int
) -> tuple[Order, Rows | None, list[str]]:
    """(which old experts are copied first, the rows of new ones, notes), by running the original where they ask for it."""
    source, interface, notes = moe.source, moe.traced.interface, []

    def in_turn(found: Found) -> list[int]:
        return list(range(found.plan.experts))

    def by_usage(found: Found) -> list[int]:
        mine = used[found.enter] if found.enter in used else used[f"{found.enter}.experts"]
        return mine.argsort(descending=True, stable=True).tolist()

    def at_random(found: Found, group: str, count: int) -> torch.Tensor:
        return drawn_rows(options.seed, f"{found.enter}.{group}", count, found.plan.hidden)

    def by_tokens(found: Found, group: str, count: int) -> torch.Tensor:
        here = seen[found.enter]
        x = here.of(modality.names.index(group)) if modality is not None and group in modality.names else here.x
        return centre_rows(x, count, options.seed, f"tokens of {group} came to {found.enter}")

    if options.copies == "usage":
        data = data_for(source, interface, options.calibration, options.seed, ModelPlan(modality))
        used, notes = usage(Reference.load(source, interface, memory), data), data.notes
    if options.router_init == "hidden":
        names = [found.enter for found in moe.blocks]
        seen, notes = observed(source, interface, names, options.calibration, options.seed, modality, memory)
    rows = {"random": at_random, "copy": None, "hidden": by_tokens}[options.router_init]
    return by_usage if options.copies == "usage" else in_turn, rows, notes


def old_tokens(modality: Modality | None, fresh: tuple[str, ...], interface: Interface) -> tuple[Drawn | None, str]:
    """(the tokens whose function is to stay, None when those are all; why no input is of them alone, empty when some are)."""
    if modality is None or not fresh:
        return None, ""
    words, new = " or ".join(fresh), [modality.names.index(name) for name in fresh]
    keys = torch.arange(interface.vocabulary if modality.key == IDS else modality.values() + 1)
    is_old = np.array([m not in new and m < len(modality.names) for m in modality.of(keys).tolist()])
    if modality.key != POSITION:
        if not is_old.any():
            raise Usage(f"no token is left that is not {words}")
        return Drawn(f"tokens that are not {words}", {modality.key: np.flatnonzero(is_old)}), ""
    before = int(is_old.argmin())  # positions that come before the first new one
    if before == 0 or IDS not in interface.inputs:
        return None, f"every input has tokens of {words}"
    return Drawn(f"positions before those of {words}", longest=before), ""
