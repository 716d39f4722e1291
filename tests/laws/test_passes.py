"""What holds of every pass; adding a file to mocomp/passes adds its tests."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from mocomp.experts.ffn import FFN
from mocomp.ir.stages import Stage
from mocomp.ir.text import print_program
from mocomp.passes import Numerics, Pass, Receipt, run
from mocomp.passes.clean import Clean
from mocomp.passes.common_subexpressions import CommonSubexpressions
from mocomp.passes.expand_experts import ExpandExperts
from mocomp.passes.fold_weights import FoldWeights
from mocomp.passes.fuse_routing import FuseRouting
from mocomp.registry import discover
from tests.programs import EXPERTS, HIDDEN, Formula, Traced, mixture, trace, trace_checkpoint

EVERY = discover("mocomp.passes", "Pass")
BY_PLAN = ("insert_experts", "insert_depth", "quantize_weights", "fuse_quantized")
"""Passes that make a model another one, which a plan describes, or ask for one; `tests/passes` holds them to that model."""
KINDS = {name: kind for name, kind in EVERY.items() if name not in BY_PLAN}
BEFORE = {
    Stage.TRACED: [],
    Stage.CANONICAL: [Clean()],
    Stage.ROUTED: [Clean(), FoldWeights(), CommonSubexpressions(), FuseRouting()],
}
BEFORE_ALSO = {"expand_routes": [ExpandExperts(taken=lambda expert: False)]}
"""A route that says the experts of a mixture stays as it is; only after the mixture's is there one to expand."""
LARGEST = {Numerics.EXACT: 0.0, Numerics.REASSOCIATES: 2e-6, Numerics.APPROXIMATES: 1e-2}


def softmax(m: Formula, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As Mixtral writes it, with a cast and a dropout that do nothing and a factor that does."""
    weights, ids = torch.topk(torch.softmax(logits.float(), -1), 2, -1)
    weights = nn.functional.dropout(weights / weights.sum(-1, keepdim=True), 0.1, False)
    return ids, 2.5 * weights


def sigmoid(m: Formula, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As DeepSeek-V3 writes it, with a mask that is filled in place."""
    scores = logits.sigmoid()
    choice = scores + m.bias
    groups = choice.view(-1, 4, EXPERTS // 4).topk(2, -1)[0].sum(-1)
    mask = torch.zeros_like(groups).scatter_(1, groups.topk(2, -1)[1], 1)
    mask = mask.unsqueeze(-1).expand(-1, 4, EXPERTS // 4).reshape(-1, EXPERTS)
    ids = choice.masked_fill(~mask.bool(), float("-inf")).topk(2, -1)[1]
    weights = logits.sigmoid().gather(1, ids)
    return ids, weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5


def unknown(m: Formula, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A router of tomorrow."""
    weights, ids = logits.square().topk(2, -1)
    return ids, weights / (1 + weights)


FORMULAS = {
    "softmax": lambda: mixture(softmax),
    "sigmoid": lambda: mixture(sigmoid, expert=FFN("relu2"), bias=(EXPERTS,)),
    "unknown": lambda: mixture(unknown, logits=lambda m, x: x @ m.turned.T.clone().T, turned=(HIDDEN, EXPERTS)),
}


PROGRAMS = [*FORMULAS, "gpt_oss", "mixtral"]


@dataclass
class Outcome:
    """A pass, the program before it (as text too, since it should not change any more), and a copy of it after."""

    step: Pass
    before: Traced
    text: str
    after: Traced
    receipt: Receipt


@pytest.fixture(scope="module")
def outcomes(checkpoint) -> Callable[[str, str], Outcome]:
    """outcomes(pass, program), each made once."""

    @functools.cache
    def traced(name: str) -> Traced:
        return trace(FORMULAS[name]()) if name in FORMULAS else trace_checkpoint(checkpoint(name))

    @functools.cache
    def prepared(name: str, kind: str) -> Traced:
        copy = traced(name).copy()
        for step in [*BEFORE[KINDS[kind].needs], *BEFORE_ALSO.get(kind, [])]:
            run(step, copy.program)
        return copy

    @functools.cache
    def outcome(kind: str, name: str) -> Outcome:
        step = sample(KINDS[kind])
        before = prepared(name, kind)
        text, after = print_program(before.program), before.copy()
        return Outcome(step, before, text, after, run(step, after.program))

    return outcome


def sample(kind: type[Pass]) -> Pass:
    """The pass with its default options; one that asks which experts a target has an operator for hears: none."""
    required = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    return kind(**dict.fromkeys(required, lambda expert: False))


@pytest.fixture(params=[(kind, name) for kind in KINDS for name in PROGRAMS], ids="-".join)
def outcome(request, outcomes) -> Outcome:
    return outcomes(*request.param)


def test_numbers_stay_as_the_pass_declares(outcome):
    for expected, actual in zip(outcome.before.run(), outcome.after.run(), strict=True):
        assert float((actual - expected).abs().max() / expected.abs().max()) <= LARGEST[outcome.step.numerics]


def test_a_second_run_changes_nothing(outcome):
    again = outcome.after.copy()
    assert run(outcome.step, again.program).changed == 0
    assert print_program(again.program) == print_program(outcome.after.program)


def test_the_count_is_honest(outcome):
    """A count of 0 with another graph would hide the pass from the report."""
    assert (outcome.receipt.changed > 0) == (print_program(outcome.after.program) != outcome.text)


def test_weights_are_left_as_they_are(outcome):
    """Recipes may be added and dropped; one that stays is the same, and what it reads was not written to."""
    before, after = outcome.before.program.recipes, outcome.after.program.recipes
    assert all(after[name] is before[name] for name in before.keys() & after.keys())
    versions = [tensor._version for tensor in outcome.after.tensors.values()]
    outcome.after.run()
    assert versions == [tensor._version for tensor in outcome.after.tensors.values()]


def test_the_copy_of_a_program_is_its_own(outcome):
    assert print_program(outcome.before.program) == outcome.text


def test_every_node_knows_its_value(outcome):
    """Later passes and the lowering ask each node for its shape and type."""
    for node in outcome.after.program.graph.nodes:
        assert node.op == "output" or node.meta.get("val") is not None, node.format_node()


@pytest.mark.parametrize("kind", EVERY)
def test_the_docstring_shows_before_and_after(kind):
    assert "->" in inspect.getdoc(EVERY[kind]).split("\n\n")[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_pass_does_something_here(kind, outcomes):
    """A law that only ever sees idle passes would prove nothing."""
    assert any(outcomes(kind, name).receipt.changed for name in PROGRAMS)
