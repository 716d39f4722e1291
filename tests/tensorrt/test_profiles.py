"""Optimisation profiles: what their texts mean, what is refused, and calls cut into pieces that they take."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mocomp.errors import Usage
from mocomp.lowering.pieces import Pieces, positions, takes
from mocomp.lowering.profiles import profiles_for

NAMES = ["batch", "sequence", "past", "total"]
DIMS = {
    "input_ids": ["batch", "sequence"],
    "attention_mask": ["batch", "total"],
    "past_key_values.0.key": ["batch", 2, "past", 1],
    "logits": ["batch", "sequence", 3],
    "present.0.key": ["batch", 2, "total", 1],
}


def test_a_text_says_least_typical_and_most():
    (profile,) = profiles_for(["prefill:batch=1..4,sequence=1..512..4096"], NAMES)
    assert profile.ranges == {"batch": (1, 4, 4), "sequence": (1, 512, 4096), "past": (0, 0, 0), "total": (1, 512, 4096)}
    assert profile.shapes({"x": ["batch", "total", 7]}) == {"x": ((1, 1, 7), (4, 512, 7), (4, 4096, 7))}
    assert profiles_for([profile.text], NAMES) == [profile], "its text means the same"


@pytest.mark.parametrize("longest,most", [(256, 256), (0, 4096), (131072, 4096)])
def test_without_texts_there_are_one_to_prefill_and_one_to_decode(longest, most):
    prefill, decode = profiles_for([], NAMES, longest)
    assert prefill.ranges["sequence"] == (1, min(512, most), most) and prefill.ranges["past"] == (0, 0, 0)
    assert decode.ranges["sequence"] == (1, 1, 1) and decode.ranges["past"] == (0, (most - 1) // 2, most - 1)
    assert decode.ranges["total"][2] == most and decode.tokens == 1


def test_a_model_without_a_past_has_one():
    (profile,) = profiles_for([], ["batch", "sequence"], 64)
    assert profile.text == "all:batch=1,sequence=1..64..64"
    assert profiles_for([], ["batch"])[0].text == "all:batch=1"


WRONG = {
    "sequence=3": "it has no name",
    "a:sequence=4..2": "least..typical..most",
    "a:sequence=1..9..4": "least..typical..most",
    "a:sequence=x": "is no size",
    "a:sequence=1..2..3..4": "is no size",
    "a:sequence=-1": "is no size",
    "a:batch=\u00b2": "is no size",
    "a:length=3": "no dimension 'length'; they are batch, sequence, past",
    "a:total=3": "total is past and sequence",
    "a:batch=0": "at least 1",
    "a:batch=1,batch=2": "said twice",
    "a:": "no dimension ''",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_profile_is_refused(text):
    with pytest.raises(Usage, match="profile") as refused:
        profiles_for([text], NAMES)
    assert WRONG[text] in str(refused.value)


def test_profiles_of_one_name_and_beyond_the_model_are_refused():
    with pytest.raises(Usage, match="two profiles are called a"):
        profiles_for(["a:batch=1", "a:batch=2"], NAMES)
    with pytest.raises(Usage, match="more than the 64 positions"):
        profiles_for(["a:sequence=60,past=5"], NAMES, 64)
    profiles_for(["a:sequence=60,past=4"], NAMES, 64)


def model(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A model with a cache: each token's logits are the sum of all tokens that it may see."""
    ids, mask, past = inputs["input_ids"], inputs["attention_mask"], inputs["past_key_values.0.key"]
    new = np.repeat(ids[:, None, :, None], 2, 1).astype(np.float32)
    cache = np.concatenate([past, new], 2)
    seen = np.cumsum(cache[:, 0, :, 0] * mask, 1)[:, past.shape[2] :]
    return {"logits": np.repeat(seen[..., None], 3, 2), "present.0.key": cache, "layer/ids": ids.reshape(-1, 1)}


