"""Results as later commands leave them beside an artifact, made up but of the right shape and size."""

from __future__ import annotations

import random
from typing import Any

WORKLOADS = {"1 token": 1, "16 tokens": 16, "128 tokens": 128, "512 tokens": 512}
MS = {
    "mocomp": (0.42, 1.31, 5.2, 18.9),
    "torch eager": (5.1, 6.0, 13.7, 41.2),
    "torch.compile": (2.2, 3.1, 9.8, 30.4),
    "transformers exporter": (1.1, 1.9, 4.9, 19.6),
}
GIGABYTES_READ = {1: 0.0034, 16: 0.0049, 128: 0.0052, 512: 0.0061}


def spread(median: float) -> dict[str, float]:
    """Milliseconds as they are reported."""
    return {"median": median, "p10": median * 0.94, "p90": median * 1.12, "runs": 30}


def latency() -> dict[str, Any]:
    """`latency` of mocomp.json."""
    return {
        "original": {"1 token": spread(5.1), "64 tokens": spread(9.4)},
        "artifact": {"1 token": spread(0.4), "64 tokens": spread(2.6)},
    }


def bench() -> dict[str, Any]:
    """bench.json."""
    points = []
    for subject, medians in MS.items():
        for (workload, tokens), median in zip(WORKLOADS.items(), medians, strict=True):
            nbytes, flop = int(GIGABYTES_READ[tokens] * 1e9), int(1.2e6 * tokens + 1e5)
            bound = max(nbytes / 64.0e6, flop / 118e6)
            points.append(
                {
                    "subject": subject, "workload": workload, "batch": 1, "sequence": tokens, "past": 0, "mix": None,
                    "ms": spread(median), "tokens_per_s": 1e3 * tokens / median,
                    "bytes": nbytes if subject == "mocomp" else None, "flop": flop if subject == "mocomp" else None,
                    "bound_ms": bound if subject == "mocomp" else None,
                    "of_bound": bound / median if subject == "mocomp" else None,
                }
            )  # fmt: skip
    ratios = [
        {"workload": name, "against": subject, "ratio": MS["mocomp"][i] / MS[subject][i]}
        for i, name in enumerate(WORKLOADS)
        for subject in MS
        if subject != "mocomp"
    ]
    return {
        "machine": {"cpu": "Example CPU, 2.6 GHz", "cores": 2, "memory_gb": 16.0, "threads": 1, "os": "Linux 6.1"}
        | {"versions": {"torch": "2.13.0"}},
        "settings": {"repeats": 30, "warm_up": 5, "threads": 1, "batches": [1], "sequences": [1, 16, 128, 512], "seed": 0},
        "source": "checkpoint",
        "artifact": "digits",
        "when": "2026-11-23T09:30:00+00:00",
        "roofline": {
            "bandwidth_gb_s": 21.4,
            "weights_gb_s": 64.0,
            "gflop_s": 118.0,
            "words": "sum over an array; product of two matrices",
        },
        "subjects": {
            "mocomp": {"load_s": 0.04, "peak_gb": 0.09, "words": ""},
            "torch eager": {"load_s": 0.61, "peak_gb": 0.48, "words": "the best of its experts' implementations: grouped_mm"},
            "torch.compile": {"load_s": 21.5, "peak_gb": 0.74, "words": ""},
            "transformers exporter": {"load_s": 0.93, "peak_gb": 0.14, "words": ""},
            "mobius-onnx": {"error": "the package is not installed (pip install mobius-onnx)"},
        },
        "points": points,
        "ratios": ratios,
        "notes": ["another process got the processor during 2% of the runs"],
    }


