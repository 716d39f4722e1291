"""The answers of `mocomp check` on the cases of docs/tensorrt.md, which were known before it was written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import checkpoints

PAGE = Path(__file__).parents[2] / "docs" / "tensorrt.md"
SIZE = 128
"""H and F: a whole block of the largest that the cases ask for."""


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    family: str
    runtime: str
    gpu: str
    dtype: str
    quantize: str
    answer: str
    says: str
    fact: str

    def arguments(self) -> list[str]:
        """Options of the command."""
        name, _, version = self.runtime.rpartition(" ")
        where = ["--target", "tensorrt", "--tensorrt", version] if name == "TensorRT" else ["--target", "onnxruntime"]
        device = [] if name == "TensorRT" else ["--device", "cuda"]
        quantize = ["--quantize", self.quantize] if self.quantize else []
        return [*where, *device, "--gpu", self.gpu, "--dtype", self.dtype, *quantize]

    def source(self, directory: Path) -> Path:
        """A directory with the config of a tiny model of the family, of one layer, and nothing else."""
        family, *changes = self.family.split(", ")
        fields = checkpoints.FAMILIES[family].fields
        width = "moe_intermediate_size" if "moe_intermediate_size" in fields else "intermediate_size"
        small: dict[str, object] = {"hidden_size": SIZE, width: SIZE, "num_hidden_layers": 1}
        if "layer_types" in fields:
            small["layer_types"] = ["full_attention"]
        if "first_k_dense_replace" in fields:
            small["first_k_dense_replace"] = 0
        given = dict(change.split("=") for change in changes)
        checkpoints.config(family, **small | given).save_pretrained(directory)
        return directory


def cases() -> list[Case]:
    section = PAGE.read_text().partition("## Twelve cases")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [Case(*(cell.strip() for cell in row.strip("|").split("|"))) for row in rows]


def test_there_are_twelve_of_both_answers_for_both_runtimes():
    assert len(cases()) == len(set(cases())) == 12
    assert {(case.runtime.split()[0], case.answer) for case in cases()} == {
        (runtime, answer) for runtime in ("TensorRT", "ONNX") for answer in ("takes", "refuses")
    }
    assert all(case.says and case.fact for case in cases())


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.family} {case.gpu} {case.quantize} {case.answer}")
def test_the_answer(command, tmp_path, case):
    done = command("check", case.source(tmp_path), *case.arguments(), "--json")
    assert done.code == {"takes": 0, "refuses": 3}[case.answer], done.err or done.out
    gaps = json.loads(done.out)["gaps"]
    if case.says == "nothing":
        assert gaps == []
        return
    told = [gap["blocks"] for gap in gaps if case.says in f"{gap['why']}; {gap['instead']}"]
    assert told and set(told) == {case.answer == "refuses"}
    assert list(tmp_path.iterdir()) == [tmp_path / "config.json"]
