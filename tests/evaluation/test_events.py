"""Event localization: the specification's example, and a model that knows every second."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from triptych.batch import View
from triptych.errors import TriptychError, UsageError
from triptych.evaluation.evaluator import Sweeps
from triptych.evaluation.events import EventLocalization, count_right, second_scores
from triptych.media.collection import Rows
from triptych.method import Method
from triptych.model import Model
from triptych.recipe import Config, Grid, StreamSpec, VideoTransform, Viewing
from triptych.toyworld.write import write_toyworld

CLASSES = ("even", "odd", "background")


def test_the_example_of_the_specification() -> None:
    # bg bg dog x 5 bg x 3, predicted dog for seconds 1 to 7, else bg: seconds 1 and 7 are wrong.
    labels = np.array([[1, 1, 0, 0, 0, 0, 0, 1, 1, 1]])
    named = np.array([1, 0, 0, 0, 0, 0, 0, 0, 1, 1])
    right, total = count_right(labels, np.eye(2)[named][None])
    assert (right.tolist(), total.tolist()) == ([8], [10])


def test_seconds_without_a_label_do_not_count_and_those_nothing_saw_are_wrong() -> None:
    labels = np.array([[0, 1, -100, 0]])
    scores = np.eye(2)[[0, 1, 1, 0]][None]
    scores[0, 3] = np.nan
    right, total = count_right(labels, scores)
    assert (right.tolist(), total.tolist()) == ([2], [3])


class Seer(Method):
    """Names the parity of the second that the middle of each of its parts lies in."""

    def __init__(self, parts: int = 1) -> None:
        super().__init__(Config())
        self.parts = parts
        self.weight = nn.Parameter(torch.zeros(()))

    def predict(self, view: View) -> dict[str, Tensor]:
        span = view["video"].span
        length = (span[:, 1:] - span[:, :1]) / self.parts
        second = (span[:, :1] + length * (torch.arange(self.parts) + 0.5)).floor().long()
        return {"events": 5 * torch.nn.functional.one_hot(second % 2, 3).float()}


def _model(seconds: float, stride: float | None = None, parts: int = 1) -> Model:
    spec = StreamSpec(transform=VideoTransform(size=16), rate=2.0)
    viewing = Viewing(windows=Grid(seconds=seconds, count=None, stride=stride), views=({"video": spec},))
    return Model(Seer(parts), "seer", viewing, name="seer")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    world = write_toyworld(tmp_path_factory.mktemp("world"), recordings=4, seed=3, workers=1, progress=False)
    told = Rows.open(world)
    values = []
    for row in told:
        count = len(json.loads(row["segments"]))
        values.append({**row.values, "segments": json.dumps(["even", "odd", "even", "odd", "even", "odd"][:count])})
    return Rows.build(values, told.root, told.source)


@pytest.mark.parametrize(("seconds", "stride", "parts"), [(1.0, None, 1), (0.5, None, 1), (2.0, 2.0, 2)])
def test_one_that_knows_every_second_names_all(rows: Rows, seconds: float, stride: float | None, parts: int) -> None:
    model = _model(seconds, stride, parts)
    sweeps = Sweeps({"seer": model}, rows, model.test, workers=0)
    score = EventLocalization(CLASSES).run(sweeps.of("seer"), rows, rows)["accuracy"]
    assert score.value == score.low == score.high == 100.0 and score.n == 4
    total = sum(len(json.loads(row["segments"])) for row in rows)
    assert score.chance is not None and 50 <= score.chance < 100 and score.note.startswith(f"{total} seconds")
    assert score.note.endswith("always 'even'")


def test_a_second_that_no_window_sees_has_no_score(rows: Rows) -> None:
    model = _model(1.0, stride=2.0)
    found = second_scores(model, rows, model.test, 6, workers=0)
    assert set(found) == set(range(4))
    for number, row in enumerate(rows):
        seen = ~np.isnan(found[number]).any(axis=1)
        assert seen[0] and not seen[1] and seen[2]
        assert seen.sum() <= len(json.loads(row["segments"]))
        assert found[number][0].argmax() == 0


def test_what_cannot_be_measured_is_told(rows: Rows, tmp_path: Path) -> None:
    model = _model(1.0)
    swept = Sweeps({"seer": model}, rows, model.test, workers=0).of("seer")
    with pytest.raises(TriptychError, match="'odd', which is none of the 2 classes"):
        EventLocalization(("even", "background")).run(swept, rows, rows)
    with pytest.raises(UsageError, match="no JSON list"):
        EventLocalization(CLASSES, label="kind").run(swept, rows, rows)
    empty = Rows.build([{**row.values, "segments": ""} for row in rows], rows.root, rows.source)
    with pytest.raises(TriptychError, match="No second of the rows"):
        EventLocalization(CLASSES).run(swept, empty, empty)
