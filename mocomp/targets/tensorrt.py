"""TensorRT: a strongly typed graph of standard operators, an engine built of it by Polygraphy, and Triton's repository."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import torch

from mocomp.capability import Gap, gathered
from mocomp.capability.gpus import gpus, with_mixtures
from mocomp.capability.tables import release
from mocomp.capability.tensorrt import TABLE, graph_gaps
from mocomp.deployment import Deployment
from mocomp.errors import Usage
from mocomp.ir.program import Program
from mocomp.lowering import engine_files, portable, tensorrt_graphs, tensorrt_moe, unfused, unpacked_weights
from mocomp.lowering.alone import alone, experts_of, factor_of
from mocomp.lowering.emulation import widen
from mocomp.lowering.engine import Part, missing_tensorrt
from mocomp.lowering.engine_runner import EngineRunner, run_alone
from mocomp.lowering.onnx_session import DATA, Session, exposing, load, missing_runtime, save, session
from mocomp.lowering.pieces import positions, takes
from mocomp.lowering.tensorrt_graphs import DECODE, Lowered, parts_in
from mocomp.lowering.this_gpu import compute_capability, elsewhere, tensorrt_release
from mocomp.lowering.tuned import operators
from mocomp.models.source import Source
from mocomp.passes import Pass
from mocomp.quant.e2m1 import E2M1
from mocomp.quant.formats import Format
from mocomp.targets import DEFAULTS, Arrays, Artifact, Mixture, MixtureRunner, Runner, Target
from mocomp.weights.writer import Writer


class Tensorrt(Target):
    """model.onnx, model.onnx.data and model.plan; with two engines, decode.onnx and decode.plan on the same weights as well.

    With `emulate` no engine is built, and the float32 twin of each graph is proven in ONNX Runtime on the CPU.
    """

    name: ClassVar[str] = "tensorrt"
    mixes_projections: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = frozenset(DEFAULTS) - {"device", "accuracy_level"}
    summary: ClassVar[str] = "TensorRT 10.15 to 11.4: engines of a typed graph, profiles for prefill and decode, Triton"

    def __init__(self, deployment: Deployment | None = None):
        super().__init__(deployment)
        if self.deployment.mixture == "sorted":
            raise Usage("--mixture sorted loops over tokens, how many an expert has", fix="Say dense, gathered or auto.")
        if self.deployment.strip_plan and self.deployment.triton:
            raise Usage("--strip-plan, and Triton does not put weights back", fix="Leave --strip-plan or --triton out.")
        self.release = self.deployment.tensorrt or tensorrt_release() or str(TABLE["default"])
        self.gpu = self.deployment.gpu or ("" if self.deployment.emulate else compute_capability())
        self.positions = 0
        self._lowered: tuple[Program, list[Lowered]] | None = None

    def missing(self) -> str | None:
        return missing_runtime() if self.deployment.emulate else missing_tensorrt() or elsewhere(self.deployment)

    def knowing(self, source: Source, program: Program) -> Target:
        known = copy.copy(self)
        known.positions = getattr(source.config.get_text_config(), "max_position_embeddings", 0) or 0
        return known

    def passes(self) -> list[Pass]:
        return []

    def gaps(self, program: Program) -> list[Gap]:
        half = [
            Gap(name, f"{program.recipes[name].dtype}, and the graph is made in float32")
            for _, name in program.weights()
            if program.recipes[name].dtype in (torch.float16, torch.bfloat16)
        ]
        stored = [(name, self.obstacle([stored])) for name, stored in unfused.packed(program).items()]
        found = half + [Gap(name, reason) for name, reason in stored if reason is not None]
        if found:
            return found
        graphs = self._graphs(program)
        return [
            gap
            for lowered in graphs
            for gap in (*gathered(self._fallbacks(lowered)), *graph_gaps(lowered.model, self.release, self.gpu))
        ]

    def notes(self, program: Program) -> list[str]:
        graphs = self._graphs(program)
        made = [f"{g.part.graph}: {' and '.join(p.text for p in g.part.profiles)}" for g in graphs]
        if self.deployment.emulate:
            made.append("no engine was built: its graph was proven in ONNX Runtime on the CPU, in float32")
        return made

    def _fallbacks(self, lowered: Lowered) -> Iterator[Gap]:
        """What is computed from standard operators, and why not by TensorRT's own layer for mixtures."""
        instead = {"dense": "all experts are computed for all tokens", "gathered": "the chosen weights are gathered"}
        for mixture in lowered.mixtures:
            reason = lowered.unused.get(mixture.layer, "") if self._has_layers else self._no_layers
            if reason:
                yield Gap(mixture.layer, reason, instead[lowered.body], blocks=False)

    @property
    def _has_layers(self) -> bool:
        new = release(self.release) >= release(TABLE["custom"]["TRT_MoE"])
        return new and self.deployment.mixture == "auto" and self.gpu in gpus() and gpus()[self.gpu].mixtures

    @property
    def _no_layers(self) -> str:
        if self.deployment.mixture != "auto":
            return f"--mixture {self.deployment.mixture}"
        if self.gpu in gpus() and gpus()[self.gpu].mixtures:
            return f"IMoELayer came with TensorRT {TABLE['custom']['TRT_MoE']}, and this is {self.release}"
        here = f"not on {self.gpu}" if self.gpu else "and no --gpu is named"
        return f"IMoELayer runs on {with_mixtures()}, {here}"

    def _graphs(self, program: Program) -> list[Lowered]:
        """Made once for a program: its gaps are told by them, and then they are written."""
        if self._lowered is None or self._lowered[0] is not program:
            parts = tensorrt_graphs.parts_of(self.deployment, program, self.positions)
            made = [tensorrt_graphs.lower(program, part, self.deployment, self._has_layers, self.positions) for part in parts]
            self._lowered = program, made
        return self._lowered[1]

    def lower(self, program: Program, directory: Path, writer: Writer | None) -> Artifact:
        graphs = self._graphs(program)
        weights = tensorrt_graphs.merged(graphs)
        placed = writer.write(directory / DATA, weights) if writer is not None else {}
        for lowered in graphs:
            save(lowered.model, directory, lowered.weights, placed, lowered.part.graph)
        files = [lowered.part.graph for lowered in graphs] + ([] if writer is None else [DATA])
        parts = [lowered.part for lowered in graphs]
        if writer is not None and not self.deployment.emulate:
            files += engine_files.build_all(directory, parts, self.deployment)
        if self.deployment.triton:
            files += engine_files.for_triton(directory, parts)
        banks, (first, *_) = unfused.banks(program), graphs
        layers = {mixture.layer for mixture in first.mixtures}
        limits = (1,) if DECODE in files else ()
        found = operators(first.model)
        return Artifact(
            files=files,
            nodes=sum(found.values()),
            weight_bytes=sum(recipe.nbytes for recipe in weights.values()),
            mixtures=[Mixture(m.layer, m.x, m.scores, "", m.y, m.k, m.bank, limits, m.ids) for m in first.mixtures],
            operators=found,
            formats={name: form.text for name, (form, _) in unfused.packed(program).items()},
            linears=unfused.linears(program),
            banks={layer: names for layer, names in banks.items() if layer not in layers},
        )

    def open(self, directory: Path, expose: list[str] | None = None, exact: bool = False) -> Runner:
        if self.deployment.emulate:
            return Emulated(directory, expose or [])
        return Engines(directory, parts_in(directory), self.deployment, expose or [])

    def longest(self, directory: Path) -> int | None:
        if self.deployment.emulate:
            return None
        return positions([profile for part in parts_in(directory) for profile in part.profiles]) or None

    def takes(self, directory: Path) -> Callable[[int, int, int], bool]:
        if self.deployment.emulate:
            return super().takes(directory)
        profiles = [profile for part in parts_in(directory) for profile in part.profiles]
        return lambda batch, sequence, past: takes(profiles, batch, sequence, past)

    def open_mixture(self, directory: Path, mixture: Mixture, exact: bool = False) -> MixtureRunner:
        return MixtureAlone(directory, mixture, self.deployment)

    def weights(self, directory: Path, mixture: Mixture) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        model = load(directory)
        call = portable.call_of(model, mixture.y)
        if call.op_type == "Squeeze":
            w_in, w_out = tensorrt_moe.bank_of(call)
        else:
            w_in, w_out = (unpacked_weights.weight(model, name) for name in portable.bank_of(call))
        return zip(range(len(w_in)), w_in, w_out, strict=True)

    def bank_weights(self, directory: Path, banks: dict[str, list[str]]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        return unpacked_weights.banks(load(directory), banks)

    def linear_weights(self, directory: Path) -> dict[str, np.ndarray]:
        return unpacked_weights.linears(load(directory))

    def obstacle(self, stored: list[tuple[Format, tuple[int, ...]]]) -> str | None:
        floats = [form for form, _ in stored if isinstance(form, E2M1)]
        if any(form.name != "nvfp4" for form in floats):
            return f"TensorRT has no {floats[0].text}; its weights in floats of 4 bits are nvfp4"
        if floats and self.deployment.emulate:
            return "ONNX Runtime 1.31 does not compute DequantizeLinear of float4e2m1 on the CPU, so nothing would prove it"
        return None

    def describe(self) -> dict[str, Any]:
        asked = {"tensorrt": self.release, "gpu": self.gpu, "dtype": self.deployment.dtype}
        return {"target": self.name} | asked | {"proven": "emulated" if self.deployment.emulate else "engine"}


class Emulated(Runner):
    """The float32 twins of an artifact's graphs in ONNX Runtime: that of decoding for one token, if there is one."""

    def __init__(self, directory: Path, expose: list[str]):
        self.sessions = {part.graph: _twin(directory, part.graph, expose) for part in parts_in(directory)}

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        decode = self.sessions.get(DECODE)
        one = "input_ids" in inputs and inputs["input_ids"].shape[1] == 1
        first = next(iter(self.sessions.values()))
        return (decode if decode is not None and one else first).run(inputs)


class Engines(EngineRunner, Runner):
    """The plans of an artifact."""


class MixtureAlone(MixtureRunner):
    """The experts of one layer, as a graph of their own on the weights of the artifact; where there is a graph for single
    tokens, those of that one run them."""

    def __init__(self, directory: Path, mixture: Mixture, deployment: Deployment):
        own = [part for part in parts_in(directory) if part.graph != DECODE or mixture.limits]
        self.graphs = [OneGraph(directory, part, mixture, deployment) for part in own]
        self.experts = self.graphs[0].experts

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        return self.graphs[-1 if len(inputs["x"]) == 1 else 0].run(inputs)


class OneGraph(MixtureRunner):
    """The experts of one layer as one graph of an artifact has them."""

    def __init__(self, directory: Path, part: Part, mixture: Mixture, deployment: Deployment):
        model = load(directory, part.graph)
        self.factor = factor_of(model, mixture.x)
        if deployment.emulate:
            widen(model)
        single = alone(model, (mixture.x, mixture.ids, f"{mixture.layer}/weights"), mixture.y)
        self.experts = experts_of(single)
        most = max(profile.tokens for profile in part.profiles)
        self.run_one = _runner(single, directory) if deployment.emulate else run_alone(single, directory, deployment, most)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        x = inputs["x"] if self.factor is None else inputs["x"] * self.factor
        return self.run_one({"x": x, "ids": inputs["ids"], "weights": inputs["weights"]})


def _twin(directory: Path, graph: str, expose: list[str]) -> Session:
    model = load(directory, graph)
    widen(model)
    return Session(directory, exposing(model, expose))


def _runner(model: ir.Model, directory: Path) -> Callable[[Arrays], Arrays]:
    opened = session(ir.to_proto(model).SerializeToString(), directory)
    return lambda inputs: {"y": opened.run(None, inputs)[0]}
