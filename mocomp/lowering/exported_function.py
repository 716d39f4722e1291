"""A function of torch as a function of an ONNX model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
import torch

from mocomp.lowering import stable_sort
from mocomp.lowering.branches import DOMAIN
from mocomp.lowering.onnx_graph import forget_provenance
from mocomp.lowering.simplified import simplify

OPSET = 21
"""What the exporter emits; it means the same in those after it."""
ANY = 7
"""A size to trace with where every size is meant: one that nothing takes for a special case."""
Shape = tuple[int | None, ...]
"""None is any size; it is the same one in all shapes in which it stands in the same place."""


def exported(
    function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    shapes: Sequence[Shape],
    inputs: Sequence[str],
    outputs: Sequence[str],
    name: str,
    opset: int,
) -> ir.Function:
    """`function` on float32 tensors of these shapes as the ONNX function of that name in mocomp's domain."""
    letters: dict[int, torch.export.Dim] = {}
    dynamic = tuple(
        {i: letters.setdefault(i, torch.export.Dim(f"size{i}")) for i, size in enumerate(shape) if size is None}
        for shape in shapes
    )
    examples = tuple(torch.zeros([ANY + i if size is None else size for i, size in enumerate(shape)]) for shape in shapes)
    with torch.no_grad():
        program = torch.export.export(_Module(function), examples, dynamic_shapes=(dynamic,))
    made = torch.onnx.export(
        program,
        custom_translation_table=stable_sort.TRANSLATIONS,
        optimize=False,
        verify=False,
        verbose=False,
        opset_version=OPSET,
    )
    assert made is not None
    graph = made.model.graph
    for value, word in [*zip(graph.inputs, inputs, strict=True), *zip(graph.outputs, outputs, strict=True)]:
        value.name = word
    simplify(made.model)
    forget_provenance(made.model)
    _make_nodes_of_constants(graph)
    count_axes_from_the_front(graph)
    graph.opset_imports.clear()
    graph.opset_imports[""] = opset
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])


def count_axes_from_the_front(graph: ir.Graph) -> None:
    """The reference evaluator of onnx 1.23 takes an axis of GatherElements that is counted from the end for a wrong shape."""
    for node in graph.all_nodes():
        if node.op_type == "GatherElements" and (axis := node.attributes["axis"].as_int()) < 0:
            shape = node.outputs[0].shape
            assert shape is not None
            node.attributes["axis"] = ir.AttrInt64("axis", axis + shape.rank())


class _Module(torch.nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]):
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        return self.function(*tensors)


def _make_nodes_of_constants(graph: ir.Graph) -> None:
    """A function has no initializers."""
    for name, value in list(graph.initializers.items()):
        assert value.const_value is not None
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", value.const_value)], num_outputs=1)
        constant = node.outputs[0]
        constant.dtype, constant.shape = value.dtype, value.shape
        del graph.initializers[name]
        value.replace_all_uses_with(constant)
        value.name, constant.name = None, name
        graph.insert_before(graph[0], node)
