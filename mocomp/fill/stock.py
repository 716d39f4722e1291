"""Mixtures as classes of transformers have them, for a model that other tools read: AutoModelForCausalLM, vLLM.

A config is carried field by field: each field of the dense class stands in the mixture's class too, or is off, or the
model is refused. What is carried is proven like any other checkpoint, by running both.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mocomp.experts.glu import GLU
from mocomp.models.source import Source
from mocomp.plans.plan import MixturePlan, ModelPlan
from mocomp.weights import disk, recipes
from mocomp.weights.arithmetic import scaled
from mocomp.weights.recipes import Recipe

LAYER = r"model\.layers\.(\d+)\.mlp"
SMALLEST_SHARED = 8
"""Width of the shared expert, all zeros, of a class that must have one: eight devices can still divide it."""
OF_NO_WEIGHT_ON_THE_RESULT = {"pretraining_tp"}
"""Fields of dense classes that their code does not read."""
WINDOWS = {"sliding_window", "use_sliding_window", "layer_types", "max_window_layers"}
"""Fields that say which layers look how far back; classes say it in different ways."""


@dataclass(frozen=True)
class StockClass:
    """A family of transformers with mixtures, as its checkpoints on the hub spell it."""

    family: str
    block: str
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"

    @property
    def model_class(self) -> str:
        return f"{self.family}ForCausalLM"

    @property
    def fields(self) -> set[str]:
        """The fields that its config declares, besides those of every config."""
        return _fields(self._config_class)

    @property
    def _config_class(self) -> Any:
        import transformers

        return getattr(transformers, f"{self.family}Config")

    def gaps(self, source: Source, plan: ModelPlan, types: set[torch.dtype]) -> list[str]:
        """Why this class cannot hold a model, stored in `types`, with these mixtures; nothing when it can."""
        return [*self._gaps_of_config(source, plan), *self._gaps_of_mixtures(plan.mixtures[0], types)]

    def _gaps_of_config(self, source: Source, plan: ModelPlan) -> list[str]:
        dense, declared = source.config, self.fields
        known = declared | WINDOWS | OF_NO_WEIGHT_ON_THE_RESULT | {"head_dim"}  # head_dim is read where it is not declared
        lost = {name: getattr(dense, name) for name in sorted(_fields(type(dense)) - known)}
        gaps = [f"it has no {name}, which is {value}" for name, value in lost.items() if value not in (None, False)]
        if "layer_types" not in declared and len(set(_windows(dense))) > 1:
            gaps.append("it has one sliding window for all layers, or none")
        left = _dense_layers(dense, plan)
        if left and "mlp_only_layers" not in declared:
            gaps.append(f"all of its layers have mixtures, and {_listed(left)} would have none")
        return gaps

    def _gaps_of_mixtures(self, plan: MixturePlan, types: set[torch.dtype]) -> list[str]:
        form, gaps = plan.routing.as_softmax(), []
        if form is not None and not form.over_chosen and "norm_topk_prob" not in self.fields:
            gaps.append("its router divides the weights by their sum")
        if form is not None and math.frexp(form.scale)[0] != 0.5 and types != {torch.float32}:
            gaps.append(f"it has no factor on its weights, and {form.scale:g} cannot be put into weights of this type exactly")
        if plan.shared and not self._shares:
            gaps.append("it has no shared experts")
        return gaps

    @property
    def _shares(self) -> bool:
        return "shared_expert_intermediate_size" in self.fields

    def config(self, source: Source, plan: ModelPlan) -> Any:
        """The config of the mixture: what the dense one says, and what the plan says, under the names that this class has."""
        dense, mixture = source.config, plan.mixtures[0]
        form, windows = mixture.routing.as_softmax(), _windows(dense)
        assert form is not None
        widest = max((window for window in windows if window), default=None)
        said: dict[str, Any] = {
            "num_experts": mixture.experts,
            "num_local_experts": mixture.experts,
            "num_experts_per_tok": mixture.routing.k,
            "norm_topk_prob": form.over_chosen,
            "moe_intermediate_size": mixture.width,
            "shared_expert_intermediate_size": mixture.shared or SMALLEST_SHARED,
            "decoder_sparse_step": 1,
            "mlp_only_layers": _dense_layers(dense, plan),
            "qkv_bias": dense.model_type == "qwen2",
            "sliding_window": widest,
            "use_sliding_window": widest is not None,
            "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
        }
        if "moe_intermediate_size" not in self.fields:
            said["intermediate_size"] = mixture.width
        carried = {*(_fields(type(dense)) & self.fields), "head_dim", "dtype"} - said.keys()
        kept = {name: copy.deepcopy(getattr(dense, name)) for name in sorted(carried) if hasattr(dense, name)}
        made = self._config_class(**kept, **{name: value for name, value in said.items() if name in self.fields})
        made.architectures = [self.model_class]
        return made

    def write_config(self, directory: Path, source: Source, plan: ModelPlan) -> None:
        """The config.json that AutoModelForCausalLM reads."""
        disk.write_text(directory / "config.json", self.config(source, plan).to_json_string())

    def tensors(self, plan: MixturePlan, weights: dict[str, Recipe]) -> dict[str, Recipe]:
        """The weights of one mixture by the names of the hub, each expert for itself; a factor goes into their last product."""
        form = plan.routing.as_softmax()
        assert form is not None
        block = plan.enter.removesuffix("mlp") + self.block
        named = {f"{block}.gate.weight": weights["router.weight"]}
        for e in range(plan.experts):
            w_in, w_out = _expert(weights["experts.w_in"], e), _expert(weights["experts.w_out"], e)
            named |= self._glu(f"{block}.experts.{e}", w_in, scaled(w_out, form.scale))
        return named | (self._shared(block, plan, weights) if self._shares else {})

    def _shared(self, block: str, plan: MixturePlan, weights: dict[str, Recipe]) -> dict[str, Recipe]:
        """The expert of all tokens behind a gate of zeros, whose sigmoid is 1/2; so its last product is doubled."""
        h, dtype = plan.hidden, weights["router.weight"].dtype
        gate = {f"{block}.shared_expert_gate.weight": recipes.literal(torch.zeros(1, h, dtype=dtype))}
        if plan.shared:
            return gate | self._glu(f"{block}.shared_expert", weights["shared.w_in"], scaled(weights["shared.w_out"], 2.0))
        w_in, w_out = (torch.zeros(*shape, dtype=dtype) for shape in ((2 * SMALLEST_SHARED, h), (h, SMALLEST_SHARED)))
        return gate | self._glu(f"{block}.shared_expert", recipes.literal(w_in), recipes.literal(w_out))

    def _glu(self, name: str, w_in: Recipe, w_out: Recipe) -> dict[str, Recipe]:
        """w_in [2F, H], w_out [H, F]."""
        f = w_out.shape[1]
        return {
            f"{name}.{self.gate}.weight": recipes.slice_of(w_in, 0, 0, f),
            f"{name}.{self.up}.weight": recipes.slice_of(w_in, 0, f, 2 * f),
            f"{name}.{self.down}.weight": w_out,
        }


MIXTRAL = StockClass("Mixtral", "block_sparse_moe", "w1", "w3", "w2")
QWEN2_MOE, QWEN3_MOE = StockClass("Qwen2Moe", "mlp"), StockClass("Qwen3Moe", "mlp")
HOLDERS = {
    "llama": (MIXTRAL, QWEN2_MOE),
    "mistral": (MIXTRAL, QWEN2_MOE),
    "qwen2": (QWEN2_MOE,),
    "qwen3": (QWEN3_MOE,),
}
"""Which classes may hold the mixtures of a dense model, the plainest first.

