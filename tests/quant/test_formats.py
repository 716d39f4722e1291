"""Each format against a second reading of its definition: tables by hand, numpy, the types of ml_dtypes."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from mocomp.errors import MocompError, Usage
from mocomp.quant.formats import Grid, Stored, parse

E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
"""Of codes 0 to 15: OCP Microscaling Formats 1.0, table 5."""


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encoded(text: str, w: torch.Tensor) -> Stored:
    """w as it is on disk after plain rounding."""
    format = parse(text)
    grid = format.fit(w)
    return format.pack(format.encode(w, grid), grid)


def as_bytes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy()


def e4m3(code: int) -> float:
    """A sign, 4 bits of exponent with a bias of 7, 3 of mantissa; no infinity."""
    sign, exponent, mantissa = -1.0 if code >> 7 else 1.0, code >> 3 & 15, code & 7
    if code & 127 == 127:
        return float("nan")
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def around(values: list[float]) -> torch.Tensor:
    """Every value, every middle between two, and the float32 below and above each of them."""
    values_ = np.array(sorted(values), np.float32)
    points = np.concatenate([values_, (values_[1:] + values_[:-1]) / 2])
    below, above = np.nextafter(points, np.float32(-np.inf)), np.nextafter(points, np.float32(np.inf))
    return torch.from_numpy(np.concatenate([points, below, above, [np.float32(1e30), np.float32(-1e30)]]))


@pytest.mark.parametrize("text", ["mxfp4", "nvfp4"])
def test_e2m1_is_the_table_and_rounds_ties_to_even(text):
    format = parse(text)
    assert format.value(torch.arange(16, dtype=torch.uint8)).tolist() == E2M1
    x = around(E2M1)
    codes = x.numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15
    assert format.nearest(x).tolist() == codes.tolist()


def test_e4m3_is_the_formula_and_rounds_ties_to_even():
    format = parse("fp8")
    values = [e4m3(code) for code in range(256)]
    assert np.array_equal(format.value(torch.arange(256).to(torch.uint8)).numpy(), np.array(values, np.float32), equal_nan=True)
    x = around([value for value in values if not math.isnan(value)])
    codes = x.clamp(-448, 448).numpy().astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    assert format.nearest(x).tolist() == codes.tolist()


@pytest.mark.parametrize(("bits", "block"), [(2, 16), (4, 32), (8, 0)])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_integers_are_packed_from_the_lowest_bits(bits, block, asymmetric):
    w = randn(2, 3, 80) + 0.2
    text = ":".join([f"int{bits}", *([str(block)] if block else []), *(["asym"] if asymmetric else [])])
    stored = encoded(text, w)

    def unpacked(packed: torch.Tensor, columns: int) -> np.ndarray:
        flat = np.unpackbits(packed.numpy(), axis=-1, bitorder="little")
        parts = flat.reshape(*packed.shape[:-1], -1, bits)
        return (parts * 2.0 ** np.arange(bits)).sum(-1)[..., :columns]

    tiles = stored.scales.shape[-1]
    zeros = np.full((2, 3, tiles), 2.0 ** (bits - 1)) if stored.zeros is None else unpacked(stored.zeros, tiles)
    assert (stored.zeros is not None) == asymmetric
    wide = [np.repeat(part, block or 80, -1)[..., :80] for part in (zeros, stored.scales.numpy())]
    expected = (unpacked(stored.codes, 80) - wide[0]) * wide[1]
    np.testing.assert_allclose(parse(text).dequantise(stored, 80).numpy(), expected, rtol=1e-6, atol=1e-7)
    assert np.abs(expected - w.numpy()).max() < 0.6 * stored.scales.max()


def test_mxfp4_by_hand():
    """Largest 5.0: the exponent is floor(log2 5) - 2 = 0. The second block is the first times 2^-9, the third is zero."""
    first = torch.zeros(32)
    first[:6] = torch.tensor([5.0, -0.3, 0.2, 2.6, 1.7, -6.0])
    stored = encoded("mxfp4", torch.cat([first, first * 2**-9, torch.zeros(32)])[None])
    assert as_bytes(stored.scales)[0, :2].tolist() == [127, 118]
    for block in (stored.codes[0, :16], stored.codes[0, 16:32]):
        assert block.tolist() == [0x6 | 0x9 << 4, 0x0 | 0x5 << 4, 0x3 | 0xF << 4, *[0] * 13]
    assert not stored.codes[0, 32:].any()


def test_mxfp4_is_what_ml_dtypes_reads():
    w = randn(3, 7, 64) * torch.logspace(-20, 20, 7)[:, None]
    stored = encoded("mxfp4", w)
    scales = as_bytes(stored.scales).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    halves = np.stack([stored.codes.numpy() & 15, stored.codes.numpy() >> 4], -1).reshape(w.shape)
    expected = halves.view(ml_dtypes.float4_e2m1fn).astype(np.float32) * scales.repeat(32, -1)
    assert np.array_equal(parse("mxfp4").dequantise(stored, 64).numpy(), expected)


def test_weights_that_are_mxfp4_stay_as_they_are():
    """Whatever their largest code, so also where the specification takes another exponent than they came with."""
    generator = torch.Generator().manual_seed(0)
    limits = torch.arange(8).repeat(5)[:, None]
    codes = torch.randint(16, (40, 32), generator=generator)
    codes = torch.minimum(codes & 7, limits) | codes & 8
    w = torch.tensor(E2M1)[codes] * 2.0 ** torch.randint(-60, 60, (40, 1), generator=generator)
    assert torch.equal(parse("mxfp4").dequantise(encoded("mxfp4", w), 32), w)


@pytest.mark.parametrize("text", ["mxfp4", "nvfp4"])
def test_the_better_of_two_scales_is_taken(text):
    """Tile by tile, so that no tile is worse than under either and many are better."""
    format, w = parse(text), randn(4, 32, 256)
    top = format.tiles(w).abs().amax(-1)

    def errors(scale: torch.Tensor) -> torch.Tensor:
        grid = Grid(scale)
        return format.tiles(format.decode(format.encode(w, grid), grid) - w).square().sum(-1)

    scales = format.candidates(top)
    fine, coarse = map(errors, scales)
    chosen = errors(format.fit(w).scale)
    torch.testing.assert_close(chosen, torch.where(top > 7 * scales[0], coarse, torch.minimum(fine, coarse)))
    assert chosen.sum() < 0.98 * min(fine.sum(), coarse.sum())


def test_nvfp4_is_two_scales_of_which_the_larger_is_the_experts():
    """whole is the expert's largest weight / (6 * 448), up to the bits that it leaves empty."""
    w = randn(3, 5, 64) * torch.tensor([1e-6, 1.0, 1e6])[:, None, None]
    stored = encoded("nvfp4", w)
    assert stored.whole is not None and stored.scales.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(stored.whole, w.abs().amax((1, 2)) / (6 * 448), rtol=2**-20, atol=0)
    scales = as_bytes(stored.scales).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert scales.max((1, 2)).tolist() == [448, 448, 448]
    halves = np.stack([stored.codes.numpy() & 15, stored.codes.numpy() >> 4], -1).reshape(w.shape)
    products = scales * stored.whole.numpy()[:, None, None]
    expected = halves.view(ml_dtypes.float4_e2m1fn).astype(np.float32) * products.repeat(16, -1)
    assert np.array_equal(parse("nvfp4").dequantise(stored, 64).numpy(), expected)


