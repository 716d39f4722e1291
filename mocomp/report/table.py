"""Reports on a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from mocomp.models.inspection import Inspection
from mocomp.report import Report
from mocomp.verify.parity import Parity

_console = Console(highlight=False)


def print_conversion(report: Report, output: Path, time_passes: bool) -> None:
    """What was made, what each pass changed, what it cost, and the verdict."""
    model, artifact = report.model, report.artifact
    _console.print(f"{model['class']}, {model['parameters'] / 1e6:.1f} M parameters -> {report.target['target']}", markup=False)
    for receipt in report.passes:
        if receipt.changed or time_passes:
            took = f", {receipt.seconds * 1e3:.0f} ms" if time_passes else ""
            _console.print(f"  {receipt.name}: {receipt.changed} places{took}", markup=False)
    for note in report.notes[:6]:
        _console.print(f"  note: {note}", markup=False)
    seconds = ", ".join(f"{phase} {value:.1f}" for phase, value in report.seconds.items())
    before = list(report.memory.values())
    _console.print(f"  {artifact.nodes} nodes, {artifact.weight_bytes / 1e6:.1f} MB of weights; seconds: {seconds}", markup=False)
    lowering = report.memory["lower and write"]
    _console.print(f"  peak memory {lowering:.2f} GB, {lowering - before[0]:.2f} above the imports", markup=False, end="")
    _console.print(f"; with parity {report.memory['parity']:.2f}" if "parity" in report.memory else "", markup=False)
    if report.parity is not None:
        print_parity(report.parity)
    else:
        _console.print("  parity: not asked for", markup=False)
    _console.print(f"{output}", markup=False)


def print_parity(parity: Parity) -> None:
    """The verdict first, then the cases; failures last, where they are seen."""
    verdict = "[green]parity passed[/]" if parity.passed else "[red]parity failed[/]"
    _console.print(f"{verdict}: largest error {parity.worst:.1e} (tolerance {parity.tolerance.outputs:.0e})", end="")
    if parity.layers:
        tokens = sum(layer.tokens for layer in parity.layers)
        within = sum(layer.flips_within_margin for layer in parity.layers)
        reached = sum(layer.reached for layer in parity.layers) / max(sum(layer.experts for layer in parity.layers), 1)
        experts = max(layer.experts_error for layer in parity.layers)
        _console.print(f"; experts {experts:.1e}; same experts chosen {parity.agreement:.2%} of {tokens}", end="", markup=False)
        _console.print(f" ({within} within the margin of rounding); experts reached {reached:.0%}", end="", markup=False)
    _console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("  case", "largest error", "sequences", "top-1", "KL"):
        table.add_column(column, justify="left" if "case" in column else "right")
    for case in parity.cases:
        top1 = "" if case.top1 is None else f"{case.top1:.1%}"
        kl = "" if case.kl is None else f"{max(case.kl, 0.0):.1e}"
        table.add_row(f"  {case.name}", f"{max(case.errors.values()):.1e}", f"{case.clean} of {case.sequences}", top1, kl)
    _console.print(table)
    for note in parity.notes[:4]:
        _console.print(f"  note: {note}", markup=False)
    for failure in parity.failures[:12]:
        _console.print(f"  failed: {failure}", markup=False)


def print_inspection(inspection: Inspection) -> None:
    """The model in a few lines and a row for each kind of layer."""
    _console.print(f"{inspection.model_class} ({inspection.model_type}), {inspection.kind}", markup=False)
    total, active = inspection.parameters, inspection.active
    _console.print(f"  parameters {total / 1e9:.3f} B, active per token {active / 1e9:.3f} B ({active / total:.0%})", markup=False)
    sizes = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in inspection.bytes.items())
    _console.print(f"  weights: {sizes}", markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("  layers", "experts", "chosen", "width", "router", "expert", "parameters"):
        table.add_column(column)
    for row in inspection.mixtures:
        table.add_row(f"  {row.layers}", str(row.experts), str(row.chosen), str(row.width), row.router, row.expert, f"{row.parameters / 1e6:.1f} M")  # fmt: skip
    if inspection.mixtures:
        _console.print(table)
    else:
        _console.print("  no mixture of experts", markup=False)
