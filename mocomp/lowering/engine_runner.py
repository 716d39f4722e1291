"""The engines of an artifact as one thing that runs calls of any sizes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from mocomp.deployment import Engine
from mocomp.errors import BadInput, Unsupported
from mocomp.lowering.alone import TOKENS
from mocomp.lowering.engine import Part, build
from mocomp.lowering.engine_files import watched
from mocomp.lowering.engine_session import EngineSession
from mocomp.lowering.onnx_session import DATA, load
from mocomp.lowering.pieces import Pieces
from mocomp.lowering.profiles import Profile, dims_of

Arrays = dict[str, np.ndarray]


class EngineRunner:
    """Every call goes to the engine and the profile that fit it best, in pieces where none takes it whole.

    Raises Unsupported where inner values are asked for beyond those that the engines show: which experts were chosen.
    """

    def __init__(self, directory: Path, parts: Sequence[Part], engine: Engine, expose: Sequence[str]):
        self.turns: list[tuple[EngineSession, int]] = []
        profiles: list[Profile] = []
        dims: dict[str, list[int | str]] = {}
        for part in parts:
            model = load(directory, part.graph)
            if hidden := [name for name in expose if name not in watched(model)]:
                raise Unsupported(f"an engine does not show {hidden[0]}", fix="Convert with --emulate to look inside.")
            opened = EngineSession(directory / part.plan, directory / part.graph, types_of(model), engine)
            self.turns += [(opened, i) for i in range(len(part.profiles))]
            profiles += part.profiles
            dims = dims_of([*model.graph.inputs, *model.graph.outputs])
        caches = {name: name.replace("past_key_values", "present") for name in dims if name.startswith("past_key_values")}
        self.pieces = Pieces(profiles, dims, caches, self._run_one)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name, and the values that the engines show."""
        return self.pieces.run(dict(inputs))

    def _run_one(self, index: int, inputs: Arrays) -> Arrays:
        session, profile = self.turns[index]
        return session.run(profile, inputs)


def run_alone(model: ir.Model, directory: Path, engine: Engine, most: int) -> Callable[[Arrays], Arrays]:
    """What runs an engine of a graph in memory, built where nobody keeps it, on the weights in `directory`.

    The engine is for up to `most` tokens, and more are run in turn: memory is planned for the most, and that of gathered
    weights grows with every token. Raises BadInput where the folder for temporary files has no room for the weights.
    """
    profile = Profile("alone", {TOKENS: (1, min(16, most), most)})
    with TemporaryDirectory(prefix="mocomp-") as name:
        graph, plan = Path(name) / "alone.onnx", Path(name) / "alone.plan"
        _put_weights(directory / DATA, Path(name) / DATA)  # parsers look for them beside the graph, and nowhere else
        graph.write_bytes(ir.to_proto(model).SerializeToString())
        build(graph, plan, [profile], dims_of(model.graph.inputs), replace(engine, timing_cache=""), [])
        opened = EngineSession(plan, graph, types_of(model), engine)

    def run(inputs: Arrays) -> Arrays:
        starts = range(0, max(len(inputs["x"]), 1), most)
        made = [opened.run(0, {word: array[i : i + most] for word, array in inputs.items()})["y"] for i in starts]
        return {"y": np.concatenate(made)}

    return run


def _put_weights(weights: Path, place: Path) -> None:
    """The weights under a second name where the disk can do that, else a copy."""
    try:
        os.link(weights, place)
        return
    except OSError:  # another disk
        pass
    try:
        shutil.copyfile(weights, place)
    except OSError as error:
        raise BadInput(f"no room for the weights: {error}", where=str(place), fix="Set TMPDIR to a larger disk.") from error


def types_of(model: ir.Model) -> dict[str, ir.DataType]:
    """The type of each input."""
    return {str(value.name): value.dtype for value in model.graph.inputs if value.dtype is not None}
