"""The page of a run: what is computed for it, and that it stands alone."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from triptych import report
from triptych.embedding import EmbeddingTable
from triptych.errors import TriptychError
from triptych.evaluation.evaluator import Score
from triptych.evaluation.table import Results


def _table() -> EmbeddingTable:
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], dtype=np.float32)
    zeros = np.zeros(4)
    streams = np.array(["video", "video", "video", "audio"])
    return EmbeddingTable(
        "joint", vectors, ["a", "b"], np.array([0, 0, 1, 1]), zeros, zeros, zeros.astype(int), streams
    )


def test_recordings_are_ranked_by_their_nearest_window() -> None:
    ranked = report.rank_recordings(np.array([0.8, 0.6], dtype=np.float32), _table().select("video"))
    assert [place for place, _ in ranked] == [1, 2]
    np.testing.assert_allclose([score for _, score in ranked], [1.0, 0.6], atol=1e-6)


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert report.read_lines(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"st\n')
    with pytest.raises(TriptychError, match="line 2 is no JSON"):
        report.read_lines(path)


def test_a_running_mean_looks_back() -> None:
    assert report._running_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1, 2, 4, 6]
    assert report._running_mean(np.array([1.0, 3.0]), 1).tolist() == [1, 3]


def test_two_components_explain_a_line() -> None:
    points, share = report.project(np.outer(np.arange(5.0), [3.0, 4.0, 0.0]).astype(np.float32))
    np.testing.assert_allclose(share, [1, 0], atol=1e-6)
    np.testing.assert_allclose(np.abs(points[:, 0]), [10, 5, 0, 5, 10], atol=1e-4)


def test_figures_and_page_load_nothing() -> None:
    lines = [{"step": step, "loss": 1 / (step + 1), "lr": 0.1} for step in range(120)]
    score = Score(50.0, 40.0, 60.0, 10, 25.0)
    scores = {"run": {"probe video": score, "retrieval text to video MedR": score}, "random:lava": {}}
    figures = [
        report.draw_curves(lines, ["loss", "absent"], "a < b"),
        report.draw_map(_table(), ["x", "", "x & y", "x"]),
        report.draw_scores(Results("run", "toy", 0, scores)),
    ]
    assert report.draw_curves(lines, ["absent"], "nothing") == ""
    assert all(figure.count("<svg") == 1 for figure in figures)
    page = report.render_page("<title>", [("First & second", "".join(figures)), ("Empty", "")])
    assert "&lt;title&gt;" in page and 'href="#0">First &amp; second' in page and "Empty" not in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "@import" not in page and "url(http" not in page


def test_the_newest_of_each_score_is_shown_and_older_ones_are_folded_away(tmp_path: Path) -> None:
    def results(name: str, value: float) -> str:
        scores = {"run": {name: Score(value, value, value, 10, 25.0)}}
        return json.dumps(Results("run", f"toy {value}", 0, scores).to_json()) + "\n"

    lines = [results("retrieval text to video R@1", 11.0), results("probe video", 22.0), results("probe video", 33.0)]
    (tmp_path / "evaluations.jsonl").write_text("".join(lines))
    shown, folded = report._evaluations(tmp_path).split("<details><summary>1 earlier")
    assert "toy 11.0" in shown and "toy 33.0" in shown and "toy 22.0" not in shown
    assert "toy 22.0" in folded
