"""What is measured of a block: the weights of its experts, and what they do not explain."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mocomp.models.recognition import feed_forward, measured, recognise
from mocomp.models.recognition.calls import ports, record
from mocomp.models.recognition.candidates import expert_sets
from mocomp.models.recognition.probing import NotAMixture, copied, in_float64
from tests.recognition.blocks import EXPERTS, HIDDEN, FeedForward, Loop, topk_softmax


def experts(count=EXPERTS, **options):
    return nn.ModuleList(FeedForward(**options) for _ in range(count))


def example(*shape):
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(7))


def measurement(block):
    """(block in float64, its experts, port, measurement of the first draw, their bank)."""
    with in_float64():
        trial = copied(block)
        (call,) = record(trial, [{"x": example(2, 5)}], [""])[""]
        port, found = ports(call)[0], expert_sets(trial)[0]
        draw = measured.draws(trial, call, port, found.count)[0]
        feed_forward.randomise(trial, found, torch.Generator().manual_seed(0))
        run = measured.measure(trial, found, port, draw)
        error_of = feed_forward.alone(trial, found, HIDDEN, HIDDEN)
        kind, _ = feed_forward.identify(trial, found, HIDDEN, HIDDEN, error_of)
        return trial, kind, run, kind.bank(trial, found)


@pytest.mark.parametrize("count", [EXPERTS, 3 * HIDDEN])
def test_measured_weights_are_those_of_the_router(count):
    """With more experts than hidden numbers too, where one run would have too few equations."""
    trial, kind, run, bank = measurement(Loop(experts(count)))
    with in_float64():
        shares, left = measured.solve(run, kind.expert, bank)
        ids, weights = topk_softmax(trial.gate(run.draw.tokens), 2)
        expected = torch.zeros_like(shares.weights).scatter(1, ids, weights)
    assert left < measured.EXPLAINED and not run.y0.any()
    torch.testing.assert_close(shares.weights, expected, rtol=0, atol=1e-9)
    assert len(run.parts) == -(-count // (HIDDEN // 2))


def test_the_rest_is_what_is_there_without_experts():
    rest = FeedForward(width=20)
    trial, _, run, _ = measurement(Loop(experts(), rest=rest))
    with in_float64():
        expected = trial.rest(run.draw.tokens)
    torch.testing.assert_close(run.y0, expected, rtol=1e-12, atol=1e-12)


class Before(nn.Module):
    """Each expert is given the token times its weight (as Llama 4 does it)."""

    def __init__(self, act):
        super().__init__()
        self.experts = experts(act=act, gated=False)
        self.gate = nn.Linear(HIDDEN, EXPERTS, bias=False)

    def forward(self, x):
        p = F.softmax(self.gate(x), -1)
        return sum(expert(x * p[..., e, None]) for e, expert in enumerate(self.experts))


def test_a_weight_before_the_expert_is_refused_where_it_matters():
    _, kind, run, bank = measurement(Before(F.silu))
    with in_float64():
        assert measured.solve(run, kind.expert, bank)[1] > 1e-3
    refused = recognise(Before(F.silu), [{"x": example(2, 5)}])
    assert not refused.blocks and "no weights times its experts" in refused.refused[0].reason
    # relu(w x) is w relu(x) for a weight that is not negative
    (found,) = recognise(Before(F.relu), [{"x": example(2, 5)}]).blocks
    assert found.router is not None and found.router.k == EXPERTS


class Normalised(nn.Module):
    """The sum of what the experts give, divided by its own norm."""

    def __init__(self):
        super().__init__()
        self.loop = Loop(experts(20))

    def forward(self, x):
        y = self.loop(x)
        return y / y.norm(dim=-1, keepdim=True).clamp(min=0.1)


def test_what_does_not_add_up_is_refused():
    """The loop inside is a mixture; the module around it is none."""
    with pytest.raises(NotAMixture, match="does not add up"):
        measurement(Normalised())
    (found,) = recognise(Normalised(), [{"x": example(2, 5)}]).blocks
    assert found.name == "loop"


def test_a_module_that_is_two_experts_is_captured_exactly():
    one, other = FeedForward(), FeedForward()
    block = Loop(nn.ModuleList([one, other, one, other]))
    (found,) = recognise(block, [{"x": example(2, 5)}]).blocks
    assert found.error < 1e-9 and block.experts[0] is block.experts[2]


def test_tied_parameters_of_two_experts_are_captured_exactly():
    block = Loop(experts())
    block.experts[1].down.weight = block.experts[0].down.weight
    recognition = recognise(block, [{"x": example(2, 5)}])
    (found,) = recognition.blocks
    assert found.error < 1e-9 and block.experts[1].down.weight is block.experts[0].down.weight


class Masked(nn.Module):
    """A block whose second argument decides: 0 for tokens that no expert may have, or none at all."""

    def __init__(self, reads):
        super().__init__()
        self.block, self.reads = Loop(experts()), reads

    def forward(self, x, mask):
        y = self.block(x)
        return y * mask[..., None].to(y.dtype) if self.reads else y


def test_another_argument_that_matters_is_seen():
    call = {"x": example(2, 5), "mask": torch.ones(2, 5, dtype=torch.int64)}
    for reads in (True, False):
        with in_float64():
            trial = copied(Masked(reads))
            (recorded,) = record(trial, [call], [""])[""]
            port = ports(recorded)[0]
            draw = measured.draws(trial, recorded, port, EXPERTS)[0]
            assert measured.depends_on_more(trial, recorded, port, [draw]) is reads
            assert draw.kwargs["mask"].shape == draw.x.shape[:-1]
