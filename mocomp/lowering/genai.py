"""genai_config.json, so that onnxruntime-genai runs the directory as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mocomp.models.interface import MODALITY, Interface
from mocomp.weights import disk


def obstacle(interface: Interface) -> str | None:
    """Why onnxruntime-genai cannot run a model, if so: it knows no inputs but text, and one shape for all caches."""
    if unknown := [name for name in interface.inputs if name in (*MODALITY, *interface.added)]:
        return f"no genai_config.json: onnxruntime-genai does not give {unknown[0]}"
    widths = {width for _, *pair in interface.past for width in pair}
    if len(widths) > 1 or len({heads for heads, *_ in interface.past}) > 1:
        return "no genai_config.json: onnxruntime-genai wants keys and values of one shape in all layers"
    return None


def write_genai_config(config: Any, interface: Interface, directory: Path) -> None:
    """Describe the decoder's inputs and outputs and the defaults of generation.

    `past_present_share_buffer` is false: the graph concatenates its cache. Without a tokenizer the file is written all
    the same; token ids go in and out.
    """
    text = config.get_text_config()
    heads, key_width, _ = interface.past[0]
    eos = text.eos_token_id if text.eos_token_id is not None else config.eos_token_id
    first_eos = eos[0] if isinstance(eos, list) else eos
    generation = {"model": _model(text, interface, heads, key_width), "search": {"past_present_share_buffer": False}}
    model = generation["model"]
    model["bos_token_id"] = text.bos_token_id if text.bos_token_id is not None else 0
    model["eos_token_id"] = eos if eos is not None else 0
    model["pad_token_id"] = next((i for i in (text.pad_token_id, first_eos) if i is not None), 0)
    generation["search"]["max_length"] = model["context_length"]
    disk.write_text(directory / "genai_config.json", json.dumps(generation, indent=2) + "\n")


def _model(text: Any, interface: Interface, heads: int, width: int) -> dict[str, Any]:
    return {
        "type": "decoder",
        "vocab_size": text.vocab_size,
        "context_length": getattr(text, "max_position_embeddings", 4096),
        "decoder": {
            "filename": "model.onnx",
            "head_size": width,
            "hidden_size": text.hidden_size,
            "num_attention_heads": text.num_attention_heads,
            "num_hidden_layers": len(interface.past),
            "num_key_value_heads": heads,
            "session_options": {"log_id": "mocomp", "provider_options": []},
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    }
