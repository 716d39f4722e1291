"""Mixed precision: bytes go where the error is, every one of them is counted, and what is measured is what is meant."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mocomp import quantising
from mocomp.calibration.sensitivity import Sensitivity
from mocomp.calibration.walk import Walk
from mocomp.errors import Usage
from mocomp.passes.quantize_weights import expert_weights, quantisable
from mocomp.pipeline import fitted, rewrite
from mocomp.quant.algorithms.rtn import RTN
from mocomp.quant.formats import parse
from mocomp.quantising import Plan, fill, plan
from mocomp.verify.quality import Quality
from mocomp.weights.scratch import Scratch
from tests.calibration.models import Opened, mixtures, opened

SENSITIVE = "model.layers.0.mlp.experts"


@pytest.fixture(scope="module")
def source(checkpoint, tmp_path_factory) -> Path:
    """Of two layers the first gives much more; the head is tied."""
    plain = checkpoint("qwen3_moe", experts=4, moe_intermediate_size=64, tie_word_embeddings=True)
    made = shutil.copytree(plain, tmp_path_factory.mktemp("sensitive") / "model")
    weights = load_file(made / "model.safetensors")
    weights |= {name: 6 * w for name, w in weights.items() if name.startswith(SENSITIVE) and "down" in name}
    save_file(weights, made / "model.safetensors", {"format": "pt"})
    return made


@pytest.fixture(scope="module")
def model(source):
    with opened(source) as made:
        yield made


def test_costs_are_squared_errors_of_the_mixture_s_output(model):
    """One weight of one expert rounded at a time, by transformers. Nobody's expert would cost nothing."""
    rows, forms = model.rows((1, 30), (2, 10)), [parse("int2:32"), parse("int4:32")]
    sensitivity = Sensitivity(model.program, model.checkpoint.read, forms, RTN())
    names = expert_weights(model.program)
    Walk(model.program, model.checkpoint.read, quantisable(model.program, names)).run(rows, sensitivity)
    assert set(sensitivity.costs) == set(names)
    seen = mixtures(model.reference(), rows)[SENSITIVE]
    floats = {name: model.program.recipes[name].evaluate(model.checkpoint.read) for name in names}
    for part, form in (("gate_up_proj", forms[0]), ("down_proj", forms[0]), ("down_proj", forms[1])):
        for e in (0, 3):
            one = {name: floats[name][e : e + 1].clone() for name in names if name.startswith(SENSITIVE)}
            w = one[f"{SENSITIVE}.{part}"]
            one[f"{SENSITIVE}.{part}"] = form.decode(form.encode(w, form.fit(w)), form.fit(w))
            other = model.reference()
            other.put_experts(SENSITIVE, e, *(w[0].contiguous().numpy() for w in one.values()))
            y = torch.from_numpy(other.run_experts(SENSITIVE, *(t.numpy() for t in (seen.x, seen.ids, seen.shares))).y)
            measured = sensitivity.costs[f"{SENSITIVE}.{part}"][form.text][e]
            assert measured == pytest.approx(float((y - seen.y).double().pow(2).sum()), rel=1e-3) and measured > 0


def spent(made: Opened, chosen: Plan) -> int:
    return sum(form.nbytes(made.program.recipes[name].shape) for name, form in chosen.formats.items())


def judged(made: Opened, chosen: Plan, directory: Path) -> Quality:
    store = Scratch(directory / chosen.text, f"{chosen.text}:")
    (quality,) = fill(made.job(), [chosen.candidate(made.program, store)], [], judged=True)
    store.close()
    return quality


def test_a_budget_of_bits_is_kept_and_goes_to_the_layer_that_needs_it(model, tmp_path):
    notes: list[str] = []
    chosen = plan(model.job(quantize="mixed", bits=5.0), notes)
    elements = sum(math.prod(model.program.recipes[name].shape) for name in chosen.formats)
    assert 0.5 * 5 * elements / 8 < spent(model, chosen) <= 5 * elements / 8
    texts = {layer: {form.text for name, form in chosen.formats.items() if layer in name} for layer in ("layers.0", "layers.1")}
    assert all(len(found) == 1 for found in texts.values())  # QMoE has one format for a layer
    assert int(texts["layers.0"].pop()[3]) >= int(texts["layers.1"].pop()[3])
    assert any(note.startswith("mixed precision: ") for note in notes) and any(
        "the target wants one format" in n for n in notes
    )


