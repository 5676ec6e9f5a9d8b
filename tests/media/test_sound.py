"""Sound to the sample, wherever a window begins."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.media import clips
from triptych.errors import TriptychError, UsageError
from triptych.media.moments import find_moments, pick_onsets
from triptych.media.prepare import Encoding, encode
from triptych.media.recording import Recording
from triptych.media.write import aac_rate, write_video

RATE = 44_100
FILES = [
    ("a.wav", "pcm_s16le", 1e-6),
    ("a.flac", "flac", 1e-6),
    ("a.mp3", "libmp3lame", 1e-5),
    ("a.m4a", "aac", 2e-3),
    ("a.aac", "aac", 2e-3),
    ("a.ts", "aac", 0.1),  # a clock of 90 kHz: a sample more or less
    ("a.aiff", "pcm_s16be", 1e-6),
    ("a.opus", "libopus", 2e-2),
]


def _straight(path: Path) -> np.ndarray:
    """Return all samples in the order in which a plain decoder gives them."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("fltp", "stereo", container.streams.audio[0].rate)
        frames = [piece.to_ndarray() for frame in container.decode(audio=0) for piece in resampler.resample(frame)]
    return np.concatenate(frames, axis=1)


@pytest.mark.parametrize(("name", "codec", "tolerance"), FILES)
def test_windows_are_slices_of_the_whole(tmp_path: Path, name: str, codec: str, tolerance: float) -> None:
    rate = 48_000 if codec == "libopus" else RATE
    path = clips.write_sound(tmp_path / name, clips.noise(6.0, rate, 2), rate, codec)
    whole = _straight(path)
    for start, seconds in ((0.0, 0.5), (0.05, 0.3), (1.234, 2.0), (3.7, 0.05), (5.0, 0.9)):
        with Recording(path) as recording:  # each opened anew, so that the reader must seek
            window = recording.waveform(start, start + seconds, rate).numpy()
        first = round(start * rate)
        assert np.abs(window - whole[:, first : first + window.shape[1]]).max() < tolerance, (start, seconds)


def test_the_first_samples_come_after_what_the_encoder_puts_before_them(tmp_path: Path) -> None:
    """The frame before second 0 of AAC in mp4 is not shown, but needed for the first that is."""
    path = write_video(
        tmp_path / "clip.mp4",
        torch.zeros(50, 16, 16, 3, dtype=torch.uint8),
        25,
        torch.from_numpy(clips.noise(2, 16_000)),
    )
    with Recording(path) as recording, av.open(str(path)) as container:
        truth = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
        recording.frames([1.0])
        assert np.abs(recording.waveform(0.0, 0.1, 16_000).numpy() - truth[:, :1600]).max() < 1e-4


def test_a_gap_is_silence_and_what_follows_keeps_its_second(tmp_path: Path) -> None:
    path = tmp_path / "gap.mka"
    sound = clips.noise(1.0, 16_000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for begin in (0.0, 2.5):
            frame = av.AudioFrame.from_ndarray((sound * 20_000).astype(np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 16_000, round(begin * 16_000)
            container.mux(stream.encode(frame))
    with Recording(path) as recording:
        heard = recording.waveform(0.0, 3.5, 16_000)[0]
    assert not heard[16_000:40_000].any()
    assert np.abs(heard[40_000:].numpy() - heard[:16_000].numpy()).max() < 1e-4


def test_more_than_two_channels_are_mixed_before_they_are_written(tmp_path: Path) -> None:
    sound = np.zeros((6, 32_000), np.float32)
    sound[2] = clips.noise(2.0, 16_000)[0]  # the centre, where people speak
    source = clips.write(tmp_path / "film.mkv", [k / 25 for k in range(50)], sound=clips.track(sound, 16_000, "flac"))
    with Recording(source) as recording:
        assert recording.waveform(0.0, 1.0, 16_000).shape[0] == 6
        encode(recording, tmp_path / "film.mp4", Encoding(gop=10))
    with Recording(tmp_path / "film.mp4") as recording:
        heard = recording.waveform(0.5, 1.0, 16_000)
    assert len(heard) == 1 and heard.std() == pytest.approx(sound[2].std() / 6, rel=0.1)


def test_rates_that_aac_has(tmp_path: Path) -> None:
    assert [aac_rate(rate) for rate in (0, 8000, 37_800, 44_100, 192_000)] == [8000, 8000, 44_100, 44_100, 96_000]
    with pytest.raises(UsageError, match="AAC sound has no 12345 samples a second"):
        write_video(tmp_path / "a.mp4", torch.zeros(2, 8, 8, 3, dtype=torch.uint8), 25, torch.zeros(1, 99), 12_345)
    with pytest.raises(TriptychError, match="there are no frames"):
        write_video(tmp_path / "a.mp4", [], 25)
    assert not (tmp_path / "a.mp4").exists()


def test_onsets_are_sudden_rises() -> None:
    level = np.full(100, -60.0)
    level[20:30] = -20.0  # 40 dB up at once
    level[60:63] = [-50.0, -40.0, -30.0]  # 10 dB a step: the steepest rise over three steps is at the last
    level[80] = -51.0  # 9 dB are not enough
    assert pick_onsets(level, 9) == [20, 62]
    assert pick_onsets(level, 1) == [20]
    assert pick_onsets(level[:0], 9) == []


def test_moments_are_where_something_is_heard(tmp_path: Path) -> None:
    sound = np.zeros((1, 48_000), np.float32)
    for second in (0.5, 1.7, 2.2):
        sound[0, round(second * 16_000) :][:800] = clips.noise(0.05, 16_000)[0]
    path = clips.write_sound(tmp_path / "a.wav", sound, 16_000, "pcm_s16le")
    with Recording(path) as recording:
        assert find_moments(recording) == pytest.approx([0.5, 1.7, 2.2], abs=0.03)
    with Recording(clips.write(tmp_path / "b.mp4", [0.0, 0.1])) as silent:
        assert find_moments(silent) == []
