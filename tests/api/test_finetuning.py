"""Fine-tuning and predicting on real files: from a run, from random weights, in folds, with and without labels."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from triptych import api
from triptych.api import finetuning, measures, runs
from triptych.errors import TriptychError, UsageError
from triptych.media.collection import Rows
from triptych.methods.supervised import Supervised
from triptych.model import read_model
from triptych.toyworld.write import write_toyworld
from triptych.training.loop import Stopped

TINY = ("width=16", "layers=1", "heads=2", "video_stem=[[4,4]]", "audio_stem=[[4,8,8]]")
LAVA = [f"config.{change}" for change in TINY]
BELOW = [f"config.base_config.{change}" for change in TINY]
QUICK = ["workers=0", "batch.rows=6", "log_steps=1"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a manifest of 18 recordings: 12 to learn from, 3 to validate, 3 to test."""
    folder = tmp_path_factory.mktemp("world")
    rows = Rows.open(write_toyworld(folder, recordings=18, seed=4, workers=1, progress=False))
    place = [number for number in range(len(rows))]
    columns = {
        "split": ["train"] * 12 + ["val"] * 3 + ["test"] * 3,
        "fold": [str(number % 3) for number in place],
        "half": ["ab"[number % 2] for number in place],
        "tags": [["a", "a;b", "b", "[]"][number % 4] for number in place],
        "some": ["" if number % 3 else "ab"[number % 2] for number in place],
        "one": ["a"] * 12 + ["b"] * 6,
        "none": [""] * 18,
        "odd": ["ab"[number % 2] for number in range(12)] + ["c"] * 6,
    }
    rows = Rows.build([{k: v for k, v in row.values.items() if k not in columns} for row in rows], folder, "m.csv")
    return api.open_source(rows.with_columns(columns)).save(folder / "labelled.csv")


@pytest.fixture(scope="module")
def pretrained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "lava"
    runs.pretrain(world, "lava", run, "small", [*LAVA, "steps=2", *QUICK])
    return run


@pytest.fixture(scope="module")
def tuned(world: Path, pretrained: Path) -> Path:
    out = pretrained.parent / "tuned"
    finetuning.finetune(str(pretrained), world, out, label="half", streams=["video"], assignments=["epochs=3", *QUICK])
    return out


def test_a_run_is_fine_tuned_validated_and_measured(world: Path, pretrained: Path, tuned: Path) -> None:
    model = read_model(tuned)
    assert model.labels == ("a", "b") and model.method_name == "supervised" and set(model.test.views[0]) == {"video"}
    assert isinstance(model.method, Supervised) and model.method.options.base == "lava"
    scores = [json.loads(line) for line in (tuned / "log.jsonl").read_text().splitlines()]
    measured = [line["scores"]["accuracy"] for line in scores if "scores" in line]
    assert len(measured) == 3
    facts = json.loads((tuned / "recipe.json").read_text())
    assert facts["task"] == "classes" and facts["label"] == "half" and facts["data"]["rows"] == 12
    assert facts["recipe"]["selection"] == {**facts["recipe"]["selection"], "score": "accuracy", "keep": "best"}
    results = measures.evaluate(tuned, world, ["classes"], windows=2, crops=3)
    assert set(results.scores[str(tuned)]) == {"classes accuracy"}
    assert results.scores[str(tuned)]["classes accuracy"].n == 3


def test_the_base_begins_with_the_pretrained_weights(world: Path, pretrained: Path, tmp_path: Path) -> None:
    slow = ["epochs=1", "optimizer.lr=1e-12", "optimizer.weight_decay=0", *QUICK]
    out = tmp_path / "out"
    finetuning.finetune(str(pretrained / "model"), world, out, label="half", streams=["video"], assignments=slow)
    before, after = read_model(pretrained).method.state_dict(), read_model(out).method.state_dict()
    named = [name for name in after if name.startswith("base.") and after[name].is_floating_point()]
    assert named
    for name in named:
        if "running" not in name:
            torch.testing.assert_close(after[name], before[name.removeprefix("base.")], atol=1e-8, rtol=0)


