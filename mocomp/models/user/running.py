"""The user's module as it is, run on inputs by their names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mocomp.errors import Unsupported
from mocomp.models.user.outputs import named
from mocomp.models.user.source import ModuleSource

CLOSE = 1e-6
"""Two runs on one input may differ by so much of the largest value: threads add up in any order."""


def run(source: ModuleSource, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs by name, each a tensor of its own."""
    with torch.no_grad():
        result = source.module(**{name: tensor.clone() for name, tensor in inputs.items()})
    return {name: tensor.detach().clone() for name, tensor in named(result, source.outputs, source.inputs)[0].items()}


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def refuse_changing(source: ModuleSource) -> None:
    """Raises Unsupported for a module that gives two answers on one input, naming the first part that does."""
    first, second = _watched(source), _watched(source)
    if not any(_differ(first[name], second[name]) for name in first if name.startswith(OUT)):
        return
    parts = [name for name in first if not name.startswith(OUT) and name in second and _differ(first[name], second[name])]
    told = f", first in {parts[0]}" if parts else ""
    raise Unsupported(
        f"it gives two answers on one input{told}: something in it draws at random, or remembers",
        where=source.label,
        fix="Have it do so only where self.training is true.",
    )


OUT = "output "
"""What stands before the names of outputs, among those of modules."""


def _watched(source: ModuleSource) -> dict[str, Tensor]:
    """What each part gave that gives one tensor, in the order in which they ended, and the outputs."""
    seen: dict[str, Tensor] = {}

    def watch(name: str):
        def keep(module: torch.nn.Module, args: tuple, output: object) -> None:
            if isinstance(output, Tensor):
                seen.setdefault(f"{name} ({type(module).__name__})", output.detach().clone())

        return keep

    hooks = [part.register_forward_hook(watch(name)) for name, part in source.module.named_modules() if name]
    try:
        outputs = run(source, source.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen | {OUT + name: tensor for name, tensor in outputs.items()}


def _differ(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return True
    if not a.is_floating_point():
        return not torch.equal(a, b)
    a, b = a.nan_to_num(), b.nan_to_num()
    return bool(a.numel()) and float((a - b).abs().max()) > CLOSE * float(a.abs().max())
