"""mocomp prune: a mixture with fewer experts, and on the data that says which: what that moved."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from mocomp import terminal
from mocomp.calibration.capture import loaded
from mocomp.calibration.data import Data, data_for
from mocomp.calibration.ranking import (
    Ranked,
    alike_within,
    kept_of,
    leaving,
    rank,
    within,
    without_dead,
)
from mocomp.calibration.usage import Counted, count, moved
from mocomp.checkpoints import PRESERVED, Opened, chosen, finish, prove
from mocomp.commands.extend import opened_mixtures
from mocomp.commands.usage import modality_of_tokens, name_in
from mocomp.errors import Unsupported, Usage
from mocomp.fill import Filled
from mocomp.fill.prune import bytes_of_an_expert, config_with, pruned, router_bytes, sliced_checkpoint
from mocomp.models.binding import bind
from mocomp.models.source import open_source
from mocomp.nn.model import empty
from mocomp.opening import as_asked
from mocomp.options import CheckpointOptions, ExtendOptions
from mocomp.plans.mixtures import Found
from mocomp.plans.plan import ModelPlan
from mocomp.report import RECEIPT, CheckpointReceipt
from mocomp.resources import Resources
from mocomp.settings import not_negative, one_of, size_in_bytes
from mocomp.verify.reference import Reference
from mocomp.weights import disk
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.output import Output, new_directory
from mocomp.weights.shards import write_checkpoint

Kept = list[list[int]]
"""The experts that stay, mixture by mixture."""


@dataclass(frozen=True)
class PruneOptions(CheckpointOptions):
    """Options of `mocomp prune`, with their defaults; exactly one of `experts`, `budget` and `dead` is given."""

    experts: int = 0
    budget: str = ""
    dead: bool = False
    by: str = "usage"
    data: str = ""
    modality: tuple[str, ...] = ()
    otherwise: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative("experts", self.experts)
        one_of("by", self.by, ("usage", "router_norm", "output_error"))
        if self.budget:
            size_in_bytes(self.budget, "budget")


@dataclass
class Measured:
    """What the original did on the data: the model itself, and its counts; nothing of both where it need not run."""

    data: Data
    words: str
    reference: Reference | None
    counts: dict[str, Counted]

    def of(self, found: Found) -> Counted:
        """The counts of one mixture."""
        return self.counts[name_in(self.counts, found)]

    def lost(self, mixtures: list[Found], kept: Kept) -> float:
        """The share of all routed weight that went to experts which do not stay."""
        weights = [self.of(found).weight.sum(0) for found in mixtures]
        gone = [weight.index_fill(0, torch.tensor(stay), 0.0) for weight, stay in zip(weights, kept, strict=True)]
        return sum(float(w.sum()) for w in gone) / max(sum(float(w.sum()) for w in weights), 1e-30)


def prune(source_name: str, output: Path, options: PruneOptions, resources: Resources | None = None) -> CheckpointReceipt:
    """MOE without the experts that it needs least, and how far that moves its outputs on the data."""
    if sum((options.experts > 0, bool(options.budget), options.dead)) != 1:
        raise Usage("what is to go?", fix="Say one of --experts N, --budget SIZE and --dead.")
    with (
        new_directory(output, options.force, RECEIPT, resources, as_asked("prune", options, source_name)) as made,
        _opened(source_name, options) as moe,
    ):
        mixtures = chosen(moe.blocks, options.layers)
        _refuse_stock(moe, mixtures, options)
        measured = _measured(moe, options, made.executor.resources.nbytes())
        ranked = rank(mixtures, options.by, moe.read, measured.of)
        kept = _kept(moe, ranked, measured, options)
        if all(len(stay) == found.plan.experts for found, stay in zip(mixtures, kept, strict=True)):
            raise Usage("no expert would go" + (f": none is dead on {measured.words}" if options.dead else ": all fit"))
        as_stock = _holds(moe, mixtures, options) and len({len(stay) for stay in kept}) == 1
        receipt = (_write_stock if as_stock else _write_plan)(moe, mixtures, kept, options, made)
        receipt.options = dataclasses.asdict(options)
        receipt.notes = [*measured.data.notes, *receipt.notes, *_told(mixtures, kept)]
        _prove(receipt, moe, measured, mixtures, kept, made)
        receipt.write(made.path)
        return receipt


@contextmanager
def _opened(source_name: str, options: PruneOptions) -> Iterator[Opened[Found]]:
    """The source's mixtures. Raises Unsupported, with all reasons, when one of them is no plan."""
    with ExitStack() as stack:
        try:
            asked = ExtendOptions(trust_remote_code=options.trust_remote_code, task=options.task)
            moe = stack.enter_context(opened_mixtures(source_name, asked))
        except Unsupported as reason:
            if not reason.what.startswith("it has no mixtures"):
                raise
            raise Unsupported("it has no mixtures that can be pruned", where=source_name, gaps=reason.gaps) from reason
        yield moe


