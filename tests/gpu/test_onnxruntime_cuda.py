"""Artifacts for CUDA: proven on a GPU where there is one; that the same cases can be asked for, anywhere."""

import numpy as np
import pytest

from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.registry import discover
from tests.gpu.cuda_parity import CASES, DIGITS, Case, prove
from tests.gpu.facts import outcome
from tests.gpu.mixture_graphs import Bank, moe

ROUTED = ("deepseek_v3", "phimoe", "gpt_oss", "digits/moma")
"""Sigmoid with a bias and groups, SparseMixer, softmax over the chosen, and logits of -inf for the other modality."""


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity_and_no_host_copies(case, tmp_path):
    found = prove(case, tmp_path)
    assert found["passed"], found
    assert found["copies"] == [], found


@pytest.mark.gpu
@pytest.mark.parametrize("family", ROUTED)
def test_the_same_experts_on_cpu_and_cuda(family, tmp_path):
    """One checkpoint as two float32 artifacts, one a provider: the chosen experts are the same, the outputs nearly."""
    case = Case(family, "float32")
    source = str(case.source(tmp_path))
    outputs = {}
    for device in ("cpu", "cuda"):
        options = ConvertOptions(target="onnxruntime", device=device, parity="off")
        report = convert(source, tmp_path / device, options)
        target = discover("mocomp.targets", "Target")["onnxruntime"](options)
        tells = [name for mixture in report.artifact.mixtures for name in mixture.tells]
        runner = target.open(tmp_path / device, tells)
        outputs[device] = (runner.run(_inputs(report.interface)), report.artifact.mixtures)
    (cpu, mixtures), (cuda, same) = outputs["cpu"], outputs["cuda"]
    for one, other in zip(mixtures, same, strict=True):
        assert np.array_equal(np.sort(one.chosen(cpu)), np.sort(other.chosen(cuda)))
    assert np.abs(cpu["logits"] - cuda["logits"]).max() <= 1e-3 * np.abs(cpu["logits"]).max()


@pytest.mark.gpu
@pytest.mark.parametrize("masked", [1, 6, 8])
def test_logits_of_minus_infinity(masked):
    """Of 8 experts so many are masked for half of the tokens; with 6 and 8 fewer than k are left."""
    bank = Bank(k=4)
    bank.logits[::2, :masked] = -np.inf
    feeds = {"x": bank.x, "logits": bank.logits}
    assert outcome(moe(bank, "float16"), feeds, bank.expected(), "cuda", "float16") == "right"


def _inputs(interface) -> dict[str, np.ndarray]:
    """7 tokens and no past."""
    made = {name: value.numpy() for name, value in interface.tensors(1, 7, 0).items()}
    made["input_ids"] = np.random.default_rng(0).integers(3, min(interface.vocabulary, 100), (1, 7))
    return made


def test_the_cases_cover_what_is_claimed():
    said = {(case.dtype, case.quantize) for case in CASES}
    assert {("float16", ""), ("bfloat16", ""), ("float16", "int4:64"), ("float16", "int8:128")} <= said
    assert {("float16", "nvfp4"), ("bfloat16", "int4:128")} <= said
    assert len({str(case) for case in CASES}) == len(CASES) and len({case.family for case in CASES}) == 7
    for case in CASES:
        assert not case.family.startswith("digits") or (DIGITS / case.family.partition("/")[2] / "config.json").exists()


@pytest.mark.parametrize("case", [Case("digits/moma", "float16")], ids=str)
def test_cases_can_be_proven_in_emulation(case, tmp_path):
    """The same cases on the CPU, so that what is run on a GPU is known to be well posed."""
    found = prove(case, tmp_path, emulate=True)
    assert found["passed"], found


def test_a_case_that_is_refused_says_why(tmp_path):
    found = prove(Case("mixtral", "float16", "int5:64"), tmp_path, emulate=True)
    assert not found["passed"] and "int5" in found["reason"]


def test_sources_have_sizes_for_the_operators(tmp_path):
    from safetensors import safe_open

    directory = Case("deepseek_v3", "float16").source(tmp_path)
    with safe_open(directory / "model.safetensors", "pt") as file:
        shapes = [tuple(file.get_tensor(name).shape) for name in file.keys() if ".experts." in name]  # noqa: SIM118
    assert shapes and all(size % 128 == 0 for shape in shapes for size in shape)
