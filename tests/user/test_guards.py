"""A module that takes another way at other sizes is refused; a condition that changes nothing is not."""

import pytest
import torch
from torch import Tensor, nn

from mocomp.errors import Unsupported
from mocomp.models.user.loading import load_module
from mocomp.models.user.source import from_module


class Turning(nn.Module):
    """x [B, S, 4] -> [B, S, 4], otherwise where S is larger than `most`; `limit` is a size at which it does not run."""

    def __init__(self, most: int = 1 << 30, factor: float = 2.0, limit: int = 1 << 30) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.most, self.factor, self.limit = most, factor, limit

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > self.limit:
            raise ValueError("too long")
        y = self.inner(x)
        return y * self.factor if x.shape[1] > self.most else y + y


def source_of(module: nn.Module):
    x = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
    return from_module(module, {"x": x}, {"x": ("batch", "sequence", None)}, "turning")


def test_another_way_at_more_tokens_is_refused():
    """The proof goes to 23 tokens; the module turns at 100."""
    with pytest.raises(Unsupported, match="the traced one is for sequence <= 100, and it runs at batch 1, sequence 400"):
        load_module(source_of(Turning(100, 3.0)))


@pytest.mark.parametrize("module", [Turning(100, 2.0), Turning(limit=100), Turning(100, 3.0, 100)], ids=["same", "end", "both"])
def test_a_condition_that_changes_nothing_is_none(module):
    """Two ways that give the same, and a way that is never taken since the module ends before."""
    assert load_module(source_of(module)).program.outputs
