"""The types that nodes and functions of a graph name themselves, changed all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir

Types = Mapping[ir.DataType, ir.DataType]
Convert = Callable[[np.ndarray], np.ndarray]
NAMED = ("to", "output_dtype", "dtype")
"""Attributes whose number is a type."""


def retype_nodes(nodes: Iterable[ir.Node], types: Types, convert: Convert) -> None:
    """Nodes, those in branches and loop bodies given too, with each type that is a key of `types` become its value; `convert`
    turns constants."""
    for node in nodes:
        retype_attributes(node, types, convert)
        retype_values(node.outputs, types)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                retype_values([*attribute.as_graph().inputs, *attribute.as_graph().outputs], types)


def retype_values(values: Iterable[ir.Value], types: Types) -> None:
    """The declared types of values."""
    for value in values:
        if value.dtype in types:
            value.dtype = types[value.dtype]


def retype_attributes(node: ir.Node, types: Types, convert: Convert) -> None:
    """What a node says of the type that it gives, and the constant that it holds."""
    for name in NAMED:
        if name in node.attributes and (kind := types.get(ir.DataType(node.attributes[name].as_int()))):
            node.attributes[name] = ir.AttrInt64(name, int(kind))
    held = _held(node)
    if held is not None and ir.DataType.from_numpy(held.dtype) in types:
        for name in ("value_float", "value_floats"):
            node.attributes.pop(name, None)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(convert(held)))


def _held(node: ir.Node) -> np.ndarray | None:
    """The constant of a Constant or ConstantOfShape; the latter holds a float32 zero where it says nothing."""
    said = node.attributes
    if node.op_type not in ("Constant", "ConstantOfShape"):
        return None
    if "value" in said:
        return said["value"].as_tensor().numpy()
    if "value_float" in said:
        return np.array(said["value_float"].as_float(), np.float32)
    if "value_floats" in said:
        return np.array(said["value_floats"].as_floats(), np.float32)
    return np.zeros(1, np.float32) if node.op_type == "ConstantOfShape" else None
