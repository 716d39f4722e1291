"""mocomp usage: run the model over data, and see which of its experts the tokens go to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mocomp import report as reports
from mocomp import terminal
from mocomp.calibration.ablation import Ablation
from mocomp.calibration.capture import loaded
from mocomp.calibration.data import data_for
from mocomp.calibration.ranking import Ranked, by_usage, can_leave, leaving
from mocomp.calibration.usage import Counted, count, layer_usage, modality_names, reach_of_pools, tokens_of
from mocomp.checkpoints import Opened
from mocomp.commands.extend import opened_mixtures
from mocomp.commands.parity import refuse_module
from mocomp.errors import BadInput, Unsupported, Usage
from mocomp.fill.prune import bytes_of_an_expert
from mocomp.models.huggingface import build, trace
from mocomp.models.interface import Interface
from mocomp.models.source import Source, open_source
from mocomp.options import ExtendOptions
from mocomp.plans import modality as modalities
from mocomp.plans.mixtures import Found
from mocomp.plans.modality import Modality
from mocomp.plans.plan import ModelPlan
from mocomp.report import page, results
from mocomp.report.usage import LayerUsage, Pruning, UsageReport
from mocomp.resources import Resources
from mocomp.settings import Options, not_negative
from mocomp.weights import disk

SAME = 1e-3
"""Relative difference of their outputs up to which two experts of a layer are duplicates."""
LEFT = (3 / 4, 1 / 2)
"""Shares of the experts for which the report says what pruning to them would save and cost."""
REST = "text"
"""What tokens are called that no --modality names."""
Mixtures = Opened[Found]


@dataclass(frozen=True)
class UsageOptions(Options):
    """Options of `mocomp usage`, with their defaults."""

    data: str = ""
    modality: tuple[str, ...] = ()
    otherwise: str = ""
    task: str = "auto"
    seed: int = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        not_negative("seed", self.seed)


def usage(name: str, options: UsageOptions, output: Path | None = None, resources: Resources | None = None) -> UsageReport:
    """How the experts of a source, or of the source of an artifact, are used on data; what pruning would save and cost.

    Saved as JSON in `output`, and as usage.json in the directory of an artifact.
    """
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise BadInput("not the path of a file in a directory that there is", where=str(output))
    artifact = Path(name) if (Path(name) / reports.NAME).exists() else None
    memory = (resources or Resources()).nbytes()
    made = _usage(*((name, options) if artifact is None else _of_artifact(artifact, options)), memory)
    if artifact is not None:
        results.save(artifact, results.USAGE, made.as_json())
        page.write(artifact)
    if output is not None:
        disk.write_text(output, json.dumps(made.as_json(), indent=1) + "\n")
    return made


def modality_of_tokens(source: Source, given: Sequence[str], otherwise: str) -> Modality | None:
    """What tells the modality of tokens: the checkpoint's own groups, or --modality for one without; None if nothing does."""
    own = source.plan.modality if source.plan is not None else None
    if own is not None and (given or otherwise):
        raise Usage("--modality, and the checkpoint says itself whose tokens are whose", where=str(source.directory))
    if not given:
        if otherwise:
            raise Usage("--otherwise without --modality", fix="Say --modality, for example --modality image=200..255")
        return own
    names = list(dict.fromkeys(text.partition("=")[0] for text in given))
    rest = otherwise or REST
    if rest != "error" and rest not in names:
        names.insert(0, rest)
    return modalities.parse(names, list(given), rest, source.config)


def name_in(counts: dict[str, Counted], found: Found) -> str:
    """What a mixture is called in counts: a mixture of ours is one module, and its experts another."""
    return found.enter if found.enter in counts else f"{found.enter}.experts"


def _of_artifact(directory: Path, options: UsageOptions) -> tuple[str, UsageOptions]:
    """(the source of an artifact, the options with what it was opened by)."""
    refuse_module(directory, "usage")
    data = reports.read(directory, options.trust_remote_code)
    if not Path(data["source"]).exists():
        raise BadInput("the artifact was made from it, and it is not there", where=data["source"], fix="Name the source.")
    return data["source"], dataclasses.replace(options, task=data["options"]["task"])


