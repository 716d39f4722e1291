"""A graph cut at its mixtures: what every rank has, in pieces, and what is between them.

Dimension letters: T tokens, E experts, K chosen per token, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass

from mocomp.errors import MocompError
from mocomp.lowering.graph_parts import inputs_of, part_of


@dataclass
class Seam:
    """A mixture that is cut out: x [T, H], ids [T, K] and weights [T, K] are what it is given, y [T, H] is what it gives; the
    weights of `call` are of all E `experts`. `after` is the piece that its inputs come from."""

    layer: str
    call: ir.Node
    x: ir.Value
    ids: ir.Value
    weights: ir.Value
    y: ir.Value
    experts: int
    after: int = 0

    @property
    def inputs(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        return self.x, self.ids, self.weights


@dataclass
class RankGraphs:
    """A model with its seams, and what makes a graph of a number of the experts of one, alone.

    That graph takes x [T, H] of the tokens sent to a rank, and for each of their P choices of its experts token [P] (a row of
    x), expert [P] (a number among those of the rank) and weight [P]; it gives y [T, H], the sum over these choices.
    """

    model: ir.Model
    seams: list[Seam]
    experts: Callable[[Seam, int], ir.Model]

    def __post_init__(self) -> None:
        self._level = self._levels()

    def pieces(self) -> list[ir.Model]:
        """The nodes outside of the mixtures: first those that need no mixture, then those that need the first ones, and so on.

        What is made of weights alone goes with each node that reads it.
        """
        level = self._level
        nodes = [node for node in self.model.graph if any(value in level for value in node.outputs)]
        calls = {seam.call for seam in self.seams}
        made: dict[ir.Value, int] = {v: level[v] for n in nodes if n not in calls for v in n.outputs if v in level}
        last = max(level.values())
        inputs, outputs = ([dict[ir.Value, None]() for _ in range(last + 1)] for _ in range(2))
        for node in (node for node in nodes if node not in calls):
            own = level[node.outputs[0]]
            for value in (value for value in inputs_of(node) if value in level and made.get(value) != own):
                inputs[own][value] = None
                if value in made:
                    outputs[made[value]][value] = None
        for value in (*self.model.graph.outputs, *(value for seam in self.seams for value in seam.inputs)):
            if value in made:
                outputs[made[value]][value] = None
        return [
            _named(part_of(self.model, *_names(*ends)), i)
            for i, ends in enumerate(zip(inputs, outputs, strict=True))
            if ends[1]
        ]

    def _levels(self) -> dict[ir.Value, int]:
        """How many mixtures are, one after the other, before each value that depends on an input of the model."""
        level = dict.fromkeys(self.model.graph.inputs, 0)
        seams = {seam.call: seam for seam in self.seams}
        for node in self.model.graph:
            seam = seams.get(node)
            known = [level[value] for value in (seam.inputs if seam else inputs_of(node)) if value in level]
            if seam is not None:
                seam.after = max(known)
            if known:
                level |= dict.fromkeys(node.outputs, max(known) + (seam is not None))
        return level


def _names(*ends: dict[ir.Value, None]) -> list[list[str]]:
    return [[str(value.name) for value in values] for values in ends]


def _named(piece: ir.Model, i: int) -> ir.Model:
    """A piece that a runtime takes, which has to be told the types of what comes in. Its weights are in the order of their
    names, since the one in which they are found is not the same every time."""
    piece.graph.name = f"dense_{i}"
    weights = sorted(piece.graph.initializers.items())
    piece.graph.initializers.clear()
    piece.graph.initializers.update(weights)
    RemoveUnusedFunctionsPass()(piece)
    for value in piece.graph.inputs:
        if value.dtype is None:
            raise MocompError(f"the type of {value.name} is not known", where="lowering")
    return piece
