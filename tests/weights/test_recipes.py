"""Recipes mean what torch means, however they are nested and however they are cut when they are written."""

from itertools import permutations, product

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mocomp.weights import recipes
from mocomp.weights.recipes import Recipe

DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32)
settings.register_profile("recipes", deadline=None, max_examples=150)
settings.load_profile("recipes")


class Shelf:
    """Leaves by name, with what was read of them; a read outside of a tensor is an error, as it is for a file."""

    def __init__(self):
        self.tensors: dict[str, torch.Tensor] = {}
        self.reads: list[tuple[str, int, int]] = []

    def put(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Recipe, torch.Tensor]:
        name = f"t{len(self.tensors)}"
        value = torch.arange(torch.Size(shape).numel()).add(1000 * len(self.tensors)).reshape(shape).to(dtype)
        self.tensors[name] = value
        return recipes.Tensor(shape, dtype, name), value

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        self.reads.append((name, start, stop))
        tensor = self.tensors[name]
        if tensor.dim() == 0:
            return tensor
        assert 0 <= start <= stop <= len(tensor)
        return tensor[start:stop]


def _slice(draw, shelf, recipe, value):
    dim = draw(st.integers(0, value.dim() - 1))
    start, stop = (draw(st.integers(-5, 5)) for _ in range(2))
    step = draw(st.integers(1, 3))
    return recipes.slice_of(recipe, dim, start, stop, step), value[(slice(None),) * dim + (slice(start, stop, step),)]


def _concat(draw, shelf, recipe, value):
    dim = draw(st.integers(0, value.dim() - 1))
    shape = list(value.shape)
    shape[dim] = draw(st.integers(0, 3))
    other, other_value = shelf.put(tuple(shape), value.dtype)
    pairs = draw(st.permutations([(recipe, value), (other, other_value), (recipe, value)]))
    return recipes.concat([r for r, _ in pairs], dim), torch.cat([v for _, v in pairs], dim)


def _stack(draw, shelf, recipe, value):
    dim = draw(st.integers(0, value.dim()))
    other, other_value = shelf.put(tuple(value.shape), value.dtype)
    return recipes.stack([recipe, other, recipe], dim), torch.stack([value, other_value, value], dim)


def _permute(draw, shelf, recipe, value):
    order = tuple(draw(st.permutations(range(value.dim()))))
    return recipes.permute(recipe, order), value.permute(order)


def _reshape(draw, shelf, recipe, value):
    shapes = [(value.numel(),), (1, *value.shape), (*value.shape, 1)]
    if value.dim() > 1:
        shapes += [(value.shape[0] * value.shape[1], *value.shape[2:]), (value.shape[0], value.shape[1:].numel())]
    shape = draw(st.sampled_from(shapes))
    return recipes.reshape(recipe, shape), value.reshape(shape)


def _cast(draw, shelf, recipe, value):
    dtype = draw(st.sampled_from(DTYPES))
    return recipes.cast(recipe, dtype), value.to(dtype)


@st.composite
def expressions(draw):
    """(shelf, recipe, the tensor that torch makes of the same leaves); sizes of 0 and scalars are among them."""
    shelf = Shelf()
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    recipe, value = shelf.put(shape, draw(st.sampled_from(DTYPES)))
    for _ in range(draw(st.integers(0, 6))):
        steps = [_stack, _reshape, _cast, _permute] + ([_slice, _slice, _concat] if value.dim() else [])
        if value.dim() < 5 and value.numel() < 500:
            recipe, value = draw(st.sampled_from(steps))(draw, shelf, recipe, value)
    return shelf, recipe, value


def same(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return actual.dtype == expected.dtype and actual.shape == expected.shape and torch.equal(actual, expected)


@given(expressions())
def test_evaluates_to_what_torch_computes(expression):
    shelf, recipe, value = expression
    assert (recipe.shape, recipe.dtype) == (tuple(value.shape), value.dtype)
    assert same(recipe.evaluate(shelf.read), value)


@given(expressions(), st.data())
def test_any_range_of_rows_is_that_range_of_the_whole(expression, data):
    shelf, recipe, value = expression
    if value.dim():
        start = data.draw(st.integers(0, len(value)))
        stop = data.draw(st.integers(start, len(value)))
        assert same(recipe.rows(shelf.read, start, stop), value[start:stop])


@given(expressions(), st.integers(1, 400))
def test_chunks_of_any_limit_make_up_the_whole(expression, limit):
    shelf, recipe, value = expression
    pieces = list(recipe.chunks(shelf.read, limit))
    assert same(torch.cat(pieces) if value.dim() else pieces[0], value)
    row = recipe.nbytes // max(len(value), 1) if value.dim() else recipe.nbytes
    assert all(piece.nbytes <= max(limit, row) for piece in pieces)


@given(expressions())
def test_leaves_are_all_that_is_read(expression):
    shelf, recipe, _ = expression
    recipe.evaluate(shelf.read)
    assert {name for name, _, _ in shelf.reads} <= {leaf.name for leaf in recipe.leaves()}


@pytest.mark.parametrize("orders", list(product(permutations(range(3)), repeat=2)), ids=str)
def test_two_permutations_are_the_one_that_follows(orders):
    shelf = Shelf()
    recipe, value = shelf.put((2, 3, 4))
    for order in orders:
        recipe, value = recipes.permute(recipe, order), value.permute(order)
    assert same(recipe.evaluate(shelf.read), value)


@pytest.mark.parametrize("dim", [0, 1])
def test_a_concat_cut_at_its_seams_is_the_part_itself(dim):
    """An operator that wants gate and up apart must not read both to drop one."""
    shelf = Shelf()
    (gate, _), (up, value) = shelf.put((4, 4)), shelf.put((4, 4))
    assert recipes.slice_of(recipes.concat([gate, up], dim), dim, 4, 8) is up
    inside = recipes.slice_of(recipes.concat([gate, up], dim), dim, 5, 7)
    assert same(inside.evaluate(shelf.read), value.narrow(dim, 1, 2))
    assert {name for name, _, _ in shelf.reads} == {"t1"}


def test_rows_of_a_stack_read_only_their_experts():
    """128 experts of a layer are written in the memory of a few."""
    shelf = Shelf()
    experts = recipes.cast(recipes.stack([shelf.put((6, 5))[0] for _ in range(8)], 0), torch.float64)
    experts.rows(shelf.read, 2, 4)
    assert shelf.reads == [("t2", 0, 6), ("t3", 0, 6)]


def test_rows_of_a_slice_read_only_their_rows():
    shelf = Shelf()
    source, value = shelf.put((10, 2))
    assert same(recipes.slice_of(source, 0, 1, 9, 3).rows(shelf.read, 1, 2), value[4:5])
    assert shelf.reads == [("t0", 4, 5)]


def test_a_literal_keeps_its_numbers_whatever_becomes_of_the_tensor_it_came_from():
    tensor = torch.arange(6.0).reshape(2, 3).T
    literal = recipes.literal(tensor)
    assert same(literal.evaluate(Shelf().read), tensor) and list(literal.leaves()) == []


def test_building_nothing_builds_nothing():
    """Identities vanish, so a weight that needs no work is recognised as the tensor of the checkpoint."""
    source, _ = Shelf().put((2, 3))
    assert recipes.cast(source, torch.float32) is source
    assert recipes.reshape(source, (2, 3)) is source
    assert recipes.concat([source], 0) is source
    assert recipes.slice_of(source, 1, 0, 99) is source
    assert recipes.permute(recipes.permute(source, (1, 0)), (1, 0)) is source
