"""Clusters of vectors that lie on several processes, each of which holds its share; all come to the same centres.

What is drawn is drawn among the vectors of all processes in their order, so that it does not depend on how many there
are.
"""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from triptych import distributed
from triptych.errors import TriptychError

CHUNK = 1 << 24
"""Distances that are held at once."""


def assign(points: Float[Tensor, "points dim"], centres: Float[Tensor, "clusters dim"]) -> Int[Tensor, " points"]:
    """Return the nearest centre of each point, by Euclidean distance."""
    return _nearest(points, centres)[0]


def _nearest(
    points: Float[Tensor, "points dim"], centres: Float[Tensor, "clusters dim"]
) -> tuple[Int[Tensor, " points"], Float[Tensor, " points"]]:
    """Return the nearest centre of each point, and the squared distance to it."""
    found = []
    sizes = centres.square().sum(dim=1)
    for part in points.split(max(CHUNK // len(centres), 1)):
        found.append(torch.addmm(sizes, part, centres.T, alpha=-2).min(dim=1))
    values, places = (torch.cat(each) for each in zip(*found, strict=True))
    return places, (values + points.square().sum(dim=1)).clamp(min=0)


class Shares:
    """The points of all processes, of which this one holds some."""

    def __init__(self, mine: Float[Tensor, "points dim"]) -> None:
        """Hold this process's share; all processes call it."""
        counts = distributed.every(len(mine))
        self.mine = mine
        self.first = sum(counts[: distributed.rank()])
        self.count = sum(counts)

    def take(self, places: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen dim"]:
        """Return the points at these places among those of all processes, on each of them."""
        here = places.to(self.mine.device) - self.first
        there = (here >= 0) & (here < len(self.mine))
        chosen = self.mine.new_zeros(len(places), self.mine.shape[1])
        chosen[there] = self.mine[here[there]]
        if distributed.is_running():
            dist.all_reduce(chosen)
        return chosen


def kmeans_in_batches(
    points: Float[Tensor, "points dim"],
    clusters: int,
    batch: int = 10_000,
    restarts: int = 20,
    epochs: int = 100,
    patience: int = 100,
) -> Float[Tensor, "clusters dim"]:
    """Return the centres of mini-batch k-means (Sculley 2010), as AV-HuBERT clusters (av-hubert, section 5).

    Of several k-means++ initialisations on a few batches of points, the one with the smallest error on others is kept.
    Then each centre moves towards its points of a batch, the less the more it has had. It ends after ``epochs``, or
    when the smoothed error has not fallen for ``patience`` batches. A centre without points stays where it is.

    Args:
        points: This process's share.
        clusters: Centres.
        batch: Points of a batch.
        restarts: Initialisations.
        epochs: Times that all points are seen at most.
        patience: Batches without progress.

    Raises:
        TriptychError: If there are fewer points than clusters.
    """
    shares = Shares(points.float())
    if shares.count < clusters:
        raise TriptychError(f"{shares.count} vectors do not make {clusters} clusters: use more recordings, or fewer.")
    generator = torch.Generator().manual_seed(int(distributed.share(torch.randint(2**31, (), device=points.device))))

    def draw(count: int) -> Tensor:
        return shares.take(torch.randint(shares.count, (count,), generator=generator))

    size = max(3 * batch, 3 * clusters)
    tested = draw(size)
    best, least = None, float("inf")
    for _ in range(restarts):
        centres = spread_centres(draw(size), clusters, generator)
        error = float(_nearest(tested, centres)[1].double().sum())
        if error < least:
            best, least = centres, error
    assert best is not None
    return _refine(best.double(), draw, batch, shares.count, epochs, patience)


def spread_centres(
    points: Float[Tensor, "points dim"], clusters: int, generator: torch.Generator
) -> Float[Tensor, "clusters dim"]:
    """Return points as first centres, each drawn with the squared distance to the nearest one before (k-means++).

    Of 2 + ln(clusters) points drawn for a centre the one that leaves the smallest error is taken, as in scikit-learn.

    Args:
        points: To choose from.
        clusters: How many.
        generator: Source of the draws, on the CPU.
    """
    tries = 2 + int(math.log(clusters))
    norms = points.square().sum(dim=1)
    first = int(torch.randint(len(points), (), generator=generator))
    chosen = [first]
    nearest = _squared(points, norms, points[first : first + 1])[0]
    for _ in range(clusters - 1):
        weights = nearest.double().cumsum(dim=0)
        rolls = torch.rand(tries, generator=generator, dtype=torch.float64).to(points.device) * weights[-1]
        drawn = torch.searchsorted(weights, rolls).clamp(max=len(points) - 1)
        left = torch.minimum(_squared(points, norms, points[drawn]), nearest)
        best = int(left.sum(dim=1).argmin())
        chosen.append(int(drawn[best]))
        nearest = left[best]
    return points[chosen]


def _squared(
    points: Float[Tensor, "points dim"], norms: Float[Tensor, " points"], centres: Float[Tensor, "centres dim"]
) -> Float[Tensor, "centres points"]:
    return (norms + centres.square().sum(dim=1, keepdim=True) - 2 * centres @ points.T).clamp(min=0)


def _refine(
    centres: Float[Tensor, "clusters dim"],
    draw: Callable[[int], Float[Tensor, "batch dim"]],
    batch: int,
    count: int,
    epochs: int,
    patience: int,
) -> Float[Tensor, "clusters dim"]:
    had = centres.new_zeros(len(centres))
    share = min(1.0, 2 * batch / (count + 1))
    smooth, least, waited = None, math.inf, 0
    for _ in range(math.ceil(epochs * count / batch)):
        points = draw(batch).double()
        places, distances = _nearest(points, centres)
        # Processes must agree to the last digit on when to stop.
        error = float(distributed.share(distances.mean()))
        smooth = error if smooth is None else (1 - share) * smooth + share * error
        waited = 0 if smooth < least else waited + 1
        least = min(least, smooth)
        if waited >= patience:
            break
        members = places.bincount(minlength=len(centres)).double()
        sums = torch.zeros_like(centres).index_add(0, places, points)
        had += members
        means = sums / members.clamp(min=1)[:, None]
        centres = distributed.share(centres + (members / had.clamp(min=1))[:, None] * (means - centres))
    return centres.float()