def inputs(batch: int, sequence: int, past: int, seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        "input_ids": draw.integers(0, 9, (batch, sequence)),
        "attention_mask": draw.integers(0, 2, (batch, past + sequence)),
        "past_key_values.0.key": draw.integers(0, 9, (batch, 2, past, 1)).astype(np.float32),
    }


@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 4), st.integers(0, 99))
def test_pieces_give_what_the_whole_gives(batch, sequence, past, seed):
    """Whichever profiles there are, down to one for a single token."""
    profiles = profiles_for(["some:sequence=2..4", "one:past=0..9"], NAMES)
    used: list[int] = []

    def run(index: int, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        used.append(index)
        sizes = {"batch": 1, "sequence": given["input_ids"].shape[1], "past": given["past_key_values.0.key"].shape[2]}
        assert profiles[index].takes(sizes | {"total": given["attention_mask"].shape[1]})
        return model(given)

    whole = inputs(batch, sequence, past, seed)
    made = Pieces(profiles, DIMS, {"past_key_values.0.key": "present.0.key"}, run).run(whole)
    for name, expected in model(whole).items():
        np.testing.assert_array_equal(made[name], expected, name)
    assert len(used) >= batch


def test_a_call_that_no_profile_has_a_part_of_is_refused():
    pieces = Pieces(profiles_for(["a:sequence=4"], NAMES), DIMS, {}, lambda index, given: model(given))
    with pytest.raises(Usage, match=r"no profile takes batch 1, sequence 5, total 5, past 0; there are a:batch=1,sequence=4"):
        pieces.run(inputs(2, 5, 0, 0))
    both = Pieces(
        profiles_for(["a:sequence=4"], NAMES), DIMS, {"past_key_values.0.key": "present.0.key"}, lambda i, g: model(g)
    )
    with pytest.raises(Usage, match="sequence 1,"):
        both.run(inputs(1, 5, 0, 0))


def test_the_profile_for_the_fewest_tokens_is_taken():
    seen = []
    profiles = profiles_for(["many:sequence=1..8,past=0..8", "one:past=0..8"], NAMES)
    pieces = Pieces(profiles, DIMS, {}, lambda index, given: seen.append(index) or model(given))
    pieces.run(inputs(1, 1, 3, 0))
    pieces.run(inputs(1, 2, 3, 0))
    assert seen == [1, 0]


def test_how_long_a_sequence_may_be():
    assert positions(profiles_for([], NAMES, 64)) == 64
    assert positions(profiles_for(["a:sequence=1..8,past=0..8"], NAMES)) == 9
    assert positions(profiles_for(["a:sequence=4"], NAMES)) == 0
    assert positions(profiles_for(["a:sequence=1..5"], ["batch", "sequence"])) == 5


LONGEST = {
    ("prefill:batch=1..4,sequence=1..512..4096",): 4096,
    ("prefill:sequence=1..512", "decode:past=1..511"): 512,
    ("prefill:sequence=1..8", "decode:past=1..20"): 21,
    ("decode:past=1..511",): 0,
    ("one:past=0..3", "gap:past=9..20"): 4,
    ("two:batch=2,sequence=1..9",): 0,
}


@pytest.mark.parametrize("texts", LONGEST)
def test_pasts_of_profiles_are_chained(texts):
    assert positions(profiles_for(texts, NAMES)) == LONGEST[texts]


@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 10), st.sampled_from([*LONGEST]))
def test_what_is_said_to_be_taken_is_what_pieces_run(batch, sequence, past, texts):
    profiles = profiles_for(texts, NAMES)
    pieces = Pieces(profiles, DIMS, {"past_key_values.0.key": "present.0.key"}, lambda index, given: model(given))
    try:
        pieces.run(inputs(batch, sequence, past, 0))
        ran = True
    except Usage:
        ran = False
    assert takes(profiles, batch, sequence, past) is ran
