"""Clusters of vectors, in one process and in two."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.processes import in_two_processes
from triptych import distributed
from triptych.clustering import Shares, assign, kmeans_in_batches, spread_centres
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
