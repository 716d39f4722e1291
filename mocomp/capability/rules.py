"""Rules by operator: what a runtime asks of single nodes, each rule a function that gives the gaps of one node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import onnx_ir as ir

from mocomp.capability import Gap

Asked = TypeVar("Asked")
"""What a graph is checked for, such as a release and a GPU."""


class Rules(Generic[Asked]):
    """Decorates rules, `@rule("MatMul", "Gemm")`, and asks them; `when` keeps a rule to some of what may be asked."""

    def __init__(self) -> None:
        self._known: dict[str, list[Callable[[ir.Node, Asked], Iterator[Gap]]]] = {}

    def __call__(self, *operators: str, when: Callable[[Asked], bool] | None = None) -> Callable[..., Callable]:
        def registered(function: Callable[[ir.Node, Asked], Iterator[Gap]]) -> Callable:
            def asking(node: ir.Node, asked: Asked) -> Iterator[Gap]:
                return function(node, asked) if when is None or when(asked) else iter(())

            for operator in operators:
                self._known.setdefault(operator, []).append(asking)
            return function

        return registered

    def operators(self) -> set[str]:
        """Those that there is a rule of."""
        return set(self._known)

    def gaps(self, node: ir.Node, asked: Asked) -> Iterator[Gap]:
        """What its rules say of a node."""
        for rule in self._known.get(node.op_type, ()):
            yield from rule(node, asked)
