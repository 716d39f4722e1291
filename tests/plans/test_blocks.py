"""Feed-forward blocks are found by what they compute, and nothing else is taken for one."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mocomp.experts.ffn import FFN
from mocomp.experts.glu import GLU
from mocomp.models.binding import bind_nothing
from mocomp.models.huggingface import build
from mocomp.models.huggingface import trace as trace_model
from mocomp.models.source import open_source
from mocomp.passes import run
from mocomp.passes.clean import Clean
from mocomp.passes.fold_weights import FoldWeights
from mocomp.plans.blocks import Block, find_blocks
from tests import checkpoints
from tests.programs import HIDDEN, Traced, trace

WIDTH = 6
ROOT = math.sqrt(2 / math.pi)
Function = Callable[[torch.Tensor], torch.Tensor]
ACTIVATIONS: dict[str, tuple[Function, str]] = {
    "relu": (F.relu, "relu"),
    "relu by hand": (lambda x: x.clamp(min=0), "relu"),
    "silu": (F.silu, "silu"),
    "silu by hand": (lambda x: x * x.sigmoid(), "silu"),
    "silu as a quotient": (lambda x: x / (1 + torch.exp(-x)), "silu"),
    "gelu": (F.gelu, "gelu"),
    "gelu by hand": (lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), "gelu"),
    "gelu by tanh": (lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh"),
    "gelu by tanh by hand": (lambda x: 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * x**3))), "gelu_tanh"),
    "quick_gelu": (lambda x: x * torch.sigmoid(1.702 * x), "quick_gelu"),
    "relu squared": (lambda x: F.relu(x) ** 2, "relu2"),
    "relu squared as a product": (lambda x: F.relu(x) * F.relu(x), "relu2"),
}


class Plain(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, act: Function = F.relu, bias: bool = False):
        super().__init__()
        self.act, self.up, self.down = act, nn.Linear(HIDDEN, WIDTH, bias), nn.Linear(WIDTH, HIDDEN, bias)

    def forward(self, x):
        return self.down(self.act(self.up(x)))


class Gated(Plain):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, act: Function = F.silu, bias: bool = False):
        super().__init__(act, bias)
        self.gate = nn.Linear(HIDDEN, WIDTH, bias)

    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x))


class UpFirst(Gated):
    """The gate is the second to be computed."""

    def forward(self, x):
        up = self.up(x)
        return self.down(up * self.act(self.gate(x)))


class Fused(nn.Module):
    """Gate and up in one product."""

    def __init__(self, act: Function = F.silu, bias: bool = False, up_first: bool = False):
        super().__init__()
        self.act, self.up_first = act, up_first
        self.both, self.down = nn.Linear(HIDDEN, 2 * WIDTH, bias), nn.Linear(WIDTH, HIDDEN, bias)

    def forward(self, x):
        first, second = self.both(x).chunk(2, -1)
        return self.down(first * self.act(second) if self.up_first else self.act(first) * second)


class Around(nn.Module):
    """A block as `layer.mlp`, between two others of its kind of computation."""

    def __init__(self, block: nn.Module, function: Function = lambda x: x):
        super().__init__()
        self.layer, self.head, self.function = nn.Module(), nn.Linear(HIDDEN, 3), function
        self.layer.mlp = block

    def forward(self, x):
        return self.head(x + self.layer.mlp(self.function(x)))


def searched(module: nn.Module) -> tuple[list[Block], list[str], Traced]:
    traced = trace(module)
    for step in (Clean(), FoldWeights()):
        run(step, traced.program)
    return *find_blocks(traced.program, module.state_dict()), traced


def the_block(module: nn.Module) -> tuple[Block, Traced]:
    (block,), skipped, traced = searched(module)
    assert skipped == []
    return block, traced


def computes_the_same(block: Block, traced: Traced, module: nn.Module) -> bool:
    """Whether the expert that was found, on its weights, is the module."""
    x = 2 * torch.randn(9, HIDDEN, generator=torch.Generator().manual_seed(1))
    dense = block.dense
    w_in, b_in, w_out, b_out = (
        None if recipe is None else recipe.evaluate(traced.read)
        for recipe in (dense.w_in, dense.b_in, dense.w_out, dense.b_out)
    )
    assert (dense.hidden, dense.width) == (HIDDEN, WIDTH) == (w_out.shape[0], w_out.shape[1])
    y = F.linear(block.expert.inner(F.linear(x, w_in, b_in)), w_out, b_out)
    return torch.allclose(y, module(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "bias"), [("gelu", False), *((name, True) for name in ACTIVATIONS)])
def test_a_plain_block(name, bias):
    act, activation = ACTIVATIONS[name]
    module = Plain(act, bias)
    block, traced = the_block(Around(module))
    assert (block.expert, block.enter, block.leave) == (FFN(activation), "layer.mlp", ())
    assert (block.dense.b_in is not None, block.dense.b_out is not None) == (bias, bias)
    assert block.parameters == tuple(sorted(f"layer.mlp.{name}" for name in module.state_dict()))
    assert computes_the_same(block, traced, module)


GATED = {
    "apart": Gated,
    "up first": UpFirst,
    "in one product": Fused,
    "in one product, up first": lambda act, bias: Fused(act, bias, up_first=True),
}
GATED_CASES = [*((kind, "gelu by tanh by hand", False) for kind in GATED), ("in one product, up first", "silu", True)]


@pytest.mark.parametrize(("kind", "name", "bias"), [*(("apart", name, True) for name in ACTIVATIONS), *GATED_CASES])
def test_a_gated_block(kind, name, bias):
    act, activation = ACTIVATIONS[name]
    module = GATED[kind](act, bias)
    block, traced = the_block(Around(module))
    assert (block.expert, block.enter, block.leave) == (GLU(activation), "layer.mlp", ())
    assert computes_the_same(block, traced, module)


class InPieces(nn.Module):
    """The block's parts in modules apart, `out` beside others as in BERT, with the activation where `act_in` says."""

    def __init__(self, act_in: str, bias: bool = True):
        super().__init__()
        self.act_in = act_in
        self.intermediate, self.output = nn.Module(), nn.Module()
        self.intermediate.dense, self.output.dense = nn.Linear(HIDDEN, WIDTH, bias), nn.Linear(WIDTH, HIDDEN, bias)
        self.output.norm, self.act = nn.LayerNorm(HIDDEN), nn.GELU()
        if act_in == "intermediate":
            self.intermediate.act = nn.GELU()
        self.intermediate.forward = self.enter

    def enter(self, x):
        h = self.intermediate.dense(x)
        return self.intermediate.act(h) if self.act_in == "intermediate" else h

    def forward(self, x):
        h = self.intermediate(x)
        h = {"intermediate": lambda h: h, "a module": self.act, "nowhere": F.gelu}[self.act_in](h)
        return self.output.norm(x + self.output.dense(h))


