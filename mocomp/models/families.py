"""The families of transformers on which mocomp is tested; any other is tried the same way, and proven or refused."""

from __future__ import annotations

FAMILIES = {
    "mixtral": "Mixtral: softmax top-k, normalised",
    "qwen2_moe": "Qwen2-MoE: softmax top-k, shared expert with its gate",
    "qwen3_moe": "Qwen3-MoE: softmax top-k, normalised or not",
    "olmoe": "OLMoE: softmax top-k, not normalised",
    "granitemoe": "Granite-MoE: top-k, then softmax",
    "phimoe": "Phi-3.5-MoE: sparse mixer",
    "gpt_oss": "gpt-oss: biases, clamped SwiGLU with slope 1.702, attention sinks, sliding window",
    "deepseek_v3": "DeepSeek-V3: sigmoid with bias, groups, scaling, shared experts, latent attention",
    "glm4_moe": "GLM-4.5: sigmoid with bias, shared experts",
    "llama": "Llama (dense)",
    "qwen3": "Qwen3 (dense)",
    "bert": "BERT (dense encoder)",
    "vit": "ViT (dense vision)",
}
