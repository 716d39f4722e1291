"""What ONNX Runtime cannot take of a graph, or would take for another, on the CPU and on CUDA."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from mocomp.capability import Gap, gathered
from mocomp.capability.gpus import gpus
from mocomp.capability.graphs import STANDARD, at, laid_open, nodes_of
from mocomp.capability.onnxruntime_mixtures import Asked, rule
from mocomp.capability.standard import opset_of
from mocomp.capability.tables import table, types_by_operator

TABLE = table("onnxruntime")
CUDA = {domain: types_by_operator(groups, TABLE["types"]) for domain, groups in TABLE["cuda"].items()}
CPU = {domain: types_by_operator(groups, TABLE["types"]) for domain, groups in TABLE["cpu"].items()}
CONTRIB = "com.microsoft"
DATA = {"Where": 1, "OneHot": 0}
BETWEEN = "it runs on the CPU, with copies before and after"


def graph_gaps(model: ir.Model, device: str = "cpu", gpu: str = "") -> list[Gap]:
    """What ONNX Runtime's provider of a device, cpu or cuda, cannot take of a graph, on a GPU such as `sm_90` if one is named.

    Operators that CUDA has no kernel for do not block: the CPU runs them. Reasons that many nodes share are told once.
    """
    asked = Asked(device)
    opened = laid_open(model)
    found = [*_format(model), *(_wheel(gpu) if device == "cuda" and gpu else ())]
    for node in nodes_of(opened):
        found += [*_kernel(node, asked), *rule.gaps(node, asked)]
    return gathered(found)


def _format(model: ir.Model) -> Iterator[Gap]:
    opset, version = opset_of(model), TABLE["version"]
    if opset is not None and opset > TABLE["opset"]:
        yield Gap("the graph", f"opset {opset}, and ONNX Runtime {version} reads up to {TABLE['opset']}", "--opset 24")
    if model.ir_version > TABLE["ir_version"]:
        why = f"IR version {model.ir_version}, and ONNX Runtime {version} reads up to {TABLE['ir_version']}"
        yield Gap("the graph", why, "set it to 10")


def _wheel(gpu: str) -> Iterator[Gap]:
    known = gpus()
    if gpu not in known:
        yield Gap(gpu, "nothing is known of such a GPU", f"known are {', '.join(known)}")
    elif not known[gpu].onnxruntime_wheel:
        why = f"the wheel of onnxruntime-gpu {TABLE['version']} has no code for {known[gpu].name}, nor PTX to make it from"
        yield Gap(gpu, why, "build ONNX Runtime from source for it, or --target tensorrt")


def _kernel(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """Whether there is a kernel for a node, and for the type of its data."""
    domain = "" if node.domain in STANDARD else node.domain
    if domain not in ("", CONTRIB):
        yield at(node, f"ONNX Runtime has no operators of {domain}", "a local function, or an operator that it has")
        return
    if not _exists(node, domain):
        yield at(node, f"neither the standard nor ONNX Runtime has a {node.op_type}", "compute it from other operators")
        return
    if domain == CONTRIB and node.op_type not in CUDA[CONTRIB] | CPU[CONTRIB]:
        yield at(node, f"nothing is known of {CONTRIB}.{node.op_type}", "open it in ONNX Runtime to see", blocks=False)
        return
    if domain == "" and node.op_type == "DequantizeLinear" and asked.device == "cpu":
        yield from _dequantized_on_cpu(node)
    known = (CUDA if asked.device == "cuda" else CPU).get(domain, {})
    if node.op_type in known:
        yield from _wrong_type(node, known[node.op_type], asked)
    elif asked.device == "cuda" and node.op_type not in TABLE["made_of_others"]:
        yield at(node, f"no CUDA kernel of {node.op_type} is known", BETWEEN, blocks=False)


def _exists(node: ir.Node, domain: str) -> bool:
    """Whether an operator is there in some opset, unless it is of a domain that the standard has not."""
    return domain != "" or onnx.defs.has(node.op_type) or node.op_type in TABLE["besides"]


def _wrong_type(node: ir.Node, taken: frozenset[str], asked: Asked) -> Iterator[Gap]:
    value = node.inputs[DATA.get(node.op_type, 0)] if node.inputs else None
    if value is None or value.dtype is None or value.dtype.name in taken:
        return
    why = f"{value.dtype.name} data, and {node.op_type} of the {asked.device.upper()} provider takes {', '.join(sorted(taken))}"
    if node.domain in STANDARD:  # other types may have come since, and the CPU may have them
        yield at(node, why, BETWEEN, blocks=False)
    else:
        yield at(node, why, "--dtype float16" if asked.device == "cuda" else "--dtype float32")


def _dequantized_on_cpu(node: ir.Node) -> Iterator[Gap]:
    codes = node.inputs[0]
    if codes is not None and codes.dtype is ir.DataType.FLOAT4E2M1:
        yield at(node, "float4e2m1 is not computed on the CPU", "--device cuda, or --quantize int4")
