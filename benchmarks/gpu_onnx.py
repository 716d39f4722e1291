"""The subjects of `gpu.py` that run in ONNX Runtime: what transformers exports, and what mocomp makes.

Inputs and outputs stay on the device: tensors of torch are bound by their address.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_checkpoint import checkpoint_of
from gpu_layers import VOCABULARY, Inputs
from gpu_subjects import Case, Subject, Unavailable
from torch import Tensor

TYPES = {
    "tensor(float)": (torch.float32, 1),
    "tensor(float16)": (torch.float16, 10),
    "tensor(bfloat16)": (torch.bfloat16, 16),
    "tensor(int64)": (torch.int64, 7),
    "tensor(int32)": (torch.int32, 6),
    "tensor(bool)": (torch.bool, 9),
}
"""The type of torch and ONNX's number of it, by ONNX Runtime's word for it."""
NEEDED = ("rich", "onnx", "onnx_ir", "onnxscript", "safetensors", "scipy", "jinja2")
"""What mocomp imports on the way from a checkpoint to an artifact, besides torch and transformers."""


class Bound:
    """A session with the tensors of torch that it reads and writes."""

    def __init__(self, model: str | bytes, device: str, folder: Path | None = None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        name = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        asked = {"arena_extend_strategy": "kSameAsRequested"} if device == "cuda" else {}  # several models share the memory
        if hasattr(onnxruntime, "preload_dlls") and device == "cuda":
            onnxruntime.preload_dlls()
        self.session = onnxruntime.InferenceSession(model, options, providers=[(name, asked)])
        if self.session.get_providers()[0] != name:
            raise Unavailable(f"ONNX Runtime fell back to {self.session.get_providers()[0]}")
        self.device = device

    def call(self, given: dict[str, Tensor], output: str, shape: tuple[int, ...]) -> Callable[[], Tensor]:
        """What runs it on `given` tensors by name; inputs of a past that is not there are empty. `shape` is the output's."""
        binding = self.session.io_binding()
        kept = []
        for value in self.session.get_inputs():
            dtype, number = TYPES[value.type]
            tensor = given[value.name] if value.name in given else empty_past(value.shape, self.device)
            tensor = tensor.to(dtype).contiguous()
            binding.bind_input(value.name, self.device, 0, number, list(tensor.shape), tensor.data_ptr())
            kept.append(tensor)
        result = None
        for value in self.session.get_outputs():
            if value.name != output:
                binding.bind_output(value.name, self.device)
                continue
            dtype, number = TYPES[value.type]
            result = torch.zeros(shape, dtype=dtype, device=self.device)
            binding.bind_output(value.name, self.device, 0, number, list(shape), result.data_ptr())
        assert result is not None, f"no output {output}"

        def run() -> Tensor:
            self.session.run_with_iobinding(binding)
            assert kept
            return result

        return run


def empty_past(shape: list[Any], device: str) -> Tensor:
    """Keys or values [1, J, 0, D] of no token; B and P are names in `shape`."""
    sizes = [size if isinstance(size, int) else (1 if i == 0 else 0) for i, size in enumerate(shape)]
    return torch.zeros(sizes, device=device)


def feeds(inputs: Inputs) -> dict[str, Tensor]:
    """What a language model may ask for, by the usual names."""
    tokens = inputs.ids.shape[1]
    return {
        "input_ids": inputs.ids,
        "attention_mask": torch.ones_like(inputs.ids),
        "position_ids": torch.arange(tokens, device=inputs.ids.device)[None],
        "cache_position": torch.arange(tokens, device=inputs.ids.device),
    }


class Exported(Subject):
    """The exporter of transformers with its fusions for this device."""

    scopes = ("model",)

    def __init__(self, dtype: str):
        super().__init__(f"transformers exporter {dtype}", dtype)

    def prepare(self, case: Case) -> None:
        if case.layout.groups > 1:
            raise Unavailable("its classes know no experts of modalities")
        from transformers.exporters.configs import OnnxConfig
        from transformers.exporters.exporter_onnx import OnnxExporter

        directory = case.work / case.key / f"exporter-{self.dtype}"
        if not (directory / "model.onnx").exists():
            model = case.model(self.dtype).stock
            example: Any = {"input_ids": torch.ones((2, 5), dtype=torch.long, device=case.device)}
            config = OnnxConfig(dynamic=True, ort_fusions="cuda" if case.device == "cuda" else "cpu")
            OnnxExporter().export(model, example, config).save_pretrained(str(directory))
        self.bound: Any = Bound(str(directory / "model.onnx"), case.device)

    def call(self, scope: str, inputs: Inputs) -> Callable[[], Tensor]:
        return self.bound.call(feeds(inputs), "logits", (1, inputs.ids.shape[1], VOCABULARY))

    def release(self) -> None:
        self.bound = None


