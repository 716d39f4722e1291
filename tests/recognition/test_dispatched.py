"""Experts that are given their slices: captured whatever dispatches to them, on the axis that is theirs."""

import pytest
import torch
from torch import nn

from mocomp.models.recognition import recognise
from tests.recognition.blocks import EXPERTS, HIDDEN, FeedForward


class Slices(nn.Module):
    """Expert e for slice e along `axis`; `order` names another expert for each slice."""

    def __init__(self, axis, order=range(EXPERTS), wrap=False):
        super().__init__()
        self.experts = nn.ModuleList(FeedForward(bias=True) for _ in range(EXPERTS))
        self.axis, self.order, self.wrap = axis, order, wrap

    def forward(self, x):
        parts = x.unbind(self.axis)
        y = torch.stack([self.experts[e](part) for e, part in zip(self.order, parts, strict=True)], self.axis)
        return (y, None) if self.wrap else y


class PackedSlices(nn.Module):
    """The same of packed parameters, two axes of two experts each."""

    def __init__(self):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(2, 2, HIDDEN, 12) / 4)
        self.w2 = nn.Parameter(torch.randn(2, 2, 12, HIDDEN) / 4)

    def forward(self, x):
        h = torch.relu(torch.einsum("abtsh,abhf->abtsf", x, self.w1))
        return torch.einsum("abtsf,abfh->abtsh", h, self.w2)


class Soft(nn.Module):
    """Soft slots (Puigcerver 2023): every slot is a mean of all tokens, every token a mean of all slots."""

    def __init__(self, experts, lead, slots=3):
        super().__init__()
        self.experts, self.lead, self.slots = experts, lead, slots
        self.phi = nn.Parameter(torch.randn(HIDDEN, EXPERTS * slots))

    def forward(self, x):
        z = x @ self.phi
        given = z.softmax(1).mT @ x
        slots = given.reshape(x.shape[0], EXPERTS, self.slots, HIDDEN)
        slots = slots.movedim(1, 0) if self.lead != 1 else slots
        slots = slots.reshape(2, 2, *slots.shape[1:]) if self.lead == 2 else slots
        y = self.experts(slots)
        y = y[0] if isinstance(y, tuple) else y
        y = y.flatten(0, 1) if self.lead == 2 else y
        y = y.movedim(0, 1) if self.lead != 1 else y
        return z.softmax(-1) @ y.reshape(x.shape[0], -1, HIDDEN)


CASES = {
    "axis 0": lambda: Soft(Slices(0), 0),
    "axis 1": lambda: Soft(Slices(1), 1),
    "a tuple": lambda: Soft(Slices(1, wrap=True), 1),
    "two axes, packed": lambda: Soft(PackedSlices(), 2),
}


def example(batch, length, seed=0):
    return torch.randn(batch, length, HIDDEN, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", CASES)
def test_experts_of_slices_are_captured_and_what_is_around_them_stays(case):
    torch.manual_seed(0)
    model = CASES[case]().eval()
    recognition = recognise(model, [{"x": example(2, 5)}])
    (found,) = recognition.blocks
    assert (found.name, found.how, found.router, recognition.refused) == ("experts", "dispatched", None, [])
    twin = model.double()
    other = example(3, 9, 1).double()
    with torch.no_grad():
        expected = twin(other)
        with recognition.install(twin):
            torch.testing.assert_close(twin(other), expected, rtol=1e-9, atol=1e-9)


def test_another_expert_for_a_slice_is_refused():
    model = Soft(Slices(1, order=(1, 0, 2, 3)), 1)
    recognition = recognise(model, [{"x": example(2, 5)}])
    assert not recognition.blocks


def test_a_canonical_form_of_the_wrong_axis_does_not_pass():
    """Where the number of sequences is that of the experts too, the shapes alone do not tell the axis."""
    model = Soft(Slices(1), 1)
    (found,) = recognise(model, [{"x": example(EXPERTS, 5)}]).blocks
    assert found.form.axes == (1,)


def test_observed_choices_are_the_slices():
    model = Soft(Slices(1), 1)
    (found,) = recognise(model, [{"x": example(2, 5)}]).blocks
    slots = torch.randn(2, EXPERTS, 3, HIDDEN)
    with torch.no_grad():
        x, ids, weights, y = found.observe(model.experts, (slots,), {})
    assert ids.reshape(2, EXPERTS, 3)[1, :, 2].tolist() == [0, 1, 2, 3] and bool((weights == 1).all())
    torch.testing.assert_close(x.reshape(slots.shape), slots)
    torch.testing.assert_close(y.reshape(slots.shape), model.experts(slots), rtol=1e-4, atol=1e-5)
