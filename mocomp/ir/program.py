"""A program: the traced graph of a model on fake tensors, and a recipe for each of its weights.

Weights are placeholders of the graph, as torch.export lifts them; `recipes` says what each of them is. Nothing
here holds data beyond small literals, so a program of 300 GB costs the memory of its graph.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from mocomp.weights.recipes import Reader, Recipe

WEIGHT_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@dataclass
class Program:
    """Graph, recipes, and the names by which the outside world calls inputs and outputs.

    `axes` names the dynamic dimensions of inputs and outputs, as {tensor: {dimension: letter or word}}.
    """

    exported: ExportedProgram
    recipes: dict[str, Recipe]
    inputs: list[str]
    outputs: list[str]
    axes: dict[str, dict[int, str]] = field(default_factory=dict)

    @property
    def graph(self) -> fx.Graph:
        return self.exported.graph

    @property
    def fake_mode(self) -> FakeTensorMode:
        """The mode in which the values of the nodes were made."""
        return next(n.meta["val"].fake_mode for n in self.graph.nodes if isinstance(n.meta.get("val"), FakeTensor))

    def copy(self) -> Program:
        """A program of its own graph; the recipes and the weights' stand-ins, which never change, are shared.

        A stand-in takes the memory of one element, and a copy of it that of the whole weight.
        """
        shared = {id(tensor): tensor for tensor in self.exported.state_dict.values()}
        return Program(copy.deepcopy(self.exported, shared), dict(self.recipes), self.inputs, self.outputs, self.axes)

    def weights(self) -> Iterator[tuple[fx.Node, str]]:
        """Each weight's placeholder with the weight's name."""
        nodes = {node.name: node for node in self.graph.find_nodes(op="placeholder")}
        for spec in self.exported.graph_signature.input_specs:
            if spec.kind in WEIGHT_KINDS:
                yield nodes[spec.arg.name], str(spec.target)

    def parameters(self) -> set[str]:
        """The names of the weights that are parameters: no buffers, and nothing that a packed weight is unpacked by."""
        specs = self.exported.graph_signature.input_specs
        return {str(spec.target) for spec in specs if spec.kind is InputKind.PARAMETER}

    def read_weights(self) -> set[str]:
        """The names of the weights that some node reads."""
        return {name for node, name in self.weights() if node.users}

    def recipe_of(self, node: fx.Node) -> Recipe | None:
        """The recipe behind a placeholder, or None when the node is no weight."""
        return self.recipes.get(self._weight_names().get(node.name, ""))

    def user_inputs(self) -> list[fx.Node]:
        """The placeholders of `inputs`, in their order."""
        nodes = {node.name: node for node in self.graph.find_nodes(op="placeholder")}
        return [nodes[name] for name in self.exported.graph_signature.user_inputs if isinstance(name, str)]

    def add_weight(self, name: str, recipe: Recipe, parameter: bool = True) -> fx.Node:
        """A new weight, a parameter or a buffer, with its placeholder."""
        signature, state = self.exported.graph_signature, self.exported.state_dict
        placeholder = f"p_{name.replace('.', '_')}"
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            node = self.graph.create_node("placeholder", placeholder, name=placeholder)
        with self.fake_mode:
            node.meta["val"] = torch.empty(recipe.shape, dtype=recipe.dtype)
        kind, persistent = (InputKind.PARAMETER, None) if parameter else (InputKind.BUFFER, True)
        signature.input_specs.insert(0, InputSpec(kind, TensorArgument(node.name), name, persistent))
        hollow = torch.zeros((), dtype=recipe.dtype).expand(recipe.shape)  # the memory of one element; may be copied
        state[name] = torch.nn.Parameter(hollow, requires_grad=False) if parameter else hollow
        self.recipes[name] = recipe
        return node

    def remove_dead_weights(self) -> int:
        """Drop the weights that no node reads; returns how many."""
        names = {node.name: (node, name) for node, name in self.weights() if not node.users}
        signature = self.exported.graph_signature
        signature.input_specs[:] = [spec for spec in signature.input_specs if spec.arg.name not in names]
        for node, name in names.values():
            self.graph.erase_node(node)
            self.recipes.pop(name, None)
        return len(names)

    def run(self, inputs: Mapping[str, Any], read: Reader) -> list[torch.Tensor]:
        """The program's outputs, in plain torch, from inputs by their names; what a pass did can so be checked."""
        values = [self.recipes[name].evaluate(read) for _, name in self.weights()]
        graph_module = self.exported.graph_module
        graph_module.recompile()
        arguments = [*values, *(inputs[name] for name in self.inputs)]
        with torch.no_grad():
            return list(fx.Interpreter(graph_module).run(*arguments))

    def _weight_names(self) -> dict[str, str]:
        specs = self.exported.graph_signature.input_specs
        return {spec.arg.name: str(spec.target) for spec in specs if spec.kind in WEIGHT_KINDS}
