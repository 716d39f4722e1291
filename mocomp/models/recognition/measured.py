"""The weights of a mixture as measured: what each expert adds to a block's output, token by token.

With the tensors of some experts at zero a block gives rest(x) + the sum of w_e(x) f_e(x) over the others. With f_e known,
w_e is a least-squares problem with fewer unknowns than equations, whose residual vanishes only if the block is of this form.

Dimension letters: T tokens, E experts, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mocomp.experts import Expert
from mocomp.models.canonical import Bank
from mocomp.models.recognition.calls import Call, Port, leaves, redrawn
from mocomp.models.recognition.candidates import ExpertSet
from mocomp.models.recognition.feed_forward import apply, put, relative, values_of
from mocomp.models.recognition.probing import NotAMixture

EXPLAINED = 1e-7
"""What of a measurement may be left unexplained, relative, in float64."""
SEEDS = (99, 100, 101)
"""Of what is drawn for other arguments than hidden states, to see whether they matter."""


@dataclass(frozen=True)
class Draw:
    """A call of a block on random hidden states, x [.., H]."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    x: Tensor

    @property
    def tokens(self) -> Tensor:
        """x [T, H]."""
        return self.x.reshape(-1, self.x.shape[-1])


@dataclass(frozen=True)
class Measurement:
    """What a draw gave: y0 [T, H] of the block without experts, and the part [T, H] that each chunk of experts adds."""

    draw: Draw
    y0: Tensor
    parts: list[tuple[range, Tensor]]


@dataclass(frozen=True)
class Shares:
    """The measured weights [T, E] of a draw, and for which of them there is anything to see."""

    draw: Draw
    weights: Tensor
    seen: Tensor


def draws(block: nn.Module, call: Call, port: Port, experts: int, fixed: tuple[int, ...] = ()) -> list[Draw]:
    """Calls with other numbers of tokens than the recorded one, in several spreads, one with all tokens much alike.

    The axes `fixed` keep their sizes. A shape on which the block's own code fails is left out for the recorded one.
    """
    x = port.x(call.args, call.kwargs)
    sizes = [*_sizes(x.dim() - 1, experts), tuple(x.shape[:-1])]
    sizes = [tuple(x.shape[axis] if axis in fixed else n for axis, n in enumerate(size)) for size in sizes]
    made = []
    for seed, (size, spread, common) in enumerate(zip(sizes, (1.0, 4.0, 0.5, 0.2), (0.0, 0.0, 2.0, 0.0), strict=True)):
        for lead in (size, (size[0], *x.shape[1:-1]), tuple(x.shape[:-1])):
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randn(*lead, x.shape[-1], generator=generator, dtype=torch.float64)
            rows = spread * rows + common * torch.randn(x.shape[-1], generator=generator, dtype=torch.float64)
            draw = Draw(*redrawn(call, port, rows, generator), rows)
            if _runs(block, port, draw):
                made.append(draw)
                break
    if not made:
        raise NotAMixture("it cannot be called with random hidden states")
    if not fixed and all(draw.x.shape == x.shape for draw in made):
        raise NotAMixture(f"it runs on hidden states {list(x.shape)} alone: it depends on more than its arguments")
    return made


def _sizes(rank: int, experts: int) -> list[tuple[int, ...]]:
    tokens = 2 * experts + 3
    ones = (1,) * (rank - 1)
    if rank == 1:
        return [(tokens,), (tokens + 4,), (tokens - 2,)]
    middle = (2,) * (rank - 2)
    return [(2, *middle, experts + 2), (*ones, tokens), (3, *middle, experts + 1)]


def _runs(block: nn.Module, port: Port, draw: Draw) -> bool:
    try:
        run(block, port, draw)
    except NotAMixture:
        return False
    return True


def run(block: nn.Module, port: Port, draw: Draw) -> Tensor:
    """The hidden states [.., H] that a block gives for a draw. Raises NotAMixture where it fails, or gives another shape."""
    try:
        y = port.y(block(*draw.args, **draw.kwargs))
    except Exception as error:  # whatever the user's code raises
        raise NotAMixture(f"its code fails on other hidden states: {error}") from error
    if y.shape[:-1] != draw.x.shape[:-1]:
        raise NotAMixture(f"it maps {list(draw.x.shape)} to {list(y.shape)}")
    return y


