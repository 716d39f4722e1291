"""What ONNX Runtime's MoE and QMoE take, and what they silently compute otherwise than asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from mocomp.capability import Gap
from mocomp.capability.graphs import at, input_of, integer, sizes_of, text
from mocomp.capability.rules import Rules
from mocomp.capability.tables import table

LIMITS = table("onnxruntime")["mixtures"]["cuda"]


@dataclass(frozen=True)
class Asked:
    """Whose operators: those of the CPU provider, or of the CUDA provider."""

    device: str


rule: Rules[Asked] = Rules()


def on_cpu(asked: Asked) -> bool:
    """Whether the CPU provider's operators are meant."""
    return asked.device == "cpu"


def on_cuda(asked: Asked) -> bool:
    """Whether the CUDA provider's operators are meant."""
    return asked.device == "cuda"


@dataclass(frozen=True)
class Bank:
    """The sizes of a node's experts as far as they are known: w_in [E, F or 2F, H], w_out [E, H, F]."""

    experts: int
    hidden: int
    width: int

    @classmethod
    def of(cls, node: ir.Node) -> Bank | None:
        """Packed weights have fewer columns than they stand for: H and F are rows of the other weight."""
        second = sizes_of(input_of(node, 4 if node.op_type == "MoE" else 5))
        first = sizes_of(input_of(node, 2))
        if first is None or second is None or len(first) != 3 or len(second) != 3:
            return None
        fused = text(node, "activation_type", "relu") == "swiglu" and integer(node, "swiglu_fusion") > 0
        return cls(first[0], second[1], first[1] // 2 if fused else first[1])


@rule("MoE", "QMoE")
def third_weight(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """fc3, the up projection apart."""
    if input_of(node, 6 if node.op_type == "MoE" else 8) is None:
        return
    fused = "interleave it with fc1: swiglu_fusion=1"
    if asked.device == "cpu":
        yield at(node, f"fc3 is given, and {node.op_type} of the CPU provider does not compute it", fused)
    elif node.op_type == "QMoE" and text(node, "quant_type", "int") != "fp8":
        yield at(node, "fc3 is given, and QMoE of the CUDA provider takes it only of block-scaled fp8", fused)
    elif node.op_type == "MoE":
        yield at(node, "fc1 and fc3 are put together at every run, which takes memory and time", fused, blocks=False)


@rule("MoE", "QMoE")
def interleaved(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """swiglu_fusion=1 means the same everywhere."""
    fusion = integer(node, "swiglu_fusion")
    if text(node, "activation_type", "relu") != "swiglu" or fusion == 1:
        return
    instead = "interleave gate and up rows: swiglu_fusion=1"
    if asked.device == "cpu":
        yield at(node, f"swiglu_fusion {fusion}, and the CPU provider takes interleaved rows alone", instead)
    elif fusion == 0 and input_of(node, 6 if node.op_type == "MoE" else 8) is None:
        yield at(node, "swiglu_fusion is not said, and interleaved rows are assumed", instead, blocks=False)


@rule("MoE", "QMoE")
def sparse_mixer(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """Another router: silently not there on the CPU, for few sizes on CUDA."""
    if not integer(node, "use_sparse_mixer"):
        return
    instead = "route before it, and give log weights"
    experts = _router_width(node)
    if asked.device == "cpu":
        yield at(node, "use_sparse_mixer is silently ignored by the CPU provider", instead)
    elif integer(node, "k", 1) != 2 or (experts is not None and experts not in LIMITS["sparse_mixer_experts"]):
        yield at(node, "use_sparse_mixer takes k=2 and 8 or 16 experts", instead)


@rule("MoE", when=on_cpu)
def sum_is_divided_out(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """Reproduced in tests/targets/test_onnxruntime_moe.py."""
    if not integer(node, "normalize_routing_weights"):
        why = "normalize_routing_weights=0 gives wrong numbers where the output is written over the input (onnxruntime#33866)"
        yield at(node, why, "set it to 1, and multiply by the sum of the weights")


@rule("QMoE", when=on_cpu)
def sum_is_always_divided_out(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """Unless router_weights are given, the softmax is over the chosen."""
    if not integer(node, "normalize_routing_weights") and input_of(node, 14) is None:
        why = "normalize_routing_weights=0 is silently ignored by the CPU provider"
        yield at(node, why, "set it to 1, or give router_weights")


@rule("QMoE")
def packing_is_said(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """The default says that weights are packed for the provider already: right on the CPU, garbage on CUDA."""
    packed = integer(node, "weights_prepacked", -1)
    if packed != 0:
        yield at(node, f"weights_prepacked is {packed}, by which CUDA takes plain weights for its own layout", "set it to 0")


@rule("QMoE")
def kind_of_weights(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """Integers on the CPU; on CUDA also floats of 4 bits, with a scale of scales."""
    kind = text(node, "quant_type", "int")
    if kind == "int":
        return
    if asked.device == "cpu":
        yield at(node, f"quant_type {kind} is silently ignored by the CPU provider, which computes int", "--device cuda")
    elif kind in LIMITS["missing_quant_types"]:
        why = f"quant_type {kind} wants a build with USE_FP8_QMOE, which the wheel is most likely not"
        yield at(node, why, "--quantize int8 or nvfp4")
    elif kind in LIMITS["float_quant_types"] and (input_of(node, 15) is None or input_of(node, 16) is None):
        yield at(node, f"quant_type {kind} without both global scales", "give fc1_global_scale and fc2_global_scale")
    elif kind == "nvfp4" and integer(node, "block_size") not in (0, 16):
        yield at(node, f"nvfp4 in blocks of {integer(node, 'block_size')}, and they are of 16", "block_size=16")


@rule("QMoE")
def width_of_integers(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """2, 4 or 8 bits."""
    for name in ("expert_weight_bits", "fc1_expert_weight_bits", "fc2_expert_weight_bits", "fc3_expert_weight_bits"):
        if integer(node, name, 4) not in (-1, 0, 2, 4, 8):
            yield at(node, f"{name} {integer(node, name)}: there are 2, 4 and 8", "--quantize int4")


@rule("QMoE", when=on_cuda)
def blocks_of_integers(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """Zero points need blocks, and so do two bits."""
    if text(node, "quant_type", "int") != "int":
        return
    block, bits = integer(node, "block_size"), integer(node, "expert_weight_bits", 4)
    if any(input_of(node, index) is not None for index in (11, 12, 13)) and block < LIMITS["asymmetric_block"]:
        why = f"zero points with {f'blocks of {block}' if block else 'a scale for each row'}"
        yield at(node, f"{why}; CUDA takes them in blocks of {LIMITS['asymmetric_block']} or more", "--quantize int4:32:asym")
    lowest, highest = LIMITS["narrow_block"]
    if bits == 2 and not lowest <= block <= highest:
        yield at(node, f"2 bits in blocks of {block}; CUDA takes blocks of {lowest} to {highest}", "--quantize int2:64")
    bank = Bank.of(node)
    if bits == 2 and block and bank is not None and (bank.hidden % block or bank.width % block):
        yield at(node, f"blocks of {block} do not divide H={bank.hidden} and F={bank.width}", "a smaller --group-size")


@rule("MoE", "QMoE", when=on_cuda)
def sizes_of_bank(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """Rows of whole 16 bytes, and not more experts than the fast router kernels know."""
    bank = Bank.of(node)
    if bank is None:
        return
    x = input_of(node, 0)
    element = (x.dtype.bitwidth // 8) if x is not None and x.dtype is not None else 2
    step = LIMITS["alignment_bytes"] // element
    for letter, size in (("H", bank.hidden), ("F", bank.width)):
        if size < LIMITS["smallest"] or size % step:
            why = f"{letter} is {size}, and must be a multiple of {step}, {LIMITS['smallest']} or more"
            yield at(node, why, "--target onnx or tensorrt, which pad nothing")
    k = integer(node, "k", 1)
    if k > bank.experts:
        yield at(node, f"k is {k}, of {bank.experts} experts", "a smaller k")
    if k > LIMITS["chosen"] or bank.experts > LIMITS["experts"]:
        why = f"k is {k} of {bank.experts} experts; its fast routing is for up to {LIMITS['chosen']} of {LIMITS['experts']}"
        yield at(node, why, "it routes by slower kernels", blocks=False)


def _router_width(node: ir.Node) -> int | None:
    logits = input_of(node, 1)
    last = logits.shape[-1] if logits is not None and logits.shape is not None else None
    return last if isinstance(last, int) else None
