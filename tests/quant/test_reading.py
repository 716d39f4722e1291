"""Checkpoints that are quantised already: every float is the one that the tool which wrote it would make."""

import pytest
import torch
from safetensors.torch import load_file

from mocomp import ConvertOptions
from mocomp.commands.parity import ParityOptions, parity
from mocomp.errors import BadInput, Unsupported
from mocomp.models.binding import bind
from mocomp.models.source import open_source
from mocomp.nn.model import assemble, empty
from mocomp.pipeline import convert
from mocomp.quant.dequantised import parts_of
from mocomp.weights import recipes
from mocomp.weights.checkpoint import Checkpoint
from tests.quant import quantised_checkpoints as made
from tests.quant.test_dequantised import same_as_parts

SMALL = {"experts": 4, "moe_intermediate_size": 64, "num_hidden_layers": 1}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
FP8 = {"num_bits": 8, "type": "float"}


def gptq(version=1, bits=4, group=32, symmetric=False, act_order=False):
    config = {"bits": bits, "group_size": group, "sym": symmetric, "desc_act": act_order}
    named = {"checkpoint_format": "gptq_v2"} if version == 2 else {}
    return {"quant_method": "gptq", **config, **named}, made.gptq(bits, group, symmetric, version, act_order)


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
DEEPSEEK = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
SCHEMES = {
    "gptq": lambda: gptq(),
    "gptq symmetric": lambda: gptq(symmetric=True),
    "gptq v2": lambda: gptq(version=2),
    "gptq act-order": lambda: gptq(act_order=True),
    "gptq of 8 bits, a scale per row": lambda: gptq(bits=8, group=-1),
    "gptq of 2 bits": lambda: gptq(bits=2, group=16),
    "awq": lambda: (AWQ, made.awq(32)),
    "fp8": lambda: (DEEPSEEK, made.fp8),
    "int4": lambda: made.compressed_tensors("pack-quantized", **INT4),
    "int4 with zero points": lambda: made.compressed_tensors("pack-quantized", **INT4, symmetric=False),
    "int8 packed": lambda: made.compressed_tensors("pack-quantized", num_bits=8, strategy="channel"),
    "int8": lambda: made.compressed_tensors("int-quantized", num_bits=8, strategy="channel"),
    "int8 with zero points": lambda: made.compressed_tensors("int-quantized", num_bits=8, strategy="channel", symmetric=False),
    "int8, one scale": lambda: made.compressed_tensors("naive-quantized", num_bits=8, strategy="tensor"),
    "fp8 per row": lambda: made.compressed_tensors("float-quantized", **FP8, strategy="channel"),
    "fp8, one scale": lambda: made.compressed_tensors("float-quantized", **FP8, strategy="tensor"),
    "fp8 of blocks": lambda: made.compressed_tensors("float-quantized", **FP8, strategy="block", block_structure=[128, 128]),
}
LARGE = {"hidden_size": 192, "moe_intermediate_size": 320}
"""More than one block of 128 either way, and the last one not full."""


@pytest.fixture(scope="module")
def pairs(checkpoint, tmp_path_factory):
    """pairs(scheme): the checkpoint of a name in SCHEMES, or of mxfp4, and its twin of floats; each made once."""
    known = {}

    def of(scheme):
        if scheme not in known:
            directory = tmp_path_factory.mktemp("pair")
            if scheme == "mxfp4":
                known[scheme] = made.write_gpt_oss(checkpoint("gpt_oss", experts=4, intermediate_size=64), directory)
            else:
                large = LARGE if scheme in ("fp8", "fp8 of blocks") else {}
                known[scheme] = made.write(checkpoint("qwen3_moe", **SMALL | large), directory, *SCHEMES[scheme]())
        return known[scheme]

    return of


def bound(directory):
    """(recipes of the model's parameters, the opened checkpoint, names that have no place)"""
    opened = Checkpoint(directory)
    found, unused = bind(empty(open_source(str(directory))), opened)
    return found, opened, unused


def differing(quantised, floats):
    """The parameters that are not to the bit what the twin of floats has."""
    (ours, packed, unused), (theirs, plain, _) = bound(quantised), bound(floats)
    with packed, plain:
        assert ours.keys() == theirs.keys() and unused == []
        return [n for n in ours if not torch.equal(ours[n].evaluate(packed.read), theirs[n].evaluate(plain.read))]


@pytest.mark.parametrize("scheme", [*SCHEMES, "mxfp4"])
def test_weights_are_what_the_tool_would_make(pairs, scheme):
    pair = pairs(scheme)
    assert differing(pair.quantised, pair.floats) == []


