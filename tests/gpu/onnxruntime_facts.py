"""What is said of ONNX Runtime's mixture operators on CUDA, each statement with a probe; CPU outcomes where they are known.

    python -m tests.gpu.onnxruntime_facts cuda [facts.json]     # a table, and the same as JSON

Sources: documentation of the contrib operators (moe_qmoe.md) and kernels of ONNX Runtime 1.31, strings of its CUDA library.
The outcomes for CUDA are what these say, and not what was seen on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from tests.gpu.facts import Fact, outcome, run
from tests.gpu.mixture_graphs import Bank, float_qmoe, moe, qmoe
from tests.gpu.operator_facts import OPERATORS

HALF = {"cuda": "float16", "cpu": "float32"}


def _moe(fusion: int = 1, fc3: bool = False, dtype: str = "", means: int = 1, **sizes: int) -> Callable[[str], str]:
    """A MoE node in float16 on CUDA, told one layout while its rows are in that of `means`."""

    def probe(device: str) -> str:
        bank, kind = Bank(**sizes), dtype or HALF[device]
        model = moe(bank, kind, means, fc3, {} if fc3 else {"swiglu_fusion": fusion})
        return outcome(model, {"x": bank.x, "logits": bank.logits}, bank.expected(), device, kind)

    return probe


def _qmoe(
    bits: int = 4, block: int = 64, prepacked: int | None = 0, points: bool = False, **sizes: int
) -> Callable[[str], str]:
    def probe(device: str) -> str:
        bank = Bank(**sizes)
        model = qmoe(bank, HALF[device], bits, block, prepacked, points)
        return outcome(model, {"x": bank.x, "logits": bank.logits}, bank.expected(), device, _activations(device, bits))

    return probe


def _activations(device: str, bits: int) -> str:
    """The tolerance to take: on the CPU blocks of 8 and of 2 bits round activations to 8 bits."""
    return HALF[device] if device == "cuda" or bits == 4 else "bfloat16"


def _floats(kind: str) -> Callable[[str], str]:
    def probe(device: str) -> str:
        bank = Bank()
        model = float_qmoe(bank, HALF[device], kind)
        return outcome(model, {"x": bank.x, "logits": bank.logits}, bank.expected(), device, HALF[device])

    return probe


def _unnormalised(quantised: bool) -> Callable[[str], str]:
    """Weights are shares of the softmax over all experts when they are not divided by their sum."""

    def probe(device: str) -> str:
        bank, said = Bank(), {"normalize_routing_weights": 0}
        model = qmoe(bank, HALF[device], attributes=said) if quantised else moe(bank, HALF[device], attributes=said)
        return outcome(model, {"x": bank.x, "logits": bank.logits}, bank.expected(bank.weights(False)), device, HALF[device])

    return probe


def _masked(change: Callable[[Bank], None], quantised: bool = False) -> Callable[[str], str]:
    """Logits of -inf, put in by `change`."""

    def probe(device: str) -> str:
        bank = Bank(k=4)
        model = qmoe(bank, HALF[device]) if quantised else None
        change(bank)
        model = model or moe(bank, HALF[device])
        finite = Bank(k=4)
        for name in ("gate", "up", "down"):
            setattr(finite, name, np.nan_to_num(getattr(bank, name), posinf=0))
        finite.logits = bank.logits
        return outcome(model, {"x": bank.x, "logits": bank.logits}, finite.expected(), device, HALF[device])

    return probe


def _some(bank: Bank) -> None:
    bank.logits[:, :3] = -np.inf


def _too_many(bank: Bank) -> None:
    bank.logits[:, 2:] = -np.inf  # 2 are left, and k is 4


def _whole_row(bank: Bank) -> None:
    bank.logits[1] = -np.inf


def _poisoned(bank: Bank) -> None:
    _too_many(bank)
    bank.down[2:] = np.inf


def _given_weights(device: str) -> str:
    bank = Bank()
    model = qmoe(bank, HALF[device], router_weights=True, attributes={"normalize_routing_weights": 0})
    given = np.random.default_rng(3).random(bank.logits.shape, np.float32)
    feeds = {"x": bank.x, "logits": bank.logits, "router_weights": given}
    return outcome(model, feeds, bank.expected(np.where(bank.weights() > 0, given, 0)), device, HALF[device])


def _limited(device: str) -> str:
    bank = Bank()
    bank.gate, bank.up = 4 * bank.gate, 4 * bank.up
    said = {"activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 3.0}
    expected = bank.expected(alpha=1.702, beta=1.0, limit=3.0)
    model = moe(bank, HALF[device], attributes=said)
    return outcome(model, {"x": bank.x, "logits": bank.logits}, expected, device, HALF[device])


def _ties(device: str) -> str:
    bank = Bank(k=1)
    bank.logits[:] = 0
    model = moe(bank, HALF[device])
    return outcome(model, {"x": bank.x, "logits": bank.logits}, bank.expected(), device, HALF[device])


FACTS = [
    Fact("MoE float32", "runs", _moe(dtype="float32"), "right", "right"),
    Fact("MoE float16", "runs; on the CPU between casts to float32", _moe(dtype="float16"), "right", "right"),
    Fact("MoE bfloat16", "runs; not on the CPU", _moe(dtype="bfloat16"), "right", "refused"),
    Fact("MoE fusion 2, concatenated rows", "accepted; the CPU refuses it", _moe(2, means=2), "right", "refused"),
    Fact("MoE fusion 0, interleaved rows", "taken for interleaved", _moe(0, means=1), "right", "refused"),
    Fact("MoE with fc3", "accepted, and joined at run time", _moe(fc3=True), "right", "refused"),
    Fact("MoE normalize 0", "softmax over all experts", _unnormalised(False), "right", "right"),
    Fact("QMoE normalize 0", "honoured on CUDA, not on the CPU", _unnormalised(True), "right", "wrong"),
    Fact("QMoE router_weights", "mixing weights of their own", _given_weights, "right", "right"),
    Fact("MoE SwiGLU alpha, beta, limit", "honoured since 1.28", _limited, "right", "right"),
    Fact("MoE ties", "the lower index; on the CPU another", _ties, "right", "wrong"),
    Fact("MoE some -inf", "weight 0", _masked(_some), "right", "right"),
    Fact("MoE a row of -inf", "output 0", _masked(_whole_row), "right", "right"),
    Fact("MoE fewer experts left than k", "the others get weight 0", _masked(_too_many), "right", "right"),
    Fact("MoE masked experts hold inf", "0 * inf poisons the token", _masked(_poisoned), "not finite", ""),
    Fact("QMoE some -inf", "weight 0", _masked(_some, True), "right", "right"),
    Fact("QMoE a row of -inf", "output 0", _masked(_whole_row, True), "right", "right"),
    Fact("QMoE fewer experts left than k", "the others get weight 0", _masked(_too_many, True), "right", "right"),
    Fact("MoE no token", "runs", _moe(tokens=0), "right", "right"),
    Fact("MoE one token", "runs", _moe(tokens=1), "right", "right"),
    Fact("MoE 1056 experts", "a slower router kernel", _moe(experts=1056, hidden=32, width=16), "right", "right"),
    Fact("MoE k = 72 of 80", "a slower router kernel", _moe(experts=80, k=72, hidden=32, width=16), "right", "right"),
    Fact("MoE width 20", "multiples of 8 in float16", _moe(hidden=32, width=20), "refused", "right"),
    Fact("QMoE 4 bits, prepacked 0", "raw weights", _qmoe(), "right", "right"),
    Fact("QMoE 4 bits, prepacked unsaid", "taken for the provider's own layout", _qmoe(prepacked=None), "wrong", "right"),
    *(
        Fact(f"QMoE {bits} bits, block {block}", "kernels for 64 and 128; others unsure", _qmoe(bits, block), "", "right")
        for bits in (4, 8)
        for block in (16, 32, 64, 128, 0)
    ),
    Fact("QMoE 2 bits, block 64", "needs prepacked 0", _qmoe(2, 64), "right", ""),
    Fact("QMoE 4 bits, zero points, block 64", "from blocks of 32", _qmoe(points=True), "right", "right"),
    Fact("QMoE 4 bits, zero points, rows", "no zero points without blocks", _qmoe(block=0, points=True), "refused", "right"),
    Fact("QMoE 4 bits, width 48, block 16", "multiples of a limit", _qmoe(block=16, width=48), "", "right"),
    Fact("QMoE nvfp4", "in the wheel", _floats("nvfp4"), "right", ""),
    Fact("QMoE mxfp4", "in the wheel", _floats("fp4"), "right", ""),
    Fact("QMoE fp8", "not built into the wheel", _floats("fp8"), "refused", ""),
    Fact("QMoE wfp4afp8", "not built into the wheel", _floats("wfp4afp8"), "refused", ""),
    *OPERATORS,
]


def main(device: str, output: str = "") -> int:
    """See them all. On CUDA torch brings the libraries."""
    if device == "cuda":
        import onnxruntime
        import torch  # noqa: F401

        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
    return run(FACTS, device, output)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
