"""The command line as a person uses it: the whole way once, and every kind of bad input in one sentence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.cli import main
from triptych.embedding import EmbeddingTable
from triptych.media.collection import Rows
from triptych.model import read_model
from triptych.toyworld.write import write_toyworld

TINY = [
    *("--recipe", "small"),
    *("--set", "config.width=16"),
    *("--set", "config.layers=1"),
    *("--set", "config.heads=2"),
    *("--set", "batch.rows=8"),
    *("--set", "steps=3"),
    *("--set", "workers=0"),
    *("--set", "log_steps=1"),
]


def run(*arguments: object) -> int:
    """Return the exit code of a command."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toyworld(tmp_path_factory.mktemp("world"), recordings=60, seed=3, workers=1, progress=False)


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert run("pretrain", world, "--method", "lava", "--out", out, *TINY) == 0
    return out


def test_the_whole_way(world: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = world.with_name("test-rows.csv")
    Rows.open(world).split("test").save(test)
    tasks = ("--task", "retrieval", "--task", "knn", "--task", "probe")
    assert run("evaluate", trained, world, *tasks, "--label", "size") == 0
    table = capsys.readouterr().out
    assert "random:lava" in table and "pixels and spectrogram" in table and "text to video R@1" in table
    assert run("index", trained, test, "--out", tmp_path / "index", "--workers", 0) == 0
    assert "4 added" in capsys.readouterr().out
    assert run("search", tmp_path / "index", "a large red disc", "-k", 3, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["hits"]) == 3 and {"path", "start", "end", "score"} <= set(found["hits"][0])
    clip = Rows.open(test).row(2).path
    assert (
        run("search", tmp_path / "index", "--video", clip, "--streams", "video", "-k", 1, "--save", tmp_path / "cuts")
        == 0
    )
    assert clip.name in capsys.readouterr().out
    assert len(list((tmp_path / "cuts").glob("*.mp4"))) == 1
    assert run("search", tmp_path / "index", "--audio", clip, "--streams", "audio", "-k", 1) == 0
    assert clip.name in capsys.readouterr().out
    assert run("embed", trained, test, "--out", tmp_path / "table", "--workers", 0) == 0
    for folder in (trained, trained / "model", tmp_path / "index", tmp_path / "table" / "joint"):
        assert run("info", folder) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("kind", "lava", "joint", "fingerprint"))
    assert run("report", trained) == 0
    page = (trained / "report.html").read_text()
    assert (
        "<svg" in page and "data:image/jpeg" in page and "random:lava" in page and "http" not in page.split("<svg")[0]
    )


def test_several_labels_folds_and_other_splits(world: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = Rows.open(world).select(range(24))
    tags = [f"{row['kind']};{row['size']}" for row in rows]
    folds = [str(number % 2) for number in range(len(rows))]
    manifest = rows.with_columns({"tags": tags, "fold": folds}).save(world.with_name("tagged.csv"))
    common = ("--streams", "video", "--workers", 0, "--json")
    assert run("evaluate", trained, manifest, "--task", "probe", "--label", "tags", "--folds", "fold", *common) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["scores"]) == {str(trained), "random:lava", "pixels and spectrogram"}
    scores = found["scores"][str(trained)]
    assert set(scores) == {"probe video mAP", "probe video AUC", "probe video d'"}
    assert scores["probe video mAP"]["n"] == len(rows)
    assert "folds" in found["notes"][0] and (trained / "evaluations.jsonl").is_file()
    lists = Rows.open(world).split("val")
    lists.save(world.with_name("val-only.csv"))
    only = (
        "evaluate",
        trained,
        world.with_name("val-only.csv"),
        "--task",
        "retrieval",
        "--to",
        "video",
        "--split",
        "val",
    )
    assert run(*only, "--json", "--workers", 0) == 0
    found = json.loads(capsys.readouterr().out)
    assert "no linear baseline" in found["notes"][0] and len(found["scores"]) == 2