@pytest.mark.parametrize("scheme", ["gptq act-order", "awq", "fp8", "int4 with zero points", "mxfp4"])
def test_converting_one_is_converting_its_floats(pairs, scheme, tmp_path):
    pair = pairs(scheme)
    report = convert(str(pair.quantised), tmp_path / "artifact", ConvertOptions())
    assert report.parity is not None and report.parity.passed
    assert parity(tmp_path / "artifact", options=ParityOptions(reference=str(pair.floats))).passed
    ids = torch.randint(0, 128, (2, 9), generator=torch.Generator().manual_seed(0))
    source, twin = open_source(str(pair.quantised)), open_source(str(pair.floats))
    with Checkpoint(pair.quantised) as opened, torch.no_grad():
        logits = assemble(source, opened)(ids).logits
        expected = twin.model_class.from_pretrained(pair.floats, dtype=torch.float32, attn_implementation="eager")(ids).logits
    assert (logits - expected).abs().max() < 1e-5 < expected.abs().max()


def test_the_config_is_that_of_the_float_model(pairs):
    source = open_source(str(pairs("gptq").quantised))
    assert source.quantization is not None and source.quantization["quant_method"] == "gptq"
    assert not hasattr(source.config, "quantization_config")
    assert open_source(str(pairs("gptq").floats)).quantization is None


def test_awq_is_packed_here_as_other_tools_read_it():
    """The checkpoints of these tests against the reader of compressed-tensors."""
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    torch.manual_seed(0)
    parts, w = made.awq(32)(64, 96)
    read = AutoAWQConverter(group_size=32).process({"x" + own: part for own, part in parts.items()})
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**INT4, symmetric=False))
    state = {name.removeprefix("x."): tensor for name, tensor in read.items()}
    found = PackedQuantizationCompressor.decompress(state, scheme)["weight"]
    assert (found.float() - w).abs().max() <= w.abs().max() * 2**-10  # it computes in the half precision of the scales


def swap_nibbles(name):
    def change(tensors, config):
        bytes = tensors[name].view(torch.uint8).flatten()
        at = int(((bytes & 15) != (bytes >> 4)).nonzero()[0])
        bytes[at] = (bytes[at] << 4) | (bytes[at] >> 4)
        tensors[name] = bytes.view(tensors[name].dtype).reshape(tensors[name].shape)

    return change


def transpose(name):
    def change(tensors, config):
        tensors[name] = tensors[name].mT.reshape(tensors[name].shape)

    return change


