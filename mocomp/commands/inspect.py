"""mocomp inspect: what a source is made of; nothing is written."""

from __future__ import annotations

import torch

from mocomp.errors import Unsupported
from mocomp.models import inspection
from mocomp.models.huggingface import Traced
from mocomp.models.inspection import Inspection
from mocomp.models.user.loading import load_module, look
from mocomp.models.user.named import is_module
from mocomp.models.user.source import ModuleSource
from mocomp.opening import OF_MODULES, opened
from mocomp.options import ConvertOptions
from mocomp.report.module import ModuleInspection, TensorRow
from mocomp.report.recognised import recognised_in


def inspect(name: str, options: ConvertOptions) -> Inspection | ModuleInspection:
    """A checkpoint by its config alone, or a module of the user's own by running it, as `mocomp convert` with `options` would.

    Raises what opening the source raises, BadInput for a module that does not run on its example, and Unsupported for one that
    gives two answers on one input.
    """
    if not is_module(name):
        options.refuse_for("a checkpoint, which says itself what it takes", OF_MODULES)
        return inspection.inspect(name, options.trust_remote_code)
    source = opened(name, options)
    assert isinstance(source, ModuleSource)
    return inspect_module(source)


def inspect_module(source: ModuleSource) -> ModuleInspection:
    """What a module takes and gives, and the mixtures in it. Raises what `look` raises."""
    looked = look(source)
    missed, outputs, notes, obstacle = looked.missed(), [], [], ""
    try:
        traced = load_module(source)
    except Unsupported as error:
        obstacle = error.what
    else:
        outputs, notes = _outputs(traced), [note for note in traced.notes if note not in missed]
    return ModuleInspection(
        source=source.place,
        model_class=source.model_class.__name__,
        parameters=sum(parameter.numel() for parameter in source.module.parameters()),
        inputs=[_row(name, value, source.axes[name]) for name, value in source.inputs.items()],
        outputs=outputs,
        recognised=recognised_in(source),
        missed=missed,
        notes=[*notes, *looked.sizes.notes()],
        obstacle=obstacle,
    )


def _outputs(traced: Traced) -> list[TensorRow]:
    """What a trace gives, with sizes that change as expressions of the inputs' own."""
    nodes = traced.program.graph.output_node().args[0]
    axes = traced.interface.axes
    named = zip(traced.interface.outputs, nodes, strict=True)  # type: ignore[arg-type]
    return [_row(name, node.meta["val"], axes[name]) for name, node in named]  # type: ignore[union-attr]


def _row(name: str, value: torch.Tensor, axes: dict[int, str]) -> TensorRow:
    shape: list[int | str] = [axes[i] if i in axes else int(size) for i, size in enumerate(value.shape)]
    return TensorRow(name, str(value.dtype).removeprefix("torch."), shape)
