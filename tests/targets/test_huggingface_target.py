"""The target `huggingface`: what the package compressed-tensors and transformers make of its checkpoints.

Dimension letters: E experts, N rows, K columns.
"""

import functools
import json
import re

import pytest
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file

from mocomp.commands.parity import ParityOptions
from mocomp.commands.parity import parity as prove_again
from mocomp.errors import BadInput, ParityFailed, Unsupported, Usage
from mocomp.lowering import compressed_tensors
from mocomp.lowering.checkpoint_places import Place, places
from mocomp.lowering.scheme_targets import patterns, quantization_config
from mocomp.opening import open_target
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.quant.formats import parse
from mocomp.verify import stored
from mocomp.weights import recipes
from tests import checkpoints

WIDE = {"qwen3_moe": {"moe_intermediate_size": 64}, "mixtral": {"intermediate_size": 64}}
"""Blocks of 32 divide the widths."""
FORMATS = ("int8", "int8:16", "int8:asym", "int4", "int4:16", "int4:16:asym", "int4:asym", "int2:16", "int2:16:asym", "fp8",
           "fp8:tensor", "fp8:128x128", "mxfp4")  # fmt: skip


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    """made(family, **options): (source, directory, report) of a conversion."""

    @functools.cache
    def of(family, **options):
        source = checkpoint(family, **WIDE.get(family, {}), num_hidden_layers=1)
        directory = tmp_path_factory.mktemp(family) / "out"
        report = convert(str(source), directory, ConvertOptions(target="huggingface", **options))
        return source, directory, report

    return of


@pytest.mark.parametrize("text", FORMATS)
def test_the_package_reads_the_same_numbers(text):
    """Rows 128 to 140 of the second of two experts, which end inside of a word of zero points."""
    form, shape = parse(text), (2, 140, 96)
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    grid = form.fit(w)
    packed = form.pack(form.encode(w, grid), grid)
    place = Place("model.w.weight", 128, 140, expert=1)
    parts = {name: recipes.literal(tensor) for name, tensor in packed.tensors().items()}
    made = compressed_tensors.tensors(form, shape, parts, place)
    settings = compressed_tensors.scheme(form)
    scheme = QuantizationScheme.model_validate(settings | {"targets": ["Linear"]})
    names = BaseCompressor.get_value_from_registry(settings["format"]).compression_param_names(scheme)
    assert set(names) == set(made)
    state = {name: recipe.evaluate(nothing) for name, recipe in made.items()}
    found = BaseCompressor.get_value_from_registry(settings["format"]).decompress(state, scheme)["weight"]
    assert torch.equal(found.float(), form.dequantise(packed, 96)[1, 128:140])


def nothing(name, start, stop):
    raise AssertionError(name)


LOADED = {
    "int4": ("llama", {"quantize_dense": "int4"}),
    "experts and layers": ("qwen3_moe", {"quantize": "int4", "quantize_dense": "int8"}),
    "experts alone": ("qwen3_moe", {"quantize": "fp8"}),
    "fp8, one scale": ("mixtral", {"quantize": "fp8:tensor"}),
}


@pytest.mark.parametrize("case", LOADED)
def test_transformers_loads_it(made, case):
    family, options = LOADED[case]
    source, directory, report = made(family, **options)
    assert report.parity.passed and report.notes == []
    ids = torch.arange(20)[None]
    proven = open_target("huggingface").open(directory).run({"input_ids": ids.numpy()})["logits"]
    found = logits(directory, ids)
    assert (found - torch.from_numpy(proven)).abs().max() < 1e-4 * found.abs().max()
    assert (found - logits(source, ids)).abs().max() > 1e-3 * found.abs().max()


def logits(directory, ids):
    options = {"dtype": torch.float32, "attn_implementation": "eager", "experts_implementation": "eager"}
    with torch.no_grad():
        return transformers.AutoModelForCausalLM.from_pretrained(directory, **options)(ids).logits