def depends_on_more(block: nn.Module, call: Call, port: Port, draws: list[Draw]) -> bool:
    """Whether another argument than the hidden states changes what a block gives, whatever that is drawn to be."""
    x = port.x(call.args, call.kwargs)
    if not any(isinstance(leaf, Tensor) and leaf is not x for leaf in leaves((call.args, call.kwargs))):
        return False
    for draw in draws:
        expected = run(block, port, draw)
        for seed in SEEDS:
            args, kwargs = redrawn(call, port, draw.x, torch.Generator().manual_seed(seed))
            if relative(run(block, port, Draw(args, kwargs, draw.x)), expected) > 1e-12:
                return True
    return False


def measure(block: nn.Module, experts: ExpertSet, port: Port, draw: Draw) -> Measurement:
    """Run a block without its experts, and with each chunk of them. Leaves the experts as they were.

    Raises NotAMixture when the chunks do not add up to what the whole block gives.
    """
    values = values_of(block, experts)
    try:
        y0 = _with_only(block, experts, values, range(0), port, draw)
        parts = []
        for chunk in _chunks(experts.count, y0.shape[-1]):
            parts.append((chunk, _with_only(block, experts, values, chunk, port, draw) - y0))
    finally:
        put(block, values)
    whole = run(block, port, draw).reshape(y0.shape) - y0
    if not torch.isfinite(whole).all() or not torch.isfinite(y0).all():
        raise NotAMixture("it gives numbers that are not finite")
    error = relative(sum((part for _, part in parts), torch.zeros_like(y0)), whole)
    if error > EXPLAINED:
        raise NotAMixture(f"what its experts give does not add up to what it gives, by {error:.1e}", error)
    return Measurement(draw, y0, parts)


def _chunks(experts: int, hidden: int) -> Iterator[range]:
    """Few enough experts at a time that there are twice as many equations as weights."""
    size = max(1, hidden // 2)
    yield from (range(at, min(at + size, experts)) for at in range(0, experts, size))


def _with_only(block: nn.Module, experts: ExpertSet, values: dict[str, Tensor], kept: range, port: Port, draw: Draw) -> Tensor:
    """The output [T, H] of a block in which all tensors of the experts that are not `kept` are zero."""
    put(block, experts.masked(values, kept))
    y = run(block, port, draw)
    return y.reshape(-1, y.shape[-1])


def solve(measurement: Measurement, expert: Expert, bank: Bank) -> tuple[Shares, float]:
    """The weights that explain a measurement best if the experts are of this kind, and what they leave, relative."""
    x = measurement.draw.tokens
    weights = x.new_zeros(x.shape[0], bank.w_in.shape[0])
    seen = torch.zeros_like(weights, dtype=torch.bool)
    left = largest = 0.0
    for chunk, part in measurement.parts:
        chosen = slice(chunk.start, chunk.stop)
        only = Bank(*(None if w is None else w[chosen] for w in (bank.w_in, bank.b_in, bank.w_out, bank.b_out)))  # type: ignore[arg-type]
        f_TEH = apply(expert, only, x).transpose(0, 1)
        scale = f_TEH.norm(dim=-1, keepdim=True)
        unit = f_TEH / scale.clamp(min=1e-30)
        found = torch.linalg.lstsq(unit.transpose(1, 2), part[..., None], driver="gelsd").solution
        left = max(left, float((torch.einsum("teh,te->th", unit, found[..., 0]) - part).abs().max()))
        largest = max(largest, float(part.abs().max()))
        weights[:, chosen] = found[..., 0] / scale[..., 0].clamp(min=1e-30)
        seen[:, chosen] = scale[..., 0] > 1e-9
    return Shares(measurement.draw, torch.where(seen, weights, 0.0), seen), left / max(largest, 1e-30)
