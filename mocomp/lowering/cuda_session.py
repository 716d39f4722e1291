"""A session whose inputs lie on the device before it runs, and whose outputs stay there until somebody asks."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mocomp.lowering.device_values import fitting, put, taken

PROVIDER = "CUDAExecutionProvider"
Arrays = dict[str, np.ndarray]


def missing_cuda(runtime: Any, load: Callable[[str], Any] = ctypes.CDLL) -> str | None:
    """Why `runtime`, the module onnxruntime, cannot use a GPU here, with what helps, or None. `load` finds libraries."""
    if PROVIDER not in runtime.get_available_providers():
        wheel = "pip install onnxruntime-gpu[cuda,cudnn] in the place of onnxruntime"
        return f"this onnxruntime has no CUDA provider: {wheel}, or add --emulate to prove it on the CPU"
    if _devices(load) == 0:
        return "no CUDA device is here: run it where nvidia-smi lists one, or add --emulate to prove it on the CPU"
    return None


def providers(device: str, graphs: bool = False, tf32: bool = False) -> list[Any]:
    """What a session is to run on, best first; `graphs` has CUDA record the kernels of a run and replay them. Only with `tf32`
    are float32 products rounded to TF32, which is what the provider does unless it is told not to."""
    options = {"use_tf32": "1" if tf32 else "0"} | ({"enable_cuda_graph": "1"} if graphs else {})
    return ["CPUExecutionProvider"] if device == "cpu" else [(PROVIDER, options), "CPUExecutionProvider"]


class BoundSession:
    """`session` is ONNX Runtime's, whose inputs are to lie on `device`."""

    def __init__(self, session: Any, device: str):
        self.session, self.device = session, device
        self.types = {value.name: value.type for value in session.get_inputs()}
        self.outputs = [value.name for value in session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name, copied to the CPU; 16-bit floats become float32."""
        binding = self._bound(inputs)
        for name in self.outputs:
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        return dict(zip(self.outputs, map(taken, binding.get_outputs()), strict=True))

    def staying(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """A run on these inputs, to be called again and again, that copies nothing between the CPU and the device.

        It has run once, which is how the sizes of its outputs are known: they are written to the same places from then on, as a
        CUDA graph wants it.
        """
        binding = self._bound(inputs)
        for name in self.outputs:
            binding.bind_output(name, self.device, 0)
        self.session.run_with_iobinding(binding)
        for name, value in zip(self.outputs, binding.get_outputs(), strict=True):
            binding.bind_ortvalue_output(name, value)

        def again() -> None:
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return again

    def _bound(self, inputs: Mapping[str, np.ndarray]) -> Any:
        binding = self.session.io_binding()
        for name, kind in self.types.items():
            binding.bind_ortvalue_input(name, put(fitting(inputs[name], kind), self.device))
        return binding


def replayed(open_session: Callable[[bool], BoundSession], inputs: Mapping[str, np.ndarray]) -> tuple[Callable[[], None], str]:
    """(a run on these inputs, how it runs): by a CUDA graph where the session allows one, else kernel by kernel, and why.

    `open_session` is told whether to record one. A session that records runs one shape only.
    """
    try:
        run = open_session(True).staying(inputs)
        for _ in range(3):  # recorded when the allocator is settled, and replayed at least once
            run()
    except Exception as error:  # ONNX Runtime's own kinds, of operators on the CPU among others
        reason = str(error).strip().splitlines()[0][:200]
        return open_session(False).staying(inputs), f"no CUDA graph: {reason}"
    return run, "CUDA graph"


def _devices(load: Callable[[str], Any]) -> int:
    """How many GPUs the driver knows of; none where there is no driver."""
    try:
        driver = load("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    ready = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if ready else 0
