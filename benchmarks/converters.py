"""One peer's conversion in a process of its own: `python converters.py PEER CHECKPOINT DIR [OPTION...]`.

With no CHECKPOINT it only imports what the conversion imports, to tell how much of the time and memory that takes.
Options are for the command line of mocomp.
The peer is whatever the interpreter has installed; nothing of mocomp is imported here.
"""

import importlib
import os
import sys

IMPORTS = {
    "mocomp": ("torch", "transformers.exporters", "onnx_ir", "onnxscript"),
    "transformers": ("torch", "transformers.exporters.exporter_onnx", "transformers.models.qwen3_moe"),
    "mobius": ("torch", "transformers", "mobius.__main__"),
}


def mocomp(checkpoint: str, directory: str, *options: str) -> None:
    """The command line of mocomp; the proof is off, because no peer has one."""
    own = ("--target", "onnxruntime", "--parity", "off", "--force", *options)
    _become("mocomp", "convert", checkpoint, "-o", directory, *own)


def transformers(checkpoint: str, directory: str) -> None:
    """`transformers.exporters` with ONNX Runtime's fusions for the CPU and a cache, so that it decodes and prefills."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    cache = DynamicCache(config=model.config)
    past = torch.zeros(2, model.config.num_key_value_heads, 7, model.config.head_dim)
    for layer in range(model.config.num_hidden_layers):
        cache.update(past, past, layer)
    inputs = {
        "input_ids": torch.ones((2, 5), dtype=torch.long),
        "attention_mask": torch.ones((2, 12), dtype=torch.long),
        "past_key_values": cache,
    }
    exported = OnnxExporter().export(model, inputs, OnnxConfig(dynamic=True, ort_fusions="cpu"))
    exported.save_pretrained(directory)


def mobius(checkpoint: str, directory: str) -> None:
    """The command line of `mobius-onnx`, with the choices it makes for ONNX Runtime on the CPU."""
    _become("mobius", "build", "--config", checkpoint, "--ep", "cpu", "--dtype", "f32", directory)


def _become(module: str, *arguments: str) -> None:
    """Turn this process into the command line of `module`: nothing is measured twice."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


if __name__ == "__main__":
    peer, *arguments = sys.argv[1:]
    if arguments:
        {"mocomp": mocomp, "transformers": transformers, "mobius": mobius}[peer](*arguments)
    else:
        for library in IMPORTS[peer]:
            importlib.import_module(library)
