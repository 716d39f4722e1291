"""Options of where an artifact is to run, which several commands share."""

from __future__ import annotations

from typing import Any

import click


def deployed(command: Any) -> Any:
    """The options of where an artifact is to run, on a command that makes or checks one."""
    for option in reversed(DEPLOYMENT):
        command = option(command)
    return command


def engines(command: Any) -> Any:
    """The options of how TensorRT builds, on a command that does it for a graph that is there."""
    for option in reversed(ENGINE):
        command = option(command)
    return command


ENGINE = (
    click.option(
        "--profile", "profiles", multiple=True, metavar="NAME:...",
        help="TensorRT: sizes, such as prefill:batch=1..4,sequence=1..512..4096; may be given several times.",
    ),
    click.option("--workspace", metavar="SIZE", help="TensorRT: most memory of its workspace, such as 4GB."),
    click.option("--timing-cache", metavar="FILE", help="TensorRT: read and written."),
    click.option("--builder-optimization-level", type=int, help="TensorRT: 0 to 5.  [default: 3]"),
    click.option(
        "--hardware-compatibility-level",
        type=click.Choice(["none", "ampere_plus", "same_compute_capability"]),
        help="TensorRT: which other GPUs run the engine.  [default: none]",
    ),
    click.option("--version-compatible", is_flag=True, default=None, help="TensorRT: later versions run the engine."),
    click.option("--strip-plan", is_flag=True, default=None, help="TensorRT: weights stay in the ONNX file."),
    click.option("--refit", is_flag=True, default=None, help="TensorRT: an engine whose weights can be changed."),
    click.option("--weight-streaming", is_flag=True, default=None, help="TensorRT: weights may stay in the host's memory."),
    click.option("--tf32", is_flag=True, default=None, help="TensorRT, CUDA: float32 products rounded to TF32."),
    click.option("--triton", is_flag=True, default=None, help="TensorRT: a model repository for Triton besides."),
)  # fmt: skip
DEPLOYMENT = (
    click.option("--device", type=click.Choice(["cpu", "cuda"]), help="ONNX Runtime: whose operators.  [default: cpu]"),
    click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="On a GPU.  [default: float32]"),
    click.option(
        "--mixture",
        type=click.Choice(["auto", "dense", "gathered", "sorted"]),
        help="How experts run where no operator does it, with --target onnx and tensorrt.  [default: auto]",
    ),
    click.option("--opset", type=int, help="With --target onnx and tensorrt: 21 to 24.  [default: the lowest that suffices]"),
    click.option("--gpu", metavar="sm_NN", help="Compute capability of the GPU to make it for.  [default: the one here]"),
    click.option("--tensorrt", metavar="VERSION", help="TensorRT to make it for.  [default: the one here, or 11.4]"),
    click.option("--emulate", is_flag=True, default=None, help="No GPU here: prove it on the CPU, and build no engine."),
    click.option("--engines", type=click.Choice(["one", "two"]), help="TensorRT: for all profiles, or two.  [default: one]"),
    *ENGINE,
)  # fmt: skip
