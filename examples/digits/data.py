"""From images to tokens: the split, the codebook of patches, the vocabulary and the documents.

N images, T = 16 patches of an image, K = 56 codes, S tokens of a padded document.
An image is cut into 2x2 patches, and each patch is named by its nearest code: T image tokens,
row by row. A document is one image and one caption, in either order, written as text.
"""

from pathlib import Path

import numpy as np
from captions import words
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CODEBOOK = Path(__file__).parent / "codebook.csv"
SPECIALS = {"pad": "<pad>", "bos": "<bos>", "eos": "<eos>", "unk": "<unk>"}
TEXT_IDS = range(200)  # special tokens, words, and ids kept free
IMAGE_IDS = range(200, 256)
PATCHES = 16


def split():
    """(train images [N, 8, 8], train digits [N]), (held-out images, held-out digits): one in five held out.

    Ink is in 0..1. The split is seeded and keeps the share of every digit.
    """
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8)
    train, held_out = train_test_split(np.arange(len(images)), test_size=0.2, stratify=digits, random_state=0)
    return (images[train], digits[train]), (images[held_out], digits[held_out])


def patches(images):
    """[N, 8, 8] -> [N, T, 4], the 2x2 patches row by row."""
    return images.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, PATCHES, 4)


def fit_codebook(images):
    """The codes [K, 4] of the patches of `images` [N, 8, 8], from the lightest to the darkest."""
    codes = KMeans(len(IMAGE_IDS), n_init=4, random_state=0).fit(patches(images).reshape(-1, 4)).cluster_centers_
    return codes[np.argsort(codes.sum(axis=1))]


def save_codebook(codes):
    """Write the codes [K, 4] where `load_codebook` finds them."""
    np.savetxt(CODEBOOK, codes, fmt="%.4f", delimiter=",")


def load_codebook():
    """The committed codes [K, 4]."""
    return np.loadtxt(CODEBOOK, delimiter=",", dtype=np.float32)


def quantise(images, codes):
    """[N, 8, 8] -> [N, T], the code nearest to each patch."""
    return ((patches(images)[:, :, None] - codes) ** 2).sum(axis=-1).argmin(axis=-1)


def draw(tokens, codes):
    """[N, T] -> [N, 8, 8], the image that the codes stand for."""
    return codes[tokens].reshape(-1, 4, 4, 2, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 8, 8)


def build_tokenizer():
    """A word-level tokenizer of exactly 256 ids; an image token is the word <img_k>."""
    text = [*SPECIALS.values(), "<boi>", "<eoi>", *words()]
    text += [f"<free_{i}>" for i in range(len(text), len(TEXT_IDS))]
    vocabulary = text + [f"<img_{k}>" for k in range(len(IMAGE_IDS))]
    model = models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=SPECIALS["unk"])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=["<boi>", "<eoi>"],
        clean_up_tokenization_spaces=False,
        model_max_length=64,
        **{f"{name}_token": token for name, token in SPECIALS.items()},
    )


def picture(tokens):
    """The text of one image, from its codes [T]."""
    return f"<boi> {' '.join(f'<img_{k}>' for k in tokens)} <eoi>"


def image_first(tokens, caption):
    """The document from which a model learns to caption."""
    return f"<bos> {picture(tokens)} {caption} <eos>"


def caption_first(tokens, caption):
    """The document from which a model learns to draw."""
    return f"<bos> {caption} {picture(tokens)} <eos>"


def encode(tokenizer, documents):
    """Documents -> ids [N, S] int64, padded on the right."""
    return tokenizer(documents, padding=True, padding_side="right", return_tensors="np").input_ids
