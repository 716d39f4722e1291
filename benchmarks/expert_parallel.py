"""Experts shared out among 2 and 4 ranks: how much less crosses ranks than round-robin, and how equal they are.

    python benchmarks/expert_parallel.py [-o benchmarks/results/expert_parallel.json]

Usage is measured on the digits' own data (examples/digits/calibration.jsonl). `moma` has 4 experts for text and 4 for images in
each of its 3 layers, `checkpoint` 8 for all tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path

from mocomp.commands.usage import UsageOptions, usage
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert

EXAMPLES = Path(__file__).parent.parent / "examples" / "digits"
MODELS = ("moma", "checkpoint")
BAR = 0.2
"""By how much less has to cross ranks than round-robin."""


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description="Experts on ranks: steps that cross them, and parity.")
    parser.add_argument("-o", "--output", type=Path)
    output = parser.parse_args().output
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for model in MODELS:
            file = Path(directory) / f"{model}.json"
            usage(str(EXAMPLES / model), UsageOptions(data=str(EXAMPLES / "calibration.jsonl")), file)
            for target, ranks in product(("onnxruntime", "onnx"), (2, 4)):
                rows.append(measured(model, target, ranks, file))
                if output is not None:
                    output.write_text(json.dumps(rows, indent=1) + "\n")


def measured(model: str, target: str, ranks: int, file: Path) -> dict:
    """One conversion, with its figures."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        options = ConvertOptions(target=target, expert_parallel=ranks, usage=str(file))
        report = convert(str(EXAMPLES / model), Path(directory) / "artifact", options)
    found = report.expert_parallel
    assert found is not None and found.proof is not None
    row = {
        "model": model,
        "target": target,
        "ranks": ranks,
        "method": found.method,
        "below_round_robin": found.saved,
        "meets_the_bar": found.saved >= BAR,
        "predicted": {name: asdict(one) for name, one in found.predicted.items()},
        "proof": asdict(found.proof),
        "seconds": time.perf_counter() - begin,
    }
    placed = found.predicted
    print(
        f"{model} on {target}, {ranks} ranks: {found.saved:.1%} below round-robin; steps that cross: "
        + ", ".join(f"{name} {one.share:.1%} (busiest {one.imbalance:.2f})" for name, one in placed.items())
        + f"; ranks against the single model {found.proof.difference:.1e}, the original {found.proof.parity:.1e}; "
        + f"crossed in the proof {found.proof.crossed} of {found.proof.steps}"
    )
    return row


if __name__ == "__main__":
    main()
