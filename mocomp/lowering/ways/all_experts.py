"""Every expert on every token, then the weighted sum: no routing to pay for, worth it where most experts are chosen."""

from __future__ import annotations

from typing import ClassVar

from mocomp.lowering.ways import Layer, Way, activation


class AllExperts(Way):
    """Two batched products over the experts."""

    name: ClassVar[str] = "dense"

    def takes(self, layer: Layer) -> bool:
        return layer.operator == "MoE"

    def bytes(self, layer: Layer, tokens: int) -> int:
        return 4 * tokens * layer.experts * (2 * layer.rows + 2 * layer.hidden)

    def body(self, layer: Layer, y: str) -> str:
        gated = layer.kind.gated
        b_in = "b_in_d = Unsqueeze (b_in, last_d)\nh_d = Add (h_bare, b_in_d)" if layer.has("b_in") else ""
        b_out = "b_out_d = Unsqueeze (b_out, last_d)\nz_d = Add (z_bare, b_out_d)" if layer.has("b_out") else ""
        h, z = ("h_d" if b_in else "h_bare"), ("z_d" if b_out else "z_bare")
        pairs = f"pairs_d = Reshape ({h}, pairs_shape_d)\n" if gated else ""
        joined = "gated_shape = Constant <value = int64[3] {0, 0, -1}> ()\na_flat = Reshape (a_d, gated_shape)" if gated else ""
        return f"""
            k_d = Constant <value = int64[1] {{{layer.chosen}}}> ()
            last_d = Constant <value = int64[1] {{2}}> ()
            first_d = Constant <value = int64[1] {{0}}> ()
            halves_d = Constant <value = int64[2] {{1, 1}}> ()
            pairs_shape_d = Constant <value = int64[4] {{0, {layer.width}, 2, -1}}> ()
            top_d, ids_d = TopK <axis = -1> (logits, k_d)
            share_d = Softmax <axis = -1> (top_d)
            like_logits = Shape (logits)
            nobody = ConstantOfShape <value = float[1] {{0.0}}> (like_logits)
            shares_d = ScatterElements <axis = 1> (nobody, ids_d, share_d)
            x_columns = Transpose <perm = [1, 0]> (x)
            h_bare = MatMul (w_in, x_columns)
            {b_in}
            {pairs}{activation(layer.kind, "pairs_d" if gated else h, "a_d", 2, "halves_d")}
            {joined}
            z_bare = MatMul (w_out, {"a_flat" if gated else "a_d"})
            {b_out}
            shares_t = Transpose <perm = [1, 0]> (shares_d)
            one_d = Constant <value = int64[1] {{1}}> ()
            shares_e = Unsqueeze (shares_t, one_d)
            weighted_d = Mul ({z}, shares_e)
            summed_d = ReduceSum <keepdims = 0> (weighted_d, first_d)
            {y} = Transpose <perm = [1, 0]> (summed_d)
        """
