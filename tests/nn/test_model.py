"""Models of transformers with mixtures inside: loaded, saved, trained, asked to generate, and converted."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import mocomp.nn
from mocomp import ConvertOptions, convert
from mocomp.errors import BadInput, Unsupported
from mocomp.nn.mixture import Mixture
from mocomp.nn.model import Passed, insert
from mocomp.plans.plan import ModelPlan

IMAGES = {"groups": "text=4,image=2", "noise": 0.3, "top_k": 2}
BY_IDS = IMAGES | {"modality": ("image=40..79",)}
BY_INPUT = IMAGES | {"modality": ("image=modality_ids:1",)}
BY_POSITION = IMAGES | {"modality": ("image=position:2..4,8",)}
SMALL = (("num_hidden_layers", 1),)


def ids(batch: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 128, (batch, length), generator=torch.Generator().manual_seed(seed))


def run(model, tokens: torch.Tensor, **rest) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, **rest).logits


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def moma(upcycled):
    """moma(): a fresh model whose tokens of ids 40 to 79 are images."""
    return lambda **options: mocomp.nn.load(upcycled("llama", **BY_IDS), **options)


def test_is_a_model_of_transformers_with_mixtures(moma):
    model = moma()
    assert type(model).__name__ == "LlamaForCausalLM" and not model.training
    assert sum(isinstance(module, Mixture) for module in model.modules()) == 2
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert model.mocomp_plan.modality.names == ("text", "image")


@pytest.mark.parametrize("size", [10**9, 40_000], ids=["one file", "shards"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["head of its own", "tied"])
def test_comes_back_as_it_was_saved(upcycled, tmp_path, dtype, size, tied):
    source = upcycled("llama", source=(*SMALL, ("tie_word_embeddings", tied)), **BY_IDS | {"depth": "all"})
    model = mocomp.nn.load(source, dtype=dtype)
    mocomp.nn.save(model, tmp_path / "saved", shard_bytes=size)
    files = sorted(path.name for path in (tmp_path / "saved").glob("*.safetensors"))
    assert (len(files) > 1) == (size == 40_000)
    stored = {name: value for file in files for name, value in load_file(tmp_path / "saved" / file).items()}
    assert {value.dtype for value in stored.values()} == {dtype}
    assert len({"lm_head.weight", "model.embed_tokens.weight"} & stored.keys()) == 2 - tied
    back = mocomp.nn.load(tmp_path / "saved", dtype=dtype)
    assert same(back.state_dict(), model.state_dict()) and back.mocomp_plan == model.mocomp_plan
    assert (back.lm_head.weight is back.model.embed_tokens.weight) == tied
    assert torch.equal(run(back, ids()), run(model, ids()))


def test_a_checkpoint_in_bfloat16_stays_one(upcycled):
    """What is made of a checkpoint has its type, and loses nothing when it is read in a wider one."""
    source = upcycled("llama", source=(("dtype", torch.bfloat16), *SMALL), **BY_IDS)
    stored = load_file(source / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    wide = mocomp.nn.load(source).state_dict()
    assert {value.dtype for value in wide.values()} == {torch.float32}
    assert all(torch.equal(wide[name].bfloat16(), value) for name, value in stored.items())


def test_files_of_the_tokenizer_come_along(moma, upcycled, tmp_path):
    like = shutil.copytree(upcycled("llama", **BY_IDS), tmp_path / "like")
    (like / "tokenizer.json").write_text("{}")
    mocomp.nn.save(moma(), tmp_path / "saved", like=like)
    assert (tmp_path / "saved" / "tokenizer.json").read_text() == "{}"
    with pytest.raises(BadInput, match="exists already"):
        mocomp.nn.save(moma(), tmp_path / "saved")


def test_a_step_of_training_and_its_conversion(upcycled, tmp_path):
    """With the losses that training has; what was learned is in the artifact, by its proof."""
    model = mocomp.nn.load(upcycled("llama", source=SMALL, **BY_IDS)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(input_ids=ids(), labels=ids()).loss
    loss.backward()
    optimiser.step()
    assert model(input_ids=ids(), labels=ids()).loss < loss
    learned = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert {f"model.layers.0.mlp.{name}" for name in ("router.weight", "experts.w_in", "experts.w_out")} <= set(learned)
    mocomp.nn.save(model, tmp_path / "trained")
    report = convert(str(tmp_path / "trained"), tmp_path / "artifact", ConvertOptions())
    assert report.parity.passed and [layer.experts for layer in report.parity.layers] == [6]


def test_generates_with_a_cache_what_it_generates_without(moma):
    model = moma()
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with_cache, without = (model.generate(ids(), use_cache=use, **options) for use in (True, False))
    assert torch.equal(with_cache, without) and with_cache.shape == (2, 24)
    new = with_cache[:, 12:]
    assert ((new >= 40) & (new < 80)).any() and ((new < 40) | (new >= 80)).any()  # tokens of both kinds went round


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("steps", [[12], [7, 5], [1] * 12], ids=str)
def test_positions_are_those_of_the_sequence(upcycled, steps, padding):
    """Counted from the first token that is not padding, also behind a cache."""
    from transformers import DynamicCache

    model = mocomp.nn.load(upcycled("llama", source=SMALL, **BY_POSITION))
    context = model.model.layers[0].mlp.modality
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :padding] = 0
    image = torch.tensor([2, 3, 4, 8])
    positions = torch.stack([torch.arange(12), (torch.arange(12) - padding).clamp(min=0)])
    expected = torch.isin(positions, image).long()
    cache, seen, start = DynamicCache(), [], 0
    for step in steps:
        run(model, ids()[:, start : start + step], attention_mask=mask[:, : start + step], past_key_values=cache)
        seen.append(context.ids)
        start += step
    assert torch.equal(torch.cat(seen, 1), expected)
    if not padding:
        run(model, ids())
        assert torch.equal(context.ids, expected)  # without a mask too


def test_positions_without_ids_are_counted_too(upcycled):
    from transformers import DynamicCache

    model = mocomp.nn.load(upcycled("llama", source=SMALL, **BY_POSITION))
    context = model.model.layers[0].mlp.modality
    embeds, cache = model.model.embed_tokens(ids()).detach(), DynamicCache()
    for start, stop in ((0, 7), (7, 12)):
        with torch.no_grad():
            model(inputs_embeds=embeds[:, start:stop], past_key_values=cache)
        assert torch.equal(context.ids[0], torch.isin(torch.arange(start, stop), torch.tensor([2, 3, 4, 8])).long())


def test_an_input_of_its_own_tells_the_modality(upcycled):
    """The class does not know it: it is taken from the call before the class sees it."""
    model = mocomp.nn.load(upcycled("llama", source=SMALL, **BY_INPUT))
    given = (torch.arange(24) % 3 == 0).long().reshape(2, 12)
    told = run(model, ids(), modality_ids=given)
    assert torch.equal(model.model.layers[0].mlp.modality.ids, given)
    assert not torch.allclose(run(model, ids(), modality_ids=1 - given), told, rtol=1e-2, atol=1e-2)
    with pytest.raises(Unsupported, match="the call has no modality_ids"):
        run(model, ids())


def test_ids_may_be_given_by_place_and_not_left_out(moma):
    model = moma()
    with torch.no_grad():
        assert torch.equal(model(ids()).logits, run(model, ids()))
        with pytest.raises(Unsupported, match="the call has no input_ids"):
            model(inputs_embeds=model.model.embed_tokens(ids()))


def test_what_a_mixture_took_over_is_passed_by(upcycled):
    model = mocomp.nn.load(upcycled("bert", source=SMALL))
    layer = model.encoder.layer[0]
    assert isinstance(layer.intermediate, Mixture) and isinstance(layer.output.dense, Passed)
    x = torch.randn(2, 3)
    assert layer.output.dense(x) is x and isinstance(layer.output.LayerNorm, torch.nn.LayerNorm)


def test_a_plan_of_another_model_is_told(moma):
    model = moma()
    mixture = replace(model.mocomp_plan.mixtures[0], enter="model.layers.9.mlp")
    with pytest.raises(BadInput, match=r"LlamaForCausalLM has no module model\.layers\.9"):
        insert(model, ModelPlan(model.mocomp_plan.modality, (mixture,)))


def test_a_dense_checkpoint_is_told(checkpoint):
    with pytest.raises(BadInput, match="it has no mixtures of mocomp") as caught:
        mocomp.nn.load(checkpoint("llama"))
    assert "Load it with transformers" in caught.value.fix


def damaged(directory, edit) -> None:
    config = json.loads((directory / "config.json").read_text())
    edit(config)
    (directory / "config.json").write_text(json.dumps(config))


DAMAGES = {
    "a plan of tomorrow": (lambda config: config["mocomp"].update(format=2), "format 2, and this version reads 1"),
    "a plan of more experts": (
        lambda config: config["mocomp"]["mixtures"][0].update(groups=[["text", 4], ["image", 3]]),
        "is .* in the checkpoint",
    ),
    "no base": (lambda config: config.pop("base"), "config.json: no config of the model it was made from, under `base`"),
    "no plan": (lambda config: config.pop("mocomp"), "no plan of inserted mixtures"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_told(name, upcycled, tmp_path):
    edit, message = DAMAGES[name]
    copy = shutil.copytree(upcycled("llama", source=SMALL, **BY_IDS), tmp_path / "copy")
    damaged(copy, edit)
    with pytest.raises(BadInput, match=message):
        mocomp.nn.load(copy)


def test_the_package_tells_what_it_has():
    assert all(callable(getattr(mocomp.nn, name)) for name in mocomp.nn.__all__)
    with pytest.raises(AttributeError, match="no attribute 'transmogrify'"):
        mocomp.nn.transmogrify  # noqa: B018
