"""What goes into a model and comes out, by the names that serving tools use.

Names follow ONNX Runtime GenAI and Optimum: `past_key_values.{i}.key` [B, J, P, D] in, `present.{i}.key` out.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mocomp.errors import MocompError, Unsupported
from mocomp.models.user.likeness import Likeness
from mocomp.plans.plan import ModelPlan

TEXT = ("input_ids", "attention_mask", "token_type_ids")
MODALITY = ("moe_mm_token_type_ids", "mm_token_type_ids")
"""What says of each token whether it is text (0) or stands for an image (1); a model is given the first that it takes."""
BATCH, SEQUENCE, PAST, TOTAL, IMAGES = "batch", "sequence", "past", "total", "images"


@dataclass(frozen=True)
class Interface:
    """`kind` is generator, encoder (of text, or of text beside images) or vision; module for a user's own, of which it is only
    known what its inputs are `like`.

    `image` is (channels, height, width); `past` holds, per layer, (J, key width, value width); `added` holds the inputs that
    the model's class does not know, and how many values they take.
    """

    kind: str
    inputs: list[str]
    outputs: list[str]
    axes: dict[str, dict[int, str]]
    vocabulary: int = 0
    image: tuple[int, int, int] = (0, 0, 0)
    past: list[tuple[int, int, int]] = field(default_factory=list)
    added: dict[str, int] = field(default_factory=dict)
    like: dict[str, Likeness] = field(default_factory=dict)

    def tensors(self, batch: int, sequence: int, past: int) -> dict[str, torch.Tensor]:
        """Inputs of ones and zeros at the given sizes, to trace with; made on whatever mode is active."""
        made: dict[str, torch.Tensor] = {}
        for name in self.inputs:
            if name == "pixel_values":
                made[name] = torch.zeros(batch + self.more_images, *self.image)
            elif name == "attention_mask":
                made[name] = torch.ones(batch, past + sequence, dtype=torch.long)
            elif is_per_token(name):
                made[name] = torch.zeros(batch, sequence, dtype=torch.long)
        for i, (heads, key, value) in enumerate(self.past):
            made[f"past_key_values.{i}.key"] = torch.zeros(batch, heads, past, key)
            made[f"past_key_values.{i}.value"] = torch.zeros(batch, heads, past, value)
        return made

    @property
    def more_images(self) -> int:
        """By how many images an example holds more than texts: where they are numbered apart, not as many."""
        return int(self.axes["pixel_values"][0] == IMAGES)

    def with_plan(self, plan: ModelPlan | None) -> Interface:
        """The same with the input [B, S] that tells the modality of tokens, where the model's class has none of its name.

        Raises Unsupported when the model has no tokens.
        """
        modality = plan.modality if plan is not None else None
        if modality is None or modality.input in (None, *self.inputs):
            return self
        if "input_ids" not in self.inputs:
            raise Unsupported(f"--modality by {modality.input}, and the model has no tokens", fix="Say --modality by position.")
        name, at = str(modality.input), self.inputs.index("input_ids") + 1
        inputs, axes = [*self.inputs[:at], name, *self.inputs[at:]], self.axes | {name: self.axes["input_ids"]}
        return replace(self, inputs=inputs, axes=axes, added=self.added | {name: modality.values()})

    def without(self, names: list[str]) -> Interface:
        """The same with fewer inputs."""
        kept = [name for name in self.inputs if name not in names]
        return replace(self, inputs=kept, axes={name: axes for name, axes in self.axes.items() if name not in names})


def is_per_token(name: str) -> bool:
    """Whether an input holds an integer [B, S] for each token that is new, and nothing for the past."""
    return name not in ("attention_mask", "pixel_values") and not name.startswith("past_key_values")


def interface_of(model: Any) -> Interface:
    """The interface of a transformers model (on meta or fake tensors), found by asking and running it once.

    Raises Unsupported for encoder-decoders, for caches that are not keys and values, for inputs not known here.
    """
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise Unsupported("encoder-decoder models are not supported yet", where=config.model_type)
    if hasattr(model, "get_text_features") and hasattr(model, "get_image_features") and not model.can_generate():
        return _towers(model)
    if model.main_input_name == "pixel_values":
        return _vision(model)
    if model.main_input_name != "input_ids":
        raise Unsupported(f"its main input is {model.main_input_name}; text and images are supported", where=config.model_type)
    return _text(model)


def _vision(model: Any) -> Interface:
    image = _image(model.config)
    names = list(tensors_of(_run(model, {"pixel_values": torch.zeros(2, *image)})))
    axes = {name: {0: BATCH} for name in ("pixel_values", *names)}
    return Interface("vision", ["pixel_values"], names, axes, image=image)


def _towers(model: Any) -> Interface:
    """A tower for text and one for images that meet at the end (CLIP); there are as many of each as one likes."""
    image, sizes = _image(model.config.vision_config), {1009: BATCH, 1013: IMAGES}
    texts, images = sizes
    text = {name: torch.ones(texts, 5, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    tensors = tensors_of(_run(model, text | {"pixel_values": torch.zeros(images, *image)}))
    axes: dict[str, dict[int, str]] = {name: {0: BATCH, 1: SEQUENCE} for name in text} | {"pixel_values": {0: IMAGES}}
    for name, value in tensors.items():
        axes[name] = {i: sizes[size] for i, size in enumerate(value.shape) if size in sizes}
        if value.dim() == 3 and axes[name] == {0: BATCH}:
            axes[name][1] = SEQUENCE
    vocabulary = model.config.get_text_config().vocab_size
    return Interface("encoder", [*text, "pixel_values"], list(tensors), axes, vocabulary, image)


def _image(config: Any) -> tuple[int, int, int]:
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return config.num_channels, height, width


def tensors_of(outputs: Any) -> dict[str, torch.Tensor]:
    """The tensors of a model's result by their names, those of a result within it as `outer.inner`."""
    found: dict[str, torch.Tensor] = {}
    for name, value in outputs.items():
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            found |= {f"{name}.{inner}": tensor for inner, tensor in tensors_of(value).items()}
    return found


def _text(model: Any) -> Interface:
    text_config = model.config.get_text_config()
    accepted = inspect.signature(model.forward).parameters
    names = [n for n in TEXT if n in accepted and (n != "token_type_ids" or getattr(text_config, "type_vocab_size", 0) > 1)]
    names += [n for n in MODALITY if n in accepted][:1]
    inputs = {n: torch.ones(2, 5, dtype=torch.long) for n in names}
    outputs = _run(model, inputs)
    axes: dict[str, dict[int, str]] = {n: {0: BATCH, 1: SEQUENCE} for n in names}
    tensors = tensors_of(outputs)
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
