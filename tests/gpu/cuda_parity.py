"""Artifacts of tiny models for ONNX Runtime's CUDA provider, proven there; the proof is that of `mocomp convert`.

python -m tests.gpu.cuda_parity cuda [parity.json]      # a table, and the same as JSON
python -m tests.gpu.cuda_parity emulate                 # the same files on the CPU, in float32
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mocomp.errors import MocompError
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from tests import checkpoints
from tests.gpu.facts import ENDED

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
WIDTH = {"qwen3_moe": "moe_intermediate_size", "deepseek_v3": "moe_intermediate_size"}
"""What families call the width of an expert that do not call it `intermediate_size`."""
COPIES = ("MemcpyToHost", "MemcpyFromHost")


@dataclass(frozen=True)
class Case:
    """A family of `checkpoints`, or a directory of the digits, in a type of activations and perhaps a format of weights."""

    family: str
    dtype: str
    quantize: str = ""

    def __str__(self) -> str:
        return f"{self.family} {self.dtype} {self.quantize}".strip()

    def source(self, directory: Path) -> Path:
        """A checkpoint whose sizes suit the operators of a GPU: multiples of 128."""
        if self.family.startswith("digits"):
            return DIGITS / self.family.partition("/")[2]
        width: dict[str, Any] = {WIDTH.get(self.family, "intermediate_size"): 128, "hidden_size": 128}
        return checkpoints.make(self.family, directory / f"source-{self.family}", **width)

    def options(self, emulate: bool) -> ConvertOptions:
        return ConvertOptions(
            target="onnxruntime", device="cuda", dtype=self.dtype, quantize=self.quantize, emulate=emulate, force=True
        )


FAMILIES = ("mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "phimoe", "digits/checkpoint", "digits/moma")
"""Softmax in both orders, sigmoid with a bias and groups, biased experts with limits, SparseMixer, and groups of modalities."""
FORMATS = ("int4:128", "int4:64", "int8:128", "nvfp4")
"""mxfp4 is refused before: torch's exporter knows no type for its scales. The operator itself is among the facts."""
CASES = [
    *(Case(family, dtype) for family in FAMILIES for dtype in ("float16", "bfloat16")),
    *(Case(family, "float16", "int4:64") for family in FAMILIES[:5]),
    *(Case("mixtral", "float16", form) for form in FORMATS if form != "int4:64"),
    Case("mixtral", "bfloat16", "int4:128"),
]


def prove(case: Case, directory: Path, emulate: bool = False) -> dict[str, Any]:
    """What became of a case: `passed`, the largest errors, the copies between GPU and CPU; or the `reason` of a refusal."""
    artifact = directory / str(case).replace(" ", "-").replace("/", "-").replace(":", "-")
    try:
        report = convert(str(case.source(directory)), artifact, case.options(emulate))
    except MocompError as error:
        return {"case": str(case), "passed": False, "reason": str(error)}
    parity = report.parity
    assert parity is not None
    found = {"case": str(case), "passed": parity.passed, "failures": parity.failures}
    return found if emulate else found | {"copies": copies_in(artifact)}


def copies_in(artifact: Path) -> list[str]:
    """The nodes that copy between GPU and CPU in the graph as ONNX Runtime has it after its own passes."""
    import onnx
    import onnxruntime

    optimised = artifact / "optimised.onnx"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(optimised)
    onnxruntime.InferenceSession(str(artifact / "model.onnx"), options, providers=["CUDAExecutionProvider"])
    nodes = onnx.load(optimised, load_external_data=False).graph.node
    return [node.name for node in nodes if node.op_type in COPIES]


def main(device: str, output: str = "") -> None:
    """Print a line a case, and keep them; cases that an earlier run has kept in `output` are not run again."""
    if device == "cuda":
        import torch  # noqa: F401 - brings the libraries of CUDA
    found: list[dict[str, Any]] = json.loads(Path(output).read_text()) if output and Path(output).exists() else []
    known = {row["case"] for row in found}
    with tempfile.TemporaryDirectory() as directory:
        for case in (case for case in CASES if str(case) not in known):
            found.append({"case": str(case), "passed": False, "reason": ENDED})
            _keep(found, output)
            try:
                with redirect_stdout(sys.stderr):
                    found[-1] = prove(case, Path(directory), emulate=device != "cuda")
            except Exception as error:  # the others are still worth knowing
                found[-1] = {"case": str(case), "passed": False, "reason": f"{type(error).__name__}: {error}"}
            _keep(found, output)
            print(found[-1], flush=True)


def _keep(found: list[dict[str, Any]], output: str) -> None:
    if output:
        Path(output).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
