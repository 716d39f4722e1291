"""Whose token is whose: every way to say it, everything that cannot be meant, and the table that the graph looks up."""

from dataclasses import replace
from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from mocomp.errors import Usage
from mocomp.plans.modality import LARGEST, Modality, extended, parse
from tests import checkpoints

NAMES = ["text", "image"]
CHAMELEON = checkpoints.config("chameleon")


class Config:
    """A config with the fields that it is given, as configs of transformers that wrap a text model have them."""

    vocab_size = 128

    def __init__(self, **fields: object):
        vars(self).update(fields)

    def get_text_config(self) -> "Config":
        return self


SPECS = {
    "one range": ("40..49", "input_ids", ((40, 49),)),
    "one id": ("7", "input_ids", ((7, 7),)),
    "several ranges": ("40..49,3,60..61", "input_ids", ((40, 49), (3, 3), (60, 61))),
    "from 0": ("0..0", "input_ids", ((0, 0),)),
    "the last id": ("127", "input_ids", ((127, 127),)),
    "as the config has it": ("config", "input_ids", ((40, 49),)),
    "an input by its name": ("input_ids:4..5", "input_ids", ((4, 5),)),
    "values of another input": ("modality_ids:1", "modality_ids", ((1, 1),)),
    "beyond the vocabulary, of another input": ("modality_ids:900", "modality_ids", ((900, 900),)),
    "positions": ("position:0..99", "position", ((0, 99),)),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_says(name):
    spec, key, ranges = SPECS[name]
    assert parse(NAMES, [f"image={spec}"], None, CHAMELEON) == Modality(("text", "image"), key, ((), ranges), ("", ""), "text")


def test_towers():
    towers = parse(NAMES, ["image=tower:vision_model"], None)
    assert (towers.key, towers.towers, towers.per_token, towers.input) == ("tower", ("", "vision_model"), False, None)
    assert towers.of_layer("vision_model.encoder.layers.0.mlp") == "image"
    assert towers.of_layer("text_model.encoder.layers.0.mlp") == "text"
    both = parse(NAMES, ["image=tower:vision_model", "text=tower:text_model"], "error")
    assert both.of_layer("text_model.layers.0") == "text"
    with pytest.raises(Usage, match=r"projector\.0 is in no tower"):
        both.of_layer("projector.0")


@pytest.mark.parametrize(
    ("key", "input_", "per_token"), [("input_ids", "input_ids", True), ("position", None, True), ("seen", "seen", True)]
)
def test_what_carries_the_key(key, input_, per_token):
    modality = Modality(("a", "b"), key, (((0, 1),), ()), ("", ""), "b")
    assert (modality.input, modality.per_token) == (input_, per_token)


REST = {
    "left out": (["image=4..5"], None, "text"),
    "named": (["image=4..5"], "text", "text"),
    "one that has a range too": (["image=4..5", "text=0..1"], "image", "image"),
    "an error": (["image=4..5", "text=0..1"], "error", ""),
}


@pytest.mark.parametrize("name", REST)
def test_who_has_the_rest(name):
    given_, otherwise, rest = REST[name]
    assert parse(NAMES, given_, otherwise, CHAMELEON).otherwise == rest


REFUSED = {
    "no spec": (["image"], None, "'image' is not NAME=SPEC"),
    "empty spec": (["image="], None, "is not NAME=SPEC"),
    "unknown name": (["audio=1..2"], None, "names 'audio', but the groups are text, image"),
    "twice": (["image=1..2", "image=3..4"], None, "names 'image' twice"),
    "reversed": (["image=9..3"], None, "9..3 is no range"),
    "not a range": (["image=red"], None, "'red' is not a range"),
    "half a range": (["image=3.."], None, r"'3\.\.' is not a range"),
    "negative": (["image=-3..4"], None, r"'-3\.\.4' is not a range"),
    "a gap in a list": (["image=3,,4"], None, "'' is not a range"),
    "too far": ([f"image=position:0..{LARGEST}"], None, "is too far"),
    "beyond the vocabulary": (["image=120..128"], None, "128 is beyond the vocabulary of 128"),
    "overlap": (["image=4..9", "text=9..12"], "error", "9 is both image and text"),
    "within itself": (["image=4..9,5..6"], None, "image has 5 twice"),
    "mixed keys": (["image=4..9", "text=position:0..3"], "error", "tells them by input_ids, position"),
    "mixed with a tower": (["image=4..9", "text=tower:text_model"], "error", "tells them by input_ids, tower"),
    "nothing": ([], None, "tells them by nothing"),
    "no rest": (["image=4..9", "text=0..3"], None, "no group has no --modality"),
    "unknown rest": (["image=4..9"], "audio", "--otherwise names 'audio'"),
    "an error with nothing left": (["image=4..9"], "error", "no token would be text: .*--otherwise is error"),
    "a rest that leaves one with nothing": (["image=4..9"], "image", "no token would be text: .*--otherwise is image"),
    "not an input": (["image=2x:1"], None, "'2x' is no name of an input"),
    "an input without a name": (["image=:1"], None, "'' is no name of an input"),
    "the mask": (["image=attention_mask:1"], None, "'attention_mask' is no name of an input that holds an integer for each"),
    "the image": (["image=pixel_values:0..3"], None, "'pixel_values' is no name"),
    "a tower without a name": (["image=tower:"], None, "'tower' is no name"),
    "one tower twice": (["image=tower:model", "text=tower:model"], "error", "a layer of model is both text and image"),
    "a tower in another": (["image=tower:vision_model", "text=tower:model"], "error", "a layer of vision_model is both"),
    "not in the config": (["text=config"], "image", "config.json does not say which tokens are text"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused(name):
    given_, otherwise, message = REFUSED[name]
    with pytest.raises(Usage, match=message) as caught:
        parse(NAMES, given_, otherwise, CHAMELEON)
    assert caught.value.exit_code == 2


def test_two_without_a_spec_have_no_rest():
    with pytest.raises(Usage, match="text, audio has no --modality"):
        parse(["text", "image", "audio"], ["image=4..5"], None)
    with pytest.raises(Usage, match="no token would be audio"):
        parse(["text", "image", "audio"], ["image=4..5"], "text")


IN_CONFIG = {
    "one id": ("image", {"image_token_id": 9}, ((9, 9),)),
    "an id by two names": ("image", {"image_token_id": 9, "image_token_index": 9}, ((9, 9),)),
    "video": ("video", {"image_token_id": 9, "video_token_id": 5}, ((5, 5),)),
    "audio": ("audio", {"audio_token_index": 0}, ((0, 0),)),
    "a map with a gap": ("image", {"vocabulary_map": {"<s>": 4, "IMGIMGB": 8, "IMGIMGA": 7, "IMGIMGC": 3}}, ((3, 3), (7, 8))),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_CONFIG)
def test_what_a_config_says(name):
    modality, fields, ranges = IN_CONFIG[name]
    assert parse(["text", modality], [f"{modality}=config"], None, Config(**fields)).ranges == ((), ranges)


def test_a_map_of_image_tokens_says_nothing_of_audio():
    with pytest.raises(Usage, match="which tokens are audio"):
        parse(["text", "audio"], ["audio=config"], None, CHAMELEON)


@st.composite
def modalities(draw):
    """Up to four modalities with ranges that do not overlap, in any order, with and without a rest."""
    ends = sorted(draw(st.sets(st.integers(0, 60), min_size=2, max_size=12)))
    ranges = [(start, stop - 1) for start, stop in pairwise(ends)]
    count = draw(st.integers(2, 4))
    owners = [draw(st.integers(-1, count - 1)) for _ in ranges]  # -1: nobody's
    order = draw(st.permutations(range(len(ranges))))
    held = tuple(tuple(ranges[i] for i in order if owners[i] == m) for m in range(count))
    names = tuple("abcd"[:count])
    return Modality(names, "input_ids", held, ("",) * count, draw(st.sampled_from(["", *names])))


@given(modalities(), st.lists(st.integers(0, 10_000), max_size=8))
def test_the_table_is_what_the_ranges_say(modality, far):
    keys = [*range(64), *far]
    rest = modality.names.index(modality.otherwise) if modality.otherwise else len(modality.names)

    def directly(key: int) -> int:
        return next((m for m, r in enumerate(modality.ranges) if any(a <= key <= b for a, b in r)), rest)

    assert modality.of(torch.tensor(keys)).tolist() == [directly(key) for key in keys]
    assert modality.of(torch.tensor([keys, keys])).shape == (2, len(keys))


def test_a_table_is_no_longer_than_its_ranges():
    assert len(parse(NAMES, ["image=4..5"], None).table()) == 7


def test_a_token_that_nobody_has_fails_at_the_lookup():
    refusing = parse(NAMES, ["image=4..5", "text=0..1"], "error")
    allowed = torch.eye(2, dtype=torch.bool)
    assert allowed[refusing.of(torch.tensor([0, 5]))].tolist() == [[True, False], [False, True]]
    for key in (3, 6, 1000):
        with pytest.raises(IndexError):
            allowed[refusing.of(torch.tensor([key]))]


OLD = parse(NAMES, ["image=40..49"], None)
THREE = ("text", "image", "audio")


def test_one_more_modality():
    assert extended(OLD, ["audio"], ["audio=60..69"], CHAMELEON) == Modality(
        THREE, "input_ids", ((), ((40, 49),), ((60, 69),)), ("", "", ""), "text"
    )
    assert extended("text", ["image"], ["image=position:0..3"]) == replace(
        Modality(("text", "image"), "position", ((), ((0, 3),))), towers=("", ""), otherwise="text"
    )


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ([], "which tokens are audio"),
        (["audio=45..60"], "45 is both image and audio"),
        (["audio=position:0..3"], "this is by input_ids, position"),
        (["audio=127..128"], "beyond the vocabulary"),
        (["image=1..2"], "the groups are audio"),
    ],
)
def test_one_more_that_cannot_be_meant(given_, message):
    with pytest.raises(Usage, match=message):
        extended(OLD, ["audio"], given_, CHAMELEON)