UNREAD = {
    "zero points": ("llama", {"quantize_dense": "int4:32:asym"}),
    "zero points of experts": ("qwen3_moe", {"quantize": "int4:32:asym"}),
    "experts in mxfp4 unless": ("qwen3_moe", {"quantize": "mxfp4"}),
    "experts in several formats": ("qwen3_moe", {"quantize": "mixed", "bits": 6.5}),
    "experts in floats": ("qwen3_moe", {"quantize_dense": "int8"}),
}


@pytest.mark.parametrize("case", UNREAD)
def test_what_transformers_cannot_read_is_said(made, case):
    """And proven all the same. Where this fails, transformers has learnt to read it, and `notes` can say less."""
    family, options = UNREAD[case]
    _, directory, report = made(family, **options)
    assert report.parity.passed
    (note,) = [note for note in report.notes if note.startswith("transformers")]
    assert f"cannot read {case.removesuffix(' of experts')}" in note
    ids = torch.arange(20)[None]
    proven = torch.from_numpy(open_target("huggingface").open(directory).run({"input_ids": ids.numpy()})["logits"])
    with pytest.raises((RuntimeError, AssertionError)):
        torch.testing.assert_close(logits(directory, ids), proven)


def test_all_else_is_as_it_was(checkpoint, tmp_path):
    source = checkpoints.make("qwen3_moe", tmp_path / "source", torch.bfloat16, num_hidden_layers=1, moe_intermediate_size=64)
    report = convert(str(source), tmp_path / "out", ConvertOptions(target="huggingface", quantize="int4"))
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    experts = {name for name in before if ".experts." in name}
    assert before.keys() - experts == {name for name in after if ".experts." not in name}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - experts)
    packed = {
        name.removesuffix(".weight") + own for name in experts for own in (".weight_packed", ".weight_scale", ".weight_shape")
    }
    assert {name for name in after if ".experts." in name} == packed
    configs = [json.loads((place / "config.json").read_text()) for place in (source, tmp_path / "out")]
    assert configs[1].pop("quantization_config")["format"] == "pack-quantized" and configs[0] == configs[1]
    assert not (tmp_path / "out" / "genai_config.json").exists()
    assert report.parity.passed and prove_again(tmp_path / "out", options=ParityOptions(seed=1)).passed


def test_a_checkpoint_that_is_not_quantised_is_copied(made):
    source, directory, report = made("llama")
    before, after = (load_file(place / "model.safetensors") for place in (source, directory))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert "quantization_config" not in json.loads((directory / "config.json").read_text())
    assert report.parity.passed


def swap_scales(tensors, config):
    name = "model.layers.0.mlp.experts.1.up_proj.weight_scale"
    tensors[name] = tensors[name].flip(0).contiguous()


def swap_experts(tensors, config):
    for own in ("weight_packed", "weight_scale"):
        names = [f"model.layers.0.mlp.experts.{e}.down_proj.{own}" for e in (0, 1)]
        tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]


def halve_groups(tensors, config):
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 16


def ignore_all(tensors, config):
    config["quantization_config"]["ignore"].append("re:.*experts.*")


