"""Which kind of expert a set of experts is: hypotheses of roles and kinds, each run beside the experts themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mocomp.experts import Expert
from mocomp.ir.specs import spell
from mocomp.models.canonical import Bank
from mocomp.models.recognition.candidates import ExpertSet, by_expert
from mocomp.models.recognition.probing import NotAMixture, tensor_at
from mocomp.models.recognition.roles import Roles, hypotheses
from mocomp.registry import discover

EXACT = 1e-9
"""Relative error in float64 up to which an expert is of a kind: gelu and its tanh form are 1e-4 apart."""

MOST_ROLES = 256
"""Hypotheses of roles that are tried; square matrices with many vectors would allow thousands."""


@dataclass(frozen=True)
class Kind:
    """What an expert's tensors are, and what is done with them."""

    roles: Roles
    expert: Expert

    def bank(self, block: nn.Module, experts: ExpertSet) -> Bank:
        """The canonical bank of experts in a block; traceable."""
        return self.roles.bank(experts.stacks(block))


def randomise(block: nn.Module, experts: ExpertSet, generator: torch.Generator) -> None:
    """Give experts weights under which every part of them shows; tensors that were shared no longer are."""
    for _, paths in experts.tensors:
        for path in paths:
            owner, _, leaf = path.rpartition(".")
            old = tensor_at(block, path)
            noise = torch.randn(old.shape, generator=generator, dtype=torch.float64)
            matrix = (by_expert(old, experts.count).dim() == 3) if experts.packed else old.dim() == 2
            size = 1.5 / float(old.shape[-1] * old.shape[-2]) ** 0.25 if matrix else 0.3
            mean = 0.0 if matrix else float(old.double().mean())
            setattr(block.get_submodule(owner), leaf, nn.Parameter(mean + size * noise, requires_grad=False))


def values_of(block: nn.Module, experts: ExpertSet) -> dict[str, Tensor]:
    """The experts' tensors by path."""
    return {path: tensor_at(block, path) for path in experts.paths()}


def put(block: nn.Module, values: dict[str, Tensor]) -> None:
    """Set tensors of a block by path, each one its own."""
    for path, value in values.items():
        owner, _, leaf = path.rpartition(".")
        setattr(block.get_submodule(owner), leaf, nn.Parameter(value.detach(), requires_grad=False))


def apply(expert: Expert, bank: Bank, x: Tensor) -> Tensor:
    """x [E, N, H] -> [E, N, H'], slice e by expert e; or x [N, H], every row by every expert."""
    h = torch.einsum("enh,efh->enf" if x.dim() == 3 else "nh,efh->enf", x, bank.w_in)
    h = h if bank.b_in is None else h + bank.b_in[:, None]
    y = torch.einsum("enf,ehf->enh", expert.inner(h), bank.w_out)
    return y if bank.b_out is None else y + bank.b_out[:, None]


def identify(
    block: nn.Module,
    experts: ExpertSet,
    hidden: int,
    out: int,
    error_of: Callable[[Expert, Bank], float],
    first: Kind | None = None,
) -> tuple[Kind, float]:
    """The kind of expert, from `hidden` numbers to `out`, under which `error_of` vanishes; `first` is tried first.

    Raises NotAMixture with the nearest miss when none does.
    """
    stacks = experts.stacks(block)
    nearest = (float("inf"), "none")
    for roles, kinds in _kinds(block, experts, (hidden, out), first):
        try:
            bank = roles.bank(stacks)
        except (ValueError, RuntimeError):  # of other widths than the first expert's, whose shapes these roles fit
            continue
        for expert in kinds:
            error = error_of(expert, bank)
            if error < EXACT:
                return Kind(roles, expert), error
            nearest = min(nearest, (error, spell(expert)))
    if nearest[1] == "none":
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in experts.shapes(block).items())
        raise NotAMixture(f"its experts are no feed-forward from {hidden} numbers to {out}: {shapes}")
    raise NotAMixture(f"its experts are of no known kind; the nearest, {nearest[1]}, is off by {nearest[0]:.1e}", nearest[0])


def _kinds(
    block: nn.Module, experts: ExpertSet, sizes: tuple[int, int], first: Kind | None
) -> Iterator[tuple[Roles, Iterable[Expert]]]:
    """Hypotheses: roles, with the kinds that go with them."""
    if first:
        yield first.roles, [first.expert]
    numbers = floats_in(block)
    known = discover("mocomp.experts", "Expert").values()
    guesses = {gated: [g for kind in known if kind.gated == gated for g in kind.guesses(numbers)] for gated in (False, True)}
    for roles in islice(hypotheses(experts.shapes(block), sizes, upright(block, experts)), MOST_ROLES):
        yield roles, guesses[roles.gated]


def upright(block: nn.Module, experts: ExpertSet) -> frozenset[str]:
    """The matrices that belong to an nn.Linear, which stores them [out, in]."""
    owners = {name: block.get_submodule(paths[0].rpartition(".")[0]) for name, paths in experts.tensors}
    return frozenset(name for name, owner in owners.items() if isinstance(owner, nn.Linear) and not experts.packed)


def floats_in(block: nn.Module) -> dict[str, Any]:
    """Numbers that a block, its children and their configs carry, by attribute name; the last of a name counts."""
    found: dict[str, Any] = {}
    for module in block.modules():
        configs = [value for value in vars(module).values() if "onfig" in type(value).__name__ and hasattr(value, "__dict__")]
        for holder in (module, *configs):
            found |= {name: value for name, value in vars(holder).items() if isinstance(value, float)}
    return found


def alone(block: nn.Module, experts: ExpertSet, hidden: int, out: int) -> Callable[[Expert, Bank], float]:
    """How far a kind is from the experts' own modules, each called with rows of its own.

    Raises NotAMixture when they take more than hidden states, or give something else.
    """
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(experts.count, 12, hidden, generator=generator, dtype=torch.float64)
    x[:, 6:] *= 4.0
    given = []
    for path, rows in zip(experts.modules, x, strict=True):
        try:
            given.append(block.get_submodule(path)(rows))
        except Exception as error:  # whatever the user's code raises
            raise NotAMixture(f"an expert cannot be called with hidden states alone: {error}") from error
    if any(not isinstance(y, Tensor) or y.shape != (*rows.shape[:-1], out) for y, rows in zip(given, x, strict=True)):
        raise NotAMixture("an expert gives something else than hidden states")
    expected = torch.stack(given)
    return lambda expert, bank: relative(apply(expert, bank, x), expected)


def relative(actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value; infinite where either is no number."""
    error = float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    return error if math.isfinite(error) else float("inf")
