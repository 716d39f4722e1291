"""All ranks of an artifact in one process: tokens go to the ranks that hold their experts, and partial sums come back.

Each call has a home, the next rank in turn, which runs the pieces around the mixtures for all of its tokens; that every rank's
copy of them is the same is compared elsewhere (`placement/copies.py`).
Dimension letters: T tokens, S of them sent, P choices, E experts, K chosen per token, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from mocomp.errors import BadInput
from mocomp.lowering.fused_mixture import set_accuracy
from mocomp.lowering.onnx_session import exposing, load, runs, session
from mocomp.lowering.ranks_files import INDEX, Cut, Rank, folder
from mocomp.weights.json_files import read_object
from mocomp.weights.own_files import refuse_outside

Arrays = dict[str, np.ndarray]


@dataclass
class Moves:
    """What was counted: choices of experts, those on another rank than their call's home, steps from a token's expert of one
    mixture to one of the next, and those of them that lead to another rank."""

    choices: int = 0
    abroad: int = 0
    steps: int = 0
    crossed: int = 0


class Ranks:
    """The ranks in `directory`, ready to run; `expose` names inner values of the pieces to return as well, `exact` has
    operators compute on activations as they are.

    Raises BadInput where files lack or are damaged, and where an expert is on no rank or on several.
    """

    def __init__(self, directory: Path, expose: Sequence[str] = (), exact: bool = False):
        self.directory, self.expose, self.exact = directory, list(expose), exact
        self.ranks = read(directory)
        self.moves = Moves()
        self._exchanges = [self._exchange(i) for i in range(len(self.ranks[0].mixtures))]
        self._pieces: dict[int, list[Any]] = {}
        self._calls = 0

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name."""
        home, before = self._calls % len(self.ranks), None
        self._calls += 1
        values = dict(inputs)
        for i, piece in enumerate(self._opened(home)):
            values |= piece(values)
            for cut, exchange in zip(self.ranks[home].mixtures, self._exchanges, strict=True):
                if cut.after == i:
                    values[cut.y] = exchange.run(*(values[name] for name in (cut.x, cut.ids, cut.weights)))
                    before = self._count(exchange.placed(values[cut.ids], values[cut.weights]), before, home)
        return {name: values[name] for name in (*self.ranks[home].outputs, *self.expose)}

    def mixture(self, layer: str) -> Exchange:
        """One layer's experts alone, on all ranks."""
        return next(e for e, cut in zip(self._exchanges, self.ranks[0].mixtures, strict=True) if cut.layer == layer)

    def _count(self, now: np.ndarray, before: np.ndarray | None, home: int) -> np.ndarray:
        """Count by the ranks [T, K] of what was chosen, -1 for what was not, after those of the mixture before."""
        self.moves.choices += int((now >= 0).sum())
        self.moves.abroad += int(((now >= 0) & (now != home)).sum())
        if before is not None and len(before) == len(now):
            both = (before >= 0)[:, :, None] & (now >= 0)[:, None, :]
            self.moves.steps += int(both.sum())
            self.moves.crossed += int((both & (before[:, :, None] != now[:, None, :])).sum())
        return now

    def _opened(self, home: int) -> list[Any]:
        if home not in self._pieces:
            where = folder(self.directory, home)
            self._pieces[home] = [self._piece(where, file) for file in self.ranks[home].pieces]
        return self._pieces[home]

    def _piece(self, home: Path, file: str) -> Any:
        model = self._load(home, file)
        own = {value.name for node in model.graph for value in node.outputs}
        content = exposing(model, [name for name in self.expose if name in own])
        return runs(session(content, home), "cpu")

    def _exchange(self, i: int) -> Exchange:
        experts = []
        for rank in self.ranks:
            home = folder(self.directory, rank.rank)
            content = ir.to_proto(self._load(home, rank.mixtures[i].file)).SerializeToString()
            experts.append(runs(session(content, home), "cpu"))
        return Exchange([rank.mixtures[i] for rank in self.ranks], experts)

    def _load(self, home: Path, file: str) -> ir.Model:
        model = load(home, file)
        if self.exact:
            set_accuracy(model, 0)
        return model


class Exchange:
    """One mixture on all ranks. Tokens are sent once to each rank that has experts of theirs, and their sums are added in the
    order of the ranks."""

    def __init__(self, cuts: list[Cut], experts: list[Any]):
        self.experts = cuts[0].total
        self.owner, self.local = np.full(self.experts, -1), np.zeros(self.experts, np.int64)
        for rank, cut in enumerate(cuts):
            held = np.array(cut.experts, np.int64)
            self.owner[held], self.local[held] = rank, np.arange(len(held))
        self._run = experts

    def placed(self, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The rank of each choice [T, K]; -1 for a choice without weight, which is nobody's."""
        return np.where(weights != 0, self.owner[ids], -1)

    def run(self, x: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """y [T, H] of x [T, H], ids and weights [T, K]."""
        y, at = np.zeros_like(x), self.placed(ids, weights)
        for rank, run in enumerate(self._run):
            token, choice = np.nonzero(at == rank)
            if not len(token):
                continue
            sent, row = np.unique(token, return_inverse=True)
            expert, weight = self.local[ids[token, choice]], weights[token, choice]
            y[sent] += run({"x": x[sent], "token": row, "expert": expert, "weight": weight})["y"]
        return y


def read(directory: Path) -> list[Rank]:
    """What the ranks of an artifact say they are. Raises BadInput where they do not make one model."""
    found = [_read_one(folder(directory, 0))]
    found += [_read_one(folder(directory, i)) for i in range(1, found[0].ranks)]
    if len({_without_share(rank) for rank in found}) > 1:
        raise BadInput("its ranks are of different models", where=str(directory), fix="Convert again.")
    for cuts in zip(*(rank.mixtures for rank in found), strict=True):
        held = sorted(expert for cut in cuts for expert in cut.experts)
        if held != list(range(cuts[0].total)):
            why = f"{cuts[0].layer}: an expert is on no rank, or on several"
            raise BadInput(why, where=str(directory), fix="Convert again.")
    return found


def _without_share(rank: Rank) -> Rank:
    """What all ranks have in common."""
    return replace(rank, rank=0, mixtures=tuple(replace(cut, experts=()) for cut in rank.mixtures))


def _read_one(home: Path) -> Rank:
    if not (home / INDEX).exists():
        raise BadInput(f"no {INDEX}", where=str(home), fix="Convert with --expert-parallel N.")
    raw = read_object(home / INDEX)
    try:
        cuts = tuple(Cut(**cut | {"experts": tuple(map(int, cut["experts"]))}) for cut in raw["mixtures"])
        rank = Rank(int(raw["rank"]), int(raw["ranks"]), tuple(raw["pieces"]), cuts, tuple(raw["outputs"]))
    except (TypeError, ValueError, KeyError) as error:
        why = f"{INDEX} does not say what it should: {type(error).__name__}: {error}"
        raise BadInput(why, where=str(home), fix="Convert again.") from error
    if home.name != f"rank_{rank.rank}" or rank.ranks < 1:
        raise BadInput(f"{INDEX} is of another rank", where=str(home), fix="Convert again.")
    for file in (*rank.pieces, *(cut.file for cut in rank.mixtures)):
        refuse_outside(home, file)
    return rank
