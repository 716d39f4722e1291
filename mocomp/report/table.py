"""Reports on a terminal."""

from __future__ import annotations

from pathlib import Path

from mocomp.models.inspection import Inspection
from mocomp.report import CheckpointReceipt, Report
from mocomp.report.bench import print_latency
from mocomp.report.console import count, line, size, table
from mocomp.report.expert_parallel import print_ranks
from mocomp.report.recognised import print_recognised
from mocomp.report.sweep import Sweep
from mocomp.tuning import words
from mocomp.verify.parity import Parity
from mocomp.verify.quality import Quality


def print_conversion(report: Report, output: Path, time_passes: bool) -> None:
    """What was made, what each pass changed, what it cost, and the verdict."""
    model, artifact = report.model, report.artifact
    line(f"{model['class']}, {count(model['parameters'])} parameters -> {report.target['target']}")
    for receipt in report.passes:
        if receipt.changed or time_passes:
            took = f", {receipt.seconds * 1e3:.0f} ms" if time_passes else ""
            line(f"  {receipt.name}: {receipt.changed} places{took}")
    print_recognised(report.recognised)
    for note in report.notes[:6]:
        line(f"  note: {note}")
    seconds = ", ".join(f"{phase} {value:.1f}" for phase, value in report.seconds.items())
    line(f"  {artifact.nodes} nodes, {size(artifact.weight_bytes)} of weights; seconds: {seconds}")
    lowering = report.memory["lower and write"]
    parity = f"; with parity {report.memory['parity']:.2f} GB" if "parity" in report.memory else ""
    line(f"  peak memory {lowering:.2f} GB, {lowering - report.memory['imports']:.2f} above the imports{parity}")
    if report.latency:
        print_latency(report.latency)
    if report.tuning is not None:
        for layer in report.tuning.layers:
            line(f"tuned {words(layer, report.tuning.tokens)}")
    if report.expert_parallel is not None:
        print_ranks(report.expert_parallel)
    for quality in report.quality:
        print_quality(quality)
    if report.parity is not None:
        print_parity(report.parity)
    else:
        line("  parity: not asked for")
    line(str(output))


def print_parity(parity: Parity) -> None:
    """The verdict first, then the cases; failures last, where they are seen."""
    verdict, style = ("parity passed", "green") if parity.passed else ("parity failed", "red")
    line(f"{verdict}: largest error {parity.worst:.1e} (tolerance {parity.tolerance.outputs:.0e})", style)
    if parity.layers:
        tokens = sum(layer.tokens for layer in parity.layers)
        within = sum(layer.flips_within_margin for layer in parity.layers)
        reached = sum(layer.reached for layer in parity.layers) / max(sum(layer.experts for layer in parity.layers), 1)
        experts = max(layer.experts_error for layer in parity.layers)
        line(f"  same experts chosen for {parity.agreement:.2%} of {tokens} tokens x layers ({within} apart by rounding)")
        line(
            f"  experts under the reference's own choice off by {experts:.1e}, every one proven; routing reached {reached:.0%}"
        )
    rows = []
    for case in parity.cases:
        top1 = "" if case.top1 is None else f"{case.top1:.1%}"
        kl = "" if case.kl is None else f"{max(case.kl, 0.0):.1e}"
        worst = f"{max(case.errors.values()):.1e}" if case.errors else ""
        rows.append([f"  {case.name}", worst, f"{case.clean} of {case.sequences}", top1, kl])
    table(["  case", "largest error", "without a flip", "top-1", "KL"], rows)
    for note in parity.notes[:4]:
        line(f"  note: {note}")
    for failure in parity.failures[:12]:
        line(f"  failed: {failure}")


