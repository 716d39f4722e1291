"""mocomp merge: open models of one architecture side by side, make experts of their blocks, write the mixture, prove it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from mocomp.calibration.capture import capture
from mocomp.calibration.data import Data, data_for
from mocomp.checkpoints import Opened, chosen, finish, in_tower, kept, opened
from mocomp.errors import Unsupported, Usage
from mocomp.fill import Filled
from mocomp.fill.merge import Merge, embedding_gate, hidden_gate
from mocomp.fill.routing import Rows, random_rows
from mocomp.models.binding import bind
from mocomp.models.source import Source, open_source
from mocomp.nn.model import empty
from mocomp.opening import as_asked
from mocomp.options import MergeOptions, sources_by_name
from mocomp.plans import modality as modalities
from mocomp.plans.blocks import Block, Dense
from mocomp.plans.modality import IDS, Modality
from mocomp.report import RECEIPT, CheckpointReceipt
from mocomp.resources import Resources
from mocomp.verify.reference import Reference
from mocomp.weights import recipes
from mocomp.weights.arithmetic import mean, pick
from mocomp.weights.checkpoint import Checkpoint, reader_of
from mocomp.weights.output import new_directory
from mocomp.weights.recipes import Recipe
from mocomp.weights.replacing import replaced

OF_TRAINING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache")
"""Fields of a config that say nothing of the function."""
OF_THE_VOCABULARY = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
"""Fields that fine-tuning may change for reasons of its own."""
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "added_tokens.json")


@dataclass
class Branch:
    """A model beside the base: the recipe of each parameter by its name in the model, the file of its prompts, if any.

    `notes` say how it differs from the base where that may be.
    """

    source: Source
    checkpoint: Checkpoint
    bound: dict[str, Recipe]
    prompts: str
    notes: list[str]


def merge(source_name: str, output: Path, options: MergeOptions, resources: Resources | None = None) -> CheckpointReceipt:
    """BASE with mixtures whose experts are the feed-forward blocks of models that were trained from it."""
    if not options.expert:
        raise Usage("no experts", fix="Say --expert NAME=MODEL for each of them.")
    if options.prompts and options.gate == "random":
        raise Usage("--prompts, and a random gate does not read them", fix="Say --gate hidden.")
    with (
        new_directory(output, options.force, RECEIPT, resources, as_asked("merge", options, source_name)) as made,
        opened(source_name, options) as base,
        ExitStack() as stack,
    ):
        modality = modality_of(options, base.source)
        members = members_of(options, base, modality is not None, stack)
        everyone = [one for branches in members.values() for one in branches]
        base.read = reader_of([base.checkpoint, *(one.checkpoint for one in everyone)])
        fill = Merge(
            groups=tuple((name, len(branches)) for name, branches in members.items()),
            reach=tuple((name,) for name in members),
            k=options.top_k,
            router=options.router,
            rows=gate(base, members, options, made.executor.resources.nbytes()),
            alike=all(one.source.directory.resolve() == base.source.directory.resolve() for one in everyone),
        )
        filled = []
        for block in chosen(base.blocks, options.layers):
            experts = {name: [block_of(base, block, one) for one in branches] for name, branches in members.items()}
            filled.append(in_tower(fill, block, modality)(block, experts))
        rest = average(base, filled, everyone) if options.rest == "average" else None
        notes = [note for one in everyone for note in one.notes]
        return finish("merge", base, filled, modality, options, made, notes=notes, rest=rest)


def modality_of(options: MergeOptions, source: Source) -> Modality | None:
    """Where a token's modality comes from; None when the router chooses among all experts."""
    names = list(sources_by_name(options.expert, "expert"))
    if not options.modality and not options.otherwise:
        return None
    if len(names) < 2:
        raise Usage("modalities with experts of one name", fix="For example --expert text=A --expert image=B.")
    return modalities.parse(names, list(options.modality), options.otherwise or None, source.config)


def members_of(options: MergeOptions, base: Opened[Block], grouped: bool, stack: ExitStack) -> dict[str, list[Branch]]:
    """The models of each group, open as long as `stack`; `all` where there is one group."""
    prompts = sources_by_name(options.prompts, "prompts")
    named = sources_by_name(options.expert, "expert")
    members: dict[str, list[Branch]] = {}
    for name, sources in named.items():
        files = prompts.pop(name, [])
        if options.gate != "random" and len(files) != len(sources):
            raise Usage(f"gate {options.gate} and {len(files)} --prompts {name}=FILE for {len(sources)} --expert {name}=MODEL")
        for i, source in enumerate(sources):
            one = branch(base, source, f"{name}.{i}/", files[i] if files else "", options, stack)
            members.setdefault(name if grouped else "all", []).append(one)
    if prompts:
        raise Usage(f"--prompts for {next(iter(prompts))}, of which there is no --expert")
    return members