def test_predictions_of_rows_and_windows(world: Path, tuned: Path, tmp_path: Path) -> None:
    api.predict(tuned, world, tmp_path / "p.csv", split="test", workers=0)
    lines = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert len(lines) == 3 and list(lines[0]) == ["path", "start", "end", "class", "score", "score:a", "score:b"]
    for line in lines:
        assert float(line["score:a"]) + float(line["score:b"]) == pytest.approx(1, abs=1e-5)
        assert line["score"] == line[f"score:{line['class']}"] and float(line["end"]) > float(line["start"]) >= 0
    api.predict(tuned, world, tmp_path / "w.jsonl", split="test", each_window=True, windows=2, crops=3, workers=0)
    windows = [json.loads(line) for line in (tmp_path / "w.jsonl").read_text().splitlines()]
    assert len(windows) == 3 * 2 * 3 and windows[0]["scores"].keys() == {"a", "b"}
    with pytest.raises(UsageError, match=r"x.txt: predictions are written as .csv or .jsonl"):
        api.predict(tuned, world, tmp_path / "x.txt")


def test_only_fine_tuned_models_predict(world: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="was not fine-tuned, so it predicts nothing"):
        api.predict(pretrained, world, tmp_path / "p.csv")
    with pytest.raises(UsageError, match="lava names no classes; train one that does: triptych finetune"):
        measures.evaluate(pretrained, world, ["classes"])


def test_fine_tuning_goes_on_exactly(world: Path, pretrained: Path, tmp_path: Path, monkeypatch: Any) -> None:
    options: dict[str, Any] = {"label": "half", "streams": ["video"], "hold_out": 0.25}
    changes = ["steps=4", "epochs=null", *QUICK, "mixing={mixup: 0.5}", "batch.rows=3"]
    finetuning.finetune(str(pretrained), world, tmp_path / "whole", assignments=changes, **options)
    objective = Supervised.objective

    def stopping(self: Supervised, batch: Any, clock: Any) -> Any:
        if clock.step == 2:
            raise KeyboardInterrupt
        return objective(self, batch, clock)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, Stopped)):
        patch.setattr(Supervised, "objective", stopping)
        finetuning.finetune(
            str(pretrained), world, tmp_path / "part", assignments=[*changes, "checkpoint_steps=1"], **options
        )
    again = load_file(runs.resume(tmp_path / "part") / "model.safetensors")
    for name, tensor in load_file(tmp_path / "whole" / "model" / "model.safetensors").items():
        assert torch.equal(tensor, again[name]), name
    assert json.loads((tmp_path / "part" / "recipe.json").read_text())["data"]["rows"] == 9


def test_a_head_alone_and_a_fine_tuned_model_as_the_base(world: Path, tuned: Path, tmp_path: Path) -> None:
    finetuning.finetune(
        str(tuned),
        world,
        tmp_path / "linear",
        label="tags",
        task="multilabel",
        frozen=True,
        assignments=["steps=2", "epochs=null", *QUICK],
    )
    model = read_model(tmp_path / "linear")
    assert isinstance(model.method, Supervised) and model.method.options.task == "multilabel"
    for name, tensor in read_model(tuned).method.base.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(model.method.base.state_dict()[name], tensor), name
    found = measures.evaluate(tmp_path / "linear", world, ["classes"], split="val").scores[str(tmp_path / "linear")]
    assert set(found) == {"classes mAP", "classes AUC", "classes d'"}
    api.predict(tmp_path / "linear", world, tmp_path / "p.csv", split="val", workers=0)
    assert set(next(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))) >= {"classes", "score:a", "score:b"}


