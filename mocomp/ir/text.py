"""A program as text, one line a node, for `--print-after` and for tests."""

from __future__ import annotations

from torch import fx

from mocomp.ir.program import Program


def print_program(program: Program) -> str:
    """`%name [shape] = op(arguments)` in order of execution; weights show their recipes' kind."""
    lines = []
    for node in program.graph.nodes:
        value = node.meta.get("val")
        shape = list(value.shape) if hasattr(value, "shape") else ""
        if node.op == "placeholder":
            recipe = program.recipe_of(node)
            lines.append(f"%{node.name} {shape} = {'input' if recipe is None else type(recipe).__name__.lower()}")
        elif node.op == "output":
            lines.append(f"return {_argument(node.args[0])}")
        else:
            lines.append(f"%{node.name} {shape} = {node.target}({', '.join(_argument(a) for a in node.args)})")
    return "\n".join(lines)


def _argument(value: object) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_argument(item) for item in value) + "]"
    return str(value)
