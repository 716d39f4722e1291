"""What is stamped out of a trace of few layers is the trace of all of them, and layers that differ are not taken for alike."""

import types

import pytest
import torch
from torch import fx, nn

from mocomp.errors import Unsupported
from mocomp.ir.repetition import Run, longest_run
from mocomp.models import huggingface
from mocomp.models.interface import interface_of
from mocomp.models.repetition.alike import repeated
from mocomp.models.repetition.skipped import skipped
from mocomp.models.repetition.stamped import stamp
from mocomp.models.source import open_source
from mocomp.passes import run
from mocomp.passes.clean import Clean
from tests import checkpoints

ALTERNATING = {"num_hidden_layers": 8, "layer_types": ["sliding_attention", "full_attention"] * 4}
DEEP = {"qwen3_moe": {"num_hidden_layers": 6}, "gpt_oss": ALTERNATING, "deepseek_v3": {"num_hidden_layers": 6}}
DEEP |= {family: {"num_hidden_layers": 5} for family in checkpoints.FAMILIES if family not in DEEP}
DEEP |= {family: {"num_hidden_layers": 6} for family in ("glm4_moe", "ernie4_5_moe", "ernie4_5_vl_moe")}
SIZE = torch.ops.aten.sym_size.int


def built(directory, family, **changes):
    config = checkpoints.config(family, **changes)
    config.save_pretrained(directory)
    return huggingface.build(open_source(str(directory), task="feature-extraction" if family == "bert" else "auto"))


def interface(model):
    with huggingface.FakeTensorMode(allow_non_fake_inputs=True), huggingface._parameters_as(model, huggingface._fake):
        return interface_of(model)


def stamped(model):
    stacks, whole = repeated(model), interface(model)
    with skipped(model, stacks):
        program = huggingface._traced_whole(model, whole)
    return program, [stamp(program, stack) for stack in stacks]


class Word(str):
    """Text that is printed bare."""

    __repr__ = str.__str__


def lines(program):
    """A cleaned program as text in which nodes are numbered, weights and inputs have their names, sizes their letters."""
    run(Clean(), program)
    leaves = dict(program.weights()) | dict(zip(program.user_inputs(), program.inputs, strict=True))
    names, found = {}, []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            names[node] = Word(leaves[node])
            continue
        if node.target is SIZE and leaves.get(node.args[0]) in program.axes:
            names[node] = Word(program.axes[leaves[node.args[0]]][node.args[1]])
            continue
        names[node] = Word(f"%{len(found)}")
        args = fx.map_arg(node.args, names.__getitem__)
        if getattr(node.target, "__name__", "") == "add" and node.target.__module__ == "_operator":
            args = sorted(map(str, args))  # sums of sizes stand in any order
        path = [place for place, _ in (node.meta.get("nn_module_stack") or {}).values()][-1:]
        value = node.meta.get("val")
        kind = (value.dtype, value.dim()) if isinstance(value, torch.Tensor) else type(value).__name__
        found.append(f"{node.target} {args} {fx.map_arg(node.kwargs, names.__getitem__)} {path} {kind}")
    return found, [names[node] for node in program.graph.output_node().args[0]]


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3", "ernie4_5_vl_moe", "chameleon", "vit", "clip"])
def test_is_the_trace_of_all_layers(tmp_path, family):
    model = built(tmp_path, family, **DEEP[family])
    program, done = stamped(model)
    assert done == [True]
    assert lines(program) == lines(huggingface._traced_whole(model, interface(model)))


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_finds_the_layers_of_every_family(tmp_path, family):
    [stack] = repeated(built(tmp_path, family, **DEEP[family]))
    assert stack.run.between, stack


def test_the_numbers_of_layers_follow(tmp_path):
    program, _ = stamped(built(tmp_path, "llama", num_hidden_layers=6))
    for i in range(6):
        inside = [n for n in program.graph.nodes if f"p_model_layers_{i}_mlp_up_proj_weight" in map(str, n.all_input_nodes)]
        assert [list(n.meta["nn_module_stack"].values())[-1][0] for n in inside] == [f"model.layers.{i}.mlp.up_proj"]
    results = dict(zip(program.outputs, program.graph.output_node().args[0], strict=True))
    inputs = dict(zip(program.inputs, program.user_inputs(), strict=True))
    for i in range(6):
        assert inputs[f"past_key_values.{i}.value"] in results[f"present.{i}.value"].all_input_nodes


def another_activation(layer):
    layer.mlp.act_fn = nn.Tanh()


def another_scale(layer):
    layer.self_attn.scaling = 0.5


def another_epsilon(layer):
    layer.input_layernorm.variance_epsilon = 1e-3


def a_bias(layer):
    layer.mlp.up_proj.bias = nn.Parameter(torch.zeros(96, device="meta"))


def a_buffer(layer):
    layer.register_buffer("shift", torch.ones(1))


def another_forward(layer):
    layer.mlp.forward = types.MethodType(lambda self, x: x, layer.mlp)


PLANTED = (another_activation, another_scale, another_epsilon, a_bias, a_buffer, another_forward)


