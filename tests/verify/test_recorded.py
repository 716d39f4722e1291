"""An artifact that is proven again: its quantised weights have to be those that were made of its source."""

import json
import shutil

import numpy as np
import onnx
import pytest

from mocomp.options import ConvertOptions
from mocomp.pipeline import convert

DATA = "model.onnx.data"


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    directory = tmp_path_factory.mktemp("int8") / "made"
    convert(str(checkpoint("mixtral")), directory, ConvertOptions(quantize="int8", parity="off"))
    return directory


@pytest.fixture
def copied(made, tmp_path):
    """A copy of an artifact with experts in int8, to do harm to."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def swap_experts(directory, one, other) -> list[str]:
    """Exchange codes and scales of two experts in each layer; the names of what holds them."""
    data, names = bytearray((directory / DATA).read_bytes()), []
    bank = {name for m in json.loads((directory / "mocomp.json").read_text())["artifact"]["mixtures"] for name in m["bank"]}
    for tensor in onnx.load(directory / "model.onnx", load_external_data=False).graph.initializer:
        about = {entry.key: entry.value for entry in tensor.external_data}
        if not about or not tensor.name.startswith(tuple(bank)):
            continue
        start, size = int(about["offset"]), int(about["length"]) // tensor.dims[0]
        a, b = (slice(start + i * size, start + (i + 1) * size) for i in (one, other))
        data[a], data[b] = data[b], data[a]
        names.append(tensor.name)
    (directory / DATA).write_bytes(data)
    return names


@pytest.mark.parametrize("how", [[], ["--blocks"], ["--text", "two words"]], ids=["full", "blocks", "own inputs"])
def test_quantised_experts_in_a_wrong_place_fail(command, copied, how):
    names = swap_experts(copied, 0, 3)
    assert len(names) >= 4  # codes and scales of both weights
    done = command("parity", copied, *how)
    assert done.code == 1 and DATA in done.err and any(name in done.err for name in names)


def test_what_is_as_it_was_passes_and_an_older_version_says_what_it_cannot_tell(command, copied):
    done = command("parity", copied)
    assert done.code == 0 and "as they stand" not in done.out
    report = copied / "mocomp.json"
    data = json.loads(report.read_text())
    del data["files"]
    report.write_text(json.dumps(data))
    done = command("parity", copied)
    assert done.code == 0 and "the quantised weights were taken as they stand" in done.out


def test_a_file_that_is_longer_fails(command, copied):
    with (copied / DATA).open("ab") as file:
        file.write(np.zeros(8, np.uint8).tobytes())
    done = command("parity", copied)
    assert done.code == 1 and "size" in done.err
