"""What TensorRT cannot take of an ONNX graph, node by node, without TensorRT."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import onnx_ir as ir

from mocomp.capability import Gap, gathered
from mocomp.capability import tensorrt_control_flow as _control_flow  # noqa: F401  (registers its rules)
from mocomp.capability import tensorrt_quantised as _quantised  # noqa: F401
from mocomp.capability.gpus import computing, gpus
from mocomp.capability.graphs import STANDARD, at, laid_open, nodes_of
from mocomp.capability.standard import opset_of
from mocomp.capability.tables import release, table, types_by_operator
from mocomp.capability.tensorrt_rules import Asked, rule

TABLE = table("tensorrt")
TYPES = types_by_operator(TABLE["operators"], TABLE["types"])
DATA = {"Where": 1}
"""Which input is the data, where it is not the first."""
BY_OUTPUT = ("Constant", "ConstantOfShape", "EyeLike", "If", "Loop", "Scan", "RandomNormal", "RandomUniform")
LIMITED = {
    ir.DataType.BFLOAT16: ("bfloat16", "--dtype float16"),
    ir.DataType.INT8: ("int8", "leave the weights in floats"),
    ir.DataType.INT4: ("int4", "--quantize int8"),
    ir.DataType.FLOAT8E4M3FN: ("fp8", "--quantize int8 or int4:128"),
    ir.DataType.FLOAT4E2M1: ("fp4", "--quantize int4:128 or int8"),
}
"""Types that not every GPU computes: the name in the table of GPUs, and what to use instead."""


def graph_gaps(model: ir.Model, version: str = "", gpu: str = "") -> list[Gap]:
    """What a release of TensorRT such as `11.4` cannot take of a graph, and on a GPU such as `sm_90` if one is named.

    Calls of local functions are looked into, unless TensorRT has an importer of that name. Types that inference does not find
    are not guessed. Reasons that many nodes share are told once.
    """
    version = version or TABLE["default"]
    if release(version) < release(TABLE["oldest"]):
        return [Gap(f"TensorRT {version}", f"nothing is known of those before {TABLE['oldest']}", "take a later one")]
    if release(version) > release(TABLE["newest"]):
        return [Gap(f"TensorRT {version}", f"nothing is known of those after {TABLE['newest']}", "take an earlier one")]
    if gpu and gpu not in gpus():
        return [Gap(gpu, "nothing is known of such a GPU", f"known are {', '.join(gpus())}")]
    asked = Asked(release(version), gpus()[gpu] if gpu else None)
    opened = laid_open(model, keep=lambda function: function.name in TABLE["custom"])
    found = [*_opset(model, version), *_mistaken(model)]
    for node in nodes_of(opened):
        found += _of_node(node, asked)
    return gathered([*found, *_types_of_gpu(opened, asked)])


def _opset(model: ir.Model, version: str) -> Iterator[Gap]:
    known = [levels for since, levels in TABLE["opsets"].items() if release(since) <= release(version)]
    lowest, highest = known[-1]
    opset = opset_of(model)
    if opset is not None and not lowest <= opset <= highest:
        yield Gap(
            "the graph", f"opset {opset}, and TensorRT {version} reads {lowest} to {highest}", f"write it in opset {highest}"
        )


def _mistaken(model: ir.Model) -> Iterator[Gap]:
    """Calls of functions that bear an operator's name: the parser looks names up without their domain, operators first."""
    bodies = (function.all_nodes() for function in model.functions.values())
    for node in chain(model.graph.all_nodes(), *bodies):
        if node.op_identifier() in model.functions and node.op_type in TYPES:
            why = f"the function {node.domain}.{node.op_type} would be taken for the operator {node.op_type}"
            yield at(node, why, "rename the function")


def _of_node(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """Whether there is an importer, then types, then the rules."""
    reason = _unknown(node, asked)
    if reason is not None:
        yield at(node, *reason)
        return
    yield from _wrong_type(node)
    yield from rule.gaps(node, asked)
    if node.op_type in TABLE["unchecked"]:
        yield at(node, f"taken only so: {TABLE['restrictions'][node.op_type]}", "not checked here", blocks=False)


def _unknown(node: ir.Node, asked: Asked) -> tuple[str, str] | None:
    """(why, instead) nothing imports it, or what does means something else."""
    name = node.op_type
    since = TABLE["custom"].get(name) or TABLE["since"].get(name)
    if since is not None and asked.release < release(since):
        return f"{name} came with TensorRT {since}", f"--tensorrt {since} or later"
    if name in TABLE["custom"]:
        return None
    if node.domain not in STANDARD:
        mistaken = f", and the parser would take it for the standard {name}" if name in TYPES else ""
        return f"{node.domain}.{name} is no operator of TensorRT's{mistaken}", "--target tensorrt makes a graph without it"
    if name in TABLE["unsupported"]:
        return "TensorRT does not support it", "compute it from other operators"
    return None if name in TYPES else ("no importer is known", "compute it from other operators")


def _wrong_type(node: ir.Node) -> Iterator[Gap]:
    if node.op_type in TABLE["custom"] or node.op_type == "DequantizeLinear":
        return
    values = node.outputs if node.op_type in BY_OUTPUT else node.inputs[DATA.get(node.op_type, 0) :][:1]
    allowed = TYPES[node.op_type]
    for value in values:
        if value is None or value.dtype is None or not allowed or value.dtype.name in allowed:
            continue
        if value.dtype is ir.DataType.DOUBLE:
            yield at(node, "DOUBLE, which TensorRT rounds to FLOAT", "Cast it, so that the proof sees it", blocks=False)
        else:
            taken = ", ".join(sorted(allowed))
            yield at(node, f"{value.dtype.name} data, and {node.op_type} takes {taken}", "Cast it before and after")


def _types_of_gpu(model: ir.Model, asked: Asked) -> Iterator[Gap]:
    if asked.gpu is None:
        return
    for node in nodes_of(model):
        for value in (*node.inputs, *node.outputs):
            name, instead = LIMITED.get(value.dtype, ("", "")) if value is not None and value.dtype is not None else ("", "")
            if value is not None and name and name not in asked.gpu.computes:
                gpu = f"{asked.gpu.capability} ({asked.gpu.name})"
                yield Gap(value.name or node.op_type, f"{gpu} does not compute {name}; {computing(name)} do", instead)