def _holds(moe: Opened[Found], mixtures: list[Found], options: PruneOptions) -> bool:
    """Whether the class that the source is of could hold the result, as long as all layers keep as many."""
    return options.layout != "mocomp" and moe.source.plan is None and len(mixtures) == len(moe.blocks)


def _refuse_stock(moe: Opened[Found], mixtures: list[Found], options: PruneOptions) -> None:
    """Raises Unsupported when a class of transformers is asked for and there is none."""
    if options.layout != "stock" or _holds(moe, mixtures, options):
        return
    gap = (
        "its mixtures are of mocomp.nn"
        if moe.source.plan is not None
        else "a class has the same number of experts in all layers"
    )
    raise Unsupported("no class of transformers can hold the result", gaps=[gap], fix="Leave out --layout stock.")


def _measured(moe: Opened[Found], options: PruneOptions, memory: int) -> Measured:
    """Run the original on the data, where anything asks for it."""
    source, interface, proven = moe.source, moe.traced.interface, options.parity == "full"
    needed = proven or options.dead or options.by != "router_norm"
    if options.data and not needed:
        raise Usage("--data, and nothing is run: --by router_norm looks at the weights alone, and --parity is off")
    modality = modality_of_tokens(source, options.modality, options.otherwise)
    if not needed:
        return Measured(Data([]), "", None, {})
    data = data_for(source, interface, options.data, options.seed, ModelPlan(modality))
    reference = loaded(source, interface, data, memory)
    return Measured(data, options.data or "random data", reference, count(reference, data, modality, options.seed))


