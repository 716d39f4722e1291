"""Weights quantised layer by layer while the model runs over data: each layer sees what the quantised ones before it give.

Dimension letters: T tokens, H hidden, F expert width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from mocomp.calibration.balance import folded, scales_of, scales_of_inputs
from mocomp.calibration.tokens import Bank, Routed, banks, forward, moments, moments_in, moments_out
from mocomp.calibration.walk import Call
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, scope
from mocomp.quant.algorithms import Algorithm, Moments
from mocomp.quant.algorithms.rtn import RTN
from mocomp.quant.balancing import balanced
from mocomp.quant.formats import Format, Stored
from mocomp.quant.weight import QuantisedWeight
from mocomp.verify.quality import LayerQuality, OutputJudge, Quality, common
from mocomp.weights.recipes import Reader
from mocomp.weights.scratch import Scratch

FEW = 32
"""Tokens below which an expert's own say too little of its weights."""


@dataclass
class Candidate:
    """One way to quantise: `weights` to make and the `store` they go to, if they are to be kept; an expert with few tokens
    takes `few`: all or rtn."""

    label: str
    weights: dict[str, QuantisedWeight]
    algorithm: Algorithm
    store: Scratch | None
    few: str = "all"
    layers: list[LayerQuality] = field(default_factory=list)
    outputs: OutputJudge = field(default_factory=OutputJudge)

    def quality(self) -> Quality:
        """What was found out about it."""
        return self.outputs.conclude(Quality(self.label, self.algorithm.name, self.layers))

    def make(
        self, name: str, w: Tensor, moments: Callable[[], Moments] | None, few: dict[int, str], scale: Tensor | None = None
    ) -> Tensor:
        """The next experts of a weight, w [E, N, K] float32: quantised, stored, and as what they then stand for.

        Without moments the weights are all that is known. With a `scale` [K] they are stored for inputs divided by it.
        """
        weight = self.weights.get(name)
        if weight is None:
            return w
        if scale is not None and moments is not None:
            unscaled = moments
            w, moments = w * scale, lambda: balanced(unscaled(), scale)
        form = weight.form
        if (made := self._kept(weight, len(w))) is not None:
            return made if scale is None else made / scale
        seen = moments() if moments is not None and (self.algorithm.calibrated or self.algorithm.weighs) else None
        codes, grid = self.algorithm.quantise(w, form, seen)
        for e in [e for e, fallback in few.items() if fallback == "rtn" and self.algorithm.calibrated]:
            codes[e], plain = RTN().quantise(w[e : e + 1], form, None)
            grid.scale[e] = plain.scale[0]
            if grid.zero is not None and plain.zero is not None:
                grid.zero[e] = plain.zero[0]
        if self.store is not None:
            stored = form.pack(codes, grid).tensors()
            for part, recipe in weight.parts.items():
                rows = stored[part] if len(recipe.shape) == stored[part].dim() else stored[part][0]
                self.store.append(recipe, rows)  # type: ignore[arg-type]
        made = form.decode(codes, grid)
        return made if scale is None else made / scale

    def _kept(self, weight: QuantisedWeight, experts: int) -> Tensor | None:
        """What the next experts of a weight stand for [E, N, K] float32, where an earlier run has quantised them."""
        is_bank = len(weight.parts["codes"].shape) == 3
        rows = {part: experts if is_bank else part.shape[0] if part.shape else 1 for part in weight.parts.values()}
        stored = self.store.kept(rows) if self.store is not None else None  # type: ignore[arg-type]
        if stored is None:
            return None
        w = weight.form.dequantise(Stored(**dict(zip(weight.parts, stored, strict=True))), weight.columns)
        return w if w.dim() == 3 else w[None]

    def scale_inputs(self, name: str, find: Callable[[Format], Tensor]) -> Tensor | None:
        """What the inputs of a weight are divided by [K], found by `find` and stored; None where they stay as they are."""
        weight = self.weights.get(name)
        if weight is None or weight.inputs is None:
            return None
        scale = find(weight.form)
        if self.store is not None:
            self.store.append(weight.inputs, 1 / scale)  # type: ignore[arg-type]
        return scale


