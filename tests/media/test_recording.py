"""Exactly the frame that is shown, sound to the sample, and odd files."""

import csv
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from av.video.stream import VideoStream

from tests.media import clips
from triptych.errors import TriptychError
from triptych.media.recording import Recording
from triptych.media.write import cut, write_video

CONSTANT = [k / 25 for k in range(100)]
VARIABLE = [0.0]
for _k in range(99):
    VARIABLE.append(VARIABLE[-1] + (0.02, 0.04, 0.11, 0.3)[(_k * 7) % 4])


def _shown(times: list[float], second: float) -> int:
    """The last frame that begins at ``second`` or before; the first before all."""
    return max((k for k, begin in enumerate(times) if begin <= second + 1e-6), default=0)


def _wrong(path: Path, times: list[float], seed: int = 0, turns: int = 0) -> int:
    """Ask for frames in many ways and count those that are not the ones shown then."""
    rng = random.Random(seed)
    end, wrong = times[-1], 0
    with Recording(path) as recording:
        for _ in range(12):
            start = rng.uniform(-0.3, end + 0.2)
            asked = [start + k / 8 for k in range(rng.randint(1, 16))]
            if rng.random() < 0.3:
                rng.shuffle(asked)
            asked += [times[rng.randrange(len(times))]]  # the very instant at which a frame begins
            for second, frame in zip(asked, recording.frames(asked).numpy(), strict=True):
                wrong += clips.read(np.rot90(frame, turns)) != _shown(times, second)
    return wrong


@pytest.mark.parametrize("bframes", [0, 2])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_constant_rate(tmp_path: Path, suffix: str, bframes: int) -> None:
    assert _wrong(clips.write(tmp_path / f"clip{suffix}", CONSTANT, bframes), CONSTANT) == 0


@pytest.mark.parametrize("gop", [5, 250])
def test_variable_rate(tmp_path: Path, gop: int) -> None:
    assert _wrong(clips.write(tmp_path / "clip.mkv", VARIABLE, gop=gop), VARIABLE) == 0


def test_offset_is_taken_off(tmp_path: Path) -> None:
    path = clips.write(tmp_path / "clip.mkv", CONSTANT, shift=5.0)
    with Recording(path) as recording:
        assert recording.timeline.start == 0.0
        assert recording.timeline.end == pytest.approx(4.0, abs=0.05)
    assert _wrong(path, CONSTANT) == 0


def test_edit_list(tmp_path: Path) -> None:
    """A clip cut 0.5 s into its first group of pictures: what is before is not shown."""
    path = clips.write(tmp_path / "clip.mp4", CONSTANT, shift=-0.48)
    with Recording(path) as recording:
        first, later = recording.frames([0.0, 1.0]).numpy()
        (before,) = recording.frames([-0.3]).numpy()
    assert [clips.read(frame) for frame in (before, first, later)] == [12, 12, 37]


