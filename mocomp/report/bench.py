"""Latencies on a terminal: the line of a conversion, and the table of a benchmark."""

from __future__ import annotations

from typing import Any

from mocomp.report.console import line, table


def print_latency(latency: dict[str, Any]) -> None:
    """What a run of the artifact takes, and how many times as fast as the original it is."""
    told = []
    for name, ms in latency["artifact"].items():
        times = latency["original"][name]["median"] / ms["median"]
        beside = " times as fast as eager PyTorch" if not told else " times"
        told.append(f"{name} {_ms(ms['median'])} ms ({times:.1f}{beside})")
    line(f"latency: {', '.join(told)}")


def print_bench(data: dict[str, Any]) -> None:
    """The machine, a row for each subject, a row for each point, and what changed since an earlier run."""
    machine, roofline = data["machine"], data["roofline"]
    line(f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores, {machine['memory_gb']:.0f} GB")
    memory, weights = roofline["bandwidth_gb_s"], roofline["weights_gb_s"]
    rates = f"{memory:.1f} GB/s from memory, {weights:.1f} GB/s over as many bytes as the weights"
    line(f"  roofline: {rates}, {roofline['gflop_s']:.0f} GFLOP/s")
    _print_subjects(data["subjects"])
    _print_points(data)
    line(f"spread: {data['settings']['spread']}")
    for note in data["notes"]:
        line(f"  note: {note}", "yellow")
    if data["against"] is not None:
        _print_against(data["against"])


def _print_subjects(subjects: dict[str, Any]) -> None:
    rows = []
    for name, subject in subjects.items():
        if "error" not in subject:
            memory = [f"{subject['peak_gb']:.2f}", f"{subject['peak_gb'] - subject['imports_gb']:.2f}"]
            rows.append([f"  {name}", subject["words"], f"{subject['load_s']:.2f}", *memory])
    table(["  subject", "", "load s", "peak GB", "above imports"], rows, left=2)
    for name, subject in subjects.items():
        if "error" in subject:
            line(f"  {name} does not run here: {subject['error']}", "yellow")


def _print_points(data: dict[str, Any]) -> None:
    ratios = {(ratio["workload"], ratio["against"]): ratio["ratio"] for ratio in data["ratios"]}
    rows = []
    for point in data["points"]:
        ms, bound, share = point["ms"], point["bound_ms"], point["of_bound"]
        ratio = ratios.get((point["workload"], point["subject"]))
        rows.append(
            [
                f"  {point['workload']}",
                point["measures"],
                point["subject"],
                _ms(ms["median"]),
                f"{_ms(ms['low'])} to {_ms(ms['high'])}",
                f"{point['tokens_per_s']:.0f}",
                "" if bound is None else _ms(bound),
                "" if share is None else _share(share),
                "" if ratio is None else f"{ratio:.2g}",
            ]
        )
    per_s = "images/s" if data["settings"]["kind"] == "vision" else "tokens/s"
    head = ["  workload", "", "subject", "median ms", "spread", per_s, "roofline ms", "reached", "mocomp / it"]
    table(head, rows, left=3)


def _print_against(against: dict[str, Any]) -> None:
    rows = []
    for point in against["points"]:
        rows.append([f"  {point['workload']}", point["subject"], f"{point['ratio']:.2f}", point["verdict"]])
    table([f"  against {against['file']}", "subject", "new / old", ""], rows, left=2)
    slower = [f"{p['workload']} of {p['subject']}" for p in against["points"] if p["verdict"] == "slower"]
    if slower:
        line(f"slower than before: {'; '.join(slower)}", "red")
    else:
        line("nothing is slower than before, beyond the spread", "green")


def _ms(value: float) -> str:
    """Three digits or two that count."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:.{digits}f}"


def _share(value: float) -> str:
    """A share of one, with a digit more where it is small."""
    return f"{value:.0%}" if value >= 0.095 else f"{value:.1%}"
