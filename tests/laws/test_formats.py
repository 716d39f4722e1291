"""What holds of every format; adding a file to mocomp/quant/formats adds its tests."""

import itertools
import math
from dataclasses import dataclass, replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.fx.experimental.proxy_tensor import make_fx

from mocomp.quant.formats import Format, Grid, Stored, parse
from mocomp.quant.formats.int4 import Int4
from mocomp.quant.formats.mxfp4 import MXFP4
from mocomp.quant.integer import Integer
from mocomp.registry import discover

KINDS = discover("mocomp.quant.formats", "Format")
FORMS = {name: ("16", "32", "128", "asym", "16:asym", "64:asym") for name, kind in KINDS.items() if issubclass(kind, Integer)}
FORMS |= {"fp8": ("tensor", "128x128")}
"""What can stand after the name of a format, beside nothing."""
TEXTS = [*KINDS, *(f"{name}:{form}" for name, forms in FORMS.items() for form in forms)]
SHAPES = [(2, 5, 48), (3, 130, 200), (1, 1, 1), (7, 33), (2, 2, 3, 64)]
every_format = pytest.mark.parametrize("text", TEXTS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def noise(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Weights whose rows and columns differ in size, as those of a network do."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randn(size, generator=generator).exp() for size in ((shape[-2], 1), (shape[-1],)))
    return torch.randn(shape, generator=generator) * rows * columns


def any_grid(format: Format, shape: tuple[int, ...]) -> Grid:
    """Scales over many magnitudes, as algorithms may come up with, and zero points where the format has them."""
    tiled = format.tiled(shape)
    scale = noise((*tiled[:-2], 1, math.prod(tiled[-2:])), 1).abs().mul(0.01).reshape(tiled)
    asymmetric = "zeros" in format.shapes(shape)
    return Grid(scale, 1.5 + noise(tiled, 2) if asymmetric else None)


def numbers(format: Format) -> torch.Tensor:
    """Every code that is a number."""
    codes = torch.arange(1 << format.bits, dtype=torch.int64).to(torch.uint8)
    return codes[format.value(codes).isfinite()]


def any_codes(format: Format, shape: tuple[int, ...]) -> torch.Tensor:
    known = numbers(format)
    return known[torch.randint(len(known), shape, generator=torch.Generator().manual_seed(3))]


def same(a: Grid, b: Grid) -> bool:
    zeros = (a.zero is None and b.zero is None) or (a.zero is not None and b.zero is not None and torch.equal(a.zero, b.zero))
    return torch.equal(a.scale, b.scale) and zeros


def packing_keeps_codes_and_grid(format: Format, shape: tuple[int, ...]) -> None:
    for grid in (format.fit(noise(shape)), format.storable(any_grid(format, shape))):
        codes = any_codes(format, shape)
        codes_after, grid_after = format.unpack(format.pack(codes, grid), shape[-1])
        assert torch.equal(codes_after, codes) and same(grid_after, grid)


def what_is_storable_stays(format: Format, shape: tuple[int, ...]) -> None:
    for grid in (format.fit(noise(shape)), format.storable(any_grid(format, shape))):
        assert same(format.storable(grid), grid)
        assert grid.scale.dtype == torch.float32 and grid.scale.shape == format.tiled(shape) and (grid.scale > 0).all()


def a_storable_grid_is_near(format: Format, shape: tuple[int, ...]) -> None:
    """Within a factor of 2 where it is not too small for the largest; `whole` of nvfp4 spans 2^17."""
    grid = any_grid(format, shape)
    ratio = format.storable(grid).scale / grid.scale
    assert ((ratio > 0.5) & (ratio < 2) | (grid.scale < grid.scale.amax() / 2**16)).all()


def shapes_are_those_of_the_tensors(format: Format, shape: tuple[int, ...]) -> None:
    made = format.pack(any_codes(format, shape), format.fit(noise(shape))).tensors()
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in made.items()} == format.shapes(shape)
    assert sum(tensor.nbytes for tensor in made.values()) == format.nbytes(shape)


def no_weight_is_off_by_more_than_half_a_step(format: Format, w: torch.Tensor) -> None:
    """Half of the largest step between values, times the scale of the tile, with room for the rounding of float32."""
    grid = format.fit(w)
    restored = format.dequantise(format.pack(format.encode(w, grid), grid), w.shape[-1])
    step = format.value(numbers(format)).sort().values.diff().max()
    scale = tile_by_tile(format, grid.scale, w.shape)
    assert restored.isfinite().all() and restored.dtype == torch.float32
    assert ((restored.double() - w).abs() <= 0.5001 * step * scale.double()).all()


def values_of_codes_are_kept(format: Format, shape: tuple[int, ...]) -> None:
    grid = format.storable(any_grid(format, shape))
    w = format.decode(any_codes(format, shape), grid)
    assert torch.equal(format.decode(format.encode(w, grid), grid), w)


def tile_by_tile(format: Format, per_tile: torch.Tensor, shape: tuple[int, ...] | torch.Size) -> torch.Tensor:
    """`Format.spread` as a loop."""
    rows, columns = format.tile
    spread = torch.empty(shape)
    for n, k in itertools.product(range(shape[-2]), range(shape[-1])):
        spread[..., n, k] = per_tile[..., n // rows if rows else 0, k // columns if columns else 0]
    return spread


def every_weight_is_in_its_tile(format: Format, shape: tuple[int, ...]) -> None:
    per_tile, w = noise(format.tiled(shape)), noise(shape, 1)
    assert torch.equal(format.spread(per_tile, shape).expand(shape), tile_by_tile(format, per_tile, shape))
    rows, columns = format.tile
    rows, columns = rows or shape[-2], columns or shape[-1]
    tiles = format.tiles(w, fill=math.inf)
    assert tiles.shape == (*format.tiled(shape), rows * columns)
    for g in range(tiles.shape[-2]):
        for m in range(tiles.shape[-3]):
            tile = w[..., m * rows : (m + 1) * rows, g * columns : (g + 1) * columns].flatten(-2)
            inside = tiles[..., m, g, :].isfinite()
            assert torch.equal(tiles[..., m, g, :][inside], tile.flatten())


LAWS = (
    packing_keeps_codes_and_grid, what_is_storable_stays, a_storable_grid_is_near, shapes_are_those_of_the_tensors,
    values_of_codes_are_kept, every_weight_is_in_its_tile,
)  # fmt: skip


@every_format
@every_shape
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law, text, shape):
    law(parse(text), shape)


@st.composite
def weights(draw):
    """w [E, N, K] of what breaks quantisers: nothing but zeros, one outlier, denormals, constant rows, huge values."""
    shape = draw(st.integers(1, 2)), draw(st.integers(1, 6)), draw(st.integers(1, 70))
    w = noise(shape, draw(st.integers(0, 1 << 30)))
    kinds = {
        "usual": w,
        "zeros": torch.zeros(shape),
        "one outlier": torch.zeros(shape).index_fill(-1, torch.tensor([draw(st.integers(0, shape[-1] - 1))]), -1e3) + 1e-3 * w,
        "denormals": w.sign() * 1e-42,
        "tiny beside large": w * torch.logspace(0, -30, shape[-1]),
        "constant rows": w[..., :1].expand(shape).contiguous(),
        "all above zero": w.abs() + 1,
        "huge": 1e30 * w / w.abs().amax(),
        "just at what is cut": 7 * w.sign(),
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))]


