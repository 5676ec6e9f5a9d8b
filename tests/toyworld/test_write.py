import csv
import json

import numpy as np
import pytest

from triptych.errors import TriptychError, UsageError
from triptych.media.recording import Recording
from triptych.toyworld.motion import events
from triptych.toyworld.world import describe
from triptych.toyworld.write import render, write_toyworld


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


SETTINGS = {"difficulty": 0.4, "size": 64, "talking": 0.5, "tampering": 1.0, "progress": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("toyworld") / "world"
    manifest = write_toyworld(out, recordings=12, workers=1, **SETTINGS)
    assert manifest == out / "manifest.csv"
    return out


def test_the_manifests_name_real_files(world):
    rows, spoken, pairs = (read(world / f"{name}.csv") for name in ("manifest", "talking", "tampering"))
    assert len(rows) == 12 and 1 < len(spoken) < 12
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    assert all(row["caption"] == row["transcript"] != "" for row in spoken)
    assert sum(row["tampered"] == "none" for row in pairs) == sum(row["tampered"] != "none" for row in pairs) > 0
    assert all(row["tampered"] == "none" for row in rows)
    for row in rows + pairs:
        assert (world / row["path"]).stat().st_size > 1000


def test_a_clip_is_the_picture_and_the_sound_of_its_scene(world):
    row = read(world / "manifest.csv")[3]
    frames, waveform = render(describe(0, 3, 0.4, 0.5), 64)
    recording = Recording(world / row["path"])
    times = [(k + 0.5) / 16 for k in (0, 7, 20)]
    seen = recording.frames(times)
    assert (seen.float() - frames[[0, 7, 20]].float()).abs().mean() < 6
    heard = recording.waveform(0.0, float(row["duration"]), 16000)[0]
    length = min(len(heard), waveform.shape[1])
    matches = np.correlate(heard[2000 : length - 2000].numpy(), waveform[0, 2000 : length - 2000].numpy(), "same")
    assert abs(int(matches.argmax()) - (length - 4000) // 2) <= 80  # 5 ms


def test_events_fall_on_frames(world):
    for row in read(world / "manifest.csv"):
        seconds = json.loads(row["events"])
        assert seconds == [round(second * 16) / 16 for second in seconds]
    scene = describe(0, 3, 0.4, 0.5)
    assert set(events(scene.main, scene.duration)) >= set(scene.events) - {getattr(scene.collision, "time", None)}


def test_a_world_is_resumed_and_begins_like_a_smaller_one(world, tmp_path):
    out = tmp_path / "world"
    write_toyworld(out, recordings=5, workers=1, **SETTINGS)
    kept = out / "clips" / "000002.mp4"
    when = kept.stat().st_mtime_ns
    (out / "clips" / "000004.mp4").unlink()
    write_toyworld(out, recordings=12, workers=1, **SETTINGS)
    assert kept.stat().st_mtime_ns == when
    assert contents(out) == contents(world)


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(world, tmp_path):
    out = tmp_path / "world"
    write_toyworld(out, recordings=12, workers=2, **SETTINGS)
    assert contents(out) == contents(world)


def test_another_world_or_something_else_is_never_overwritten(world, tmp_path):
    with pytest.raises(TriptychError, match="other settings"):
        write_toyworld(world, recordings=12, seed=1, workers=1, **SETTINGS)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(TriptychError, match="no toy world"):
        write_toyworld(tmp_path, recordings=1, workers=1, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    "wrong", [{"recordings": 0}, {"difficulty": 2.5}, {"size": 97}, {"size": 8}, {"fps": 0.0}, {"talking": -0.1}]
)
def test_numbers_out_of_range_are_named(wrong, tmp_path):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        write_toyworld(tmp_path / "world", **wrong)
    assert not (tmp_path / "world").exists()
