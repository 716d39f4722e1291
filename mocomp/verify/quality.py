"""How far a quantised model is from the float model it was made of, on data held out from its making.

Dimension letters: T tokens, S sequence, V vocabulary, K chosen per token, E experts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mocomp.targets import Arrays, Mixture, MixtureRunner, Target
from mocomp.verify.parity import inner_values, run_case
from mocomp.verify.reference import Baseline, Routed

LOWEST = -1e30
CHUNK = 1 << 22
"""Logits that are turned into probabilities together, in float64."""


@dataclass
class LayerQuality:
    """One mixture: relative error of what its experts give on the inputs that they really get, share of the chosen experts
    that the float model chooses too, and experts of which few tokens were seen, with what was done about it."""

    layer: str
    error: float
    agreement: float
    few: dict[int, str] = field(default_factory=dict)


@dataclass
class Quality:
    """`kl` of the next-token distribution in nats, `top1` agreement of the likeliest token, perplexity of both models on the
    data's own tokens; None for models without such. `error` is the relative error of the first output, `ms`, where it was
    timed, milliseconds by workload."""

    format: str
    algorithm: str
    layers: list[LayerQuality]
    error: float = 0.0
    kl: float | None = None
    top1: float | None = None
    perplexity: float | None = None
    perplexity_float: float | None = None
    tokens: int = 0
    data: str = ""
    ms: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All of it, with the summaries over layers."""
        return dataclasses.asdict(self) | {"agreement": self.agreement, "experts_error": self.experts_error}

    @property
    def loss(self) -> float:
        """One number to compare by: the KL of the next token, or the error of the output where there is none."""
        return self.error if self.kl is None else self.kl

    @property
    def agreement(self) -> float:
        """Of the chosen experts of all layers, those that the float model chooses too."""
        return sum(layer.agreement for layer in self.layers) / len(self.layers) if self.layers else 1.0

    @property
    def experts_error(self) -> float:
        """Relative error of the experts' output, root mean square over layers."""
        return math.sqrt(sum(layer.error**2 for layer in self.layers) / len(self.layers)) if self.layers else 0.0


@dataclass
class Loss:
    """Sums over predicted tokens of the negative logarithms of their probabilities, in nats: a model's and the float one's."""

    other: float = 0.0
    exact: float = 0.0
    tokens: int = 0

    def add(self, other: Tensor, exact: Tensor) -> None:
        """Negative log-probabilities [N] of the same tokens."""
        self.other, self.exact = self.other + float(other.sum()), self.exact + float(exact.sum())
        self.tokens += exact.numel()

    @property
    def perplexity(self) -> tuple[float, float]:
        """(the model's, the float one's)."""
        other, exact = (math.exp(min(loss / self.tokens, 700.0)) for loss in (self.other, self.exact))
        return other, exact


