"""A router of every kind, and experts behind it, lowered to each target and run at numbers of tokens not traced.

It is the last example that a kind gives. They stand in one program beside each other, which costs one trace and one
session; each has an output of its own.
Dimension letters: B sequences of S tokens, H hidden, F expert width, E experts.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mocomp.experts.glu import GLU
from mocomp.ir.program import Program
from mocomp.ir.specs import spell
from mocomp.opening import open_target
from mocomp.passes import run
from mocomp.passes.clean import Clean
from mocomp.passes.common_subexpressions import CommonSubexpressions
from mocomp.registry import discover
from mocomp.targets import Runner
from mocomp.weights import recipes
from mocomp.weights.writer import Writer
from tests.laws.router_laws import LENGTH, SEQUENCES, Case

HIDDEN, WIDTH = 6, 5
RUN_ELSEWHERE = {
    "auxiliary", "expert_choice", "sigmoid_topk", "softmax_bias_topk", "softmax_topk", "sparse_mixer", "topk_softmax",
    "topk_uniform",
}  # fmt: skip
"""Kinds that tests/targets/test_portable.py and its neighbours run, whole and in groups."""
KINDS = {name: kind for name, kind in discover("mocomp.routers", "Router").items() if name not in RUN_ELSEWHERE}
CASES = [Case(list(kind.examples())[-1]) for kind in KINDS.values()]
SIZES = ((SEQUENCES, LENGTH), (2, 5), (1, 9), (1, 1))
"""Sequences and their tokens; the first are those of the trace."""


class Mixture(torch.nn.Module):
    """The experts of a case, routed by its router."""

    def __init__(self, case: Case):
        super().__init__()
        self.case, generator = case, torch.Generator().manual_seed(7)
        w_in = torch.randn(case.experts, 2 * WIDTH, HIDDEN, generator=generator)
        w_out = torch.randn(case.experts, HIDDEN, WIDTH, generator=generator)
        self.w_in, self.w_out = (torch.nn.Parameter(w, requires_grad=False) for w in (w_in, w_out))

    def forward(self, h: torch.Tensor, logits: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """h [B, S, H], logits [B, S, C], tensors -> y [B * S, H]."""
        router, shapes = self.case.router, self.case.example.tensors
        own = [t if shape[0] or router.per_sequence else t.flatten(0, 1) for t, shape in zip(tensors, shapes, strict=True)]
        logits = logits if router.per_sequence else logits.flatten(0, 1)
        ids, weights = torch.ops.mocomp.route(logits, own, spell(router))
        return torch.ops.mocomp.experts(h.flatten(0, 1), ids, weights, self.w_in, None, self.w_out, None, spell(GLU()))


class Mixtures(torch.nn.Module):
    """One mixture for each case, all of the same tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.of = torch.nn.ModuleList(Mixture(case) for case in CASES)

    def forward(self, h: torch.Tensor, *given: torch.Tensor) -> list[torch.Tensor]:
        """h, then for each case its logits and tensors -> y of each case."""
        rest = list(given)
        counts = [1 + len(case.example.tensors) for case in CASES]
        return [mixture(h, *(rest.pop(0) for _ in range(count))) for mixture, count in zip(self.of, counts, strict=True)]


def inputs(size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """What `Mixtures.forward` takes, by name: tokens and logits of other seeds for other sizes."""
    generator = torch.Generator().manual_seed(sum(size))
    found = {"h": torch.randn(*size, HIDDEN, generator=generator)}
    for i, case in enumerate(CASES):
        found[f"logits{i}"] = 3 * torch.randn(*size, case.router.columns(case.experts), generator=generator)
        for j, (rows, *rest) in enumerate(case.example.tensors):
            shape = (*size, *rest) if rows is None else (rows, *rest)
            found[f"tensor{i}_{j}"] = 0.3 * torch.randn(*shape, generator=generator)  # type: ignore[arg-type]
    return found


@pytest.fixture(scope="module")
def program() -> Callable[[], Program]:
    """The trace, a fresh copy for each target."""
    given = inputs(SIZES[0])
    tokens = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    axes = [tokens if value.shape[:2] == SIZES[0] else {} for value in given.values()]
    exported = torch.export.export(Mixtures().eval(), tuple(given.values()), dynamic_shapes=(axes[0], tuple(axes[1:])))
    leaves = {name: recipes.Tensor(tuple(t.shape), t.dtype, name) for name, t in exported.state_dict.items()}
    made = Program(exported, dict(leaves), list(given), [f"y{i}" for i in range(len(CASES))])
    return made.copy


@pytest.fixture(scope="module", params=["onnx", "onnxruntime"])
def runner(request, program, tmp_path_factory) -> Runner:
    target, made = open_target(request.param), program()
    for step in (Clean(), *target.passes(), CommonSubexpressions()):
        run(step, made)
    directory = tmp_path_factory.mktemp(request.param)
    weights = dict(Mixtures().state_dict())
    target.lower(made, directory, Writer(lambda name, start, stop: weights[name][start:stop]))
    return target.open(directory)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_artifact_computes_what_the_routers_say(runner, size):
    given = inputs(size)
    actual = runner.run({name: value.numpy() for name, value in given.items()})
    expected = Mixtures()(*given.values())
    wrong = {}
    for i, (case, y) in enumerate(zip(CASES, expected, strict=True)):
        error = np.abs(actual[f"y{i}"] - y.numpy()).max() / max(float(y.abs().max()), 1e-3)
        if not error < 1e-5:
            wrong[spell(case.router)] = float(error)
    assert wrong == {}
