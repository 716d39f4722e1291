"""The zoo: every mechanism of the literature in a small host model, as its paper's reader would write it in plain torch.

Nothing here uses mocomp's own ops, routers or experts, so what is converted is independent of what converts it. The table is
`entries.py`. A host is a file in `hosts/`. A mechanism is a class `Mechanism(hidden, ...)` whose forward takes x [B, S, H] and,
by name, whatever else of the host it wants (`input_ids`, `modality`, `task`, `embedding`, and the `state` that the same
mechanism returned one layer before); it returns y [B, S, H], or (y, state).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

HIDDEN = 32


@dataclass(frozen=True)
class Entry:
    """A line of the table: a mechanism in a host.

    `host` and `mechanism` are "file:Class" under `hosts/` and under the zoo; `recognised` is what recognition must find in it,
    "router + expert", or None where its mathematics is another; `refused` is why it does not convert.
    """

    name: str
    host: str
    mechanism: str
    paper: str
    recognised: str | None = None
    note: str = ""
    refused: str = ""


def build(entry: Entry, seed: int = 0) -> nn.Module:
    """The host with the mechanism in each layer, ready for inference; `seed` gives weights as large as trained ones."""
    import torch

    host, mechanism = _classes(entry)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = host(partial(mechanism, HIDDEN)).eval()
        for parameter in model.parameters():
            _draw(parameter)
    return model.requires_grad_(False)


def example(entry: Entry, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    """Inputs by name; `sizes` are of the dynamic axes, such as batch=3, where they are to differ from the traced ones."""
    import torch

    from mocomp.zoo.hosts import TRACED, draw

    generator = torch.Generator().manual_seed(seed)
    return {name: draw(asked, TRACED | sizes, generator) for name, asked in _inputs(entry).items()}


def dynamic(entry: Entry) -> dict[str, tuple[str | None, ...]]:
    """The name of each axis of each input; None is a size that stays."""
    return {
        name: tuple(axis if isinstance(axis, str) else None for axis in asked.axes) for name, asked in _inputs(entry).items()
    }


def _classes(entry: Entry) -> tuple[Any, Any]:
    """The host's class and the mechanism's."""
    found = []
    for place in (f"hosts.{entry.host}", entry.mechanism):
        file, _, name = place.partition(":")
        found.append(getattr(import_module(f"mocomp.zoo.{file}"), name))
    return found[0], found[1]


def _inputs(entry: Entry) -> dict[str, Any]:
    from mocomp.zoo.hosts import wanted

    host, mechanism = _classes(entry)
    return {name: asked for name, asked in host.inputs.items() if not asked.optional or name in wanted(mechanism)}


def _draw(parameter: Tensor) -> None:
    """A matrix that keeps the size of what it is applied to; a vector near what its constructor gave."""
    import torch

    with torch.no_grad():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim == 4 else parameter.shape[-1] ** -0.5)
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
