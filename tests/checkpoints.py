"""Tiny seeded random checkpoints of every tested family, as transformers writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

HIDDEN, WIDTH, VOCABULARY = 64, 48, 128
COMMON = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = COMMON | {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 256}
TOP2 = {"num_experts_per_tok": 2}
DEEPSEEK_ATTENTION = {
    "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How a family's config class spells a tiny model; `experts` is its word for E, none for a dense model."""

    config: str
    fields: dict[str, Any]
    experts: str = ""
    base: bool = False
    special: dict[str, Any] = field(default_factory=dict)

    def model(self, experts: int, changes: dict[str, Any]) -> Any:
        """The model with E experts and random weights, in float32; `changes` are to its config."""
        counted = {self.experts: experts} if self.experts else {}
        config = getattr(transformers, self.config)(**{**self.fields, **counted, **changes})
        auto = transformers.AutoModel if self.base else transformers.AutoModelForCausalLM
        return auto.from_config(config).eval()


FAMILIES = {
    "mixtral": Family("MixtralConfig", {**TEXT, **TOP2, "intermediate_size": WIDTH}, "num_local_experts"),
    "qwen2_moe": Family("Qwen2MoeConfig", {**TEXT, **TOP2, "intermediate_size": 96, "moe_intermediate_size": WIDTH, "shared_expert_intermediate_size": 80}, "num_experts"),
    "qwen3_moe": Family("Qwen3MoeConfig", {**TEXT, **TOP2, "head_dim": 16, "intermediate_size": 96, "moe_intermediate_size": WIDTH, "norm_topk_prob": True}, "num_experts"),
    "olmoe": Family("OlmoeConfig", {**TEXT, **TOP2, "intermediate_size": WIDTH}, "num_experts"),
    "granitemoe": Family("GraniteMoeConfig", {**TEXT, **TOP2, "intermediate_size": WIDTH, "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1, "logits_scaling": 6.0}, "num_local_experts"),
    "phimoe": Family("PhimoeConfig", {**TEXT, **TOP2, "intermediate_size": WIDTH}, "num_local_experts"),
    "gpt_oss": Family("GptOssConfig", {**TEXT, **TOP2, "head_dim": 16, "intermediate_size": WIDTH, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}, "num_local_experts"),
    "deepseek_v3": Family("DeepseekV3Config", {**TEXT, **TOP2, **DEEPSEEK_ATTENTION, "intermediate_size": 96, "moe_intermediate_size": WIDTH, "n_group": 4, "topk_group": 2, "n_shared_experts": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5}, "n_routed_experts"),
    "glm4_moe": Family("Glm4MoeConfig", {**TEXT, **TOP2, "head_dim": 16, "intermediate_size": 96, "moe_intermediate_size": WIDTH, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1}, "n_routed_experts"),
    "llama": Family("LlamaConfig", {**TEXT, "intermediate_size": 96}),
    "qwen3": Family("Qwen3Config", {**TEXT, "head_dim": 16, "intermediate_size": 96}),
    "bert": Family("BertConfig", {**COMMON, "vocab_size": VOCABULARY, "intermediate_size": 96, "max_position_embeddings": 64}, base=True),
    "vit": Family("ViTConfig", {**COMMON, "intermediate_size": 96, "image_size": 32, "patch_size": 8}, base=True),
}  # fmt: skip
MIXTURES = tuple(name for name, family in FAMILIES.items() if family.experts)


def make(
    family: str, directory: Path, dtype: torch.dtype = torch.float32, experts: int = 8,
    max_shard_size: str = "1GB", **changes: Any,
) -> Path:  # fmt: skip
    """Write a checkpoint of `family` to `directory`, with `changes` to its config; the same one every time."""
    torch.manual_seed(0)
    model = FAMILIES[family].model(experts, changes)
    _randomise(model)
    model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    return directory


def _randomise(model: nn.Module) -> None:
    """Weights wide enough that routing is decisive; no bias, norm or sink that would not be missed."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.15)
        else:
            nn.init.normal_(parameter, mean=1.0 if "norm" in name and "bias" not in name else 0.0, std=0.1)
    for name, buffer in model.named_buffers():
        if "correction_bias" in name:
            nn.init.normal_(buffer, std=0.1)
