"""What holds of every scorer, by discovery, and each against its paper's formula, in numpy, token by token."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mocomp.ir.specs import parse, spell
from mocomp.lowering.exported_function import exported
from mocomp.registry import discover
from mocomp.scorers import Reads, Scorer
from mocomp.scorers.codebook import Codebook
from mocomp.scorers.competition import Competition
from mocomp.scorers.cosine import Cosine
from mocomp.scorers.factored import Factored
from mocomp.scorers.linear import Linear
from mocomp.scorers.masked import Masked
from mocomp.scorers.mlp import MLP
from mocomp.scorers.norms import Norms
from mocomp.scorers.pooled import Pooled
from mocomp.scorers.pre_gated import PreGated
from mocomp.scorers.product_key import ProductKey
from mocomp.scorers.recurrent import Recurrent
from mocomp.scorers.side_input import SideInput
from mocomp.scorers.table import Table

KINDS: dict[str, type[Scorer]] = discover("mocomp.scorers", "Scorer")
EXAMPLES = {spell(scorer): scorer for kind in KINDS.values() for scorer in kind.examples()}
SEQUENCES, LENGTH = 2, 7


def draw(scorer: Scorer, size: tuple[int, ...] = (SEQUENCES, LENGTH), dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x and what the scorer reads, for so many tokens; the weights do not depend on how many."""
    reads, generator = scorer.reads(), torch.Generator().manual_seed(1)
    weights = [torch.randn(shape, generator=generator, dtype=dtype) for shape in reads.weights.values()]
    given = [torch.randn(*size, scorer.hidden, generator=generator, dtype=dtype)]
    for name, shape in reads.given.items():
        if name in reads.below:
            given.append(torch.randint(0, reads.below[name], (*size, *shape), generator=generator))
        else:
            given.append(torch.randn(*size, *shape, generator=generator, dtype=dtype))
    return [*given, *weights]


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.fixture(params=EXAMPLES, ids=str)
def scorer(request) -> Scorer:
    return EXAMPLES[request.param]


def test_gives_a_logit_for_each_expert(scorer):
    z = scorer.scores(*draw(scorer))
    assert z.shape == (SEQUENCES, LENGTH, scorer.columns) and z.dtype == torch.float64
    assert not z.isnan().any() and (z > float("-inf")).any(-1).all()


def test_is_what_it_is_spelled_as(scorer):
    assert parse("mocomp.scorers", "Scorer", spell(scorer)) == scorer


def test_everything_it_reads_matters(scorer):
    """Each given and each weight, as its `reads` names them; x does not where another layer's is read in its place."""
    inputs = draw(scorer)
    before = scorer.scores(*inputs)
    for i, value in enumerate(inputs):
        changed = [t.clone() for t in inputs]
        changed[i] = value.roll(1, 0 if value.shape[0] > 1 else -1) if value.dtype == torch.int64 else -value + 0.5
        read = i > 0 or not isinstance(scorer, (PreGated, Table, Competition))
        assert torch.equal(scorer.scores(*changed), before) != read, i


def test_tokens_are_apart_as_it_says(scorer):
    """A token alone has the scores that it has in its sequence, exactly where the scorer is causal; so have sequences."""
    inputs, count = draw(scorer), 1 + len(scorer.reads().given)
    together = scorer.scores(*inputs)
    sequences = [scorer.scores(*(t[b : b + 1] for t in inputs[:count]), *inputs[count:]) for b in range(SEQUENCES)]
    assert same(torch.cat(sequences), together)
    tokens = [scorer.scores(*(t[:, s : s + 1] for t in inputs[:count]), *inputs[count:]) for s in range(LENGTH)]
    assert same(torch.cat(tokens, 1), together) == scorer.causal


def test_takes_tokens_without_sequences(scorer):
    """[T, H] as well as [B, S, H]."""
    if not scorer.causal:
        return
    inputs, count = draw(scorer), 1 + len(scorer.reads().given)
    flat = scorer.scores(*(t.flatten(0, 1) for t in inputs[:count]), *inputs[count:])
    assert same(flat, scorer.scores(*inputs).flatten(0, 1))


