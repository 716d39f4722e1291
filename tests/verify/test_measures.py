"""An error that is no number is the largest there is, so that no comparison of it with a tolerance passes."""

import numpy as np
import pytest

from mocomp.verify.measures import LOWEST, relative_error

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("odd", [NAN, INF, -INF])
@pytest.mark.parametrize("side", ["actual", "expected", "both"])
def test_what_is_no_number_is_an_infinite_error(odd, side):
    actual, expected = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    for array in {"actual": [actual], "expected": [expected], "both": [actual, expected]}[side]:
        array[1, 1] = odd
    assert max(0.0, relative_error(actual, expected)) == INF


def test_never_is_no_number():
    expected = np.array([LOWEST, 2.0], np.float32)
    assert relative_error(np.array([LOWEST, 2.0], np.float32), expected) == 0.0
    assert relative_error(np.array([0.0, 2.0], np.float32), expected) == INF