@pytest.mark.parametrize("task", ["events", "words"])
def test_other_tasks_on_random_weights(world: Path, task: str, tmp_path: Path) -> None:
    label = {"events": "segments", "words": None}[task]
    below = [f"config.base_config.{one}" for one in ("width=16", "heads=2", "layers=1")] if task == "events" else BELOW
    changes = [*below, "steps=1", "workers=0", "batch.rows=4"]
    streams = None if task == "events" else ["audio"]
    if task == "words":
        changes.append("config.beam=1")
    finetuning.finetune(
        "random:lava", world, tmp_path / task, label=label, task=task, streams=streams, assignments=changes
    )
    api.predict(tmp_path / task, world, tmp_path / "p.jsonl", split="test", workers=0)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert {"path", "start", "end"} < set(lines[0]) and ("words" if task == "words" else "class") in lines[0]
    assert len({line["path"] for line in lines}) == 3


@pytest.mark.slow
def test_folds_are_runs_of_their_own(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = [*BELOW, "steps=1", "epochs=null", *QUICK]
    options: dict[str, Any] = {"label": "half", "streams": ["video"], "assignments": changes}
    results = finetuning.finetune_folds("random:lava", world, tmp_path / "out", "fold", **options)
    found = results.scores["random:lava"]["classes accuracy"]
    assert found.n == 18 and found.note.startswith("folds ")
    assert sorted(path.name for path in (tmp_path / "out").glob("fold-*")) == ["fold-0", "fold-1", "fold-2"]
    facts = json.loads((tmp_path / "out" / "fold-1" / "recipe.json").read_text())
    assert facts["fold"] == ["fold", "1"] and facts["data"]["rows"] == 12
    shutil.rmtree(tmp_path / "out" / "fold-2")
    again = finetuning.resume_folds(tmp_path / "out")
    assert again.scores["random:lava"]["classes accuracy"] == found
    with pytest.raises(UsageError, match="holds something already"):
        finetuning.finetune_folds("random:lava", world, tmp_path / "out", "fold", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--label COLUMN is missing; .* has path"),
        ({"label": "colours"}, "no column 'colours'; it has"),
        ({"label": "one"}, "only the label 'a' in 'one'; classes needs two or more"),
        ({"label": "none"}, "None of the 12 rows of .* to train has a label in 'none'"),
        ({"label": "half", "val": "dev"}, "no split 'dev'; it has"),
        ({"label": "half", "hold_out": 0.01}, "--hold-out 0.01 of 12 labelled rows leaves none"),
        ({"label": "half", "val": "val", "hold_out": 0.5}, "Give --val or --hold-out, not both"),
        ({"label": "half", "task": "sorting"}, "There is no task 'sorting'; there are classes"),
        ({"label": "half", "streams": ["smell"]}, "--streams smell: lava can be fine-tuned on video, audio"),
        ({"label": "half", "recipe": "ucf"}, "no recipe 'ucf' that fine-tunes lava; it has none of its own"),
        ({"label": "half", "task": "words"}, "Transcripts are read from the column 'caption', not from 'half'"),
        ({"label": "half", "task": "events"}, "'a' in the column 'half' is no JSON list"),
        ({"label": "half", "assignments": ["config.base_config.width=24"]}, "the tensor .* has the shape"),
        ({"label": "half", "assignments": ["config.layer_decays=1"]}, "unknown key 'layer_decays'; did you mean"),
    ],
)
def test_what_does_not_fit_is_told(
    world: Path, pretrained: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TriptychError, match=message):
        finetuning.finetune(str(pretrained), world, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_patience_wants_a_validation_and_missing_labels_are_left_out(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = Rows.open(world).where(split="train")
    with pytest.raises(UsageError, match="--patience waits for better validations"):
        finetuning.finetune("random:lava", rows, tmp_path / "out", label="half", patience=2, assignments=BELOW)
    made = finetuning.finetune("random:lava", rows, tmp_path / "out", label="some", assignments=BELOW, dry_run=True)
    assert made is None and not (tmp_path / "out").exists()
    finetuning.finetune("random:lava", world, tmp_path / "out", label="odd", assignments=BELOW, dry_run=True)
    told = capsys.readouterr().out
    assert "no row to learn from has the label c" in told
    assert "train: 8 of 12 rows have no label in 'some' and are left out" in told and "4 recordings" in told
