"""ONNX Runtime on the CPU: `com.microsoft.MoE` for any router, standard `Attention` over shared keys and values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import torch

from mocomp.capability import Gap
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, scope
from mocomp.lowering import operator_layout, packed_weights, tuned
from mocomp.lowering.onnx_graph import to_onnx, weights_of
from mocomp.lowering.onnx_session import DATA, MODEL, Session, exposing, load, missing_runtime, save, session
from mocomp.lowering.onnxruntime_ops import TRANSLATIONS, has_linear, has_mixture, has_operator
from mocomp.lowering.operator_layout import MIXTURES
from mocomp.passes import Pass
from mocomp.passes.expand_experts import ExpandExperts
from mocomp.passes.expand_routes import ExpandRoutes
from mocomp.passes.fuse_quantized import FuseQuantized, formats_of, linears_of
from mocomp.passes.softmax_routing import SoftmaxRouting
from mocomp.quant.formats import Format
from mocomp.targets import Arrays, Artifact, Mixture, MixtureRunner, Runner, Target
from mocomp.weights.recipes import Reader
from mocomp.weights.writer import write

OPSET, IR_VERSION = 23, 10


class OnnxRuntime(Target):
    """model.onnx and model.onnx.data for the CPU provider, float32."""

    name: ClassVar[str] = "onnxruntime"
    tunes: ClassVar[bool] = True
    summary: ClassVar[str] = "ONNX Runtime, CPU, float32: fused experts (com.microsoft.MoE, QMoE), grouped-query attention"

    def missing(self) -> str | None:
        return missing_runtime()

    def passes(self) -> list[Pass]:
        return [ExpandExperts(fused=has_operator), SoftmaxRouting(), ExpandRoutes(), FuseQuantized(has_mixture, has_linear)]

    def gaps(self, program: Program) -> list[Gap]:
        wrong = [name for _, name in program.weights() if program.recipes[name].dtype in (torch.float16, torch.bfloat16)]
        half = [Gap(name, f"{program.recipes[name].dtype}, and the CPU operators compute in float32") for name in wrong]
        packed = FuseQuantized(has_mixture, has_linear).obstacles(program)
        return half + [Gap(where, why) for where, why in packed]

    def lower(self, program: Program, directory: Path, read: Reader | None, progress: Callable[[int], None]) -> Artifact:
        model = to_onnx(program, TRANSLATIONS, OPSET, IR_VERSION)
        layers = [scope(node) for node in calls(program, MOCOMP.mixture.default, MOCOMP.quantized_mixture.default)]
        mixtures = _name_mixtures(model, layers)
        weights = operator_layout.arrange(model, weights_of(model, program))
        _set_accuracy(model, self.accuracy_level)
        save(model, directory, weights, write(directory / DATA, weights, read, progress) if read is not None else {})
        operators = Counter(node.op_type for node in model.graph.all_nodes())
        files = [MODEL] if read is None else [MODEL, DATA]
        size = sum(recipe.nbytes for recipe in weights.values())
        return Artifact(
            files, operators.total(), size, mixtures, dict(operators.most_common()), formats_of(program), linears_of(program)
        )

    def open(self, directory: Path, expose: list[str] | None = None, exact: bool = False) -> Runner:
        return SessionRunner(directory, expose or [], exact)

    def open_mixture(self, directory: Path, mixture: Mixture, exact: bool = False) -> MixtureRunner:
        return MixtureSession(directory, mixture, exact)

    def weights(self, directory: Path, mixture: Mixture) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        model = _load(directory)
        return packed_weights.read(tuned.fused_node(model, _node_of(model, mixture)))

    def linear_weights(self, directory: Path) -> dict[str, np.ndarray]:
        return packed_weights.linears(_load(directory))

    def obstacle(self, stored: list[tuple[Format, tuple[int, ...]]]) -> str | None:
        return has_mixture(stored) if len(stored) > 1 else has_linear(*stored[0])

    def rounds_activations(self, form: Format) -> bool:
        """As measured (docs/decisions/0012): QMoE does for 8 bits in blocks, and for 2 bits in blocks from 32 on."""
        return (form.bits == 8 and form.block > 0) or (form.bits == 2 and form.block >= 32)

    def describe(self) -> dict[str, Any]:
        import onnxruntime

        accuracy = {"accuracy_level": self.accuracy_level} if self.accuracy_level else {}
        return accuracy | {
            "target": self.name,
            "opset": OPSET,
            "ir_version": IR_VERSION,
            "onnxruntime": onnxruntime.__version__,
        }


class SessionRunner(Session, Runner):
    """An ONNX Runtime session; inner values named in `expose` become outputs of a copy in memory."""

    def __init__(self, directory: Path, expose: list[str], exact: bool = False):
        super().__init__(directory, exposing(_load(directory, exact), expose) if expose or exact else None)


class MixtureSession(MixtureRunner):
    """The mixture of one layer, a MoE or QMoE node or what runs in its place, alone on the weights of the artifact."""

    def __init__(self, directory: Path, mixture: Mixture, exact: bool = False):
        model = _load(directory, exact)
        node = _node_of(model, mixture)
        x, logits, bank = node.inputs[0], node.inputs[1], [value for value in node.inputs[2:] if value is not None]
        assert x is not None and logits is not None and bank[0].shape is not None
        self.experts = int(bank[0].shape[0])
        self.factor = packed_weights.factor_of_inputs(node)
        for value in (x, logits, node.outputs[0]):
            value.dtype, value.shape = ir.DataType.FLOAT, None
        alone = ir.Node(
            node.domain,
            node.op_type,
            [ir.Value(name="x", type=x.type), ir.Value(name="logits", type=logits.type), *node.inputs[2:]],
            list(node.attributes.values()),
        )
        y = alone.outputs[0]
        y.name, y.type = "y", x.type
        for value in bank:
            model.graph.initializers.pop(value.name)
        graph = ir.Graph(
            [alone.inputs[0], alone.inputs[1]], [y], nodes=[alone], initializers=bank, opset_imports=model.opset_imports
        )  # type: ignore[list-item]
        single = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
        self.session = session(ir.to_proto(single).SerializeToString(), directory)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        x = inputs["x"] if self.factor is None else inputs["x"] * self.factor
        logits = np.full((len(x), self.experts), -np.inf, np.float32)
        with np.errstate(divide="ignore"):
            np.put_along_axis(logits, inputs["ids"], np.log(inputs["weights"]), axis=-1)
        # the operator divides the weights by their sum
        y = self.session.run(None, {"x": x, "logits": logits})[0]
        return {"y": y * inputs["weights"].sum(-1, keepdims=True)}


def _name_mixtures(model: ir.Model, layers: list[str]) -> list[Mixture]:
    """Give the values around each MoE node the name of its layer, and remember them for parity."""
    nodes = [node for node in model.graph if node.op_type in MIXTURES]
    mixtures = []
    for node, layer in zip(nodes, layers, strict=True):
        x, logits, y = node.inputs[0], node.inputs[1], node.outputs[0]
        assert x is not None and logits is not None
        x.name = x.name if x.name.startswith("model") or x.is_graph_input() else f"{layer}/x"
        logits.name, y.name = f"{layer}/router_logits", f"{layer}/y"
        k = node.attributes["k"].as_int()
        codes = [str(node.inputs[i].name).removesuffix(".codes") for i in ((2, 5) if node.op_type == "QMoE" else ())]
        mixtures.append(Mixture(layer, x.name, _choice(logits, k, layer), logits.name, y.name, k, tuple(codes)))
    return mixtures


def _choice(logits: ir.Value, k: int, layer: str) -> str:
    """The name of the scores that a TopK over k takes on the way to `logits`, or of the logits when there is none."""
    waiting, seen = [logits], set()
    while waiting and len(seen) < 12:
        node = waiting.pop(0).producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type == "TopK" and node.outputs[0].shape is not None and node.outputs[0].shape[-1] == k:
            scores = node.inputs[0]
            assert scores is not None
            scores.name = f"{layer}/choice"
            return scores.name
        waiting.extend(value for value in node.inputs if value is not None)
    assert logits.name is not None
    return logits.name


def _load(directory: Path, exact: bool = False) -> ir.Model:
    """The graph without its weights; `exact` has every operator compute on activations as they are."""
    model = load(directory)
    if exact:
        _set_accuracy(model, 0)
    return model


def _node_of(model: ir.Model, mixture: Mixture) -> ir.Node:
    return next(n for n in model.graph if n.outputs[0].name == mixture.y)


def _set_accuracy(model: ir.Model, level: int) -> None:
    """The `accuracy_level` of every operator that has one: 0 is float32 activations, 4 int8 ones."""
    for node in (node for graph in (model.graph, *model.functions.values()) for node in graph.all_nodes()):
        if node.op_type in ("QMoE", "MatMulNBits"):
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", level)
