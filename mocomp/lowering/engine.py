"""An ONNX graph as a TensorRT engine, built through Polygraphy: every option under TensorRT's own name.

Works for TensorRT 10.15 to 11.4 (Polygraphy 0.53). Networks are strongly typed: 11 knows nothing else and ignores that it is
said. What Polygraphy has no option of is set on its configuration afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mocomp.deployment import Engine
from mocomp.errors import MissingDependency, Unsupported
from mocomp.lowering.profiles import Profile
from mocomp.settings import size_in_bytes
from mocomp.weights import disk

INSTALL = "pip install 'mocomp[tensorrt]' on a machine with a GPU, or pass --emulate to prove it here on the CPU"


@dataclass(frozen=True)
class Part:
    """One engine of an artifact: its graph and its plan, by the names of their files, and the profiles it is for."""

    graph: str
    plan: str
    profiles: tuple[Profile, ...]


def missing_tensorrt() -> str | None:
    """Why engines can be neither built nor run here, with the command that helps; None when they can."""
    try:
        import polygraphy.backend.trt  # noqa: F401
        import tensorrt  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return f"{error.name or 'tensorrt'} is not installed: {INSTALL}"
    try:
        from polygraphy import cuda

        cuda.wrapper()
    except Exception as error:  # Polygraphy's own kind, or OSError of a library that is not there
        return f"no CUDA runtime ({str(error).splitlines()[0][:100]}): {INSTALL}"
    return None


def build(
    graph: Path,
    plan: Path,
    profiles: Sequence[Profile],
    dims: Mapping[str, Sequence[int | str]],
    engine: Engine,
    watched: list[str],
) -> None:
    """Build the engine of `graph`, whose weights lie beside it, and write it to `plan`.

    `dims` says what the dimensions of each input are called, or how large they are; `watched` names inner values that can be
    looked at when it runs. Raises Unsupported with TensorRT's own words for what it does not build.
    """
    from polygraphy.backend.trt import EngineBytesFromNetwork, MarkDebug, NetworkFromOnnxPath

    with explained(str(graph)):
        network = MarkDebug(NetworkFromOnnxPath(str(graph), strongly_typed=True), watched)
        cache = engine.timing_cache or None
        made = EngineBytesFromNetwork(network, configuration(profiles, dims, engine), save_timing_cache=cache)()
    disk.write_bytes(plan, memoryview(made))


def configuration(profiles: Sequence[Profile], dims: Mapping[str, Sequence[int | str]], engine: Engine) -> Any:
    """What TensorRT is told of an engine, as a callable that Polygraphy gives the builder and the network."""
    import tensorrt as trt  # pyright: ignore[reportMissingImports]
    from polygraphy.backend.trt import CreateConfig, PostprocessConfig

    known = Path(engine.timing_cache).exists() if engine.timing_cache else False
    level = engine.hardware_compatibility_level
    workspace = size_in_bytes(engine.workspace, "workspace") if engine.workspace else 0
    config = CreateConfig(
        profiles=[_shapes(profile, dims) for profile in profiles],
        tf32=engine.tf32,
        load_timing_cache=engine.timing_cache if known else None,
        memory_pool_limits={trt.MemoryPoolType.WORKSPACE: workspace} if workspace else None,
        builder_optimization_level=engine.builder_optimization_level,
        hardware_compatibility_level=getattr(trt.HardwareCompatibilityLevel, level.upper()) if level != "none" else None,
        version_compatible=engine.version_compatible,
        strip_plan=engine.strip_plan,
        refittable=engine.refit,
        weight_streaming=engine.weight_streaming,
    )
    if not engine.strip_plan or engine.refit:
        return config
    # the weights that come back are those that were there: unlike REFIT, this leaves the optimiser free
    return PostprocessConfig(config, lambda builder, network, made: made.set_flag(trt.BuilderFlag.REFIT_IDENTICAL))


def _shapes(profile: Profile, dims: Mapping[str, Sequence[int | str]]) -> Any:
    from polygraphy.backend.trt import Profile as Shapes

    shapes = Shapes()
    for name, (least, typical, most) in profile.shapes(dims).items():
        shapes.add(name, least, typical, most)
    return shapes


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Polygraphy's failures as errors that a user can act on."""
    try:
        from polygraphy.exception import PolygraphyException
    except ImportError as error:
        raise MissingDependency("polygraphy is not installed", fix=INSTALL) from error
    try:
        yield
    except PolygraphyException as error:
        raise Unsupported(
            f"TensorRT does not take it: {str(error).strip().splitlines()[0][:300]}",
            where=where,
            fix="Its own words are in the log; `mocomp check` says what is known beforehand.",
        ) from error
