"""What goes into a model and comes out, by the names that serving tools use.

Names follow ONNX Runtime GenAI and Optimum: `past_key_values.{i}.key` [B, J, P, D] in, `present.{i}.key` out.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch

from mocomp.errors import MocompError, Unsupported

TEXT = ("input_ids", "attention_mask", "token_type_ids")
BATCH, SEQUENCE, PAST, TOTAL = "batch", "sequence", "past", "total"


@dataclass(frozen=True)
class Interface:
    """`kind` is generator, encoder or vision; `past` holds, per layer, (J, key width, value width)."""

    kind: str
    inputs: list[str]
    outputs: list[str]
    axes: dict[str, dict[int, str]]
    vocabulary: int = 0
    image: tuple[int, int, int] = (0, 0, 0)
    past: list[tuple[int, int, int]] = field(default_factory=list)

    def tensors(self, batch: int, sequence: int, past: int) -> dict[str, torch.Tensor]:
        """Inputs of ones and zeros at the given sizes, to trace with; made on whatever mode is active."""
        made: dict[str, torch.Tensor] = {}
        for name in self.inputs:
            if name == "pixel_values":
                made[name] = torch.zeros(batch, *self.image)
            elif name == "attention_mask":
                made[name] = torch.ones(batch, past + sequence, dtype=torch.long)
            elif name in TEXT:
                made[name] = torch.zeros(batch, sequence, dtype=torch.long)
        for i, (heads, key, value) in enumerate(self.past):
            made[f"past_key_values.{i}.key"] = torch.zeros(batch, heads, past, key)
            made[f"past_key_values.{i}.value"] = torch.zeros(batch, heads, past, value)
        return made


def interface_of(model: Any) -> Interface:
    """The interface of a transformers model (on meta or fake tensors), found by asking and running it once.

    Raises Unsupported for encoder-decoders, for caches that are not keys and values, for inputs not known here.
    """
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise Unsupported("encoder-decoder models are not supported yet", where=config.model_type)
    if model.main_input_name == "pixel_values":
        return _vision(model)
    if model.main_input_name != "input_ids":
        raise Unsupported(f"its main input is {model.main_input_name}; text and images are supported", where=config.model_type)
    return _text(model)


def _vision(model: Any) -> Interface:
    size = model.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    image = (model.config.num_channels, height, width)
    outputs = _run(model, {"pixel_values": torch.zeros(2, *image)})
    names = [name for name, value in outputs.items() if isinstance(value, torch.Tensor)]
    axes = {name: {0: BATCH} for name in ("pixel_values", *names)}
    return Interface("vision", ["pixel_values"], names, axes, image=image)


def _text(model: Any) -> Interface:
    text_config = model.config.get_text_config()
    accepted = inspect.signature(model.forward).parameters
    names = [n for n in TEXT if n in accepted and (n != "token_type_ids" or getattr(text_config, "type_vocab_size", 0) > 1)]
    inputs = {n: torch.ones(2, 5, dtype=torch.long) for n in names}
    outputs = _run(model, inputs)
    axes: dict[str, dict[int, str]] = {n: {0: BATCH, 1: SEQUENCE} for n in names}
    tensors = {n: value for n, value in outputs.items() if isinstance(value, torch.Tensor)}
    for name, value in tensors.items():
        axes[name] = {0: BATCH, 1: SEQUENCE} if value.dim() == 3 else {0: BATCH}
    cache = outputs.get("past_key_values")
    if cache is None or not model.can_generate():
        return Interface("encoder", names, list(tensors), axes, vocabulary=text_config.vocab_size)
    past = [_layer_past(i, layer, model) for i, layer in enumerate(cache.layers)]
    axes["attention_mask"] = {0: BATCH, 1: TOTAL}
    caches = [f"{i}.{part}" for i in range(len(past)) for part in ("key", "value")]
    axes.update({f"past_key_values.{c}": {0: BATCH, 2: PAST} for c in caches})
    axes.update({f"present.{c}": {0: BATCH, 2: TOTAL} for c in caches})
    names = [n for n in names if n != "token_type_ids"] + [f"past_key_values.{c}" for c in caches]
    kept = [n for n in tensors if n == "logits"] + [f"present.{c}" for c in caches]
    return Interface("generator", names, kept, axes, vocabulary=text_config.vocab_size, past=past)


def _run(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
    try:
        with torch.no_grad():
            return model(**inputs, return_dict=True)
    except MocompError:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise Unsupported(
            f"it does not run on {', '.join(inputs)} alone: {type(error).__name__}: {first}",
            where=type(model).__name__,
            fix="Check that config.json describes a whole model; the whole message is in the log.",
        ) from error


def _layer_past(index: int, layer: Any, model: Any) -> tuple[int, int, int]:
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if not (isinstance(keys, torch.Tensor) and isinstance(values, torch.Tensor) and keys.dim() == values.dim() == 4):
        raise Unsupported(
            f"layer {index} keeps a {type(layer).__name__}; only caches of keys and values are supported",
            where=model.config.model_type,
        )
    return keys.shape[1], keys.shape[3], values.shape[3]
