"""A placement to start from: experts between which many steps lead, close to each other in the eigenvectors of the steps.

Layer by layer alone, a search that starts where all is spread evenly sees no better neighbour. This looks at all layers at
once (normalised cuts, Shi and Malik 2000). Dimension letters: V experts of all layers, E of one, N ranks.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import bmat, csr_matrix, diags
from scipy.sparse.linalg import eigsh

from mocomp.placement import programme
from mocomp.placement.programme import Room
from mocomp.placement.traffic import Places, Traffic

ROUNDS = 4
"""How often the middle of a rank's experts is taken anew."""


def together(traffic: Traffic, rooms: list[Room], ranks: int) -> Places | None:
    """The experts around N points, each rank with the room it has; None where no placement around them is found."""
    at = _embedded(traffic, ranks)
    middles, places = _apart(at, ranks), None
    cuts = np.cumsum(traffic.experts)[:-1]
    for _ in range(ROUNDS):
        near = np.split(at @ middles.T, cuts)
        found = [programme.layer(gain * 1e3, load, room) for gain, load, room in zip(near, traffic.load, rooms, strict=True)]
        if any(ranks_of is None for ranks_of in found):
            return None
        places = [ranks_of for ranks_of in found if ranks_of is not None]
        owner = np.concatenate(places)
        middles = np.stack([at[owner == rank].mean(0) for rank in range(ranks)])
    return places


def _embedded(traffic: Traffic, ranks: int) -> np.ndarray:
    """[V, N]: each expert on the unit sphere."""
    sizes, layers = traffic.experts, len(traffic.load)
    parts: list[list[csr_matrix | None]] = [[None] * layers for _ in sizes]
    for i, size in enumerate(sizes):
        parts[i][i] = csr_matrix((size, size))
    for i, steps in enumerate(traffic.steps):
        parts[i][i + 1], parts[i + 1][i] = csr_matrix(steps.astype(float)), csr_matrix(steps.T.astype(float))
    graph = csr_matrix(bmat(parts))
    scale = diags(1 / np.sqrt(np.maximum(np.asarray(graph.sum(1)).ravel(), 1e-9)))
    count = min(ranks, sum(sizes) - 2)
    _, vectors = eigsh(scale @ graph @ scale, k=count, which="LA", v0=np.ones(sum(sizes)))
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def _apart(at: np.ndarray, count: int) -> np.ndarray:
    """`count` of the points, each as far from those before it as there is one."""
    chosen = [0]
    while len(chosen) < count:
        chosen.append(int(np.argmin((at @ at[chosen].T).max(1))))
    return at[chosen]
