"""Experts of text and experts of images become one mixture, which is proven, and keeps them apart."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.ernie4_5_vl_moe import modeling_ernie4_5_vl_moe as ernie

from mocomp import ConvertOptions, convert
from mocomp.errors import Unsupported
from mocomp.experts.glu import GLU
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, inline
from mocomp.models import canonical, modality_blocks
from mocomp.models.huggingface import build, trace
from mocomp.models.interface import MODALITY
from mocomp.models.source import open_source
from mocomp.routers.softmax_bias_topk import SoftmaxBiasTopK
from mocomp.verify.inputs import Case, arrays
from mocomp.verify.parity import run_case
from mocomp.verify.reference import Reference
from tests import checkpoints
from tests.stages import TARGET, load_traced
from tests.test_verify_catches import CHOICE, EXPERTS, Conversion, edit_bank, no_fault, order

FAMILY, IDS = "ernie4_5_vl_moe", "moe_mm_token_type_ids"
KINDS = (SoftmaxBiasTopK(k=2, minimum=1e-12, masked=True), GLU())


def block(**changes) -> ernie.Ernie4_5_VLMoeMoeBlock:
    """The block of a tiny model, without weights."""
    with torch.device("meta"):
        return ernie.Ernie4_5_VLMoeMoeBlock(checkpoints.config(FAMILY, **changes).text_config)


@pytest.mark.parametrize("changes", [{}, {"moe_intermediate_size": [32, 48]}, {"moe_num_shared_experts": 0}])
def test_a_block_is_understood(changes):
    assert modality_blocks.prove(block(**changes), "here") == KINDS


@pytest.mark.parametrize("fault", ["owner", "bank", "router"])
def test_what_is_not_the_block_is_refused(monkeypatch, fault):
    faults = {
        "owner": ("_owner", lambda whole: lambda *rest: 1 - whole(*rest)),
        "bank": ("bank", lambda whole: lambda block: replace(whole(block), w_in=whole(block).w_in.flip(0))),
        "router": (
            "_guesses",
            lambda whole: lambda block: (guess for guess in whole(block) if not getattr(guess, "normalize", True)),
        ),
    }
    name, wrong = faults[fault]
    monkeypatch.setattr(modality_blocks, name, wrong(getattr(modality_blocks, name)))
    with pytest.raises(Unsupported, match="MoeBlock is not one router over the experts of its pools"):
        modality_blocks.prove(block(), "here")


def test_a_block_that_does_more_is_refused():
    class Louder(ernie.Ernie4_5_VLMoeMoeBlock):
        def forward(self, *rest):
            y, logits = super().forward(*rest)
            return 1.001 * y, logits

    with torch.device("meta"):
        louder = Louder(checkpoints.config(FAMILY).text_config)
    with pytest.raises(Unsupported, match=r"Louder is not one router.* off by 1\.0e-03"):
        modality_blocks.prove(louder, "here")


def test_a_large_block_is_proven_on_a_small_one(monkeypatch):
    """As large as ERNIE 4.5 VL 28B has them, whose pools differ in width."""
    seen = []
    randomised = canonical.randomised
    monkeypatch.setattr(canonical, "randomised", lambda c, config, where: seen.append(config) or randomised(c, config, where))
    with torch.device("meta"):
        large = ernie.Ernie4_5_VLMoeMoeBlock(transformers.Ernie4_5_VLMoeTextConfig())
    assert modality_blocks.prove(large, "here") == (SoftmaxBiasTopK(k=6, minimum=1e-12, masked=True), GLU())
    (small,) = seen
    assert (small.num_experts, small.hidden_size, small.moe_intermediate_size) == (13, 16, [16, 8])


def test_the_class_stays_as_it_is(checkpoint):
    own = ernie.Ernie4_5_VLMoeMoeBlock.forward
    model = build(open_source(str(checkpoint(FAMILY))))
    (name,) = modality_blocks.mixtures(model)
    assert model.get_submodule(name).forward.__func__ is modality_blocks.block_forward
    assert ernie.Ernie4_5_VLMoeMoeBlock.forward is own is not modality_blocks.block_forward


def test_one_operator_for_all_pools(converted):
    assert converted(FAMILY).report.artifact.operators["MoE"] == 1


def exchange(program: Program, wrong) -> None:
    """What the mask is made of is `wrong(ids)` in place of the ids."""
    (ids,) = [node for node, name in zip(program.user_inputs(), program.inputs, strict=True) if name == IDS]
    for user in [user for user in ids.users if isinstance(user.meta["val"], torch.Tensor)]:
        user.replace_input_with(ids, inline(program, user, wrong, [ids]))


def forget_mask(program: Program) -> None:
    (route,) = calls(program, MOCOMP.route.default)
    masked: Any = route.args[0]
    route.update_arg(0, masked.args[1])


FAULTS = {
    "text and images exchanged": (lambda program: exchange(program, lambda ids: (ids == 0).long()), CHOICE),
    "one token off": (lambda program: exchange(program, lambda ids: torch.roll(ids, 1, -1)), CHOICE),
    "images taken for text": (lambda program: exchange(program, torch.zeros_like), CHOICE),
    "mask forgotten": (forget_mask, CHOICE),
    "banks exchanged": (edit_bank(w_in=order(4, 5, 6, 7, 0, 1, 2, 3), w_out=order(4, 5, 6, 7, 0, 1, 2, 3)), EXPERTS),
}


@pytest.fixture(scope="module")
def conversion(checkpoint) -> Conversion:
    source = checkpoint(FAMILY)
    traced = load_traced(source)
    return Conversion(source, traced, Reference.load(open_source(str(source)), traced.interface))


def test_without_a_fault_parity_passes(conversion, tmp_path):
    assert conversion.prove(tmp_path, no_fault).failures == []


@pytest.mark.parametrize("fault", FAULTS)
def test_parity_catches(conversion, fault, tmp_path):
    plant, symptom = FAULTS[fault]
    assert any(symptom in failure for failure in conversion.prove(tmp_path, plant).failures)


def poison_images(source: Path, directory: Path) -> Path:
    """A copy of a checkpoint in which all that is of images alone, experts and their router, overflows."""
    shutil.copytree(source, directory)
    tensors = load_file(directory / "model.safetensors")
    broken = [name for name in tensors if any(f"experts.{e}." in name for e in range(4, 8)) or "gate.weight_1" in name]
    assert len(broken) == 4 * 3 + 1
    for name in broken:
        tensors[name] = torch.full_like(tensors[name], 1e25)
    (bias,) = [name for name in tensors if "correction_bias" in name]
    tensors[bias][1] = 1e25
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_text_does_not_see_the_experts_of_images(converted, tmp_path):
    """To the bit, also beside images; and images do see them."""
    sound, broken = converted(FAMILY), tmp_path / "artifact"
    report = convert(str(poison_images(sound.source, tmp_path / "poisoned")), broken, ConvertOptions(parity="off"))
    case, interface = Case("3 sequences with a past", 3, 6, past=4), report.interface
    given = arrays(interface, case, seed=0)
    given[IDS] = given[IDS] * 0
    given[IDS][1:, -2:] = 1
    results = [run_case(TARGET.open(directory).run, interface, case, given) for directory in (sound.directory, broken)]
    (before, after), (before_broken, after_broken) = results
    for name, expected in before.items():
        assert (before_broken[name] == expected).all(), name
    logits, broken_logits = after["logits"], after_broken["logits"]
    assert (broken_logits[0] == logits[0]).all() and (broken_logits[1:, :-2] == logits[1:, :-2]).all()
    assert (broken_logits[1:, -2:] != logits[1:, -2:]).any(-1).all()


def test_an_input_of_modality_that_nothing_reads_is_none(tmp_path):
    """Qwen2-VL takes one, for the positions of images alone."""
    fields = checkpoints.TEXT | {"intermediate_size": 96, "rope_parameters": checkpoints.MROPE}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": checkpoints.HIDDEN, "num_heads": 2}
    config = transformers.Qwen2VLConfig(text_config=fields, vision_config=vision)
    config.architectures = ["Qwen2VLForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    interface = trace(build(open_source(str(tmp_path)))).interface
    assert interface.kind == "generator" and not set(MODALITY) & {*interface.inputs, *interface.axes}
