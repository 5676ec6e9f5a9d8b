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
from torch.nn import functional

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


# ---------------------------------------------------------------- whole data sets at once (DeepCluster, XDC)


def whiten(points: Float[Tensor, "points dim"], dim: int = 256, scale: bool = True) -> Float[Tensor, "points kept"]:
    """Return the main components of points, each of variance 1, and every row divided by its norm (xdc, section 5).

    Args:
        points: This process's share.
        dim: Components at most; there are no more than the points have directions.
        scale: Whether components are divided by the root of their variance.

    Raises:
        TriptychError: If all points are alike.
    """
    wide = points.double()
    count = distributed.average(torch.tensor(float(len(wide)), device=wide.device))
    mean = distributed.average(wide.sum(dim=0)) / count
    centred = wide - mean
    covariance = distributed.share(distributed.average(centred.T @ centred) / count)
    variance, directions = torch.linalg.eigh(covariance)
    variance, directions = variance.flip(0)[:dim], directions.flip(1)[:, :dim]
    if not variance[0] > 0:
        raise TriptychError("All vectors to be clustered are alike: the network that makes them has collapsed.")
    there = variance > 1e-9 * variance[0]
    components = centred @ directions[:, there]
    if scale:
        components = components / variance[there].sqrt()
    return functional.normalize(components, dim=1).float()


def kmeans(points: Float[Tensor, "points dim"], clusters: int, iterations: int = 20) -> Float[Tensor, "clusters dim"]:
    """Return the centres of Lloyd's k-means over all points of all processes (xdc, section 5, step 3).

    It begins with points drawn at random. A cluster that has become empty takes half of a large one, drawn by its size:
    both centres are that one's, moved apart by 1/1024 of it, as faiss has it.

    Args:
        points: This process's share.
        clusters: Centres.
        iterations: Of assigning and taking means.

    Raises:
        TriptychError: If there are fewer points than clusters.
    """
    shares = Shares(points.float())
    if shares.count < clusters:
        raise TriptychError(f"{shares.count} vectors do not make {clusters} clusters: use more recordings, or fewer.")
    generator = torch.Generator().manual_seed(int(distributed.share(torch.randint(2**31, (), device=points.device))))
    centres = shares.take(torch.randperm(shares.count, generator=generator)[:clusters]).double()
    wide = shares.mine.double()
    for _ in range(iterations):
        places = assign(wide, centres)
        sizes = places.bincount(minlength=clusters).double()
        sums = torch.zeros_like(centres).index_add(0, places, wide)
        if distributed.is_running():
            dist.all_reduce(sizes)
            dist.all_reduce(sums)
        means = sums / sizes.clamp(min=1)[:, None]
        centres = distributed.share(_split(means, sizes, shares.count, generator))
    return centres.float()


def _split(
    centres: Float[Tensor, "clusters dim"], sizes: Float[Tensor, " clusters"], count: int, generator: torch.Generator
) -> Float[Tensor, "clusters dim"]:
    """Return centres of which the empty ones stand beside a large one."""
    centres, sizes = centres.clone(), sizes.clone()
    apart = torch.where(torch.arange(centres.shape[1], device=centres.device) % 2 == 0, 1.0, -1.0) / 1024
    for empty in (sizes == 0).nonzero().flatten().tolist():
        large = int(torch.multinomial((sizes - 1).clamp(min=0).cpu(), 1, generator=generator))
        centres[empty] = centres[large] * (1 + apart)
        centres[large] = centres[large] * (1 - apart)
        sizes[empty] = sizes[large] / 2
        sizes[large] = sizes[large] / 2
    return centres


def cluster_uniform_order(labels: Int[Tensor, " rows"]) -> Int[Tensor, " draws"]:
    """Return rows in an order that draws all clusters that have any equally often (xdc, section 5, step 5).

    Of N rows in n clusters, each gives N // n + 1, without repetition if it has more; shuffled, and cut to N.

    Args:
        labels: Cluster of each row; a row of -1 is in none and is not drawn. On the CPU; torch's generator draws.
    """
    rows = (labels >= 0).nonzero().flatten()
    clusters = labels[rows].unique()
    share = len(rows) // max(len(clusters), 1) + 1
    drawn = []
    for cluster in clusters:
        members = rows[labels[rows] == cluster]
        if len(members) > share:
            drawn.append(members[torch.randperm(len(members))[:share]])
        else:
            drawn.append(members[torch.randint(len(members), (share,))])
    together = torch.cat(drawn) if drawn else rows
    return together[torch.randperm(len(together))][: len(rows)]


def mutual_information(a: Int[Tensor, " rows"], b: Int[Tensor, " rows"]) -> float:
    """Return the mutual information of two clusterings over the mean of their entropies, from 0 to 1 (NMI).

    Rows that have no cluster (-1) in either do not count; two clusterings of one cluster each agree.
    """
    both = (a >= 0) & (b >= 0)
    a, b = (x[both].unique(return_inverse=True)[1] for x in (a, b))
    if not len(a):
        return 1.0
    joint = torch.zeros(int(a.max()) + 1, int(b.max()) + 1, dtype=torch.float64)
    joint.index_put_((a.cpu(), b.cpu()), torch.tensor(1.0 / len(a), dtype=torch.float64), accumulate=True)
    first, second = joint.sum(dim=1), joint.sum(dim=0)
    entropies = [float(-(p * p.log()).sum()) for p in (first, second)]
    some = joint > 0
    shared = float((joint[some] * (joint / (first[:, None] * second))[some].log()).sum())
    return shared / (sum(entropies) / 2) if sum(entropies) else 1.0
