"""ONNX Runtime on the CPU: `com.microsoft.MoE` for any router, standard `Attention` over shared keys and values.

What the operators compute was established by running ONNX Runtime 1.31 (docs/decisions/0003): `MoE` takes logits,
keeps the k largest, and weighs by their softmax; it wants gate and up rows interleaved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset23 as op

from mocomp.errors import BadInput
from mocomp.experts import Expert
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, scope
from mocomp.ir.specs import parse
from mocomp.lowering.contrib import contrib
from mocomp.lowering.onnx_graph import to_onnx, weights_of
from mocomp.passes import Pass
from mocomp.passes.expand_experts import ExpandExperts
from mocomp.passes.expand_routes import ExpandRoutes
from mocomp.passes.softmax_routing import SoftmaxRouting
from mocomp.routers import Router
from mocomp.targets import Arrays, Artifact, Mixture, MixtureRunner, Runner, Target
from mocomp.weights import recipes
from mocomp.weights.recipes import Reader, Recipe
from mocomp.weights.writer import write

OPSET, IR_VERSION = 23, 10
MODEL, DATA = "model.onnx", "model.onnx.data"
ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu", "relu": "relu"}


class OnnxRuntime(Target):
    """model.onnx and model.onnx.data for the CPU provider, float32."""

    name: ClassVar[str] = "onnxruntime"
    summary: ClassVar[str] = "ONNX Runtime, CPU, float32: fused experts (com.microsoft.MoE), grouped-query attention"

    @classmethod
    def missing(cls) -> str | None:
        try:
            import onnxruntime  # noqa: F401
        except ImportError:
            return "onnxruntime is not installed: pip install onnxruntime"
        return None

    def passes(self) -> list[Pass]:
        return [ExpandExperts(fused=has_operator), SoftmaxRouting(), ExpandRoutes()]

    def gaps(self, program: Program) -> list[str]:
        wrong = [name for _, name in program.weights() if program.recipes[name].dtype in (torch.float16, torch.bfloat16)]
        return [f"{name} is {program.recipes[name].dtype}; the CPU operators compute in float32" for name in wrong]

    def lower(self, program: Program, directory: Path, read: Reader | None, progress: Callable[[int], None]) -> Artifact:
        model = to_onnx(program, TRANSLATIONS, OPSET, IR_VERSION)
        layers = [scope(node) for node in calls(program, MOCOMP.mixture.default)]
        mixtures = _name_mixtures(model, layers)
        weights = _in_operator_layout(model, weights_of(model, program))
        _save(model, directory, weights, read, progress)
        operators = Counter(node.op_type for node in model.graph.all_nodes())
        files = [MODEL] if read is None else [MODEL, DATA]
        size = sum(recipe.nbytes for recipe in weights.values())
        return Artifact(files, operators.total(), size, mixtures, dict(operators.most_common()))

    def open(self, directory: Path, expose: list[str] | None = None) -> Runner:
        return SessionRunner(directory, expose or [])

    def open_mixture(self, directory: Path, mixture: Mixture) -> MixtureRunner:
        return MixtureSession(directory, mixture)

    def describe(self) -> dict[str, Any]:
        import onnxruntime

        return {"target": self.name, "opset": OPSET, "ir_version": IR_VERSION, "onnxruntime": onnxruntime.__version__}


class SessionRunner(Runner):
    """An ONNX Runtime session; inner values named in `expose` become outputs of a copy in memory."""

    def __init__(self, directory: Path, expose: list[str]):
        if not (directory / MODEL).exists():
            raise BadInput(f"no {MODEL}", where=str(directory), fix="Point at a directory that mocomp convert wrote.")
        self.session = _session(_exposing(_load(directory), expose) if expose else str(directory / MODEL), directory)
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        fed = {name: inputs[name] for name in self.inputs}
        return dict(zip(self.outputs, self.session.run(None, fed), strict=True))


class MixtureSession(MixtureRunner):
    """The MoE node of one layer in a session of its own, on the weights of the artifact."""

    def __init__(self, directory: Path, mixture: Mixture):
        model = _load(directory)
        node = next(n for n in model.graph if n.op_type == "MoE" and n.outputs[0].name == mixture.y)
        x, logits, bank = node.inputs[0], node.inputs[1], [value for value in node.inputs[2:] if value is not None]
        assert x is not None and logits is not None and bank[0].shape is not None
        self.experts = int(bank[0].shape[0])
        for value in (x, logits, node.outputs[0]):
            value.dtype, value.shape = ir.DataType.FLOAT, None
        alone = ir.Node(
            node.domain,
            "MoE",
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
        single = ir.Model(graph, ir_version=model.ir_version)
        self.session = _session(ir.to_proto(single).SerializeToString(), directory)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        return {"y": self.session.run(None, dict(inputs))[0]}


def _session(source: str | bytes, directory: Path) -> Any:
    """A session of a file, or of a model in memory whose weights lie in `directory`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if isinstance(source, bytes):
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(directory))
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BadInput(
            f"ONNX Runtime does not load it: {str(error).splitlines()[0][:300]}",
            where=str(directory),
            fix="If the directory was changed after mocomp wrote it, convert again.",
        ) from error


