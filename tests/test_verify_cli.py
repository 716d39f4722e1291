"""`mocomp verify`: every way in which a directory can differ from what was made is told, and nothing else is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mocomp.commands.verify import verify
from mocomp.lowering.tensor_places import damaged_tensors
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.report import page, results
from mocomp.weights.record import LATER, seal


@pytest.fixture(scope="module")
def artifact(checkpoint, tmp_path_factory) -> Path:
    """An artifact whose weights are in few bits."""
    directory = tmp_path_factory.mktemp("verified") / "artifact"
    convert(str(checkpoint("qwen3_moe")), directory, ConvertOptions(parity="off", quantize="int4", group_size=16))
    return directory


@pytest.fixture
def copy(artifact, tmp_path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "artifact"))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def edit(path: Path, before: str, after: str) -> None:
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


def tensor_at(directory: Path, offset: int) -> str:
    """The weight of the artifact in which a byte lies, by ONNX's own reader."""
    import onnx

    for tensor in onnx.load(directory / "model.onnx", load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place and int(place["offset"]) <= offset < int(place["offset"]) + int(place["length"]):
            return tensor.name
    raise AssertionError("in none")


def test_a_whole_artifact_is_told_to_be_one(command, artifact):
    done = command("verify", artifact)
    assert done.code == 0 and "is as it was made" in done.out and "loaded in a session of target onnxruntime" in done.out
    found = json.loads(command("verify", artifact, "--json", "--workers", 2).out)
    sizes = [path.stat().st_size for path in artifact.iterdir() if path.name != "mocomp.json"]
    assert found["whole"] and found["files"] == len(sizes) + 1 and found["bytes"] == sum(sizes)


@pytest.mark.parametrize("offset", [0, 1_000, 100_000, -1])
def test_a_byte_of_the_weights_is_missed_and_its_tensor_named(command, copy, offset):
    flip(copy / "model.onnx.data", offset)
    name = tensor_at(copy, offset % (copy / "model.onnx.data").stat().st_size)
    done = command("verify", copy)
    assert done.code == 5 and "model.onnx.data: damaged" in done.out and name in done.out and "1 differences" in done.out


def test_every_byte_of_a_file_counts(copy):
    """Of a small one; a checksum that left some of them out would not notice."""
    whole = (copy / "generation_config.json").read_bytes()
    for offset in range(0, len(whole), 7):
        (copy / "generation_config.json").write_bytes(whole)
        flip(copy / "generation_config.json", offset)
        assert len(verify(copy).differences) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json: it is missing"),
        (lambda d: (d / "extra.bin").write_text("x"), "extra.bin: it was not there"),
        (lambda d: (d / "model.onnx").write_bytes((d / "model.onnx").read_bytes()[:-5]), "model.onnx: it has"),
        (lambda d: (d / "model.onnx.data").write_bytes(bytes(280_097)), "280,097 bytes, and 280,096 were written"),
        (lambda d: flip(d / "config.json", 3), "config.json: damaged at bytes 0 to"),
        (lambda d: edit(d / "mocomp.json", '"seed": 0', '"seed": 1'), "mocomp.json: it is not as it was written"),
    ],
)  # fmt: skip
def test_what_differs_is_told(copy, change, told):
    change(copy)
    found = verify(copy)
    assert not found.whole and any(told in difference for difference in found.differences)


def test_a_link_to_a_file_elsewhere_is_none_of_its_own(copy, tmp_path):
    (copy / "config.json").rename(tmp_path / "config.json")
    (copy / "config.json").symlink_to(tmp_path / "config.json")
    assert any("outside its directory" in difference for difference in verify(copy).differences)


def test_what_other_commands_leave_is_no_difference(copy):
    results.save(copy, results.BENCH, {"a": 1})
    (copy / "report.html").write_text("made again")
    found = verify(copy)
    assert found.whole and set(found.later) == {"bench.json", "report.html"}


def test_what_no_session_loads_is_told(copy):
    """Its checksums are right: it was made so."""
    (copy / "model.onnx").write_bytes(b"\x08\x09")
    seal(copy, "mocomp.json")
    found = verify(copy)
    assert [difference.partition(":")[0] for difference in found.differences] == ["it does not load"]


