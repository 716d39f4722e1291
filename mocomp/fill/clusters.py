"""K-means over neurons or tokens, free or with clusters of one size.

Where all clusters have the same size, what is nearest on the whole depends on inner products only: the squares of points
and of centres add up to the same whatever the assignment. For binary points that holds for L1 distances too.
Dimension letters: N points, D dimensions, K clusters.
"""

from __future__ import annotations

import torch

ITERATIONS = 50
"""Rounds of k-means at most; it ends where no point moves."""


def spread(points: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """First centres [K, D] among points [N, D], each drawn far from those before it (k-means++, Arthur 2007)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(points), (), generator=generator))]
    nearest = torch.full((len(points),), float("inf"))
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(-1))
        weights = nearest if nearest.sum() > 0 else torch.ones(len(points))  # all points are centres already
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
    return points[chosen]


def kmeans(points: torch.Tensor, centres: torch.Tensor, balanced: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """points [N, D], first centres [K, D] -> (the cluster of each point [N], centres [K, D]).

    `balanced` gives every cluster N / K points. A cluster that loses all its points keeps its centre.
    """
    owner = torch.full((len(points),), -1)
    for _ in range(ITERATIONS):
        affinity = points @ centres.T
        new = assign(affinity) if balanced else (affinity - centres.square().sum(-1) / 2).argmax(-1)
        if torch.equal(new, owner):
            break
        owner = new
        mine = [points[owner == k] for k in range(len(centres))]
        centres = torch.stack([p.mean(0) if len(p) else c for p, c in zip(mine, centres, strict=True)])
    return owner, centres


def assign(affinity: torch.Tensor) -> torch.Tensor:
    """affinity [N, K] -> the cluster of each point [N], N / K points each, with the largest sum of affinities there is.

    A linear assignment in the memory of `affinity` and not of [N, N]: points are exchanged along the cycles of clusters
    that gain most, until no cycle gains (Klein 1967, minimum cost flow by cancelling cycles).
    """
    clusters = affinity.shape[1]
    cost = -affinity.double()
    tolerance = 1e-9 * max(float(cost.abs().max()), 1e-30)
    owner = _first(cost)
    moves = torch.stack([_moves(cost, owner, k) for k in range(clusters)])
    while (cycle := _gaining_cycle(moves[..., 0], tolerance)) is not None:
        steps = list(zip(cycle, cycle[1:] + cycle[:1], strict=True))
        for point, to in [(int(moves[a, b, 1]), b) for a, b in steps]:
            owner[point] = to
        for k in cycle:
            moves[k] = _moves(cost, owner, k)
    return owner


def _first(cost: torch.Tensor) -> torch.Tensor:
    """Cheap places for cost [N, K], those points first that have most to lose by another."""
    n, clusters = cost.shape
    room = torch.full((clusters,), n // clusters)
    two = cost.topk(min(2, clusters), largest=False).values
    owner = torch.empty(n, dtype=torch.long)
    for point in (two[:, -1] - two[:, 0]).argsort(descending=True, stable=True).tolist():
        owner[point] = cost[point].where(room > 0, torch.inf).argmin()
        room[owner[point]] -= 1
    return owner


def _moves(cost: torch.Tensor, owner: torch.Tensor, k: int) -> torch.Tensor:
    """[K, 2]: what the cheapest move of a point of cluster k to each cluster costs, and which point that is."""
    members = (owner == k).nonzero()[:, 0]
    least = (cost[members] - cost[members, k, None]).min(0)
    return torch.stack([least.values, members[least.indices].double()], -1)


def _gaining_cycle(price: torch.Tensor, tolerance: float) -> list[int] | None:
    """A cycle of clusters around which moves of price [K, K] cost less than nothing, None when there is none (Bellman-Ford)."""
    clusters = len(price)
    total, before, last = torch.zeros(clusters, dtype=torch.double), torch.full((clusters,), -1), -1
    for _ in range(clusters):
        least = (total[:, None] + price).min(0)
        cheaper = least.values < total - tolerance
        if not cheaper.any():
            return None
        total, before = torch.where(cheaper, least.values, total), torch.where(cheaper, least.indices, before)
        last = int(cheaper.nonzero()[0, 0])
    for _ in range(clusters):  # from the last that became cheaper back into the cycle
        last = int(before[last])
    cycle = [last]
    while (k := int(before[cycle[-1]])) != last:
        cycle.append(k)
    return cycle[::-1]
