"""Training documents as calibration data for quantisation: JSON lines of text, each image in one of the two orders.

python examples/digits/calibration.py     writes calibration.jsonl
"""

import json
from pathlib import Path

import numpy as np
from captions import caption
from data import caption_first, image_first, load_codebook, quantise, split

FILE = Path(__file__).with_name("calibration.jsonl")
EVERY = 4


def documents(every=EVERY, seed=0):
    """The texts of one training image in `every`; the held-out images are not among them."""
    (images, digits), _ = split()
    images, digits = images[::every], digits[::every]
    rng = np.random.default_rng(seed)
    pairs = zip(
        quantise(images, load_codebook()), (caption(*pair, rng) for pair in zip(images, digits, strict=True)), strict=True
    )
    return [(image_first, caption_first)[i % 2](*pair) for i, pair in enumerate(pairs)]


if __name__ == "__main__":
    FILE.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents()))