class Compiled(Subject):
    """What `mocomp convert --target onnxruntime` makes."""

    def __init__(self, dtype: str, numbers: str = "", device: str = "cuda"):
        super().__init__(f"mocomp onnxruntime {numbers or dtype}", dtype, numbers)
        self.device, self.block = device, 128

    @property
    def bits(self) -> float:
        return 4 + super().bits / self.block if self.numbers == "int4" else super().bits

    def prepare(self, case: Case) -> None:
        refuse_missing()
        from mocomp.options import ConvertOptions

        self.block = 16 if case.tiny else 128
        options = ConvertOptions(
            target="onnxruntime",
            device=self.device,
            emulate=self.device != case.device,
            dtype=self.dtype,
            quantize=f"int4:{self.block}" if self.numbers == "int4" else "",
            parity="off",
            force=True,
        )
        directory, mixtures = converted(case, self.name, options)
        mixture = mixtures[0]
        self.hidden, self.y = case.layout.hidden, mixture.y
        self.bound = {"model": Bound(str(directory / "model.onnx"), case.device)}
        alone, self.x = mixture_alone(directory, mixture)
        self.bound["mixture"] = Bound(alone, case.device, directory)

    def call(self, scope: str, inputs: Inputs) -> Callable[[], Tensor]:
        tokens = inputs.ids.shape[1]
        if scope == "model":
            return self.bound[scope].call(feeds(inputs), "logits", (1, tokens, VOCABULARY))
        given = feeds(inputs) | {self.x: inputs.x.reshape(tokens, self.hidden)}
        return self.bound[scope].call(given, self.y, (tokens, self.hidden))

    def release(self) -> None:
        self.bound = {}


def converted(case: Case, name: str, options: Any) -> tuple[Path, list[Any]]:
    """The artifact of a layer, made once, and where its mixtures stand, if they are told."""
    from mocomp.pipeline import convert
    from mocomp.report import artifact_from, recorded

    directory = case.work / case.key / name.replace(" ", "-")
    if directory.exists():  # what exists is whole
        return directory, artifact_from(recorded(directory)).mixtures
    report = convert(str(checkpoint_of(case)), directory, options)
    return directory, report.artifact.mixtures


def mixture_alone(directory: Path, mixture: Any) -> tuple[bytes, str]:
    """The router and the experts of an artifact as a model of their own, from x [T, H] to y [T, H]; and the name of x."""
    import onnx_ir as ir

    model = ir.load(directory / "model.onnx")
    node = next(node for node in model.graph if any(value.name == mixture.y for value in node.outputs))
    y = next(value for value in node.outputs if value.name == mixture.y)
    x = next(value for node in model.graph for value in node.outputs if value.name == mixture.x)
    for value in (x, y):
        value.shape = ir.Shape(["tokens", None])
    graph = ir.convenience.extract(model.graph, [x, *model.graph.inputs], [y])
    needed = [value for value in graph.inputs if value.uses()]
    graph.inputs.clear()
    graph.inputs.extend(needed)
    alone = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
    return ir.to_proto(alone).SerializeToString(), mixture.x


def refuse_missing() -> None:
    """Raises Unavailable when something that mocomp imports is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise Unavailable(f"mocomp needs {', '.join(missing)}: unpack their wheels in a folder and say --packages FOLDER")


def onnx_subjects(device: str) -> list[Subject]:
    """The exporter and mocomp's artifacts; those for the other kind of device are there as well, to be listed."""
    return [
        Exported("float16" if device == "cuda" else "float32"),
        Compiled("float16"),
        Compiled("bfloat16"),
        Compiled("float16" if device == "cuda" else "float32", "int4", device),
        Compiled("float32", device="cpu"),
    ]