def _kept(moe: Opened[Found], ranked: list[Ranked], measured: Measured, options: PruneOptions) -> Kept:
    """Which experts stay; as many in all layers where the class of the source is to hold the result."""
    alike = _holds(moe, [r.found for r in ranked], options)
    if options.experts:
        return [leaving(mixture, options.experts) for mixture in ranked]
    if options.dead:
        dead = [measured.of(mixture.found).dead for mixture in ranked]
        kept = [without_dead(mixture, gone) for mixture, gone in zip(ranked, dead, strict=True)]
        most = max(len(stay) for stay in kept)
        if options.layout != "stock":
            return kept
        return [kept_of(m, [most // len(m.cells)] * len(m.cells), stay) for m, stay in zip(ranked, kept, strict=True)]
    budget = size_in_bytes(options.budget, "budget")
    if not alike:
        more = 0 if moe.source.plan is not None else sum(router_bytes(mixture.found) for mixture in ranked)
        return within(ranked, moe.checkpoint.nbytes + more - budget, bytes_of_an_expert)
    return alike_within(ranked, moe.checkpoint.nbytes - budget, bytes_of_an_expert)


def _write_stock(
    moe: Opened[Found], mixtures: list[Found], kept: Kept, options: PruneOptions, made: Output
) -> CheckpointReceipt:
    """The checkpoint of the same class: its own tensors, and those of the experts that stay."""
    directory = made.path
    source = moe.source
    weights = sliced_checkpoint(moe.checkpoint, mixtures, kept)
    described = config_with(source, mixtures[0].plan.experts, len(kept[0]))
    with terminal.progress("weights", sum(recipe.nbytes for recipe in weights.values())) as advance:
        write_checkpoint(directory, weights, made.writer(moe.read, advance), options.shard_bytes())
    disk.write_text(directory / "config.json", described)
    for path in source.files_to_carry:
        disk.copy(path, directory / path.name)
    with Checkpoint(directory) as written:  # what cannot be loaded is told here
        bind(empty(open_source(str(directory), options.trust_remote_code, options.task)), written)
    model = source.model_class.__name__
    return CheckpointReceipt(
        "prune",
        str(source.directory.resolve()),
        {},
        model,
        f"transformers.{model}",
        len(mixtures),
        sum(len(stay) for stay in kept),
        sum(math.prod(recipe.shape) for recipe in weights.values()),
        sum(math.prod(entry.shape) for entry in moe.checkpoint.entries.values()),
        None,
    )


def _write_plan(
    moe: Opened[Found], mixtures: list[Found], kept: Kept, options: PruneOptions, made: Output
) -> CheckpointReceipt:
    """A checkpoint of ours, whose layers may differ in how many experts they have."""
    filled = {found.enter: pruned(found, stay) for found, stay in zip(mixtures, kept, strict=True)}
    # a plan of ours names every mixture; one of the class's own that is not asked for goes on as it is
    if moe.source.plan is not None:
        filled = {f.enter: filled.get(f.enter, Filled(f.plan, f.weights)) for f in moe.blocks}
    written = dataclasses.replace(options, layout="mocomp", parity="off")
    own = moe.source.plan.modality if moe.source.plan is not None else None
    receipt = finish("prune", moe, list(filled.values()), own, written, made)
    if moe.source.plan is None and options.layout == "auto":
        numbers = ", ".join(str(len(stay)) for stay in kept)
        receipt.notes.insert(0, f"layout mocomp: layers keep {numbers} experts, and a class has one number for all")
    return receipt


def _told(mixtures: list[Found], kept: Kept) -> list[str]:
    """Which experts went, layer by layer."""
    gone = [sorted(set(range(f.plan.experts)) - set(stay)) for f, stay in zip(mixtures, kept, strict=True)]
    return [f"{f.enter} is without {', '.join(map(str, out))}" for f, out in zip(mixtures, gone, strict=True) if out]


def _prove(
    receipt: CheckpointReceipt, moe: Opened[Found], measured: Measured, mixtures: list[Found], kept: Kept, made: Output
) -> None:
    """Run the original and the result on the data, and say in the receipt what moved, and why."""
    receipt.changes = "experts were removed"
    if receipt.options["parity"] == "blocks":
        inside = {leaf.name for found in mixtures for recipe in found.weights.values() for leaf in recipe.leaves()}
        untouched = {name: moe.checkpoint.recipe(name) for name in moe.checkpoint.entries if name not in inside}
        prove(receipt, moe, [Filled(found.plan, {}) for found in mixtures], made, untouched)
    if not measured.counts:
        return
    lost = measured.lost(mixtures, kept)
    receipt.changes = f"{lost:.1%} of the routed weight went to experts that were removed"
    if measured.reference is None or receipt.options["parity"] != "full":
        return
    source = open_source(str(made.path), moe.source.trust_remote_code, receipt.options["task"])
    after = Reference.load(source, moe.traced.interface, made.executor.resources.nbytes())
    found = moved(measured.reference, after, measured.data)
    receipt.moved, receipt.kl, receipt.tokens = found.error, found.kl, f"{found.tokens} {found.unit} of {measured.words}"
    if found.error <= PRESERVED:
        receipt.changes = ""
    elif not lost:
        receipt.changes = "no token chose what was removed, but the router reckons with all of its experts"
