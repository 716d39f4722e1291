"""The exporter that transformers has, with its fusions for ONNX Runtime on the CPU: what one would do without mocomp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mocomp.bench.torch_subject import load
from mocomp.errors import Unsupported
from mocomp.models.interface import interface_of
from mocomp.models.source import open_source

SIZES = {"batch": 2, "sequence": 5, "past": 7}
"""Of the example that is traced: no 0 or 1, and no two alike."""


class Exporter:
    """Exports the model of `source` into `directory` as model.onnx; there is nothing to ask it afterwards."""

    def __init__(self, request: dict[str, Any]):
        import transformers
        from transformers.exporters.configs import OnnxConfig
        from transformers.exporters.exporter_onnx import OnnxExporter

        torch.set_num_threads(request["threads"])
        source = open_source(request["source"], request["trust_remote_code"], request["task"])
        if source.plan is not None:
            raise Unsupported("its mixtures are of mocomp, and the exporter knows classes of transformers alone")
        model = load(source, {})
        exported = OnnxExporter().export(model, _example(model), OnnxConfig(dynamic=True, ort_fusions="cpu"))
        exported.save_pretrained(request["directory"])
        if not (Path(request["directory"]) / "model.onnx").exists():
            raise Unsupported("it wrote no model.onnx")
        self.words = f"transformers.exporters {transformers.__version__}, fusions for the CPU"


def _example(model: Any) -> dict[str, Any]:
    """Inputs with a cache that is not empty, so that what is exported decodes and prefills."""
    from transformers import DynamicCache

    with torch.no_grad():
        interface = interface_of(model)
    made = interface.tensors(**SIZES)
    if not interface.past:
        return made
    cache = DynamicCache(config=model.config)
    for i in range(len(interface.past)):
        cache.update(made.pop(f"past_key_values.{i}.key"), made.pop(f"past_key_values.{i}.value"), i)
    return {**made, "past_key_values": cache}
