"""What the captions say: the digit as a word, and how thick and how slanted it is drawn.

An image is given as pixels [8, 8] (rows, columns) with ink in 0..1.
"""

import numpy as np

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a {weight} {digit}",
    "a {weight} {digit} {pose}",
    "a handwritten {digit} {pose}",
    "this is the digit {digit}",
    "the digit {digit} in {weight} strokes",
    "an image of the number {digit}",
    "someone wrote {digit} with a {weight} pen",
    "the number {digit} {pose} in {weight} ink",
)
THICK = 0.31  # mean ink of an image that is called thick, about the median of the data
LEAN = 0.1  # columns per row, how far a digit may drift before it is said to lean


def weight(image):
    """thick or thin, by the mean ink of an image [8, 8]."""
    return "thick" if image.mean() >= THICK else "thin"


def pose(image):
    """Which way the strokes of an image [8, 8] lean: the slope of column against row, by its moments."""
    rows, columns = np.mgrid[:8, :8]
    ink = image / image.sum()
    rows, columns = rows - (ink * rows).sum(), columns - (ink * columns).sum()
    slope = -(ink * rows * columns).sum() / (ink * rows**2).sum()
    if abs(slope) < LEAN:
        return "standing straight"
    return "leaning right" if slope > 0 else "leaning left"


def caption(image, digit, rng):
    """One caption of an image [8, 8] of `digit`, in a template that `rng` picks."""
    template = TEMPLATES[rng.integers(len(TEMPLATES))]
    return template.format(digit=DIGITS[digit], weight=weight(image), pose=pose(image))


def words():
    """Every word a caption can hold, the digits first."""
    filled = {"digit": "", "weight": "thick thin", "pose": "standing straight leaning left right"}
    rest = {word for template in TEMPLATES for word in template.format(**filled).split()}
    return [*DIGITS, *sorted(rest)]
