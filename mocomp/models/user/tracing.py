"""A module as a program: its mixtures put in canonical form, traced with torch.export, its weights as recipes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from sympy import Symbol
from torch import Tensor
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import OutputKind

from mocomp.errors import MocompError, Unsupported
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, scope
from mocomp.models.huggingface import Traced
from mocomp.models.interface import Interface
from mocomp.models.recognition import Recognition
from mocomp.models.user.contexts import inline
from mocomp.models.user.likeness import Likeness
from mocomp.models.user.outputs import named
from mocomp.models.user.source import ModuleSource
from mocomp.models.user.state import hooked, undisturbed
from mocomp.weights.in_memory import InMemory
from mocomp.weights.recipes import literal


def call_of(block: str, number: int) -> str:
    """What to call the mixture of a block in a call of it, which are counted from 1."""
    return block if number == 1 else f"{block}@{number}"


LINES = 6
"""Lines of a message of torch.export that are shown; the rest is in the log."""


def trace(source: ModuleSource, recognition: Recognition, example: dict[str, Tensor], notes: list[str]) -> Traced:
    """The graph of a module on inputs of the sizes of `example`, with each dimension that may change symbolic.

    Raises Unsupported for what torch.export refuses, among it dimensions that turn out not to change.
    """
    names: list[str] = []
    with recognition.install(source.module), undisturbed(source.module) as restore:

        def given(result: Any) -> tuple[Tensor, ...]:
            tensors, dropped = named(result, source.outputs, source.inputs)
            restore()  # torch.export refuses attributes that a forward has changed
            names[:] = tensors
            notes[:] = [*notes, *(f"{name} is no tensor, and no output" for name in dropped)]
            return _apart(list(tensors.values()), list(example.values()))

        with hooked(source.module, given):
            exported = _exported(source, example)
    _drop_writes(exported, notes)
    inline(exported.graph_module)
    _tell_apart(exported)
    outputs = exported.graph_module.graph.output_node().args[0]
    interface = Interface(
        kind="module",
        inputs=list(source.inputs),
        outputs=list(names),
        axes=source.axes | _axes(words_of(exported, source), dict(zip(names, outputs, strict=True))),
        like={name: Likeness.of(tensor.numpy()) for name, tensor in source.inputs.items()},
    )
    return Traced(Program(exported, {}, interface.inputs, interface.outputs, interface.axes), source.module, interface)


def bind(traced: Traced, weights: InMemory) -> None:
    """Give each weight of a trace its recipe: a tensor of the module's state, or, for what is in none, its own numbers."""
    for _, name in traced.program.weights():
        known = weights.holds(name)
        traced.program.recipes[name] = weights.recipe(name) if known else literal(traced.program.exported.constants[name])


def _exported(source: ModuleSource, example: dict[str, Tensor]) -> ExportedProgram:
    given = {name: example[name].clone() for name in source.inputs}  # none of them twice
    shapes = ShapesCollection()
    for name, tensor in given.items():
        shapes[tensor] = dict.fromkeys(source.axes[name], Dim.DYNAMIC)
    try:
        with torch.no_grad():
            dynamic = shapes.dynamic_shapes(source.module, (), given)
            return torch.export.export(source.module, (), given, dynamic_shapes=dynamic, strict=False)
    except MocompError:
        raise
    except Exception as error:
        raise Unsupported(
            f"torch.export cannot trace it: {type(error).__name__}: {_reason(str(error), source)}",
            where=source.label,
            fix="Write that part with tensors of known sizes, or leave the dimension out of --dynamic.",
        ) from error


def _reason(message: str, source: ModuleSource) -> str:
    """The lines of a message that say what is wrong, with inputs called by their names."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    told = [line for line in lines if "specialized it to be a constant" in line or "Could not guard" in line] or lines
    text = "; ".join(told[:LINES])
    return re.sub(r"L\['kwargs'\]\['(\w+)'\]", r"\1", text)[:600]


def _apart(tensors: list[Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The outputs, each a tensor of its own: an input that is given back, or one output twice, would have two names."""
    seen: set[int] = set()
    made = []
    for tensor in tensors:
        made.append(tensor.clone() if id(tensor) in seen else tensor)
        seen.add(id(tensor))
    return tuple(made)


def _drop_writes(exported: ExportedProgram, notes: list[str]) -> None:
    """Leave only what the user is given: a buffer that a forward writes to is not written by an artifact."""
    signature, output = exported.graph_signature, exported.graph_module.graph.output_node()
    pairs = list(zip(signature.output_specs, output.args[0], strict=True))
    kept = [(spec, node) for spec, node in pairs if spec.kind is OutputKind.USER_OUTPUT]
    written = [str(spec.target) for spec, _ in pairs if spec.kind is not OutputKind.USER_OUTPUT]
    if written:
        notes.append(f"its forward writes to {', '.join(written[:3])}, and the artifact does not")
        signature.output_specs[:] = [spec for spec, _ in kept]
        output.args = (tuple(node for _, node in kept),)


def _tell_apart(exported: ExportedProgram) -> None:
    """A block that is called more than once is `block`, `block@2`, ... in the scopes of its mixtures."""
    seen: Counter[str] = Counter()
    for node in exported.graph_module.graph.find_nodes(op="call_function", target=MOCOMP.experts.default):
        name = scope(node)
        seen[name] += 1
        if seen[name] > 1:
            *outer, (key, (_, kind)) = (node.meta.get("nn_module_stack") or {"": ("", "")}).items()
            node.meta["nn_module_stack"] = dict([*outer, (key, (call_of(name, seen[name]), kind))])


def words_of(exported: ExportedProgram, source: ModuleSource) -> dict[Any, str]:
    """The symbols of sizes in a trace, each with the name of its dimension."""
    nodes = {node.name: node for node in exported.graph_module.graph.find_nodes(op="placeholder")}
    inputs = [nodes[name].meta["val"] for name in exported.graph_signature.user_inputs if isinstance(name, str)]
    words: dict[Any, str] = {}
    for value, axes in zip(inputs, source.axes.values(), strict=True):
        for i, axis in axes.items():
            words.setdefault(value.shape[i].node.expr, axis)
    return words


def _axes(words: dict[Any, str], outputs: dict[str, Any]) -> dict[str, dict[int, str]]:
    """{output: {dimension: name}} of those that change with the inputs' own, as an expression of their names."""
    return {name: dict(_named_dimensions(node.meta["val"].shape, words)) for name, node in outputs.items()}


def _named_dimensions(shape: Any, words: dict[Any, str]) -> Iterator[tuple[int, str]]:
    for i, size in enumerate(shape):
        if isinstance(size, torch.SymInt):
            expression = size.node.expr
            # symbols, since a string is evaluated, and a dimension may have the name of a function
            own = {symbol: Symbol(words[symbol]) for symbol in expression.free_symbols if symbol in words}
            yield i, words.get(expression) or str(expression.subs(own)).replace(" ", "")
