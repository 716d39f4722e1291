"""How compile time grows with depth: 48 identical layers against 4, by subprocesses of `mocomp convert` that take turns.

    python benchmarks/depth.py [--rounds 3] [--cases onnxruntime,onnx,int4,wide]

Compile time is trace, passes and lowering as the report has them; imports, which depth does not change, are told apart. The
parity of what comes out is not compile time, and is left out. `wide` has the width of Qwen3-30B-A3B and no weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "depth.json"
DEPTHS = (4, 48)
BAR = 3.0
TINY = {
    "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "num_experts": 8, "num_experts_per_tok": 2, "vocab_size": 256, "max_position_embeddings": 256,
}  # fmt: skip
WIDE = {
    "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_attention_heads": 32, "head_dim": 128,
    "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936,
}  # fmt: skip
CASES = {
    "onnxruntime": (TINY, ["--target", "onnxruntime"]),
    "onnx": (TINY, ["--target", "onnx"]),
    "int4": (TINY, ["--target", "onnxruntime", "--quantize", "int4", "--group-size", "32"]),
    "wide": (WIDE, ["--target", "onnxruntime", "--weights", "none"]),
}
COMPILING = ("trace", "passes", "lower and write")


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default=",".join(CASES))
    asked = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for case in asked.cases.split(","):
            found[case] = measured(case, asked.rounds, Path(scratch))
            print(case, json.dumps(found[case]), flush=True)
    RESULTS.write_text(json.dumps({"rounds": asked.rounds, "bar": BAR, "cases": found}, indent=1) + "\n")


def measured(case: str, rounds: int, scratch: Path) -> dict[str, Any]:
    """Medians of seconds by depth, and the ratio of the medians of compile time."""
    runs: dict[int, list[dict[str, float]]] = {depth: [] for depth in DEPTHS}
    for _ in range(rounds):
        for depth in DEPTHS:
            runs[depth].append(once(case, depth, scratch))
    medians = {depth: {part: median(runs[depth], part) for part in runs[depth][0]} for depth in DEPTHS}
    shallow, deep = (medians[depth]["compile"] for depth in DEPTHS)
    return {"seconds": medians, "ratio": round(deep / shallow, 2), "within_bar": deep <= BAR * shallow}


def median(runs: list[dict[str, float]], part: str) -> float:
    """The median of one figure over runs."""
    return round(statistics.median(run[part] for run in runs), 2)


def once(case: str, depth: int, scratch: Path) -> dict[str, float]:
    """Seconds of one conversion in a process of its own: its phases, what they come to, and all with imports."""
    sizes, options = CASES[case]
    source, output = scratch / f"{case}-{depth}", scratch / "artifact"
    if not source.exists():
        write(source, sizes, depth, weights="--weights" not in options)
    command = [sys.executable, "-m", "mocomp", "convert", str(source), "--output", str(output), "--parity", "off", "--force"]
    begin = time.perf_counter()
    subprocess.run([*command, *options], check=True, capture_output=True)
    whole = time.perf_counter() - begin
    seconds = json.loads((output / "mocomp.json").read_text())["seconds"]
    parts = {part: seconds[part] for part in COMPILING}
    return parts | {"compile": sum(parts.values()), "process": whole}


def write(directory: Path, sizes: dict[str, int], depth: int, weights: bool) -> None:
    """A Qwen3-MoE of that depth with random weights, or its config alone."""
    import torch
    import transformers

    config = transformers.Qwen3MoeConfig(num_hidden_layers=depth, architectures=["Qwen3MoeForCausalLM"], **sizes)  # type: ignore[arg-type]
    torch.manual_seed(0)
    if weights:
        transformers.Qwen3MoeForCausalLM(config).save_pretrained(directory)
    else:
        config.save_pretrained(directory)


if __name__ == "__main__":
    main()
