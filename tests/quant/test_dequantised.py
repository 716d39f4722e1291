"""A quantised weight as a recipe: its rows, and its parts after all that may be done to a weight."""

import pytest
import torch

from mocomp.quant.dequantised import Dequantised, parts_of
from mocomp.quant.formats import Stored, parse
from mocomp.weights import recipes
from mocomp.weights.arithmetic import pick


def same_as_parts(recipe, read):
    parts = parts_of(recipe)
    assert parts is not None
    format = parse(parts[0])
    assert {n: (p.shape, p.dtype) for n, p in parts[1].items()} == format.shapes(recipe.shape)
    stored = Stored(**{name: part.evaluate(read) for name, part in parts[1].items()})
    assert torch.equal(format.dequantise(stored, recipe.shape[-1]), recipe.evaluate(read).float())


def leaf(text, seed=0, shape=(2, 256, 64)):
    """A weight in a format, its parts in memory."""
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    format = parse(text)
    grid = format.fit(w)
    stored = format.pack(format.encode(w, grid), grid)
    return Dequantised(shape, torch.float32, text, {n: recipes.literal(t) for n, t in stored.tensors().items()})


ROWS, BLOCKS, ONE, WHOLE = "int4:32:asym", "fp8:128x128", "fp8:tensor", "nvfp4"
ALL = sorted({ROWS, BLOCKS, ONE, WHOLE})
"""Formats whose entries are of a row, of tiles of rows, of an expert, of both a row and an expert."""
STEPS = {
    "experts stacked": (lambda a, b: recipes.stack([a, b], 0), ALL),
    "experts stacked within": (lambda a, b: recipes.stack([a, b], 1), ALL),
    "experts joined": (lambda a, b: recipes.concat([a, b], 0), ALL),
    "experts cut": (lambda a, b: recipes.slice_of(a, 0, 1, 2), ALL),
    "experts picked": (lambda a, b: pick(a, 0, [1, 0, 1]), ALL),
    "experts in a dimension more": (lambda a, b: recipes.reshape(a, (1, 2, 256, 64)), ALL),
    "another floating type": (lambda a, b: recipes.cast(a, torch.float64), ALL),
    "rows joined": (lambda a, b: recipes.concat([a, b], 1), {ROWS, BLOCKS}),
    "rows joined after half a tile": (lambda a, b: recipes.concat([recipes.slice_of(a, 1, 128, 192), b], 1), {ROWS}),
    "rows stacked": (lambda a, b: recipes.stack([a, b], 2), {ROWS}),
    "rows cut at tiles": (lambda a, b: recipes.slice_of(a, 1, 128, 256), {ROWS, BLOCKS, WHOLE}),
    "rows cut": (lambda a, b: recipes.slice_of(a, 1, 64, 256), {ROWS, WHOLE}),
    "every second row": (lambda a, b: recipes.slice_of(a, 1, 0, 256, 2), {ROWS, WHOLE}),
    "rows picked": (lambda a, b: pick(a, 1, [3, 1]), {ROWS, WHOLE}),
    "rows of all experts": (lambda a, b: recipes.reshape(a, (512, 64)), {ROWS}),
    "rows in two dimensions": (lambda a, b: recipes.reshape(a, (2, 128, 2, 64)), {ROWS}),
    "rows before experts": (lambda a, b: recipes.permute(a, (1, 0, 2)), {ROWS}),
    "columns cut": (lambda a, b: recipes.slice_of(a, 2, 0, 32), set()),
    "columns joined": (lambda a, b: recipes.concat([a, b], 2), set()),
    "columns picked": (lambda a, b: pick(a, 2, list(range(64))), set()),
    "columns before rows": (lambda a, b: recipes.permute(a, (0, 2, 1)), set()),
    "columns stacked": (lambda a, b: recipes.stack([a, b], 3), set()),
    "columns in two dimensions": (lambda a, b: recipes.reshape(a, (2, 256, 2, 32)), set()),
    "whole numbers": (lambda a, b: recipes.cast(a, torch.int32), set()),
    "formats mixed": (lambda a, b: recipes.stack([a, leaf("int8")], 0), set()),
    "floats among them": (lambda a, b: recipes.stack([a, recipes.literal(torch.zeros(2, 256, 64))], 0), set()),
}


@pytest.mark.parametrize("step", STEPS)
def test_parts_follow_what_leaves_rows_whole(step):
    make, kept = STEPS[step]
    for text in ALL:
        recipe = make(leaf(text), leaf(text, seed=1))
        if text not in kept:
            assert parts_of(recipe) is None, text
        elif text == ROWS or len(recipe.shape) == 3:
            same_as_parts(recipe, None)
        else:
            assert parts_of(recipe) is not None


@pytest.mark.parametrize("text", [*ALL, "mxfp4", "fp8"])
def test_any_rows_are_the_rows_of_the_whole(text):
    weight = leaf(text, shape=(300, 64))
    whole = weight.evaluate(None)
    for start, stop in ((0, 1), (5, 130), (128, 256), (299, 300)):
        assert torch.equal(weight.rows(None, start, stop), whole[start:stop])