Olmoe holds none of them: it divides queries and keys by their size over the width of all heads, which llama, mistral and
qwen2 do not do at all and qwen3 does head by head; no weights undo that.
"""


def find(source: Source, plan: ModelPlan, types: set[torch.dtype]) -> tuple[StockClass | None, list[str]]:
    """(the first class that can hold the model with these mixtures, why those that cannot do not)."""
    gaps = _gaps_of_any(source, plan)
    if gaps:
        return None, gaps
    for holder in HOLDERS[source.config.model_type]:
        missing = holder.gaps(source, plan, types)
        if not missing:
            return holder, []
        gaps += [f"{holder.model_class}: {gap}" for gap in missing]
    return None, gaps


def _gaps_of_any(source: Source, plan: ModelPlan) -> list[str]:
    """What no class of transformers here has."""
    if not plan.mixtures:
        return ["it has no mixtures"]
    first, kind, gaps = plan.mixtures[0], source.config.model_type, []
    if kind not in HOLDERS or not source.model_class.__name__.endswith("ForCausalLM"):
        gaps.append(
            f"no class with mixtures is known for {source.model_class.__name__}; for a causal language model of "
            f"{', '.join(HOLDERS)} there is one (OlmoeForCausalLM norms queries and keys as none of these does)"
        )
    if any(m.allowed() is not None for m in plan.mixtures):
        gaps.append("no class has groups of experts by modality")
    if plan.depths:
        gaps.append("no class has layers that a token may go past")
    if any(_shape(m) != _shape(first) for m in plan.mixtures):
        gaps.append("a class has the same number and width of experts, and the same router, in all layers")
    if any(m.replaces != "dense" or m.leave or not re.fullmatch(LAYER, m.enter) for m in plan.mixtures):
        gaps.append("mixtures do not stand in place of the feed-forward blocks of its layers")
    if first.kind != GLU(first.kind.activation):
        gaps.append("its experts are no plain gated linear units")
    if first.routing.as_softmax() is None or first.scoring != "linear" or first.correction or first.auxiliary:
        gaps.append(f"no class has a router such as {first.routing.name}, with all that this one reads")
    if first.in_bias or first.out_bias or first.router_bias:
        gaps.append("no class has biases in experts or router")
    return gaps


def _shape(plan: MixturePlan) -> tuple:
    return plan.experts, plan.width, plan.shared, plan.router, plan.expert, plan.scoring


def _fields(config_class: Any) -> set[str]:
    from transformers import PreTrainedConfig

    return {f.name for f in dataclasses.fields(config_class)} - {f.name for f in dataclasses.fields(PreTrainedConfig)}


def _windows(config: Any) -> list[int | None]:
    """How far back each layer looks, None for all the way."""
    window = getattr(config, "sliding_window", None) if "sliding_window" in _fields(type(config)) else None
    kinds = config.layer_types if "layer_types" in _fields(type(config)) else ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _dense_layers(config: Any, plan: ModelPlan) -> list[int]:
    """The layers that stay dense."""
    mixed = {int(match[1]) for m in plan.mixtures if (match := re.fullmatch(LAYER, m.enter))}
    return [layer for layer in range(config.num_hidden_layers) if layer not in mixed]


def _listed(layers: list[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def _expert(bank: Recipe, e: int) -> Recipe:
    """Expert e of a bank [E, ...]; where it is a stack, the part itself."""
    if isinstance(bank, recipes.Stack) and bank.dim == 0:
        return bank.parts[e]
    return recipes.reshape(recipes.slice_of(bank, 0, e, e + 1), bank.shape[1:])