@pytest.mark.parametrize(("target", "bits", "text"), [("onnxruntime", 4.0, "int2:16"), ("onnx", 6.0, "int4:16")])
def test_it_is_better_than_one_format_of_as_many_bytes(model, tmp_path, target, bits, text):
    """And than the same formats with the layers the other way round."""
    chosen, uniform = plan(model.job(target, quantize="mixed", bits=bits), []), plan(model.job(quantize=text), [])
    names = list(chosen.formats)
    backwards = Plan("backwards", {name: chosen.formats[names[(i + 2) % 4]] for i, name in enumerate(names)}, RTN())
    assert spent(model, chosen) == spent(model, uniform) == spent(model, backwards)
    found = [judged(model, each, tmp_path) for each in (chosen, uniform, backwards)]
    assert all(found[0].error < 0.9 * other.error and found[0].kl < 0.8 * other.kl for other in found[1:])


def test_targets_that_take_one_format_for_each_projection_get_it(model):
    notes: list[str] = []
    chosen = plan(model.job("onnx", quantize="mixed", bits=5.5), notes)
    of_layer = [chosen.formats[f"{SENSITIVE}.{part}"].text for part in ("gate_up_proj", "down_proj")]
    assert of_layer[0] != of_layer[1] and any("one format for all experts of a projection" in note for note in notes)


@pytest.mark.parametrize("dense", ["", "int8"])
@pytest.mark.parametrize("more", [0, 20_000])
def test_a_size_of_all_weights_is_kept_to_the_byte(model, dense, more):
    """What the target itself adds, such as constants of its operators, is small and known to nobody before."""
    chosen = plan(model.job(quantize="mixed", bits=3.0, quantize_dense=dense), [])
    exact = written(model, chosen) + more
    size = plan(model.job(quantize="mixed", target_size=f"{exact}B", quantize_dense=dense), [])
    assert exact - 40_000 < written(model, size) <= exact
    if not more:
        with pytest.raises(Usage) as caught:
            plan(model.job(quantize="mixed", target_size=f"{exact - 1}B", quantize_dense=dense), [])
        assert "smallest budget" in caught.value.fix


def written(made: Opened, chosen: Plan) -> int:
    """Bytes of the weights of the program that a target is given."""
    weights = {n: quantising.promised(n, made.program.recipes[n].shape, form) for n, form in chosen.formats.items()}
    program, target = made.program.copy(), made.job().target
    rewrite(program, fitted(target, weights)[:1])
    return sum(program.recipes[name].nbytes for _, name in program.weights())


def test_a_budget_that_cannot_be_met_says_which_can(model):
    with pytest.raises(Usage, match="no choice of formats fits") as caught:
        plan(model.job(quantize="mixed", bits=2.5), [])
    least = int("".join(c for c in caught.value.fix if c.isdigit()))
    elements = sum(math.prod(model.program.recipes[name].shape) for name in expert_weights(model.program))
    assert least == elements * 3 // 8  # 2 bits, and 32 for each 32
    chosen = plan(model.job(quantize="mixed", bits=3.0), [])
    assert {form.text for form in chosen.formats.values()} == {"int2:32"} and spent(model, chosen) == least


@pytest.mark.parametrize("options", [{}, {"bits": 4.0, "weights": "none"}], ids=["no budget", "no weights"])
def test_without_a_budget_or_weights_it_is_refused(model, options):
    job = model.job(quantize="mixed", **options)
    if "weights" in options:
        job = quantising.Job(job.program, job.source, job.interface, None, job.target, job.options)
    with pytest.raises(Usage, match="wants weights to measure and a budget"):
        plan(job, [])
