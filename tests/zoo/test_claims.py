"""Each mechanism of routing does what its paper claims of it, said in other words than its own code."""

import itertools
import math

import pytest
import torch

from mocomp.zoo import _draw, build, example
from mocomp.zoo.entries import ENTRIES, ROUTING
from mocomp.zoo.hosts import TASKS, VOCABULARY
from mocomp.zoo.routing import (
    across_layers,
    any_number,
    capacity,
    cosine,
    expert_choice,
    experts_decide,
    given_ids,
    mixed_tokens,
    modality,
    probability_mass,
    product_key,
    side_input,
    sigmoid_groups,
    softmax_topk,
    sparse_mixer,
    table,
    two_stages,
    weight_ensemble,
    whole_input,
)

B, S, H = 3, 7, 16
CLAIMS = {}


def claim(*names):
    """The test of the mechanisms in these lines of the table."""

    def keep(function):
        CLAIMS.update(dict.fromkeys(names, function))
        return function

    return keep


def made(mechanism, **sizes):
    """(the mechanism with drawn weights, x [B, S, H])"""
    torch.manual_seed(1)
    module = mechanism(H, **sizes).eval()
    for parameter in module.parameters():
        _draw(parameter)
    return module.requires_grad_(False), torch.randn(B, S, H)


def seen(module, *given, **named):
    """The weights [B, S, E] that a mechanism's bank was given."""
    kept = []
    with module.experts.register_forward_hook(lambda _, args, __: kept.append(args[1])):
        module(*given, **named)
    return kept[0]


def rows(*tensors):
    """The tokens of tensors [B, S, ..], one by one, as lists."""
    return zip(*(tensor.flatten(0, 1).tolist() for tensor in tensors), strict=True)


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def over_two(logits):
    """Softmax over the two largest of logits [.., E]."""
    second = logits.topk(2, -1).values[..., 1:]
    return logits.masked_fill(logits < second, float("-inf")).softmax(-1)


def best(values, count):
    return sorted(range(len(values)), key=lambda e: -values[e])[:count]


@claim("softmax_topk")
def renormalised():
    module, x = made(softmax_topk.Renormalised)
    for w, z in rows(seen(module, x), module.router(x)):
        first, second = best(z, 2)
        assert [e for e, share in enumerate(w) if share] == sorted((first, second))
        assert sum(w) == pytest.approx(1) and w[first] / w[second] == pytest.approx(
            2.718281828 ** (z[first] - z[second]), rel=1e-4
        )


@claim("softmax_topk_plain", "switch", "switch_state_space")
def plain():
    for mechanism, count in ((softmax_topk.Plain, 2), (softmax_topk.Switch, 1)):
        module, x = made(mechanism)
        for w, p in rows(seen(module, x), module.router(x).softmax(-1)):
            assert w == pytest.approx([p[e] if e in best(p, count) else 0 for e in range(4)])


@claim("topk_softmax")
def over_the_chosen():
    module, x = made(softmax_topk.TopKSoftmax)
    z = module.router(x)
    same(seen(module, x), over_two(z))  # dividing by the sum comes to the same


@claim("second_threshold")
def second_only_where_it_counts():
    module, x = made(softmax_topk.SecondThreshold)
    counts = set()
    for w, p in rows(seen(module, x), module.router(x).softmax(-1)):
        first, second = best(p, 2)
        share = p[second] / (p[first] + p[second])
        assert w[first] == pytest.approx(1 - share) and w[second] == pytest.approx(share if share > 0.3 else 0)
        counts.add(sum(value > 0 for value in w))
    assert counts == {1, 2}


@claim("gumbel_softmax")
def all_by_temperature():
    module, x = made(softmax_topk.GumbelSoftmax)
    w, z = seen(module, x), module.router(x)
    same(w.log().diff(dim=-1), z.diff(dim=-1) / 0.7)
    same(w.sum(-1), torch.ones(B, S))


