"""A program run a part at a time ends where the program run at once ends, and never holds more weights than a part's."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from mocomp.calibration import walk
from mocomp.calibration.walk import Call, Walk
from mocomp.ir.program import Program
from mocomp.passes.quantize_weights import dense_weights, expert_weights, quantisable
from mocomp.weights.recipes import Apply, Reader, Recipe
from tests.calibration.models import Opened, opened

FAMILIES = ("qwen3_moe", "bert", "vit")
SIZES = ((1, 7), (3, 5), (1, 12))


@pytest.fixture(scope="module")
def models(checkpoint):
    stack: list[Any] = []
    known: dict[str, Opened] = {}

    def made(family: str) -> Opened:
        if family not in known:
            stack.append(opened(checkpoint(family)))
            known[family] = stack[-1].__enter__()
        return known[family]

    yield made
    for context in stack:
        context.__exit__(None, None, None)


@dataclass
class Computing:
    """A visitor that gives visited nodes the value they have anyway; of stream 1, with `changed` weights."""

    program: Program
    read: Reader
    changed: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    outputs: dict[int, list[Tensor]] = field(default_factory=dict)
    visited: list[fx.Node] = field(default_factory=list)

    def visit(self, node: fx.Node, calls: list[list[Call]]) -> list[list[Tensor]]:
        self.visited.append(node)
        names = {placeholder: name for placeholder, name in self.program.weights()}
        values = []
        for stream, called in enumerate(calls):

            def weight(n: fx.Node, stream: int = stream) -> Tensor:
                w = self.program.recipes[names[n]].evaluate(self.read)
                return self.changed.get(names[n], lambda w: w)(w) if stream else w

            values.append([node.target(*fx.map_arg(call.args, weight)) for call in called])  # type: ignore[operator]
        return values

    def wants(self, row: int) -> bool:
        return True

    def finish(self, row: int, outputs: list[Tensor]) -> None:
        self.outputs[row] = outputs


def walked(made: Opened, rows: list[dict], streams: int = 1, read: Reader | None = None, **changed: Callable) -> Computing:
    """Every linear layer and every mixture visited."""
    visitor = Computing(made.program, made.checkpoint.read, changed)
    visited = quantisable(made.program, {*expert_weights(made.program), *dense_weights(made.program)})
    Walk(made.program, read or made.checkpoint.read, visited, streams).run(rows, visitor)
    assert visitor.visited == [node for node in made.program.graph.nodes if node in visited]
    return visitor


def whole(made: Opened, row: dict[str, Tensor], program: Program | None = None) -> Tensor:
    return (program or made.program).run(row, made.checkpoint.read)[0]


@pytest.mark.parametrize("family", (*FAMILIES, "deepseek_v3"))
def test_the_first_stream_is_the_program(models, family):
    made = models(family)
    rows = made.rows(*SIZES)
    visitor = walked(made, rows, streams=3)
    for number, row in enumerate(rows):
        expected = whole(made, row)
        for output in visitor.outputs[number]:  # the others' visitor gave the same values
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_with_another_layer_is_the_program_with_it(models, family):
    made = models(family)
    rows, other = made.rows(*SIZES), made.program.copy()
    name = (expert_weights(made.program) or dense_weights(made.program))[0]
    recipe = other.recipes[name]
    other.recipes[name] = Apply(recipe.shape, recipe.dtype, lambda w: 1.5 * w[0], (recipe,))
    visitor = walked(made, rows, 2, **{name: lambda w: 1.5 * w})
    for number, row in enumerate(rows):
        plain, changed = visitor.outputs[number]
        torch.testing.assert_close(plain, whole(made, row), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(changed, whole(made, row, other), rtol=1e-5, atol=1e-5)
        assert (plain - changed).abs().max() > 1e-3


@pytest.mark.parametrize("limit", [1, 20_000])
def test_where_parts_end_changes_nothing(models, monkeypatch, limit):
    made = models("qwen3_moe")
    rows = made.rows(*SIZES)
    expected = walked(made, rows).outputs
    monkeypatch.setattr(walk, "LIMIT", limit)
    found = walked(made, rows).outputs
    assert all(torch.equal(found[row][0], expected[row][0]) for row in expected)


def test_every_weight_is_read_once_and_of_the_embedding_the_rows_that_are_asked_for(models, monkeypatch):
    """Whatever the number of rows and of parts. What is visited is read by the visitor, with a reader of its own."""
    made, read = models("qwen3_moe"), []
    monkeypatch.setattr(walk, "LIMIT", 1)

    def recording(name: str, start: int, stop: int) -> Tensor:
        read.append((name, start, stop))
        return made.checkpoint.read(name, start, stop)

    rows = made.rows(*SIZES)
    walked(made, rows, read=recording)
    embedded = [(start, stop) for name, start, stop in read if name == "model.embed_tokens.weight"]
    assert {i for start, stop in embedded for i in range(start, stop)} == {
        int(i) for r in rows for i in r["input_ids"].flatten()
    }
    rest = [name for name, _, _ in read if name != "model.embed_tokens.weight"]
    assert len(rest) == len(set(rest)) and "model.layers.1.mlp.gate.weight" in rest
    assert not any("experts" in name or "_proj" in name for name in rest)


@dataclass(frozen=True, eq=False)
class Watched(Recipe):
    """A recipe that knows how many bytes of what it and its like gave are still held, and were at most."""

    inner: Recipe
    held: dict[str, int]

    def rows(self, read: Reader, start: int, stop: int) -> Tensor:
        made = self.inner.rows(read, start, stop).clone()
        self._count(made.nbytes)
        weakref.finalize(made, self._count, -made.nbytes)
        return made

    def _count(self, more: int) -> None:
        self.held["now"] += more
        self.held["most"] = max(self.held["most"], self.held["now"])


@pytest.mark.parametrize(("limit", "parts"), [(1, False), (256 << 20, True)])
def test_weights_of_one_part_are_held_at_a_time(models, monkeypatch, limit, parts):
    """With nothing visited all is one part under the usual limit; under the smallest, each weight is alone."""
    made, held = models("bert"), {"now": 0, "most": 0}
    program = made.program.copy()
    program.recipes |= {name: Watched(r.shape, r.dtype, r, held) for name, r in made.program.recipes.items()}
    monkeypatch.setattr(walk, "LIMIT", limit)
    visitor = Computing(program, made.checkpoint.read)
    Walk(program, made.checkpoint.read, set()).run(made.rows((1, 4), (2, 6)), visitor)
    read = {n for n, name in program.weights() if not name.endswith("embeddings.weight")}
    together = [sum(program.recipes[name].nbytes for n, name in program.weights() if n in read and user in n.users)
                for user in program.graph.nodes]  # fmt: skip
    assert held["now"] == 0
    assert (held["most"] > 3 * max(together)) == parts
    if not parts:
        assert held["most"] <= max(together)
