"""Probes and retrieval on vectors whose answer is known."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from tests.tiny import tiny_lava
from triptych.data.targets import read_labels
from triptych.embedding import EmbeddingTable
from triptych.errors import TriptychError, UsageError
from triptych.evaluation import probe
from triptych.evaluation.evaluator import Score, Sweeps
from triptych.evaluation.metrics import retrieval_ranks
from triptych.evaluation.probe import KNN, LinearProbe, LinearSVM, fit_logistic, fit_svm
from triptych.evaluation.retrieval import Items, Retrieval, compare
from triptych.evaluation.splits import choose_split, folds, train_and_test
from triptych.evaluation.table import Results, from_json
from triptych.media.collection import Rows
from triptych.model import random_model


@dataclass
class Known:
    """A model whose vectors are given: two windows a row, each the row's vector with noise."""

    signal: float = 3.0
    name: str = "known"

    def tables(self, rows: Rows) -> Mapping[str, EmbeddingTable]:
        rng = np.random.default_rng(len(rows))
        kinds = np.array([int(row["kind"] or 0) for row in rows])
        found = {}
        for stream, strength in (("video", self.signal), ("audio", 0.0)):
            base = rng.standard_normal((len(rows), 8))
            base[np.arange(len(rows)), kinds] += strength
            found[f"features:{stream}"] = _table(f"features:{stream}", [(stream, base)], rng)
        item = rng.standard_normal((len(rows), 16))
        near = item + 0.1 * rng.standard_normal(item.shape)
        found["joint"] = _table("joint", [("video", item), ("text", near)], rng)
        return found


def _table(space: str, streams: list[tuple[str, np.ndarray]], rng: np.random.Generator) -> EmbeddingTable:
    count = len(streams[0][1])
    times = {stream: 1 if stream == "text" else 2 for stream, _ in streams}
    numbers = np.concatenate([np.repeat(np.arange(count), times[stream]) for stream, _ in streams])
    vectors = np.concatenate([np.repeat(x, times[stream], axis=0) for stream, x in streams])
    vectors = vectors + 0.05 * rng.standard_normal(vectors.shape)
    names = np.concatenate([np.full(times[stream] * count, stream) for stream, _ in streams])
    zeros = np.zeros(len(numbers))
    paths = [f"{n}.mp4" for n in range(count)]
    return EmbeddingTable(space, vectors.astype(np.float32), paths, numbers, zeros, zeros, zeros.astype(int), names)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    lines = [f"{n}.mp4,{n % 4},thing {n // 2 if n < 20 else n},{'train' if n < 200 else 'test'}" for n in range(280)]
    (tmp_path / "m.csv").write_text("path,kind,caption,split\n" + "\n".join(lines) + "\n")
    return Rows.open(tmp_path / "m.csv")


PROBES = [LinearProbe("kind"), KNN("kind"), LinearProbe("kind", average="probabilities"), LinearSVM("kind")]


@pytest.mark.parametrize("task", [*PROBES, LinearSVM("kind", unit=True)])
def test_probes_find_what_is_there_and_no_more(rows: Rows, task: LinearProbe | KNN) -> None:
    scores = task.run(Known(), rows.split("train"), rows.split("test"))
    assert set(scores) == {"video", "audio", "audio+video"}
    assert scores["video"].value > 80 and scores["video"].chance == 25 and scores["video"].n == 80
    assert scores["video"].low < scores["video"].value <= scores["video"].high
    assert scores["audio"].value < 45
    assert scores["audio+video"].value > 75


