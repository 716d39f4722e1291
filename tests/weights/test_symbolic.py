"""Code that rearranges tensors gives, on recipes, recipes of what it would have given on data."""

import pytest
import torch
from torch.nn.functional import pad
from torch.utils._pytree import tree_leaves

from mocomp.errors import MocompError
from mocomp.weights import recipes
from mocomp.weights.recipes import Apply
from mocomp.weights.symbolic import RecipeTensor

TENSORS = {
    "a": torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0)),
    "b": torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16),
}


def read(name: str, start: int, stop: int) -> torch.Tensor:
    return TENSORS[name][start:stop]


def recorded(function):
    """The recipes that `function` leaves, run on tensors without data."""
    leaves = [RecipeTensor(recipes.Tensor(tuple(t.shape), t.dtype, name)) for name, t in TENSORS.items()]
    return [leaf.recipe for leaf in tree_leaves(function(*leaves)) if isinstance(leaf, RecipeTensor)]


REARRANGING = {
    "transpose": lambda a, b: a.transpose(-1, 1),
    "T": lambda a, b: (a[0].T, a.mT),
    "permute": lambda a, b: a.permute(2, -3, 1),
    "index": lambda a, b: a[-1, 1:, ::2],
    "negative slice": lambda a, b: a[:, -3:-1],
    "slice past the end": lambda a, b: a[2:99, 5:2],
    "select": lambda a, b: a.select(-1, -2),
    "view": lambda a, b: a.view(-1, 8),
    "reshape": lambda a, b: a.transpose(0, 1).reshape(6, -1),
    "flatten": lambda a, b: (a.flatten(1), a.flatten(0, -2)),
    "unsqueeze": lambda a, b: (a.unsqueeze(-1), a.unsqueeze(0), a[None, :, None]),
    "squeeze": lambda a, b: (a[:1].squeeze(0), a.squeeze(-2)),
    "split": lambda a, b: a.split(4, -1),
    "split to sizes": lambda a, b: a.split([1, 2, 3], 1),
    "chunk": lambda a, b: a.chunk(3, -1),
    "unbind": lambda a, b: a.unbind(-2)[2],
    "cat": lambda a, b: torch.cat([a, a[:1]], -3),
    "stack": lambda a, b: torch.stack([a, a, a], -1),
    "pad": lambda a, b: (pad(a, (0, 3)), pad(a, (1, 0, 0, 2)), pad(b, (0, 0, 2, 2), value=3.0), pad(a, (0, 0))),
    "cast": lambda a, b: (a.to(torch.float64), a.half(), b.float(), b.to("cpu"), a.to(b.dtype)),
    "copies": lambda a, b: (a.clone(), a.detach(), a.transpose(0, 1).contiguous()),
    "de-interleave": lambda a, b: torch.cat([a[:, 0::2], a[:, 1::2]], 1).transpose(1, 2),
    "interleave": lambda a, b: torch.stack([a[:, :3], a[:, 3:]], 2).reshape(a.shape),
}
COMPUTING = {
    "scale": lambda a, b: a * 2,
    "several tensors": lambda a, b: a + b,
    "matrix product": lambda a, b: a @ a.transpose(1, 2),
    "several results": lambda a, b: torch.aminmax(a, dim=1),
    "one of several results": lambda a, b: torch.topk(a, 2).values,
    "flip": lambda a, b: a.flip(0),
    "bits": lambda a, b: b.view(torch.int16),
    "computed, then arranged": lambda a, b: (a.abs()[1:] * 3).transpose(0, 1),
}


def agrees(function) -> list:
    found, expected = recorded(function), tree_leaves(function(*TENSORS.values()))
    assert len(found) == len(expected)
    for recipe, tensor in zip(found, expected, strict=True):
        assert (recipe.shape, recipe.dtype) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(recipe.evaluate(read), tensor)
        if len(tensor) > 1:
            assert torch.equal(recipe.rows(read, 1, len(tensor)), tensor[1:])
    return found


def kinds(recipe) -> set[type]:
    below = [recipe.source] if hasattr(recipe, "source") else [*getattr(recipe, "parts", ()), *getattr(recipe, "sources", ())]
    return {type(recipe)}.union(*(kinds(part) for part in below))


@pytest.mark.parametrize("name", REARRANGING)
def test_rearranging_stays_lazy(name):
    assert not any(Apply in kinds(recipe) for recipe in agrees(REARRANGING[name]))


@pytest.mark.parametrize("name", COMPUTING)
def test_anything_else_is_applied_to_whole_tensors(name):
    assert any(Apply in kinds(recipe) for recipe in agrees(COMPUTING[name]))


def test_concatenation_promotes_types_as_torch_does():
    agrees(lambda a, b: torch.cat([b, a]))


@pytest.mark.parametrize("write", [lambda a: a.mul_(2), lambda a: a[0].zero_(), lambda a: a.__setitem__(0, a[1])])
def test_writing_to_a_tensor_without_data_is_refused(write):
    """A recipe cannot see that the tensor it was made from has changed since; silence would lose the write."""
    with pytest.raises(MocompError, match="writes to"):
        recorded(lambda a, b: write(a))
