"""Places and words of the page, against numpy and by hand."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mocomp.report.page import TEMPLATES, words
from mocomp.report.page.plots import linear_scale, log_scale

NUMBERS = st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=8)


@given(NUMBERS)
def test_logarithms_stand_where_numpy_puts_them(values):
    scale = log_scale(values)
    expected = np.interp(np.log10(values), np.log10([scale.low, scale.high]), [0, 100])
    assert np.allclose([scale.at(value) for value in values], expected, atol=0.01)
    assert scale.low <= min(values) * (1 + 1e-9) and scale.high >= max(values) * (1 - 1e-9)


@given(NUMBERS)
def test_even_scales_begin_at_zero_and_hold_everything(values):
    scale = linear_scale(values)
    assert scale.at(0.0) == 0
    assert np.allclose([scale.at(value) for value in values], 100 * np.array(values) / scale.high, atol=0.01)
    assert max(scale.at(value) for value in values) < 100


@given(NUMBERS, st.booleans())
def test_ticks_are_few_in_order_and_where_their_labels_say(values, log):
    scale = log_scale(values) if log else linear_scale(values)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 6
    assert [tick.at for tick in ticks] == sorted({tick.at for tick in ticks})
    assert all(math.isclose(scale.at(float(tick.label)), tick.at, abs_tol=0.02) for tick in ticks)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_no_number_stands_at_the_far_end(value):
    assert log_scale([1e-6, value]).at(value) == 100 and words.error(value) == "not finite"


def test_nothing_at_all_still_has_an_axis():
    assert len(log_scale([]).ticks()) == 2 and log_scale([0.0]).at(0.0) == 0 and len(linear_scale([0.0]).ticks()) > 1


SAID = [
    (words.size, 964, "964 B"), (words.size, 26520, "27 kB"), (words.size, 5136448, "5.1 MB"), (words.size, 1.21e9, "1.21 GB"),
    (words.gigabytes, 0.58, "0.58 GB"), (words.gigabytes, 0.09, "90 MB"),
    (words.duration, 0.0005, "0.5 ms"), (words.duration, 0.166, "166 ms"), (words.duration, 5.71, "5.7 s"),
    (words.duration, 134, "2 min 14 s"), (words.duration, 119.96, "2 min 0 s"), (words.duration, 59.97, "1 min 0 s"),
    (words.figures, 0.134, "0.134"), (words.figures, 12.34, "12.3"), (words.figures, 1240, "1,240"), (words.figures, 0, "0"),
    (words.times, 0.94, "0.94×"), (words.times, 8.84, "8.8×"), (words.times, 1234, "1,234×"),
    (words.percent, 1.0, "100 %"), (words.percent, 0.99996, "100 %"), (words.percent, 0.9997, "99.97 %"),
    (words.percent, 0.042, "4.2 %"),    (words.percent, 0.0, "0 %"), (words.percent, 0.00012, "0.012 %"),
    (words.count, 465, "465"), (words.count, 1284096, "1.28 M"), (words.count, 30.5e9, "30.5 B"),
    (words.change, -65, "−65"), (words.drift, 1.0019, "+0.19 %"), (words.error, 1.2e-6, "1.2e-06"),
]  # fmt: skip


@pytest.mark.parametrize(("say", "value", "text"), SAID)
def test_numbers_are_said(say, value, text):
    assert say(value) == text


@pytest.mark.parametrize(
    ("names", "pattern", "labels"),
    [
        (["model.layers.0.mlp.experts", "model.layers.11.mlp.experts"], "model.layers.*.mlp.experts", ["0", "11"]),
        (["text.layers.0.moe", "vision.layers.0.moe"], "*.layers.0.moe", ["text", "vision"]),
        (["a.0.moe", "b.1.moe"], "*.moe", ["a.0", "b.1"]),
        (["before model.0", "model.0", "outputs"], "", ["before model.0", "model.0", "outputs"]),
        (["only.one"], "", ["only.one"]),
        (["a", "a.b"], "", ["a", "a.b"]),
        ([], "", []),
    ],
)
def test_names_are_shortened_to_what_tells_them_apart(names, pattern, labels):
    assert words.shortened(names) == (pattern, labels)


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_from_what_is_behind_them(theme):
    css = (TEMPLATES / "page.css").read_text()
    pairs = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", css)
    colours = {name: luminance(shades[theme]) for name, *shades in pairs}

    def contrast(name: str, behind: str) -> float:
        light, dark = sorted((colours[name], colours[behind]), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    for behind in ("page", "paper"):
        assert all(contrast(name, behind) >= 4.5 for name in ("ink", "soft", "own", "good", "bad", "open", "limit"))
        assert all(contrast(f"peer{i}", behind) >= 3 for i in range(5)), "WCAG asks 3 of what is no text"
    assert contrast("rule", "paper") < 3, "what is not to be seen much is told from text"