@pytest.mark.parametrize("plant", PLANTED)
def test_a_layer_that_differs_is_traced(tmp_path, plant):
    """Layer 5 of 10: what is left of alike ones on either side of it is no more than are always traced, or does not hold it."""
    model = built(tmp_path, "llama", num_hidden_layers=10)
    assert [stack.run for stack in repeated(model)] == [Run(0, 10, 1)]
    plant(model.model.layers[5])
    assert [stack.run for stack in repeated(model)] == [Run(0, 5, 1)]


def test_a_layer_given_another_mask_is_traced(tmp_path):
    """What the layers do not show, how they are called does: the model is traced whole."""
    model = built(tmp_path, "llama", num_hidden_layers=6)
    stacks, whole = repeated(model), interface(model)
    other = lambda module, args, kwargs: (args, kwargs | {"attention_mask": kwargs["attention_mask"] + 0.0})  # noqa: E731
    hook = model.model.layers[3].register_forward_pre_hook(other, with_kwargs=True)  # after they were found alike
    with pytest.raises(Unsupported, match="other arguments"), skipped(model, stacks):
        huggingface._traced_whole(model, whole)
    hook.remove()


def test_a_graph_that_differs_is_not_stamped(tmp_path):
    model = built(tmp_path, "llama", num_hidden_layers=6)
    [stack], whole = repeated(model), interface(model)
    with skipped(model, [stack]):
        program = huggingface._traced_whole(model, whole)
    silu = [node for node in program.graph.nodes if node.target is torch.ops.aten.silu.default]
    silu[-1].target = torch.ops.aten.tanh.default
    assert not stamp(program, stack)


def compares(self, x):
    return x * (2.0 if self.layer_idx == 4 else 1.0)


def takes_the_remainder(self, x):
    return x * (2.0 if self.layer_idx % 8 in (4,) else 1.0)


def is_in_a_list(self, x):
    return x * self.config.factors[self.layer_idx]


def is_a_key(self, x):
    return x * {4: 2.0}.get(self.layer_idx, 1.0)


@pytest.mark.parametrize("look", [compares, takes_the_remainder, is_in_a_list, is_a_key])
def test_a_layer_in_the_middle_that_looks_at_its_number_is_traced(tmp_path, look, monkeypatch):
    """It is the same in all of them, and only one that is not traced does something else."""
    model = built(tmp_path, "llama", num_hidden_layers=8)
    model.config.factors = [2.0 if i == 4 else 1.0 for i in range(8)]
    attention = type(model.model.layers[0].self_attn)
    before = attention.forward
    changed = lambda self, hidden_states, **rest: before(self, look(self, hidden_states), **rest)  # noqa: E731
    monkeypatch.setattr(attention, "forward", changed)
    assert [stack.run for stack in repeated(model)] == [Run(0, 8, 1)]
    assert all(stamped(model)[1])  # nothing that is traced shows it
    found = huggingface._trace(model, interface(model))
    doubled = [n for n in found.graph.nodes if n.target is torch.ops.aten.mul.Tensor and n.args[1] == 2.0]
    assert [list(n.meta["nn_module_stack"].values())[-1][0] for n in doubled] == ["model.layers.4.self_attn"]
    assert [type(layer.self_attn.layer_idx) for layer in model.model.layers] == [int] * 8


def test_a_number_that_only_the_cache_is_told_is_no_reason(tmp_path, monkeypatch):
    model, whole, right = built(tmp_path, "gpt_oss", **ALTERNATING), [], huggingface._traced_whole
    monkeypatch.setattr(huggingface, "_traced_whole", lambda *given: whole.append(1) or right(*given))
    huggingface._trace(model, interface(model))
    assert len(whole) == 1


def test_what_cannot_be_compared_is_traced(tmp_path, monkeypatch):
    model = built(tmp_path, "llama", num_hidden_layers=4)
    for layer in model.model.layers:
        layer.register_buffer("shift", torch.ones(()))  # one without dimensions can be
    assert [stack.run for stack in repeated(model)] == [Run(0, 4, 1)]

    def fails(model):
        raise RuntimeError("a tensor of an odd kind")

    monkeypatch.setattr(huggingface, "repeated", fails)
    assert huggingface._trace(model, interface(model)).outputs


def test_is_put_back(tmp_path):
    model = built(tmp_path, "llama", num_hidden_layers=6)
    before = [dict(vars(layer)) for layer in model.model.layers]
    with pytest.raises(KeyError), skipped(model, repeated(model)):
        assert "forward" in vars(model.model.layers[3])
        raise KeyError
    assert [dict(vars(layer)) for layer in model.model.layers] == before


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("aaaa", Run(0, 4, 1)),
        ("aaa", None),
        ("baaaaa", Run(1, 6, 1)),
        ("abababab", Run(0, 8, 2)),
        ("ababab", None),
        ("xaabaabaabaaby", Run(1, 13, 3)),
        ("aaaaabaaaaaaaa", Run(6, 14, 1)),
        ("", None),
    ],
)
def test_longest_run(kinds, expected):
    assert longest_run(kinds) == expected
