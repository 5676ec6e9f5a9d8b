"""The examples run."""

import runpy
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_lava
from triptych.media.collection import Rows
from triptych.methods.lava import LAVA
from triptych.model import write_model
from triptych.toyworld.write import write_toyworld

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_similarity_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_toyworld(tmp_path / "world", recordings=12, workers=1, progress=False)
    told = Rows.open(manifest).where(captioned="yes").save(manifest.with_name("told.csv"))
    recipe, tokenizer = tiny_lava()
    torch.manual_seed(0)
    write_model(tmp_path / "model", LAVA(recipe.config), recipe, tokenizer)  # type: ignore[arg-type]
    monkeypatch.setattr("sys.argv", ["similarity_matrix.py", str(tmp_path / "model"), str(told)])
    runpy.run_path(str(EXAMPLES / "similarity_matrix.py"), run_name="__main__")
    assert "text x video" in capsys.readouterr().out


def test_harmonize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_toyworld(tmp_path / "world", recordings=12, workers=1, progress=False)
    changes = ("steps=2", "batch.rows=4", "workers=0")
    monkeypatch.setattr("sys.argv", ["harmonize.py", str(manifest), str(tmp_path / "runs"), *changes])
    runpy.run_path(str(EXAMPLES / "harmonize.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert "cosine.va.vt" in told and told.count("kept") == 2
