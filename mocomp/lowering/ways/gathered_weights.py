"""The weights of the chosen experts gathered for every token: the best there is for a token or two, gigabytes for a prompt."""

from __future__ import annotations

from typing import ClassVar

from mocomp.lowering.ways import Layer, Way, activation

MOST = 32
"""Tokens beyond which nobody gathers weights."""


class GatheredWeights(Way):
    """Two batched products over [T, K]."""

    name: ClassVar[str] = "gathered"

    def takes(self, layer: Layer) -> bool:
        return layer.operator == "MoE"

    def bytes(self, layer: Layer, tokens: int) -> int:
        return 4 * tokens * layer.chosen * layer.hidden * (layer.rows + layer.width)

    def body(self, layer: Layer, y: str) -> str:
        gated = layer.kind.gated
        b_in = "b_in_g = Gather (b_in, ids_g)\nh_with = Unsqueeze (b_in_g, all_g)\nh_g = Add (h_plain, h_with)"
        b_out = "b_out_g = Gather (b_out, ids_g)\nz_with = Unsqueeze (b_out_g, all_g)\nz_g = Add (z_plain, z_with)"
        h, z = ("h_g" if layer.has("b_in") else "h_plain"), ("z_g" if layer.has("b_out") else "z_plain")
        pairs = f"pairs_g = Reshape ({h}, pairs_shape)\n" if gated else ""
        return f"""
            k_g = Constant <value = int64[1] {{{layer.chosen}}}> ()
            all_g = Constant <value = int64[1] {{-1}}> ()
            ends_g = Constant <value = int64[2] {{1, 3}}> ()
            one_g = Constant <value = int64[1] {{1}}> ()
            last_g = Constant <value = int64[1] {{2}}> ()
            halves_g = Constant <value = int64[2] {{1, 1}}> ()
            pairs_shape = Constant <value = int64[4] {{0, 0, {layer.width}, 2}}> ()
            top_g, ids_g = TopK <axis = -1> (logits, k_g)
            share_g = Softmax <axis = -1> (top_g)
            w_in_g = Gather (w_in, ids_g)
            w_out_g = Gather (w_out, ids_g)
            x_g = Unsqueeze (x, ends_g)
            h_plain = MatMul (w_in_g, x_g)
            {b_in if layer.has("b_in") else ""}
            {pairs}{activation(layer.kind, "pairs_g" if gated else h, "a_g", 3, "halves_g")}
            z_plain = MatMul (w_out_g, a_g)
            {b_out if layer.has("b_out") else ""}
            z_rows_g = Squeeze ({z}, all_g)
            share_column_g = Unsqueeze (share_g, last_g)
            weighted_g = Mul (z_rows_g, share_column_g)
            {y} = ReduceSum <keepdims = 0> (weighted_g, one_g)
        """
