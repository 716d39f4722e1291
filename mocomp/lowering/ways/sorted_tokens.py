"""Tokens sorted by expert, and two products for each expert, as MegaBlocks orders them (Gale et al. 2022).

The products are W x^T: the weights, by far the larger of the two, are read as they lie, and only a few columns of tokens
are repacked; the fused operator computes x W^T and repacks every weight each time it runs.
"""

from __future__ import annotations

from typing import ClassVar

from mocomp.lowering.ways import Layer, Way, weighted_sum


class SortedTokens(Way):
    """A Scan over the experts, whose slices of the weights are views; an If in it passes by those without tokens.

    Scan wants results of one shape, so each is padded to the rows of the busiest expert; the padding is never read.
    """

    name: ClassVar[str] = "sorted"

    def takes(self, layer: Layer) -> bool:
        return not layer.form

    def bytes(self, layer: Layer, tokens: int) -> int:
        return 4 * tokens * layer.chosen * layer.hidden * 4  # where the busiest expert gets four times its share

    def body(self, layer: Layer, y: str) -> str:
        experts, hidden = layer.experts, layer.hidden
        b_in, b_out = layer.has("b_in"), layer.has("b_out")
        weights = [f"float[{layer.rows}, {hidden}] w_in_e", f"float[1, {hidden}, {layer.width}] w_out_e"]
        weights += [f"float[{layer.rows}, 1] b_in_e"] * b_in + [f"float[{hidden}] b_out_e"] * b_out
        stacked = ["w_in", "w_out_each"] + ["b_in_column"] * b_in + ["b_out"] * b_out
        return f"""
            {layer.choice()}
            chosen = Constant <value = int64[1] {{{layer.chosen}}}> ()
            first = Constant <value = int64[1] {{0}}> ()
            one = Constant <value = int64[1] {{1}}> ()
            two = Constant <value = int64[1] {{2}}> ()
            all = Constant <value = int64[1] {{-1}}> ()
            zero = Constant <value = int64 {{0}}> ()
            unit = Constant <value = int64 {{1}}> ()
            width = Constant <value = int64[1] {{{hidden}}}> ()
            none = Constant <value = int64[{experts}] {_repeated(0, experts)}> ()
            flat = Reshape (ids, all)
            number = Shape (flat)
            expert, order = TopK <axis = 0, largest = 0> (flat, number)
            token = Div (order, chosen)
            x_sorted = Gather (x, token)
            ones = Expand (one, number)
            count = ScatterElements <reduction = "add"> (none, flat, ones)
            is_hit = Greater (count, zero)
            end = CumSum (count, zero)
            start = Sub (end, count)
            starts = Unsqueeze (start, one)
            ends = Unsqueeze (end, one)
            busiest = ReduceMax <keepdims = 1> (count)
            short = Sub (busiest, count)
            shorts = Unsqueeze (short, one)
            nothing = Sub (shorts, shorts)
            paddings = Concat <axis = 1> (nothing, nothing, nothing, nothing, shorts, nothing)
            padded_shape = Concat <axis = 0> (one, busiest, width)
            padding_alone = ConstantOfShape (padded_shape)
            w_out_each = Unsqueeze (w_out, one)
            {"b_in_column = Unsqueeze (b_in, two)" if b_in else ""}
            y_padded = Scan <num_scan_inputs = {4 + len(stacked)}, body = each_expert (
                bool is_hit_e, int64[1] from, int64[1] to, int64[6] padding, {", ".join(weights)}
              ) => (float[1, ?, {hidden}] y_e) {{
                y_e = If (is_hit_e) <
                  then_branch = its_tokens () => (float[1, ?, {hidden}] y_hit) {{
                    x_e = Slice (x_sorted, from, to, first)
                    h = Gemm <transB = 1> (w_in_e, x_e{", b_in_e" if b_in else ""})
                    h_e = Unsqueeze (h, first)
                    {layer.activated("h_e", "a_e")}
                    z = MatMul (w_out_e, a_e)
                    z_rows = Transpose <perm = [0, 2, 1]> (z)
                    {"y_own = Add (z_rows, b_out_e)" if b_out else ""}
                    y_hit = Pad ({"y_own" if b_out else "z_rows"}, padding)
                  }},
                  else_branch = no_token () => (float[1, ?, {hidden}] y_not_hit) {{ y_not_hit = Identity (padding_alone) }}
                >
              }}> (is_hit, starts, ends, paddings, {", ".join(stacked)})
            rows_shape = Constant <value = int64[2] {{-1, {hidden}}}> ()
            by_token = Constant <value = int64[3] {{-1, {layer.chosen}, {hidden}}}> ()
            rows = Reshape (y_padded, rows_shape)
            total = Squeeze (number, first)
            place = Range (zero, total, unit)
            place_first = Gather (start, expert)
            within = Sub (place, place_first)
            base = Mul (expert, busiest)
            row_sorted = Add (base, within)
            row = ScatterElements (order, order, row_sorted)
            z_flat = Gather (rows, row)
            z_t = Reshape (z_flat, by_token)
            {weighted_sum("z_t", y)}
        """


def _repeated(value: int, times: int) -> str:
    return "{" + ", ".join([str(value)] * times) + "}"