FAULTS = {
    "scales": (swap_scales, ParityFailed, "expert 1"),
    "experts": (swap_experts, ParityFailed, "expert 0"),
    "config": (halve_groups, RuntimeError, "must match the size"),
    "ignored": (ignore_all, BadInput, "says it is not"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_checkpoint_is_seen(checkpoint, tmp_path, monkeypatch, fault):
    """Put in between writing and proving."""
    tamper, error, message = FAULTS[fault]
    compare = stored.compare

    def tampered(weights, read, target, directory, artifact):
        file, place = directory / "model.safetensors", directory / "config.json"
        tensors, config = load_file(file), json.loads(place.read_text())
        tamper(tensors, config)
        save_file(tensors, file)
        place.write_text(json.dumps(config))
        compare(weights, read, target, directory, artifact)

    monkeypatch.setattr(stored, "compare", tampered)
    source = checkpoint("qwen3_moe", **WIDE["qwen3_moe"], num_hidden_layers=1)
    with pytest.raises(error, match=message):
        convert(str(source), tmp_path / "out", ConvertOptions(target="huggingface", quantize="int4"))


GAPS = {
    "packed in the checkpoint": ("gpt_oss", {"layer_types": ["full_attention"]}, {"quantize": "int8"}, "one for each expert"),
    "blocks": ("mixtral", {"intermediate_size": 48}, {"quantize": "int4"}, "do not divide its 48 columns"),
    "square blocks": ("qwen3_moe", {}, {"quantize": "fp8:128x128"}, "two tensors"),
    "inputs": ("qwen3_moe", {}, {"quantize": "int4", "algorithm": "awq"}, "than awq"),
    "global scale": ("qwen3_moe", {}, {"quantize": "nvfp4"}, "take mxfp4"),
    "tied": ("llama", {"tie_word_embeddings": True}, {"quantize_dense": "int4"}, "lm_head.weight: the checkpoint has it as"),
}


@pytest.mark.parametrize("case", GAPS)
def test_what_it_cannot_hold_is_refused(tmp_path, case):
    family, changes, options, reason = GAPS[case]
    source = checkpoints.make(family, tmp_path / "source", **WIDE.get(family, {}) | changes, num_hidden_layers=1)
    with pytest.raises(Unsupported, match=re.escape(reason)):
        convert(str(source), tmp_path / "out", ConvertOptions(target="huggingface", **options))
    assert not (tmp_path / "out").exists()


def test_models_of_no_class_of_transformers_are_refused(upcycled, tmp_path):
    with pytest.raises(Unsupported, match="mixtures are of mocomp"):
        convert(str(upcycled("llama")), tmp_path / "out", ConvertOptions(target="huggingface"))


def test_what_is_quantised_already_is_refused(made, tmp_path):
    _, directory, _ = made("llama", quantize_dense="int4")
    with pytest.raises(Unsupported, match="quantised already"):
        convert(str(directory), tmp_path / "again", ConvertOptions(target="huggingface"))


@pytest.mark.parametrize("options", [{"weights": "none", "parity": "off"}, {"accuracy_level": 4}], ids=str)
def test_options_of_other_targets_are_refused(checkpoint, tmp_path, options):
    with pytest.raises(Usage):
        convert(str(checkpoint("llama")), tmp_path / "out", ConvertOptions(target="huggingface", **options))


def test_places_are_those_of_whole_matrices():
    leaf = {name: recipes.Tensor((4, 6), torch.float32, name) for name in "abcd"}
    gates, ups = (recipes.stack([leaf[x], leaf[y]], 0) for x, y in ("ab", "cd"))
    bank = recipes.cast(recipes.concat([gates, ups], 1), torch.float64)
    expected = [Place("a", 0, 4, 0), Place("b", 0, 4, 1), Place("c", 4, 8, 0), Place("d", 4, 8, 1)]
    assert places(bank) == expected
    assert places(recipes.concat([leaf["a"], leaf["b"]], 0)) == [Place("a", 0, 4), Place("b", 4, 8)]
    for other in (
        recipes.permute(leaf["a"], (1, 0)),
        recipes.stack([leaf["a"], leaf["a"]], 0),
        recipes.concat([gates, ups], 2),
    ):
        assert places(other) is None


def test_patterns_fit_what_they_should_and_nothing_else():
    """Layer 0 is in another format than the others, expert 1 of layer 2 in floats."""
    kinds = {f"m.{layer}.experts.{e}.up": "int4" if layer else "int8" for layer in range(4) for e in range(12)}
    kinds |= {"m.2.experts.1.up": "", "m.0.gate": "", "m.1.gate": "", "head": "int8"}
    found = patterns(kinds)
    for name, kind in kinds.items():
        fits = {k for k, ps in found.items() if any(p == name or (p[:3] == "re:" and re.match(p[3:], name)) for p in ps)}
        assert fits == {kind}, name
    assert sum(map(len, found.values())) < len(kinds) / 2


def test_the_format_of_most_is_that_of_the_class():
    config = quantization_config({"m.0.a": "int4:32", "m.1.a": "int4:32", "head": "fp8"}, ["m.0.gate", "m.1.gate"])
    targets = [group["targets"] for group in config["config_groups"].values()]
    assert targets == [["Linear"], ["head"]] and config["ignore"] == [r"re:m\.\d+\.gate$"]
    assert config["format"] == "mixed-precision"