def test_features_are_streams_that_recordings_carry(world: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "features"
    arguments = ("embed", trained, world, "--features", "--split", "test", "--out", out, "--workers", 0)
    assert run(*arguments) == 0 and run(*arguments) == 0
    rows = Rows.open(out / "manifest.csv")
    table = EmbeddingTable.load(out / "features-video")
    with rows.recording(1) as recording:
        found = recording.sequence("video-features", 0.0, 100.0)
        assert recording.timeline.end > 1
        assert recording.timeline.streams["video-features"].start == 0
    part = table.take(table.numbers == 1)
    assert len(rows) == 4 and torch.equal(found.vectors, torch.from_numpy(np.array(part.vectors)))
    middles = (part.starts + part.ends) / 2
    np.testing.assert_allclose(found.times[1:], (middles[1:] + middles[:-1]) / 2, atol=1e-5)
    assert found.times[0] == 0 and found.end == pytest.approx(part.ends[-1], abs=1e-5)


def test_a_method_of_features_learns_from_what_embed_wrote(
    world: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--recipe", "small", "--set", "batch.rows=8", "--set", "steps=2", "--set", "workers=0")
    method = ("--method", "everything_at_once", *small)
    assert run("pretrain", world, *method, "--out", tmp_path / "none") == 2
    told = capsys.readouterr().err
    assert (
        "no row of" in told and "'stream:video-features'" in told and "triptych embed MODEL SOURCE --features" in told
    )
    rows = Rows.open(world)
    splits = rows.column("split")
    chosen = [n for n, split in enumerate(splits) if split == "test" or (split == "train" and n < 10)]
    few, features = rows.select(chosen).save(world.with_name("few.csv")), tmp_path / "features"
    assert run("embed", trained, few, "--features", "--out", features, "--workers", 0) == 0
    assert run("pretrain", features / "manifest.csv", *method, "--out", tmp_path / "run") == 0
    assert read_model(tmp_path / "run").method.config.video_widths == (16,)  # type: ignore[attr-defined]
    asked = ("evaluate", tmp_path / "run", features / "manifest.csv", "--no-baseline", "--workers", 0, "--json")
    capsys.readouterr()
    pair = ("--from", "text", "--to", "video-features+audio")
    assert run(*asked, "--task", "retrieval", *pair, "--missing", "failed", "--ties", "howto100m", "--more") == 0
    scores = json.loads(capsys.readouterr().out)["scores"][str(tmp_path / "run")]
    assert {name.split()[-1] for name in scores} == {"R@1", "R@5", "R@10", "R@50", "MedR", "MeanR", "GeoMean"}
    assert all(name.startswith("retrieval text to video-features+audio") for name in scores)
    assert run(*asked, "--task", "steps", "--label", "words", "--stride", 0.2, "--to", "audio") == 0
    scores = json.loads(capsys.readouterr().out)["scores"][str(tmp_path / "run")]
    assert set(scores) == {f"steps audio {kind}" for kind in (
        "recall", "pooled recall", "recall over time", "recall over steps"
    )}  # fmt: skip
    assert run("evaluate", tmp_path / "run", features / "manifest.csv", "--task", "steps") == 2
    assert "--task steps needs --label COLUMN" in capsys.readouterr().err


def test_a_run_is_never_overwritten_and_an_ended_one_stays(
    world: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pretrain", world, "--method", "lava", "--out", trained, *TINY) == 2
    assert "--resume" in capsys.readouterr().err
    assert run("pretrain", "--resume", trained) == 0


def test_another_start_and_a_dry_run(
    world: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run("pretrain", world, "--method", "lava", "--out", out, *TINY, "--init", trained, "--dry-run") == 0
    text = capsys.readouterr().out
    assert "tensors" in text and "minutes" in text and not out.exists()


def test_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    assert "lava" in capsys.readouterr().out
    assert run("methods", "lava", "--recipe", "paper") == 0
    assert "method: lava" in capsys.readouterr().out
    assert run("methods", "lav") == 2
    assert "did you mean lava" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["pretrain", "nowhere", "--method", "lava", "--out", "{tmp}/r"],
            2,
            "nowhere: there is no such file or folder",
        ),
        (["pretrain", "{tmp}", "--method", "lava", "--out", "{tmp}/r"], 2, "holds no media files"),
        (["pretrain", "{world}", "--method", "lavva", "--out", "{tmp}/r"], 2, "did you mean lava"),
        (["pretrain", "{world}", "--method", "lava"], 2, "Give SOURCE, --method and --out"),
        (["pretrain", "{world}", "--method", "lava", "--out", "{tmp}/r", "--set", "steps"], 2, "write key=value"),
        (["pretrain", "{world}", "--method", "lava", "--out", "{tmp}/r", "--set", "stepz=3"], 2, "did you mean steps"),
        (["pretrain", "{world}", "--method", "lava", "--out", "{tmp}/r", "--set", "steps=many"], 2, "steps: Input"),
        (["pretrain", "{world}", "--method", "lava", "--out", "{tmp}/r", "--recipe", "no.yaml"], 2, "no.yaml"),
        (["pretrain", "{world}", "--method", "lava", "--out", "{tmp}/r", "--device", "tpu9"], 2, "no device 'tpu9'"),
        (["pretrain", "--resume", "{tmp}"], 2, "is no run"),
        (["evaluate", "nomodel", "{world}", "--task", "retrieval"], 2, "there is no such model"),
        (["evaluate", "{run}", "{world}", "--task", "probe"], 2, "needs --label COLUMN"),
        (["evaluate", "{run}", "{world}", "--task", "knn", "--label", "mood"], 2, "no column 'mood'; it has path"),
        (
            ["evaluate", "{run}", "{world}", "--task", "retrieval", "--from", "smell"],
            2,
            "--from smell: the model reads audio, text, video",
        ),
        (["evaluate", "{run}", "{world}", "--task", "retrieval", "--split", "holdout"], 2, "no split 'holdout'"),
        (["finetune", "{run}", "{world}", "--label", "kind"], 2, "Give MODEL, SOURCE and --out"),
        (["finetune", "{run}", "{world}", "--out", "{tmp}/r"], 2, "--label COLUMN is missing; "),
        (["finetune", "nomodel", "{world}", "--label", "kind", "--out", "{tmp}/r"], 2, "there is no such model"),
        (["finetune", "{run}", "{world}", "--label", "mood", "--out", "{tmp}/r"], 2, "no column 'mood'; it has path"),
        (["finetune", "{run}", "--resume", "{run}"], 2, "--resume RUN takes everything from the run"),
        (["finetune", "--resume", "{tmp}"], 2, "is no run"),
        (["predict", "{run}", "{world}", "--out", "{tmp}/p.csv"], 2, "was not fine-tuned, so it predicts nothing"),
        (["evaluate", "{run}", "{world}", "--task", "classes"], 2, "lava names no classes; train one that does"),
        (["evaluate", "{run}", "{world}", "--task", "knn", "--label", "kind", "--crops", "2"], 2, "crops"),
        (["import", "lava", "{tmp}/none.pt", "--out", "{tmp}/m"], 2, "none.pt: there is no such checkpoint"),
        (["import", "lava", "{world}", "--out", "{tmp}/m"], 1, "is cut off, damaged, or no checkpoint"),
        (["search", "{tmp}", "words"], 2, "is no index"),
        (["search", "{tmp}"], 2, "Give one query"),
        (["info", "{tmp}"], 2, "neither a model folder"),
        (["report", "{tmp}"], 2, "is no run"),
        (["embed", "{run}", "{world}", "--out", "{run}"], 2, "holds something that is no table"),
        (["embed", "{run}", "{world}", "--out", "{world}"], 2, "holds something that is no table"),
        (["embed", "{run}", "{world}", "--out", "{tmp}/e", "--split", "dev"], 2, "no split 'dev'; it has"),
        (["evaluate", "{run}", "{world}", "--task", "probe", "--label", "kind", "--split", "train"], 2, "on another"),
        (["evaluate", "{run}", "{world}", "--task", "knn", "--label", "kind", "--streams", "x"], 2, "--streams x"),
        (["evaluate", "{run}", "{world}", "--task", "probe", "--label", "tampered"], 1, "only the label"),
        (["index", "random:lava", "{world}", "--out", "{tmp}/i"], 2, "is nowhere on disk"),
        (["index", "{run}", "{world}", "--out", "{run}"], 2, "holds something that is no index"),
        (["prepare", "{world}", "--out", "{run}"], 2, "holds something that is no collection"),
        (["prepare", "{world}", "--out", "{tmp}/c", "--layout", "ucf"], 2, "there are"),
        (["toyworld", "--out", "{tmp}/t", "--difficulty", "9"], 2, "difficulty"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    code: int,
    message: str,
    world: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"tmp": tmp_path, "world": world, "run": trained}
    assert run(*(argument.format(**places) for argument in arguments)) == code
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_damaged_models_are_told(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, change, message in (
        ("model.safetensors", lambda data: data[:-100], "is missing or damaged"),
        ("config.json", lambda data: data.replace(b'"format": 1', b'"format": 7'), "model format 7"),
        ("config.json", lambda data: data[:50], "cannot be read as JSON"),
        ("config.json", lambda data: data.replace(b'"width": 16', b'"width": 32'), "has the shape"),
    ):
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained / "model", folder)
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        assert run("info", folder) == 1
        assert message in capsys.readouterr().err


def test_captions_that_are_all_missing(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = world.with_name("untold.csv")
    rows = Rows.open(world).split("train")
    Rows.build([{"path": row["path"], "caption": ""} for row in rows], rows.root, "x").save(silent)
    assert run("pretrain", silent, "--method", "lava", "--out", tmp_path / "r", *TINY) == 1
    assert "caption" in capsys.readouterr().err


def test_too_few_recordings_for_a_batch(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = world.with_name("few.csv")
    Rows.open(world).select([0, 1, 2]).save(few)
    assert run("pretrain", few, "--method", "lava", "--out", tmp_path / "r", *TINY) == 2
    assert "make the batch smaller" in capsys.readouterr().err


def test_an_index_and_its_queries(
    world: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It refuses another model and another source; a moved folder and a moved model are found when they are named."""
    few = world.with_name("three.csv")
    Rows.open(world).select([0, 1, 2]).save(few)
    index = tmp_path / "index"
    assert run("index", trained, few, "--out", index, "--workers", 0) == 0
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    other = Rows.open(world).row(0).path
    shutil.copytree(world.parent, tmp_path / "moved")
    shutil.copytree(trained / "model", tmp_path / "model")
    capsys.readouterr()
    for arguments, code, message in (
        (("index", f"random:{trained}", few, "--out", index), 2, "weights differ"),
        (("index", trained, other, "--out", index), 2, "holds none of the files"),
        (("index", trained, few, "--out", index, "--seconds", 3), 2, "has windows of 2 s"),
        (("search", index, "disc", "--model", f"random:{trained}"), 1, "is not the model"),
        (("search", index, "disc", "--model", tmp_path / "model", "-k", 1), 0, ""),
        (("search", index, "disc", "--save", tmp_path / "cuts", "--source", "nowhere"), 2, "say where they are"),
        (("search", index, "disc", "--save", few), 2, "is no folder"),
        (("search", index, "--audio", tmp_path / "picture.png"), 1, "has no sound to look for"),
        (("search", index, "--image", tmp_path / "picture.png"), 0, ""),
        (("search", index, "--video", few), 2, "is no media file"),
        (("search", index, "--audio", tmp_path), 2, "is no media file"),
        (("search", index, " "), 2, "The query is empty"),
        (("search", index, "disc", "--streams", "smell"), 2, "no stream 'smell'; it has audio, video"),
    ):
        assert run(*arguments) == code
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert run("index", trained, tmp_path / "moved" / "three.csv", "--out", index, "--workers", 0) == 0
    assert "3 unchanged" in capsys.readouterr().out
    assert run("search", index, "disc", "-k", 2, "--save", tmp_path / "cuts", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["saved"]) == 2
    for path in (tmp_path / "moved" / "clips").iterdir():
        path.unlink()
    assert run("search", index, "disc", "-k", 2, "--save", tmp_path / "none") == 1
    told = capsys.readouterr()
    assert "2 of 2 hits were not saved; the first" in told.err and "score  where" in told.out
