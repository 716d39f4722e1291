"""A checkpoint in the form of compressed-tensors, for transformers and vLLM."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mocomp.capability import Gap
from mocomp.deployment import Deployment
from mocomp.errors import Usage
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls
from mocomp.lowering import compressed_tensors, decompressed, unfused
from mocomp.lowering.checkpoint_places import Place, places
from mocomp.lowering.scheme_targets import quantization_config
from mocomp.models import canonical
from mocomp.models.interface import tensors_of
from mocomp.models.source import Source, open_source
from mocomp.nn.model import empty
from mocomp.passes import Pass
from mocomp.quant.formats import Format
from mocomp.targets import Arrays, Artifact, Runner, Target
from mocomp.weights import disk
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.recipes import Recipe
from mocomp.weights.shards import write_checkpoint
from mocomp.weights.writer import Writer

PAST = "past_key_values"


class HuggingFace(Target):
    """The source's checkpoint with some matrices in few bits, under the names that they have there; all else is as it was.

    The proof runs the model that transformers builds of it, with every quantised matrix unpacked by the package
    compressed-tensors: what is stored, the config that says how, and the names are shown to be right. That transformers itself
    unpacks them when it loads, tests show for what `notes` does not except.
    """

    name: ClassVar[str] = "huggingface"
    mixes_projections: ClassVar[bool] = True
    summary: ClassVar[str] = "a checkpoint for transformers: safetensors, weights in few bits as compressed-tensors"

    def __init__(self, deployment: Deployment | None = None):
        super().__init__(deployment)
        self.source: Source | None = None
        self.floats: dict[str, Recipe] = {}

    def missing(self) -> str | None:
        try:
            import compressed_tensors  # noqa: F401
        except ImportError:
            return "compressed-tensors is not installed: pip install compressed-tensors"
        return None

    def knowing(self, source: Source, program: Program) -> HuggingFace:
        known = copy.copy(self)
        known.source, known.floats = source, dict(program.recipes)
        return known

    def passes(self) -> list[Pass]:
        return []

    def gaps(self, program: Program) -> list[Gap]:
        assert self.source is not None
        if self.source.plan is not None:
            return [
                Gap(
                    "model",
                    "its mixtures are of mocomp, and no class of transformers has them",
                    "--target onnxruntime takes them",
                )
            ]
        if self.source.quantization is not None:
            return [Gap("model", "its weights are quantised already", "start from the float checkpoint that it was made from")]
        layers = {name: layer for layer, names in unfused.banks(program).items() for name in names}
        found = [(name, self._obstacle(program, name, *stored)) for name, stored in unfused.packed(program).items()]
        return list(dict.fromkeys(Gap(layers.get(name, name), reason) for name, reason in found if reason is not None))

    def notes(self, program: Program) -> list[str]:
        stored = unfused.packed(program).values()
        experts = {form.text for form, shape in stored if len(shape) == 3}
        unread = {
            "zero points": any("zeros" in form.shapes(shape) for form, shape in stored),
            "experts in fp8:128x128": "fp8:128x128" in experts,
            "experts in mxfp4 unless it is told dtype=torch.bfloat16": "mxfp4" in experts,
            "experts in several formats": len(experts) > 1,
            "experts in floats beside linear layers that are not": bool(stored and calls(program, MOCOMP.experts.default))
            and not experts,
        }
        rest = "and may load other numbers without a word; the package compressed-tensors, by which this is proven, reads it"
        return [f"transformers 5.23 cannot read {what}, {rest}" for what, is_there in unread.items() if is_there]

    def lower(self, program: Program, directory: Path, writer: Writer | None) -> Artifact:
        if writer is None:
            raise Usage("--weights none, and a checkpoint is nothing else", fix="Leave it out.")
        packed = unfused.packed(program)
        weights, formats = self._weights(program, packed)
        self._write_config(directory, weights, formats)
        files = write_checkpoint(directory, weights, writer)
        return Artifact(
            files=[*files, "config.json"],
            nodes=0,
            weight_bytes=sum(recipe.nbytes for recipe in weights.values()),
            formats={name: form.text for name, (form, _) in packed.items()},
            linears=unfused.linears(program),
            banks=unfused.banks(program),
        )

    def open(self, directory: Path, expose: list[str] | None = None, exact: bool = False) -> Runner:
        return ModelRunner(_model(directory))

    def bank_weights(self, directory: Path, banks: dict[str, list[str]]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        model = _model(directory)
        for layer in banks:
            bank = canonical.bank(model.get_submodule(layer))
            yield layer, bank.w_in.detach().numpy(), bank.w_out.detach().numpy()

    def linear_weights(self, directory: Path) -> dict[str, np.ndarray]:
        parameters = empty(open_source(str(directory))).state_dict()
        return {name: weight.numpy() for name, weight in decompressed.weights(directory) if name in parameters}

    def describe(self) -> dict[str, Any]:
        return {"target": self.name, "compressed-tensors": metadata.version("compressed-tensors")}

    def _obstacle(self, program: Program, name: str, form: Format, shape: tuple[int, ...]) -> str | None:
        """Why a weight cannot be stored in its format under the names of the source."""
        found = places(self.floats[name])
        if found is None:
            return (
                "the checkpoint does not hold it as matrices of their own, [N, K] and one for each expert; leave it in floats"
            )
        if len(shape) == 2 and [place.tensor for place in found] != [name]:
            return f"the checkpoint has it as {found[0].tensor}, which other weights may be tied to; leave it in floats"
        if not all(place.tensor.endswith(".weight") for place in found):
            return f"it is called {found[0].tensor}, and readers look for names that end in .weight"
        if f"{name}.inputs" in program.recipes:
            return "its inputs are scaled, which has no place in a checkpoint; take another algorithm than awq"
        return compressed_tensors.obstacle(form, shape, found)

    def _weights(
        self, program: Program, packed: dict[str, tuple[Format, tuple[int, ...]]]
    ) -> tuple[dict[str, Recipe], dict[str, str]]:
        """(tensors to write by name, the format of each quantised module by its name)"""
        made: dict[str, Recipe] = {}
        formats: dict[str, str] = {}
        for name, (form, shape) in packed.items():
            parts = {part: r for part in form.shapes(shape) if (r := program.recipes.get(f"{name}.{part}")) is not None}
            for place in self._places(name):
                stem = place.tensor.removesuffix(".weight")
                formats[stem] = form.text
                tensors = compressed_tensors.tensors(form, shape, parts, place)
                made |= {f"{stem}.{own}": tensor for own, tensor in tensors.items()}
        with Checkpoint(self._directory) as checkpoint:
            names = [name for name in checkpoint.entries if name.removesuffix(".weight") not in formats]
            return {name: checkpoint.recipe(name) for name in names} | made, formats

    def _places(self, name: str) -> list[Place]:
        found = places(self.floats[name])
        assert found is not None  # as gaps has seen
        return found

    @property
    def _directory(self) -> Path:
        assert self.source is not None
        return self.source.directory

    def _write_config(self, directory: Path, weights: dict[str, Recipe], formats: dict[str, str]) -> None:
        config = json.loads((self._directory / "config.json").read_text())
        if formats:
            matrices = [name for name, recipe in weights.items() if name.endswith(".weight") and len(recipe.shape) == 2]
            plain = [stem for name in matrices if (stem := name.removesuffix(".weight")) not in formats]
            config["quantization_config"] = quantization_config(formats, plain)
        disk.write_text(directory / "config.json", json.dumps(config, indent=2) + "\n")


class ModelRunner(Runner):
    """A model of transformers."""

    def __init__(self, model: Any):
        self.model = model

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        from transformers import DynamicCache

        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        given: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if not name.startswith(PAST)}
        if len(given) < len(tensors):
            cache = DynamicCache()
            for i in range((len(tensors) - len(given)) // 2):
                cache.update(tensors[f"{PAST}.{i}.key"], tensors[f"{PAST}.{i}.value"], i)
            given |= {PAST: cache, "use_cache": True}
        with torch.no_grad():
            result = self.model(**given, return_dict=True)
        layers = result[PAST].layers if PAST in given else []
        present = {f"present.{i}.{part}": getattr(x, f"{part}s") for i, x in enumerate(layers) for part in ("key", "value")}
        return {name: tensor.numpy() for name, tensor in (tensors_of(result) | present).items()}


def _model(directory: Path) -> Any:
    """The model of a checkpoint as transformers builds it of floats."""
    source = open_source(str(directory))
    model = source.model_class.from_pretrained(
        None,
        config=source.config,
        state_dict=dict(decompressed.tensors(directory)),
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    return model.eval()