@every_format
@settings(deadline=None, max_examples=30)
@given(w=weights())
def test_rounding_is_bounded_and_finite_whatever_the_weights(text, w):
    no_weight_is_off_by_more_than_half_a_step(parse(text), w)


@every_format
@settings(deadline=None, max_examples=15)
@given(w=weights())
def test_what_fits_any_weights_is_storable(text, w):
    format = parse(text)
    grid = format.fit(w)
    assert same(format.storable(grid), grid)
    assert same(format.unpack(format.pack(format.encode(w, grid), grid), w.shape[-1])[1], grid)


@every_format
def test_its_text_is_read_back(text):
    format = parse(text)
    assert format.text == text and parse(format.text) == format


@every_format
def test_weights_are_not_written_to(text):
    w, format = noise((2, 5, 48)), parse(text)
    before = w.clone()
    format.encode(w, format.fit(w))
    assert torch.equal(w, before)


@every_format
def test_dequantising_can_be_traced(text):
    """With symbolic sizes, as the meaning of an op in a program is."""
    format, shape = parse(text), (2, 5, 48)
    tensors = format.pack(any_codes(format, shape), format.fit(noise(shape))).tensors()

    def restored(*parts: torch.Tensor) -> torch.Tensor:
        return format.dequantise(Stored(**dict(zip(tensors, parts, strict=True))), shape[-1])

    traced = make_fx(restored, tracing_mode="symbolic")(*tensors.values())
    assert torch.equal(traced(*tensors.values()), restored(*tensors.values()))


