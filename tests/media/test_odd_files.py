"""Files that lead a reader astray, and exactly the frame that is shown in them."""

import csv
import ctypes
import gc
import os
import random
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.media import clips
from triptych.errors import TriptychError
from triptych.media.recording import Recording
from triptych.media.write import write_video

CONSTANT = [k / 25 for k in range(100)]


def _numbers(path: Path, asked: list[float]) -> list[int]:
    with Recording(path) as recording:
        return [clips.read(frame) for frame in recording.frames(asked).numpy()]


@pytest.mark.parametrize(
    ("codec", "parameters"),
    [("libx265", "open-gop=1:log-level=none:pools=none:frame-threads=1"), ("libx264", "open-gop=1:scenecut=0")],
)
def test_frames_before_a_keyframe_may_need_what_is_before_it(tmp_path: Path, codec: str, parameters: str) -> None:
    path = clips.write(tmp_path / "clip.mp4", CONSTANT, gop=10, bframes=3, codec=codec, parameters=parameters)
    for number in range(0, 100, 7):  # each by itself, so that the reader must seek
        for place in (number, number + 1, number + 2):
            assert _numbers(path, [place / 25]) == [min(place, 99)]


@pytest.mark.parametrize("name", ["mp3_in_mp4_16khz.mp4", "hevc_10fps.mp4", "ucf101_xvid_mp3.avi", "hmdb51_divx.avi"])
def test_seeking_gives_what_decoding_from_the_start_gives(data_dir: Path, name: str) -> None:
    """Decoders that need the first packet, leading pictures, and AVI whose times are guessed."""
    path = data_dir / "decode_robustness" / "files" / name
    with Recording(path) as recording:
        _ = recording.probe
        with recording._apart() as reader:
            truth = list(reader.timed())
    times = [second for second, _ in truth]
    assert times == sorted(times)
    for second, frame in random.Random(0).sample(truth, 4):
        with Recording(path) as recording:
            ((_, shown),) = [(place, found) for place, found in recording._reader().shown([second])][-1:]
            assert np.array_equal(shown.to_ndarray(format="gray"), frame.to_ndarray(format="gray")), second


def test_what_is_asked_while_all_frames_are_read(tmp_path: Path) -> None:
    path = clips.write(tmp_path / "clip.mp4", CONSTANT)
    with Recording(path) as recording:
        for number, _ in enumerate(recording.all_frames()):
            if number % 30 == 0:
                assert clips.read(recording.frames([number / 25]).numpy()[0]) == number
                _ = recording.probe


