"""A module `tensorrt` without TensorRT: it has exactly the classes and members of 11.4, and writes down what is called.

`api_11_4.json` lists them, read out of the Python bindings. What the target and Polygraphy call has a part in `played.py` or
`played_engines.py`; a member that 11.4 has not is an AttributeError, as it is there, and one without a part fails the test.
"""

import enum
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

API: dict[str, list[str]] = json.loads((Path(__file__).parent / "api_11_4.json").read_text())["classes"]
VERSION = "11.4.0.106"
FUNCTIONS = ("init_libnvinfer_plugins",)
ALIASES = {
    "float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int32": "INT32", "int64": "INT64", "int8": "INT8",
    "uint8": "UINT8", "bool": "BOOL", "fp8": "FP8", "int4": "INT4", "fp4": "FP4", "e8m0": "E8M0",
}  # fmt: skip
"""Types by the names that the module gives them besides; int4 to e8m0 in lower case as its own __init__ uses them."""


class NotPlayedError(AssertionError):
    """A member that 11.4 has and `played.py` has not; not an AttributeError, which Polygraphy would take for an old version."""


class Recorder:
    """What was called: names such as `IBuilderConfig.set_flag`, with their arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def note(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, arguments))

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of each call of that name."""
        return [arguments for called, arguments in self.calls if called == name]

    def names(self) -> set[str]:
        return {name for name, _ in self.calls}


class Recorded:
    """Base of what `played.py` plays. Public attributes are members of the class in 11.4, and no others."""

    recorder: Recorder
    trt: Any = None
    api: str = ""

    def __init_subclass__(cls) -> None:
        if cls.__module__.startswith("tests.tensorrt.played") and not cls.__name__.startswith("_"):
            cls.api = cls.__name__
            extra = {name for name in vars(cls) if not name.startswith("_") and name != "api"} - set(API[cls.api])
            assert not extra, f"11.4 has no {cls.api}.{extra}"
            for name, function in [*vars(cls).items()]:
                if callable(function) and not name.startswith("_"):
                    setattr(cls, name, _noted(f"{cls.api}.{name}", function))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in API[self.api]:
            raise AttributeError(f"TensorRT {VERSION} has no {self.api}.{name}")
        raise NotPlayedError(f"{self.api}.{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        own = name.startswith("_") or type(self).__name__ != self.api  # Python's own classes derived from it
        if not own and name not in API[self.api]:
            raise AttributeError(f"TensorRT {VERSION} has no {self.api}.{name}")
        if not own:
            self.recorder.note(f"{self.api}.{name}=", value)
        object.__setattr__(self, name, value)


def _noted(name: str, function: Any) -> Any:
    def called(self: Any, *arguments: Any, **named: Any) -> Any:
        self.recorder.note(name, *arguments, *named.values())
        return function(self, *arguments, **named)

    return called


class Numbered(enum.Enum):
    """As pybind11 has them: a number on request, and equal to none."""

    def __int__(self) -> int:
        return self.value


def enumeration(name: str) -> type[enum.Enum]:
    """One of TensorRT's enums; a member that 11.4 has not is an AttributeError."""
    return Numbered(name, {member: i for i, member in enumerate(API[name])})  # type: ignore[return-value]


def is_enumeration(name: str) -> bool:
    members = API[name]
    return bool(members) and all(member == member.upper() for member in members) and not name.startswith("Dims")


def module(recorder: Recorder) -> ModuleType:
    """The module `tensorrt`."""
    from tests.tensorrt import played, played_engines

    made = ModuleType("tensorrt")
    vars(made)["__version__"] = VERSION
    made.__spec__ = ModuleSpec("tensorrt", None)  # torch looks for what is installed by it
    enums = {name: enumeration(name) for name in API if is_enumeration(name)}
    for name in API:
        known = enums.get(name) or getattr(played, name, None) or getattr(played_engines, name, None)
        if known is None:
            known = type(name, (Recorded,), {"api": name})
        setattr(made, name, known)
    for name, kind in ALIASES.items():
        setattr(made, name, enums["DataType"][kind])
    for name in FUNCTIONS:
        setattr(made, name, lambda *arguments, name=name: recorder.note(name, *arguments))
    Recorded.recorder = recorder
    Recorded.trt = made
    return made


@contextmanager
def recorded() -> Iterator[Recorder]:
    """`import tensorrt` is the recorder within, and Polygraphy, imported anew, runs on top of it on the memory of the host."""
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in ("polygraphy", "tensorrt")}
    recorder = Recorder()
    sys.modules["tensorrt"] = module(recorder)
    try:
        from polygraphy.cuda import cuda

        from tests.tensorrt.host_memory import HostMemory

        cuda.G_CUDA = HostMemory()
        yield recorder
    finally:
        for name in list(sys.modules):
            if name.split(".")[0] in ("polygraphy", "tensorrt"):
                del sys.modules[name]
        sys.modules.update(hidden)
