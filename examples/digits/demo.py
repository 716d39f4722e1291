"""The bundled model converted, proven, judged on its task and timed: what `make demo` shows.

python examples/digits/demo.py [CHECKPOINT] [-o DIR]
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from evaluate import MOMA, evaluate, load, torch_logits
from rich.console import Console
from rich.table import Table

from mocomp import ConvertOptions, MocompError, convert
from mocomp.report.table import print_conversion
from mocomp.terminal import quiet


def artifact_logits(directory):
    """An ONNX Runtime session as the callable that `evaluate` takes: empty caches in, logits out."""
    session = onnxruntime.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    caches = [value for value in session.get_inputs() if value.name.startswith("past_key_values")]

    def logits(ids):
        empty = {c.name: np.zeros((len(ids), c.shape[1], 0, c.shape[3]), np.float32) for c in caches}
        return session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids), **empty})[0]

    return logits


def milliseconds(runs, ids, repeats=30):
    """Median time of each run on ids, taken in turns so that noise hits all alike."""
    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            run(ids)
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", type=Path, default=MOMA)
    parser.add_argument("-o", "--output", type=Path, default=Path(".demo/digits"))
    options = parser.parse_args()
    try:
        with quiet():
            report = convert(str(options.checkpoint), options.output, ConvertOptions(force=True))
            model, tokenizer = load(options.checkpoint)
    except MocompError as error:
        sys.exit(f"demo: {error}")
    print_conversion(report, options.output, time_passes=False)

    runs = {"eager PyTorch": torch_logits(model), "ONNX Runtime": artifact_logits(options.output)}
    figures = {name: evaluate(run, tokenizer) for name, run in runs.items()}
    sizes = {"one token": (1, 1), "128 tokens": (4, 32), "1024 tokens": (32, 32)}
    for label, shape in sizes.items():
        ids = np.random.default_rng(0).integers(0, 256, shape)
        for name, value in milliseconds(runs, ids).items():
            figures[name][f"{label}, ms"] = value

    table = Table(title="360 held-out digits, before and after")
    for column in ("", *runs, "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for row in figures["eager PyTorch"]:
        before, after = (figures[name][row] for name in runs)
        table.add_row(row.replace("_", " "), f"{before:.4g}", f"{after:.4g}", f"{after / before:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
