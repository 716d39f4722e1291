"""What holds of every algorithm, in every format; adding a file to mocomp/quant/algorithms adds its tests."""

from dataclasses import dataclass, fields, replace

import pytest
import torch

from mocomp.errors import Usage
from mocomp.quant.algorithms import Algorithm, Moments
from mocomp.quant.algorithms.rtn import RTN
from mocomp.quant.formats import Format, Grid, parse
from mocomp.registry import discover

EXPERTS = 3
KINDS: dict[str, type[Algorithm]] = discover("mocomp.quant.algorithms", "Algorithm")
TEXTS = (*discover("mocomp.quant.formats", "Format"), "int4:32", "int2:16:asym", "int8:asym", "fp8:tensor", "fp8:128x128")
SHAPES = ((EXPERTS, 6, 96), (EXPERTS, 5, 37), (EXPERTS, 131, 140), (EXPERTS, 1, 1))
"""Whole tiles and others, and more than one tile along either side of the largest."""
every_kind = pytest.mark.parametrize("name", KINDS)
every_format = pytest.mark.parametrize("text", TEXTS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def weights(shape: tuple[int, ...] = SHAPES[0]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator) * torch.randn(shape[-2], 1, generator=generator).exp()


def moments(columns: int, tokens: int = 300) -> Moments:
    """Of inputs that are correlated, larger in some columns, and different for each expert."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(EXPERTS, columns, columns, generator=generator)
    size = torch.randn(EXPERTS, 1, columns, generator=generator).exp()
    x = (torch.randn(EXPERTS, tokens, columns, generator=generator) @ mix) * size
    return Moments(x.mT @ x, x.abs().mean(1), torch.full((EXPERTS,), tokens))


def some(given: Moments, chosen: torch.Tensor | slice) -> Moments:
    return Moments(*(getattr(given, field.name)[chosen] for field in fields(Moments)))


def output_error(d: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """[E], the squared error of outputs."""
    return ((d.double() @ second.double()) * d).sum((-2, -1))


def same(a: tuple[torch.Tensor, Grid], b: tuple[torch.Tensor, Grid]) -> bool:
    zeros = (a[1].zero is None and b[1].zero is None) or torch.equal(a[1].zero, b[1].zero)
    return torch.equal(a[0], b[0]) and torch.equal(a[1].scale, b[1].scale) and zeros


def packs_exactly(algorithm: Algorithm, format: Format, shape: tuple[int, ...]) -> None:
    codes, grid = algorithm.quantise(weights(shape), format, moments(shape[-1]))
    assert codes.dtype == torch.uint8 and codes.shape == shape and codes.is_contiguous()
    assert grid.scale.shape == format.tiled(shape) and (grid.zero is not None) == ("zeros" in format.shapes(shape))
    assert same((codes, format.storable(grid)), (codes, grid))
    assert same(format.unpack(format.pack(codes, grid), shape[-1]), (codes, grid))


def experts_are_apart(algorithm: Algorithm, format: Format, shape: tuple[int, ...]) -> None:
    """Each comes out as if it were alone: with its own moments, and none of another's numbers."""
    w, known = weights(shape), moments(shape[-1])
    codes, grid = algorithm.quantise(w, format, known)
    for e in range(EXPERTS):
        part = slice(e, e + 1)
        alone = algorithm.quantise(w[part], format, some(known, part))
        assert same(alone, (codes[part], Grid(grid.scale[part], None if grid.zero is None else grid.zero[part])))


def no_worse_than_rounding(algorithm: Algorithm, format: Format) -> None:
    """In what it cares for: the weights, or where it is calibrated, the output on the data it has seen."""
    w, known = weights((EXPERTS, 48, 96)), moments(96)
    second = known.second if algorithm.calibrated else torch.eye(96).expand(EXPERTS, 96, 96)
    given = known if algorithm.calibrated else None
    ours, plain = (output_error(w - format.decode(*kind.quantise(w, format, given)), second) for kind in (algorithm, RTN()))
    assert (ours <= plain * (1 + 1e-5)).all()


@every_kind
@every_format
@every_shape
def test_packs_exactly(name, text, shape):
    packs_exactly(KINDS[name](), parse(text), shape)


@every_kind
@every_format
def test_says_the_same_twice_and_writes_to_nothing(name, text):
    w, known = weights(), moments(SHAPES[0][-1])
    first = KINDS[name]().quantise(w, parse(text), known)
    assert same(KINDS[name]().quantise(w, parse(text), known), first)
    fresh = moments(SHAPES[0][-1])
    assert torch.equal(w, weights())
    assert all(torch.equal(getattr(known, field.name), getattr(fresh, field.name)) for field in fields(Moments))


@every_kind
@every_format
def test_experts_are_apart(name, text):
    experts_are_apart(KINDS[name](), parse(text), SHAPES[1])


@every_kind
@every_format
def test_no_worse_than_rounding(name, text):
    no_worse_than_rounding(KINDS[name](), parse(text))


@every_kind
@every_format
def test_an_expert_without_tokens(name, text):
    """It is treated as its weights deserve, whatever the others saw; nothing becomes NaN."""
    w, known, form = weights(), moments(SHAPES[0][-1]), parse(text)
    for part in (known.second, known.magnitude, known.tokens):
        part[1] = 0
    codes, grid = KINDS[name]().quantise(w, form, known)
    values = form.decode(codes, grid)
    plain = form.decode(*RTN().quantise(w, form, None))
    assert values.isfinite().all()
    assert (w - values)[1].norm() <= (w - plain)[1].norm() * (1 + 1e-5)


@every_kind
@every_format
def test_rows_of_one_number(name, text):
    """Zeros stay zeros, exactly; where a row is all the same, it comes out near."""
    w, form = weights(), parse(text)
    w[:, 0], w[0, 1], w[0, 2] = 0.0, 0.25, -0.25
    values = form.decode(*KINDS[name]().quantise(w, form, moments(w.shape[-1])))
    assert values.isfinite().all() and (values[:, 0] == 0).all()
    assert (values[0, 1:3] - w[0, 1:3]).abs().max() < 0.1  # a third of a step of int2 is 0.083


@every_kind
@every_format
@pytest.mark.parametrize("power", [-20, 20])
def test_units_do_not_matter(name, text, power):
    """Nor does it matter how many tokens there were."""
    w, known, form = weights(), moments(SHAPES[0][-1]), parse(text)
    codes, grid = KINDS[name]().quantise(w, form, known)
    scaled = replace(known, second=known.second * 2.0**-power)
    other, bigger = KINDS[name]().quantise(w * 2.0**power, form, scaled)
    assert torch.equal(codes, other) and torch.equal(grid.scale * 2.0**power, bigger.scale)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.calibrated])
