"""What modality groups cost in the artifact: the same mixture with and without them, in one run.

    python benchmarks/groups.py

A seeded random Llama is upcycled twice, to 8 experts in one group and to 4 text and 4 image experts, both top-2, and
converted to ONNX Runtime. Two sessions take turns on the same tokens, half of each modality, so that noise of the machine
hits both alike, and what is judged is the median of the ratios of neighbouring turns. Where a session's weights happen to
lie in memory moves it by several percent for as long as it lives, so sessions are loaded anew many times, in either order,
and a third one, a second copy of the mixture in one group, shows what is left of that. Nodes are compared as well, and a
profile of the session tells an upper limit of what groups take: the share of every node of the kinds that they add.
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

from mocomp.commands.upcycle import upcycle
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


def share_of_groups(directory: Path, threads: int, tokens: int, runs: int = 30) -> float:
    """Of the time in operators, the part in those kinds that groups add; the model's own lookups and masks are among them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    options.profile_file_prefix = str(directory / f"profile-{tokens}")
    model = onnxruntime.InferenceSession(directory / "model.onnx", options, providers=["CPUExecutionProvider"])
    for _ in range(runs):
        model.run(["logits"], feed(model, tokens))
    events = json.loads(Path(model.end_profiling()).read_text())
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("kernel_time")]
    added = sum(e["dur"] for e in kernels if e["args"]["op_name"] in ("Where", "Clip", "Gather"))
    return added / sum(e["dur"] for e in kernels)


def compared(times: dict[str, list[float]]) -> dict[str, float]:
    """The medians of all, and of the ratios to neighbouring turns of the mixture in one group."""
    medians = {f"{name}, ms": statistics.median(values) for name, values in times.items()}
    ratios = {
        f"{name}, ratio": statistics.median(a / b for a, b in zip(times[name], times["one group"], strict=True))
        for name in ("again", "two groups")
    }
    return medians | ratios


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--layers", default=4, show_default=True)
@click.option("--hidden", default=1024, show_default=True)
@click.option("--width", default=1408, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--loads", default=9, show_default=True, help="How often all sessions are loaded anew.")
@click.option("--turns", default=9, show_default=True, help="Runs of each session in a load.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file; by default one named after the machine.")
def main(layers: int, hidden: int, width: int, threads: int, loads: int, turns: int, output: Path | None) -> None:
    kinds = {
        "one group": UpcycleOptions(groups="8", top_k=2, parity="off", layout="mocomp"),
        "two groups": UpcycleOptions(
            groups="text=4,image=4", modality=(f"image={VOCABULARY // 2}..{VOCABULARY - 1}",), top_k=2, parity="off"
        ),
    }
    with TemporaryDirectory() as temporary, quiet():
        place = Path(temporary)
        make_dense(place / "dense", layers, hidden, width)
        nodes = {}
        for name, options in kinds.items():
            upcycle(str(place / "dense"), place / f"{name} checkpoint", options)
            report = convert(str(place / f"{name} checkpoint"), place / name, ConvertOptions(parity="off"))
            nodes[name] = report.artifact.nodes
        artifacts = {"one group": "one group", "again": "one group", "two groups": "two groups"}
        times: dict[int, dict[str, list[float]]] = {tokens: {name: [] for name in artifacts} for tokens in TOKENS}
        for load in range(loads):
            order = list(artifacts)[load % 3 :] + list(artifacts)[: load % 3]
            models = {name: session(place / artifacts[name], threads) for name in order}
            for tokens in TOKENS:
                given = feed(models["one group"], tokens)
                for turn in range(turns + 2):
                    for name in order if turn % 2 else reversed(order):
                        taken = milliseconds(models[name], given)
                        if turn > 1:  # the first turns warm up
                            times[tokens][name].append(taken)
        figures = [
            {"tokens": tokens}
            | compared(times[tokens])
            | {"share of groups": share_of_groups(place / "two groups", threads, tokens)}
            for tokens in TOKENS
        ]
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
    columns = ("one group, ms", "two groups, ms", "two groups, ratio", "again, ratio", "share of groups")
    for column in ("tokens", *columns):
        table.add_column(column, justify="right")
    for row in figures:
        table.add_row(str(row["tokens"]), *(f"{row[column]:.3f}" for column in columns))
    Console().print(table)
    path = output or RESULTS / f"groups-{os.cpu_count()}-cores.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(0 if extra <= 4 + 3 * layers else 1)


if __name__ == "__main__":
    main()
