"""What a receipt claims holds: upcycled models are the dense ones, as modules and as artifacts, and faults are caught."""

import dataclasses
import json
from contextlib import ExitStack, nullcontext
from functools import cache
from itertools import product

import pytest

from mocomp import checkpoints
from mocomp.commands import upcycle as upcycling
from mocomp.commands.parity import ParityOptions, parity
from mocomp.commands.upcycle import upcycle
from mocomp.errors import ParityFailed
from mocomp.fill import upcycle as filling
from mocomp.ir.specs import spell
from mocomp.options import ConvertOptions, UpcycleOptions
from mocomp.pipeline import convert

SAME = 1e-5
FAMILIES = ("llama", "qwen3", "chameleon", "bert", "vit")
TOKENS = ("image=100..113", "audio=114..127")
PATCHES = ("image=position:3..9", "audio=position:10..13")
GROUPS = {2: ("text", "image"), 3: ("text", "image", "audio")}
CASES = [*product(FAMILIES, (2, 4, 8), (1, 2), GROUPS)]
CONVERTED = [*product(FAMILIES, (4,), (2,), GROUPS), ("llama", 8, 1, 2), ("bert", 2, 2, 3), ("vit", 8, 1, 3)]


def options(family: str, experts: int, k: int, modalities: int, **others) -> UpcycleOptions:
    """E experts for each modality, and where its tokens are; text is the rest."""
    specs = PATCHES if family == "vit" else TOKENS
    groups = ",".join(f"{name}={experts}" for name in GROUPS[modalities])
    return UpcycleOptions(groups=groups, modality=specs[: modalities - 1], top_k=k, **others)


@pytest.fixture(scope="module")
def traced_once():
    """Every dense model is opened once for all tests of this file; what is made of it does not change it."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        opened = checkpoints.opened

        @cache
        def once(source: str):
            return stack.enter_context(opened(source, UpcycleOptions()))

        patch.setattr(upcycling, "opened", lambda source, options: nullcontext(once(source)))
        yield


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize(("family", "experts", "k", "modalities"), CASES)
def test_modules_compute_what_the_dense_model_does(checkpoint, tmp_path, family, experts, k, modalities):
    receipt = upcycle(str(checkpoint(family)), tmp_path / "moe", options(family, experts, k, modalities))
    assert receipt.preserved and receipt.moved <= SAME
    assert (receipt.mixtures, receipt.experts) == (2, 2 * experts * modalities)
    assert json.loads((tmp_path / "moe" / "receipt.json").read_text())["moved"] == receipt.moved


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize(("family", "experts", "k", "modalities"), CONVERTED)
def test_artifacts_compute_what_the_dense_model_does(checkpoint, tmp_path, family, experts, k, modalities):
    given = options(family, experts, k, modalities, parity="off")
    upcycle(str(checkpoint(family)), tmp_path / "moe", given)
    convert(str(tmp_path / "moe"), tmp_path / "out", ConvertOptions(parity="off"))
    verdict = parity(tmp_path / "out", options=ParityOptions(reference=str(checkpoint(family))))
    assert verdict.passed and 0 < verdict.worst <= SAME
    assert all(case.clean == case.sequences for case in verdict.cases)


def test_parity_against_the_dense_model_on_the_command_line(command, checkpoint, tmp_path):
    upcycle(str(checkpoint("llama")), tmp_path / "moe", options("llama", 2, 1, 2, parity="off"))
    convert(str(tmp_path / "moe"), tmp_path / "out", ConvertOptions(parity="off"))
    done = command("parity", tmp_path / "out", "--reference", checkpoint("llama"))
    assert done.code == 0 and "the reference has no such mixture, so only outputs were compared" in done.out
    done = command("parity", tmp_path / "out", "--json")
    assert done.code == 0 and [layer["experts"] for layer in json.loads(done.out)["layers"]] == [4, 4]
    done = command("parity", tmp_path / "out", "--reference", checkpoint("llama", rms_norm_eps=1e-2))
    assert done.code == 1 and "parity failed: largest error" in done.out


def swapped_slice(monkeypatch):
    bank = filling.bank
    monkeypatch.setattr(filling, "bank", lambda experts: bank([experts[1], *experts[1:]]))


def lost_scale(monkeypatch):
    def plain(extension):
        return spell(dataclasses.replace(extension, scale=1.0) if hasattr(extension, "scale") else extension)

    monkeypatch.setattr(filling, "spell", plain)


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("layout", ["mocomp", "stock"])
@pytest.mark.parametrize("fault", [swapped_slice, lost_scale])
def test_a_wrong_expert_fails_and_leaves_nothing(checkpoint, tmp_path, monkeypatch, fault, layout):
    fault(monkeypatch)
    sliced = UpcycleOptions(groups="8", granularity=2, top_k=2, layout=layout)
    with pytest.raises(ParityFailed, match="upcycle was to preserve the function, and an output moved by"):
        upcycle(str(checkpoint("llama")), tmp_path / "deep" / "moe", sliced)
    assert list(tmp_path.iterdir()) == []