@every_format
def test_bits_per_weight_are_those_of_its_arithmetic(text):
    """Codes, a scale per tile, a zero point per tile that is packed as codes are."""
    shape = (4, 2048, 4096)
    format = parse(text)
    scale = {"mxfp4": 8, "nvfp4": 8}.get(format.name, 32)
    zero = format.bits if text.endswith("asym") else 0
    rows, columns = format.tile
    weights_per_tile = (rows or shape[-2]) * (columns or shape[-1])
    expected = format.bits + (scale + zero) / weights_per_tile
    assert format.nbytes(shape) * 8 / math.prod(shape) == pytest.approx(expected, rel=0.01)


@dataclass(frozen=True)
class Swapped(Int4):
    """The second code of a byte where the first is looked for."""

    def pack(self, codes, grid):
        stored = super().pack(codes, grid)
        return replace(stored, codes=stored.codes >> 4 | stored.codes << 4)


@dataclass(frozen=True)
class Shifted(Int4):
    """Each tile's scale at the tile after it."""

    def spread(self, per_tile, shape):
        return super().spread(per_tile.roll(1, -1), shape)


@dataclass(frozen=True)
class LateScales(Int4):
    """The same on disk alone."""

    def pack(self, codes, grid):
        return super().pack(codes, Grid(grid.scale.roll(1, -1)))


@dataclass(frozen=True)
class Short(Int4):
    """Shapes that forget the last code of an odd row."""

    def shapes(self, shape):
        return super().shapes(shape) | {"codes": ((*shape[:-1], shape[-1] // 2), torch.uint8)}


@dataclass(frozen=True)
class Shrinking(Int4):
    """A grid that is another one each time that it is stored."""

    def storable(self, grid):
        return Grid(super().storable(grid).scale * 0.999)


@dataclass(frozen=True)
class Distant(Int4):
    """A grid that can be stored, and has nothing to do with the one that was asked for."""

    def storable(self, grid):
        return Grid(torch.ones_like(grid.scale))


@dataclass(frozen=True)
class Floored(MXFP4):
    """The exponent of the specification in every case: what is above 7 of it is cut by more than half a step."""

    def candidates(self, top):
        fine, _ = super().candidates(top)
        return fine, fine


@dataclass(frozen=True)
class Downwards(Int4):
    """Rounding down."""

    def nearest(self, x):
        return super().nearest(x.floor())


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (Swapped(32), packing_keeps_codes_and_grid),
        (LateScales(32), packing_keeps_codes_and_grid),
        (Short(32), shapes_are_those_of_the_tensors),
        (Shrinking(32), what_is_storable_stays),
        (Distant(32), a_storable_grid_is_near),
        (Shifted(32), every_weight_is_in_its_tile),
        (Swapped(32), lambda format, shape: no_weight_is_off_by_more_than_half_a_step(format, noise(shape))),
        (Shifted(32), lambda format, shape: no_weight_is_off_by_more_than_half_a_step(format, noise(shape))),
        (Floored(), lambda format, shape: no_weight_is_off_by_more_than_half_a_step(format, noise(shape))),
        (Downwards(32), lambda format, shape: no_weight_is_off_by_more_than_half_a_step(format, noise(shape))),
        (Downwards(32), values_of_codes_are_kept),
    ],
)
def test_a_broken_format_is_caught(broken, law):
    with pytest.raises(AssertionError):
        law(broken, (2, 5, 97))
