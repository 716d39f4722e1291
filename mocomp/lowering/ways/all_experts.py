"""Every expert on every token, then the weighted sum: no routing to pay for, worth it where most experts are chosen."""

from __future__ import annotations

from typing import ClassVar

from mocomp.lowering.ways import Layer, Way


class AllExperts(Way):
    """Two batched products over the experts. What an expert gives to a token that did not choose it is left out, and not
    multiplied by 0: it may be NaN. An expert that a token chose twice has the sum of both weights."""

    name: ClassVar[str] = "dense"

    def takes(self, layer: Layer) -> bool:
        return not layer.form

    def bytes(self, layer: Layer, tokens: int) -> int:
        return 4 * tokens * layer.experts * (2 * layer.rows + 2 * layer.hidden)

    def body(self, layer: Layer, y: str) -> str:
        b_in = "b_in_column = Unsqueeze (b_in, last)\nh_d = Add (h_bare, b_in_column)" if layer.has("b_in") else ""
        b_out = "b_out_column = Unsqueeze (b_out, last)\nz_d = Add (z_bare, b_out_column)" if layer.has("b_out") else ""
        every = ", ".join(str(expert) for expert in range(layer.experts))
        return f"""
            {layer.choice()}
            first = Constant <value = int64[1] {{0}}> ()
            middle = Constant <value = int64[1] {{1}}> ()
            last = Constant <value = int64[1] {{2}}> ()
            every_expert = Constant <value = int64[{layer.experts}] {{{every}}}> ()
            nothing = Constant <value_float = 0.0> ()
            id_column = Unsqueeze (ids, last)
            weight_column = Unsqueeze (weights, last)
            is_chosen = Equal (id_column, every_expert)
            by_choice = Where (is_chosen, weight_column, nothing)
            shares = ReduceSum <keepdims = 0> (by_choice, middle)
            shares_t = Transpose <perm = [1, 0]> (shares)
            share = Unsqueeze (shares_t, middle)
            x_columns = Transpose <perm = [1, 0]> (x)
            h_bare = MatMul (w_in, x_columns)
            {b_in}
            {layer.activated("h_d" if b_in else "h_bare", "a_d")}
            z_bare = MatMul (w_out, a_d)
            {b_out}
            shared_out = Mul ({"z_d" if b_out else "z_bare"}, share)
            counts = Cast <to = 9> (share)
            parts = Where (counts, shared_out, nothing)
            y_columns = ReduceSum <keepdims = 0> (parts, first)
            {y} = Transpose <perm = [1, 0]> (y_columns)
        """
