"""Blocks in models: what they give besides hidden states, several of them, one inside another, and what is refused."""

import pytest
import torch
from torch import nn

from mocomp.models.recognition import recognise
from mocomp.models.recognition.probing import copied, in_float64
from mocomp.routers.softmax_topk import SoftmaxTopK
from tests.recognition.blocks import (
    FeedForward,
    Gathered,
    Loop,
    Packed,
    SigmoidGroups,
    Two,
    agree,
    built,
    example,
    several,
)


class Telling(nn.Module):
    """A block that gives hidden states with something else beside them."""

    def __init__(self, what):
        super().__init__()
        self.block, self.what = Loop(several(FeedForward)), what

    def forward(self, x):
        z = self.block.gate(x)
        asides = {"logits": z.flatten(0, 1), "loss": z.softmax(-1).square().mean(), "none": None, "constant": z.new_zeros(())}
        return {"y": self.block(x) + x, "aside": asides[self.what]}


class Reading(nn.Module):
    """A model that gives what its block tells, or does not."""

    def __init__(self, what, reads):
        super().__init__()
        self.inner, self.reads = Telling(what), reads

    def forward(self, x):
        told = self.inner(x)
        return (told["y"], told["aside"]) if self.reads else told["y"]


@pytest.mark.parametrize("what", ["logits", "loss", "none", "constant"])
@pytest.mark.parametrize("reads", [True, False])
def test_what_a_block_tells_besides_is_kept_where_somebody_reads_it(what, reads):
    model = built(lambda: Reading(what, reads))
    recognition = recognise(model, [{"x": example(2, 5)}])
    twin, x = copied(model), example(3, 4, 1).double()
    with in_float64():
        expected = twin(x)
        with recognition.install(twin):
            actual = twin(x)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    assert len(recognition.blocks) == 1


class Whole(nn.Module):
    """A block with a loss that is no function of what is canonical, all in one forward."""

    def __init__(self, reads):
        super().__init__()
        self.layer, self.reads = WithLoss(), reads

    def forward(self, x):
        y, loss = self.layer(x)
        return (y, loss) if self.reads else y


class WithLoss(Loop):
    def __init__(self):
        super().__init__(several(FeedForward))

    def forward(self, x):
        return super().forward(x), self.gate(x).softmax(-1).square().mean()


def test_a_block_whose_loss_the_model_gives_is_left_as_it_is():
    (found,) = recognise(built(lambda: Whole(False)), [{"x": example(2, 5)}]).blocks
    assert found.name == "layer"
    recognition = recognise(built(lambda: Whole(True)), [{"x": example(2, 5)}])
    assert not recognition.blocks and "reads more of it than hidden states" in recognition.refused[0].reason


def test_one_block_used_twice_is_found_once():
    block = built(lambda: Loop(several(FeedForward)))
    model = Two(block, block)
    recognition = recognise(model, [{"x": example(2, 5)}])
    assert [found.name for found in recognition.blocks] == ["first"]
    agree(model, recognition, 3, 4)


def test_kinds_of_one_model_are_each_their_own():
    model = Two(built(Gathered), Two(built(lambda: Packed(k=1)), built(SigmoidGroups)))
    recognition = recognise(model, [{"x": example(2, 5)}])
    assert [found.name for found in recognition.blocks] == ["first", "second.first", "second.second"]
    assert recognition.blocks[0].router == SoftmaxTopK(2, True)
    agree(model, recognition, 3, 4)


def test_a_mixture_of_mixtures_is_recognised_inside():
    inner = [built(lambda: Loop(several(FeedForward, 3)), seed) for seed in range(2)]
    model = Loop(nn.ModuleList(inner), k=2)
    recognition = recognise(model, [{"x": example(2, 5)}])
    assert [found.name for found in recognition.blocks] == ["experts.0", "experts.1"]
    agree(model, recognition, 3, 4)


def test_observed_choices_are_the_blocks_own():
    block = built(lambda: Loop(several(FeedForward)))
    (found,) = recognise(block, [{"x": example(2, 5)}]).blocks
    x = example(2, 6, 3)
    with torch.no_grad():
        tokens, ids, weights, y = found.observe(block, (x,), {})
        own_ids, own_weights = block.route(block.gate(tokens), 2)
        torch.testing.assert_close(y.reshape(x.shape), block(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(ids.sort(-1).values, own_ids.sort(-1).values)
    torch.testing.assert_close(weights.sort(-1).values, own_weights.sort(-1).values)


class Branches(nn.Module):
    """A block that no input of floats reaches."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = Loop(several(FeedForward)), Loop(several(FeedForward, 5))

    def forward(self, x):
        return self.used(x) if x.is_floating_point() else self.unused(x)


def test_a_block_that_the_example_does_not_reach_is_told():
    recognition = recognise(built(Branches), [{"x": example(2, 5)}])
    assert [found.name for found in recognition.blocks] == ["used"]
    (missed,) = recognition.refused
    assert "no input reaches them" in missed.reason


def test_a_model_that_cannot_be_copied_is_told():
    block = built(lambda: Loop(several(FeedForward)))
    block.made = block.gate.weight * 2  # not a leaf: deepcopy refuses
    (missed,) = recognise(block, [{"x": example(2, 5)}]).refused
    assert missed.name == "" and "cannot be copied" in missed.reason


class Keeping(nn.Module):
    """A mixture whose experts work for the tokens that a mask keeps; how it is told of the mask is the model's affair."""

    def __init__(self):
        super().__init__()
        self.block, self.kept = Loop(several(FeedForward)), None

    def forward(self, x, mask=None):
        mask = self.kept if mask is None else mask["kept"] if isinstance(mask, dict) else mask
        return self.block(x) * (mask != 0)[..., None].to(x.dtype)


class Masking(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.mixture, self.way = Keeping(), way

    def forward(self, x, mask):
        if self.way == "attribute":
            self.mixture.kept = mask
            return x + self.mixture(x)
        return x + self.mixture(x, {"kept": mask} if self.way == "dict" else mask)


@pytest.mark.parametrize("way", ["argument", "dict", "attribute"])
@pytest.mark.parametrize("ones", [torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5), torch.ones(1, 1, dtype=torch.int64)])
def test_a_mask_that_is_all_ones_in_the_example_still_matters(way, ones):
    found = recognise(Masking(way), [{"x": example(2, 5), "mask": ones}])
    assert [block.name for block in found.blocks] == ["mixture.block"]