def print_quality(quality: Quality) -> None:
    """What quantisation costs, on one line, and experts that few tokens came to."""
    told = [f"output off by {quality.error:.1%}"]
    if quality.layers:
        told = [f"experts off by {quality.experts_error:.1%}, same experts chosen {quality.agreement:.2%}"]
    if quality.kl is not None and quality.top1 is not None:
        told.append(f"KL {quality.kl:.2g}, same likeliest token {quality.top1:.1%}")
    if quality.perplexity is not None:
        told.append(f"perplexity {quality.perplexity_float:.3f} -> {quality.perplexity:.3f}")
    if quality.ms:
        told.append(", ".join(f"{name} {ms:.2f} ms" for name, ms in quality.ms.items()))
    line(f"quality on {quality.data}: {'; '.join(told)}", "yellow")
    for layer in quality.layers:
        if layer.few:
            line(f"  note: {layer.layer}: few tokens for experts {list(layer.few)}, so {next(iter(layer.few.values()))}")


def print_sweep(sweep: Sweep) -> None:
    """A row for each way; a star for those on the Pareto front."""
    loads = list(dict.fromkeys(load for way in sweep.ways for load in way.ms))
    rows = []
    for way in sweep.ways:
        q = way.quality
        shown = ["", "", ""] if q is None else [f"{q.experts_error:.1%}", f"{q.agreement:.2%}", f"{q.error:.1%}"]
        shown += ["", ""] if q is None or q.kl is None else [f"{q.kl:.1e}", f"{q.top1:.1%}"]
        shown.append(f"{q.perplexity:.3f}" if q is not None and q.perplexity is not None else "")
        times = [f"{way.ms[load]:.2f}" if load in way.ms else "-" for load in loads]
        row = [f"{'*' if way.front else ' '} {way.format}", way.algorithm, size(way.nbytes), f"{way.bits:.2f}"]
        rows.append([*row, *shown, *times])
    quality = ["experts off", "same experts", "output off", "KL", "top-1", "perplexity"]
    table(["  format", "algorithm", "weights", "bits", *quality, *(f"{load}, ms" for load in loads)], rows, left=2)
    line(f"* as small and as good as any other; judged on {sweep.data}")
    for way in sweep.ways:
        if way.obstacle:
            line(f"  {way.name} does not run here: {way.obstacle}")
    for note in sweep.notes[:4]:
        line(f"  note: {note}")


def print_receipt(receipt: CheckpointReceipt, output: Path) -> None:
    """What was made, and whether it still computes the same."""
    line(f"{receipt.command}: {receipt.model}, {receipt.mixtures} mixtures of {receipt.experts} experts in all")
    line(f"  parameters {count(receipt.parameters_before)} before, {count(receipt.parameters)} now")
    line(f"  loads as {receipt.loads_as}")
    tokens = f" for {receipt.tokens}" if receipt.tokens else ""
    if receipt.moved is None:
        line("  function: not run (--parity off); " + ("meant to be the same" if receipt.preserved else receipt.changes))
    elif receipt.preserved:
        line(f"  function preserved{tokens}: outputs differ by {receipt.moved:.1e}", "green")
    else:
        kl = "" if receipt.kl is None else f", KL {receipt.kl:.2g}"
        by = f"outputs differ by {receipt.moved:.2g} of the largest{kl}"
        line(f"  function moved{tokens}: {by}; {receipt.changes}", "yellow")
    for note in receipt.notes[:4]:
        line(f"  note: {note}")
    line(str(output))


def print_inspection(inspection: Inspection) -> None:
    """The model in a few lines and a row for each kind of layer."""
    line(f"{inspection.model_class} ({inspection.model_type}), {inspection.kind}, {inspection.layers} layers")
    total, active = inspection.parameters, inspection.active
    line(f"  parameters {count(total)}, active per token {count(active)} ({active / total:.0%})")
    line("  weights: " + ", ".join(f"{name} {size(nbytes)}" for name, nbytes in inspection.bytes.items()))
    if not inspection.mixtures:
        line("  no mixture of experts")
        return
    rows = [
        [f"  {row.layers}", row.router, row.expert, str(row.experts), str(row.chosen), str(row.width), count(row.parameters)]
        for row in inspection.mixtures
    ]
    table(["  mixtures", "router", "expert", "experts", "chosen", "width", "parameters each"], rows, left=3)
