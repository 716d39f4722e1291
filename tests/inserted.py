"""A checkpoint of mocomp as a program before and after the passes that insert, and as the model that both must equal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import mocomp.nn
from mocomp.models.interface import Interface, tensors_of
from mocomp.models.source import open_source
from mocomp.passes import Pass, Receipt, run
from mocomp.passes.clean import Clean
from mocomp.passes.common_subexpressions import CommonSubexpressions
from mocomp.passes.fold_weights import FoldWeights
from mocomp.pipeline import insertions, load
from mocomp.weights.checkpoint import Checkpoint
from tests.programs import Traced


@dataclass
class Inserted:
    """`traced` is the program before the `steps` that insert; its inputs are made by `feed`."""

    traced: Traced
    steps: list[Pass]
    model: Any
    interface: Interface

    def after(self, *steps: Pass) -> tuple[Traced, list[Receipt]]:
        """A copy of the program after `steps`, or after all of its own."""
        copy = self.traced.copy()
        return copy, [run(step, copy.program) for step in steps or self.steps]


def prepare(directory: Path) -> Inserted:
    source = open_source(str(directory))
    with Checkpoint(directory) as checkpoint:
        found = load(source, checkpoint)
    for step in (Clean(), FoldWeights(), CommonSubexpressions()):
        run(step, found.program)
    traced = Traced(found.program, {}, load_file(directory / "model.safetensors"))
    return Inserted(traced, insertions(source, found), mocomp.nn.load(directory), found.interface)


def feed(interface: Interface, batch: int, sequence: int, past: int = 0) -> dict[str, Tensor]:
    """Random inputs; all sequences but the first have padding, where its kind of model has it."""
    generator = torch.Generator().manual_seed(batch + 10 * sequence + 100 * past)
    inputs = interface.tensors(batch, sequence, past)
    for name, value in inputs.items():
        if name.startswith("past_key_values") or name == "pixel_values":
            inputs[name] = torch.randn(value.shape, generator=generator)
        elif name == "input_ids":
            inputs[name] = torch.randint(0, interface.vocabulary, value.shape, generator=generator)
        elif name in interface.added:
            inputs[name] = torch.randint(0, interface.added[name], value.shape, generator=generator)
    for row in range(1, batch if "attention_mask" in inputs and past + sequence > batch else 0):
        side = slice(row) if interface.kind == "generator" else slice(-row, None)
        inputs["attention_mask"][row, side] = 0
    return inputs


def by_torch(made: Inserted, inputs: dict[str, Tensor]) -> list[Tensor]:
    """What the model gives for the same inputs, in the order of the program's outputs."""
    from transformers import DynamicCache

    given: dict[str, Any] = {n: v.clone() for n, v in inputs.items() if not n.startswith("past_key_values")}
    if made.interface.past:
        given["past_key_values"] = cache = DynamicCache()
        for i in range(len(made.interface.past)):
            cache.update(inputs[f"past_key_values.{i}.key"].clone(), inputs[f"past_key_values.{i}.value"].clone(), i)
    with torch.no_grad():
        results = tensors_of(made.model(**given))
    for i in range(len(made.interface.past)):
        results |= {f"present.{i}.key": cache.layers[i].keys, f"present.{i}.value": cache.layers[i].values}
    return [results[name] for name in made.traced.program.outputs]


def error(traced: Traced, made: Inserted, inputs: dict[str, Tensor]) -> float:
    """The largest relative error of any output of a program against the model."""
    traced.inputs = inputs
    pairs = zip(traced.run(), by_torch(made, inputs), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