def test_a_block_in_pieces_is_entered_in_one_and_left_in_another():
    block, _ = the_block(InPieces("intermediate"))
    assert (block.enter, block.leave, block.expert) == ("intermediate", ("output.dense",), FFN("gelu"))
    assert block.parameters == (
        "intermediate.dense.bias",
        "intermediate.dense.weight",
        "output.dense.bias",
        "output.dense.weight",
    )


def test_an_activation_that_is_a_module_is_passed_by():
    block, _ = the_block(InPieces("a module"))
    assert (block.enter, block.leave) == ("intermediate", ("act", "output.dense"))


class Normed(Plain):
    """down(act(up(norm(x)))), the norm without a weight that would tell."""

    def forward(self, x):
        return super().forward(F.layer_norm(x, (HIDDEN,)))


class Residual(Plain):
    """x + down(act(up(x)))."""

    def forward(self, x):
        return x + super().forward(x)


class Shared(nn.Module):
    """One block at two places."""

    def __init__(self):
        super().__init__()
        self.mlp = Plain()

    def forward(self, x):
        return self.mlp(1 + self.mlp(x))


class TwoInputs(Gated):
    """The gate sees something else."""

    def forward(self, x):
        return self.down(self.act(self.gate(x + 1)) * self.up(x))


class Leaky(Plain):
    """What is between the products goes elsewhere too."""

    def forward(self, x):
        h = self.act(self.up(x))
        return self.down(h) + h.sum(-1, keepdim=True)


