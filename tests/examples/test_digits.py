"""The committed digits model: its tokens, its split, its files and how well it reads held-out digits."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
sys.path.insert(0, str(DIGITS))

import captions  # noqa: E402
import data  # noqa: E402
import evaluate  # noqa: E402
import train  # noqa: E402

CHECKPOINT = DIGITS / "checkpoint"
LIMIT = 4 * 10**6


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINT, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32, local_files_only=True).eval()


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


def test_checkpoint_is_small_and_named_as_transformers_writes_it():
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= LIMIT
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as weights:
        expert = weights.get_tensor("model.layers.0.mlp.experts.7.gate_proj.weight")
    assert expert.dtype == torch.bfloat16 and expert.shape == (64, 192)


def test_every_expert_is_used(model, tokenizer, held_out):
    tokens = data.quantise(held_out[0], data.load_codebook())
    documents = [data.image_first(*pair) for pair in zip(tokens, evaluate.held_out_captions(), strict=True)]
    shares = train.expert_shares(model, torch.from_numpy(data.encode(tokenizer, documents)))
    assert (shares.amax(dim=1) > 0.05).all()


def test_reads_held_out_digits(model, tokenizer):
    assert evaluate.caption_accuracy(evaluate.torch_logits(model), tokenizer) >= 0.90


def test_draws_the_digit_asked_for(model, tokenizer):
    assert evaluate.image_accuracy(evaluate.torch_logits(model), tokenizer) >= 0.85


def test_a_short_training_is_deterministic_and_learns(tokenizer):
    (images, digits), _ = data.split()
    recipe = train.Recipe(layers=1, hidden=32, heads=2, kv_heads=1, expert_hidden=32, steps=8, batch=16)
    first, second = (train.train(recipe, tokenizer, images, digits, data.load_codebook()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
