"""Clusters of vectors, in one process and in two."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.processes import in_two_processes
from triptych import distributed
from triptych.clustering import (
    Shares,
    _split,
    assign,
    cluster_uniform_order,
    kmeans,
    kmeans_in_batches,
    mutual_information,
    spread_centres,
    whiten,
)
from triptych.errors import TriptychError


def _blobs(count: int = 900, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    labels = torch.randint(3, (count,), generator=generator)
    return centres[labels] + torch.randn(count, 2, generator=generator), labels


def test_the_nearest_centre_by_hand() -> None:
    points = torch.tensor([[0.0, 1.0], [4.0, 0.0], [9.0, 9.0]])
    centres = torch.tensor([[5.0, 0.0], [0.0, 0.0]])
    assert assign(points, centres).tolist() == [1, 0, 0]


def test_three_heaps_are_found() -> None:
    points, labels = _blobs()
    torch.manual_seed(0)
    found = assign(points, kmeans_in_batches(points, 3, batch=200, restarts=3))
    for cluster in range(3):
        assert labels[found == cluster].unique().numel() == 1
    assert found.unique().numel() == 3


def test_the_same_seed_gives_the_same_centres() -> None:
    points, _ = _blobs()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(kmeans_in_batches(points, 5, batch=100, restarts=2))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_first_centres_are_spread_points() -> None:
    points, labels = _blobs()
    centres = spread_centres(points, 3, torch.Generator().manual_seed(0))
    assert all((points == centre).all(dim=1).any() for centre in centres)
    assert labels[[int((points == centre).all(dim=1).nonzero()[0]) for centre in centres]].unique().numel() == 3


def test_too_few_vectors_are_told() -> None:
    with pytest.raises(TriptychError, match="2 vectors do not make 3 clusters"):
        kmeans_in_batches(torch.randn(2, 4), 3)


def _centres(rank: int, points: Tensor) -> Any:
    mine = points.tensor_split([300])[rank] if distributed.is_running() else points  # unequal shares
    shares = Shares(mine)
    torch.manual_seed(0)
    return shares.take(torch.tensor([5, 350, 299, 300])), kmeans_in_batches(mine, 4, batch=150, restarts=2)


def test_two_processes_come_to_the_centres_of_one() -> None:
    points, _ = _blobs()
    taken, centres = _centres(0, points)
    assert torch.equal(taken, points[[5, 350, 299, 300]])
    for other_taken, other in in_two_processes(_centres, points):
        assert torch.equal(other_taken, taken)
        torch.testing.assert_close(other, centres, atol=1e-6, rtol=0)


def test_whitened_rows_are_unit_vectors_of_components_of_one_variance() -> None:
    torch.manual_seed(0)
    points = torch.randn(500, 6) @ torch.randn(6, 8) + 3.0  # six directions of eight
    white = whiten(points, 16)
    assert white.shape == (500, 6)
    torch.testing.assert_close(white.norm(dim=1), torch.ones(500))
    # Neither the sizes of the columns nor their mixture counts: the angles between rows stay.
    mixed = whiten(points @ torch.randn(8, 8), 16)
    torch.testing.assert_close(mixed @ mixed.T, white @ white.T, atol=1e-4, rtol=0)


def test_all_points_alike_are_told() -> None:
    with pytest.raises(TriptychError, match="collapsed"):
        whiten(torch.ones(5, 3))


def test_lloyds_centres_are_the_means_of_their_points() -> None:
    points, labels = _blobs()
    torch.manual_seed(2)
    centres = kmeans(points, 3)
    places = assign(points, centres)
    for cluster in range(3):
        torch.testing.assert_close(centres[cluster], points[places == cluster].mean(dim=0))
    assert mutual_information(places, labels) > 0.99


def test_an_empty_cluster_takes_half_of_a_large_one() -> None:
    centres = torch.tensor([[8.0, 8.0], [0.0, 0.0]], dtype=torch.float64)
    found = _split(centres, torch.tensor([10.0, 0.0], dtype=torch.float64), 10, torch.Generator().manual_seed(0))
    by = 8 / 1024
    assert found.tolist() == [[8 - by, 8 + by], [8 + by, 8 - by]]


def test_clusters_are_drawn_equally_often() -> None:
    sizes = [3, 0, 1, 8, 2]  # of 14 rows: 14 // 4 + 1 = 4 draws a cluster that has any, 16 in all, cut to 14
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor(sizes))
    torch.manual_seed(0)
    for _ in range(20):
        order = cluster_uniform_order(labels)
        assert len(order) == 14
        counts = labels[order].bincount(minlength=5)
        assert counts[1] == 0 and counts.max() == 4 and counts[[0, 2, 3, 4]].min() >= 2
        large = order[labels[order] == 3]
        assert len(large.unique()) == len(large)  # eight members: none twice
    assert set(order.tolist()) <= set(range(14))


def test_rows_without_a_cluster_are_not_drawn() -> None:
    order = cluster_uniform_order(torch.tensor([-1, 0, 0, -1, 1]))
    assert len(order) == 3 and not {0, 3} & set(order.tolist())


def test_mutual_information_by_hand() -> None:
    a = torch.tensor([0, 0, 1, 1])
    assert mutual_information(a, torch.tensor([5, 5, 2, 2])) == pytest.approx(1.0)  # names do not count
    assert mutual_information(a, torch.tensor([0, 1, 0, 1])) == pytest.approx(0.0)
    # Three against one of two: I = 0.2158, entropies 0.6931 and 0.5623 (natural logarithms).
    assert mutual_information(a, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.2158 / 0.62772, abs=1e-3)
    assert mutual_information(torch.tensor([0, -1]), torch.tensor([0, 1])) == 1.0


def _clustered(rank: int, world: int, points: Tensor) -> tuple[Tensor, Tensor]:
    mine = points.tensor_split(world)[rank]
    torch.manual_seed(5)
    white = whiten(mine, 2)
    return white, kmeans(white, 3)


@pytest.mark.slow
def test_two_processes_cluster_as_one_does() -> None:
    points, _ = _blobs()
    white, centres = _clustered(0, 1, points)
    ranks = in_two_processes(_halves, points)
    torch.testing.assert_close(torch.cat([found[0] for found in ranks]), white, atol=1e-5, rtol=0)
    for _, found in ranks:
        torch.testing.assert_close(found, centres, atol=1e-5, rtol=0)


def _halves(rank: int, points: Tensor) -> tuple[Tensor, Tensor]:
    return _clustered(rank, 2, points)
