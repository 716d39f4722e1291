"""How good a model of the digits is, in both directions, on the images that were held out.

The model is any callable `logits(ids [B, S] int64) -> [B, S, V] float32`, in numpy, causal in S: a
transformers model (`torch_logits`) or a compiled artifact. Rows are padded on the right, which a
causal model cannot see, so neither a mask nor a cache is needed.

    python examples/digits/evaluate.py [CHECKPOINT]
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from captions import DIGITS, caption
from data import (
    IMAGE_IDS,
    PATCHES,
    TEXT_IDS,
    caption_first,
    draw,
    encode,
    image_first,
    load_codebook,
    picture,
    quantise,
    split,
)
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForCausalLM, AutoTokenizer

import mocomp.nn

CHECKPOINT, MOMA = (Path(__file__).parent / name for name in ("checkpoint", "moma"))
CAPTION_TOKENS = 12  # longer than any caption, <eos> included


def torch_logits(model):
    """A transformers model as the callable that everything here takes."""

    @torch.inference_mode()
    def logits(ids):
        return model(torch.from_numpy(ids), use_cache=False).logits.float().numpy()

    return logits


def load(checkpoint=CHECKPOINT):
    """The model of a checkpoint in float32, stock or with mixtures of mocomp, and its tokenizer."""
    kind = json.loads((Path(checkpoint) / "config.json").read_text())["model_type"]
    read = mocomp.nn.load if kind == "mocomp" else AutoModelForCausalLM.from_pretrained
    return read(checkpoint, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(checkpoint)


def generate(logits, prompts, count, pad):
    """The `count` tokens [B, count] that follow prompts [B, S] of any length, greedily."""
    rows, lengths = np.arange(len(prompts)), (prompts != pad).sum(axis=1)
    ids = np.pad(prompts, ((0, 0), (0, count)), constant_values=pad)
    for step in range(count):
        ends = lengths + step
        ids[rows, ends] = logits(ids[:, : ends.max()])[rows, ends - 1].argmax(axis=-1)
    return np.take_along_axis(ids, lengths[:, None] + np.arange(count), axis=1)


def held_out_captions():
    """One seeded caption for each held-out image."""
    rng = np.random.default_rng(0)
    _, (images, digits) = split()
    return [caption(image, digit, rng) for image, digit in zip(images, digits, strict=True)]


def caption_accuracy(logits, tokenizer):
    """The share of held-out images whose greedy caption names the right digit, and no other."""
    _, (images, digits) = split()
    prompts = [f"<bos> {picture(tokens)}" for tokens in quantise(images, load_codebook())]
    made = generate(logits, encode(tokenizer, prompts), CAPTION_TOKENS, tokenizer.pad_token_id)
    texts = [text.split(tokenizer.eos_token)[0].split() for text in tokenizer.batch_decode(made)]
    return float(np.mean([set(text) & set(DIGITS) == {DIGITS[d]} for text, d in zip(texts, digits, strict=True)]))


def image_accuracy(logits, tokenizer):
    """The share of held-out captions whose greedy image is read as the digit asked for.

    The reader is a logistic regression fitted on the pixels of the training split. An image with a
    token that is no image token counts as wrong.
    """
    (train_images, train_digits), (_, digits) = split()
    reader = LogisticRegression(max_iter=2000).fit(train_images.reshape(-1, 64), train_digits)
    prompts = encode(tokenizer, [f"<bos> {text} <boi>" for text in held_out_captions()])
    made = generate(logits, prompts, PATCHES, tokenizer.pad_token_id) - IMAGE_IDS.start
    whole = (made >= 0).all(axis=1)
    read = reader.predict(draw(made.clip(0), load_codebook()).reshape(-1, 64))
    return float(np.mean(whole & (read == digits)))


def held_out_documents(tokenizer):
    """The held-out documents of both orders, as ids [N, S]."""
    _, (images, _) = split()
    pairs = list(zip(quantise(images, load_codebook()), held_out_captions(), strict=True))
    return encode(tokenizer, [order(*pair) for order in (image_first, caption_first) for pair in pairs])


def modality_losses(logits, tokenizer, ids):
    """(mean loss of caption words, of image tokens) over documents [N, S], in nats.

    The special tokens around them count for neither.
    """
    scores, wanted = logits(ids[:, :-1]), ids[:, 1:]
    loss = -np.take_along_axis(log_softmax(scores, axis=-1), wanted[..., None], axis=-1)[..., 0]
    words = np.isin(wanted, TEXT_IDS) & ~np.isin(wanted, tokenizer.all_special_ids)
    return tuple(float(loss[chosen].mean()) for chosen in (words, np.isin(wanted, IMAGE_IDS)))


def evaluate(logits, tokenizer):
    """All the figures, by name."""
    text, image = np.exp(modality_losses(logits, tokenizer, held_out_documents(tokenizer))).tolist()
    return {
        "caption_accuracy": caption_accuracy(logits, tokenizer),
        "image_accuracy": image_accuracy(logits, tokenizer),
        "text_perplexity": text,
        "image_perplexity": image,
    }


def main():
    """Print the table for a checkpoint, by default the committed one."""
    torch.set_num_threads(2)
    model, tokenizer = load(*sys.argv[1:2])
    for name, value in evaluate(torch_logits(model), tokenizer).items():
        print(f"{name:20} {value:8.4f}")


if __name__ == "__main__":
    main()