def test_what_is_calibrated_asks_for_data(name):
    with pytest.raises(Usage, match=f"{name} needs calibration data"):
        KINDS[name]().quantise(weights(), parse("int4:32"), None)


@dataclass(frozen=True)
class Fault(Algorithm):
    """Another algorithm, with a fault that one of the laws has to notice."""

    of: type[Algorithm] = RTN

    def quantise(self, w: torch.Tensor, format: Format, moments: Moments | None) -> tuple[torch.Tensor, Grid]:
        return self.wrong(*self.of().quantise(w, format, moments))

    def wrong(self, codes: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, Grid]:
        raise NotImplementedError


class OffTheGrid(Fault):
    def wrong(self, codes, grid):
        return codes, Grid(grid.scale * 1.01, grid.zero)


class TooCoarse(Fault):
    def wrong(self, codes, grid):
        return codes, Grid(grid.scale * 1.25, grid.zero)


class OfAnotherExpert(Fault):
    """Each expert gets the moments of its opposite."""

    def quantise(self, w, format, moments):
        return self.of().quantise(w, format, some(moments, torch.arange(len(w)).flip(0)))


def test_a_scale_that_cannot_be_stored_is_noticed():
    with pytest.raises(AssertionError):
        packs_exactly(OffTheGrid(), parse("mxfp4"), SHAPES[0])


def test_a_scale_too_large_is_noticed():
    with pytest.raises(AssertionError):
        no_worse_than_rounding(TooCoarse(), parse("int4:32"))


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.calibrated])
def test_moments_of_another_expert_are_noticed(name):
    with pytest.raises(AssertionError):
        experts_are_apart(OfAnotherExpert(KINDS[name]), parse("int4:32"), SHAPES[0])
