"""A layout is believed when the class's own code confirms it, and refused with the nearest miss when it does not."""

import copy
from functools import cache

import pytest
import torch
from torch import nn
from transformers.integrations.moe import use_experts_implementation
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from mocomp.errors import Unsupported
from mocomp.experts import Expert
from mocomp.experts.ffn import FFN
from mocomp.experts.glu import GLU
from mocomp.models import canonical
from tests import checkpoints


@cache
def module(family: str) -> nn.Module:
    """The last experts module of a tiny model, without weights, as the front end hands it over."""
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, checkpoints.FAMILIES[family].task).from_config(checkpoints.config(family))
    return [found for found in model.modules() if canonical.is_experts(found)][-1]


def planted(act, body=None, **flags) -> nn.Module:
    """An experts module of mixtral's shapes that computes `act(h [2F]) -> [F]` for each token and expert."""

    class Planted(nn.Module):
        def __init__(self, config):
            super().__init__()
            experts, hidden, width = config.num_local_experts, config.hidden_size, config.intermediate_size
            self.num_experts = experts
            self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
            self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

        def forward(self, x, ids, weights):
            y = torch.zeros_like(x)
            for t, chosen in enumerate(ids.tolist()):
                for e, weight in zip(chosen, weights[t], strict=True):
                    y[t] += weight * (self.down_proj[e] @ act(self.gate_up_proj[e] @ x[t]))
            return y if body is None else body(x, y)

    with torch.device("meta"):
        return use_experts_implementation(**flags)(Planted)(checkpoints.config("mixtral"))


def swiglu(h):
    gate, up = h.chunk(2, -1)
    return nn.functional.silu(gate) * up


def interleaved(h):
    return swiglu(torch.cat([h[0::2], h[1::2]]))


WRONG = {
    "gate and up change places": planted(lambda h: swiglu(h.roll(len(h) // 2))),
    "an activation nobody knows": planted(lambda h: h.chunk(2)[0].atan() * h.chunk(2)[1]),
    "interleaved, and flagged as halves": planted(interleaved),
    "halves, and flagged as interleaved": planted(swiglu, is_concatenated=False),
    "a factor on top": planted(lambda h: 1.001 * swiglu(h)),
    "the input on top": planted(swiglu, body=lambda x, y: x + y),
}
FOUND = {
    "mixtral": GLU(), "qwen2_moe": GLU(), "qwen3_moe": GLU(), "granitemoe": GLU(), "deepseek_v3": GLU(),
    "gpt_oss": GLU("silu", 1.702, 1.0, 7.0),
}  # fmt: skip


@pytest.mark.parametrize("family", FOUND)
def test_a_class_is_understood(family):
    assert canonical.prove(module(family), "here") == FOUND[family]


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh", "relu", "relu2"])
def test_the_activation_is_the_one_that_the_config_says(activation):
    with torch.device("meta"):
        experts = MixtralExperts(checkpoints.config("mixtral", hidden_act=activation))
    assert canonical.prove(experts, "here") == GLU(activation.replace("_pytorch", ""))


def test_layouts_that_are_told_truly_are_believed():
    """The planted modules fail for what is planted in them, and not for being planted."""
    assert canonical.prove(planted(swiglu), "here") == GLU()
    assert canonical.prove(planted(interleaved, is_concatenated=False), "here") == GLU()


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_layout_is_refused_with_the_nearest_miss(name):
    with pytest.raises(Unsupported) as caught:
        canonical.prove(WRONG[name], "model.layers.3.mlp.experts")
    assert caught.value.where == "model.layers.3.mlp.experts"
    assert "no known kind of expert computes what Planted does; the nearest, " in caught.value.what
    assert '"kind": "glu"' in caught.value.what and " is off by " in caught.value.what


def test_how_far_off_is_told():
    """A factor of a thousandth is a thousandth off, whatever else was tried."""
    with pytest.raises(Unsupported, match=r'"activation": "silu".*is off by 1\.0e-03 relative'):
        canonical.prove(WRONG["a factor on top"], "here")


def test_a_class_that_changed_its_gate_is_refused():
    """As a subclass of a known class would, whose name alone promises too much."""

    @use_experts_implementation(is_concatenated=False, is_transposed=True, has_bias=True)
    class Shy(type(module("gpt_oss"))):
        def _apply_gate(self, gate_up):
            return super()._apply_gate(gate_up).tanh()

        forward = type(module("gpt_oss")).forward.__wrapped__

    with torch.device("meta"):
        shy = Shy(checkpoints.config("gpt_oss"))
    with pytest.raises(Unsupported, match="what Shy does"):
        canonical.prove(shy, "here")


def test_a_class_past_the_interface_is_refused():
    """Its own loop over experts would be traced, and the proof be of something else."""

    class Own(MixtralExperts):
        def forward(self, hidden_states, top_k_index, top_k_weights):
            return hidden_states

    with torch.device("meta"):
        own = Own(checkpoints.config("mixtral"))
    with pytest.raises(Unsupported, match="Own goes past the experts interface"):
        canonical.prove(own, "here")


def test_experts_that_end_in_a_norm_are_refused():
    with pytest.raises(Unsupported, match="end in a norm of their own"):
        canonical.prove(planted(swiglu, has_post_expert_norm=True), "here")


@pytest.mark.parametrize("family", FOUND)
def test_a_large_module_is_proven_on_a_small_instance(family, monkeypatch):
    sizes = _watched(monkeypatch, 2 * 5 * 3 * 24 * 16)
    assert canonical.prove(module(family), "here") == FOUND[family]
    assert sizes == [5]


@pytest.mark.parametrize("name", WRONG)
def test_a_large_module_is_refused_on_a_small_instance(name, monkeypatch):
    sizes = _watched(monkeypatch, 2 * 5 * 3 * 24 * 16)
    with pytest.raises(Unsupported, match="no known kind"):
        canonical.prove(WRONG[name], "here")
    assert sizes == [5]


def _watched(monkeypatch, limit: int) -> list[int]:
    """Modules above `limit` elements count as large; the list tells the experts of each instance that was proven on."""
    sizes: list[int] = []
    whole = canonical._instance

    def watch(module: nn.Module, where: str) -> nn.Module:
        instance = whole(module, where)
        sizes.append(instance.num_experts)
        return instance

    monkeypatch.setattr(canonical, "LARGEST_PROOF", limit)
    monkeypatch.setattr(canonical, "_instance", watch)
    return sizes


def test_a_module_of_300_gigabytes_is_proven_too():
    sizes = {"hidden_size": 6144, "intermediate_size": 16384, "num_local_experts": 256, "num_attention_heads": 48}
    with torch.device("meta"):
        experts = MixtralExperts(checkpoints.config("mixtral", **sizes))
    assert canonical.prove(experts, "here") == GLU()


def test_a_large_module_whose_config_says_nothing_is_refused_before_it_takes_memory(monkeypatch):
    found = copy.copy(module("mixtral"))
    monkeypatch.setattr(canonical, "LARGEST_PROOF", 1000)
    monkeypatch.setattr(canonical, "_shrunk", lambda module: module.config)
    with pytest.raises(Unsupported, match="does not tell how to make it smaller than"):
        canonical.prove(found, "here")


def test_guesses_are_of_the_shape_of_the_module():
    kinds: set[type[Expert]] = {type(guess) for guess in canonical._guesses(module("mixtral"))}
    assert kinds == {GLU} and FFN not in kinds