class Quantiser:
    """A visitor of a walk whose streams are the float model and one for each candidate.

    `learned` says of each row whether it is calibration data; the others are held out, to judge by. Where none is, all are
    judged by.
    """

    def __init__(self, program: Program, read: Reader, candidates: list[Candidate], rows: list[dict], learned: list[bool]):
        self.program, self.read, self.candidates, self.rows, self.learned = program, read, candidates, rows, learned
        self.names = {node: name for node, name in program.weights()}
        self.is_generator = "input_ids" in program.inputs and program.outputs[0] == "logits"

    def visit(self, node: fx.Node, calls: list[list[Call]]) -> list[list[Tensor]]:
        """The experts, or a linear layer, of every stream."""
        return self._experts(node, calls) if node.target is MOCOMP.experts.default else self._linear(node, calls)

    def finish(self, row: int, outputs: list[Tensor]) -> None:
        """Judge a batch row by row: in float64, as it is judged, all of its logits take too much memory."""
        for i in range(len(outputs[0])):
            ids = self.rows[row]["input_ids"][i : i + 1] if self.is_generator else None
            for candidate, output in zip(self.candidates, outputs[1:], strict=True):
                candidate.outputs.add(outputs[0][i : i + 1], output[i : i + 1], ids, self.is_generator)

    def wants(self, row: int) -> bool:
        """Whether a row is one to judge by."""
        return not self.learned[row] or all(self.learned)

    def _experts(self, node: fx.Node, calls: list[list[Call]]) -> list[list[Tensor]]:
        sizes = [len(call.args[0]) for call in calls[0]]
        learned, judged = (
            torch.cat([torch.full((size,), told(i)) for i, size in enumerate(sizes)])
            for told in (lambda i: self.learned[i], self.wants)
        )
        experts = node.args[3].meta["val"].shape[0]  # type: ignore[union-attr]
        streams = [_routed(stream, learned, experts) for stream in calls]
        exact = [torch.zeros_like(routed.x) for routed in streams]
        given = [torch.zeros_like(routed.x) for routed in streams]
        few = [_few(routed, c) for routed, c in zip(streams[1:], self.candidates, strict=True)]
        scales = [self._scale(node, *each) for each in zip(streams[1:], self.candidates, few, strict=True)]
        for bank in banks(self.program, self.read, node):
            forward(bank, streams[0], exact[0])
            for i, candidate in enumerate(self.candidates):
                routed = streams[i + 1]
                forward(bank, routed, exact[i + 1])
                forward(self._quantised(node, bank, routed, candidate, few[i], scales[i]), routed, given[i + 1])
        given[0] = exact[0]
        for i, candidate in enumerate(self.candidates):
            agreement = float(common(_cat(calls[i + 1], 1), _cat(calls[0], 1))[judged].mean())
            error = _relative(given[i + 1][judged], exact[i + 1][judged])
            candidate.layers.append(LayerQuality(scope(node), error, agreement, few[i]))
        return [list(y.split(sizes)) for y in given]

    def _scale(self, node: fx.Node, routed: Routed, candidate: Candidate, few: dict[int, str]) -> Tensor | None:
        """What a layer's inputs are divided by for a candidate that balances."""
        every = banks(self.program, self.read, node)
        return candidate.scale_inputs(self.names[node.args[3]], lambda form: scales_of_inputs(every, routed, form, few))  # type: ignore[index]

    def _quantised(
        self, node: fx.Node, bank: Bank, routed: Routed, candidate: Candidate, few: dict[int, str], scale: Tensor | None
    ) -> Bank:
        w_in, w_out = (self.names[node.args[i]] for i in (3, 5))  # type: ignore[index]
        own = {e - bank.first: fallback for e, fallback in few.items() if 0 <= e - bank.first < len(bank)}
        if candidate.algorithm.balances and {w_in, w_out} <= candidate.weights.keys():
            bank = folded(bank, routed, candidate.weights[w_out].form, few)
        first = replace(bank, w_in=candidate.make(w_in, bank.w_in, lambda: moments_in(bank, routed, few), own, scale))
        return replace(first, w_out=candidate.make(w_out, bank.w_out, lambda: moments_out(first, routed, few), own))

    def _linear(self, node: fx.Node, calls: list[list[Call]]) -> list[list[Tensor]]:
        name = self.names[node.args[1]]  # type: ignore[index]
        w = self.program.recipes[name].evaluate(self.read).float()
        bias: Any = None
        if len(node.args) > 2 and node.args[2] is not None:
            bias = self.program.recipes[self.names[node.args[2]]].evaluate(self.read)  # type: ignore[index]
        values = [[torch.nn.functional.linear(call.args[0], w, bias) for call in calls[0]]]
        for candidate, stream in zip(self.candidates, calls[1:], strict=True):
            x = torch.cat([call.args[0].flatten(0, -2) for call in stream if self.learned[call.row]])
            scale = candidate.scale_inputs(name, lambda form, x=x: scales_of(w[None], _of_all(x), form))
            quantised = candidate.make(name, w[None], lambda x=x: _of_all(x), {}, scale)[0]
            values.append([torch.nn.functional.linear(call.args[0], quantised, bias) for call in stream])
        return values


def _cat(stream: list[Call], i: int) -> Tensor:
    return torch.cat([call.args[i] for call in stream])


def _routed(stream: list[Call], learned: Tensor, experts: int) -> Routed:
    x, ids, shares = (_cat(stream, i) for i in range(3))
    return Routed(x, ids, shares, learned, experts)


def _few(routed: Routed, candidate: Candidate) -> dict[int, str]:
    """The experts of which too few tokens were seen, for an algorithm that minds."""
    if not candidate.algorithm.calibrated:
        return {}
    return {e: candidate.few for e, count in enumerate(routed.counts()) if count < FEW}


def _of_all(x: Tensor) -> Moments:
    second, magnitude, tokens = moments(x, torch.ones(len(x)))
    return Moments(second[None], magnitude[None], torch.tensor([tokens]))


def _relative(given: Tensor, exact: Tensor) -> float:
    of = float(exact.double().norm())
    return float((given - exact).double().norm()) / of if of else 0.0
