"""What modality groups cost in the artifact: the same mixture with and without them, in one run.

    python benchmarks/groups.py

A seeded random Llama is upcycled twice, to 8 experts in one group and to 4 text and 4 image experts, both top-2, and
converted to ONNX Runtime. The two sessions take turns on the same tokens, half of each modality, so that noise of the
machine hits both alike; what is judged is the median of the ratios of neighbouring turns. Nodes are compared as well.
The bars: at most 4 nodes per graph and 3 per layer, and 5 % of latency.
"""

import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import onnxruntime
import torch
import transformers
from rich.console import Console
from rich.table import Table

from mocomp.checkpoints import upcycle
from mocomp.options import ConvertOptions, UpcycleOptions
from mocomp.pipeline import convert
from mocomp.terminal import quiet

RESULTS = Path(__file__).with_name("results")
TOKENS = (1, 16, 128, 512)
VOCABULARY, HEADS, WIDTH = 8192, 16, 64


def make_dense(directory: Path, layers: int, hidden: int, width: int) -> None:
    """A Llama of float32 weights, the same every time."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 4,
        head_dim=WIDTH,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(directory)


def session(directory: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(directory / "model.onnx", options, providers=["CPUExecutionProvider"])


def feed(model: onnxruntime.InferenceSession, tokens: int) -> dict[str, np.ndarray]:
    """Token ids of both modalities behind no past; a single token is a text token."""
    ids = np.random.default_rng(tokens).integers(0, VOCABULARY, (1, tokens)) if tokens > 1 else np.array([[7]])
    caches = [value for value in model.get_inputs() if value.name.startswith("past_key_values")]
    empty = {c.name: np.zeros((1, c.shape[1], 0, c.shape[3]), np.float32) for c in caches}
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), **empty}


def milliseconds(model: onnxruntime.InferenceSession, given: dict[str, np.ndarray]) -> float:
    begin = time.perf_counter()
    model.run(["logits"], given)
    return 1e3 * (time.perf_counter() - begin)


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--layers", default=4, show_default=True)
@click.option("--hidden", default=1024, show_default=True)
@click.option("--width", default=1408, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--turns", default=41, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file; by default one named after the machine.")
def main(layers: int, hidden: int, width: int, threads: int, turns: int, output: Path | None) -> None:
    kinds = {
        "one group": UpcycleOptions(groups="8", top_k=2, parity="off", layout="mocomp"),
        "two groups": UpcycleOptions(
            groups="text=4,image=4", modality=(f"image={VOCABULARY // 2}..{VOCABULARY - 1}",), top_k=2, parity="off"
        ),
    }
    with TemporaryDirectory() as temporary, quiet():
        place = Path(temporary)
        make_dense(place / "dense", layers, hidden, width)
        nodes, models = {}, {}
        for name, options in kinds.items():
            upcycle(str(place / "dense"), place / f"{name} checkpoint", options)
            report = convert(str(place / f"{name} checkpoint"), place / name, ConvertOptions(parity="off"))
            nodes[name], models[name] = report.artifact.nodes, session(place / name, threads)
        figures = []
        for tokens in TOKENS:
            times: dict[str, list[float]] = {name: [] for name in models}
            for turn in range(turns + 3):
                for name in sorted(models, reverse=turn % 2 == 1):
                    times[name].append(milliseconds(models[name], feed(models[name], tokens)))
            times = {name: values[3:] for name, values in times.items()}  # the first turns warm up
            ratios = [a / b for a, b in zip(times["two groups"], times["one group"], strict=True)]
            figures.append(
                {"tokens": tokens, "ratio": statistics.median(ratios)}
                | {name: statistics.median(values) for name, values in times.items()}
            )
    extra = nodes["two groups"] - nodes["one group"]
    result = {
        "machine": platform.processor() or platform.machine(),
        "threads": threads,
        "cores": os.cpu_count(),
        "layers": layers,
        "hidden": hidden,
        "expert_width": width,
        "onnxruntime": onnxruntime.__version__,
        "nodes": nodes,
        "extra_nodes": extra,
        "allowed_nodes": 4 + 3 * layers,
        "latency": figures,
    }
    table = Table(title=f"Groups cost {extra} nodes in {layers} layers (bar {4 + 3 * layers})")
    for column in ("tokens", "one group, ms", "two groups, ms", "ratio (bar 1.05)"):
        table.add_column(column, justify="right")
    for row in figures:
        table.add_row(str(row["tokens"]), f"{row['one group']:.3f}", f"{row['two groups']:.3f}", f"{row['ratio']:.3f}")
    Console().print(table)
    path = output or RESULTS / f"groups-{os.cpu_count()}-cores.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(0 if extra <= 4 + 3 * layers else 1)


if __name__ == "__main__":
    main()
