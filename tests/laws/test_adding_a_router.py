"""Adding a router is one file: it keeps the laws, is listed, is found in a user's block, and converts to both targets."""

import dataclasses
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mocomp import ConvertOptions, convert, routers
from mocomp.ir.specs import parse
from mocomp.models.recognition import recognise
from mocomp.models.user.source import from_module
from mocomp.registry import discover
from mocomp.report.listing import listing
from tests.laws.router_laws import LAWS, Case

FILE = '''
"""The k largest logits by their softplus (a router of this test)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from mocomp.routers import Evidence, Example, Router


@dataclass(frozen=True)
class Softplus(Router):
    """The k largest z, weights softplus(z) / (offset + their sum)."""

    name: ClassVar[str] = "softplus"
    offset: float = 1.0

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, ids = torch.topk(logits, self.k, -1)
        weights = F.softplus(values) + 1e-30
        return ids, weights / (self.offset + weights.sum(-1, keepdim=True))

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator["Softplus"]:
        if "softplus" in evidence.ops and not evidence.tensors:
            yield from (cls(evidence.k, number) for number in sorted(evidence.numbers) if 0 < number < 4)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(cls(1)), Example(cls(3, 0.5)))
'''


@pytest.fixture
def softplus(tmp_path, monkeypatch) -> Iterator[type[routers.Router]]:
    """The kind, in a folder of its own on the path of `mocomp.routers` for the time of a test."""
    (tmp_path / "softplus.py").write_text(FILE)
    monkeypatch.setattr(routers, "__path__", [*routers.__path__, str(tmp_path)])
    discover.cache_clear()
    yield discover("mocomp.routers", "Router")["softplus"]
    monkeypatch.undo()
    sys.modules.pop("mocomp.routers.softplus")
    delattr(routers, "softplus")
    discover.cache_clear()
    parse.cache_clear()


class Block(nn.Module):
    """As a user would write it, with a loop over the experts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.offset, self.gate = 0.5, nn.Linear(16, 4, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        scores, ids = self.gate(x).topk(2, dim=-1)
        weights = nn.functional.softplus(scores)
        weights = weights / (self.offset + weights.sum(-1, keepdim=True))
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            y = y + expert(x) * torch.where(ids == e, weights, 0.0).sum(-1, keepdim=True)
        return y


def test_a_file_is_all_it_takes(softplus):
    for example in softplus.examples():
        for law in LAWS:
            law(Case(example))
    assert ("softplus", "The k largest logits by their softplus (a router of this test).") in listing("routers")


def test_it_is_found_in_a_users_block(softplus):
    (found,) = recognise(Block().eval(), [{"x": torch.randn(2, 5, 16)}]).blocks
    assert found.how == "mixture" and found.router == softplus(2, 0.5)


def test_without_the_file_it_is_not(tmp_path):
    """Which proves that the test above is about the file."""
    assert "softplus" not in discover("mocomp.routers", "Router")
    assert recognise(Block().eval(), [{"x": torch.randn(2, 5, 16)}]).blocks == []


@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
def test_it_converts(softplus, target, tmp_path):
    x = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
    source = from_module(Block(), {"x": x}, {"x": ("batch", "tokens", None)})
    report = convert(source, tmp_path / target, dataclasses.replace(ConvertOptions(), target=target))
    assert report.parity is not None and report.parity.passed
    assert len(report.artifact.mixtures) == 1