@pytest.mark.skipif(not hasattr(VideoStream, "set_display_rotation"), reason="PyAV before 18 cannot write it")
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation(tmp_path: Path, rotation: int) -> None:
    path = clips.write(tmp_path / "clip.mp4", CONSTANT, rotation=rotation)
    with Recording(path) as recording:
        height, width = recording.frames([0.0]).shape[1:3]
        assert (recording.probe.height, recording.probe.width) == (height, width)
    assert (height > width) is (rotation != 180)
    with Recording(path) as recording:
        frame = recording.frames([1.0]).numpy()[0]
    assert clips.read(np.rot90(frame, -rotation // 90)) == 25


def test_scaling_keeps_the_frame_and_the_short_side(tmp_path: Path) -> None:
    path = clips.write(tmp_path / "clip.mp4", CONSTANT)
    with Recording(path) as recording:
        small = recording.frames([2.0], short_side=24)
    assert small.shape == (1, 24, 64, 3)
    assert clips.read(small[0].numpy()) == 50


def test_bytes_are_read_as_the_file_is(tmp_path: Path) -> None:
    path = clips.write(tmp_path / "clip.mp4", CONSTANT)
    with Recording(path) as one, Recording(path.read_bytes(), name="memory") as two:
        assert torch.equal(one.frames([1.0, 3.0]), two.frames([1.0, 3.0]))


def test_sound_is_where_it_was_written(tmp_path: Path) -> None:
    rate = 16_000
    sound = torch.zeros(1, 4 * rate)
    sound[0, 2 * rate] = 0.9  # a click at second 2
    write_video(tmp_path / "clip.mp4", torch.zeros(100, 32, 32, 3, dtype=torch.uint8), 25, sound, rate)
    with Recording(tmp_path / "clip.mp4") as recording:
        heard = recording.waveform(1.5, 2.5, rate)
        assert heard.shape == (1, rate)
        assert abs(int(heard[0].abs().argmax()) - rate // 2) <= rate // 1000
        late = recording.waveform(3.5, 5.0, rate)
        assert late.shape == (1, round(1.5 * rate)) and not late[0, rate:].any()
        early = recording.waveform(-1.0, 0.5, rate)
        assert not early[0, : rate - 100].any()
        assert recording.waveform(1.0, 2.0, 8_000).shape == (1, 8_000)


def test_a_cut_holds_what_the_span_held(tmp_path: Path) -> None:
    path = clips.write(tmp_path / "clip.mp4", CONSTANT)
    with Recording(cut(path, 1.0, 2.0, tmp_path / "part.mp4")) as part:
        assert part.timeline.end == pytest.approx(1.0, abs=0.05)
        assert clips.read(part.frames([0.0]).numpy()[0]) == 25


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    frames = torch.randint(0, 255, (20, 48, 64, 3), dtype=torch.uint8)
    sound = torch.rand(1, 16_000) - 0.5
    files = [write_video(tmp_path / f"{n}.mp4", frames, 20, sound).read_bytes() for n in range(3)]
    assert files[0] == files[1] == files[2]


def test_a_file_that_ends_early_says_where(tmp_path: Path) -> None:
    path = clips.write(tmp_path / "clip.mkv", [k / 25 for k in range(250)], gop=10)
    whole = path.read_bytes()
    (tmp_path / "half.mkv").write_bytes(whole[: len(whole) // 2])
    with Recording(tmp_path / "half.mkv") as recording:
        recording.frames([0.5])
        with pytest.raises(TriptychError, match=r"half\.mkv ends early: its last picture is at \d\.\d+ s"):
            recording.frames([9.5])


def test_missing_streams_are_told(tmp_path: Path) -> None:
    silent = clips.write(tmp_path / "silent.mp4", CONSTANT)
    with Recording(silent) as recording, pytest.raises(TriptychError, match=r"silent\.mp4 has no sound"):
        recording.waveform(0, 1, 16_000)
    with Recording(tmp_path / "absent.mp4") as recording, pytest.raises(TriptychError, match="no such file"):
        recording.frames([0.0])


def test_a_still_image_is_a_recording_of_one_frame(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(clips.picture(9)).save(tmp_path / "still.png")
    with Recording(tmp_path / "still.png") as recording:
        assert recording.probe.still
        assert [clips.read(frame) for frame in recording.frames([0.0, 5.0, 100.0]).numpy()] == [9, 9, 9]


def _robust(data_dir: Path) -> list[dict[str, str]]:
    with (data_dir / "decode_robustness" / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def test_odd_and_broken_files(data_dir: Path) -> None:
    expected = {"corrupted.mp4": 49, "non_utf8_metadata.avi": 83}
    for row in _robust(data_dir):
        path = data_dir / "decode_robustness" / row["path"]
        with Recording(path) as recording:
            if row["error"] and path.name not in expected:
                with pytest.raises(TriptychError, match=r"cannot be opened as media"):
                    _ = recording.timeline
                continue
            frames = expected.get(path.name, int(row["frames"] or 0))
            timeline = recording.timeline
            assert sum(1 for _ in recording.all_frames()) == frames if frames else "video" not in timeline.streams, path
            if row["seconds"]:
                frame = 1 / float(row["fps"]) if row["fps"] else 0.05
                assert timeline.end == pytest.approx(float(row["seconds"]), abs=1.5 * frame), path
            if path.name == "corrupted.mp4":
                assert recording.skipped == 1
            if frames:
                assert recording.frames([0.0, timeline.end / 2]).shape[0] == 2
            if row["acodec"]:
                assert recording.waveform(0.0, 0.5, 16_000).shape[1] == 8_000


def test_nothing_stays_open(data_dir: Path) -> None:
    import os

    rows = _robust(data_dir)
    before = None
    for _ in range(4):
        for row in rows:
            path = data_dir / "decode_robustness" / row["path"]
            try:
                with Recording(path) as recording:
                    recording.frames([0.1], short_side=16)
            except TriptychError:
                continue
        opened = len(os.listdir("/proc/self/fd"))
        assert before is None or opened <= before
        before = opened
