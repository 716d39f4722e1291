"""Which packed weights the operators of ONNX Runtime's CUDA provider compute on (onnxruntime 1.31, its moe_qmoe.md)."""

from __future__ import annotations

from mocomp.lowering import onnxruntime_ops
from mocomp.lowering.onnxruntime_ops import QUANT_TYPES
from mocomp.quant.formats import Format
from mocomp.quant.integer import Integer

LEAST_ASYMMETRIC, NARROW = 32, (16, 256)
"""Blocks from which on there may be zero points; the blocks that 2 bits are taken in."""
WHY = {
    "mxfp4": "torch's exporter to ONNX knows no float8_e8m0, the type of the scales of mxfp4; take nvfp4",
    "fp8": "QMoE of fp8 is in no CUDA provider but one that was built with it (quant_type fp8), which mocomp does not count on",
}
"""Why floats, by the name of their format, are not given to it."""


def has_mixture(stored: list[tuple[Format, tuple[int, ...]]]) -> str | None:
    """Why QMoE does not take weights of these formats and shapes (of w_in, of w_out), or None."""
    first, second = (form for form, _ in stored)
    if first.name in QUANT_TYPES or second.name in QUANT_TYPES:
        return _floats(stored)
    for form in (first, second):
        if not isinstance(form, Integer):
            return WHY.get(form.name, f"the CUDA provider has no QMoE of {form.text}")
    wrong = onnxruntime_ops.has_mixture(stored)
    if wrong is not None:
        return wrong.replace("the CPU provider", "the CUDA provider")
    for form, _ in stored:
        assert isinstance(form, Integer)
        if not form.symmetric and form.block < LEAST_ASYMMETRIC:
            return f"{form.text} has zero points, which CUDA takes in blocks of {LEAST_ASYMMETRIC} or more"
        if form.bits == 2 and not NARROW[0] <= form.block <= NARROW[1]:
            return f"{form.text}, and CUDA takes 2 bits in blocks of {NARROW[0]} to {NARROW[1]}"
    return None


def has_linear(form: Format, shape: tuple[int, ...]) -> str | None:
    """Why MatMulNBits does not take a weight of that format and shape, or None."""
    wrong = onnxruntime_ops.has_linear(form, shape)
    return None if wrong is None else wrong.replace("the CPU provider", "the CUDA provider")


def _floats(stored: list[tuple[Format, tuple[int, ...]]]) -> str | None:
    if stored[0][0] != stored[1][0]:
        return f"QMoE has one format, not {stored[0][0].text} and {stored[1][0].text}"
    for form, shape in stored:
        if shape[-1] % form.block:
            return f"a block of {form.block} does not divide {shape[-1]} columns"
    return None
