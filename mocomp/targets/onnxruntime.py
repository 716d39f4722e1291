"""ONNX Runtime, on the CPU or on CUDA: fused experts for any router, standard `Attention` over shared keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import torch

from mocomp.capability import Gap
from mocomp.capability.onnxruntime import graph_gaps
from mocomp.deployment import Deployment
from mocomp.experts import Expert
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, scope
from mocomp.lowering import (
    cuda_formats,
    onnxruntime_ops,
    operator_layout,
    packed_weights,
    placeholders,
    portable,
    ranks_experts,
    ranks_gaps,
    ranks_seams,
    tuned,
)
from mocomp.lowering.call_session import CallSession
from mocomp.lowering.emulation import widen
from mocomp.lowering.fused_mixture import FusedMixture, node_of, set_accuracy
from mocomp.lowering.host_copies import copies_of_run
from mocomp.lowering.named_mixtures import name_mixtures
from mocomp.lowering.onnx_graph import to_onnx, weights_of
from mocomp.lowering.onnx_session import DATA, MODEL, Session, exposing, load, missing_runtime, save
from mocomp.lowering.onnxruntime_ops import TRANSLATIONS, has_operator
from mocomp.lowering.operator_layout import MIXTURES
from mocomp.lowering.precision import narrow
from mocomp.lowering.ranks_graph import RankGraphs
from mocomp.passes import Pass
from mocomp.passes.expand_experts import ExpandExperts
from mocomp.passes.expand_routes import ExpandRoutes
from mocomp.passes.fuse_quantized import FuseQuantized, formats_of, linears_of
from mocomp.passes.softmax_routing import SoftmaxRouting
from mocomp.quant.formats import Format
from mocomp.targets import Artifact, Mixture, MixtureRunner, Runner, Target
from mocomp.weights.recipes import Recipe
from mocomp.weights.writer import Writer

OPSET, IR_VERSION = 23, 10


class OnnxRuntime(Target):
    """model.onnx and model.onnx.data: for the CPU provider in float32, for the CUDA provider in float16, bfloat16 or float32.

    Emulated, what is for CUDA runs on the CPU: the same files, read as float32.
    """

    name: ClassVar[str] = "onnxruntime"
    in_parts: ClassVar[bool] = True
    links: ClassVar[bool] = True
    reads_on_gpu: ClassVar[frozenset[str]] = frozenset({"dtype", "gpu", "emulate", "tf32"})
    reads: ClassVar[frozenset[str]] = reads_on_gpu | {"device", "accuracy_level"}
    summary: ClassVar[str] = "ONNX Runtime, CPU or CUDA: fused experts (com.microsoft.MoE, QMoE), grouped-query attention"

    def __init__(self, deployment: Deployment | None = None):
        super().__init__(deployment)
        asked = self.deployment
        self.cuda, self.emulated = asked.device == "cuda", asked.device == "cuda" and asked.emulate
        self.tunes = not self.cuda
        self._made: tuple[Program, ir.Model, dict[str, Recipe]] | None = None

    def missing(self) -> str | None:
        return missing_runtime("cuda" if self.cuda and not self.emulated else "cpu")

    def passes(self) -> list[Pass]:
        return [ExpandExperts(self._takes), SoftmaxRouting(has_operator), ExpandRoutes(), self._packing]

    def _takes(self, expert: Expert) -> bool:
        """Whether there is an operator, or a function of standard ones, that does not run every expert on every token."""
        return has_operator(expert) or not self.cuda

    @property
    def _packing(self) -> FuseQuantized:
        operators = cuda_formats if self.cuda else onnxruntime_ops
        return FuseQuantized(operators.has_mixture, operators.has_linear)

    def gaps(self, program: Program) -> list[Gap]:
        wrong = [name for _, name in program.weights() if program.recipes[name].dtype in (torch.float16, torch.bfloat16)]
        half = [Gap(name, f"{program.recipes[name].dtype}, and what is traced computes in float32") for name in wrong]
        found = half + [Gap(where, why) for where, why in self._packing.obstacles(program)]
        if not self.cuda or any(gap.blocks for gap in found):
            return found
        return found + graph_gaps(self._lowered(program)[0], "cuda", self.deployment.gpu)

    def notes(self, program: Program) -> list[str]:
        return ["emulated: proven on the CPU in float32, unproven on the GPU"] if self.emulated else []

    def lower(self, program: Program, directory: Path, writer: Writer | None) -> Artifact:
        (model, weights), self._made = self._lowered(program), None  # from here on it is changed
        fused = [scope(node) for node in calls(program, MOCOMP.mixture.default, MOCOMP.quantized_mixture.default)]
        called = [scope(node) for node in calls(program, MOCOMP.experts.default)]
        mixtures = _name_mixtures(model, fused)
        mixtures += [
            Mixture(m.layer, m.x, m.scores, "", m.y, m.k, (), m.limits, m.ids) for m in name_mixtures(model, called, {})
        ]
        order = {node.outputs[0].name: i for i, node in enumerate(model.graph)}
        mixtures.sort(key=lambda mixture: order[mixture.y])
        set_accuracy(model, self.accuracy_level)
        save(model, directory, weights, writer.write(directory / DATA, weights) if writer is not None else {})
        operators = tuned.operators(model)
        files = [MODEL] if writer is None else [MODEL, DATA]
        size = sum(recipe.nbytes for recipe in weights.values())
        return Artifact(files, sum(operators.values()), size, mixtures, operators, formats_of(program), linears_of(program))

    def _lowered(self, program: Program) -> tuple[ir.Model, dict[str, Recipe]]:
        """The graph, and the recipes of its weights as its operators want them. Made once for a program: its gaps are told by
        it, and then it is written."""
        if self._made is not None and self._made[0] is program:
            return self._made[1:]
        model = to_onnx(program, placeholders.TRANSLATIONS | TRANSLATIONS, OPSET, IR_VERSION)
        portable.to_functions(model, "auto", OPSET)
        weights = weights_of(model, program)
        if self.deployment.dtype != "float32":
            weights = narrow(model, weights, self.deployment.dtype, program.parameters())
        self._made = program, model, operator_layout.arrange(model, weights)
        return self._made[1:]

    def rank_gaps(self, program: Program, layers: list[str]) -> list[Gap]:
        return super().rank_gaps(program, layers) if self.cuda else ranks_gaps.of_operators(program, layers)

    def rank_graphs(self, directory: Path, artifact: Artifact) -> RankGraphs:
        model = load(directory)
        seams = []
        for mixture in artifact.mixtures:
            at = ranks_seams.at_calls if mixture.ids else ranks_seams.at_operators
            seams += at(model, [(mixture.layer, mixture.y)])
        return RankGraphs(model, seams, lambda seam, count: ranks_experts.of_any(model, seam, count, "auto"))

    def open(self, directory: Path, expose: list[str] | None = None, exact: bool = False) -> Runner:
        changed = exposing(self.graph(directory, exact)[0], expose or []) if expose or exact or self.emulated else None
        return SessionRunner(directory, changed, self._device, self.deployment.tf32)

    def graph(self, directory: Path, exact: bool = False) -> tuple[ir.Model, str]:
        model = load(directory)
        if exact:
            set_accuracy(model, 0)
        if self.emulated:
            widen(model)
        return model, self._device

    def open_mixture(self, directory: Path, mixture: Mixture, exact: bool = False) -> MixtureRunner:
        model = load(directory)
        if mixture.ids:
            return CallRunner(model, portable.call_of(model, mixture.y), directory)
        if exact:
            set_accuracy(model, 0)
        prepare, tf32 = widen if self.emulated else None, self.deployment.tf32
        return MixtureSession(model, mixture.y, directory, self._device, prepare, tf32)

    @property
    def _device(self) -> str:
        return "cuda" if self.cuda and not self.emulated else "cpu"

    def weights(self, directory: Path, mixture: Mixture) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        model = load(directory)
        return packed_weights.read(tuned.fused_node(model, node_of(model, mixture.y)))

    def linear_weights(self, directory: Path) -> dict[str, np.ndarray]:
        return packed_weights.linears(load(directory))

    def obstacle(self, stored: list[tuple[Format, tuple[int, ...]]]) -> str | None:
        return self._packing.mixture(stored) if len(stored) > 1 else self._packing.linear(*stored[0])

    def rounds_activations(self, form: Format) -> bool:
        """As measured (docs/decisions/0012) on the CPU: QMoE does for 8 bits in blocks, and for 2 bits in blocks from 32 on."""
        rounds = (form.bits == 8 and form.block > 0) or (form.bits == 2 and form.block >= 32)
        return rounds and self._device == "cpu"

    def notes_of_run(self, directory: Path, inputs: Mapping[str, np.ndarray]) -> list[str]:
        found = copies_of_run(directory, inputs, self._device) if self._device == "cuda" else None
        return [str(found)] if found is not None and found.copies else []

    def describe(self) -> dict[str, Any]:
        import onnxruntime

        accuracy = {"accuracy_level": self.accuracy_level} if self.accuracy_level else {}
        device = {"device": "cuda", "dtype": self.deployment.dtype, "emulated": self.emulated} if self.cuda else {}
        return accuracy | {
            "target": self.name,
            **device,
            "opset": OPSET,
            "ir_version": IR_VERSION,
            "onnxruntime": onnxruntime.__version__,
        }


class SessionRunner(Session, Runner):
    """The artifact in ONNX Runtime."""


class MixtureSession(FusedMixture, MixtureRunner):
    """The fused mixture of one layer."""


class CallRunner(CallSession, MixtureRunner):
    """A mixture that no operator runs, called as a function."""


def _name_mixtures(model: ir.Model, layers: list[str]) -> list[Mixture]:
    """Give the values around each MoE node the name of its layer, and remember them for parity."""
    nodes = [node for node in model.graph if node.op_type in MIXTURES]
    mixtures = []
    for node, layer in zip(nodes, layers, strict=True):
        x, logits, y = node.inputs[0], node.inputs[1], node.outputs[0]
        assert x is not None and logits is not None
        x.name = x.name if x.name.startswith("model") or x.is_graph_input() else f"{layer}/x"
        logits.name = logits.name if logits.is_graph_input() else f"{layer}/router_logits"
        y.name = y.name if y.is_graph_output() else f"{layer}/y"
        k = node.attributes["k"].as_int()
        codes = [str(node.inputs[i].name).removesuffix(".codes") for i in ((2, 5) if node.op_type == "QMoE" else ())]
        mixtures.append(Mixture(layer, x.name, _choice(logits, k, layer), str(logits.name), str(y.name), k, tuple(codes)))
    return mixtures


def _choice(logits: ir.Value, k: int, layer: str) -> str:
    """The name of the scores that a TopK over k takes on the way to `logits`, or of the logits when there is none."""
    waiting, seen = [logits], set()
    while waiting and len(seen) < 12:
        node = waiting.pop(0).producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        shape = node.outputs[0].shape if node.op_type == "TopK" else None
        if shape is not None and shape.rank() == 2 and shape[-1] == k:
            scores = node.inputs[0]
            assert scores is not None
            scores.name = scores.name if scores.is_graph_input() else f"{layer}/choice"
            return str(scores.name)
        waiting.extend(value for value in node.inputs if value is not None)
    assert logits.name is not None
    return logits.name
