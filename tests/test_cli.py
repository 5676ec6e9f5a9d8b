"""The command line as a person uses it: the whole way once, and every kind of bad input in one sentence."""

import json
from pathlib import Path

import pytest

from triptych.cli import main
from triptych.media.collection import Rows
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
    return write_toyworld(tmp_path_factory.mktemp("world"), recordings=48, seed=3, workers=1, progress=False)


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
    assert "8 added" in capsys.readouterr().out
    assert run("search", tmp_path / "index", "a large red disc", "-k", 3, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["hits"]) == 3 and {"path", "start", "end", "score"} <= set(found["hits"][0])
    clip = Rows.open(test).row(2).path
    assert run("search", tmp_path / "index", "--video", clip, "-k", 1, "--save", tmp_path / "cuts") == 0
    assert clip.name in capsys.readouterr().out
    assert len(list((tmp_path / "cuts").glob("*.mp4"))) == 1
    assert run("search", tmp_path / "index", "--audio", clip, "-k", 1) == 0
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
        (["search", "{tmp}", "words"], 2, "is no index"),
        (["search", "{tmp}"], 2, "Give one query"),
        (["info", "{tmp}"], 2, "neither a model folder"),
        (["report", "{tmp}"], 2, "is no run"),
        (["embed", "{run}", "{world}", "--out", "{run}"], 2, "holds something that is no table"),
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
    import shutil

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


def test_an_index_refuses_another_model(
    world: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = world.with_name("three.csv")
    Rows.open(world).select([0, 1, 2]).save(few)
    assert run("index", trained, few, "--out", tmp_path / "index", "--workers", 0) == 0
    assert run("index", f"random:{trained}", few, "--out", tmp_path / "index", "--workers", 0) == 2
    assert "weights differ" in capsys.readouterr().err
