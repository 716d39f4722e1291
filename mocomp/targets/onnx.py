"""Standard ONNX: every operator is of the standard, so that any runtime that knows it runs the artifact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import torch

from mocomp.capability import Gap
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, scope
from mocomp.lowering import (
    blocked_layout,
    portable,
    ranks_experts,
    ranks_gaps,
    ranks_seams,
    standard_ops,
    unfused,
    unpacked_weights,
)
from mocomp.lowering.call_session import CallSession
from mocomp.lowering.named_mixtures import name_mixtures
from mocomp.lowering.onnx_graph import weights_of
from mocomp.lowering.onnx_session import DATA, MODEL, Session, exposing, load, missing_runtime, save
from mocomp.lowering.ranks_graph import RankGraphs
from mocomp.lowering.tuned import operators
from mocomp.passes import Pass
from mocomp.quant.e2m1 import E2M1
from mocomp.quant.formats import Format
from mocomp.targets import Artifact, Mixture, MixtureRunner, Runner, Target
from mocomp.weights.writer import Writer


class Onnx(Target):
    """model.onnx and model.onnx.data, float32 activations. Routers and mixtures are functions of the model.

    Packed weights stay packed on disk, and are unpacked by DequantizeLinear. The proof runs on ONNX Runtime.
    """

    name: ClassVar[str] = "onnx"
    in_parts: ClassVar[bool] = True
    mixes_projections: ClassVar[bool] = True
    links: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = frozenset({"mixture", "opset"})
    summary: ClassVar[str] = "standard ONNX operators, float32: any runtime; mixtures as functions, weights in few bits"

    def missing(self) -> str | None:
        return missing_runtime()

    def passes(self) -> list[Pass]:
        return []

    def gaps(self, program: Program) -> list[Gap]:
        half = [
            Gap(name, f"{program.recipes[name].dtype}, and the graph computes in float32")
            for _, name in program.weights()
            if program.recipes[name].dtype in (torch.float16, torch.bfloat16)
        ]
        packed = unfused.packed(program)
        found = [(name, self.obstacle([stored])) for name, stored in packed.items()]
        return half + [Gap(name, reason) for name, reason in found if reason is not None]

    def lower(self, program: Program, directory: Path, writer: Writer | None) -> Artifact:
        layers = [scope(node) for node in calls(program, MOCOMP.experts.default)]
        model = standard_ops.to_standard(program, self.deployment.opset, self.deployment.mixture)
        packed, banks = unfused.packed(program), unfused.banks(program)
        named = name_mixtures(model, layers, banks)
        mixtures = [Mixture(m.layer, m.x, m.scores, "", m.y, m.k, m.bank, m.limits, m.ids) for m in named]
        weights = blocked_layout.arrange(model, weights_of(model, program), packed)
        save(model, directory, weights, writer.write(directory / DATA, weights) if writer is not None else {})
        found, known = operators(model), {mixture.layer for mixture in mixtures}
        return Artifact(
            files=[MODEL] if writer is None else [MODEL, DATA],
            nodes=sum(found.values()),
            weight_bytes=sum(recipe.nbytes for recipe in weights.values()),
            mixtures=mixtures,
            operators=found,
            formats={name: form.text for name, (form, _) in packed.items()},
            linears=unfused.linears(program),
            banks={layer: names for layer, names in banks.items() if layer not in known},
        )

    def rank_gaps(self, program: Program, layers: list[str]) -> list[Gap]:
        return ranks_gaps.of_calls(program, layers)

    def rank_graphs(self, directory: Path, artifact: Artifact) -> RankGraphs:
        model, body = load(directory), self.deployment.mixture
        seams = ranks_seams.at_calls(model, [(m.layer, m.y) for m in artifact.mixtures])
        return RankGraphs(model, seams, lambda seam, count: ranks_experts.of_call(model, seam, count, body))

    def open(self, directory: Path, expose: list[str] | None = None, exact: bool = False) -> Runner:
        return SessionRunner(directory, exposing(load(directory), expose) if expose else None)

    def graph(self, directory: Path, exact: bool = False) -> tuple[ir.Model, str]:
        return load(directory), "cpu"

    def open_mixture(self, directory: Path, mixture: Mixture, exact: bool = False) -> MixtureRunner:
        return MixtureSession(directory, mixture)

    def weights(self, directory: Path, mixture: Mixture) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        model = load(directory)
        w_in, w_out = (unpacked_weights.weight(model, name) for name in portable.bank_of(portable.call_of(model, mixture.y)))
        return zip(range(len(w_in)), w_in, w_out, strict=True)

    def bank_weights(self, directory: Path, banks: dict[str, list[str]]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        return unpacked_weights.banks(load(directory), banks)

    def linear_weights(self, directory: Path) -> dict[str, np.ndarray]:
        return unpacked_weights.linears(load(directory))

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


class MixtureSession(CallSession, MixtureRunner):
    """The mixture of one layer alone in ONNX Runtime."""

    def __init__(self, directory: Path, mixture: Mixture):
        model = load(directory)
        super().__init__(model, portable.call_of(model, mixture.y), directory)
