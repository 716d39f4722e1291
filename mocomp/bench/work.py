"""What a run cannot do without, counted: operations of the original, and bytes of weights and of the cache.

Operations are those of matrix products, convolutions and attention (all scores, masked ones as well), two for a multiplication
and an addition, of the model run without data; of a mixture those of the K experts of each token. Bytes are those of weights
that are read at all: all that every token needs, rows of a table of embeddings, and the experts that some token comes to; and
the cache of the past. What is written, and activations, are left out.

Dimension letters: T tokens, H hidden, F expert width, E experts, K chosen, B batch, N query heads, S queries, P keys, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch.utils.flop_counter import FlopCounterMode

from mocomp.bench.points import Point
from mocomp.ir.ops import experts as _experts  # noqa: F401 - registers the ops
from mocomp.ir.specs import spell
from mocomp.lowering.onnx_session import MODEL, load
from mocomp.models.huggingface import build
from mocomp.models.interface import Interface
from mocomp.models.modality_blocks import mixtures
from mocomp.models.source import Source
from mocomp.nn.mixture import Experts
from mocomp.nn.model import empty
from mocomp.targets import Mixture


@dataclass(frozen=True)
class Bank:
    """The experts of a layer: E of them, K chosen per token, bytes in all."""

    layer: str
    experts: int
    chosen: int
    nbytes: int

    def read(self, tokens: int, distinct: int | None) -> int:
        """Bytes of the experts that tokens come to: of so many, or of as many as random routing reaches, E(1-(1-K/E)^T)."""
        expected = self.experts * (1 - (1 - self.chosen / self.experts) ** tokens)
        return int(self.nbytes * (expected if distinct is None else distinct) / self.experts)


@dataclass
class Weights:
    """Bytes of weights: what every run reads, a row of each table that is looked up, and the banks of experts."""

    always: int = 0
    rows: int = 0
    banks: list[Bank] = field(default_factory=list)

    def read(self, tokens: int, distinct: dict[str, int]) -> int:
        """Bytes that a run over so many tokens reads; `distinct` are the experts that they come to, where that is known."""
        return self.always + tokens * self.rows + sum(bank.read(tokens, distinct.get(bank.layer)) for bank in self.banks)

    @property
    def total(self) -> int:
        """Bytes without the tables that are looked up."""
        return self.always + sum(bank.nbytes for bank in self.banks)


def cache_bytes(interface: Interface, point: Point) -> int:
    """Keys and values of the past, float32."""
    return 4 * point.batch * point.past * sum(heads * (key + value) for heads, key, value in interface.past)


def of_graph(directory: Path, mixtures: list[Mixture]) -> Weights | None:
    """The weights of a model.onnx as it stores them, None for an artifact without one; `mixtures` is where its experts are."""
    if not (directory / MODEL).exists():
        return None
    graph = load(directory).graph
    weights, inside = Weights(), set()
    nodes = {node.outputs[0].name: node for node in graph}
    for mixture in mixtures:
        held = [v for v in nodes[mixture.y].inputs if v is not None and v.name in graph.initializers]
        first = next(value.shape for value in held if value.shape is not None and len(value.shape) == 3)
        weights.banks.append(Bank(mixture.layer, first.numpy()[0], mixture.k, sum(map(_nbytes, held))))
        inside |= {value.name for value in held}
    for name, value in graph.initializers.items():
        if name in inside:
            continue
        if _looked_up(value) and value.shape is not None:
            weights.rows += _nbytes(value) // value.shape.numpy()[0]
        else:
            weights.always += _nbytes(value)
    return weights


def _looked_up(value: ir.Value) -> bool:
    """Whether an initializer is a table of which rows are gathered, and nothing else."""
    uses = value.uses()
    return bool(uses) and all(use.node.op_type == "Gather" and use.idx == 0 for use in uses)


def _nbytes(value: ir.Value) -> int:
    return value.const_value.nbytes if value.const_value is not None else 0


class Counter:
    """The original without data: counts its operations at any point, and its weights in float32.

    Raises Unsupported for a model that mocomp cannot build.
    """

    def __init__(self, source: Source, interface: Interface):
        self.interface = interface
        self.model = _hollow(source)

    def flop(self, point: Point) -> int:
        """Operations of a run."""
        from transformers import DynamicCache

        with torch.device("meta"):
            made: dict[str, Any] = self.interface.tensors(point.batch, point.sequence, point.past)
        made.pop("attention_mask", None)  # some classes look at its values, and it changes nothing here
        if self.interface.past:
            cache = DynamicCache(config=self.model.config)
            for i in range(len(self.interface.past)):
                cache.update(made.pop(f"past_key_values.{i}.key"), made.pop(f"past_key_values.{i}.value"), i)
            made |= {"past_key_values": cache, "use_cache": True}
        counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        with torch.no_grad(), counter:
            self.model(**made)
        return counter.get_total_flops()

    def weights(self, chosen: dict[str, int], usual: int | None) -> Weights:
        """The float32 weights; `chosen` is K of each mixture by its layer, `usual` that of others, E where it is None."""
        banks, inside = [], set()
        stacks = {**mixtures(self.model), **{n: [m] for n, m in self.model.named_modules() if isinstance(m, Experts)}}
        for name, stack in stacks.items():
            held = [p for module in stack for p in module.parameters()]
            experts = sum(module.num_experts for module in stack)
            banks.append(Bank(name, experts, chosen.get(name, usual or experts), 4 * sum(p.numel() for p in held)))
            inside |= {id(p) for p in held}
        rest = {id(p): p for p in self.model.parameters() if id(p) not in inside}
        rows = 0
        for module in self.model.modules():
            if isinstance(module, torch.nn.Embedding) and not _is_head(self.model, module.weight):
                rest.pop(id(module.weight), None)
                rows += 4 * module.weight.shape[1]
        return Weights(4 * sum(p.numel() for p in rest.values()), rows, banks)


def _is_head(model: Any, weight: torch.Tensor) -> bool:
    """Whether the output layer reads all of a table."""
    return any(isinstance(m, torch.nn.Linear) and m.weight is weight for m in model.modules())


def _hollow(source: Source) -> Any:
    """The model on the meta device, its experts as one op that says how much it computes."""
    if source.plan is None:
        return build(source).to("meta")
    model = empty(source).eval()
    for module in model.modules():
        if isinstance(module, Experts):
            module.forward = _as_op(module)  # type: ignore[method-assign]
    return model.to("meta")


def _as_op(module: Experts) -> Callable[..., torch.Tensor]:
    def forward(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        parts = (module.w_in, module.b_in, module.w_out, module.b_out)
        return torch.ops.mocomp.experts(x, ids, weights, *parts, spell(module.kind))

    return forward


def _of_experts(x: Any, ids: Any, weights: Any, w_in: Any, b_in: Any, w_out: Any, *rest: Any, out_shape: Any = None) -> int:
    """x [T, H], ids [T, K], w_in [E, F or 2F, H], w_out [E, H, F] -> the products of the chosen experts."""
    return 2 * ids[0] * ids[1] * (w_in[1] * w_in[2] + w_out[1] * w_out[2])


def _of_attention(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None) -> int:
    """q [B, N, S, D], k [B, J, P, D], v [B, J, P, D'] -> both products."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


FORMULAS = {torch.ops.mocomp.experts: _of_experts, torch.ops.mocomp.attention: _of_attention}
