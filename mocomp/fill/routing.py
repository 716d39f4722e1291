"""The routing of an inserted mixture: its kind from the command line, its first rows, and what its weights sum to.

Dimension letters: T tokens, H hidden, E experts, K chosen.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F

from mocomp.errors import BadInput, Usage
from mocomp.fill.clusters import kmeans, spread
from mocomp.plans.blocks import Block
from mocomp.registry import discover
from mocomp.routers import AnyNumber, Router

Rows = Callable[[Block, str, int], torch.Tensor]
"""(block, group, n) -> n router rows [n, H] for experts of that group."""
DEVIATION = 0.02
"""Of the rows of a random router, as transformers draws linear layers."""


def router(text: str, k: int, experts: int, masked: bool, scale: float = 1.0) -> Router:
    """The router KIND[:field=value,...] over `experts`; top-k weights are divided by their sum unless it says otherwise.

    Raises Usage for a kind or a field that there is not.
    """
    kind, _, rest = text.partition(":")
    known = discover("mocomp.routers", "Router")
    if kind not in known:
        raise Usage(f"no router {kind!r}; they are {', '.join(known)}")
    fields = {f.name: f for f in dataclasses.fields(known[kind])}
    given: dict[str, object] = {"normalize": True} if "normalize" in fields else {}
    for part in filter(None, rest.split(",")):
        name, _, value = part.partition("=")
        if name not in fields or name == "k":
            raise Usage(f"router {kind} has no {name!r}; it has {', '.join(n for n in fields if n != 'k')}")
        given[name] = _value(name, value, fields[name].default)
    if masked and "masked" in fields:
        given["masked"] = True
    made = known[kind](k=experts if issubclass(known[kind], AnyNumber) else k, **given)
    if scale == 1.0:
        return made
    scaled = made.scaled(scale)
    if scaled is None:
        raise Usage(f"router {kind} has no scale, which experts of a part of the block's width need", fix="Choose another.")
    return scaled


def _value(name: str, text: str, default: object) -> object:
    try:
        return {"true": True, "false": False}[text] if isinstance(default, bool) else type(default)(text)  # type: ignore[call-arg]
    except (KeyError, ValueError) as error:
        raise Usage(f"{name}={text} is not a value like {default!r}") from error


def tried(routing: Router, experts: int) -> tuple[bool, float | None]:
    """(whether it reads a bias of the experts, what a token's weights sum to), found by running it on random logits.

    The sum is None when it is not the same for all tokens. Raises Usage for a router that cannot route so many experts.
    """
    logits = 3 * torch.randn(64, experts, generator=torch.Generator().manual_seed(0))
    fault = ""
    for tensors in ([], [torch.zeros(experts)]):
        try:
            sums = routing.choose(logits, *tensors)[1].sum(-1)
        except (IndexError, KeyError, RuntimeError, ValueError) as error:
            fault = f"{type(error).__name__}: {error}"
            continue
        return bool(tensors), float(sums[0]) if torch.allclose(sums, sums[0].expand_as(sums), rtol=1e-5) else None
    raise Usage(f"router {routing.name} cannot route {experts} experts: {fault}")


def random_rows(seed: int) -> Rows:
    """Normal rows of a small deviation; the same for the same seed, block and group."""

    return lambda block, group, count: drawn_rows(seed, f"{block.enter}.{group}", count, block.dense.hidden)


def drawn_rows(seed: int, name: str, count: int, hidden: int) -> torch.Tensor:
    """Normal rows [count, hidden] of a small deviation; the same for the same seed and name."""
    generator = torch.Generator().manual_seed(random.Random(f"{seed}.{name}").getrandbits(40))
    return DEVIATION * torch.randn(count, hidden, generator=generator)


def zero_rows(block: Block, group: str, count: int) -> torch.Tensor:
    """Every expert is as good as every other."""
    return torch.zeros(count, block.dense.hidden)


def hidden_rows(tokens: Callable[[Block, str], torch.Tensor], seed: int) -> Rows:
    """Directions of the centres of the tokens of a group, found by k-means: experts start with tokens that are alike.

    `tokens` gives those x [T, H] of a group that came to a block. What all directions share moves no choice and is left
    out; the rest is scaled so that the logits of a token deviate by 1.
    """

    return lambda block, group, count: centre_rows(
        tokens(block, group), count, seed, f"tokens of {group} came to {block.enter}"
    )


def centre_rows(x: torch.Tensor, count: int, seed: int, came: str) -> torch.Tensor:
    """x [T, H] -> rows [count, H] as `hidden_rows` makes them. Raises BadInput, with what `came`, for too few."""
    if len(x) < count:
        raise BadInput(f"{len(x)} {came}, too few for {count} experts", fix="Bring more.")
    points = F.normalize(x, dim=1)
    _, centres = kmeans(points, spread(points, count, seed), balanced=False)
    directions = F.normalize(centres, dim=1)
    apart = directions - directions.mean(0)
    deviation = (x @ apart.T).std()
    return apart / deviation if deviation > 0 else apart