def has_operator(expert: Expert) -> bool:
    """Whether MoE computes this kind of expert on the CPU: SwiGLU with its parameters, or one of its activations."""
    return expert.activation == "silu" if expert.gated else expert.activation in ACTIVATIONS


def _mixture(x: Any, logits: Any, tensors: Any, w_in: Any, b_in: Any, w_out: Any, b_out: Any, router: str, expert: str) -> Any:
    kind: Router = parse("mocomp.routers", "Router", router)
    form = kind.as_softmax()
    assert form is not None and form.over_chosen  # softmax_routing gives nothing else
    y = contrib().MoE(x, logits, w_in, b_in, w_out, b_out, k=kind.k, **_attributes(expert))
    return y if form.scale == 1.0 else op.Mul(y, op.Constant(value_float=form.scale))


def _attributes(spec: str) -> dict[str, Any]:
    """Weights are always divided by their sum: without that, ONNX Runtime 1.31 gives wrong numbers whenever it lets
    the operator write over its input (onnxruntime#33866, reproduced in tests/targets/test_onnxruntime_moe.py)."""
    expert: Any = parse("mocomp.experts", "Expert", spec)
    attributes: dict[str, Any] = {"normalize_routing_weights": 1}
    if not expert.gated:
        return attributes | {"activation_type": ACTIVATIONS[expert.activation]}
    limit = {"swiglu_limit": expert.limit} if expert.limit else {}
    swiglu = {"activation_type": "swiglu", "swiglu_fusion": 1}
    return attributes | swiglu | limit | {"activation_alpha": expert.alpha, "activation_beta": expert.beta}


def _attention(q: Any, k: Any, v: Any, mask: Any, sinks: Any, scale: float, softcap: float) -> Any:
    if sinks is None:
        y = op.Attention(q, k, v, mask, scale=scale, softcap=softcap)
        return op.Transpose(y[0] if isinstance(y, (tuple, list)) else y, perm=[0, 2, 1, 3])
    return _attention_with_sinks(q, k, v, mask, sinks, scale)


def _attention_with_sinks(q: Any, k: Any, v: Any, mask: Any, sinks: Any, scale: float) -> Any:
    """The standard op has no sinks: products with the query groups folded into rows, softmax over one more column."""
    (heads, width), groups = (int(q.shape[1]), int(q.shape[3])), int(k.shape[1])
    grouped = op.Reshape(q, op.Constant(value_ints=[0, groups, -1, width]))
    scores = op.MatMul(op.Mul(grouped, op.Constant(value_float=scale)), op.Transpose(k, perm=[0, 1, 3, 2]))
    rows = op.Concat(op.Constant(value_ints=[0, heads]), op.Shape(q, start=2, end=3), op.Constant(value_ints=[-1]), axis=0)
    scores = op.Reshape(scores, rows)
    scores = scores if mask is None else op.Add(scores, mask)
    sink = op.Reshape(sinks, op.Constant(value_ints=[1, -1, 1, 1]))
    one = op.Constant(value_ints=[1])
    column = op.Expand(sink, op.Concat(op.Shape(q, start=0, end=3), one, axis=0))
    weights = op.Softmax(op.Concat(scores, column, axis=-1), axis=-1)
    last = op.Constant(value_ints=[-1])
    weights = op.Slice(weights, op.Constant(value_ints=[0]), last, last)
    shape = op.Concat(op.Constant(value_ints=[0, groups, -1]), op.Shape(k, start=2, end=3), axis=0)
    y = op.MatMul(op.Reshape(weights, shape), v)
    back = op.Concat(op.Constant(value_ints=[0, heads]), op.Shape(q, start=2, end=3), op.Constant(value_ints=[-1]), axis=0)
    return op.Transpose(op.Reshape(y, back), perm=[0, 2, 1, 3])


