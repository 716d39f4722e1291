"""Programs from small torch modules, so that a pass is tested on code that a reader can see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from mocomp.experts.glu import GLU
from mocomp.ir import ops  # noqa: F401  (registers the ops of mocomp)
from mocomp.ir.program import Program
from mocomp.ir.rewrite import op_name
from mocomp.ir.specs import spell
from mocomp.passes import Pass, Receipt, run
from mocomp.weights import recipes
from tests.stages import load_traced

TOKENS, HIDDEN, WIDTH, EXPERTS = 7, 8, 6, 8
SWIGLU = GLU()


@dataclass
class Traced:
    """A program with the numbers to run it on: its inputs and the tensors that its recipes read."""

    program: Program
    inputs: dict[str, Tensor]
    tensors: dict[str, Tensor]

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self.tensors[name][start:stop]

    def run(self) -> list[Tensor]:
        return self.program.run({name: value.clone() for name, value in self.inputs.items()}, self.read)

    def copy(self) -> Traced:
        return Traced(self.program.copy(), self.inputs, self.tensors)


def trace(module: nn.Module, tokens: int = TOKENS, width: int = HIDDEN, **more: Tensor) -> Traced:
    """`module` on x [T, H] as a program with T symbolic, each of its parameters a tensor of a checkpoint."""
    inputs = {"x": torch.randn(tokens, width, generator=torch.Generator().manual_seed(0)), **more}
    rows = {0: torch.export.Dim.AUTO}
    axes = (rows, (rows,) * len(more)) if more else (rows,)  # as `Formula.forward` takes them
    exported = torch.export.export(module.eval(), tuple(inputs.values()), dynamic_shapes=axes)
    tensors = dict(exported.state_dict) | dict(exported.constants)
    leaves = {name: recipes.Tensor(tuple(t.shape), t.dtype, name) for name, t in tensors.items()}
    count = len(exported.graph_signature.user_outputs)
    return Traced(Program(exported, dict(leaves), list(inputs), [f"y{i}" for i in range(count)]), inputs, tensors)


def rewrite(module: nn.Module, *steps: Pass, **more: Tensor) -> tuple[Program, Receipt]:
    """`module` as a program after `steps`, with the receipt of the last one; none of them may change the numbers."""
    traced = trace(module, **more)
    expected = traced.run()
    receipt = [run(step, traced.program) for step in steps][-1]
    for a, b in zip(traced.run(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)
    return traced.program, receipt


def trace_checkpoint(directory: Path) -> Traced:
    """The program of a generator's checkpoint, on random tokens behind a random past, the first three of it padding."""
    found = load_traced(directory)
    generator = torch.Generator().manual_seed(0)
    inputs = found.interface.tensors(batch=2, sequence=5, past=6)
    for name, value in inputs.items():
        if name == "input_ids":
            inputs[name] = torch.randint(0, found.interface.vocabulary, value.shape, generator=generator)
        elif name.startswith("past_key_values"):
            inputs[name] = torch.randn(value.shape, generator=generator)
    inputs["attention_mask"][1, :3] = 0
    return Traced(found.program, inputs, load_file(directory / "model.safetensors"))


class Formula(nn.Module):
    """A module that computes `function(module, x, ...)`; `parameters` are its weights, random, by name and shape."""

    def __init__(self, function: Callable[..., Any], **parameters: tuple[int, ...]):
        super().__init__()
        self.function = function
        generator = torch.Generator().manual_seed(1)
        for name, shape in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator), requires_grad=False))

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        return self.function(self, x, *more)


Routing = Callable[[Formula, Tensor], tuple[Tensor, Tensor]]


def mixture(
    route: Routing, expert: Any = SWIGLU, logits: Callable[..., Tensor] | None = None, **parameters: tuple[int, ...],
) -> Formula:  # fmt: skip
    """experts(x, *route(module, x @ gate)); `parameters` are the router's own, besides its gate."""
    rows = 2 * WIDTH if expert.gated else WIDTH

    def forward(m: Formula, x: Tensor, *more: Tensor) -> Tensor:
        ids, weights = route(m, nn.functional.linear(x, m.gate) if logits is None else logits(m, x), *more)
        return torch.ops.mocomp.experts(x, ids, weights.to(x.dtype), m.w_in, None, m.w_out, None, spell(expert))

    bank = {"w_in": (EXPERTS, rows, HIDDEN), "w_out": (EXPERTS, HIDDEN, WIDTH)}
    return Formula(forward, gate=(EXPERTS, HIDDEN), **bank, **parameters)


def structure(program: Program) -> list[str]:
    """The program up to the names of its nodes: one line for each that an output needs, in the order of need."""
    lines: dict[fx.Node, str] = {}
    names = dict(program.weights())
    inputs = [node for node in program.graph.find_nodes(op="placeholder") if node not in names]

    def visit(node: fx.Node) -> str:
        if node in names:
            return f"weight({', '.join(leaf.name for leaf in program.recipes[names[node]].leaves())})"
        if node in inputs:
            return program.inputs[inputs.index(node)]
        if node not in lines:
            arguments = [str(fx.map_arg(a, lambda n: _Name(visit(n)))) for a in (*node.args, *node.kwargs.items())]
            lines[node] = f"%{len(lines)} = {op_name(node)}({', '.join(arguments)})"
        return lines[node].split(" ")[0]

    results = [visit(node) for node in program.graph.output_node().args[0]]
    return [*lines.values(), f"return {', '.join(results)}"]


def op_names(program: Program) -> list[str]:
    """The ops in order of execution, by their short names."""
    return [op_name(node) for node in program.graph.nodes if node.op == "call_function"]


class _Name(str):
    """A name that prints without quotes inside of a list."""

    __repr__ = str.__str__