def test_logistic_regression_is_scikit_learns(rows: Rows) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((120, 5)).astype(np.float32), rng.integers(0, 3, 120)
    penalty = 0.02
    marks = torch.eye(3)[torch.from_numpy(y)]
    ours = fit_logistic(torch.from_numpy(x), marks, penalty, steps=500)
    theirs = LogisticRegression(C=1 / (penalty * 120), tol=1e-8, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(ours[:-1].T.numpy(), theirs.coef_, atol=2e-3)
    several = fit_logistic(torch.from_numpy(x), marks, penalty, several=True, steps=500)
    for number in range(3):
        alone = LogisticRegression(C=1 / (penalty * 120), tol=1e-8, max_iter=1000).fit(x, y == number)
        np.testing.assert_allclose(several[:-1, number].numpy(), alone.coef_[0], atol=2e-3)


@pytest.mark.parametrize("cost", [1e-5, 1e-2, 1.0])
def test_the_support_vector_machine_is_that_of_scikit_learn(cost: float) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(3, size=90)
    x = (rng.normal(size=(90, 6)) + 0.7 * np.eye(6)[labels]).astype(np.float32)
    marks = torch.nn.functional.one_hot(torch.from_numpy(labels)).float()
    ours = fit_svm(torch.from_numpy(x), marks, cost)
    theirs = LinearSVC(C=cost, tol=1e-8, max_iter=100_000).fit(x, labels)
    np.testing.assert_allclose(ours[:-1].T, theirs.coef_, atol=1e-4, rtol=1e-3)
    np.testing.assert_allclose(ours[-1], theirs.intercept_, atol=1e-4, rtol=1e-3)
    warm = fit_svm(torch.from_numpy(x), marks, cost, start=torch.ones(7, 3))
    torch.testing.assert_close(warm, ours, atol=1e-4, rtol=1e-3)


def test_rows_of_a_group_are_one_item(rows: Rows, tmp_path: Path) -> None:
    test = rows.split("test").with_columns({"video_id": [str(n // 2) for n in range(80)]})
    kinds = [str(n // 2 % 4) for n in range(80)]
    test = Rows.build([{**row.values, "kind": kind} for row, kind in zip(test, kinds, strict=True)], test.root, "t")
    train = rows.split("train").with_columns({"video_id": [""] * 200})
    score = LinearProbe("kind", streams=["video"], group="video_id").run(Known(), train, test)["video"]
    assert score.n == 40 and score.value > 80
    mixed = test.with_columns({"video_id": ["a"] * 80})
    with pytest.raises(TriptychError, match="have different labels in 'kind'"):
        LinearProbe("kind", group="video_id").run(Known(), train, mixed)


def test_rows_with_several_labels_are_scored_by_map(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels 0 to 3 can be read from the vectors, the label `x` cannot."""
    monkeypatch.setattr(probe, "DRAWS", 20)
    rng = np.random.default_rng(5)
    marks = [f"{row['kind']}{';x' if rng.random() < 0.5 else ''}" for row in rows]
    several = rows.with_columns({"tags": marks})
    train, test = several.split("train"), several.split("test")
    scores = LinearProbe("tags", streams=["video"]).run(Known(), train, test)
    assert set(scores) == {"video mAP", "video AUC", "video d'"}
    found = scores["video mAP"]
    assert 80 < found.value < 95 and found.low < found.value < found.high and 25 < found.chance < 35  # type: ignore
    assert "5 classes" in found.note and scores["video d'"].value > 1 and scores["video d'"].chance == 0
    lists = several.with_columns({"tags": [json.dumps(mark.split(";")) for mark in marks]})
    again = LinearProbe("tags", streams=["video"]).run(Known(), lists.split("train"), lists.split("test"))
    assert again == scores
    near = KNN("tags", streams=["video"]).run(Known(), train, test)["video mAP"]
    assert 70 < near.value < 95


def test_cells_of_labels(tmp_path: Path) -> None:
    cells = ["a", "", "a;b ", "a|c", '["a", "b, c"]', "[]", "a, b"]
    rows = Rows.build([{"path": "x", "tags": cell} for cell in cells], tmp_path, "m")
    expected = [("a",), None, ("a", "b"), ("a", "c"), ("a", "b, c"), (), ("a, b",)]
    assert read_labels(rows, "tags") == expected
    with pytest.raises(UsageError, match="is no JSON list"):
        read_labels(Rows.build([{"path": "x", "tags": "[a"}], tmp_path, "m"), "tags")


def test_held_out_rows_leave_their_group_whole(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one group differ in noise only: a penalty chosen on some of them would not be chosen on unseen ones."""
    train = rows.split("train").with_columns({"clip": [str(n // 8) for n in range(200)]})
    kinds = [str(n // 8 % 4) for n in range(200)]
    train = Rows.build([{**row.values, "kind": kind} for row, kind in zip(train, kinds, strict=True)], train.root, "t")
    seen: list[int] = []
    monkeypatch.setattr(probe, "fit_logistic", lambda x, *rest: seen.append(len(x)) or fit_logistic(x, *rest))
    test = rows.split("test").with_columns({"clip": [""] * 80})
    LinearProbe("kind", streams=["video"], group="clip").run(Known(), train, test)
    assert set(seen[:-1]) == {320} and seen[-1] == 400  # of 25 groups of 8 rows with 2 windows, 5 are held out


def test_labels_must_be_there_and_differ(rows: Rows) -> None:
    train, test = rows.split("train"), rows.split("test")
    with pytest.raises(UsageError, match="no column 'colour'; it has path, kind"):
        LinearProbe("colour").run(Known(), train, test)
    with pytest.raises(TriptychError, match="only the label 'train'"):
        LinearProbe("split").run(Known(), train, test)
    with pytest.raises(UsageError, match="no features of the stream 'smell'"):
        LinearProbe("kind", streams=["smell"]).run(Known(), train, test)


def test_a_class_that_was_never_trained_is_told(rows: Rows) -> None:
    train = rows.split("train").where(lambda row: row["kind"] != "3")
    with pytest.raises(TriptychError, match="label '3' in 'kind', which no training row has"):
        LinearProbe("kind").run(Known(), train, rows.split("test"))


def test_retrieval_in_both_directions(rows: Rows) -> None:
    scores = Retrieval().run(Known(), rows, rows)
    assert scores["text to video R@1"].value > 95 and scores["video to text R@1"].value > 95
    assert scores["text to video R@1"].n == 280
    assert scores["text to video R@1"].chance == pytest.approx(100 * (260 + 20 * 2) / 280 / 280)
    only = Retrieval(query="text", target="video").run(Known(), rows, rows)
    assert set(only) == {f"text to video {name}" for name in ("R@1", "R@5", "R@10", "MedR")}
    with pytest.raises(UsageError, match="nothing to retrieve from smell"):
        Retrieval(query="smell").run(Known(), rows, rows)


def _joint(entries: list[tuple[str, int, list[float]]], paths: list[str]) -> EmbeddingTable:
    streams, numbers, vectors = zip(*entries, strict=True)
    zeros = np.zeros(len(entries))
    x = np.array(vectors, dtype=np.float32)
    return EmbeddingTable("joint", x, paths, np.array(numbers), zeros, zeros, zeros.astype(int), np.array(streams))


def test_several_captions_of_a_recording_by_hand(tmp_path: Path) -> None:
    """Three rows of two clips, as in MSR-VTT: each caption is a query, a clip one answer however many rows it has."""
    lines = ["a.mp4,one thing", "a.mp4,another thing", "b.mp4,one more"]
    (tmp_path / "m.csv").write_text("path,caption\n" + "\n".join(lines) + "\n")
    rows = Rows.open(tmp_path / "m.csv")
    a, b = [1.0, 0.0], [0.0, 1.0]
    table = _joint(
        [("video", 0, a), ("video", 1, a), ("video", 2, b), ("text", 0, a), ("text", 1, [0.6, 0.8]), ("text", 2, b)],
        ["a.mp4", "a.mp4", "b.mp4"],
    )
    items = Items.of(rows, None)
    asked = compare(table, "text", "video", items)
    ((similarity, correct),) = asked.blocks()
    np.testing.assert_allclose(similarity, [[1, 0], [0.6, 0.8], [0, 1]], atol=1e-6)
    assert correct.tolist() == [[True, False], [True, False], [False, True]]
    assert retrieval_ranks(similarity, correct).tolist() == [0, 1, 0]
    ((similarity, correct),) = compare(table, "video", "text", items).blocks()
    assert correct.tolist() == [[True, True, False], [False, False, True]]
    assert retrieval_ranks(similarity, correct).tolist() == [0, 0]  # the best of a clip's captions counts
    grouped = rows.with_columns({"clip": ["x", "y", "y"]})
    assert Items.of(grouped, "clip").item.tolist() == [0, 1, 1]


def test_a_dot_space_is_compared_by_length_too(tmp_path: Path) -> None:
    rows = Rows.build([{"path": "a.mp4"}, {"path": "b.mp4"}], tmp_path, "m")
    entries = [("video", 0, [1.0, 0.1]), ("video", 1, [3.0, 0.0]), ("audio", 0, [1.0, 0.1]), ("audio", 1, [1.0, 0.0])]
    table = _joint(entries, ["a.mp4", "b.mp4"])
    ranks = {}
    for metric in ("cosine", "dot"):
        ((similarity, correct),) = compare(table, "audio", "video", Items.of(rows, None), metric).blocks()
        ranks[metric] = retrieval_ranks(similarity, correct).tolist()
    assert ranks == {"cosine": [0, 0], "dot": [1, 0]}


def test_equal_vectors_of_the_gallery_are_exact_ties(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    count, same = 300, rng.standard_normal(37)
    rows = Rows.build([{"path": f"{n}.mp4"} for n in range(count)], tmp_path, "m")
    entries = [("video", n, same) for n in range(count)] + [("audio", n, rng.standard_normal(37)) for n in range(count)]
    found = compare(_joint(entries, [row["path"] for row in rows]), "audio", "video", Items.of(rows, None))
    ranks = np.concatenate([retrieval_ranks(*block) for block in found.blocks()])
    assert (ranks == (count - 1) / 2).all()


def test_one_sweep_serves_all_folds(rows: Rows) -> None:
    """Selections are cut from one sweep, and their rows numbered anew."""
    everything = rows.select(list(range(10, 60)))
    table = _table("joint", [("video", np.arange(50.0)[:, None] + 10)], np.random.default_rng(0))
    table.paths = [row["path"] for row in everything]
    recipe, tokenizer = tiny_lava()
    model = random_model(recipe.method, recipe.config, recipe.test, tokenizer)
    sweeps = Sweeps({"m": model}, everything, model.test)
    sweeps._made = [{"joint": table}]
    part = sweeps.tables("m", rows.select([58, 12, 30]))["joint"]
    numbers, means = part.by_row()
    assert numbers.tolist() == [0, 1, 2] and np.round(means[:, 0]).tolist() == [58, 12, 30]
    assert [part.row(place).path for place in range(len(part))][::2] == ["12.mp4", "30.mp4", "58.mp4"]


def test_splits(rows: Rows, tmp_path: Path) -> None:
    train, test = train_and_test(rows, None, learns=True)
    assert train is not None and (len(train), len(test)) == (200, 80)
    with pytest.raises(UsageError, match="test them on another"):
        train_and_test(rows, "train", learns=True)
    assert len(train_and_test(rows, "train", learns=False)[1]) == 200
    with pytest.raises(UsageError, match="no split 'holdout'; it has train, test"):
        train_and_test(rows, "holdout", learns=False)
    lists = Rows.build([{"path": "a", "split": "val"}, {"path": "b", "split": "test"}], tmp_path, "m")
    nothing, val = train_and_test(lists, "val", learns=False)  # lists of a public data set without its training part
    assert nothing is None and [row["path"] for row in val] == ["a"]
    with pytest.raises(UsageError, match="which probes learn on"):
        train_and_test(lists, "val", learns=True)
    with pytest.raises(UsageError, match="no column 'split'"):
        choose_split(Rows.build([{"path": "a"}], tmp_path, "m"), "val")
    assert [(len(a), len(b)) for a, b in folds(rows, "kind")] == [(210, 70)] * 4
    with pytest.raises(UsageError, match="has 1 folds"):
        folds(rows.split("train"), "split")


def test_a_table_shows_everybody_and_survives_json() -> None:
    score = Score(50.0, 40.0, 60.0, 10, 25.0)
    results = Results("run", "toy", 7, {"run": {"probe video": score}, "random:lava": {"probe video": score}})
    text = results.render()
    assert "random:lava" in text and "50.0 [40.0, 60.0]" in text and "seed 7" in text and "25.0" in text
    assert from_json(results.to_json(), "here").render() == text
    with pytest.raises(TriptychError, match="here holds something that is no result"):
        from_json({"model": 1}, "here")
    assert results.to_markdown().splitlines()[0] == "|  | run | random:lava | chance | n |"