def _rms_norm(x: Any, weight: Any, epsilon: float) -> Any:
    return op.RMSNormalization(x, weight, axis=-1, epsilon=epsilon)


def _rotary(x: Any, cos: Any, sin: Any) -> Any:
    """The op takes each angle once, [B, S, D / 2]; both slices are shared by all layers."""
    half = op.Constant(value_ints=[int(x.shape[-1]) // 2])
    first = [
        op.Slice(op.Squeeze(a, op.Constant(value_ints=[1])), op.Constant(value_ints=[0]), half, op.Constant(value_ints=[-1]))
        for a in (cos, sin)
    ]
    return op.RotaryEmbedding(x, *first)


TRANSLATIONS = {
    MOCOMP.mixture.default: _mixture,
    MOCOMP.attention.default: _attention,
    MOCOMP.rms_norm.default: _rms_norm,
    MOCOMP.rotary.default: _rotary,
}


def _name_mixtures(model: ir.Model, layers: list[str]) -> list[Mixture]:
    """Give the values around each MoE node the name of its layer, and remember them for parity."""
    nodes = [node for node in model.graph if node.op_type == "MoE"]
    mixtures = []
    for node, layer in zip(nodes, layers, strict=True):
        x, logits, y = node.inputs[0], node.inputs[1], node.outputs[0]
        assert x is not None and logits is not None
        x.name = x.name if x.name.startswith("model") or x.is_graph_input() else f"{layer}/x"
        logits.name, y.name = f"{layer}/router_logits", f"{layer}/y"
        k = node.attributes["k"].as_int()
        mixtures.append(Mixture(layer, x.name, _choice(logits, k, layer), logits.name, y.name, k))
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


def _in_operator_layout(model: ir.Model, weights: dict[str, Recipe]) -> dict[str, Recipe]:
    """Gate and up rows interleaved, as the SwiGLU of MoE reads them."""
    arranged = dict(weights)
    for node in model.graph:
        if node.op_type != "MoE" or "swiglu_fusion" not in node.attributes:
            continue
        for value in node.inputs[2:4]:
            if value is not None:
                arranged[value.name] = _interleaved(weights[value.name])
    return arranged


def _interleaved(recipe: Recipe) -> Recipe:
    """[E, 2F, ...] gate rows then up rows -> rows gate 0, up 0, gate 1, up 1, ..."""
    half = recipe.shape[1] // 2
    pair = recipes.stack([recipes.slice_of(recipe, 1, 0, half), recipes.slice_of(recipe, 1, half, 2 * half)], 2)
    return recipes.reshape(pair, recipe.shape)


def _save(
    model: ir.Model, directory: Path, weights: dict[str, Recipe], read: Reader | None, progress: Callable[[int], None]
) -> None:
    placed = write(directory / DATA, weights, read, progress) if read is not None else {}
    for name, recipe in weights.items():
        value, at = model.graph.initializers[name], placed.get(name)
        offset, length = (at.offset, at.length) if at else (0, recipe.nbytes)
        assert value.dtype is not None
        value.const_value = ir.ExternalTensor(
            DATA, offset, length, value.dtype, shape=ir.Shape(recipe.shape), name=name, base_dir=directory
        )
    ir.save(model, directory / MODEL)


def _load(directory: Path) -> ir.Model:
    try:
        return ir.load(directory / MODEL)
    except Exception as error:  # of protobuf's own kinds
        raise BadInput(f"{MODEL} is damaged: {error}", where=str(directory), fix="Convert again.") from error


def _exposing(model: ir.Model, names: list[str]) -> bytes:
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in names:
        value = values[name]
        value.dtype = value.dtype or ir.DataType.FLOAT
        if not value.is_graph_output():
            model.graph.outputs.append(value)
    return ir.to_proto(model).SerializeToString()
