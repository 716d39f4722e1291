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
    "ernie4_5_moe": "ERNIE 4.5: softmax with a bias that chooses, shared experts",
    "ernie4_5_vl_moe": "ERNIE 4.5 VL (text decoder): experts of text and of images, one router and one bank",
    "llama": "Llama (dense)",
    "qwen3": "Qwen3 (dense)",
    "chameleon": "Chameleon (text decoder, dense): image tokens are ids of the vocabulary",
    "bert": "BERT (dense encoder)",
    "vit": "ViT (dense vision)",
    "clip_text_model": "CLIP's text tower (dense encoder)",
    "clip_vision_model": "CLIP's image tower (dense vision)",
    "clip": "CLIP (dense), both towers, as many texts and images as one likes",
}
