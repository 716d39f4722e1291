"""A stable sort keeps the order of what ties, on both targets as in torch."""

import numpy as np
import pytest
import torch

from mocomp.opening import open_target
from mocomp.passes import run
from mocomp.passes.clean import Clean
from mocomp.weights.writer import Writer
from tests.programs import Formula, trace


def sorts(m: Formula, x: torch.Tensor) -> list[torch.Tensor]:
    """Along either side, upwards and downwards, of values that are whole and tie often."""
    whole = x.round()
    found = [torch.sort(whole, dim=dim, descending=down, stable=True) for dim in (0, -1) for down in (False, True)]
    return [part for values_and_places in found for part in values_and_places]


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_a_stable_sort_is_one(name, tmp_path):
    traced = trace(Formula(sorts))
    target = open_target(name)
    for step in (Clean(), *target.passes()):
        run(step, traced.program)
    target.lower(traced.program, tmp_path, Writer(traced.read))
    for tokens in (7, 40):
        x = torch.randn(tokens, 8, generator=torch.Generator().manual_seed(tokens))
        assert len(x.round().unique()) < tokens
        actual = target.open(tmp_path).run({"x": x.numpy()})
        for i, expected in enumerate(sorts(Formula(sorts), x)):
            np.testing.assert_array_equal(actual[f"y{i}"], expected.numpy())
