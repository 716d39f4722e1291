"""Recipes that compute give the same numbers however they are cut, and the numbers that they promise."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from mocomp.weights import recipes
from mocomp.weights.arithmetic import elementwise, mean, noise, pick, redrawn, scaled
from tests.weights.test_recipes import Shelf, same

ROWS = 12


def put(shelf: Shelf, shape: tuple[int, ...] = (ROWS, 5), dtype: torch.dtype = torch.float32):
    """A tensor of noise on the shelf, which spreads as weights do."""
    recipe, value = shelf.put(shape, dtype)
    value.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(len(shelf.tensors))))
    return recipe, value


@st.composite
def expressions(draw):
    """(shelf, recipe) of nested arithmetic over sources of one shape [12, 5], also in bfloat16, also of rearranged ones."""
    shelf = Shelf()
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    recipe, _ = put(shelf, dtype=dtype)
    indices = st.lists(st.integers(0, ROWS - 1), min_size=ROWS, max_size=ROWS)
    columns = st.lists(st.integers(0, 4), max_size=5, unique=True)
    steps = {
        "scaled": lambda r: scaled(r, draw(st.sampled_from([1.0, 0.25, -3.0]))),
        "mean": lambda r: mean([r, put(shelf, dtype=dtype)[0]], draw(st.sampled_from([None, [0.2, 0.8]]))),
        "elementwise": lambda r: elementwise(torch.maximum, r, put(shelf, dtype=dtype)[0]),
        "pick rows": lambda r: pick(r, 0, draw(indices)),
        "pick columns": lambda r: pick(r, 1, draw(st.permutations(range(5)))),
        "noise": lambda r: noise(r, draw(st.sampled_from([0.0, 0.1])), draw(st.integers(0, 1 << 42))),
        "redraw rows": lambda r: redrawn(r, 0, draw(columns), draw(st.integers(0, 1 << 42))),
        "redraw columns": lambda r: redrawn(r, 1, draw(columns), draw(st.integers(0, 1 << 42))),
        "turned twice": lambda r: recipes.permute(pick(recipes.permute(r, (1, 0)), 0, [4, 3, 2, 1, 0]), (1, 0)),
        "in another type": lambda r: recipes.cast(recipes.cast(r, torch.float64), dtype),
    }
    for name in draw(st.lists(st.sampled_from(sorted(steps)), min_size=1, max_size=4)):
        recipe = steps[name](recipe)
    return shelf, recipe


@given(expressions(), st.data())
def test_any_range_of_rows_is_that_range_of_the_whole(expression, data):
    shelf, recipe = expression
    whole = recipe.evaluate(shelf.read)
    assert (recipe.shape, recipe.dtype) == (tuple(whole.shape), whole.dtype) and whole.isfinite().all()
    start = data.draw(st.integers(0, ROWS))
    stop = data.draw(st.integers(start, ROWS))
    assert same(recipe.rows(shelf.read, start, stop), whole[start:stop])


@given(expressions(), st.integers(1, 400))
def test_chunks_of_any_limit_make_up_the_whole(expression, limit):
    shelf, recipe = expression
    assert same(torch.cat(list(recipe.chunks(shelf.read, limit))), recipe.evaluate(shelf.read))


@given(expressions())
def test_leaves_are_all_that_is_read_and_nothing_is_written_to(expression):
    shelf, recipe = expression
    before = {name: tensor.clone() for name, tensor in shelf.tensors.items()}
    recipe.evaluate(shelf.read)
    assert {name for name, _, _ in shelf.reads} <= {leaf.name for leaf in recipe.leaves()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in shelf.tensors.items())


def test_what_is_computed():
    shelf = Shelf()
    (a, x), (b, y) = put(shelf), put(shelf)
    expected = {
        scaled(a, 0.5): x * 0.5,
        mean([a, b]): (x + y) / 2,
        mean([a, b], [0.25, 0.75]): 0.25 * x + 0.75 * y,
        mean([a]): x,
        elementwise(torch.sub, a, b): x - y,
        pick(a, 0, [3, 4, 5, 0, 0]): x[[3, 4, 5, 0, 0]],
        pick(a, 1, [2, 0]): x[:, [2, 0]],
    }
    for recipe, value in expected.items():
        assert torch.allclose(recipe.evaluate(shelf.read), value, rtol=1e-6, atol=1e-7)
        assert recipe.shape == tuple(value.shape)


def test_no_two_functions_are_equal():
    """Of one shape and type, and yet not to be taken for one another, in a set or anywhere."""
    source, _ = put(Shelf())
    assert scaled(source, 2.0) != scaled(source, 3.0) and len({scaled(source, 2.0), scaled(source, 3.0)}) == 2
    assert recipes.literal(torch.zeros(3)) != recipes.literal(torch.ones(3))
    assert recipes.slice_of(source, 0, 1, 2) == recipes.slice_of(source, 0, 1, 2)


def test_a_mean_is_taken_in_float32():
    """In bfloat16 the sum of 256 ones and one of 1 is 256 again and again."""
    shelf = Shelf()
    parts = [shelf.put((1,), torch.bfloat16) for _ in range(300)]
    for _, value in parts:
        value.fill_(1.0)
    result = mean([recipe for recipe, _ in parts]).evaluate(shelf.read)
    assert result.dtype == torch.bfloat16 and result.item() == 1.0


def test_picked_rows_are_read_in_runs():
    """Neighbours at once, and no row that nobody asked for."""
    shelf = Shelf()
    source, _ = put(shelf)
    pick(source, 0, [7, 8, 9, 2, 3, 3]).evaluate(shelf.read)
    assert shelf.reads == [("t0", 7, 10), ("t0", 2, 4), ("t0", 3, 4)]
    shelf.reads.clear()
    pick(source, 0, [7, 8, 9, 2, 3, 3]).rows(shelf.read, 1, 4)
    assert shelf.reads == [("t0", 8, 10), ("t0", 2, 3)]


def test_noise_is_a_share_of_each_row():
    shelf = Shelf()
    source, value = put(shelf, (6, 4000))
    value *= torch.tensor([0.01, 0.1, 1.0, 10.0, 100.0, 0.0])[:, None]
    difference = noise(source, 0.05, 3).evaluate(shelf.read) - value
    size = value.pow(2).mean(1).sqrt()
    assert torch.allclose(difference.std(1), 0.05 * size, rtol=0.1) and torch.equal(difference[5], torch.zeros(4000))
    assert (difference.mean(1).abs() <= 0.005 * size).all()


def test_noise_of_a_vector_is_a_share_of_each_entry():
    shelf = Shelf()
    source, value = put(shelf, (4000,))
    relative = (noise(source, 0.05, 3).evaluate(shelf.read) - value) / value.abs()
    assert relative.std() == pytest.approx(0.05, rel=0.1)


def test_what_is_drawn_anew_spreads_like_the_row_that_it_replaces():
    shelf = Shelf()
    source, value = put(shelf, (6, 4000))
    value.mul_(torch.tensor([0.1, 1.0, 10.0, 1.0, 1.0, 1.0])[:, None]).add_(3.0)
    drawn = redrawn(source, 0, [0, 2], 3).evaluate(shelf.read)
    assert torch.equal(drawn[[1, 3, 4, 5]], value[[1, 3, 4, 5]])
    assert torch.allclose(drawn[[0, 2]].std(1), value[[0, 2]].std(1), rtol=0.1)
    assert torch.allclose(drawn[[0, 2]].mean(1), value[[0, 2]].mean(1), atol=0.5)
    assert abs(torch.corrcoef(torch.stack([drawn[0], value[0]]))[0, 1]) < 0.1
    columns = list(range(0, 4000, 2))
    half = redrawn(source, 1, columns, 3).evaluate(shelf.read)
    assert torch.equal(half[:, 1::2], value[:, 1::2]) and (half[:, ::2] != value[:, ::2]).float().mean() > 0.99
    assert torch.allclose(half[:, ::2].std(1), value.std(1), rtol=0.1)


def test_rows_of_one_entry_can_be_drawn_anew():
    """They have no deviation, and a number all the same."""
    shelf = Shelf()
    source, value = put(shelf, (4, 1))
    assert torch.allclose(redrawn(source, 0, [1], 3).evaluate(shelf.read), value)


@pytest.mark.parametrize("draw", [lambda r, seed: noise(r, 0.1, seed), lambda r, seed: redrawn(r, 0, [1, 2], seed)])
def test_seeds_tell_draws_apart(draw):
    """Also neighbouring ones: the weights of one expert take four in a row."""
    shelf = Shelf()
    source, _ = put(shelf)
    results = [draw(source, seed).evaluate(shelf.read) for seed in (0, 1, 2, 1)]
    assert torch.equal(results[1], results[3])
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])
    rows = noise(scaled(source, 0.0), 0.1, 0).evaluate(shelf.read)
    assert torch.equal(rows, torch.zeros_like(rows))


def test_rows_do_not_share_their_noise():
    shelf = Shelf()
    source, value = put(shelf, (40, 300))
    value.fill_(1.0)
    drawn = noise(source, 1.0, 7).evaluate(shelf.read) - 1
    other = noise(source, 1.0, 8).evaluate(shelf.read) - 1
    assert (torch.corrcoef(torch.cat([drawn, other])) - torch.eye(80)).abs().max() < 0.35


def test_computing_nothing_computes_nothing():
    """So that a copy without noise is the tensor of the checkpoint, bit for bit."""
    source, _ = put(Shelf())
    assert scaled(source, 1.0) is source and noise(source, 0.0, 3) is source and redrawn(source, 0, [], 3) is source
    assert mean([source]) is source
