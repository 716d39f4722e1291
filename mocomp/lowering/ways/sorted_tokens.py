"""Tokens sorted by expert, and two products for each expert, as MegaBlocks orders them (Gale et al. 2022).

The products are W x^T: the weights, by far the larger of the two, are read as they lie, and only a few columns of tokens
are repacked; the fused operator computes x W^T and repacks every weight each time it runs.
"""

from __future__ import annotations

from typing import ClassVar

from mocomp.lowering.ways import Layer, Way, activation


class SortedTokens(Way):
    """A Scan over the experts; one without tokens multiplies empty matrices, which costs next to nothing.

    Scan wants results of one shape, so each is padded to the rows of the busiest expert; the padding is never read.
    """

    name: ClassVar[str] = "sorted"

    def takes(self, layer: Layer) -> bool:
        return layer.operator == "MoE"

    def bytes(self, layer: Layer, tokens: int) -> int:
        return 4 * tokens * layer.chosen * layer.hidden * 4  # where the busiest expert gets four times its share

    def body(self, layer: Layer, y: str) -> str:
        experts, hidden, gated = layer.experts, layer.hidden, layer.kind.gated
        b_in, b_out = layer.has("b_in"), layer.has("b_out")
        weights = [f"float[{layer.rows}, {hidden}] w_in_e", f"float[1, {hidden}, {layer.width}] w_out_e"]
        weights += [f"float[{layer.rows}, 1] b_in_e"] * b_in + [f"float[{hidden}] b_out_e"] * b_out
        stacked = ["w_in", "w_out_each"] + ["b_in_column"] * b_in + ["b_out"] * b_out
        return f"""
            k = Constant <value = int64[1] {{{layer.chosen}}}> ()
            first = Constant <value = int64[1] {{0}}> ()
            one = Constant <value = int64[1] {{1}}> ()
            two = Constant <value = int64[1] {{2}}> ()
            all = Constant <value = int64[1] {{-1}}> ()
            zero = Constant <value = int64 {{0}}> ()
            unit = Constant <value = int64 {{1}}> ()
            top, ids = TopK <axis = -1> (logits, k)
            share = Softmax <axis = -1> (top)
            flat = Reshape (ids, all)
            number = Shape (flat)
            expert, order = TopK <axis = 0, largest = 0> (flat, number)
            token = Div (order, k)
            x_sorted = Gather (x, token)
            ones = Expand (one, number)
            none = Constant <value = int64[{experts}] {_repeated(0, experts)}> ()
            count = ScatterElements <reduction = "add"> (none, flat, ones)
            end = CumSum (count, zero)
            start = Sub (end, count)
            busiest = ReduceMax <keepdims = 1> (count)
            short = Sub (busiest, count)
            starts = Unsqueeze (start, one)
            ends = Unsqueeze (end, one)
            counts = Unsqueeze (count, one)
            shorts = Unsqueeze (short, one)
            nothing = Sub (counts, counts)
            paddings = Concat <axis = 1> (nothing, nothing, nothing, nothing, shorts, nothing)
            splits = Concat <axis = 1> (counts, counts)
            widths = Constant <value = int64[{experts}, 1] {_repeated(layer.width, experts)}> ()
            twice = Add (counts, counts)
            shapes = Concat <axis = 1> (widths, twice)
            w_out_each = Unsqueeze (w_out, one)
            {"b_in_column = Unsqueeze (b_in, two)" if b_in else ""}
            y_padded = Scan <num_scan_inputs = {5 + len(stacked)}, body = experts (
                int64[1] from, int64[1] to, int64[6] padding, int64[2] halves, int64[2] shape, {", ".join(weights)}
              ) => (float[1, ?, {hidden}] y_e) {{
                x_e = Slice (x_sorted, from, to, first)
                h = Gemm <transB = 1> (w_in_e, x_e{", b_in_e" if b_in else ""})
                {"pairs = Reshape <allowzero = 1> (h, shape)" if gated else ""}
                {activation(layer.kind, "pairs" if gated else "h", "a", 1, "halves")}
                z = MatMul (w_out_e, a)
                z_rows = Transpose <perm = [0, 2, 1]> (z)
                {"y_own = Add (z_rows, b_out_e)" if b_out else ""}
                y_e = Pad ({"y_own" if b_out else "z_rows"}, padding)
              }}> (starts, ends, paddings, splits, shapes, {", ".join(stacked)})
            rows_shape = Constant <value = int64[2] {{-1, {hidden}}}> ()
            rows = Reshape (y_padded, rows_shape)
            total = Squeeze (number)
            place = Range (zero, total, unit)
            place_first = Gather (start, expert)
            within = Sub (place, place_first)
            base = Mul (expert, busiest)
            row_sorted = Add (base, within)
            row = ScatterElements (order, order, row_sorted)
            y_flat = Gather (rows, row)
            by_token = Constant <value = int64[3] {{-1, {layer.chosen}, {hidden}}}> ()
            y_chosen = Reshape (y_flat, by_token)
            share_column = Unsqueeze (share, all)
            y_weighted = Mul (y_chosen, share_column)
            {y} = ReduceSum <keepdims = 0> (y_weighted, one)
        """


def _repeated(value: int, times: int) -> str:
    return "{" + ", ".join([str(value)] * times) + "}"
