"""config.pbtxt, read back by a parser of the text form of protocol buffers that is not ours to write with."""

import re

import onnx_ir as ir
import pytest

from mocomp.errors import Unsupported
from mocomp.lowering import triton

TOKEN = re.compile(r'\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<number>-?\d+)|"(?P<text>[^"\n]*)"|(?P<mark>[{}\[\]:,]))')
FIELDS = {
    "": {"name": str, "platform": str, "max_batch_size": int, "input": dict, "output": dict, "instance_group": dict},
    "input": {"name": str, "data_type": str, "dims": int},
    "output": {"name": str, "data_type": str, "dims": int},
    "instance_group": {"count": int, "kind": str, "profile": str},
}
"""The fields of ModelConfig that are used, by the message they are in (model_config.proto of Triton)."""


def parse(text: str) -> dict[str, list]:
    """{field: its values} of a message in text form, nested messages as such dictionaries. Fails on what is none."""
    tokens, place = [], 0
    while place < len(text.rstrip()):
        match = TOKEN.match(text, place)
        assert match, f"not text format at {text[place : place + 20]!r}"
        tokens.append((match.lastgroup, match[match.lastgroup]))
        place = match.end()
    message, rest = _message(tokens, "")
    assert not rest, rest
    return message


def _message(tokens, kind):
    found: dict[str, list] = {}
    while tokens and tokens[0] != ("mark", "}"):
        (group, name), *tokens = tokens
        assert group == "name" and name in FIELDS[kind], f"{kind} has no field {name}"
        if tokens[0] == ("mark", "{"):
            value, tokens = _message(tokens[1:], name)
            assert tokens[0] == ("mark", "}")
            found.setdefault(name, []).append(value)
            tokens = tokens[1:]
            continue
        assert tokens[0] == ("mark", ":"), name
        values, tokens = _values(tokens[1:])
        assert all(isinstance(value, FIELDS[kind][name]) for value in values), name
        found.setdefault(name, []).extend(values)
    return found, tokens


def _values(tokens):
    (group, text), *tokens = tokens
    if group != "mark":
        return [int(text) if group == "number" else text], tokens
    assert text == "["
    values = []
    while tokens[0] != ("mark", "]"):
        (group, text), *tokens = tokens
        if group != "mark":
            values.append(int(text) if group == "number" else text)
    return values, tokens[1:]


def test_the_configuration_says_what_the_graph_takes_and_gives(emulated):
    made = emulated("digits", engines="two", triton=True)
    for name, profiles in (("model", ["0"]), ("decode", ["0"])):
        config = parse((made.directory / "triton" / name / "config.pbtxt").read_text())
        model = ir.load(made.directory / f"{name}.onnx")
        assert config["name"] == [name] and config["platform"] == ["tensorrt_plan"] and config["max_batch_size"] == [0]
        assert [tensor["name"][0] for tensor in config["input"]] == [value.name for value in model.graph.inputs]
        assert [tensor["name"][0] for tensor in config["output"]] == [value.name for value in model.graph.outputs]
        first = config["input"][0]
        assert first["data_type"] == ["TYPE_INT64"] and first["dims"] == [-1, -1]
        cache = next(tensor for tensor in config["input"] if tensor["name"][0].startswith("past"))
        assert cache["data_type"] == ["TYPE_FP32"] and cache["dims"].count(-1) == 2 and len(cache["dims"]) == 4
        assert config["instance_group"] == [{"count": [1], "kind": ["KIND_GPU"], "profile": profiles}]
        assert not (made.directory / "triton" / name / "1" / "model.plan").exists(), "there is no plan to serve yet"


def test_all_profiles_of_one_engine_are_listed(emulated):
    model = ir.load(emulated("digits").directory / "model.onnx")
    assert parse(triton.config("m", model, 3))["instance_group"][0]["profile"] == ["0", "1", "2"]


def test_types_that_the_server_has_not_are_refused():
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT8E4M3FN), shape=ir.Shape([1]))
    model = ir.Model(ir.Graph([value], [value], nodes=[]), ir_version=10)
    with pytest.raises(Unsupported, match="no type for x"):
        triton.config("m", model, 1)


@pytest.mark.parametrize("broken", ['name "x"', 'name: "x', "colour: 3", "input { dims: [ 1, ] name: 3 }", "max_batch_size: x"])
def test_the_parser_of_this_test_refuses_what_is_wrong(broken):
    with pytest.raises(AssertionError):
        parse(broken)
