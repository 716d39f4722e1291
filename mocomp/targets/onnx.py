"""Standard ONNX: every operator is of the standard, so that any runtime that knows it runs the artifact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mocomp.capability import Gap
from mocomp.deployment import Deployment
from mocomp.errors import Usage
from mocomp.ir.program import Program
from mocomp.lowering import blocked_layout, standard_ops, unfused, unpacked_weights
from mocomp.lowering.onnx_graph import weights_of
from mocomp.lowering.onnx_session import DATA, MODEL, Session, exposing, load, missing_runtime, save
from mocomp.passes import Pass
from mocomp.passes.expand_experts import ExpandExperts
from mocomp.passes.expand_routes import ExpandRoutes
from mocomp.quant.e2m1 import E2M1
from mocomp.quant.formats import Format
from mocomp.targets import Artifact, Runner, Target
from mocomp.weights.recipes import Reader
from mocomp.weights.writer import write


class Onnx(Target):
    """model.onnx and model.onnx.data, float32 activations. Mixtures compute every expert for every token.

    Packed weights stay packed on disk, and are unpacked by DequantizeLinear. The proof runs on ONNX Runtime; the mixtures
    have no operators of their own, so it compares outputs, and not the choice of experts.
    """

    name: ClassVar[str] = "onnx"
    mixes_projections: ClassVar[bool] = True
    summary: ClassVar[str] = "standard ONNX operators, float32: any runtime; all experts for all tokens, weights in few bits"

    def __init__(self, deployment: Deployment | None = None):
        super().__init__(deployment)
        if self.accuracy_level:
            raise Usage("--accuracy-level is of operators that the standard has not", fix="Use it with --target onnxruntime.")

    def missing(self) -> str | None:
        return missing_runtime()

    def passes(self) -> list[Pass]:
        return [ExpandExperts(fused=lambda expert: False), ExpandRoutes()]

    def gaps(self, program: Program) -> list[Gap]:
        half = [
            Gap(name, f"{program.recipes[name].dtype}, and the graph computes in float32")
            for _, name in program.weights()
            if program.recipes[name].dtype in (torch.float16, torch.bfloat16)
        ]
        packed = unfused.packed(program)
        found = [(name, self.obstacle([stored])) for name, stored in packed.items()]
        return half + [Gap(name, reason) for name, reason in found if reason is not None]

    def lower(self, program: Program, directory: Path, read: Reader | None, progress: Callable[[int], None]) -> Artifact:
        model, packed = standard_ops.to_standard(program), unfused.packed(program)
        weights = blocked_layout.arrange(model, weights_of(model, program), packed)
        save(model, directory, weights, write(directory / DATA, weights, read, progress) if read is not None else {})
        operators = Counter(node.op_type for node in model.graph.all_nodes())
        return Artifact(
            files=[MODEL] if read is None else [MODEL, DATA],
            nodes=operators.total(),
            weight_bytes=sum(recipe.nbytes for recipe in weights.values()),
            operators=dict(operators.most_common()),
            formats={name: form.text for name, (form, _) in packed.items()},
            linears=unfused.linears(program),
            banks=unfused.banks(program),
        )

    def open(self, directory: Path, expose: list[str] | None = None, exact: bool = False) -> Runner:
        return SessionRunner(directory, exposing(load(directory), expose) if expose else None)

    def bank_weights(self, directory: Path, banks: dict[str, list[str]]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        model = load(directory)
        for layer, names in banks.items():
            w_in, w_out = (unpacked_weights.weight(model, name) for name in names)
            yield layer, w_in, w_out

    def linear_weights(self, directory: Path) -> dict[str, np.ndarray]:
        model = load(directory)
        names = [name.removesuffix(".codes") for name in model.graph.initializers if name.endswith(".codes")]
        two = [name for name in names if len(model.graph.initializers[f"{name}.codes"].shape or ()) == 2]
        return {name: unpacked_weights.weight(model, name) for name in two}

    def obstacle(self, stored: list[tuple[Format, tuple[int, ...]]]) -> str | None:
        floats = [form.text for form, _ in stored if isinstance(form, E2M1)]
        if not floats:
            return None
        return (
            f"ONNX Runtime 1.31 does not compute DequantizeLinear of float4e2m1, which {floats[0]} needs, on the CPU; its CUDA "
            "provider has operators of its own for it, and --target huggingface stores mxfp4"
        )

    def describe(self) -> dict[str, Any]:
        import onnxruntime

        return {"target": self.name, "onnxruntime": onnxruntime.__version__}


class SessionRunner(Session, Runner):
    """The artifact in ONNX Runtime."""
