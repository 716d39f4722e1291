"""Which ops a program may hold at each stage, as a table; every pass is checked against it before and after."""

from __future__ import annotations

from enum import Enum

from torch import fx

from mocomp.errors import MocompError
from mocomp.ir.program import Program


class Stage(Enum):
    """TRACED: as the front end leaves it. CANONICAL: clean ATen, weights folded. ROUTED: routing is explicit."""

    TRACED = "traced"
    CANONICAL = "canonical"
    ROUTED = "routed"


ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range")
NAMESPACES = ("mocomp", "aten", "_operator", "math", "builtins", "torchvision", "transformers", "prims", "torch")
ILLEGAL: dict[Stage, tuple[str, ...]] = {
    Stage.TRACED: (),
    Stage.CANONICAL: ASSERTIONS,
    Stage.ROUTED: ASSERTIONS,
}


def check(program: Program, stage: Stage, by: str) -> None:
    """Raises MocompError, naming `by` and the node, for an op that is not legal, or a recipe of the wrong shape."""
    for node in program.graph.nodes:
        if node.op == "call_function" and not _is_legal(node, stage):
            raise MocompError(f"{node.target} is not legal at stage {stage.value}", where=f"{by}, node {node.name}")
    for node, name in program.weights():
        recipe = program.recipes.get(name)
        if recipe is not None and tuple(node.meta["val"].shape) != recipe.shape:
            raise MocompError(f"{name}: recipe {recipe.shape}, graph {tuple(node.meta['val'].shape)}", where=by)


def _is_legal(node: fx.Node, stage: Stage) -> bool:
    namespace, _, rest = str(getattr(node.target, "name", lambda: node.target.__module__)()).partition("::")
    operator = rest.split(".")[0]
    return namespace.split(".")[0] in NAMESPACES and operator not in ILLEGAL[stage]