def test_asking_again_for_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with an index is not opened anew to go back to its first packet."""
    opened = []
    original = av.open
    monkeypatch.setattr(av, "open", lambda *a, **k: opened.append(a) or original(*a, **k))
    path = clips.write(tmp_path / "clip.mp4", CONSTANT)
    opened.clear()
    with Recording(path) as recording:
        for _ in range(3):
            assert clips.read(recording.frames([0.0]).numpy()[0]) == 0
        assert recording.timeline.end == 4.0
    assert len(opened) == 1


def test_slow_pictures_do_not_end_early(tmp_path: Path) -> None:
    path = clips.write(tmp_path / "slides.mkv", [0.0, 10.0, 20.0, 30.0])
    assert _numbers(path, [29.0, 35.0]) == [2, 3]


def test_a_picture_that_stands_still_while_the_sound_goes_on(tmp_path: Path) -> None:
    sound = clips.track(clips.noise(9.0, 16_000), 16_000)
    path = clips.write(tmp_path / "screen.mkv", CONSTANT, sound=sound)
    with Recording(path) as recording:
        extents = recording.timeline.streams
        assert extents["video"].end == pytest.approx(4.0, abs=0.1)  # each track's own, not the file's
        assert extents["audio"].end == pytest.approx(9.0, abs=0.1)
        assert clips.read(recording.frames([8.5]).numpy()[0]) == 99


def test_sound_that_ends_before_the_picture_and_one_that_is_cut_off(tmp_path: Path) -> None:
    sound = clips.track(clips.noise(1.0, 16_000), 16_000)
    with Recording(clips.write(tmp_path / "short.mkv", CONSTANT, sound=sound)) as recording:
        assert recording.timeline.streams["audio"].end == pytest.approx(1.0, abs=0.1)
        assert not recording.waveform(2.0, 4.0, 16_000).any()
    whole = clips.write_sound(tmp_path / "a.flac", clips.noise(10.0, 16_000), 16_000, "flac").read_bytes()
    (tmp_path / "half.flac").write_bytes(whole[: len(whole) // 2])
    with Recording(tmp_path / "half.flac") as recording:
        assert recording.waveform(1.0, 2.0, 16_000).any()
        for start in (5.0, 9.0):
            with pytest.raises(TriptychError, match=r"ends early: its last sound is at [45]\.\d+ s.* 10\.00 s"):
                recording.waveform(start, start + 1, 16_000)


def test_pictures_that_change_their_size(tmp_path: Path) -> None:
    """Broadcasts do; all frames get the size of the first."""
    with av.open(str(tmp_path / "two.ts"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 128, 48, "yuv420p"
        encoders: list[Any] = [stream.codec_context, av.CodecContext.create("libx264", "w")]
        encoders[1].width, encoders[1].height, encoders[1].pix_fmt = 256, 96, "yuv420p"
        encoders[1].framerate, encoders[1].time_base = Fraction(25), Fraction(1, 25)
        encoders[1].options = {"bf": "0", "threads": "1"}
        for half, encoder in enumerate(encoders):
            for number in range(20):
                frame = av.VideoFrame.from_ndarray(clips.picture(20 * half + number), format="rgb24")
                frame = frame.reformat(width=encoder.width, height=encoder.height)
                frame.pts = 20 * half + number
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    container.mux(packet)
            for packet in encoder.encode(None):
                packet.stream = stream
                container.mux(packet)
    with Recording(tmp_path / "two.ts") as recording:
        frames = recording.frames([0.2, 1.4])
        assert frames.shape[1:3] == (recording.probe.height, recording.probe.width) == (48, 128)
        assert [clips.read(frame) for frame in frames.numpy()] == [5, 35]


@pytest.mark.parametrize("shape", ["40:33", "1:1000"])
def test_odd_pixel_shapes(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(shape.replace(":", "/"))
        for number in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(clips.picture(number), format="rgb24")))
        container.mux(stream.encode(None))
    with Recording(path) as recording:
        frames = recording.frames([0.08])
        width = {"40:33": 155, "1:1000": 128}[shape]  # an absurd shape is not believed
        assert frames.shape[1:3] == (48, width) == (recording.probe.height, recording.probe.width)
        assert clips.read(frames[0].numpy()) == 2


def test_a_gif_of_one_picture_is_a_still(tmp_path: Path) -> None:
    from PIL import Image

    pictures = [Image.fromarray(clips.picture(number)) for number in range(4)]
    pictures[0].save(tmp_path / "one.gif")
    pictures[0].save(tmp_path / "four.gif", save_all=True, append_images=pictures[1:], duration=100)
    with Recording(tmp_path / "one.gif") as one, Recording(tmp_path / "four.gif") as four:
        assert one.probe.still and one.timeline.streams["video"].rate is None
        assert one.frames([0.0, 9.0]).shape[0] == 2
        assert not four.probe.still and four.timeline.end == pytest.approx(0.4)


def test_a_still_with_a_sound_of_its_own(data_dir: Path) -> None:
    with (data_dir / "tuxpaint_stamps" / "manifest.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["sfx"])
    folder = data_dir / "tuxpaint_stamps"
    with Recording(folder / row["image"], audio=folder / row["sfx"]) as recording:
        recording.narrow(row["caption"], 0.2, None)
        assert recording.timeline.streams.keys() == {"video", "audio", "text"}
        assert recording.timeline.end == pytest.approx(float(row["sfx_seconds"]), abs=0.05)
        assert recording.frames([0.0, 1.0]).shape[0] == 2 and recording.waveform(0.2, 1.0, 16_000).any()


def test_all_pictures_at_a_constant_rate(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.5, 0.6, 1.4]
    path = clips.write(tmp_path / "clip.mkv", times)
    with Recording(path) as recording:
        end = recording.timeline.end
        shown = [clips.read(frame.numpy()) for frame in recording.pictures(10)]
        assert shown == [max(k for k, t in enumerate(times) if t <= n / 10 + 1e-6) for n in range(round(end * 10))]
        assert [clips.read(frame.numpy()) for frame in recording.pictures(10, end=0.3)] == [0, 1, 1]


@pytest.mark.slow
def test_nothing_stays_open_and_memory_stays_flat(data_dir: Path) -> None:
    """Twenty rounds over all odd files."""
    files = sorted((data_dir / "decode_robustness" / "files").iterdir())
    state = []
    for _ in range(20):
        for path in files:
            try:
                with Recording(path) as recording:
                    end = recording.timeline.end
                    if "video" in recording.timeline.streams:
                        recording.frames([0.0, end / 2], short_side=16)
                    if "audio" in recording.timeline.streams:
                        recording.waveform(0.0, min(end, 1.0), 16_000)
            except TriptychError:
                continue
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        state.append((len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
    assert {opened for opened, _ in state[2:]} == {state[2][0]}
    assert state[-1][1] - state[4][1] < 30  # MiB


class _Heap(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns."""

    _fields_ = [(name, ctypes.c_size_t) for name in "arena o s h mapped u f used free keep".split()]


def test_reading_leaks_nothing(tmp_path: Path) -> None:
    try:
        heap = ctypes.CDLL("libc.so.6").mallinfo2
    except (OSError, AttributeError):
        pytest.skip("the C library does not tell what it holds")
    heap.restype = _Heap
    path = clips.write(tmp_path / "clip.mp4", CONSTANT, sound=clips.track(clips.noise(4.0, 16_000), 16_000))
    held = []
    for number in range(90):
        with Recording(path) as recording:
            recording.frames([1.0, 1.5], short_side=16)
            recording.waveform(1.0, 2.0, 16_000)
        if number in (29, 89):
            gc.collect()
            held.append(heap().used)
    assert held[1] - held[0] < 60 * 60  # bytes; a generator of PyAV's that is dropped leaks 150


def test_a_written_file_is_interleaved(tmp_path: Path) -> None:
    import torch

    frames = torch.zeros(250, 32, 32, 3, dtype=torch.uint8)
    path = write_video(tmp_path / "clip.mp4", frames, 25, torch.zeros(1, 160_000), 16_000)
    with av.open(str(path)) as container:
        places = [(packet.pos, float(packet.pts * packet.time_base)) for packet in container.demux() if packet.size]
    seconds = [second for _, second in sorted(places)]
    assert max(abs(b - a) for a, b in pairwise(seconds)) < 1.5
