"""Mixture-of-depths in training and in inference: who goes through, who sees whom, and what the cache remembers."""

import copy
import math

import pytest
import torch
from transformers import DynamicCache

import mocomp.nn
from mocomp.errors import Unsupported
from mocomp.nn.depth import Depth
from mocomp.plans.plan import DepthPlan

HIDDEN = 16
CASES = {"by its score": {}, "foretold": {"auxiliary": 5}}


@pytest.fixture(params=CASES)
def model(request, upcycled):
    return mocomp.nn.load(upcycled("llama", depth="all", noise=0.3, groups="2", **CASES[request.param]))


def ids(batch: int = 2, length: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 128, (batch, length), generator=torch.Generator().manual_seed(seed))


def run(model, tokens: torch.Tensor, **rest) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, **rest).logits


def decisions(model) -> torch.Tensor:
    """[layers, B, S]: whether each token of the last call went through."""
    return torch.stack([layer.depth.decisions > 0 for layer in model.model.layers])


def test_some_tokens_go_through_and_others_do_not(model):
    run(model, ids())
    assert all(0 < through.float().mean() < 1 for through in decisions(model))


@pytest.mark.parametrize("changed", [1, 8, 15])
def test_no_later_token_changes_an_earlier_output(model, changed):
    tokens = ids()
    before, chosen = run(model, tokens), decisions(model)
    tokens[:, changed] = (tokens[:, changed] + 17) % 128
    after = run(model, tokens)
    assert torch.equal(decisions(model)[:, :, :changed], chosen[:, :, :changed])
    assert torch.allclose(after[:, :changed], before[:, :changed], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after[:, changed], before[:, changed], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("steps", [[16], [10, 6], [1] * 16, [7, 1, 1, 7]], ids=str)
@pytest.mark.parametrize("padding", [0, 3])
def test_decoding_with_a_cache_is_the_whole_at_once(model, steps, padding):
    tokens, mask = ids(), torch.ones(2, 16, dtype=torch.long)
    mask[1, :padding] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    whole = run(model, tokens, attention_mask=mask, position_ids=positions)
    cache, pieces, start = DynamicCache(), [], 0
    for step in steps:
        stop = start + step
        rest = {"attention_mask": mask[:, :stop], "position_ids": positions[:, start:stop]}
        pieces.append(run(model, tokens[:, start:stop], past_key_values=cache, **rest))
        start = stop
    assert torch.allclose(torch.cat(pieces, 1)[mask.bool()], whole[mask.bool()], rtol=1e-4, atol=1e-5)


def test_who_goes_past_is_as_it_was(model):
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    layer = model.model.layers[1]
    hook = layer.register_forward_hook(lambda module, args, y: seen.append((args[0], y)))
    run(model, ids())
    hook.remove()
    ((x, y),) = seen
    through = decisions(model)[1]
    assert torch.equal(y[~through], x[~through]) and (y[through] != x[through]).any(1).all()


def test_who_goes_past_is_not_seen_by_others(model):
    """Of a layer that it goes past, and behind it: another token in its place changes its own output alone."""
    model.model.layers = model.model.layers[:1]
    tokens = ids()
    before, chosen = run(model, tokens), decisions(model)[0]
    other = (tokens + 17) % 128
    run(model, other)
    both_past = ~chosen & ~decisions(model)[0]
    assert both_past.any()
    after = run(model, torch.where(both_past, other, tokens))
    assert torch.allclose(after[~both_past], before[~both_past], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after[both_past], before[both_past], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("capacity", [0.125, 0.5, 0.07, 0.7, 1.0, 0.0])
@pytest.mark.parametrize("length", [1, 10, 16, 100])
def test_training_takes_exactly_its_share(capacity, length):
    """Of each sequence, those of the highest scores; rounded up, and at least one."""
    depth = Depth(DepthPlan("layer", HIDDEN, capacity)).train()
    x = torch.randn(3, length, HIDDEN, generator=torch.Generator().manual_seed(0))
    scores = x[..., 0]
    through = depth._decide(x, scores)
    count = max(math.ceil(round(capacity * length, 6)), 1)
    assert through.sum(1).tolist() == [count] * 3
    for row, chosen in zip(scores, through, strict=True):
        assert chosen.all() or row[chosen].min() > row[~chosen].max()


def test_gradients_reach_the_router(model):
    model.train()
    model(input_ids=ids(), labels=ids()).loss.backward()
    for layer in model.model.layers:
        assert layer.depth.router.grad.abs().max() > 0 and layer.self_attn.k_proj.weight.grad.abs().max() > 0
        if layer.depth.plan.auxiliary:
            assert layer.depth.aux_in.grad is None  # it learns of a loss of its own ...
            target = (layer.depth.scores > 0).float().detach()
            torch.nn.functional.binary_cross_entropy_with_logits(layer.depth.decisions, target).backward()
            assert layer.depth.aux_in.grad.abs().max() > 0  # ... on what it said


def test_training_and_inference_differ_in_who_decides(model):
    evaluated = run(model, ids())
    assert not torch.allclose(run(model.train(), ids()), evaluated, rtol=1e-2, atol=1e-2)
    assert torch.equal(run(model.eval(), ids()), evaluated)


def test_a_copy_is_its_own(model):
    other = copy.deepcopy(model)
    expected = run(model, ids())
    for layer in model.model.layers:
        layer.depth.router.data.neg_()
    assert torch.equal(run(other, ids()), expected) and not torch.equal(run(model, ids()), expected)


def test_attention_without_a_mask_of_numbers_is_told(model):
    model.set_attn_implementation("sdpa")
    with pytest.raises(Unsupported, match=r"model\.layers\.0: .*eager"):
        run(model, ids())
