"""Event localization on real files, by the verbs: adapters on a pretrained run, measured and told second by second."""

import json
from pathlib import Path

import pytest

from triptych import api
from triptych.api import finetuning, measures, runs
from triptych.errors import UsageError
from triptych.methods.lavish import LAVISH
from triptych.model import read_model
from triptych.toyworld.write import write_toyworld

TINY = ("width=16", "layers=1", "heads=2", "video_stem=[[4,4]]", "audio_stem=[[4,8,8]]")
QUICK = ["workers=0", "log_steps=1"]
SMALL = ["config.reduction=2", "config.hidden=8", "batch.rows=4", "steps=2", *QUICK]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toyworld(tmp_path_factory.mktemp("world"), recordings=12, seed=4, workers=1, progress=False)


@pytest.fixture(scope="module")
def pretrained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "lava"
    runs.pretrain(world, "lava", out, "small", [*(f"config.{x}" for x in TINY), "steps=1", "batch.rows=4", *QUICK])
    return out


def test_from_a_pretrained_run_to_a_label_for_every_second(world: Path, pretrained: Path, tmp_path: Path) -> None:
    rows = api.open_source(world)
    out = finetuning.finetune(pretrained, rows, tmp_path / "events", label="segments", task="events", assignments=SMALL)
    assert out is not None
    model = read_model(out)
    assert isinstance(model.method, LAVISH) and model.labels[-1] == "background"
    frozen = read_model(pretrained).method.state_dict()
    kept = model.method.base.state_dict()
    assert kept and all((frozen[name] == tensor).all() for name, tensor in kept.items())

    names = set(model.labels)
    known = [n for n, row in enumerate(rows) if set(json.loads(row["segments"])) <= names]
    told = rows.select(known)
    results = measures.evaluate(str(tmp_path / "events"), told, ["events"], split="train", workers=0)
    score = results.scores[str(tmp_path / "events")]["events accuracy"]
    seconds = sum(len(json.loads(row["segments"])) for row in told if row["split"] == "train")
    assert 0 <= score.value <= 100 and score.note.startswith(f"{seconds} seconds, {len(names)} classes")
    assert set(results.scores) == {str(tmp_path / "events"), "random:lavish"}

    lines = api.predict(tmp_path / "events", told, tmp_path / "said.jsonl", workers=0).read_text().splitlines()
    said = [json.loads(line) for line in lines]
    first = [one for one in said if one["path"] == told.row(0)["path"]]
    # A window a second, and one that ends with the recording: not the two seconds that the base sees of each.
    assert [(one["start"], one["end"]) for one in first[:2]] == [(0.0, 1.0), (1.0, 2.0)]
    assert all(one["class"] in names and set(one["scores"]) == names for one in said)


def test_what_is_not_for_events_is_refused(world: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tells no events"):
        measures.evaluate(str(pretrained), world, ["events"])
    with pytest.raises(UsageError, match="finetune MODEL SOURCE --label COLUMN"):
        runs.pretrain(world, "lavish", tmp_path / "run", "small")
    with pytest.raises(UsageError, match="no JSON list"):
        finetuning.finetune(str(pretrained), world, tmp_path / "run", label="kind", task="events")
