"""Every parameter is the one that transformers would have loaded, bit for bit, without loading it."""

import shutil

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from mocomp import ConvertOptions, convert
from mocomp.errors import BadInput
from mocomp.models.binding import bind, bind_nothing
from mocomp.models.huggingface import build
from mocomp.models.source import open_source
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.recipes import Cast, Tensor

CASES = {
    "one tensor for each expert": ("mixtral", {}),
    "packed, transposed, biases": ("gpt_oss", {}),
    "some layers dense, buffers": ("deepseek_v3", {}),
    "encoder": ("bert", {}),
    "tied embeddings": ("mixtral", {"tie_word_embeddings": True}),
    "several shards": ("mixtral", {"max_shard_size": "100KB"}),
    "experts of text and of images": ("ernie4_5_vl_moe", {}),
    "half precision": ("qwen2_moe", {"dtype": torch.bfloat16}),
}


def bound(directory, task="auto"):
    """(model without weights, its recipes evaluated, names that have no place)"""
    source = open_source(str(directory), task=task)
    with Checkpoint(directory) as opened:
        model = build(source)
        recipes, unused = bind(model, opened)
        return model, recipes, {name: recipe.evaluate(opened.read) for name, recipe in recipes.items()}, unused


def loaded(directory, task="auto"):
    source = open_source(str(directory), task=task)
    return source.model_class.from_pretrained(directory, dtype=torch.float32)


def same(values, model) -> bool:
    expected = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    assert values.keys() == expected.keys() >= model.state_dict().keys()
    return all(values[name].dtype == tensor.dtype and torch.equal(values[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("case", CASES)
def test_recipes_are_what_from_pretrained_loads(checkpoint, case):
    family, changes = CASES[case]
    directory = checkpoint(family, **changes)
    _, _, values, unused = bound(directory)
    assert unused == [] and same(values, loaded(directory))


def test_tied_parameters_share_a_recipe(checkpoint):
    _, recipes, _, _ = bound(checkpoint("mixtral", tie_word_embeddings=True))
    assert recipes["lm_head.weight"] is recipes["model.embed_tokens.weight"]


def test_experts_are_read_one_at_a_time(checkpoint):
    """Packing is a recipe, so an expert's rows ask for that expert's tensors and no other."""
    directory = checkpoint("mixtral")
    reads = []
    with Checkpoint(directory) as opened:
        recipes, _ = bind(build(open_source(str(directory))), opened)
        packed = recipes["model.layers.1.mlp.experts.gate_up_proj"]
        packed.rows(lambda name, *rows: reads.append(name) or opened.read(name, *rows), 3, 4)
    assert reads == [f"model.layers.1.block_sparse_moe.experts.3.{w}.weight" for w in ("w1", "w3")]


def test_a_type_is_changed_by_recipe_and_only_where_it_differs(checkpoint):
    _, half, _, _ = bound(checkpoint("qwen2_moe", dtype=torch.bfloat16))
    _, full, _, _ = bound(checkpoint("qwen2_moe"))
    assert isinstance(half["model.norm.weight"], Cast) and isinstance(full["model.norm.weight"], Tensor)


def test_a_checkpoint_of_a_generator_serves_its_body(checkpoint):
    """Names lose the prefix that the larger class gave them, and what the body has no place for is told."""
    directory = checkpoint("mixtral")
    _, _, values, unused = bound(directory, task="feature-extraction")
    assert unused == ["lm_head.weight"] and same(values, loaded(directory, task="feature-extraction"))


def test_tensors_without_a_place_are_named(checkpoint, tmp_path):
    directory = checkpoint("mixtral")
    tensors = load_file(directory / "model.safetensors") | {"model.layers.7.extra": torch.zeros(3)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    _, _, values, unused = bound(tmp_path)
    assert unused == ["model.layers.7.extra"] and same(values, loaded(directory))


def test_what_no_trace_comes_to_may_be_missing(checkpoint, tmp_path):
    """Chameleon's image tokenizer takes no part in saying the next token."""
    source, artifact = tmp_path / "source", tmp_path / "artifact"
    shutil.copytree(checkpoint("chameleon"), source)
    tensors = load_file(source / "model.safetensors")
    decoder = {name: tensor for name, tensor in tensors.items() if "vqmodel" not in name}
    assert len(decoder) < len(tensors)
    save_file(decoder, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"are not in the checkpoint: model\.vqmodel"):
        bound(source)
    report = convert(str(source), artifact, ConvertOptions())
    assert report.parity is not None and report.parity.passed
    assert not any("vqmodel" in name for name in ir.load(artifact / "model.onnx").graph.initializers)


def test_nothing_at_hand_still_has_its_shape(checkpoint):
    model = build(open_source(str(checkpoint("gpt_oss"))))
    recipes = bind_nothing(model)
    expected = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    assert {name: (recipe.shape, recipe.dtype) for name, recipe in recipes.items()} == {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in expected.items()
    }
