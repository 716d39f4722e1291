"""Which points a model is asked, and what is drawn for them."""

import numpy as np
import pytest

from mocomp.bench.drawn_inputs import even, inputs_of, mix_from, owners
from mocomp.bench.points import Point, Wanted, grid
from mocomp.errors import Usage
from mocomp.models.interface import Interface
from mocomp.plans.modality import Modality

TEXT = Interface("generator", ["input_ids", "attention_mask"], ["logits"], {}, vocabulary=100)
BY_ID = Modality(("text", "image"), "input_ids", ((), ((60, 79),)), ("", ""), "text")


def named(kind, longest, **wanted):
    return [point.name for point in grid(kind, longest, Wanted(**wanted))[0]]


def test_each_kind_has_its_defaults():
    assert named("generator", None) == ["1 token, past 128", "128 tokens", "512 tokens"]
    assert named("encoder", None) == ["16 tokens", "128 tokens", "batch 8, 16 tokens", "batch 8, 128 tokens"]
    assert named("vision", None) == ["1 image", "8 images"]


@pytest.mark.parametrize(
    ("longest", "expected"),
    [(64, ["1 token, past 63", "64 tokens"]), (200, ["1 token, past 128", "128 tokens", "200 tokens"]), (1, ["1 token"])],
)
def test_defaults_are_cut_to_the_table_of_positions(longest, expected):
    assert named("generator", longest) == expected


def test_what_is_asked_for_is_the_whole_product_and_what_is_too_long_is_told():
    points, notes = grid("generator", 64, Wanted(batches=(1, 4), sequences=(1, 60), pasts=(0, 32)))
    assert [(p.batch, p.sequence, p.past) for p in points] == [(b, s, p) for b in (1, 4) for s, p in ((1, 0), (1, 32), (60, 0))]
    assert notes == ["left out 60 tokens after 32: the model has 64 positions"]


@pytest.mark.parametrize(
    ("kind", "wanted", "said"),
    [
        ("generator", {"sequences": (65,)}, "nothing to time"),
        ("encoder", {"pasts": (8,)}, "generates nothing"),
        ("vision", {"sequences": (8,)}, "takes images"),
    ],
)
def test_what_a_model_cannot_be_asked_is_refused(kind, wanted, said):
    with pytest.raises(Usage, match=said):
        grid(kind, 64, Wanted(**wanted))


def test_modalities_are_drawn_in_their_shares():
    point = Point(2, 30, 10, (("text", 0.75), ("image", 0.25)))
    ids = inputs_of(TEXT, point, 0, None, BY_ID)["input_ids"]
    assert ids.shape == (2, 40)
    assert ((ids >= 60) & (ids < 80)).sum(1).tolist() == [10, 10]


def test_a_batch_of_single_tokens_is_mixed_as_well():
    owner = owners((("text", 0.5), ("image", 0.5)), 4, 1)
    assert sorted(owner[:, 0].tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.2, 0.3, 0.5)])
def test_every_stretch_is_near_the_shares(shares):
    owner = owners(tuple((str(i), share) for i, share in enumerate(shares)), 1, 200)[0]
    for start in range(0, 180, 20):
        counts = np.bincount(owner[start : start + 20], minlength=len(shares))
        assert np.abs(counts - 20 * np.array(shares)).max() <= 1


def test_mixes_are_even_where_modalities_are_told_by_an_input():
    assert even(BY_ID) == ((("text", 0.5), ("image", 0.5)),)
    assert even(None) == ((),) == even(Modality(("a", "b"), "position", ((), ((0, 3),)), ("", ""), "a"))


@pytest.mark.parametrize("text", ["text", "text=x", "text=0.5", "text=0.5,image=0.6", "text=-1,image=2", "=1", "text=nan"])
def test_a_mix_that_cannot_be_meant_is_refused(text):
    with pytest.raises(Usage, match="--mix"):
        mix_from(text)


@pytest.mark.parametrize(("modality", "said"), [(None, "no groups"), (BY_ID, "names 'sound'")])
def test_a_mix_of_what_a_model_does_not_know_is_refused(modality, said):
    with pytest.raises(Usage, match=said):
        inputs_of(TEXT, Point(1, 4, mix=(("sound", 1.0),)), 0, None, modality)
