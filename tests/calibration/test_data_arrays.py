"""Calibration rows from arrays: whatever type they are stored in, and one message for each way of being wrong."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from mocomp.calibration.arrays_of import rows
from mocomp.errors import BadInput
from mocomp.models.interface import Interface

TEXT = Interface("generator", ["input_ids", "attention_mask", "past_key_values.0.key"], ["logits"], {}, vocabulary=50)
IMAGES = Interface("vision", ["pixel_values"], ["last_hidden_state"], {}, image=(3, 4, 4))
IDS = np.arange(12).reshape(4, 3)
PIXELS = np.linspace(0, 1, 96).reshape(2, 3, 4, 4)
LONGEST = 10


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays) if path.suffix == ".npz" else save_file(arrays, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("stored", [np.uint8, np.int32, np.int64])
def test_each_of_the_first_dimension_is_a_row(tmp_path, suffix, stored):
    found = rows(saved(tmp_path / f"data{suffix}", input_ids=IDS.astype(stored), unused=IDS), TEXT, LONGEST)
    assert [set(row) for row in found] == [{"input_ids", "attention_mask"}] * 4
    assert torch.equal(torch.cat([row["input_ids"] for row in found]), torch.from_numpy(IDS))
    assert all(torch.equal(row["attention_mask"], torch.ones(1, 3, dtype=torch.int64)) for row in found)


def test_a_mask_that_is_given_is_kept(tmp_path):
    mask = IDS % 2 == 0
    found = rows(saved(tmp_path / "data.npz", input_ids=IDS, attention_mask=mask), TEXT, LONGEST)
    assert torch.equal(torch.cat([row["attention_mask"] for row in found]), torch.from_numpy(mask.astype(np.int64)))


@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
def test_images(tmp_path, stored):
    found = rows(saved(tmp_path / "data.npz", pixel_values=PIXELS.astype(stored)), IMAGES, None)
    assert [tuple(row["pixel_values"].shape) for row in found] == [(1, 3, 4, 4)] * 2
    assert all(row["pixel_values"].dtype == torch.float32 for row in found)
    assert torch.allclose(torch.cat([row["pixel_values"] for row in found]), torch.from_numpy(PIXELS).float(), atol=1e-3)


ARRAYS = {
    "no ids": ({"tokens": IDS}, TEXT, "it has no input_ids, only tokens"),
    "floats for ids": ({"input_ids": IDS * 1.0}, TEXT, r"\[4, 3\] torch.float64, expected \[R, S\] of integers"),
    "one dimension": ({"input_ids": IDS[0]}, TEXT, r"expected \[R, S\] of integers"),
    "a single number": ({"input_ids": np.array(3)}, TEXT, r"expected \[R, S\] of integers"),
    "no rows": ({"input_ids": IDS[:0]}, TEXT, r"input_ids is \[0, 3\], which is empty"),
    "no tokens": ({"input_ids": IDS[:, :0]}, TEXT, r"input_ids is \[4, 0\], which is empty"),
    "words": ({"input_ids": np.array([["a"]])}, TEXT, "not readable: can't convert"),
    "objects": ({"input_ids": np.array([[None]])}, TEXT, "not readable: Object arrays"),
    "an id too large": ({"input_ids": IDS + 39}, TEXT, "not in the vocabulary of 50"),
    "an id below 0": ({"input_ids": IDS - 1}, TEXT, "not in the vocabulary of 50"),
    "rows too long": ({"input_ids": np.zeros((1, 11), int)}, TEXT, "rows of 11 tokens, and the model 10 positions"),
    "other rows": ({"input_ids": IDS, "attention_mask": IDS[:2]}, TEXT, "4 rows of input_ids, 2 rows of attention_mask"),
    "other tokens": ({"input_ids": IDS, "attention_mask": IDS[:, :2]}, TEXT, "3 tokens of input_ids, 2 tokens of attention"),
    "other images": ({"pixel_values": PIXELS[:, :, 1:]}, IMAGES, r"\[2, 3, 3, 4\] torch.float64, expected \[R, 3, 4, 4\]"),
    "images of bytes": ({"pixel_values": PIXELS.astype(np.uint8)}, IMAGES, "torch.uint8, expected"),
    "no numbers": ({"pixel_values": np.full_like(PIXELS, np.nan)}, IMAGES, "numbers that are none"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_that_no_model_could_run_on(tmp_path, case):
    arrays, interface, message = ARRAYS[case]
    path = saved(tmp_path / "data.npz", **arrays)
    with pytest.raises(BadInput, match=message) as caught:
        rows(path, interface, LONGEST)
    assert caught.value.where == str(path)


def half_of_a_file(path: Path) -> None:
    path.write_bytes(saved(path, input_ids=IDS).read_bytes()[:-100])


def a_single_array(path: Path) -> None:
    np.save(single := io.BytesIO(), IDS)
    path.write_bytes(single.getvalue())


FILES: dict[str, Callable[[Path], object]] = {
    "absent": lambda path: None,
    "empty": Path.touch,
    "a directory": Path.mkdir,
    "text": lambda path: path.write_text("input_ids: 1 2 3"),
    "cut off": half_of_a_file,
}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("file", FILES)
def test_files_that_hold_none(tmp_path, file, suffix):
    path = tmp_path / f"data{suffix}"
    FILES[file](path)
    with pytest.raises(BadInput, match="not readable: ") as caught:
        rows(path, TEXT, LONGEST)
    assert caught.value.where == str(path) and "first dimension the rows" in caught.value.fix


def test_a_single_array_under_another_name(tmp_path):
    a_single_array(tmp_path / "data.npz")
    with pytest.raises(BadInput, match="not readable: "):
        rows(tmp_path / "data.npz", TEXT, LONGEST)
