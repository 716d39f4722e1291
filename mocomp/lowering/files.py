"""What an artifact takes along from its source, so that it is a model directory of its own."""

from __future__ import annotations

import json
from pathlib import Path

from mocomp.lowering import genai
from mocomp.models.interface import Interface
from mocomp.models.source import Source
from mocomp.weights import disk
from mocomp.weights.json_files import read_object


def carry_files(source: Source, interface: Interface, directory: Path) -> list[str]:
    """Config, tokenizer and generation files, where the target has not written its own; notes on what lacks."""
    if interface.kind == "module":
        return []
    for path in source.files_to_carry:
        if not (directory / path.name).exists():
            disk.copy(path, directory / path.name)
    if not (directory / "config.json").exists():
        config = read_object(source.directory / "config.json")
        config.pop("quantization_config", None)  # of the source's weights, which are in another form now
        disk.write_text(directory / "config.json", json.dumps(config, indent=2) + "\n")
    if interface.kind != "generator" or not (directory / "model.onnx").exists():
        return []
    if (reason := genai.obstacle(interface)) is not None:
        return [reason]
    genai.write_genai_config(source.config, interface, directory)
    return []
