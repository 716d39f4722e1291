"""Balanced assignment against scipy's, and k-means on points whose clusters are known."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from mocomp.fill.clusters import assign, kmeans, spread


@pytest.mark.parametrize("points, clusters", [(8, 1), (8, 2), (96, 6), (64, 64), (256, 16)])
@pytest.mark.parametrize("ties", [False, True], ids=["", "ties"])
def test_no_assignment_of_one_size_is_better(points, clusters, ties):
    affinity = torch.randn(points, clusters, generator=torch.Generator().manual_seed(points))
    affinity = affinity.round() if ties else affinity
    owner = assign(affinity)
    assert torch.bincount(owner, minlength=clusters).tolist() == [points // clusters] * clusters
    rows, columns = linear_sum_assignment(-np.repeat(affinity.double().numpy(), points // clusters, 1))
    best = affinity.double()[torch.from_numpy(rows), torch.from_numpy(columns) // (points // clusters)].sum()
    assert affinity.double()[torch.arange(points), owner].sum() == pytest.approx(float(best), abs=1e-6)


@pytest.mark.parametrize("balanced", [False, True])
def test_clusters_that_are_apart_are_found(balanced):
    centres = 9 * torch.eye(4)
    points = centres.repeat_interleave(5, 0) + torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    owner, found = kmeans(points[order], spread(points[order], 4, seed=0), balanced)
    assert (
        len({tuple(sorted(order[owner == k].tolist())) for k in range(4)} & {tuple(range(i, i + 5)) for i in (0, 5, 10, 15)})
        == 4
    )
    assert torch.allclose(found[owner], points.unflatten(0, (4, 5)).mean(1)[order // 5], atol=1e-5)


def test_equal_points_may_be_more_clusters_than_there_are_points():
    assert spread(torch.ones(6, 3), 4, seed=0).shape == (4, 3)
    owner, centres = kmeans(torch.ones(6, 3), torch.ones(4, 3), balanced=False)
    assert owner.shape == (6,) and torch.equal(centres, torch.ones(4, 3))
