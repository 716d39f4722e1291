"""A module from its source to a program: run, recognised, traced, its weights bound."""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mocomp.errors import Unsupported
from mocomp.models.huggingface import Traced
from mocomp.models.recognition import Recognition, recognise
from mocomp.models.user.guards import refuse_other_ways
from mocomp.models.user.running import refuse_changing
from mocomp.models.user.sizes import Known, inputs_at, known_sizes, traced_at
from mocomp.models.user.source import ModuleSource
from mocomp.models.user.tracing import bind, trace, words_of
from mocomp.weights.in_memory import InMemory


@dataclass
class Looked:
    """What is known of a module before it is traced: that it gives one answer, the sizes it runs at, its mixtures."""

    sizes: Known
    recognition: Recognition = field(default_factory=Recognition)

    def missed(self) -> list[str]:
        """The blocks that look like mixtures and are none that is known, each with the reason."""
        return [f"{one.name or 'the module'} is no mixture that is known: {one.reason}" for one in self.recognition.refused]


_LOOKED: WeakKeyDictionary[ModuleSource, Looked] = WeakKeyDictionary()
"""What was seen of a source, as long as it is there: the proof asks again."""


def look(source: ModuleSource) -> Looked:
    """Run a module, and find its mixtures. Raises BadInput where it does not run on its example, and Unsupported for one that
    gives two answers on one input, or that runs at no sizes but the example's."""
    if source not in _LOOKED:
        sizes = known_sizes(source)
        refuse_changing(source)
        calls = [source.inputs, *(inputs_at(source, sized.sizes, seed=1) for sized in sizes.runs[1:3])]
        _LOOKED[source] = Looked(sizes, recognise(source.module, calls))
    return _LOOKED[source]


def _constant(source: ModuleSource) -> list[str]:
    """Notes on whole numbers that are one and the same throughout an example, such as a mask of nothing but ones: what is drawn
    like them is no other."""
    return [
        f"{name} is {int(values.flatten()[0])} throughout the example, so nothing is proven of other values"
        for name, values in source.inputs.items()
        if not values.is_floating_point() and values.dtype != torch.bool and values.numel() > 1 and values.min() == values.max()
    ]


def weights_of(source: ModuleSource) -> InMemory:
    """Parameters and buffers of a module as weights; those under several names are there once."""
    state = source.module.state_dict(keep_vars=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return InMemory(tensors, source.file_sizes())


def load_module(source: ModuleSource) -> Traced:
    """The module as a program with its recipes bound. Raises what `look` raises, and Unsupported where it cannot be traced,
    with the blocks that are no mixture that is known, since that may be why."""
    looked = look(source)
    missed = looked.missed()
    notes = [*source.notes, *missed, *_constant(source)]
    try:
        traced = trace(source, looked.recognition, traced_at(source, looked.sizes), notes)
    except Unsupported as error:
        if not missed:
            raise
        raise Unsupported(error.what, where=error.where, fix=error.fix, gaps=missed) from error
    weights = weights_of(source)
    bind(traced, weights)
    refuse_other_ways(traced.program, source, words_of(traced.program.exported, source), weights.read)
    traced.notes = notes
    return traced