def test_all_become_standard_operators():
    """Those that take no ids, traced together once: an ONNX function for as many sequences and tokens as there are."""
    scorers = [scorer for scorer in EXAMPLES.values() if not scorer.reads().below]
    inputs = [draw(scorer, dtype=torch.float32) for scorer in scorers]
    rows = [1 + len(scorer.reads().given) for scorer in scorers]

    def scores(*tensors: Tensor) -> tuple[Tensor, ...]:
        rest = list(tensors)
        return tuple(s.scores(*(rest.pop(0) for _ in own)) for s, own in zip(scorers, inputs, strict=True))

    shapes = [
        (None, None, *t.shape[2:]) if i < count else tuple(t.shape)
        for own, count in zip(inputs, rows, strict=True)
        for i, t in enumerate(own)
    ]
    outputs = [f"logits{i}" for i in range(len(scorers))]
    made = exported(scores, shapes, [f"in{i}" for i in range(len(shapes))], outputs, "Scores", 21)
    assert {node.domain for node in made} == {""} and len(made.outputs) == len(scorers) > 10


# A token: x [H], what is given of it, the weights -> z [E]; or all tokens of a sequence.


def cosine(x: Any, projection: Any, vectors: Any) -> list[float]:
    p = projection @ x
    return [p @ e / np.linalg.norm(p) / np.linalg.norm(e) / 0.07 for e in vectors]


def nearest(x: Any, projection: Any, codes: Any) -> list[float]:
    return [max(-(((projection @ x - code) ** 2).sum()) for code in own) for own in codes]


def pairs(x: Any, first: Any, second: Any) -> list[float]:
    return [a @ x + b @ x for a in first for b in second]


def halves(x: Any, query: Any, first: Any, second: Any) -> list[float]:
    q = query @ x
    return [k @ q[:3] for k in first] + [k @ q[3:] for k in second]


FORMULAS: list[tuple[Scorer, Callable[..., Any]]] = [
    (Linear(16, 8, bias=True), lambda x, w, b: [row @ x + b_e for row, b_e in zip(w, b, strict=True)]),
    (MLP(16, 8, width=5), lambda x, a, b: b @ np.tanh(a @ x)),
    (Cosine(16, 8), cosine),
    (SideInput(16, 8), lambda x, s, w: [row[:16] @ x + row[16:] @ s for row in w]),
    (Codebook(16, 8), nearest),
    (Table(16, 8), lambda x, i, table: table[i]),
    (Masked(16, 8), lambda x, i, w, allowed: [w[e] @ x if allowed[i, e] > 0 else -np.inf for e in range(8)]),
    (Norms(16, 8), lambda x, w: [np.sqrt(((w_e @ x) ** 2).sum()) for w_e in w]),
    (Competition(16, 8), lambda x, outputs: [np.sqrt((f**2).sum()) for f in outputs]),
    (PreGated(16, 8), lambda x, before, w: w @ before),
    (Factored(16, 8), pairs),
    (ProductKey(16, 9), halves),
]


@pytest.mark.parametrize(("scorer", "formula"), FORMULAS, ids=lambda value: getattr(value, "name", ""))
def test_the_scores_are_those_of_the_paper(scorer, formula):
    inputs, count = draw(scorer), 1 + len(scorer.reads().given)
    arrays = [t.numpy() for t in inputs]
    expected = [[formula(*(a[b, s] for a in arrays[:count]), *arrays[count:]) for s in range(LENGTH)] for b in range(SEQUENCES)]
    np.testing.assert_allclose(scorer.scores(*inputs).numpy(), np.array(expected), rtol=1e-10, atol=1e-12)


def test_the_recurrent_one_is_torchs_cell_over_the_layers():
    """Three layers, each with weights of its own; the first is given zeros."""
    scorer, states = Recurrent(16, 8), torch.zeros(5, 6, dtype=torch.float64)
    expected = states
    for layer in range(3):
        x, _, *weights = draw(scorer, (5,))
        weights = [w + layer for w in weights]
        cell = nn.GRUCell(6, 6).double()
        for name, w in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), weights[1:5], strict=True):
            getattr(cell, name).data = w
        with torch.no_grad():
            expected = cell(x @ weights[0].T, expected)
        assert same(scorer.scores(x, states, *weights), expected @ weights[-1].T)
        states = scorer.state(x, states, *weights)
        assert same(states, expected)


def test_the_pooled_one_scores_the_mean_token():
    x, w = draw(Pooled(16, 8))
    for b, z in enumerate(Pooled(16, 8).scores(x, w)):
        assert same(z, (w @ (sum(x[b]) / LENGTH)).expand(LENGTH, -1))


def test_every_kind_has_a_formula():
    assert {scorer.name for scorer, _ in FORMULAS} | {"recurrent", "pooled"} == set(KINDS)


def test_reads_is_told_by_name():
    """The order is that of the arguments: what is given of tokens, then weights."""
    reads = Recurrent(16, 8).reads()
    assert list(reads.given) == ["state"] and list(reads.weights)[-1] == "weight" and reads.below == {}
    assert Reads() == Reads({}, {}, {})
