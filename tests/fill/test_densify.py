"""The way back: what mocomp made becomes the dense model of transformers again, or says how far from it training led."""

import json
from dataclasses import replace

import pytest
import torch
import transformers

import mocomp.nn
from mocomp.commands.carve import carve
from mocomp.commands.densify import densify
from mocomp.errors import ParityFailed, Unsupported, Usage
from mocomp.fill import densify as averaging
from mocomp.options import CarveOptions, DensifyOptions
from mocomp.weights.arithmetic import pick

GROUPS = {"groups": "text=4,image=4", "modality": ("image=100..127",), "top_k": 2}
SLICES = {"groups": "8", "granularity": 4, "top_k": 4}
SHARED = {"groups": "8", "granularity": 4, "shared": 2, "top_k": 2}
MADE = {
    "llama, groups": ("llama", GROUPS),
    "llama, slices": ("llama", SLICES),
    "qwen3, shared": ("qwen3", SHARED),
    "qwen3, tied": ("qwen3", {"source": (("tie_word_embeddings", True),)}),
    "bert, slices": ("bert", SLICES),
    "vit, groups by position": ("vit", GROUPS | {"modality": ("image=position:3..9",)}),
    "llama, groups by an input of their own": ("llama", GROUPS | {"modality": ("image=kind:1",)}),
}


def auto(family: str):
    return transformers.AutoModelForCausalLM if family in ("llama", "qwen3") else transformers.AutoModel


def same_weights(family: str, one, other) -> bool:
    a, b = (auto(family).from_pretrained(directory).state_dict() for directory in (one, other))
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=1e-6, atol=1e-8) for name in a)


def outputs(family: str, directory) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    image, ids = torch.randn(1, 3, 32, 32, generator=generator), torch.randint(128, (2, 9), generator=generator)
    given = {"pixel_values": image} if family == "vit" else {"input_ids": ids}
    with torch.no_grad():
        return auto(family).from_pretrained(directory).eval()(**given)[0]


@pytest.mark.parametrize("family, options", MADE.values(), ids=MADE)
def test_what_was_upcycled_goes_back_to_the_very_weights(checkpoint, upcycled, tmp_path, family, options):
    receipt = densify(str(upcycled(family, **options)), tmp_path / "dense", DensifyOptions())
    assert receipt.preserved and receipt.moved is not None and receipt.moved <= 1e-5
    source = checkpoint(family, **dict(options.get("source", ())))
    assert same_weights(family, source, tmp_path / "dense")
    assert json.loads((tmp_path / "dense" / "config.json").read_text())["model_type"] == family


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("shared", [0, 1])
def test_what_was_carved_goes_back_to_the_function(checkpoint, tmp_path, family, shared):
    """Whichever experts a token goes through, since no neuron was lost; only their order is another."""
    carve(str(checkpoint(family)), tmp_path / "moe", CarveOptions(experts=4, shared=shared, top_k=2, parity="off"))
    receipt = densify(str(tmp_path / "moe"), tmp_path / "dense", DensifyOptions())
    assert receipt.changes == "the router chose what a token went through" and receipt.moved is not None
    before, after = outputs(family, checkpoint(family)), outputs(family, tmp_path / "dense")
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()


def test_what_was_trained_is_averaged_and_said_to_be(upcycled, tmp_path):
    model = mocomp.nn.load(upcycled("llama", top_k=2))
    experts = model.model.layers[0].mlp.experts
    with torch.no_grad():
        for e in range(4):
            experts.w_out[e] += e
    mocomp.nn.save(model, tmp_path / "trained")
    receipt = densify(str(tmp_path / "trained"), tmp_path / "dense", DensifyOptions())
    assert receipt.changes == "experts that differed were averaged" and receipt.moved is not None and receipt.moved > 1e-3
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.allclose(back.model.layers[0].mlp.down_proj.weight, experts.w_out.mean(0), atol=1e-6)
    assert torch.equal(back.model.layers[1].mlp.down_proj.weight, model.model.layers[1].mlp.experts.w_out[0])


def test_use_weighs_experts(upcycled, tmp_path):
    """Tokens of text alone: the experts of images have no part in the average."""
    model = mocomp.nn.load(upcycled("llama", **GROUPS))
    experts = model.model.layers[0].mlp.experts
    with torch.no_grad():
        for e in range(8):
            experts.w_out[e] += e
    mocomp.nn.save(model, tmp_path / "trained")
    (tmp_path / "data.jsonl").write_text('{"input_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9]}\n')
    options = DensifyOptions(weights="usage", calibration=str(tmp_path / "data.jsonl"))
    densify(str(tmp_path / "trained"), tmp_path / "dense", options)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense").model.layers[0].mlp.down_proj.weight
    text, back = experts.w_out[:4].detach(), back.detach()
    shares = torch.linalg.lstsq(text.flatten(1).T, back.flatten()[:, None]).solution[:, 0]
    assert shares.sum() == pytest.approx(1, abs=1e-3) and shares.min() >= -1e-3
    assert torch.allclose(torch.einsum("e,ehf->hf", shares, text), back, atol=1e-4)
    assert (shares - 0.25).abs().max() > 1e-2


def test_a_fault_is_caught_and_nothing_is_kept(upcycled, tmp_path, monkeypatch):
    """The columns of a block go with rows of other neurons."""
    real = averaging._joined

    def planted(blocks, gated):
        made = real(blocks, gated)
        return replace(made, w_out=pick(made.w_out, 1, [*range(1, made.width), 0]))

    monkeypatch.setattr(averaging, "_joined", planted)
    with pytest.raises(ParityFailed, match="densify was to preserve the function"):
        densify(str(upcycled("llama", **SLICES)), tmp_path / "dense", DensifyOptions())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, words",
    [
        ({"calibration": "data.jsonl"}, "--calibration is for --weights usage"),
        ({"layers": "0"}, "densify takes all layers"),
        ({"layout": "mocomp"}, "densify takes all layers"),
    ],
)
def test_options_that_mean_nothing_here_are_refused(upcycled, tmp_path, options, words):
    with pytest.raises(Usage, match=words):
        densify(str(upcycled("llama", **SLICES)), tmp_path / "dense", DensifyOptions(**options))
    assert not list(tmp_path.iterdir())


def test_what_has_no_dense_form_is_refused(checkpoint, upcycled, tmp_path):
    with pytest.raises(Unsupported, match="no mixtures of mocomp"):
        densify(str(checkpoint("llama")), tmp_path / "dense", DensifyOptions())
    with pytest.raises(Unsupported, match="layers that tokens go past"):
        densify(str(upcycled("llama", depth="1", parity="off")), tmp_path / "dense", DensifyOptions())
    assert not list(tmp_path.iterdir())


def test_the_command(command, upcycled, tmp_path):
    done = command("densify", upcycled("llama", **SLICES), "-o", tmp_path / "dense")
    assert done.code == 0 and "function preserved" in done.out and "loads as transformers.LlamaForCausalLM" in done.out
