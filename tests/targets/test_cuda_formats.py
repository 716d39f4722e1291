"""Packed weights for the CUDA provider: which it takes, and that floats of 4 bits are the weights that they stand for."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from mocomp.lowering import fused_mixture, onnxruntime_ops, packed_weights
from mocomp.lowering.cuda_formats import has_linear, has_mixture
from mocomp.lowering.onnx_session import DATA, load
from mocomp.quant.formats import parse

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "checkpoint"


@pytest.mark.parametrize("text", ["int4:32", "int4:32:asym", "int4", "int8", "int8:64", "int2:64", "nvfp4"])
def test_what_it_takes(text):
    form = parse(text)
    assert has_mixture([(form, (4, 64, 128)), (form, (4, 128, 64))]) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int4:asym", "zero points"),
        ("int4:16:asym", "zero points"),
        ("int2", "blocks of 16 to 256"),
        ("mxfp4", "float8_e8m0"),
        ("fp8", "QMoE of fp8 is in no CUDA provider but one"),
    ],
)
def test_what_it_refuses_and_why(text, words):
    form = parse(text)
    assert words in (has_mixture([(form, (4, 64, 128)), (form, (4, 128, 64))]) or "")


@pytest.mark.parametrize("text", ["mxfp4", "nvfp4", "fp8"])
def test_the_cpu_sends_nobody_to_a_gpu_that_would_refuse(text):
    """Both say what helps, and neither sends to the other what the other has not."""
    form = parse(text)
    stored = [(form, (4, 64, 128)), (form, (4, 128, 64))]
    on_cpu, on_cuda = onnxruntime_ops.has_mixture(stored), has_mixture(stored)
    assert on_cpu is not None and "CPU provider" in on_cpu
    if on_cuda is not None:
        assert "nvfp4" in on_cpu or "does not count on" in on_cpu
        assert "CPU" not in on_cuda and "the CUDA provider has it" not in on_cuda


def test_two_formats_and_blocks_that_do_not_divide_are_refused():
    nvfp4, int4 = parse("nvfp4"), parse("int4:32")
    assert "one format" in (has_mixture([(nvfp4, (4, 64, 128)), (int4, (4, 128, 64))]) or "")
    assert "does not divide" in (has_mixture([(nvfp4, (4, 64, 24)), (nvfp4, (4, 24, 64))]) or "")
    assert "MatMulNBits of the CUDA provider" in (has_linear(nvfp4, (64, 128)) or "")


def test_nvfp4_is_proven_without_a_gpu_and_its_bytes_matter(command, tmp_path):
    made = tmp_path / "made"
    asked = ["--device", "cuda", "--dtype", "bfloat16", "--emulate", "--quantize", "nvfp4", "--json"]
    done = command("convert", str(DIGITS), "-o", str(made), *asked)
    assert done.code == 0, done.err
    assert json.loads((made / "mocomp.json").read_text())["artifact"]["operators"]["QMoE"] == 3
    node = next(node for node in load(made).graph if node.op_type == "QMoE")
    assert node.attributes["quant_type"].as_string() == "nvfp4"
    assert [value.dtype for value in (node.inputs[15], node.inputs[16]) if value is not None] == [ir.DataType.FLOAT] * 2
    assert node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.BFLOAT16
    whole = load(made)
    packed = next(node for node in whole.graph if node.op_type == "QMoE")
    bank = [value for value in packed.inputs[2:] if value is not None]
    single = fused_mixture._alone(whole, packed, bank).graph
    assert {value.dtype for value in (*single.inputs, *single.outputs)} == {ir.DataType.BFLOAT16}
    _, before, _ = next(packed_weights.read(node))
    codes = node.inputs[2]
    assert codes is not None and isinstance(codes.const_value, ir.ExternalTensor)
    with (made / DATA).open("r+b") as data:
        data.seek(codes.const_value.offset or 0)
        first = data.read(1)[0]
        data.seek(codes.const_value.offset or 0)
        data.write(bytes([first ^ 0x08]))  # the sign of the first code, in the lower half
    _, after, _ = next(packed_weights.read(next(n for n in load(made).graph if n.op_type == "QMoE")))
    changed = np.argwhere(before != after)
    assert changed.tolist() in ([[0, 0]], []) and after[0, 0] == -before[0, 0]