@claim("sigmoid_groups")
def groups_then_experts():
    module, x = made(sigmoid_groups.SigmoidGroups)
    for w, s in rows(seen(module, x), module.router(x).sigmoid()):
        biased = [a + b for a, b in zip(s, module.bias.tolist(), strict=True)]
        kept = best([biased[2 * g] + biased[2 * g + 1] for g in range(4)], 2)
        chosen = best([b if e // 2 in kept else -9 for e, b in enumerate(biased)], 3)
        total = sum(s[e] for e in chosen)
        assert w == pytest.approx([2.5 * s[e] / total if e in chosen else 0 for e in range(8)], abs=1e-6)


@claim("sparse_mixer")
def softmax_of_the_near():
    module, x = made(sparse_mixer.SparseMixer)
    for w, z in rows(seen(module, x), module.router(x)):
        first, second = best(z, 2)
        expected = [0.0] * 4
        for top, left in ((first, range(4)), (second, [e for e in range(4) if e != first])):
            near = [e for e in left if (z[top] - z[e]) / max(abs(z[e]), z[top]) <= 0.2]
            expected[top] = 1 / sum(math.exp(z[e] - z[top]) for e in near)
        assert w == pytest.approx(expected, abs=1e-5)


@claim("modality_groups")
def groups_are_separate():
    module, x = made(modality.ModalityGroups)
    kind = torch.randint(2, (B, S))
    for w, image in rows(seen(module, x, kind), kind):
        assert sum(value > 0 for value in w) == 1 and not any(w[:2] if image else w[2:])


@claim("expert_choice")
def experts_are_full():
    module, x = made(expert_choice.ExpertChoice)
    w, p = seen(module, x).flatten(0, 1), module.router(x).softmax(-1).flatten(0, 1)
    assert (w > 0).sum(0).tolist() == [11] * 4  # 21 tokens, 2 of 4 experts each: 10.5
    for e in range(4):
        assert p[w[:, e] > 0, e].min() > p[w[:, e] == 0, e].max()


@claim("patch_choice")
def patches_of_each_image():
    module, x = made(expert_choice.PatchChoice)
    w = seen(module, x)
    assert (w > 0).sum(1).tolist() == [[2] * 4] * B
    same(w.sum(1), torch.ones(B, 4))
    same(seen(module, x[1:2]), w[1:2])  # no image sees another


@claim("auxiliary")
def foretold():
    module, x = made(expert_choice.Auxiliary)
    w, changed = seen(module, x), seen(module, torch.cat([x[:, :4], -x[:, 4:]], 1))
    same(changed[:, :4], w[:, :4])
    assert ((w > 0) == (module.foretell(x) > 0)).all() and 0 < (w > 0).float().mean() < 1


@claim("top_p", "small_experts")
def fewest_that_reach_it():
    for mechanism, threshold in ((probability_mass.TopP, 0.6), (probability_mass.SmallExperts, 0.9)):
        module, x = made(mechanism)
        counts = set()
        for w, p in rows(seen(module, x), module.router(x).softmax(-1)):
            chosen = [value for value in w if value]
            assert sum(chosen) >= threshold > sum(chosen) - min(chosen)
            assert sorted(chosen) == pytest.approx(sorted(p)[-len(chosen) :])
            counts.add(len(chosen))
        assert len(counts) > 1


@claim("adaptive_gap")
def second_where_they_are_close():
    module, x = made(probability_mass.AdaptiveGap)
    counts = set()
    for w, p in rows(seen(module, x), module.router(x).softmax(-1)):
        first, second = sorted(p)[-1], sorted(p)[-2]
        expected = [first] if first - second > 0.3 else [second, first]
        assert sorted(value for value in w if value) == pytest.approx(expected)
        counts.add(len(expected))
    assert counts == {1, 2}


@claim("cosine_topk")
def length_does_not_matter():
    module, x = made(cosine.CosineTopK)
    w = seen(module, x)
    module.router.embeddings *= torch.tensor([[3.0], [0.5], [7.0], [1.0]])
    same(seen(module, 5 * x), w)
    assert (module.router(x).abs() <= 1 / 0.3 + 1e-5).all() and ((w > 0).sum(-1) == 2).all()


@claim("cosine_threshold")
def own_thresholds():
    module, x = made(cosine.CosineThreshold)
    counts = set()
    for w, z in rows(seen(module, x), module.router(x)):
        chosen = [e for e in range(4) if z[e] > module.thresholds[e]] or best(z, 1)
        assert w == pytest.approx([1 / len(chosen) if e in chosen else 0 for e in range(4)])
        counts.add(len(chosen))
    module.thresholds += 9.0  # nobody reaches that
    assert len(counts) > 1 and ((seen(module, x) == 1).sum(-1) == 1).all()


@claim("null_experts")
def some_do_nothing():
    module, x = made(any_number.NullExperts)
    counts = set()
    for w, p in rows(seen(module, x), module.router(x).softmax(-1)):
        real = [e for e in best(p, 3) if e < 4]
        total = sum(p[e] for e in real)
        assert w == pytest.approx([p[e] / total if e in real else 0 for e in range(4)], abs=1e-6)
        counts.add(len(real))
    assert len(counts) > 2


@claim("relu_routing")
def what_is_positive():
    module, x = made(any_number.ReLURouting)
    for w, z in rows(seen(module, x), module.router(x)):
        assert w == pytest.approx([max(0, value) for value in z])


@claim("soft_slots")
def slots_are_means():
    module, x = made(mixed_tokens.SoftSlots)
    given = []
    with module.experts.register_forward_hook(lambda _, args, __: given.append(args[0])):
        y = module(x)
    (slots,) = given
    assert (slots.amax((1, 2)) <= x.amax(1)).all() and (slots.amin((1, 2)) >= x.amin(1)).all()
    same(slots[0, 0, 0], torch.softmax(x[0] @ module.phi[0], 0) @ x[0])
    order = torch.randperm(S)
    same(module(x[:, order]), y[:, order])
    same(module(x[1:2]), y[1:2])


@claim("token_mixing")
def mixed_across_the_batch():
    module, x = made(mixed_tokens.MixtureOfTokens)
    alone = sum(expert(x[:1]) for expert in module.experts)
    same(module(x[:1]), alone)  # a group of one is given as it is, to all experts
    changed = x.clone()
    changed[0, 2] += 1
    moved = (module(changed) - module(x)).abs().amax(-1) > 1e-6
    assert moved.tolist() == [[s == 2 for s in range(S)]] * B


@claim("product_key")
def best_of_all_pairs():
    module, x = made(product_key.ProductKeys)
    halves = module.query(x).unflatten(-1, (2, -1))
    first, second = halves[..., 0, :] @ module.keys[0].T, halves[..., 1, :] @ module.keys[1].T
    every = (first[..., :, None] + second[..., None, :]).flatten(-2)  # all 64 sums
    ids, weights = module.choose(x)
    assert ids.tolist() == every.topk(3, -1).indices.tolist()
    same(weights, every.gather(-1, ids).softmax(-1))


@claim("cartesian")
def pairs():
    module, x = made(two_stages.Cartesian, chosen=1)
    y = module(x)
    for t, (b, s) in enumerate(itertools.product(range(B), range(S))):
        token = x[b, s]
        pair = [token + 0 for _ in range(9)]
        for i, j in itertools.product(range(3), range(3)):
            middle = token + module.first.experts[i](token)
            pair[3 * i + j] = module.second.experts[j](middle)
        distances = [(answer - y[b, s]).abs().max().item() for answer in pair]
        assert min(distances) < 1e-5 and t < B * S


@claim("two_level")
def group_then_expert():
    module, x = made(two_stages.TwoLevel)
    for w, of_groups, inside in rows(seen(module, x), module.group(x).softmax(-1), module.inside(x)):
        group = best(of_groups, 1)[0]
        shares = torch.tensor(inside[3 * group : 3 * group + 3]).softmax(-1).tolist()
        expert = 3 * group + best(shares, 1)[0]
        assert w == pytest.approx([of_groups[group] * max(shares) if e == expert else 0 for e in range(6)])


@claim("dselect_k")
def selectors_become_exact():
    module, x = made(two_stages.DSelectK)
    same(seen(module, x).sum(-1), torch.ones(B, S))
    t = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    same(module.step(t), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
    module.router.weight *= 1000  # every gate is outside of the cubic
    assert ((seen(module, x) > 0).sum(-1) <= 2).all()


@claim("smear")
def merged_per_sequence():
    module, x = made(weight_ensemble.Smear)
    y = module(x)
    shares = module.router(x.mean(1)).softmax(-1)
    for b in range(B):
        w_in, w_out = (sum(s * w for s, w in zip(shares[b], bank, strict=True)) for bank in (module.w_in, module.w_out))
        same(y[b], torch.relu(x[b] @ w_in.T) @ w_out.T)


@claim("weight_ensemble")
def differences_from_a_base():
    module, x = made(weight_ensemble.WeightEnsemble)
    last = module.router[-1]
    last.weight *= 0
    last.bias *= 0
    same(module(x), torch.relu(x @ module.base_in.T) @ module.base_out.T)
    last.bias[1] = 1.0
    same(module(x), torch.relu(x @ module.w_in[1].T) @ module.w_out[1].T)


@claim("hash")
def same_id_same_expert():
    module, x = made(table.Hash)
    ids = torch.randint(4, (B, S))
    for w, word in rows(seen(module, x, ids), ids):
        assert w == [float(e == module.table[word]) for e in range(4)]
    assert set(module.table.tolist()) == set(range(4))


@claim("distilled_table")
def id_tells_expert_and_state_the_weight():
    module, x = made(table.Distilled)
    ids = torch.randint(VOCABULARY, (B, S))
    w, other = seen(module, x, ids), seen(module, -x, ids)
    same(w.sum(-1) + other.sum(-1), torch.ones(B, S))  # sigmoid(z) + sigmoid(-z)
    assert ((w > 0) == (other > 0)).all() and ((w > 0).sum(-1) == 1).all()


@claim("masked_by_id")
def never_outside_the_table():
    module, x = made(table.Masked)
    ids = torch.arange(B * S).view(B, S) + VOCABULARY // 2 - 10
    for w, word in rows(seen(module, x, ids), ids):
        assert not any(share for share, is_open in zip(w, module.open_to[word].tolist(), strict=True) if not is_open)
        assert sum(share > 0 for share in w) == min(2, int(module.open_to[word].sum()))
    assert set(module.open_to[VOCABULARY // 2 :].sum(-1).tolist()) == {1}


@claim("task_level")
def one_choice_for_a_task():
    module, x = made(given_ids.TaskLevel)
    w, other = seen(module, x, torch.tensor([0, 1, 0])), seen(module, -x, torch.tensor([0, 1, 0]))
    same(w, other)
    assert (w == w[:, :1]).all() and (w[0] == w[2]).all() and (w[0] != w[1]).any() and ((w > 0).sum(-1) == 2).all()


@claim("cluster_level")
def universal_takes_the_rest():
    module, x = made(given_ids.ClusterLevel)
    task = torch.arange(B) % TASKS
    w, y = seen(module, x, task), module(x, task)
    for b in range(B):
        share, e = w[b, 0].max(0)
        same(y[b], share * module.experts[int(e)](x[b]) + (1 - share) * module.universal(x[b]))


@claim("shared_embedding", "domain_embedding")
def side_is_read():
    module, x = made(side_input.SharedEmbedding)
    side = torch.randn(B, S, H)
    p = (module.router.weight @ torch.cat([x, side], -1)[..., None])[..., 0].softmax(-1)
    same(seen(module, x, side).sum(-1), p.amax(-1))
    module, x = made(side_input.DomainEmbedding)
    w, other = (seen(module, x, side, torch.full((B,), task)) for task in (0, 1))
    assert (w != other).any() and ((w > 0).sum(-1) == 1).all()


@claim("recurrent")
def gru_over_layers():
    module, x = made(across_layers.Recurrent)
    _, first = module(x)
    _, second = module(x, first)
    w_i, w_h, b_i, b_h = (p for _, p in module.cell.named_parameters())
    given, kept = module.project(x) @ w_i.T + b_i, first @ w_h.T + b_h
    reset, update = ((g + k).sigmoid() for g, k in zip(given.chunk(3, -1)[:2], kept.chunk(3, -1)[:2], strict=True))
    new = torch.tanh(given.chunk(3, -1)[2] + reset * kept.chunk(3, -1)[2])
    same(second, (1 - update) * new + update * first)
    same(seen(module, x, first), over_two(second @ module.router.weight.T))


@claim("pre_gated")
def chosen_one_layer_before():
    module, x = made(across_layers.PreGated)
    _, state = module(x)
    same(seen(module, -x, state), over_two(module.next(x)))
    same(seen(module, x), over_two(module.router(x)))


@claim("decoupled")
def all_layers_alike():
    entry = ENTRIES["decoupled"]
    model, kept = build(entry), []
    for layer in model.layers:
        layer.mixture.mechanism.experts.register_forward_hook(lambda _, args, __: kept.append(args[1]))
    model(**example(entry))
    same(kept[0], kept[1])


@claim("codebook")
def nearest_code():
    module, x = made(experts_decide.Codebook)
    nearest = torch.cdist(x, module.codes.expand(B, -1, -1)).argmin(-1)
    assert seen(module, x).argmax(-1).tolist() == nearest.tolist()
    assert (seen(module, x).sum(-1) == 1).all()


@claim("self_selected")
def those_with_the_longest_start():
    module, x = made(experts_decide.SelfSelected)
    y = module(x)
    norms = torch.stack([(x @ down.T).square().sum(-1).sqrt() for down in module.down], -1)
    for token, answer, lengths in zip(x.flatten(0, 1), y.flatten(0, 1), norms.flatten(0, 1).tolist(), strict=True):
        chosen = best(lengths, 2)
        shares = torch.tensor([lengths[e] for e in chosen]).softmax(-1)
        outs = []
        for e in chosen:
            gate = module.gate[e] @ (module.down[e] @ token)
            outs.append(module.out[e] @ (gate * gate.sigmoid() * (module.up[e] @ token)))
        same(answer, shares[0] * outs[0] + shares[1] * outs[1])


@claim("competition")
def largest_answers_win():
    module, x = made(experts_decide.Competition)
    y = module(x)
    for token, answer in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True):
        answers = sorted((expert(token) for expert in module.experts), key=lambda one: -one.norm())[:2]
        shares = torch.stack([one.norm() for one in answers]).softmax(-1)
        same(answer, shares[0] * answers[0] + shares[1] * answers[1])


@claim("gshard_capacity")
def places_are_limited():
    module, x = made(capacity.GShard)
    tokens = x.flatten(0, 1)
    combine, z = module.combine(tokens), module.gate(tokens)
    kept, lines = torch.zeros(len(tokens), 4), [0] * 4
    for choice in range(2):
        for t, row in enumerate(softmax_topk.Renormalised(H).weights(z).tolist()):
            e = best(row, 2)[choice]
            kept[t, e] = row[e] if lines[e] < 11 else 0
            lines[e] += 1
    same(combine.sum(-1), kept)
    assert ((combine > 0).sum(0) <= 1).all() and max(lines) > 11
    assert combine.shape[-1] == 11


@claim("batch_priority")
def the_surest_first():
    module, x = made(capacity.BatchPriority)
    w, p = seen(module, x).flatten(0, 1), module.router(x).softmax(-1).flatten(0, 1)
    kept, lines = torch.zeros_like(w), [0] * 4
    for choice in range(2):
        for t in p.amax(-1).argsort(descending=True).tolist():
            e = best(p[t].tolist(), 2)[choice]
            kept[t, e] = p[t, e] if lines[e] < 6 else 0
            lines[e] += 1
    same(w, kept)
    assert max(lines) > 6


@claim("capacity_reroute")
def nobody_is_dropped():
    module, x = made(capacity.Reroute)
    w, p = seen(module, x).flatten(0, 1), module.router(x).softmax(-1).flatten(0, 1)
    assert ((w > 0).sum(-1) == 1).all() and (w > 0).sum(0).max() <= 6
    moved = (w.argmax(-1) != p.argmax(-1)).nonzero().flatten()
    assert len(moved)
    for t in moved.tolist():  # who was moved had found his best expert full
        assert (w[:, p[t].argmax()] > 0).sum() == 6


@claim("per_image", "per_image_convolutional")
def all_tokens_alike():
    module, x = made(whole_input.PerImage)
    w = seen(module, x).expand(B, S, -1)
    assert (w == w[:, :1]).all() and (w[0] != w[1]).any() and ((w > 0).sum(-1) == 2).all()


@claim("random_fixed")
def router_is_no_parameter():
    module, x = made(whole_input.RandomFixed)
    assert not any(name.startswith("router") for name, _ in module.named_parameters())
    w = seen(module, x)
    assert ((w > 0).sum(-1) == 3).all() and module.router.weight.std() > 0.1
    same(w.sum(-1), torch.ones(B, S))


def test_every_line_has_a_claim():
    assert {entry.name for entry in ROUTING} == set(CLAIMS)


@pytest.mark.parametrize("check", list(dict.fromkeys(CLAIMS.values())), ids=lambda check: check.__name__)
def test_claim(check):
    check()
