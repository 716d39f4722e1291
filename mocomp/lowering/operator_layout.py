"""Weights in the order in which the operators of ONNX Runtime read them.

Dimension letters: E experts, N rows, K columns, G blocks of columns.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from mocomp.quant.formats import pack_bits, unpack_bits
from mocomp.weights import recipes
from mocomp.weights.recipes import Apply, Recipe

MIXTURES = ("MoE", "QMoE")


def arrange(model: ir.Model, weights: dict[str, Recipe]) -> dict[str, Recipe]:
    """The recipes of all weights, those that an operator wants in another order changed; their shapes in `model` as well."""
    arranged = dict(weights)

    def change(value: ir.Value | None, layout: Callable[[Recipe], Recipe]) -> None:
        if value is not None and value.name is not None:
            arranged[value.name] = layout(arranged[value.name])
            value.shape = ir.Shape(arranged[value.name].shape)

    for node in model.graph:
        if node.op_type in MIXTURES and "swiglu_fusion" in node.attributes:
            of_w_in = (2, 3) if node.op_type == "MoE" else (2, 3, 4, 11)
            for i in of_w_in:
                change(_input(node, i), interleaved)
        if node.op_type == "QMoE" and "block_size" not in node.attributes:
            for i, zeros in ((3, 11), (6, 12)):
                bits = node.attributes["expert_weight_bits"].as_int()
                change(_input(node, i), lambda scales: recipes.reshape(scales, scales.shape[:2]))
                change(_input(node, zeros), lambda packed, bits=bits: _zeros_of_rows(packed, bits))
        if node.op_type == "MatMulNBits":
            block, bits = (node.attributes[name].as_int() for name in ("block_size", "bits"))
            change(node.inputs[1], lambda codes, size=block * bits // 8: _in_blocks(codes, size))
    return arranged


def interleaved(recipe: Recipe) -> Recipe:
    """[E, 2F, ...] gate rows then up rows -> rows gate 0, up 0, gate 1, up 1, ..."""
    half = recipe.shape[1] // 2
    pair = recipes.stack([recipes.slice_of(recipe, 1, 0, half), recipes.slice_of(recipe, 1, half, 2 * half)], 2)
    return recipes.reshape(pair, recipe.shape)


def _input(node: ir.Node, i: int) -> ir.Value | None:
    return node.inputs[i] if i < len(node.inputs) else None


def _zeros_of_rows(packed: Recipe, bits: int) -> Recipe:
    """Zero points of whole rows, each in a byte of its own [E, N, 1] -> packed along N [E, ceil(N * bits / 8)]."""
    shape = (packed.shape[0], -(-packed.shape[1] * bits // 8))
    return Apply(shape, packed.dtype, lambda zeros: pack_bits(unpack_bits(zeros[0], bits, 1)[..., 0], bits), (packed,))


def _in_blocks(codes: Recipe, size: int) -> Recipe:
    """[N, bytes of a row] -> [N, G, bytes of a block]."""
    return recipes.reshape(codes, (codes.shape[0], codes.shape[1] // size, size))
