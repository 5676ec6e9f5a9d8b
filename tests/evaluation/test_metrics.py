"""Metrics: the hand-computed examples of the field, and what must not change them."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from triptych.errors import TriptychError
from triptych.evaluation import metrics

S = np.array([[0.9, 0.9, 0.1], [0.2, 0.5, 0.3], [0.4, 0.4, 0.4]])


@pytest.mark.parametrize(
    ("ties", "entries", "r1", "median", "mean"),
    [
        ("average", [0.5, 0, 1], 100 / 3, 1.5, 1.5),
        ("optimistic", [0, 0, 0], 100.0, 1.0, 1.0),
        ("howto100m", [0, 1, 0, 0, 1, 2], 50.0, 1.5, 5 / 3),
        ("pessimistic", [1, 0, 2], 100 / 3, 2.0, 2.0),
    ],
)
def test_retrieval_by_hand(ties: metrics.Ties, entries: list[float], r1: float, median: float, mean: float) -> None:
    ranks = metrics.retrieval_ranks(S, ties=ties)
    assert ranks.tolist() == entries
    assert metrics.recall_at(ranks, 1) == pytest.approx(r1)
    assert metrics.recall_at(ranks, 5) == 100
    assert metrics.median_rank(ranks) == median and metrics.mean_rank(ranks) == pytest.approx(mean)


def test_missing_queries_lower_recall_only() -> None:
    ranks = metrics.retrieval_ranks(S)
    assert metrics.recall_at(ranks, 1, total=4) == 25 and metrics.recall_at(ranks, 5, total=4) == 75


def test_a_constant_similarity_scores_like_chance() -> None:
    ranks = metrics.retrieval_ranks(np.ones((9, 9)))
    assert metrics.median_rank(ranks) == 5 and metrics.recall_at(ranks, 1) == 0


def test_equal_captions_answer_each_other() -> None:
    similarity = np.array([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5], [0.2, 0.3, 0.1]])
    names = np.array(["a", "a", "b"])
    ranks = metrics.retrieval_ranks(similarity, names[:, None] == names[None, :])
    assert ranks.tolist() == [0, 0, 2]


def test_chance_with_groups() -> None:
    right = np.array([2, 2, 1, 1])
    assert metrics.chance_recall(right, 4, 1) == pytest.approx(100 * (0.5 + 0.5 + 0.25 + 0.25) / 4)
    # of 4 items, 2 right, 2 drawn: 1 - (2/4)(1/3) = 5/6; of 4 with 1 right: 1/2
    assert metrics.chance_recall(right, 4, 2) == pytest.approx(100 * (5 / 6 + 5 / 6 + 0.5 + 0.5) / 4)
    assert metrics.chance_recall(right, 4, 10) == 100
    assert metrics.chance_median(np.array([1, 1, 1]), 9) == 5
    assert metrics.chance_median(right, 4) == 2  # 37.5 % at rank 1, 66.7 % at rank 2


def test_random_vectors_score_chance() -> None:
    rng = np.random.default_rng(0)
    ranks = metrics.retrieval_ranks(rng.standard_normal((1000, 1000)))
    assert metrics.recall_at(ranks, 1) < 0.5 and abs(metrics.median_rank(ranks) - 500) < 40


def test_increasing_transforms_and_permutations_change_nothing() -> None:
    rng = np.random.default_rng(1)
    similarity = rng.standard_normal((20, 20))
    order = rng.permutation(20)
    ranks = metrics.retrieval_ranks(similarity)
    assert np.array_equal(metrics.retrieval_ranks(np.exp(3 * similarity)), ranks)
    assert np.array_equal(metrics.retrieval_ranks(similarity[order][:, order]), ranks[order])


def test_bad_similarities_raise() -> None:
    with pytest.raises(TriptychError, match="NaN"):
        metrics.retrieval_ranks(np.array([[np.nan]]))
    with pytest.raises(TriptychError, match="at least one"):
        metrics.retrieval_ranks(np.zeros((0, 0)))


@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [
        ([1, 0, 1, 0], [4, 3, 2, 1], 0.833333),
        ([0, 1, 0, 1], [4, 3, 2, 1], 0.5),
        ([1, 0, 1], [0.8, 0.8, 0.1], 0.583333),
    ],
)
def test_average_precision_by_hand(labels: list[int], scores: list[float], expected: float) -> None:
    value = metrics.average_precision(np.array(labels, dtype=bool), np.array(scores, dtype=float))
    assert value == pytest.approx(expected, abs=1e-6)


def test_against_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    labels, scores = rng.random((60, 6)) < 0.3, rng.integers(0, 8, (60, 6)) / 8
    labels[:, 4], labels[:, 5] = False, True
    found = metrics.multi_label(labels, scores)
    assert found.excluded == (4,)
    # A class that every row has counts for precision; for the area it has no negatives.
    precisions = [average_precision_score(labels[:, c], scores[:, c]) for c in (0, 1, 2, 3, 5)]
    assert found.mean_ap == pytest.approx(np.mean(precisions)) and precisions[-1] == 1
    assert found.mean_auc == pytest.approx(roc_auc_score(labels[:, :4], scores[:, :4]))
    with pytest.raises(TriptychError, match="No class"):
        metrics.multi_label(labels[:, 4:5], scores[:, 4:5])


def test_a_weight_is_a_repetition() -> None:
    rng = np.random.default_rng(4)
    labels, scores = rng.random((30, 3)) < 0.4, rng.integers(0, 6, (30, 3)) / 6
    times = rng.integers(0, 3, 30)
    weighted = metrics.MultiLabelScorer(labels, scores)(times)
    repeated = metrics.multi_label(labels.repeat(times, axis=0), scores.repeat(times, axis=0))
    assert weighted.mean_ap == pytest.approx(repeated.mean_ap) and weighted.d_prime == pytest.approx(repeated.d_prime)


def test_roc_auc_by_hand() -> None:
    labels, scores = np.array([1, 0, 1, 0, 1], dtype=bool), np.array([0.9, 0.9, 0.8, 0.1, 0.4])
    assert metrics.roc_auc(labels, scores) == pytest.approx(3.5 / 6)


@pytest.mark.parametrize(("auc", "expected"), [(0.5, 0), (0.9, 1.812388), (0.95, 2.326174), (0.975, 2.771808)])
def test_d_prime(auc: float, expected: float) -> None:
    assert metrics.d_prime(auc) == pytest.approx(expected, abs=1e-6)


def test_accuracy() -> None:
    scores = np.array([[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]])
    assert metrics.accuracy(scores, np.array([1, 1, 1])).tolist() == [1, 0, 0]
    assert metrics.accuracy(scores, np.array([1, 1, 1]), k=2).tolist() == [1, 1, 1]


def test_bootstrap_resamples_groups_whole() -> None:
    values = np.array([0.0, 0.0, 1.0, 1.0])
    low, high = metrics.bootstrap(lambda places: float(values[places].mean()), ["a", "a", "b", "b"])
    assert (low, high) == (0.0, 1.0)
    rng = np.random.default_rng(3)
    many = rng.random(400) < 0.4
    low, high = metrics.bootstrap(lambda places: float(many[places].mean()), np.arange(400))
    assert low < many.mean() < high and 0.08 < high - low < 0.11
