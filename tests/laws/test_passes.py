"""What holds of every pass; adding a file to mocomp/passes adds its tests."""

import dataclasses
import functools
import inspect
from collections.abc import Callable

import pytest
import torch
from torch import nn

from mocomp.experts.ffn import FFN
from mocomp.ir import stages
from mocomp.ir.stages import Stage
from mocomp.ir.text import print_program
from mocomp.passes import Numerics, Pass, run
from mocomp.passes.clean import Clean
from mocomp.passes.common_subexpressions import CommonSubexpressions
from mocomp.passes.fold_weights import FoldWeights
from mocomp.passes.fuse_routing import FuseRouting
from mocomp.registry import discover
from tests.programs import EXPERTS, HIDDEN, Formula, Traced, mixture, trace, trace_checkpoint

KINDS = discover("mocomp.passes", "Pass")
BEFORE = {
    Stage.TRACED: [],
    Stage.CANONICAL: [Clean()],
    Stage.ROUTED: [Clean(), FoldWeights(), CommonSubexpressions(), FuseRouting()],
}
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
Prepare = Callable[[str, Stage], Traced]


@pytest.fixture(scope="module")
def prepare(checkpoint) -> Prepare:
    """prepare(name, stage): a program of its own at that stage."""

    @functools.cache
    def traced(name: str) -> Traced:
        return trace(FORMULAS[name]()) if name in FORMULAS else trace_checkpoint(checkpoint(name))

    @functools.cache
    def advanced(name: str, stage: Stage) -> Traced:
        copy = traced(name).copy()
        for step in BEFORE[stage]:
            run(step, copy.program)
        return copy

    return lambda name, stage: advanced(name, stage).copy()


def sample(kind: type[Pass]) -> Pass:
    """The pass with its default options; one that asks which experts a target has an operator for hears: none."""
    required = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    return kind(**dict.fromkeys(required, lambda expert: False))


@pytest.fixture(params=KINDS)
def step(request) -> Pass:
    return sample(KINDS[request.param])


@pytest.fixture(params=PROGRAMS)
def traced(request, step, prepare) -> Traced:
    return prepare(request.param, step.needs)


def test_numbers_stay_as_the_pass_declares(step, traced):
    before = traced.run()
    run(step, traced.program)
    for expected, actual in zip(before, traced.run(), strict=True):
        assert float((actual - expected).abs().max() / expected.abs().max()) <= LARGEST[step.numerics]


def test_a_second_run_changes_nothing(step, traced):
    run(step, traced.program)
    if step.gives != step.needs:
        pytest.skip("it leaves its own stage") if _is_illegal(traced, step.needs) else None
    text = print_program(traced.program)
    assert run(step, traced.program).changed == 0
    assert print_program(traced.program) == text


def _is_illegal(traced: Traced, stage: Stage) -> bool:
    try:
        stages.check(traced.program, stage, "")
    except Exception:
        return True
    return False


def test_a_pass_that_changes_nothing_says_so(step, traced):
    """A count of 0 with another graph would hide the pass from the report."""
    text = print_program(traced.program)
    assert run(step, traced.program).changed > 0 or print_program(traced.program) == text


def test_weights_are_left_as_they_are(step, traced):
    """Recipes may be added and dropped; one that stays is the same, and what it reads was not written to."""
    recipes, versions = dict(traced.program.recipes), {name: t._version for name, t in traced.tensors.items()}
    run(step, traced.program)
    kept = recipes.keys() & traced.program.recipes.keys()
    assert all(traced.program.recipes[name] is recipes[name] for name in kept)
    traced.run()
    assert versions == {name: t._version for name, t in traced.tensors.items()}


def test_the_copy_of_a_program_is_its_own(step, traced):
    text = print_program(traced.program)
    run(step, traced.copy().program)
    assert print_program(traced.program) == text


def test_every_node_knows_its_value(step, traced):
    """Later passes and the lowering ask each node for its shape and type."""
    run(step, traced.program)
    for node in traced.program.graph.nodes:
        assert node.op == "output" or node.meta.get("val") is not None, node.format_node()


def test_the_docstring_shows_before_and_after(step):
    assert "->" in inspect.getdoc(type(step)).split("\n\n")[0]
    assert dataclasses.fields(step) == () or dataclasses.is_dataclass(step)


def test_every_pass_does_something_here(step, prepare):
    """A law that only ever sees idle passes would prove nothing."""
    assert any(run(step, prepare(name, step.needs).program).changed for name in PROGRAMS)