def test_the_scale_of_all_scales_is_found_again():
    """From the products alone, however 448 is divided by: with all bits of it in use, some would be another one."""
    largest = torch.rand(100_000, generator=torch.Generator().manual_seed(0)).exp() * 1e-3
    format = parse("nvfp4")
    grid = format.storable(Grid(largest[:, None, None] * torch.tensor([1.0, 0.37, 1e-4, 0.0])))
    assert torch.equal(format.storable(grid).scale, grid.scale)
    whole = format.pack(torch.zeros(100_000, 1, 64, dtype=torch.uint8), grid).whole
    assert whole is not None and torch.equal(448.0 * whole.double(), (448.0 * whole).double())
    inverse = torch.tensor(1 / 448)
    naive = largest * inverse
    assert not torch.equal(448 * naive * inverse, naive)


def test_scales_that_cannot_be_stored_are_not():
    """Also those of a part of a weight, whose largest is another one."""
    format, w = parse("nvfp4"), randn(1, 4, 64) * torch.tensor([1.0, 1.1, 1.3, 7.7])[:, None]
    parts = [format.fit(w[:, :, k : k + 16]).scale for k in range(0, 64, 16)]
    for scale in (torch.rand(1, 4, 4), torch.cat(parts, -1)):
        with pytest.raises(MocompError, match="storable"):
            format.pack(torch.zeros(1, 4, 64, dtype=torch.uint8), Grid(scale))


@pytest.mark.parametrize(
    ("text", "tile"), [("fp8", (1, 200)), ("fp8:tensor", (130, 200)), ("fp8:128x128", (128, 128))], ids=lambda case: str(case)
)
def test_fp8_is_scaled_by_tile(text, tile):
    """As DeepSeek-V3 does with `weight_scale_inv`: the largest weight of each tile becomes 448."""
    w = randn(2, 130, 200)
    stored = encoded(text, w)
    rows, columns = tile
    for e, n, k in np.ndindex(2, -(-130 // rows), -(-200 // columns)):
        here = (e, slice(n * rows, (n + 1) * rows), slice(k * columns, (k + 1) * columns))
        scale = w[here].abs().max() / 448
        torch.testing.assert_close(stored.scales[e, n, k], scale)
        codes = (w[here] / stored.scales[e, n, k]).numpy().clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
        assert np.array_equal(as_bytes(stored.codes[here]), codes.view(np.uint8))
        assert np.abs(codes.astype(np.float32)).max() == 448
        assert torch.equal(parse(text).dequantise(stored, 200)[here], stored.codes[here].float() * stored.scales[e, n, k])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int4:33", "int4:33\nBlocks are of 16, 32, .*int4:32"),
        ("int4:32:64", "int4:32:64\nBlocks"),
        ("int4:", "Blocks are of"),
        ("int8:²", "Blocks are of"),
        ("fp8:7", "fp8:7\nWrite fp8 .*fp8:tensor or fp8:128x128"),
        ("fp8:", "Write fp8"),
        ("fp8:128x128:asym", "Write fp8"),
        ("mxfp4:16", "mxfp4:16\nIts blocks are always of 32: mxfp4"),
        ("nvfp4:asym", "Its blocks are always of 16: nvfp4"),
        ("int3", "no format 'int3'; they are fp8, int2, int4, int8, mxfp4, nvfp4"),
        ("", "no format ''"),
    ],
)
def test_what_is_no_format_is_refused_with_what_is(text, message):
    with pytest.raises(Usage, match=message):
        parse(text)


@pytest.mark.parametrize("text", ["int4:asym:32", "int8:asym", "fp8:tensor", "nvfp4"])
def test_what_users_write_is_read(text):
    format = parse(text)
    assert sorted(format.text.split(":")) == sorted(text.split(":"))
