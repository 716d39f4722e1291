"""Where an ONNX file says that its weights lie: beside it, and nowhere else on the machine that opens it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from mocomp.errors import BadInput
from mocomp.weights.linking import refuse_changed
from mocomp.weights.own_files import own_file, refuse_outside


def refuse_foreign_data(file: Path) -> None:
    """Raises BadInput for an ONNX file one of whose tensors lies outside its directory, and for one that cannot be read.

    https://onnx.ai/onnx/repo-docs/ExternalData.html: the location is relative to the directory of the model.
    """
    own_file(file.parent, file.name)
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # of protobuf's own kinds
        why = f"{file.name} is damaged, or is no ONNX file: {error}"
        raise BadInput(why, where=str(file.parent), fix="Convert again.") from error
    places: dict[str, str] = {}
    for tensor in tensors_of(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                places.setdefault(entry.value, tensor.name)
    for place, name in places.items():
        try:
            refuse_outside(file.parent, place)
        except BadInput as error:
            raise BadInput(f"external data of tensor {name}: {error.what}", where=str(file), fix=error.fix) from error
    refuse_changed(file.parent, places)


def tensors_of(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor in a model: of its graphs, of those inside nodes, of functions, wherever the format has one."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in value if hasattr(value, "__len__") else [value]:
            yield from tensors_of(inner)
