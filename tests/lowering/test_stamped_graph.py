"""The ONNX graph that is stamped out of a few layers is the one that all of them translate to."""

import hashlib

import onnx_ir as ir
import pytest

from mocomp.ir.rewrite import MOCOMP, calls
from mocomp.lowering import onnx_graph, stamped_graph
from mocomp.lowering.onnxruntime_ops import TRANSLATIONS
from mocomp.lowering.shortened import shortened
from tests.stages import advance, load_traced

OPSET, IR_VERSION = 23, 10
DEEP = {"llama": {"num_hidden_layers": 6}, "vit": {"num_hidden_layers": 6}, "qwen3_moe": {"num_hidden_layers": 6}}


def described(model):
    """Each node by what it computes of what, whatever values are called; a node before what it reads would read nothing."""
    names = {value: value.name for value in model.graph.inputs}

    def name(value):
        if value is None or value in names:
            return names.get(value)
        tensor = value.const_value
        return value.name if tensor is None else (tensor.shape, tensor.numpy().tobytes())

    nodes = []
    for node in model.graph:
        attributes = sorted((a.name, a.as_tensor().numpy().tobytes() if a.type == ir.AttributeType.TENSOR else str(a.value))
                            for a in node.attributes.values())  # fmt: skip
        key = hashlib.sha256(repr((node.op_identifier(), [name(v) for v in node.inputs], attributes)).encode()).hexdigest()
        names |= {value: f"{key} {i}" for i, value in enumerate(node.outputs)}
        nodes.append((node.op_type, key))
    outputs = [(value.name, names[value], str(value.shape), str(value.type)) for value in model.graph.outputs]
    weights = [name for name, value in model.graph.initializers.items() if value.const_value is None]
    return sorted(nodes), list(map(str, model.graph.inputs)), outputs, weights


@pytest.mark.parametrize("family", DEEP)
def test_is_the_translation_of_all_layers(checkpoint, family):
    program = load_traced(checkpoint(family, **DEEP[family])).program
    advance(program, "fuse_quantized")
    assert shortened(program)[1]
    made = onnx_graph.to_onnx(program, TRANSLATIONS, OPSET, IR_VERSION)
    whole = onnx_graph._translated(program, TRANSLATIONS, OPSET, IR_VERSION)
    assert described(made) == described(whole)
    assert len({value.name for node in made.graph for value in node.outputs}) == sum(len(n.outputs) for n in made.graph)


@pytest.fixture(scope="module")
def program(checkpoint):
    program = load_traced(checkpoint("llama", num_hidden_layers=6)).program
    advance(program, "fuse_quantized")
    return program


def test_the_program_stays_whole(program):
    before = (len(program.graph.nodes), list(program.inputs), list(program.outputs), set(program.recipes))
    short, [cut] = shortened(program)
    assert len(short.graph.nodes) < len(program.graph.nodes) and cut.numbers == [3, 4]
    assert (len(program.graph.nodes), program.inputs, program.outputs, set(program.recipes)) == before


@pytest.mark.parametrize("layer", [2, 3, 5])
def test_a_layer_that_differs_is_not_cut_out(program, layer):
    changed = program.copy()
    attention = calls(changed, MOCOMP.attention.default)[layer]
    attention.args = (*attention.args[:5], 0.5, *attention.args[6:])
    cuts = shortened(changed)[1]
    assert all(layer not in cut.numbers for cut in cuts)


def test_nodes_that_differ_are_not_stamped(program):
    short, cuts = shortened(program)
    model = onnx_graph._translated(short, TRANSLATIONS | stamped_graph.TRANSLATIONS, OPSET, IR_VERSION)
    attention = [node for node in model.graph if node.op_type == "Attention"]
    attention[-1].attributes["scale"] = ir.AttrFloat32("scale", 0.5)
    assert not stamped_graph.stamp(model, cuts)
