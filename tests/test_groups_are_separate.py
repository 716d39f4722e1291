"""A token of one modality cannot reach another group's expert: what stands there may be anything, even no numbers."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mocomp import report as reports
from mocomp.commands.upcycle import upcycle
from mocomp.models.interface import Interface
from mocomp.models.source import open_source
from mocomp.opening import open_target
from mocomp.options import ConvertOptions, UpcycleOptions
from mocomp.pipeline import convert
from mocomp.targets import Arrays
from mocomp.verify.inputs import Case, arrays
from mocomp.verify.parity import run_case
from mocomp.verify.reference import Reference
from mocomp.weights import checkpoint as weights_checkpoint
from tests.checkpoints import VOCABULARY

TEXT, IMAGE = range(100), range(100, VOCABULARY)
KINDS = {"llama, top-1": ("llama", 1), "llama, top-2": ("llama", 2), "bert, whose experts no operator fuses": ("bert", 2)}


Model = tuple[Reference, Callable[[Arrays], Arrays]]
"""The modules and the artifact of one checkpoint."""


@dataclass
class Models:
    """A model, and the same with nothing but NaN in the image group: in experts and router, or in its experts alone."""

    interface: Interface
    whole: Model
    spoilt: Model
    spoilt_experts: Model

    def outputs(self, model: Model, case: Case, ids: list[int]) -> list[Arrays]:
        given = arrays(self.interface, case, seed=0)
        given["input_ids"] = np.resize(ids, (case.batch, case.total))
        reference, run = model
        return [reference.observe(case, given).outputs, run_case(run, self.interface, case, given)[1]]


@pytest.fixture(scope="module")
def models(checkpoint, tmp_path_factory) -> Callable[[str], Models]:
    @cache
    def made(kind: str) -> Models:
        family, k = KINDS[kind]
        place = tmp_path_factory.mktemp(family)
        given = UpcycleOptions(groups="text=4,image=4", modality=("image=100..127",), top_k=k, noise=0.5, parity="off")
        upcycle(str(checkpoint(family)), place / "whole", given)
        experts, router = (4 if family == "bert" else 2), 1
        spoil(place / "whole", place / "spoilt", ("experts", "router"), experts + router)
        spoil(place / "whole", place / "experts", ("experts",), experts)
        with pytest.MonkeyPatch.context() as patch:  # what is no number is refused by name, and is wanted here
            patch.setattr(weights_checkpoint, "is_finite", lambda tensor: True)
            opened = [converted(place / name, family) for name in ("whole", "spoilt", "experts")]
        return Models(reports.interface_from(reports.read(place / "whole" / "out")), *opened)

    return made


def spoil(source: Path, target: Path, parts: tuple[str, ...], count: int) -> None:
    """A copy in which those parts of the second group, `count` tensors of each of two layers, are no numbers."""
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    inside = [name for name in weights if any(f".{part}." in name for part in parts)]
    assert len(inside) == 2 * count
    for name in inside:
        weights[name][4:] = torch.nan
    save_file(weights, target / "model.safetensors", {"format": "pt"})


def converted(directory: Path, family: str) -> Model:
    report = convert(str(directory), directory / "out", ConvertOptions(parity="off"))
    assert ("MoE" in report.artifact.operators) == (family == "llama")
    reference = Reference.load(open_source(str(directory)), report.interface)
    return reference, open_target("onnxruntime").open(directory / "out").run


@st.composite
def calls(draw, tokens: range) -> tuple[Case, list[int]]:
    """A batch of sequences of tokens, the first of which may be past."""
    batch, sequence, past = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(0, 5))
    count = batch * (sequence + past)
    return Case("drawn", batch, sequence, past), draw(st.lists(st.sampled_from(tokens), min_size=count, max_size=count))


def without_past(interface: Interface, case: Case) -> Case:
    """The case for a model that has no cache."""
    return case if interface.past else Case(case.name, case.batch, case.total)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(call=calls(TEXT))
def test_text_never_meets_the_experts_of_images(models, kind, call):
    made = models(kind)
    case = without_past(made.interface, call[0])
    for whole, spoilt in zip(made.outputs(made.whole, case, call[1]), made.outputs(made.spoilt, case, call[1]), strict=True):
        for name, expected in whole.items():
            assert np.isfinite(expected).all()
            np.testing.assert_array_equal(spoilt[name], expected)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(call=calls(IMAGE))
def test_images_do_meet_them(models, kind, call):
    """So the test above can fail. The router keeps its rows here: a choice among no numbers may be any."""
    made = models(kind)
    case = without_past(made.interface, call[0])
    for spoilt in made.outputs(made.spoilt_experts, case, call[1]):
        assert np.isnan(spoilt["logits" if "logits" in spoilt else "last_hidden_state"]).all()
