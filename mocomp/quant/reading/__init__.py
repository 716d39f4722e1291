"""Schemes: each file is one way in which published checkpoints hold quantised weights.

To add one, add a file with a frozen dataclass derived from `Scheme`. It says which tensors hold codes, and makes of each,
with the tensors that belong to it, the float weight: a recipe over them in a format of mocomp's own (`Dequantised`). That
stands under the name that the float checkpoint has it by, so that whoever binds the tensors knows nothing of all this.
Quantisation of activations is not read: what is deployed has activations of its own type.
Dimension letters: E experts, N rows (outputs), K columns (inputs), G groups of columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from mocomp.errors import BadInput, Unsupported
from mocomp.quant.companions import FLOAT, Companions
from mocomp.registry import discover
from mocomp.weights.checkpoint import Checkpoint, Entry
from mocomp.weights.recipes import Recipe


class Scheme(ABC):
    """A way to hold quantised weights; its fields are settings of the checkpoint. `name` is the config's `quant_method`,
    `ending` what the float weight is called after its stem."""

    name: ClassVar[str] = ""
    ending: ClassVar[str] = ".weight"

    @classmethod
    @abstractmethod
    def of(cls, config: dict[str, Any]) -> Scheme:
        """From `quantization_config`. Raises Unsupported for settings that mocomp cannot read."""

    @abstractmethod
    def stem(self, name: str, entry: Entry) -> str | None:
        """What the names of the weight's tensors begin with if this one holds its codes, else None."""

    @abstractmethod
    def weight(self, tensors: Companions) -> Recipe:
        """The float weight [..., N, K] of one stem, as its class in transformers holds it. Raises BadInput, Unsupported."""

    def recipes(self, checkpoint: Checkpoint) -> dict[str, Recipe]:
        """Every tensor of the checkpoint by its name, the quantised ones as floats and by the names that those would have."""
        made: dict[str, Recipe] = {}
        taken: set[str] = set()
        for name, entry in checkpoint.entries.items():
            stem = self.stem(name, entry)
            if stem is None:
                continue
            tensors = Companions(checkpoint, stem)
            made[stem + self.ending] = self.weight(tensors)
            taken |= tensors.taken
        return {name: checkpoint.recipe(name) for name in checkpoint.entries if name not in taken} | made


def tensors_of(checkpoint: Checkpoint) -> dict[str, Recipe]:
    """Every tensor of a checkpoint by name, as it would be if it were not quantised.

    Raises Unsupported for a scheme that mocomp cannot read, BadInput for tensors that are not as the scheme says.
    """
    config = quantisation_of(checkpoint.config)
    if config is None:
        return {name: checkpoint.recipe(name) for name in checkpoint.entries}
    return scheme_of(config, str(checkpoint.directory)).recipes(checkpoint)


def quantisation_of(config: dict[str, Any], where: str = "config.json") -> dict[str, Any] | None:
    """What a config.json says of how the weights are quantised, for the whole model or for its text part.

    Raises BadInput where that is no object.
    """
    text = config.get("text_config")
    places = (config, text if isinstance(text, dict) else {})
    found = next((place["quantization_config"] for place in places if place.get("quantization_config")), None)
    if found is not None and not isinstance(found, dict):
        raise BadInput(f"quantization_config is {type(found).__name__}, expected an object", where=where)
    return found


def scheme_of(config: dict[str, Any], where: str = "") -> Scheme:
    """The scheme of a `quantization_config`. Raises Unsupported when mocomp has none, or it cannot read these settings."""
    known = discover("mocomp.quant.reading", "Scheme")
    method = config.get("quant_method")
    if not isinstance(method, str) or method not in known:
        raise Unsupported(f"weights quantised by {method!r}; those of {', '.join(known)} can be read", where=where, fix=FLOAT)
    try:
        return known[method].of(config)  # type: ignore[attr-defined]
    except Unsupported as error:
        raise Unsupported(f"{method}: {error.what}", where=where, fix=FLOAT) from error
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:  # of another type than the scheme has
        raise BadInput(f"{method}: quantization_config cannot be read: {error}", where=where, fix=FLOAT) from error


def refuse_unless(config: dict[str, Any], key: str, supported: tuple[Any, ...], default: Any) -> Any:
    """config[key]. Raises Unsupported unless it is one of those."""
    value = config.get(key, default)
    if value not in supported:
        raise Unsupported(f"{key} {value!r}; mocomp reads {', '.join(map(str, supported))}")
    return value


def integers(bits: int, group: int, symmetric: bool) -> str:
    """The text of an integer format; `group` columns share a scale, or all of a row where it is 0 or -1."""
    return f"int{bits}" + (f":{group}" if group > 0 else "") + ("" if symmetric else ":asym")
