"""What TensorRT asks of single operators beyond their types, as rules by operator: each gives the gaps of one node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from mocomp.capability import Gap
from mocomp.capability.gpus import Gpu
from mocomp.capability.graphs import array_of, at, input_of, integer, is_constant, number, rank_of, text
from mocomp.capability.rules import Rules


@dataclass(frozen=True)
class Asked:
    """What a graph is checked for: a release of TensorRT, and a GPU where one is named."""

    release: tuple[int, int]
    gpu: Gpu | None = None


rule: Rules[Asked] = Rules()
LARGEST_K = 3839
REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
SAID = "say it as a constant"


@rule("TopK")
def k_of_top_k(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """K < 3840, and sorted."""
    k = array_of(input_of(node, 1))
    if k is not None and int(k.max()) > LARGEST_K:
        yield at(node, f"K is {int(k.max())}, and at most {LARGEST_K}", "take the K largest of parts, then of those")
    if integer(node, "sorted", 1) != 1:
        yield at(node, "sorted is 0, and must be 1", "set it: sorted results are among those that unsorted ones may be")


@rule("CumSum")
def axis_of_cumulative_sum(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """A constant axis; that it sums floats alone is in the table."""
    yield from _constant(node, 1, "axis")


@rule("Squeeze")
def axes_are_said(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """Axes may be left out since 11.5."""
    if input_of(node, 1) is None and "axes" not in node.attributes and asked.release < (11, 5):
        yield at(node, "its axes are left out, which TensorRT reads since 11.5", "say them")


@rule("Squeeze", "Unsqueeze", *(f"Reduce{kind}" for kind in REDUCTIONS))
def constant_axes(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """Axes that are the same in every run."""
    yield from _constant(node, 1, "axes")


@rule("OneHot")
def constant_depth(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """A depth that is the same in every run."""
    yield from _constant(node, 1, "depth")


@rule("ScatterND", "ScatterElements", "Scatter")
def no_reduction(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """Where two writes meet the result is undefined, and nothing adds them up."""
    reduction = text(node, "reduction", "none")
    if reduction == "none":
        return
    if node.op_type == "ScatterND":
        yield at(node, f"reduction {reduction}, and it has none", "gather and sum: --mixture dense or gathered")
    else:
        yield at(node, f"reduction {reduction} is done by a plugin, not by a layer", "libnvinfer_plugin has it", blocks=False)


@rule("NonZero")
def size_depends_on_data(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """Taken, at a price."""
    why = "the size of its output depends on data: the host waits for it, and there is no CUDA graph"
    yield at(node, why, "--mixture dense or gathered has none", blocks=False)


@rule("LayerNormalization", "MaxPool")
def first_output_alone(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """Mean, deviation and indices are not given."""
    used = [value for value in node.outputs[1:] if value.uses() or value.is_graph_output()]
    if used:
        yield at(node, f"output {used[0].name} is used, and only the first one is given", "compute it apart")


@rule("Attention")
def plain_attention(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """Four dimensions, and neither cache nor cap inside."""
    instead = "concatenate the cache before it, or compute it by MatMul and Softmax"
    names = ((4, "past_key"), (5, "past_value"), (6, "nonpad_kv_seqlen"))
    if given := [name for index, name in names if input_of(node, index) is not None]:
        yield at(node, f"{' and '.join(given)}: it takes no such input", instead)
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        yield at(node, "outputs beside Y are not given", instead)
    for name in ("softcap", "qk_matmul_output_mode"):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.value:
            yield at(node, f"{name} is not taken", "compute it by MatMul, Tanh and Softmax")
    yield from _ranked(node, 4, "Q", "K", "V", "attn_mask")


@rule("RotaryEmbedding")
def positions_are_int64(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """The standard says so too, other runtimes do not mind."""
    positions = input_of(node, 3)
    if positions is not None and positions.dtype not in (None, ir.DataType.INT64):
        yield at(node, f"position_ids are {positions.dtype}, not INT64", "Cast them before")


@rule("TensorScatter")
def cache_of_four_dimensions(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """[B, heads, S, D], written along S."""
    axis, rank = integer(node, "axis", -2), rank_of(input_of(node, 0))
    if axis != -2 and axis != (rank or 0) - 2:
        yield at(node, f"axis {axis}, and only -2 is taken", "transpose the cache")
    yield from _ranked(node, 4, "past_cache", "update")


@rule("Dropout")
def no_training(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """training_mode is left out, or a constant that is false."""
    training = input_of(node, 2)
    value = array_of(training)
    if training is not None and (value is None or bool(value)):
        yield at(node, "training_mode is not a constant that is false", "leave it out")


@rule("Constant")
def numbers_alone(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """Not sparse; that it has no strings is in the table."""
    if "sparse_value" in node.attributes:
        yield at(node, "sparse_value is not read", "give all numbers")


@rule("TRT_MoE")
def mixture_layer(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """IMoELayer: SwiGLU without limit, all biases or none, INT32 ids, on few GPUs."""
    if asked.gpu is not None and not asked.gpu.mixtures:
        yield at(node, f"IMoELayer does not run on {asked.gpu.capability}", "--mixture dense or gathered")
    for name, default in (("swiglu_limit", float("inf")), ("swiglu_alpha", 1.0), ("swiglu_beta", 0.0)):
        if number(node, name, default) != default:
            yield at(node, f"{name} {number(node, name, default)} is in its interface and not computed", "--mixture dense")
    if integer(node, "activation_type") not in (0, 1):
        yield at(
            node, f"activation_type {integer(node, 'activation_type')}: there are 0 (none) and 1 (SiLU)", "--mixture dense"
        )
    if integer(node, "quantization_mode") > 1:
        yield at(node, "dynamic quantisation of activations is not computed", "--mixture dense")
    ids = input_of(node, 1)
    if ids is not None and ids.dtype not in (None, ir.DataType.INT32):
        yield at(node, f"ids are {ids.dtype}, not INT32", "Cast them before")
    biases = [input_of(node, index) for index in (6, 7, 8)]
    if any(biases) and not all(biases):
        yield at(node, "some biases and not all", "give zeros for the others")
    yield from _ranked(node, 3, "hidden states", "ids", "scores", "gate weights", "up weights", "down weights")


def _ranked(node: ir.Node, rank: int, *inputs: str) -> Iterator[Gap]:
    wrong = [name for index, name in enumerate(inputs) if rank_of(input_of(node, index)) not in (None, rank)]
    if wrong:
        yield at(node, f"{', '.join(wrong)}: not of {rank} dimensions, which alone are taken", "reshape before")


def _constant(node: ir.Node, index: int, what: str) -> Iterator[Gap]:
    value = input_of(node, index)
    if value is not None and not is_constant(value):
        yield at(node, f"its {what} {value.name} is computed, and must be a constant", SAID)