class HalfBiased(Gated):
    """Only the gate has a bias."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(HIDDEN, WIDTH)


class Attention(nn.Module):
    """Three products of one x, and one of what comes of them."""

    def __init__(self, values: bool = True):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))

    def forward(self, x):
        return self.o(torch.softmax(self.q(x) @ self.k(x).T, -1) @ self.v(x))


NO_BLOCKS = {
    "attention": (lambda: Around(Attention()), []),
    "two heads in a row": (lambda: Around(nn.Linear(HIDDEN, HIDDEN)), []),
    "two inputs": (lambda: Around(TwoInputs()), []),
    "used inside too": (lambda: Around(Leaky()), []),
    "no activation": (lambda: Around(Plain(lambda x: x * 2)), ["layer.mlp.down: no known kind of expert"]),
    "an activation that nobody knows": (lambda: Around(Plain(F.mish)), ["layer.mlp.down: no known kind of expert"]),
    "a leak": (lambda: Around(Plain(F.leaky_relu)), ["layer.mlp.down: no known kind of expert"]),
    "no function of entries": (lambda: Around(Plain(lambda x: x.softmax(-1))), ["layer.mlp.down: no known kind of expert"]),
    "one bias of two": (lambda: Around(HalfBiased()), ["layer.mlp.down: only one of its two products has a bias"]),
    "a norm in its module": (lambda: Around(Normed()), ["layer.mlp.down: no modules hold it and nothing else"]),
    "a residual in its module": (lambda: Around(Residual()), ["layer.mlp.down: no modules hold it and nothing else"]),
    "weights used twice": (Shared, ["mlp.down: no modules hold it", "mlp.up: no known kind", "mlp.down: no modules hold it"]),
    "a product with what is no weight": (lambda: Around(Own()), ["layer.mlp: one of its products is not with a weight"]),
    "an activation in no module": (lambda: InPieces("nowhere"), ["output.dense: no modules hold it and nothing else"]),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_BLOCKS)
def test_what_is_no_block(name):
    make, reasons = NO_BLOCKS[name]
    blocks, skipped, _ = searched(make())
    assert blocks == [] and len(skipped) == len(reasons)
    assert all(told.startswith(reason) for told, reason in zip(skipped, reasons, strict=True))


class Own(Plain):
    """The second product is of what comes in, twice."""

    def forward(self, x):
        return F.linear(self.act(self.up(x)), torch.cat([x[:4], x[:4]])[:, :WIDTH])


MODELS = {
    "llama": ({}, GLU("silu"), [f"model.layers.{i}.mlp" for i in range(2)], ()),
    "qwen3": ({}, GLU("silu"), [f"model.layers.{i}.mlp" for i in range(2)], ()),
    "bert": ({}, FFN("gelu"), [f"encoder.layer.{i}.intermediate" for i in range(2)], ("output.dense",)),
    "vit": ({}, FFN("gelu"), [f"layers.{i}.mlp" for i in range(2)], ()),
    "clip": (
        {},
        FFN("quick_gelu"),
        [f"{tower}_model.encoder.layers.{i}.mlp" for tower in ("vision", "text") for i in range(2)],
        (),
    ),
    "qwen2_moe": ({"decoder_sparse_step": 2}, GLU("silu"), ["model.layers.0.mlp"], ()),
    "deepseek_v3": ({}, GLU("silu"), ["model.layers.0.mlp"], ()),
}


@pytest.mark.parametrize("family", MODELS)
def test_models(family, tmp_path):
    """Shared experts are of a mixture and no blocks; the dense layers beside mixtures are."""
    changes, expert, places, leave = MODELS[family]
    checkpoints.config(family, **changes).save_pretrained(tmp_path)
    model = build(open_source(str(tmp_path), task="auto" if expert == GLU() else "feature-extraction"))
    traced = trace_model(model)
    traced.program.recipes |= bind_nothing(model)
    for step in (Clean(), FoldWeights()):
        run(step, traced.program)
    blocks, skipped = find_blocks(traced.program, model.state_dict())
    assert sorted(block.enter for block in blocks) == sorted(places)
    assert {block.expert for block in blocks} == {expert}
    for block in blocks:
        owner = block.enter.rpartition(".")[0]
        assert block.leave == tuple(f"{owner}.{name}" for name in leave)
        assert (block.dense.hidden, block.dense.width) == (64, 96)
    shared = {"qwen2_moe": 1, "deepseek_v3": 1}.get(family, 0)
    assert sum("it belongs to a mixture that the model has" in reason for reason in skipped) == shared