@pytest.mark.parametrize("family", ["llama"])
def test_a_checkpoint_is_verified_too(command, upcycled, tmp_path, family):
    directory = Path(shutil.copytree(upcycled(family), tmp_path / "made"))
    done = command("verify", directory)
    assert done.code == 0 and "each weight has its place in" in done.out
    flip(directory / "model.safetensors", -1)
    done = command("verify", directory)
    assert done.code == 5 and "model.safetensors: damaged" in done.out and ": model." in done.out.partition("damaged")[2]


def test_a_directory_without_checksums_is_refused(command, copy, tmp_path):
    data = json.loads((copy / "mocomp.json").read_text())
    del data["files"]
    (copy / "mocomp.json").write_text(json.dumps(data))
    done = command("verify", copy)
    assert done.code == 5 and "no checksums" in done.err
    assert "no mocomp.json" in command("verify", tmp_path).err


def test_a_link_to_a_directory_is_told(copy, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (copy / "more").symlink_to(tmp_path / "elsewhere")
    assert verify(copy).differences == ["more: it was not there"]


def record(copy: Path, file: str, about: dict) -> None:
    data = json.loads((copy / "mocomp.json").read_text())
    data["files"][file] = data["files"].get(file, {}) | about
    (copy / "mocomp.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    "about",
    [{"size": float("inf")}, {"size": True}, {"size": 1 << 70}, {"size": -1}, {"size": 5}, {"parts": 3}, {"parts": [7]},
     {"parts": [[-5, 3, "0"]]}, {"parts": [[0, -3, "0"]]}, {"parts": [[0, -1, "0"]]}, {"parts": [[1 << 70, 3, "0"]]},
     {"size": 3, "parts": [[0, 3, 4]]}, {"size": 9, "parts": [[0, 3, "0"], [6, 3, "0"]]}, {"size": 3, "parts": []},
     {"size": 5, "parts": [[0, 3, "0"], [2, 3, "0"]]}, {"size": 1.0, "parts": [[0.0, 1.0, "0"]]}],
)  # fmt: skip
@pytest.mark.parametrize("file", ["model.onnx.data", "report.html"])
def test_numbers_that_are_none_of_a_file_are_refused(command, copy, file, about):
    record(copy, file, about)
    done = command("verify", copy)
    assert done.code == 5 and "its checksums are not readable" in done.err and "Make it again" in done.err


@pytest.mark.parametrize(("name", "told"), [("../x", "outside"), ("/etc/passwd", "outside"), ("a" * 5000, "it is missing")])
def test_names_that_are_none_of_a_file_are_told(command, copy, name, told):
    record(copy, name, {"size": 0, "parts": []})
    done = command("verify", copy)
    assert done.code == 5 and told in done.out + done.err


def test_a_place_beyond_all_files_is_told(command, copy):
    for file in ("model.onnx.data", "report.html"):
        record(copy, file, {"size": 1 << 62, "parts": [[0, 1 << 62, "0"]]})
    done = command("verify", copy)
    assert done.code == 5 and "bytes, and 4,611,686,018,427,387,904 were written" in done.out


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_what_looks_like_a_graph_and_is_no_file_is_not_opened(copy, kind):
    os.mkfifo(copy / "z.onnx") if kind == "pipe" else (copy / "z.onnx").symlink_to("/dev/zero")
    flip(copy / "model.onnx.data", 0)
    name = tensor_at(copy, 0)
    script = (
        f"from pathlib import Path; from mocomp.commands.verify import verify; print(verify(Path({str(copy)!r})).differences)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "z.onnx: it was not there" in done.stdout and name in done.stdout


def test_a_tensor_whose_place_is_no_number_has_none(copy):
    import onnx

    model = onnx.load(copy / "model.onnx", load_external_data=False)
    odd, other = [tensor for tensor in model.graph.initializer if tensor.external_data][:2]
    next(entry for entry in odd.external_data if entry.key == "offset").value = "here"
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    named = damaged_tensors(copy, "model.onnx.data", [(0, 1 << 40)])
    assert odd.name not in named and other.name in named


def test_what_is_written_later_is_known_by_its_names():
    assert set(LATER) == {page.NAME, results.BENCH, results.EVAL, results.USAGE, results.BISECT}