class OutputJudge:
    """Collects outputs row by row: of the float model and of another; nothing that it keeps grows with them.

    `losses` are those of all predicted tokens (under None) and of those of each group.
    """

    def __init__(self) -> None:
        self.squares, self.of = 0.0, 0.0
        self.kl = self.top1 = 0.0
        self.tokens = 0
        self.losses: dict[int | None, Loss] = {}

    def add(
        self,
        exact: Tensor,
        other: Tensor,
        ids: Tensor | None = None,
        next_token: bool = True,
        mask: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> None:
        """First outputs of a call: logits [B, S, V] if they are of the `next_token`, and then its own tokens `ids` [B, S].

        `mask` [B, S] is false where a token is padding, and `groups` [B, S] tell to which group each token belongs.
        """
        if not next_token:
            self._add_error(exact, other, mask)
            return
        after, wanted, kinds = _predicted(ids, mask, groups)
        step = max(CHUNK // exact.shape[2], 1)
        for start in range(0, exact.shape[1], step):
            own = slice(start, start + step)
            valid = None if mask is None else mask[:, own]
            self._add_error(exact[:, own], other[:, own], valid)
            p, q = (torch.log_softmax(logits[:, own].double(), -1) for logits in (exact, other))
            self._add_distribution(p, q, valid)
            if after is not None and wanted is not None:
                self._add_loss(p, q, after[:, own], wanted[:, own], None if kinds is None else kinds[:, own])

    def _add_error(self, exact: Tensor, other: Tensor, valid: Tensor | None) -> None:
        exact, other = (values if valid is None else values[valid] for values in (exact, other))
        there = exact > LOWEST  # what a model never says has the least number there is
        self.squares += float((other - exact).where(there, 0.0).double().pow(2).sum())
        self.of += float(exact.where(there, 0.0).double().pow(2).sum())

    def _add_distribution(self, p: Tensor, q: Tensor, valid: Tensor | None) -> None:
        kl = (p.exp() * (p - q).where(p > LOWEST, 0.0)).sum(-1)
        same = p.argmax(-1) == q.argmax(-1)
        kl, same = (kl, same) if valid is None else (kl[valid], same[valid])
        self.kl, self.top1, self.tokens = self.kl + float(kl.sum()), self.top1 + float(same.sum()), self.tokens + same.numel()

    def _add_loss(self, p: Tensor, q: Tensor, after: Tensor, wanted: Tensor, kinds: Tensor | None) -> None:
        exact, other = (-values.gather(2, after[..., None])[..., 0][wanted] for values in (p, q))
        self.losses.setdefault(None, Loss()).add(other, exact)
        for group in [] if kinds is None else kinds[wanted].unique().tolist():
            mine = kinds[wanted] == group  # type: ignore[index]
            self.losses.setdefault(group, Loss()).add(other[mine], exact[mine])

    def conclude(self, quality: Quality) -> Quality:
        """The same with the figures of the outputs."""
        quality.error = math.sqrt(self.squares / self.of) if self.of else 0.0
        quality.tokens = self.tokens
        if self.tokens:
            quality.kl, quality.top1 = max(self.kl / self.tokens, 0.0), self.top1 / self.tokens
        if None in self.losses:
            quality.perplexity, quality.perplexity_float = self.losses[None].perplexity
        return quality


def _predicted(ids: Tensor | None, mask: Tensor | None, groups: Tensor | None) -> tuple[Tensor | None, ...]:
    """Of each position [B, S]: the token after it, whether there is one, neither of them padding, and the group of that."""
    if ids is None:
        return None, None, None
    there = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    wanted = there & there.roll(-1, 1)
    wanted[:, -1] = False
    return ids.roll(-1, 1), wanted, None if groups is None else groups.roll(-1, 1)


def judge(
    quality: Quality, baseline: Baseline, target: Target, directory: Path, mixtures: list[Mixture], exact: bool = False
) -> Quality:
    """`quality` with the figures of an artifact, as it will run, beside a baseline of the float model, on its cases.

    `exact` is the artifact with activations that are not rounded for speed.
    """
    runner = target.open(directory, inner_values(mixtures), exact)
    answers = (run_case(runner.run, baseline.interface, case, given)[1] for case, given, _ in baseline.runs)
    errors = {m.layer: _error_alone(target, directory, m, baseline.forced[m.layer], exact) for m in mixtures}
    return judge_answers(quality, baseline, answers, mixtures, errors)


def judge_answers(
    quality: Quality, baseline: Baseline, answers: Iterable[Arrays], mixtures: list[Mixture], errors: Mapping[str, float]
) -> Quality:
    """`quality` with the figures of an artifact of which are known its answers to the last calls of the cases, and the error
    of each layer's experts alone."""
    outputs, agreement = OutputJudge(), {m.layer: [] for m in mixtures}
    for (case, given, seen), got in zip(baseline.runs, answers, strict=True):
        mask = given.get("attention_mask", np.ones((case.batch, case.total)))[:, case.past :].astype(bool).reshape(-1)
        for m in mixtures:
            chosen = m.chosen(got)
            agreement[m.layer].append(
                common(*(torch.from_numpy(ids.copy())[mask] for ids in (chosen, seen.routed[m.layer].ids)))
            )
        name = next(iter(seen.outputs))
        is_logits = name == "logits" and seen.outputs[name].ndim == 3
        pair = [torch.from_numpy(values[name]) for values in (seen.outputs, got)]
        flat = [values.reshape(1, -1, values.shape[-1])[:, mask] if is_logits else values for values in pair]
        outputs.add(flat[0], flat[1], None, next_token=is_logits)
    for m in mixtures:
        quality.layers.append(LayerQuality(m.layer, errors[m.layer], float(torch.cat(agreement[m.layer]).mean())))
    return outputs.conclude(quality)


def _error_alone(target: Target, directory: Path, m: Mixture, ref: Routed, exact: bool) -> float:
    """Relative error of a layer's experts alone, all of them, on tokens and a choice of the float model's run."""
    runner = target.open_mixture(directory, m, exact)
    return mean_error(runner, ref)


def mean_error(runner: MixtureRunner, ref: Routed) -> float:
    """Relative error of what experts give on a run of the reference, root mean square."""
    y = runner.run({"x": ref.x.astype(np.float32), "ids": ref.ids, "weights": ref.weights.astype(np.float32)})["y"]
    return float(np.linalg.norm(y - ref.y) / max(np.linalg.norm(ref.y), 1e-30))


def common(ids: Tensor, others: Tensor) -> Tensor:
    """ids, others [T, K] -> the share [T] of ids that are among the others."""
    return (ids[:, :, None] == others[:, None, :]).any(-1).float().mean(-1)
