"""Cells of label columns become numbers, and say so where they cannot."""

import math
from pathlib import Path

import pytest
import torch

from triptych.data.targets import LabelsBySecond, Number, OneLabel, SeveralLabels
from triptych.errors import TriptychError, UsageError
from triptych.media.collection import Rows


def _rows(tmp_path: Path, *cells: str) -> Rows:
    return Rows.build([{"path": f"{number}.mp4", "it": cell} for number, cell in enumerate(cells)], tmp_path, "m.csv")


def test_one_label(tmp_path: Path) -> None:
    rows = _rows(tmp_path, "dog", " cat ", "", "dog; cat")
    target = OneLabel.find(rows, "it")
    assert target.classes == ("cat", "dog", "dog; cat")
    places = target.read(rows, "it")
    assert places.tolist() == [1, 0, -100, 2]
    shares = target.shares(places, "it")
    assert shares[:2].tolist() == [[0, 1, 0], [1, 0, 0]] and shares[2].isnan().all()
    with pytest.raises(TriptychError, match="holds 'dog; cat', which is none of the 2 classes"):
        OneLabel(("cat", "dog")).read(rows, "it")
    with pytest.raises(UsageError, match="no column 'that'; it has path, it"):
        OneLabel.find(rows, "that")


def test_several_labels(tmp_path: Path) -> None:
    rows = _rows(tmp_path, "dog;cat", '["cat", "a;b"]', "", "[]", "dog | dog")
    target = SeveralLabels.find(rows, "it")
    assert target.classes == ("a;b", "cat", "dog")
    marks = target.read(rows, "it")
    assert marks[[0, 1, 3, 4]].tolist() == [[0, 1, 1], [1, 1, 0], [0, 0, 0], [0, 0, 1]] and marks[2].isnan().all()
    assert target.shares(marks, "it") is marks


def test_labels_by_second(tmp_path: Path) -> None:
    rows = _rows(tmp_path, '["zebra", "background", ""]', "", '["ant", null]')
    target = LabelsBySecond.find(rows, "it")
    assert target.classes == ("ant", "zebra", "background")
    assert target.read(rows, "it").tolist() == [[1, 2, -100], [-100, -100, -100], [0, -100, -100]]
    with pytest.raises(UsageError, match="'dog' in the column 'it' is no JSON list"):
        LabelsBySecond.find(_rows(tmp_path, "dog"), "it")
    with pytest.raises(UsageError, match="are not mixed"):
        target.shares(target.read(rows, "it"), "it")


def test_numbers(tmp_path: Path) -> None:
    found = Number().read(_rows(tmp_path, "1.5", "", "-2"), "it")
    assert found[[0, 2]].tolist() == [1.5, -2] and math.isnan(found[1])
    assert torch.equal(Number().shares(found[:1], "it"), found[:1])
    with pytest.raises(UsageError, match="no number"):
        Number().read(_rows(tmp_path, "x"), "it")
