"""The weights of the chosen experts gathered for every token: good for a token or two, gigabytes for a prompt."""

from __future__ import annotations

from typing import ClassVar

from mocomp.lowering.ways import Layer, Way, weighted_sum


class GatheredWeights(Way):
    """Two batched products over [N]."""

    name: ClassVar[str] = "gathered"

    def takes(self, layer: Layer) -> bool:
        return not layer.form

    def bytes(self, layer: Layer, tokens: int) -> int:
        return 4 * tokens * layer.chosen * layer.hidden * (layer.rows + layer.width)

    def body(self, layer: Layer, y: str) -> str:
        chosen, hidden = layer.chosen, layer.hidden
        b_in = "b_in_n = Gather (b_in, flat)\nb_in_g = Unsqueeze (b_in_n, last)\nh_g = Add (h_bare, b_in_g)"
        b_out = "b_out_n = Gather (b_out, flat)\nb_out_g = Unsqueeze (b_out_n, last)\nz_g = Add (z_bare, b_out_g)"
        return f"""
            {layer.choice()}
            all = Constant <value = int64[1] {{-1}}> ()
            last = Constant <value = int64[1] {{2}}> ()
            around = Constant <value = int64[2] {{1, 3}}> ()
            for_each = Constant <value = int64[4] {{1, {chosen}, 1, 1}}> ()
            columns_shape = Constant <value = int64[3] {{-1, {hidden}, 1}}> ()
            by_token = Constant <value = int64[3] {{-1, {chosen}, {hidden}}}> ()
            flat = Reshape (ids, all)
            w_in_g = Gather (w_in, flat)
            w_out_g = Gather (w_out, flat)
            x_one = Unsqueeze (x, around)
            x_each = Expand (x_one, for_each)
            x_g = Reshape (x_each, columns_shape)
            h_bare = MatMul (w_in_g, x_g)
            {b_in if layer.has("b_in") else ""}
            {layer.activated("h_g" if layer.has("b_in") else "h_bare", "a_g")}
            z_bare = MatMul (w_out_g, a_g)
            {b_out if layer.has("b_out") else ""}
            z_t = Reshape ({"z_g" if layer.has("b_out") else "z_bare"}, by_token)
            {weighted_sum("z_t", y)}
        """
