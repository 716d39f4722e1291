"""Seeded random Qwen3-MoE checkpoints in the layout of Hugging Face, written some rows of a tensor at a time."""

import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

TOGETHER = 1 << 20
"""Numbers that are drawn at once: what this process holds at its peak counts for the processes that it starts as well."""


@dataclass(frozen=True)
class Layout:
    """The dimensions of a Qwen3-MoE model; the default is the one that mocomp's bars are stated for."""

    hidden: int = 512
    expert_width: int = 256
    experts: int = 128
    chosen: int = 8
    layers: int = 4
    vocabulary: int = 4096
    heads: int = 8
    kv_heads: int = 4
    head_width: int = 64
    dtype: str = "float32"
    """Or bfloat16."""

    @property
    def bytes_each(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def nbytes(self) -> int:
        return self.bytes_each * self.parameters

    @property
    def name(self) -> str:
        return f"H{self.hidden}-I{self.expert_width}-E{self.experts}-k{self.chosen}-L{self.layers}"

    @property
    def parameters(self) -> int:
        return sum(int(np.prod(shape)) for _, shape in self.tensors())

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor, as in a Qwen3-MoE checkpoint."""
        hidden, width = self.hidden, self.expert_width
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        yield "model.embed_tokens.weight", (self.vocabulary, hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            yield f"{prefix}.input_layernorm.weight", (hidden,)
            yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
            yield f"{prefix}.self_attn.q_norm.weight", (self.head_width,)
            yield f"{prefix}.self_attn.k_norm.weight", (self.head_width,)
            yield f"{prefix}.self_attn.q_proj.weight", (queries, hidden)
            yield f"{prefix}.self_attn.k_proj.weight", (keys, hidden)
            yield f"{prefix}.self_attn.v_proj.weight", (keys, hidden)
            yield f"{prefix}.self_attn.o_proj.weight", (hidden, queries)
            yield f"{prefix}.mlp.gate.weight", (self.experts, hidden)
            for expert in range(self.experts):
                yield f"{prefix}.mlp.experts.{expert}.gate_proj.weight", (width, hidden)
                yield f"{prefix}.mlp.experts.{expert}.up_proj.weight", (width, hidden)
                yield f"{prefix}.mlp.experts.{expert}.down_proj.weight", (hidden, width)
        yield "model.norm.weight", (hidden,)
        yield "lm_head.weight", (self.vocabulary, hidden)

    def config(self) -> dict[str, object]:
        """The `config.json` of the model."""
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "hidden_size": self.hidden,
            "intermediate_size": 2 * self.hidden,
            "moe_intermediate_size": self.expert_width,
            "num_experts": self.experts,
            "num_experts_per_tok": self.chosen,
            "norm_topk_prob": True,
            "num_hidden_layers": self.layers,
            "vocab_size": self.vocabulary,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_width,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": self.dtype,
        }


def make(directory: Path, layout: Layout, seed: int = 0, shard_bytes: int = 0) -> Path:
    """Write the checkpoint of `layout` to `directory`, unless the same one is there already.

    It is one file, or several of at most `shard_bytes` with an index.
    """
    receipt = directory / "layout.json"
    wanted = json.dumps({**asdict(layout), "seed": seed, "shard_bytes": shard_bytes})
    if receipt.exists() and receipt.read_text() == wanted:
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(layout.config(), indent=2))
    random, shards, files = np.random.default_rng(seed), list(_shards(layout, shard_bytes)), {}
    for number, tensors in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_safetensors(directory / name, tensors, random, layout.dtype)
        files |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": layout.nbytes}, "weight_map": files}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    receipt.write_text(wanted)
    return directory


def _shards(layout: Layout, most: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """The tensors in their order, cut where a file would grow beyond `most` bytes; 0 is no limit."""
    shard, size = {}, 0
    for name, shape in layout.tensors():
        more = layout.bytes_each * int(np.prod(shape))
        if shard and most and size + more > most:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += more
    yield shard


def _write_safetensors(path: Path, tensors: dict[str, tuple[int, ...]], random: np.random.Generator, dtype: str) -> None:
    name_of_type, size = ("F32", 4) if dtype == "float32" else ("BF16", 2)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + size * int(np.prod(shape))
        header[name] = {"dtype": name_of_type, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            step = max(TOGETHER // int(np.prod(shape[1:])), 1)
            for start in range(0, shape[0], step):
                values = _values(name, (min(step, shape[0] - start), *shape[1:]), random)
                file.write((values if dtype == "float32" else _as_bfloat16(values)).data)


def _values(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Scales that keep the activations, and so the routing, in a sane range."""
    noise = random.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        return 1 + 0.1 * noise
    return noise if "embed_tokens" in name else noise / np.float32(shape[-1] ** 0.5)


def _as_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers, rounded to the nearest, as uint16: numpy has no bfloat16."""
    bits = values.view(np.uint32)
    bits += 0x8000
    return (bits >> 16).astype(np.uint16)
