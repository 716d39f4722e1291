"""The committed digits models: their tokens, their split, their files and how well they read held-out digits."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
sys.path.insert(0, str(DIGITS))

import captions  # noqa: E402
import data  # noqa: E402
import evaluate  # noqa: E402
import train  # noqa: E402

CHECKPOINT = DIGITS / "checkpoint"
MODELS = ("checkpoint", "dense", "moma")
LIMIT = 4 * 10**6


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINT, local_files_only=True)


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return evaluate.load(DIGITS / name)[0]


@pytest.fixture(scope="module")
def held_out():
    return data.split()[1]


def test_vocabulary_is_text_then_image(tokenizer):
    assert len(tokenizer) == 256
    assert tokenizer.convert_tokens_to_ids(["<img_0>", "<img_55>"]) == [200, 255]
    assert all(i in data.TEXT_IDS for i in tokenizer.convert_tokens_to_ids(captions.words()))
    assert tokenizer.get_vocab() == data.build_tokenizer().get_vocab()


@pytest.mark.parametrize("order", [data.image_first, data.caption_first])
def test_documents_round_trip(tokenizer, held_out, order):
    tokens = data.quantise(held_out[0], data.load_codebook())
    documents = [order(*pair) for pair in zip(tokens, evaluate.held_out_captions(), strict=True)]
    ids = data.encode(tokenizer, documents)
    assert tokenizer.unk_token_id not in ids
    decoded = [text.replace(tokenizer.pad_token, "").rstrip() for text in tokenizer.batch_decode(ids)]
    assert decoded == documents


def test_patches_round_trip(held_out):
    codes = np.random.default_rng(0).random((56, 4), dtype=np.float32)
    tokens = np.random.default_rng(1).integers(56, size=(5, data.PATCHES))
    assert np.array_equal(data.quantise(data.draw(tokens, codes), codes), tokens)


def test_committed_codebook_is_of_the_training_split():
    (images, _), _ = data.split()
    assert np.allclose(data.fit_codebook(images), data.load_codebook(), atol=1e-3)


def test_split_has_no_leak(held_out):
    (images, digits), (held_images, held_digits) = data.split()
    assert len(images) + len(held_images) == 1797
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in held_images}
    assert np.allclose(np.bincount(digits) / len(digits), np.bincount(held_digits) / len(held_digits), atol=0.005)


def test_captions_tell_thick_from_thin_and_left_from_right():
    stroke = np.zeros((8, 8), np.float32)
    stroke[:, 3] = 1
    leaning = np.eye(8, dtype=np.float32)
    assert captions.weight(stroke) == "thin" and captions.weight(np.ones((8, 8))) == "thick"
    assert captions.pose(stroke) == "standing straight"
    assert captions.pose(leaning) == "leaning left" and captions.pose(leaning[::-1]) == "leaning right"


@pytest.mark.parametrize("name", MODELS)
def test_checkpoints_are_small(name):
    assert sum(path.stat().st_size for path in (DIGITS / name).iterdir()) <= LIMIT


@pytest.mark.parametrize(
    ("name", "weight", "shape"),
    [
        ("checkpoint", "model.layers.0.mlp.experts.7.gate_proj.weight", (64, 192)),
        ("dense", "model.layers.0.mlp.gate_proj.weight", (128, 192)),
        ("moma", "model.layers.0.mlp.experts.w_in", (8, 128, 192)),
    ],
)
def test_checkpoints_are_named_as_their_library_writes_them(name, weight, shape):
    with safe_open(DIGITS / name / "model.safetensors", "pt") as weights:
        tensor = weights.get_tensor(weight)
    assert tensor.dtype == torch.bfloat16 and tensor.shape == shape


@pytest.mark.parametrize("name", MODELS)
def test_tokenizers_are_the_same(tokenizer, name):
    assert AutoTokenizer.from_pretrained(DIGITS / name, local_files_only=True).get_vocab() == tokenizer.get_vocab()


def test_every_expert_is_used_and_those_of_a_group_by_no_other_modality(name, model, tokenizer):
    if name == "dense":
        return
    image, text = train.expert_shares(model, torch.from_numpy(evaluate.held_out_documents(tokenizer))).unbind(1)
    assert (torch.maximum(image, text) > 0.05).all()
    if name == "moma":
        assert (text[:, 4:] == 0).all() and (image[:, :4] == 0).all()


@pytest.fixture(scope="module")
def written():
    return json.loads((DIGITS / "metrics.json").read_text())


def test_perplexities_are_as_written_down(name, model, tokenizer, written):
    losses = evaluate.modality_losses(evaluate.torch_logits(model), tokenizer, evaluate.held_out_documents(tokenizer))
    figures = [written[name][f"{kind}_perplexity"] for kind in ("text", "image")]
    assert np.exp(losses).tolist() == pytest.approx(figures, rel=1e-3)


def test_reads_and_draws_held_out_digits(name, model, tokenizer, written):
    if name == "dense":
        pytest.skip("the loss says enough of what mixtures are made from")
    figures = evaluate.evaluate(evaluate.torch_logits(model), tokenizer)
    assert figures["caption_accuracy"] >= 0.95 and figures["image_accuracy"] >= 0.95
    accuracies = {figure: value for figure, value in figures.items() if figure.endswith("accuracy")}
    assert accuracies == pytest.approx({figure: written[name][figure] for figure in accuracies}, abs=0.006)


def test_the_loss_of_balance_is_that_of_transformers():
    logits, kept = torch.randn(2 * 7, 8, generator=torch.Generator().manual_seed(0)), torch.arange(14).reshape(2, 7) % 7 < 5
    theirs = load_balancing_loss_func((logits,), 8, 2, kept)
    assert torch.allclose(train.switch_loss(logits[kept.flatten()], 2), theirs)


def test_a_short_training_is_deterministic_and_learns(tokenizer):
    recipe = train.Recipe(layers=1, hidden=32, heads=2, kv_heads=1, expert_hidden=32, steps=8, batch=16)
    first, second = (train.train(recipe, tokenizer) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
