"""Blocks as the code bases of the field write them: recognised without their names, and converted with parity.

All styles stand in one module beside each other, each on the same input and with an output of its own, so that one
conversion takes them all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mocomp.errors import Unsupported
from mocomp.models.recognition import Found
from mocomp.models.user.loading import look
from mocomp.models.user.source import ModuleSource, from_module
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.report import Report
from tests.styles import deepspeed, gshard, published
from tests.styles.table import EXPERTS, HIDDEN, STYLES, WIDTH, Alone, Host

RECOGNISED = {
    "mixtral": "softmax_topk",
    "qwen2-moe": "softmax_topk",
    "qwen2-moe normalised": "softmax_topk",
    "deepseek-v2": "softmax_group_topk",
    "deepseek-v3": "sigmoid_topk",
    "switch": "capacity_sequence",
    "mesh switch": "capacity",
    "gshard": "capacity",
    "fairseq": "capacity",
    "deepspeed top-1": "capacity",
    "deepspeed top-2": "capacity",
    "deepspeed no drop": "softmax_topk",
    "deepspeed residual": "capacity",
    "tutel": "capacity",
    "tutel top-1": "capacity",
    "fastmoe": "softmax_topk",
    "megablocks": "softmax_topk",
    "megablocks normalised": "softmax_topk",
    "lucidrains all": "capacity_sequence",
    "lucidrains none": "capacity_sequence",
    "st-moe": "capacity_sequence",
    "st-moe top-3": "capacity_sequence",
    "st-moe block": "capacity_sequence",
    "soft-moe": "dispatched",
    "soft-moe geglu": "dispatched",
    "v-moe": "batch_priority",
    "v-moe top-1": "batch_priority",
    "limoe": "batch_priority",
    "moe-llava": "capacity",
    "uni-moe": "softmax_topk",
    "cumo wider": "softmax_topk",
    "cumo narrower": "softmax_topk",
    "notebook": "softmax_topk",
    "notebook residual": "softmax_topk",
}
"""The router as which each is recognised, whole; or `dispatched`: its experts alone, and the dispatch traced as it stands."""


def output_of(style: str) -> str:
    return style.replace(" ", "_").replace("-", "_")


class Together(nn.Module):
    """Every style on x [B, S, H]; where it takes two inputs, on `words` [B, L, H] as well."""

    def __init__(self) -> None:
        super().__init__()
        self.styles = nn.ModuleDict({output_of(name): style.module() for name, style in STYLES.items()})
        self.two = {output_of(name) for name, style in STYLES.items() if len(style.names) > 1}

    def forward(self, x: Tensor, words: Tensor) -> dict[str, Tensor]:
        given = {name: style(x, words) if name in self.two else style(x) for name, style in self.styles.items()}
        return {name: torch.cat(y, 1) if isinstance(y, tuple) else y for name, y in given.items()}


def inputs(batch: int, sequence: int, words: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"x": sequence, "words": words}
    return {name: torch.randn(batch, size, HIDDEN, generator=generator) for name, size in sizes.items()}


OTHERS = [inputs(4, 9, 2, 1), inputs(1, 30, 5, 2)]
"""Sizes of this test's choice, other than the example's and than those of the proof."""


@pytest.fixture(scope="module")
def source() -> ModuleSource:
    dynamic = {"x": ("batch", "sequence", None), "words": ("batch", "words", None)}
    return from_module(Together(), inputs(2, 7, 3, 0), dynamic, "styles")


@pytest.fixture(scope="module")
def found(source) -> dict[str, list[Found]]:
    """What was recognised in each style."""
    blocks = look(source).recognition.blocks
    return {name: [b for b in blocks if b.name.startswith(f"styles.{output_of(name)}.")] for name in STYLES}


@pytest.fixture(scope="module")
def converted(source, found, tmp_path_factory) -> tuple[Path, Report]:
    directory = tmp_path_factory.mktemp("styles") / "made"
    return directory, convert(source, directory, ConvertOptions(target="onnxruntime"))


def test_every_style_has_its_line():
    assert list(RECOGNISED) == list(STYLES)


@pytest.mark.parametrize("name", STYLES)
def test_a_style_is_recognised_without_its_name(found, name):
    (block,) = found[name]
    assert (block.router.name if block.router else block.how) == RECOGNISED[name]
    assert block.error < 1e-7 and (block.how == "dispatched") == (block.router is None)


def test_the_conversion_has_parity(converted):
    """At the sizes of the proof, which are not the traced ones."""
    _, report = converted
    assert report.parity is not None and report.parity.passed and len(report.parity.cases) >= 3


@pytest.mark.parametrize("given", OTHERS, ids=["4x9", "1x30"])
def test_the_artifact_is_the_original_at_other_sizes(source, converted, given):
    """On ONNX Runtime alone, against the modules as they were written."""
    session = onnxruntime.InferenceSession(converted[0] / "model.onnx")
    names = [value.name for value in session.get_outputs()]
    made = dict(zip(names, session.run(None, {k: v.numpy() for k, v in given.items()}), strict=True))
    with torch.no_grad():
        expected = source.module(**given)
    assert set(expected) == set(made)
    for name, y in expected.items():
        np.testing.assert_allclose(np.asarray(made[name]), y.numpy(), 1e-4, 1e-5 * float(y.abs().max()), err_msg=name)


@pytest.mark.parametrize("name", [name for name, style in STYLES.items() if style.drops])
def test_tokens_were_dropped_at_those_sizes(source, found, name):
    """Without that, parity would say nothing of a capacity."""
    (block,) = found[name]
    inner = source.module.get_submodule(block.name)
    wanted, had = 0, 0

    def count(_: Any, args: tuple, kwargs: dict, __: Any) -> None:
        nonlocal wanted, had
        _, _, weights, _ = block.observe(inner, args, kwargs)
        wanted += block.router.each * len(weights)
        had += int((weights > 0).sum())

    handle = inner.register_forward_hook(count, with_kwargs=True)
    with torch.no_grad():
        for given in OTHERS:
            source.module(**given)
    handle.remove()
    assert 0 < had < wanted


RANDOM = {
    "lucidrains as it comes": lambda: published.lucidrains(HIDDEN, EXPERTS),
    "st-moe as it comes": lambda: published.st_moe(HIDDEN, EXPERTS),
    "deepspeed's second expert by noise": lambda: deepspeed.MoE(
        HIDDEN,
        [gshard.FairseqFeedForward(HIDDEN, WIDTH) for _ in range(EXPERTS)],
        deepspeed.TopKGate(HIDDEN, EXPERTS, 2, second_by_noise=True),
    ),
}


@pytest.mark.parametrize("name", RANDOM)
def test_a_style_that_draws_at_random_is_refused(name, tmp_path):
    torch.manual_seed(0)
    x = 5 * inputs(2, 17, 1, 0)["x"]  # so that second experts are often not taken
    source = from_module(Alone(RANDOM[name]()), {"x": x}, {"x": ("batch", "sequence", None)}, name)
    with pytest.raises(Unsupported, match="one input"):
        convert(source, tmp_path / "made", ConvertOptions(target="onnxruntime"))
    assert not (tmp_path / "made").exists()


def test_two_levels_that_export_cannot_trace_are_refused_with_both_reasons(tmp_path):
    """lucidrains' hierarchical layer: its experts [2, 2] are found, its gates size a one-hot by the data."""
    torch.manual_seed(0)
    block = published.lucidrains_hierarchical(HIDDEN, 2, 2, second_policy_eval="all")
    source = from_module(Host(block), {"x": inputs(2, 7, 1, 0)["x"]}, {"x": ("batch", "sequence", None)}, "two levels")
    with pytest.raises(Unsupported, match="data-dependent"):
        convert(source, tmp_path / "made", ConvertOptions(target="onnxruntime"))
    (block,) = look(source).recognition.blocks
    assert block.how == "dispatched"
