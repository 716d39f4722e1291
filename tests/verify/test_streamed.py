"""The original with one layer's weights in memory computes what transformers computes of the whole.

To the last bit but one: kernels may take another path where a weight begins elsewhere in memory.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mocomp.errors import BadInput, Unsupported
from mocomp.models.huggingface import build, trace
from mocomp.models.source import open_source
from mocomp.verify.inputs import arrays, cases
from mocomp.verify.layer_weights import LayerWeights
from mocomp.verify.reference import Reference
from mocomp.verify.streamed import StreamedReference
from mocomp.weights.checkpoint import Checkpoint

LONGEST = 30


def same(a, b):
    """Equal but for rounding."""
    return a.shape == b.shape and np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def interface_of(directory):
    source = open_source(str(directory))
    return source, trace(build(source), source.plan).interface


def exhausted(generator):
    """(all that a generator gives, what it returns)."""
    given = []
    while True:
        try:
            given.append(next(generator))
        except StopIteration as end:
            return given, end.value


def both(directory, adjust=None):
    """(the whole reference, mixtures that the streamed one came through, its two baselines, the cases)."""
    source, interface = interface_of(directory)
    given = [(case, arrays(interface, case, 0)) for case in cases(interface, LONGEST)]
    with Checkpoint(source.directory) as checkpoint:
        streamed = StreamedReference(source, interface, checkpoint, adjust)
        passed, baselines = exhausted(streamed.follow(given))
    return Reference.load(source, interface), passed, baselines, given


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen3_moe", {}),
        ("qwen2_moe", {"tie_word_embeddings": True}),
        ("gpt_oss", {}),
        ("deepseek_v3", {}),
        ("ernie4_5_vl_moe", {}),
        ("bert", {}),
        ("clip_vision_model", {}),
    ],
)
def test_it_is_the_same_model(checkpoint, family, changes):
    whole, passed, (first, last), given = both(checkpoint(family, **changes))
    assert first is last or first.runs == last.runs
    for (case, inputs), (_, _, seen) in zip(given, last.runs, strict=True):
        expected = whole.observe(case, inputs)
        for name, values in expected.outputs.items():
            assert same(seen.outputs[name], values), (case, name)
        for mine, theirs in zip(seen.present, expected.present, strict=True):
            assert all(same(a, b) for a, b in zip(mine, theirs, strict=True))
        for routed, own in ((expected.routed, seen.routed), (expected.routed_before, seen.routed_before)):
            assert {name: r.ids.tolist() for name, r in routed.items()} == {name: r.ids.tolist() for name, r in own.items()}
    assert [p.layer for p in passed] == list(whole.experts)
    for p in passed:
        assert same(whole.run_experts(p.layer, p.forced.x, p.forced.ids, p.forced.weights).y, p.forced.y)
        assert set(p.forced.ids.flat) == set(range(whole.experts[p.layer]))


def test_upcycled_mixtures_are_streamed_too(upcycled):
    whole, passed, (_, last), given = both(upcycled("qwen3"))
    (case, inputs), (_, _, seen) = given[-1], last.runs[-1]
    assert same(whole.observe(case, inputs).outputs["logits"], seen.outputs["logits"])
    assert len(passed) == len(whole.experts) > 0


def test_of_bfloat16_as_of_float32(checkpoint):
    whole, _, (_, last), given = both(checkpoint("qwen3_moe", dtype=torch.bfloat16))
    (case, inputs), (_, _, seen) = given[-1], last.runs[-1]
    assert same(whole.observe(case, inputs).outputs["logits"], seen.outputs["logits"])


def test_one_part_is_in_memory_and_each_is_read_twice_at_most(checkpoint, monkeypatch):
    most, loads, load = [], [], LayerWeights.load

    def counting(self, names):
        load(self, names)
        there = {name for name in self.meta if not self.model.get_parameter(name).isnan().any()}
        most.append(there == set(names))
        loads.append(tuple(names))

    monkeypatch.setattr(LayerWeights, "load", counting)
    both(checkpoint("qwen3_moe"))
    parts = [names for names in loads if names]
    assert all(most) and len(set(parts)) == 5  # embedding, two layers, norm, head
    assert max(parts.count(names) for names in parts) == 2


def test_cases_run_on_both_kinds_of_weights(checkpoint):
    def double(reference, part):
        if part == "lm_head":
            reference.model.lm_head.weight.data *= 2

    whole, passed, (before, after), _ = both(checkpoint("qwen3_moe"), double)
    for (case, given, mine), (_, _, other) in zip(before.runs, after.runs, strict=True):
        assert same(mine.outputs["logits"], whole.observe(case, given).outputs["logits"])
        assert same(2 * mine.outputs["logits"], other.outputs["logits"])
    assert all(same(p.before.y, p.forced.y) for p in passed)


def test_weights_that_are_no_numbers_are_refused(checkpoint, tmp_path):
    source = checkpoint("qwen3_moe")
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.experts.3.up_proj.weight"][2, 5] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match="NaN"):
        both(tmp_path)


def test_a_model_that_reaches_into_other_parts_is_refused(checkpoint, monkeypatch):
    source, interface = interface_of(checkpoint("qwen3_moe"))
    given = [(case, arrays(interface, case, 0)) for case in cases(interface, LONGEST)]
    with Checkpoint(source.directory) as checkpoint_:
        streamed = StreamedReference(source, interface, checkpoint_)
        embedding = streamed.model.model.embed_tokens
        streamed.model.lm_head.register_forward_hook(lambda module, args, out: args[0] @ embedding.weight.T)
        with pytest.raises(Unsupported, match="weights of another"):
            exhausted(streamed.follow(given))
