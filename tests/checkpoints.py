"""Tiny seeded random checkpoints of every tested family, as transformers writes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

HIDDEN, WIDTH, VOCABULARY = 64, 48, 128
LAYERS = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = LAYERS | {
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
BANK = {"num_experts_per_tok": 2, "intermediate_size": WIDTH}
BANK_AMONG_DENSE = {"num_experts_per_tok": 2, "moe_intermediate_size": WIDTH, "intermediate_size": 96}
SHARED = {"n_shared_experts": 1, "first_k_dense_replace": 1}
MULTIPLIERS = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1, "logits_scaling": 6.0}
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 32.0, "original_max_position_embeddings": 8}
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}
IMAGE_TOKENS = {"image_token_id": 120, "image_start_token_id": 121, "image_end_token_id": 122}
VIDEO_TOKENS = {"video_token_id": 123, "video_start_token_id": 124, "video_end_token_id": 125}
SMALL_VISION = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32}
SAID_BY_NOBODY = {"<image>": 4} | {f"IMGIMG{letter}Z": 40 + i for i, letter in enumerate("ABCDEFGHIJ")}
SMALL_VQ = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "resolution": 16, "num_embeddings": 16}
CODEBOOK = {"embed_dim": 32, "latent_channels": 32}
CLIP_TEXT = LAYERS | {
    "intermediate_size": 96, "vocab_size": VOCABULARY, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
PATCHES = LAYERS | {"intermediate_size": 96, "image_size": 32, "patch_size": 8}
GROUPS = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}


@dataclass(frozen=True)
class Family:
    """How a family's config class spells a tiny model; `experts` is its word for E, none for a dense model.

    E is of all `pools` together, where each modality has one of its own. With `around`, the fields of the config
    beside that of the text, `fields` are those of the text.
    """

    config_class: str
    fields: dict[str, Any]
    experts: str = ""
    task: str = "AutoModelForCausalLM"
    pools: int = 1
    around: dict[str, Any] | None = None


FAMILIES = {
    "mixtral": Family("MixtralConfig", TEXT | BANK, "num_local_experts"),
    "qwen2_moe": Family("Qwen2MoeConfig", TEXT | BANK_AMONG_DENSE | {"shared_expert_intermediate_size": 80}, "num_experts"),
    "qwen3_moe": Family("Qwen3MoeConfig", TEXT | BANK_AMONG_DENSE | {"head_dim": 16, "norm_topk_prob": True}, "num_experts"),
    "olmoe": Family("OlmoeConfig", TEXT | BANK, "num_experts"),
    "granitemoe": Family("GraniteMoeConfig", TEXT | BANK | MULTIPLIERS, "num_local_experts"),
    "phimoe": Family("PhimoeConfig", TEXT | BANK, "num_local_experts"),
    "gpt_oss": Family("GptOssConfig", TEXT | BANK | WINDOW | {"head_dim": 16, "rope_parameters": YARN}, "num_local_experts"),
    "deepseek_v3": Family(
        "DeepseekV3Config", TEXT | BANK_AMONG_DENSE | SHARED | LATENT | GROUPS | {"num_key_value_heads": 4}, "n_routed_experts"
    ),
    "glm4_moe": Family(
        "Glm4MoeConfig", TEXT | BANK_AMONG_DENSE | SHARED | {"head_dim": 16, "n_group": 1, "topk_group": 1}, "n_routed_experts"
    ),
    "ernie4_5_moe": Family(
        "Ernie4_5_MoeConfig",
        TEXT | {"moe_k": 2, "moe_intermediate_size": WIDTH, "intermediate_size": 96, "moe_num_shared_experts": 1},
        "moe_num_experts",
    ),
    "ernie4_5_vl_moe": Family(
        "Ernie4_5_VLMoeConfig",
        TEXT
        | {"moe_k": 2, "moe_intermediate_size": [WIDTH, 32], "intermediate_size": 96, "moe_num_shared_experts": 1}
        | {"rope_parameters": MROPE},
        "moe_num_experts",
        task="AutoModelForImageTextToText",
        pools=2,
        around={"vision_config": SMALL_VISION} | IMAGE_TOKENS | VIDEO_TOKENS,
    ),
    "llama": Family("LlamaConfig", TEXT | {"intermediate_size": 96}),
    "qwen3": Family("Qwen3Config", TEXT | {"intermediate_size": 96, "head_dim": 16}),
    "chameleon": Family(
        "ChameleonConfig",
        TEXT | {"intermediate_size": 96, "vocabulary_map": SAID_BY_NOBODY, "vq_config": SMALL_VQ | CODEBOOK},
        task="AutoModelForImageTextToText",
    ),
    "bert": Family(
        "BertConfig",
        LAYERS | {"intermediate_size": 96, "vocab_size": VOCABULARY, "max_position_embeddings": 64},
        task="AutoModel",
    ),
    "vit": Family("ViTConfig", PATCHES, task="AutoModel"),
    "clip_text_model": Family("CLIPTextConfig", CLIP_TEXT | {"eos_token_id": 3}, task="AutoModel"),
    "clip_vision_model": Family("CLIPVisionConfig", PATCHES, task="AutoModel"),
    "clip": Family("CLIPConfig", CLIP_TEXT, task="AutoModel", around={"vision_config": PATCHES, "projection_dim": 40}),
}
MIXTURES = [name for name, family in FAMILIES.items() if family.experts]


def config(family: str, experts: int = 8, **changes: Any) -> Any:
    """The config of a tiny model of `family` with E experts; `changes` are in the family's own words."""
    known = FAMILIES[family]
    counted = {known.experts: experts // known.pools} if known.experts else {}
    fields = known.fields | counted | changes
    whole = fields if known.around is None else {"text_config": fields} | known.around
    return getattr(transformers, known.config_class)(**whole)


def make(family: str, directory: Path, dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB", **changes: Any) -> Path:
    """Write a checkpoint of `config(family, **changes)` to `directory`, with the same weights every time."""
    torch.manual_seed(0)
    model = getattr(transformers, FAMILIES[family].task).from_config(config(family, **changes))
    _randomise(model)
    model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    return directory


def _randomise(model: nn.Module) -> None:
    """Weights wide enough that routing is decisive, and no bias, norm or sink whose loss would go unseen."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.15)
        else:
            nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.1)
    for name, buffer in model.named_buffers():
        if name.endswith("correction_bias"):
            nn.init.normal_(buffer, std=0.1)