def branch(base: Opened[Block], source_name: str, label: str, prompts: str, options: MergeOptions, stack: ExitStack) -> Branch:
    """A model of the same architecture, opened. Raises Unsupported, with the field that differs, for another one."""
    source = open_source(source_name, options.trust_remote_code, options.task)
    source.refuse_quantised()
    if source.plan is not None or source.model_class is not base.source.model_class:
        theirs = "a mixture of mocomp" if source.plan is not None else source.model_class.__name__
        raise Unsupported(f"it is {theirs}, and the base {base.source.model_class.__name__}", where=source_name)
    free = (*OF_TRAINING, *(OF_THE_VOCABULARY if options.rest == "base" else OF_THE_VOCABULARY[1:]))
    ours, theirs = flat(base.source.config.to_dict()), flat(source.config.to_dict())
    for field in sorted(ours.keys() | theirs.keys()):
        if ours.get(field) != theirs.get(field) and field.rpartition(".")[2] not in free:
            raise Unsupported(f"{field} is {theirs.get(field)}, and {ours.get(field)} in the base", where=source_name)
    checkpoint = stack.enter_context(Checkpoint(source.directory, label))
    bound, _ = bind(empty(source), checkpoint)
    changed = [field for field in OF_THE_VOCABULARY if ours.get(field) != theirs.get(field)]
    notes = [f"{source_name}: its {field} is {theirs.get(field)}, and the base's is kept" for field in changed]
    if any(content(source.directory / name) != content(base.source.directory / name) for name in VOCABULARIES):
        notes.append(f"{source_name}: its tokenizer is another, and the base's is kept")
    return Branch(source, checkpoint, bound, prompts, notes)


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a config, those of a part of it as `part.field`."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def content(path: Path) -> bytes:
    """The bytes of a file, none when there is no such file."""
    return path.read_bytes() if path.exists() else b""


def block_of(base: Opened[Block], block: Block, one: Branch) -> Block:
    """The same block with the weights of another model. Raises Unsupported when one has another shape there."""
    for name in block.parameters:
        if one.bound[name].shape != base.bound[name].shape:
            shapes = f"{list(one.bound[name].shape)}, and {list(base.bound[name].shape)} in the base"
            raise Unsupported(f"{name} is {shapes}", where=str(one.source.directory))
    others = {base.bound[name]: one.bound[name] for name in block.parameters}
    parts: dict[str, Any] = {part.name: getattr(block.dense, part.name) for part in fields(Dense)}
    changed = {name: replaced(recipe, others) for name, recipe in parts.items() if recipe is not None}
    return replace(block, dense=replace(block.dense, **changed))


def average(base: Opened[Block], filled: list[Filled], branches: list[Branch]) -> dict[str, Recipe]:
    """All that is not in a mixture as the mean over the models, in the base's types; what is no number as the base has it."""
    staying = {leaf for recipe in kept(base, filled).values() for leaf in recipe.leaves()}
    rest: dict[str, Recipe] = {}
    for name, own in base.bound.items():
        leaves = [leaf for leaf in own.leaves() if leaf in staying]
        staying.difference_update(leaves)  # a weight that is tied to another is written once
        if leaves:
            shared = mean([one.bound[name] for one in branches]) if own.dtype.is_floating_point else own
            rest[name] = recipes.cast(shared, leaves[0].dtype)
    return rest


def gate(base: Opened[Block], members: dict[str, list[Branch]], options: MergeOptions, memory: int) -> Rows:
    """The rows of the router, from the prompts of each expert where --gate asks for them."""
    if options.gate == "random":
        return random_rows(options.seed)
    source, interface = base.source, base.traced.interface

    def rows_of(one: Branch) -> Data:
        return data_for(source, interface, one.prompts, options.seed)

    if options.gate == "hidden":
        reference, names = Reference.load(source, interface, memory), [block.enter for block in base.blocks]
        seen = {
            name: [capture(reference, rows_of(one), names, seed=options.seed) for one in branches]
            for name, branches in members.items()
        }
        return hidden_gate(
            {group: [{name: one[name].x.mean(0) for name in one} for one in given] for group, given in seen.items()}
        )
    table = embeddings(base)

    def embedded(one: Branch) -> torch.Tensor:
        return pick(table, 0, [token for row in rows_of(one).rows for token in row[IDS][0].tolist()]).evaluate(base.read)

    given = {name: [embedded(one) for one in branches] for name, branches in members.items()}
    return embedding_gate(given, table.shape[1] ** -0.5 if options.gate == "domain" else 1.0)


def embeddings(base: Opened[Block]) -> Recipe:
    """The table of the tokens' embeddings. Raises Unsupported for a model that has none."""
    module = base.traced.model.get_input_embeddings()
    weight = getattr(module, "weight", None)
    if IDS not in base.traced.interface.inputs or weight is None or weight.dim() != 2:
        raise Unsupported("the model has no table of embeddings for a gate of embeddings", fix="Say --gate hidden.")
    return base.bound[next(n for n, p in base.traced.model.named_parameters(remove_duplicate=False) if p is weight)]
