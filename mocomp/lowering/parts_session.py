"""A graph run part by part: many calls go through a part together, and then its session is closed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mocomp.lowering.graph_parts import cut, part_of
from mocomp.lowering.onnx_session import runs, session
from mocomp.lowering.widened_weights import widened

Arrays = dict[str, np.ndarray]


class PartsSession:
    """The graph of `model` on the weights of the artifact in `directory`; gives its outputs, and the inner values `expose`.

    A call is `len(parts)` steps, each on the part that was opened last.
    """

    def __init__(self, model: ir.Model, directory: Path, device: str, expose: Sequence[str], limit: int):
        self.model, self.directory, self.device = model, directory, device
        outputs = [str(value.name) for value in model.graph.outputs]
        self.wanted = list(dict.fromkeys([*outputs, *expose]))
        self.parts = cut(model, self.wanted, limit)
        self._types: dict[str, ir.DataType] = {}
        self._run: Callable[[Mapping[str, np.ndarray]], Arrays] | None = None
        self._given: Arrays = {}

    def open(self, index: int) -> None:
        """Open a part, to which a call has come."""
        part = self.parts[index]
        single = part_of(self.model, part.inputs, part.outputs)
        for value in single.graph.inputs:
            value.dtype = value.dtype or self._types[str(value.name)]
        self._given = widened(single)
        content = ir.to_proto(single).SerializeToString()
        self._run = runs(session(content, self.directory, self.device, lean=True), self.device)

    def close(self) -> None:
        """Close the part that is open."""
        self._run, self._given = None, {}

    def begin(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """The values of a call before its first part."""
        self._note(inputs)
        return dict(inputs)

    def step(self, index: int, values: Arrays) -> None:
        """Put what the open part, `index`, makes of the values of a call among them; drop those that nobody wants after it."""
        assert self._run is not None
        part = self.parts[index]
        made = self._run({name: values[name] for name in part.inputs} | self._given)
        self._note(made)
        values |= made
        for name in part.last:
            del values[name]

    def end(self, values: Arrays) -> Arrays:
        """What was asked for, by name."""
        return {name: values[name] for name in self.wanted}

    def _note(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._types |= {name: ir.DataType.from_numpy(array.dtype) for name, array in arrays.items()}