def _usage(name: str, options: UsageOptions, memory: int) -> UsageReport:
    with ExitStack() as stack:
        mixtures, source, interface, notes = _opened(name, options, stack)
        modality = modality_of_tokens(source, options.modality, options.otherwise)
        data = data_for(source, interface, options.data, options.seed, ModelPlan(modality))
        reference = loaded(source, interface.with_plan(source.plan), data, memory)
        if not reference.experts:
            raise Unsupported("it has no mixture of experts", where=name)
        if len(modality_names(reference, None)) > 1 and modality is not None:
            raise Usage("--modality, and the model has experts of text and of images itself", where=name)
        counts = count(reference, data, modality, options.seed)
        names = modality_names(reference, modality)
        found = {name_in(counts, f): f for f in mixtures.blocks} if mixtures is not None else {}
        reach = {at: found[at].plan.allowed() if at in found else reach_of_pools(reference, at) for at in counts}
        del reference
        layers = [layer_usage(at, counted, names, reach[at]) for at, counted in counts.items()]
        pruning = _looked_at(mixtures, found, counts, layers) if mixtures is not None else []
    words = options.data or "random data"
    return UsageReport(str(source.directory), words, tokens_of(counts), names, layers, pruning, [*data.notes, *notes])


def _opened(name: str, options: UsageOptions, stack: ExitStack) -> tuple[Mixtures | None, Source, Interface, list[str]]:
    """(mixtures as plans, source, interface, notes); None for mixtures that are no plan, whose tokens can still be counted."""
    asked = ExtendOptions(trust_remote_code=options.trust_remote_code, task=options.task)
    try:
        opened = stack.enter_context(opened_mixtures(name, asked))
        return opened, opened.source, opened.traced.interface, []
    except Unsupported as reason:
        source = open_source(name, options.trust_remote_code, options.task)
        why = "; ".join(reason.gaps) or reason.what
        if source.plan is not None:
            raise
        return None, source, trace(build(source)).interface, [f"no duplicates looked for, no costs of pruning: {why}"]


def _looked_at(
    mixtures: Mixtures, found: dict[str, Found], counts: dict[str, Counted], layers: list[LayerUsage]
) -> list[Pruning]:
    """Duplicates of each layer, put into `layers`, and what pruning costs; the experts of one layer in memory at a time."""
    pruning = {n: Pruning(n, 0, 0.0, 0.0) for n in _numbers(list(found.values()))}
    lost, whole = dict.fromkeys(pruning, 0.0), 0.0
    with terminal.progress("experts, each alone", len(layers), "layers") as advance:
        for layer in layers:
            mixture, counted = found[layer.layer], counts[layer.layer]
            ablation = Ablation(mixture, mixtures.read, counted.seen)
            layer.duplicates = ablation.duplicates(SAME)
            whole += float(counted.weight.sum())
            for n, into in pruning.items():
                kept = leaving(by_usage(mixture, counted), n)
                into.bytes_saved += (mixture.plan.experts - len(kept)) * bytes_of_an_expert(mixture)
                into.layers[layer.layer] = ablation.error(kept)
                lost[n] += float(counted.weight.sum() - counted.weight[:, kept].sum())
            advance(1)
    for n, into in pruning.items():
        into.error = (sum(error**2 for error in into.layers.values()) / len(into.layers)) ** 0.5
        into.moved = lost[n] / max(whole, 1e-30)
    return list(pruning.values())


def _numbers(found: list[Found]) -> list[int]:
    """Experts that might be left in each group of each layer, fewest last; none where no number fits all."""
    largest = max(count for f in found for _, count in f.plan.groups)
    numbers = [n for n in dict.fromkeys(int(largest * share) for share in LEFT) if 0 < n < largest]
    unranked = [Ranked(f, list(range(f.plan.experts)), {}) for f in found]
    return [n for n in numbers if all(can_leave(mixture, n) for mixture in unranked)]
