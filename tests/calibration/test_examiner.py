"""What is made of a row's outputs, whatever kind of model they are of, and that nothing else of the row is kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mocomp.calibration.examiner import Examiner
from mocomp.models.interface import Interface
from mocomp.targets import Mixture
from mocomp.verify import quality
from mocomp.verify.reference import Observation, Routed


def test_logits_taken_in_parts_are_those_taken_together(monkeypatch):
    random = torch.Generator().manual_seed(0)
    exact, other = (torch.randn(1, 9, 11, generator=random) for _ in range(2))
    ids, groups = torch.randint(0, 11, (1, 9), generator=random), torch.tensor([[0, 1, 1, 0, 2, 2, 0, 1, 0]])
    figures = []
    for chunk in (quality.CHUNK, 22):
        monkeypatch.setattr(quality, "CHUNK", chunk)
        judge = quality.OutputJudge()
        judge.add(exact, other, ids, mask=torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0, 0]]).bool(), groups=groups)
        losses = {group: (*loss.perplexity, loss.tokens) for group, loss in judge.losses.items()}
        figures.append((judge.conclude(quality.Quality("", "", [])), losses))
    (whole, losses), (parts, others) = figures
    assert [losses[group][2] for group in (None, 0, 1, 2)] == [6, 2, 2, 2]  # of 7 tokens all but the first are predicted
    assert (parts.kl, parts.top1, parts.error) == pytest.approx((whole.kl, whole.top1, whole.error))
    assert all(others[group] == pytest.approx(losses[group]) for group in losses)


def test_a_model_of_two_towers_is_judged_before_they_meet():
    examiner = Examiner(Interface("encoder", ["input_ids", "pixel_values"], [], {}), [], None)
    seen = Observation({"logits_per_image": np.ones((2, 1), np.float32), "text_embeds": np.ones((1, 4), np.float32)})
    examiner.add({"input_ids": torch.ones(1, 3, dtype=torch.long)}, seen, seen.outputs)
    assert examiner.vectors == "text_embeds, as it is" and examiner.similarity.actual[0].shape == (4,)


def test_classes_have_a_likeliest_one():
    examiner = Examiner(Interface("vision", ["pixel_values"], ["logits"], {}), [], None)
    for exact, other in (([[1.0, 2.0]], [[1.0, 3.0]]), ([[1.0, 2.0]], [[2.0, 1.0]])):
        seen = Observation({"logits": np.array(exact, np.float32)})
        examiner.add({"pixel_values": torch.zeros(1)}, seen, {"logits": np.array(other, np.float32)})
    found = examiner.outputs.conclude(quality.Quality("", "", []))
    assert found.top1 == 0.5 and found.kl is not None and found.kl > 0 and not examiner.vectors


def numbers_in(value) -> int:
    """How many there are in an object and in all that it holds."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return math.prod(value.shape)
    if isinstance(value, dict | list | tuple):
        return sum(map(numbers_in, value.values() if isinstance(value, dict) else value))
    return numbers_in(vars(value)) if hasattr(value, "__dict__") else 1


@pytest.mark.parametrize(("kind", "of_a_row"), [("generator", 0), ("encoder", 2 * 8)])
def test_what_is_kept_does_not_grow_with_the_rows(kind, of_a_row):
    """But for one vector of each model for each row where vectors are compared."""
    mixture = Mixture("layer", "x", "scores", "scores", "y", 1)
    name = "logits" if kind == "generator" else "last_hidden_state"
    examiner = Examiner(Interface(kind, ["input_ids"], [name], {}, 8), [mixture], None)
    random, sizes = np.random.default_rng(0), []
    for count in (2, 40):
        for _ in range(count):
            ids, values = random.integers(0, 8, (1, 50)), random.standard_normal((1, 50, 8)).astype(np.float32)
            routed = Routed(values[0], ids[0][:, None], np.ones((50, 1), np.float32), values[0])
            seen = Observation({name: values}, [], {"layer": routed})
            examiner.add({"input_ids": torch.from_numpy(ids)}, seen, {name: values, "scores": values[0]})
        sizes.append(numbers_in(examiner))
    assert sizes[1] - sizes[0] == 40 * of_a_row and examiner.tokens == 2100
