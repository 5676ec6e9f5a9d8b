"""Step localization: the examples of retrieval-and-tasks-common, section 2, and a run whose answer is known."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.tiny import tiny_lava
from triptych.embedding import EmbeddingTable
from triptych.errors import TriptychError, UsageError
from triptych.evaluation import steps as room
from triptych.evaluation.evaluator import Sweeps, Swept
from triptych.evaluation.steps import (
    Located,
    Step,
    StepLocalization,
    mark,
    mean_recall,
    place_in_order,
    read_steps,
)
from triptych.media.collection import Rows
from triptych.model import random_model
from triptych.recipe import Grid


def test_steps_are_placed_in_order_by_hand() -> None:
    assert place_in_order(np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.3], [0.2, 0.95]])).tolist() == [0, 3]
    turned = np.array([[0.1, 0.9], [0.2, 0.1], [0.9, 0.2], [0.3, 0.4]])
    assert place_in_order(turned).tolist() == [2, 3]  # without order, the second would be at 0
    assert turned.argmax(axis=0).tolist() == [2, 0]


def test_no_other_order_scores_more() -> None:
    rng = np.random.default_rng(0)
    for windows, steps in ((3, 3), (6, 2), (7, 4)):
        scores = rng.standard_normal((windows, steps))
        places = place_in_order(scores)
        assert (np.diff(places) > 0).all()
        ordered = itertools.combinations(range(windows), steps)
        best = max(scores[list(one), range(steps)].sum() for one in ordered)
        assert scores[places, range(steps)].sum() == pytest.approx(best)


def test_what_cannot_be_placed_is_told() -> None:
    with pytest.raises(TriptychError, match="2 windows are too few for 3 steps"):
        place_in_order(np.zeros((2, 3)))
    with pytest.raises(TriptychError, match="not numbers"):
        place_in_order(np.array([[np.nan], [0.0]]))


def test_seconds_that_meet_a_step() -> None:
    """With a window a second, rows floor(start) to ceil(end) - 1 are of the step (CrossTask)."""
    middles = np.arange(6) + 0.5
    steps = [Step("a", ((1.2, 3.0),)), Step("b"), Step("c", ((0.0, 0.5), (4.9, 7.0)))]
    assert mark(steps, middles).T.astype(int).tolist() == [[0, 1, 1, 0, 0, 0], [0] * 6, [1, 0, 0, 0, 1, 1]]
    # Windows of 3 s: the first and last stand for the ends.
    assert mark([Step("a", ((0.2, 0.4),))], np.array([1.5, 2.5, 3.5]))[:, 0].tolist() == [True, False, False]


def test_means_over_videos_or_over_steps() -> None:
    """Video A, 1 of 1 steps; video B, 1 of 3: pooled 2/4, by video (1 + 1/3) / 2; absent steps do not count."""
    hits, present = np.array([1.0, 1.0, 0.0]), np.array([1, 3, 0])
    one = np.zeros(3, dtype=np.int64)
    assert mean_recall(hits, present, one, pooled=True) == 0.5
    assert mean_recall(hits, present, one) == pytest.approx(0.6667, abs=1e-4)
    two = np.array([0, 1, 2])
    assert mean_recall(hits, present, two) == mean_recall(hits, present, two, pooled=True) == pytest.approx(2 / 3)
    assert mean_recall(hits[2:], present[2:], one[2:]) == 0.0


def test_ways_to_place_steps() -> None:
    scores = np.array([[0.1, 0.9], [0.2, 0.1], [0.9, 0.2], [0.3, 0.4]])
    truth = np.array([[0, 1], [0, 0], [1, 0], [0, 0]], dtype=bool)
    found = Located.of(scores, truth, seed=0)
    assert found.present == 2 and found.hits == {"ordered": 1, "over time": 2, "over steps": 2}
    assert 0 < found.guessed < 1


def test_cells_of_steps() -> None:
    cell = json.dumps([["crack egg", 1, 2.5], ["whisk"], ["fry", 4, 5, 8, 9]])
    assert read_steps(cell, "a.mp4") == (
        Step("crack egg", ((1.0, 2.5),)), Step("whisk"), Step("fry", ((4.0, 5.0), (8.0, 9.0)))
    )  # fmt: skip
    assert read_steps(" ", "a.mp4") == ()
    for bad in ("[1]", '[["a", 1]]', '[["a", 2, 1]]', "[[1, 2, 3]]", "{", '"x"'):
        with pytest.raises(UsageError, match=r"a\.mp4: .* is no list of steps"):
            read_steps(bad, "a.mp4")


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Swept, Rows]:
    """Return a model whose windows point at the step that is there, and two rows of two tasks with three steps each."""
    names = ["pour", "stir", "heat"]
    told = [json.dumps([[name, 2 * place, 2 * place + 1] for place, name in enumerate(names)])]
    told.append(json.dumps([["pour", 0, 1], ["stir"], ["heat", 1, 2]]))
    lines = [{"path": f"{n}.mp4", "steps": told[n], "task": f"t{n}"} for n in range(2)]
    rows = Rows.build(lines, tmp_path, "m")
    vectors = np.eye(4)[[0, 3, 1, 3, 2, 3]]  # one a second; the fourth direction is background
    entries = np.concatenate([vectors, vectors])
    starts = np.tile(np.arange(6.0), 2)
    table = EmbeddingTable(
        "joint", entries.astype(np.float32), ["0.mp4", "1.mp4"], np.repeat([0, 1], 6), starts, starts + 1,
        np.zeros(12, dtype=int), np.array(["video"] * 12),
    )  # fmt: skip
    asked: list[Any] = []

    def sweep(looks: Any, test: Rows, viewing: Any, **options: Any) -> dict[str, EmbeddingTable]:
        asked.append(viewing.windows)
        return {"joint": table}

    monkeypatch.setattr(room, "sweep", sweep)
    monkeypatch.setattr(room, "embed_words", lambda looks, name: {"joint": np.eye(4)[names.index(name)]})
    recipe, tokenizer = tiny_lava()
    model = random_model(recipe.method, recipe.config, recipe.test, tokenizer)
    sweeps = Sweeps({"m": model}, rows, model.test)
    sweeps.asked = asked  # type: ignore[attr-defined]
    return Swept("m", sweeps), rows


def test_a_model_finds_what_its_windows_show(swept: tuple[Swept, Rows]) -> None:
    model, rows = swept
    scores = StepLocalization("steps", group="task", seconds=1.0).run(model, rows, rows)
    assert model.sweeps.asked == [Grid(seconds=1.0, count=None, stride=1.0)]  # type: ignore[attr-defined]
    # The second row: `pour` is found, `heat` is at 4 s and not at 1 s, `stir` is not there and does not count.
    assert {name: score.value for name, score in scores.items()} == {
        "video recall": 75.0,
        "video pooled recall": 75.0,
        "video recall over time": 75.0,
        "video recall over steps": 75.0,
    }
    assert scores["video recall"].n == 5 and 0 < (scores["video recall"].chance or 0) < 75
    one = StepLocalization("steps").run(model, rows, rows)
    assert one["video recall"].value == 75.0 and one["video pooled recall"].value == 80.0
    with pytest.raises(UsageError, match="No window of m has a vector of audio"):
        StepLocalization("steps", streams=["audio"]).run(model, rows, rows)
    with pytest.raises(UsageError, match="knows no names of steps"):
        StepLocalization("steps").run(SimpleNamespace(name="pixels", tables=lambda rows: {}), rows, rows)  # type: ignore


def test_a_row_that_is_too_short_is_named(swept: tuple[Swept, Rows], tmp_path: Path) -> None:
    model, rows = swept
    many = json.dumps([["pour"]] * 7)
    short = Rows.build([{**row.values, "steps": many} for row in rows], tmp_path, "m")
    with pytest.raises(TriptychError, match=r"0\.mp4: 6 windows are too few for 7 steps\. Give a smaller --stride"):
        StepLocalization("steps").run(model, short, short)
    with pytest.raises(TriptychError, match="No row has steps in the column 'none'"):
        none = rows.with_columns({"none": ["", ""]})
        StepLocalization("none").run(model, none, none)
