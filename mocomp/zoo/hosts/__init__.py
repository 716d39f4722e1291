"""Small real models of two layers with a place for a mechanism in each: plain torch, one kind of model a file.

Dimension letters: B batch, S sequence, H hidden.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

TRACED = {"batch": 2, "sequence": 5, "target": 3, "height": 12, "width": 16}
"""Sizes of the dynamic axes in the example inputs: no 0 or 1, and no two alike."""
TASKS = 3
VOCABULARY = 64


@dataclass(frozen=True)
class Input:
    """An input of a host: its axes, by name where they are dynamic.

    `below` is where its whole numbers end, 0 for numbers drawn from a normal distribution; `optional` is one that the host
    takes only for mechanisms that want it.
    """

    axes: tuple[str | int, ...]
    below: int = 0
    optional: bool = False


TASK = Input(("batch",), TASKS, optional=True)


class Host(nn.Module):
    """A model that is made around `mechanism`, which makes the mechanism of each layer; `inputs` are those of its forward."""

    inputs: ClassVar[dict[str, Input]] = {}

    def __init__(self, mechanism: Callable[[], nn.Module]):
        super().__init__()


class Slot(nn.Module):
    """The place of a mechanism: it is given x and what it wants of what the host knows; a state goes on to the next layer."""

    def __init__(self, mechanism: nn.Module):
        super().__init__()
        self.mechanism, self.names = mechanism, wanted(type(mechanism))

    def forward(self, x: Tensor, known: dict[str, Tensor]) -> Tensor:
        """x [B, S, H] -> y [B, S, H]; the state, where there is one, is put into `known`."""
        y = self.mechanism(x, **{name: known[name] for name in self.names if name in known})
        if isinstance(y, tuple):
            y, known["state"] = y
        return y


def wanted(mechanism: Any) -> tuple[str, ...]:
    """The names of what the forward of a class of mechanisms takes beside x."""
    return tuple(inspect.signature(mechanism.forward).parameters)[2:]


def draw(asked: Input, sizes: dict[str, int], generator: torch.Generator) -> Tensor:
    """A random tensor for an input, its dynamic axes of these sizes."""
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in asked.axes]
    if asked.below:
        drawn = torch.randint(asked.below, shape, generator=generator)
        drawn.view(-1)[0], drawn.view(-1)[-1] = 0, asked.below - 1  # the example shows the whole range
        return drawn
    return torch.randn(shape, generator=generator)