Q = "model.layers.0.self_attn.q_proj"
BANK = "model.layers.0.mlp.experts.down_proj"
FAULTS = {
    "gptq nibble": ("gptq", swap_nibbles(f"{Q}.qweight")),
    "gptq scales": ("gptq", transpose(f"{Q}.scales")),
    "gptq zero points one off": ("gptq", lambda tensors, config: config.update(checkpoint_format="gptq_v2")),
    "gptq v2 zero points one off": ("gptq v2", lambda tensors, config: config.pop("checkpoint_format")),
    "gptq order lost": ("gptq act-order", lambda tensors, config: tensors.pop(f"{Q}.g_idx")),
    "awq nibble": ("awq", swap_nibbles(f"{Q}.qweight")),
    "awq scales": ("awq", transpose(f"{Q}.scales")),
    "awq zero points": ("awq", swap_nibbles(f"{Q}.qzeros")),
    "int4 nibble": ("int4", swap_nibbles(f"{Q}.weight_packed")),
    "int4 scales": ("int4", transpose(f"{Q}.weight_scale")),
    "int4 zero points": ("int4 with zero points", swap_nibbles(f"{Q}.weight_zero_point")),
    "fp8 scales": ("fp8", transpose("model.layers.0.mlp.experts.0.up_proj.weight_scale_inv")),
    "mxfp4 nibble": ("mxfp4", swap_nibbles(f"{BANK}_blocks")),
    "mxfp4 scales": ("mxfp4", transpose(f"{BANK}_scales")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_misread_is_seen(pairs, tmp_path, fault):
    scheme, change = FAULTS[fault]
    pair = pairs(scheme)
    assert differing(made.changed(pair.quantised, tmp_path / "faulty", change), pair.floats) != []


def test_columns_in_another_order(pairs, tmp_path):
    """compressed-tensors once had act-order too: the group of each column beside the packed weight."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    groups = torch.arange(64).remainder(2)
    directory = made.changed(
        pairs("int4").quantised, tmp_path / "ordered", lambda tensors, _: tensors.update({f"{Q}.weight_g_idx": groups.int()})
    )
    stored = load_file(directory / "model.safetensors")
    codes = unpack_from_int32(stored[f"{Q}.weight_packed"], 4, torch.Size([64, 64]))
    found, opened, _ = bound(directory)
    with opened:
        value = found[f"{Q}.weight"].evaluate(opened.read)
    assert torch.equal(value, codes.float() * stored[f"{Q}.weight_scale"][:, groups])
    assert parts_of(found[f"{Q}.weight"]) is None


def test_the_most_specific_target_holds(pairs, tmp_path):
    def change(tensors, config):
        right = config["config_groups"].pop("group_0")["weights"]
        config["config_groups"] = {
            "all": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}},
            "named": {"targets": ["re:.*experts.*", Q.replace("q_proj", "o_proj")], "weights": right},
            "others": {"targets": [r"re:.*[qkv]_proj$"], "weights": right},
        }

    pair = pairs("int4")
    assert differing(made.changed(pair.quantised, tmp_path / "mixed", change), pair.floats) == []


@pytest.mark.parametrize("scheme", ["gptq", "awq", "int4", "int8", "fp8 per row", "mxfp4"])
def test_parts_of_a_bank_are_its_weights(pairs, scheme):
    found, opened, _ = bound(pairs(scheme).quantised)
    banks = [recipe for recipe in found.values() if len(recipe.shape) == 3]
    if scheme == "mxfp4":  # as the canonical form has them: rows are outputs, gate before up
        turned = [recipes.permute(bank, (0, 2, 1)) for bank in banks]
        banks = [recipes.concat([recipes.slice_of(bank, 1, i, bank.shape[1], 2) for i in (0, 1)], 1) for bank in turned]
    assert banks
    with opened:
        for bank in banks:
            same_as_parts(bank, opened.read)


@pytest.mark.parametrize("scheme", ["gptq", "mxfp4"])
def test_an_expert_is_read_alone(pairs, scheme):
    found, opened, _ = bound(pairs(scheme).quantised)
    reads = set()
    with opened:
        for bank in [recipe for recipe in found.values() if len(recipe.shape) == 3]:
            bank.rows(lambda name, *rows: reads.add((name, rows)) or opened.read(name, *rows), 2, 3)
    assert reads
    if scheme == "mxfp4":
        assert {rows for _, rows in reads} == {(2, 3)}
    else:
        assert all(".experts.2." in name for name, _ in reads)


REFUSED = {
    "a scale is missing": ("gptq", lambda t, c: t.pop(f"{Q}.scales"), BadInput, f"{Q}: .*scales is missing"),
    "scales of another size": ("awq", lambda t, c: t.update({f"{Q}.scales": torch.ones(3, 64)}), BadInput, r"\[3, 64\]"),
    "scales that are no floats": (
        "fp8", lambda t, c: t.update({f"{Q}.weight_scale_inv": torch.ones(1, 2, dtype=torch.int32)}), BadInput, "floating",
    ),
    "no blocks of an expert": (
        "mxfp4", lambda t, c: t.update({f"{BANK}_blocks": torch.zeros(4, 64, 32, dtype=torch.uint8)}), BadInput, "expected",
    ),
    "words of another size": (
        "int4", lambda t, c: t.update({f"{Q}.weight_shape": torch.tensor([64, 96])}), BadInput, "weight_packed is",
    ),
    "codes that are no words": ("awq", lambda t, c: t.update({f"{Q}.qweight": torch.zeros(64)}), BadInput, "a matrix of"),
    "groups of unequal size": (
        "gptq", lambda t, c: t.update({f"{Q}.g_idx": torch.zeros(64, dtype=torch.int32)}), BadInput, "g_idx does not put 32",
    ),
    "zero points that should be alike": (
        "gptq symmetric", lambda t, c: c.update(checkpoint_format="gptq_v2"), BadInput, "qzeros holds 7",
    ),
    "target of no group": ("int4", lambda t, c: c.update(config_groups={}), BadInput, "no group"),
    "a method that nobody reads": ("gptq", lambda t, c: c.update(quant_method="aqlm"), Unsupported, "awq, compressed-tensors"),
    "3 bits": ("gptq", lambda t, c: c.update(bits=3), Unsupported, "bits 3"),
    "another layout of GPTQ": ("gptq", lambda t, c: c.update(checkpoint_format="marlin"), Unsupported, "marlin"),
    "GPTQ of several sizes": ("gptq", lambda t, c: c.update(dynamic={"+:.*": {"bits": 8}}), Unsupported, r"\+:"),
    "another layout of AWQ": ("awq", lambda t, c: c.update(version="gemv"), Unsupported, "gemv"),
    "groups of 48": ("gptq", lambda t, c: c.update(group_size=48), Unsupported, "int4:48:asym"),
    "blocks of another size": ("fp8", lambda t, c: c.update(weight_block_size=[64, 64]), Unsupported, "fp8:64x64"),
    "sparse": ("int4", lambda t, c: c.update(sparsity_config={"format": "sparse-24-bitmask"}), Unsupported, "sparse-24"),
    "rotated": ("int4", lambda t, c: c.update(transform_config={"config_groups": {"R1": {}}}), Unsupported, "rotated"),
    "packed floats": (
        "int4", lambda t, c: c["config_groups"]["group_0"]["weights"].update(type="float"), Unsupported, "type float 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_said(pairs, tmp_path, case):
    scheme, change, error, message = REFUSED[case]
    directory = made.changed(pairs(scheme).quantised, tmp_path / "other", change)
    with pytest.raises(error, match=message) as caught:
        bound(directory)
    assert caught.value.where and caught.value.fix
