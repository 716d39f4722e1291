"""What the report says of an artifact whose experts are shared out among ranks.

Dimension letters: L mixtures, E experts of one, N ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mocomp.report.console import line, size, table


@dataclass
class Predicted:
    """A placement by what was measured of the model: steps between mixtures that cross ranks, of all; the load of the busiest
    rank of a layer over the mean, of the layer where that is most."""

    crossing: int
    share: float
    imbalance: float


@dataclass
class RanksProof:
    """What the ranks together were seen to do: on `compared` of `cases` inputs there were sequences in which they chose the
    experts that the single model did, and outputs of those differ by `difference` at most, relatively; `parity` is the largest
    error against the original.

    Of `steps` between mixtures `crossed` lead to another rank, and of `choices` of experts `abroad` are on another than the
    home of their call.
    """

    cases: int
    compared: int
    difference: float
    parity: float
    choices: int
    abroad: int
    steps: int
    crossed: int


@dataclass
class ExpertParallel:
    """The ranks of an artifact: `experts` of each rank by mixture [L][N], how they were placed by which data, what is predicted
    of that placement and of two plain ones (round_robin, blocks), and the part [N] of each modality's choices by rank."""

    ranks: int
    layers: list[str]
    experts: list[list[list[int]]]
    method: str
    usage: str
    predicted: dict[str, Predicted]
    share: dict[str, list[float]]
    bytes_of_rank: list[int]
    files: list[str]
    proof: RanksProof | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def saved(self) -> float:
        """By how much less the placement has cross ranks than round-robin; 0 where nothing does."""
        plain = self.predicted["round_robin"].crossing
        return 1 - self.predicted["placed"].crossing / plain if plain else 0.0


def print_ranks(found: ExpertParallel) -> None:
    """Where experts went, what that saves, and how it was proven."""
    bytes_of = ", ".join(size(count) for count in found.bytes_of_rank)
    line(f"{found.ranks} ranks, experts placed {found.method}{f' by {found.usage}' if found.usage else ''}: weights {bytes_of}")
    if found.usage:
        names = {"placed": "as placed", "round_robin": "round-robin", "blocks": "neighbours together"}
        rows = [[f"  {names[n]}", f"{p.crossing}", f"{p.share:.1%}", f"{p.imbalance:.2f}"] for n, p in found.predicted.items()]
        table(["  placement", "steps that cross ranks", "of all", "busiest rank over mean"], rows)
        line(f"  predicted to cross {found.saved:.1%} less than round-robin")
    for name, parts in found.share.items():
        if len(found.share) > 1:
            line(f"  {name} goes to {', '.join(f'rank {i}: {part:.0%}' for i, part in enumerate(parts))}")
    if found.proof is not None:
        proof = found.proof
        line(f"  together they are the single model to {proof.difference:.1e}, the original to {proof.parity:.1e}")
    for note in found.notes:
        line(f"  note: {note}")