def usage(layers: int = 3, experts: int = 8, seed: int = 0) -> dict[str, Any]:
    """usage.json of a model whose first half of experts is for text and whose second is for images, some of them dead."""
    draw = random.Random(seed)
    rows = []
    for i in range(layers):
        own = {"text": range(experts // 2), "image": range(experts // 2, experts)}
        counts = {
            modality: [int(draw.paretovariate(1.3) * 100) if expert in ids else 0 for expert in range(experts)]
            for modality, ids in own.items()
        }
        if i == layers - 1:
            counts["image"][experts - 1] = 0
        share = {modality: [count / sum(row) for count in row] for modality, row in counts.items()}
        rows.append(
            {
                "layer": f"model.layers.{i}.mlp.experts", "experts": experts, "chosen": 2, "tokens": counts, "share": share,
                "dead": [experts - 1] if i == layers - 1 else [],
                "duplicates": [{"experts": [0, 2], "error": 3.1e-07}] if i == 1 else [],
                "concentration": {
                    modality: {"entropy": 0.81, "top": sum(sorted(row)[-2:]), "gini": 0.4} for modality, row in share.items()
                },
            }
        )  # fmt: skip
    pruning = [
        {
            "experts": left,
            "bytes_saved": (experts - left) * 196608 * layers,
            "error": 0.02 * (experts - left),
            "moved": 0.03 * (experts - left),
        }
        for left in (experts - 1, experts - 2, experts // 2)
    ]
    return {"data": "calibration.jsonl", "tokens": 18240, "modalities": ["text", "image"], "layers": rows, "pruning": pruning}


def evaluation() -> dict[str, Any]:
    """eval.json of a generator."""
    pairs = {"all": (2.691, 2.696), "text": (2.008, 2.011), "image": (5.331, 5.342)}
    return {
        "data": "calibration.jsonl", "kind": "generator", "rows": 360, "tokens": 9310,
        "perplexity": {name: {"artifact": ours, "reference": theirs} for name, (theirs, ours) in pairs.items()},
        "top1": 0.9904, "kl": 3.5e-4, "error": 0.017,
        "layers": [{"layer": f"model.layers.{i}.mlp.experts", "agreement": 0.999 - 0.004 * i} for i in range(3)],
        "cosine": None, "retrieval": None,
    }  # fmt: skip


def embedding() -> dict[str, Any]:
    """eval.json of an encoder, which has neither perplexity nor likeliest tokens."""
    return evaluation() | {
        "kind": "encoder", "perplexity": {}, "top1": None, "kl": None, "layers": [],
        "cosine": {"mean": 0.999998, "min": 0.99991}, "retrieval": {"top1": 0.998, "top10": 0.9991},
    }  # fmt: skip


def bisect(passed: bool = False) -> dict[str, Any]:
    """bisect.json, by default of a pass that dropped the router's scale in layer 1."""
    names = ["trace", "clean", "fold_weights", "fuse_norms", "fuse_rotary", "fuse_routing", "fold_router_scale"]
    first = len(names) if passed else names.index("fuse_routing")

    def layers(bad: bool) -> list[dict[str, Any]]:
        return [{"layer": f"model.layers.{i}.mlp.experts", "error": 0.11 * i if bad and i else 4e-7} for i in range(3)]

    return {
        "passed": passed, "inputs": "3 generated cases", "tolerance": 1e-4,
        "first_pass": None if passed else "fuse_routing",
        "first_layer": None if passed else "model.layers.1.mlp.experts",
        "words": "every pass stays within 6.1e-07" if passed
        else "fuse_routing is the first to leave the tolerance, at model.layers.1.mlp.experts: 1.1e-01, before it 5.0e-07",
        "passes": [
            {"name": name, "error": 0.0 if i == 0 else 5e-7 if i < first else 0.23, "layers": layers(i >= first)}
            for i, name in enumerate(names)
        ],
        "artifact": {"error": 6.1e-7 if passed else 0.23, "layers": layers(not passed)},
    }  # fmt: skip


def tuning() -> dict[str, Any]:
    """`tuning` of mocomp.json: fused at one token, sorted products from 128 on."""
    ms = {1: (0.11, 0.31, 0.16), 128: (3.9, 2.8, 9.7), 512: (13.1, 8.8, 36.2)}
    ways = ("fused", "sorted", "gathered")
    return {
        "layers": [
            {
                "shape": "8 experts of 64 x 128, 2 chosen",
                "layers": [f"model.layers.{i}.mlp.experts" for i in range(3)],
                "timings": [
                    {"tokens": tokens, "way": way, "ms": spread(took)}
                    for tokens, row in ms.items()
                    for way, took in zip(ways, row, strict=True)
                ],
                "chosen": [{"tokens": 64, "way": "fused"}, {"tokens": 0, "way": "sorted"}],
            }
        ]
    }
