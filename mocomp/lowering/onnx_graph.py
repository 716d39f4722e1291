"""A program as an ONNX graph whose weights are still recipes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mocomp.errors import MocompError, Unsupported
from mocomp.ir.program import Program
from mocomp.lowering import stable_sort, stamped_graph
from mocomp.lowering.shortened import shortened
from mocomp.lowering.simplified import SMALL, simplify
from mocomp.weights.recipes import Literal, Recipe

Translations = dict[Any, Callable[..., Any]]


def to_onnx(program: Program, translations: Translations, opset: int, ir_version: int) -> ir.Model:
    """The program in ONNX: inputs and outputs by their public names, every weight an initializer without data.

    Without data, so that constant folding leaves weights alone. Layers that repeat are translated three times, and the rest is
    stamped. Raises Unsupported for an op that has no translation.
    """
    short, cuts = shortened(program)
    if cuts:
        model = _translated(short, translations | stamped_graph.TRANSLATIONS, opset, ir_version)
        if stamped_graph.stamp(model, cuts):
            _order(model, program)
            return model
    return _translated(program, translations, opset, ir_version)


def _translated(program: Program, translations: Translations, opset: int, ir_version: int) -> ir.Model:
    try:
        exported = torch.onnx.export(
            program.exported,
            custom_translation_table=stable_sort.TRANSLATIONS | translations,
            optimize=False,
            verify=False,
            opset_version=opset,
            keep_initializers_as_inputs=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise Unsupported(f"no ONNX form for part of the graph: {_reason(error)}", where="lowering") from error
    if exported is None:
        raise MocompError("torch.onnx.export gave nothing")
    model = exported.model
    model.ir_version = ir_version
    _settle(model, program)
    _rename(model, program)
    simplify(model)
    RemoveUnusedNodesPass()(model)
    forget_provenance(model)
    return model


def _settle(model: ir.Model, program: Program) -> None:
    """What the exporter saw of weights are stand-ins: constants get their numbers here, weights when they are written."""
    for name, value in model.graph.initializers.items():
        if (recipe := program.recipes.get(name)) is not None:
            value.const_value = ir.tensor(recipe.value.numpy(), name=name) if _is_constant(recipe) else None


def weights_of(model: ir.Model, program: Program) -> dict[str, Recipe]:
    """The recipe of each weight that is left in the graph; constants, such as shapes and axes, are not among them."""
    recipes = {name: program.recipes[name] for name in model.graph.initializers if name in program.recipes}
    return {name: recipe for name, recipe in recipes.items() if not _is_constant(recipe)}


def _is_constant(recipe: Recipe) -> TypeGuard[Literal]:
    """Whether it is a few integers of the code itself: ONNX Runtime reads axes and shapes from no file of weights."""
    return isinstance(recipe, Literal) and not recipe.dtype.is_floating_point and recipe.nbytes <= SMALL


def _order(model: ir.Model, program: Program) -> None:
    """Inputs, outputs and weights as the whole program has them, which is how they are written."""
    for values, names in ((model.graph.inputs, program.inputs), (model.graph.outputs, program.outputs)):
        values[:] = sorted(values, key=lambda value: names.index(str(value.name)))
    place = {name: i for i, (_, name) in enumerate(program.weights())}
    initializers = model.graph.initializers
    ordered = sorted(initializers.items(), key=lambda item: place.get(item[0], len(place)))
    initializers.clear()
    initializers.update(ordered)


def _rename(model: ir.Model, program: Program) -> None:
    for value, name in [*zip(model.graph.inputs, program.inputs, strict=True)]:
        value.name = name
    for i, name in enumerate(program.outputs):
        if model.graph.outputs[i] in (*model.graph.inputs, *model.graph.outputs[:i]):
            raise Unsupported(f"output {name} is another input or output unchanged", where="lowering")
        model.graph.outputs[i].name = name
    for value in (*model.graph.inputs, *model.graph.outputs):
        axes = program.axes.get(value.name or "", {})
        if value.shape is not None:
            value.shape = ir.Shape([axes.get(i, dim) for i, dim in enumerate(value.shape)])


def forget_provenance(model: ir.Model) -> None:
    """Drop the exporter's notes: they hold source lines and paths of the machine that converted."""
    model.metadata_props.clear()
    model.producer_name, model.producer_version, model.doc_string = "mocomp", None, None
    for graph in (model.graph, *model.functions.values()):
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
        for value in (*graph.inputs, *graph.outputs):
            value.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()


def _reason(error: Exception) -> str:
    chain: BaseException = error
    while chain.__cause__ is not None:
        chain = chain.__cause__
    return f"{type(chain).__name__}: {str(chain).strip().splitlines()[0][:300]}"
