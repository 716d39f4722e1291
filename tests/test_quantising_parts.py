"""Quantising in parts: the same codes for any number of workers, and none made again that an earlier run has made."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from mocomp.calibration.quantiser import Candidate
from mocomp.executors.local import Local
from mocomp.quant.algorithms import Algorithm
from mocomp.quant.algorithms.rtn import RTN
from mocomp.quant.formats import parse
from mocomp.quant.parts import quantised
from mocomp.quant.weight import promised
from mocomp.resources import Resources
from mocomp.weights import recipes
from mocomp.weights.journal import Journal
from mocomp.weights.parts import complete
from mocomp.weights.scratch import Scratch

GENERATOR = torch.Generator().manual_seed(0)
VALUES = {
    "experts": torch.randn(7, 16, 64, generator=GENERATOR).to(torch.bfloat16),
    "matrix": torch.randn(90, 64, generator=GENERATOR).to(torch.bfloat16),
}


@dataclass(frozen=True)
class Told(Algorithm):
    """Plain rounding that notes the shape of what it is given."""

    name: ClassVar[str] = ""
    asked: ClassVar[list[torch.Size]] = []

    def quantise(self, w, format, moments):
        self.asked.append(w.shape)
        return RTN().quantise(w, format, moments)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Parts and chunks of a few kilobytes, in place of megabytes."""
    monkeypatch.setattr("mocomp.quant.parts.PART", 5000)
    monkeypatch.setattr("mocomp.quant.parts.CHUNK", 2500)
    Told.asked.clear()


def read(name: str, start: int, stop: int) -> torch.Tensor:
    return VALUES[name][start:stop]


def weights(text: str) -> dict:
    return {name: promised(f"made:{name}", tuple(w.shape), parse(text)) for name, w in VALUES.items()}


def fill(store: Scratch, text: str) -> int:
    """Quantise both weights; how many bytes of them were done, or known."""
    done: list[int] = []
    parts = [
        part
        for name, weight in weights(text).items()
        for part in quantised(recipes.Tensor(tuple(VALUES[name].shape), torch.bfloat16, name), read, weight, Told(), store)
    ]
    complete(parts, store.executor, store.journal, done.append)
    return sum(done)


@pytest.mark.parametrize("text", ["int4:32", "int4:32:asym", "nvfp4", "fp8:tensor", "fp8:128x128"])
def test_codes_are_those_of_the_whole_weight_for_any_number_of_workers(tmp_path, text):
    form = parse(text)
    for workers in (1, 2, 5):
        store = Scratch(tmp_path / f"{workers}", "made:", Local(Resources(workers=workers)))
        assert fill(store, text) == sum(w.nbytes for w in VALUES.values())
        for name, weight in weights(text).items():
            w = VALUES[name].float()
            grid = form.fit(w if w.dim() == 3 else w[None])
            meant = form.pack(form.encode(w if w.dim() == 3 else w[None], grid), grid).tensors()
            for part, recipe in weight.parts.items():
                found = recipe.evaluate(store.read)
                assert torch.equal(found.float(), meant[part].reshape(found.shape).float()), (workers, name, part)
    assert len(Told.asked) > 3 * 6  # else nothing was cut


def test_parts_that_an_earlier_run_made_are_not_made_again(tmp_path):
    journal = Journal(tmp_path)
    fill(Scratch(tmp_path / "made", "made:", journal=journal), "int4:32")
    asked, known = len(Told.asked), journal.parts
    again = Journal(tmp_path)
    for part in known:
        if part.file != "made/0" or part.offset:  # the codes of the first experts were lost
            again.done(part.file, part.offset, part.length, part.sha256)
    Told.asked.clear()
    assert fill(Scratch(tmp_path / "made", "made:", journal=again), "int4:32") == sum(w.nbytes for w in VALUES.values())
    assert 0 < len(Told.asked) < asked / 2 and again.parts == known


@pytest.mark.parametrize("text", ["int4:32", "nvfp4"])
def test_a_walk_that_is_gone_on_with_takes_what_was_quantised(tmp_path, text):
    """A weight of which parts are missing is quantised; what the model then runs with is the same."""
    journal, found = Journal(tmp_path), []
    for run in range(2):
        store = Scratch(tmp_path / "made", "made:", journal=journal)
        candidate = Candidate(text, weights(text), Told(), store)
        made = [candidate.make("experts", VALUES["experts"][rows].float(), None, {}) for rows in (slice(0, 3), slice(3, 7))]
        made.append(candidate.make("matrix", VALUES["matrix"].float()[None], None, {}))
        found.append(made)
        assert len(Told.asked) == (3 if run == 0 else 0)
        Told.asked.clear()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
