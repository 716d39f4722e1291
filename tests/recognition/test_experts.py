"""Which kind of expert a set of experts is: every layout and activation, and what is none."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mocomp.experts import ACTIVATIONS
from mocomp.experts.ffn import FFN
from mocomp.experts.glu import GLU
from mocomp.models.recognition import feed_forward
from mocomp.models.recognition.candidates import expert_sets
from mocomp.models.recognition.probing import NotAMixture, copied, in_float64
from tests.recognition.blocks import HIDDEN, FeedForward, Fused


class Scaled(nn.Module):
    """Gate and up in one product, up first, and a vector on what comes of them (as ST-MoE's published code has it)."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(HIDDEN, 24)
        self.scale = nn.Parameter(torch.ones(12))
        self.second = nn.Linear(12, HIDDEN)

    def forward(self, x):
        up, gate = self.first(x).chunk(2, -1)
        return self.second(F.gelu(gate) * up * self.scale)


class Normed(nn.Module):
    """No feed-forward alone: it starts with a norm."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.net = FeedForward(bias=True)

    def forward(self, x):
        return self.net(self.norm(x))


def identified(*experts):
    """The kind of a list of experts, asked alone, in a holder that has random weights afterwards."""
    holder = nn.ModuleList(experts)
    with in_float64():
        trial = copied(holder)
        (found,) = expert_sets(trial)
        feed_forward.randomise(trial, found, torch.Generator().manual_seed(0))
        error_of = feed_forward.alone(trial, found, HIDDEN, HIDDEN)
        kind, error = feed_forward.identify(trial, found, HIDDEN, HIDDEN, error_of)
        assert error < feed_forward.EXACT
        return kind, error_of, kind.bank(trial, found)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("gated", [False, True])
def test_every_activation_is_told_from_the_others(name, gated):
    kind, error_of, bank = identified(*(FeedForward(ACTIVATIONS[name], gated) for _ in range(2)))
    made = GLU if gated else FFN
    with in_float64():
        fitting = [other for other in ACTIVATIONS if error_of(made(other), bank) < feed_forward.EXACT]
    assert fitting == [name]
    named = kind.expert.activation if kind.expert.activation != "silu" or name == "silu" else "quick_gelu"
    assert (type(kind.expert), named) == (made, name)


@pytest.mark.parametrize("order", ["gate first", "up first", "gate even", "up even"])
def test_gate_and_up_in_one_product_in_any_order(order):
    kind, error_of, _ = identified(*(Fused(order) for _ in range(3)))
    assert kind.roles.fused == order
    with in_float64():
        holder = copied(nn.ModuleList(Fused(order) for _ in range(3)))
        (found,) = expert_sets(holder)
        for other in {"gate first", "up first", "gate even", "up even"} - {order}:
            wrong = replace(kind.roles, fused=other).bank(found.stacks(holder))
            assert error_of(kind.expert, wrong) > 1e-3


def test_square_matrices_are_told_by_what_they_do():
    kind, _, _ = identified(*(FeedForward(bias=True, width=HIDDEN) for _ in range(2)))
    assert (kind.roles.gate, kind.roles.up, kind.roles.down) == ("gate.weight", "up.weight", "down.weight")
    assert (kind.roles.bias_gate, kind.roles.bias_up, kind.roles.bias_down) == ("gate.bias", "up.bias", "down.bias")


def test_swapped_gate_and_up_do_not_pass():
    kind, error_of, _ = identified(*(FeedForward() for _ in range(2)))
    with in_float64():
        holder = copied(nn.ModuleList(FeedForward() for _ in range(2)))
        (found,) = expert_sets(holder)
        swapped = replace(kind.roles, gate=kind.roles.up, up=kind.roles.gate).bank(found.stacks(holder))
        assert error_of(kind.expert, swapped) > 1e-2


def test_a_vector_on_the_way_is_part_of_the_second_product():
    kind, _, bank = identified(*(Scaled() for _ in range(2)))
    assert kind.roles.scale == "scale" and kind.roles.fused == "up first"
    assert bank.w_out.shape == (2, HIDDEN, 12)


def test_unequal_widths_are_filled_up():
    widths = (8, 12, 20)
    kind, _, bank = identified(*(FeedForward(bias=True, width=width) for width in widths))
    assert bank.w_in.shape == (3, 2 * 20, HIDDEN) and bank.w_out.shape == (3, HIDDEN, 20)
    for e, width in enumerate(widths):
        assert not bank.w_out[e, :, width:].any() and bank.w_out[e, :, :width].all()
    assert isinstance(kind.expert, GLU)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Normed, "no feed-forward|no known kind"),
        (lambda: FeedForward(lambda x: x * torch.tanh(F.softplus(x))), "the nearest, .* is off by"),
        (lambda: FeedForward(lambda x: F.silu(x) + 1e-3 * x), "the nearest, .*silu.* is off by"),
    ],
)
def test_what_is_no_feed_forward_is_refused_with_the_nearest_miss(make, reason):
    with pytest.raises(NotAMixture, match=reason):
        identified(make(), make())


def test_layers_and_attentions_are_no_candidates():
    model = nn.Sequential(*(nn.TransformerEncoderLayer(HIDDEN, 2, 24, batch_first=True) for _ in range(3)))
    assert all(not found.holder or found.holder.count(".") for found in expert_sets(model))
    attention = nn.ModuleDict({name: nn.Linear(HIDDEN, HIDDEN) for name in "qkvo"})
    assert expert_sets(attention) == []
