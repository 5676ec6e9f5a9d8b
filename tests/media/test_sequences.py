"""Precomputed vectors and the stretches of time that they stand for."""

from pathlib import Path

import numpy as np
import pytest

from triptych.media.sequences import Sequence, read_sequence


def _places(found: Sequence) -> list[int]:
    return found.vectors[:, 0].int().tolist()


def test_a_window_has_the_vectors_whose_stretch_it_meets(tmp_path: Path) -> None:
    """At f vectors a second these are the rows floor(start f) to ceil(end f) (everything-at-once, section 7)."""
    rate = 1.5
    np.savez(tmp_path / "3d.npz", vectors=np.arange(30.0)[:, None], times=np.arange(30) / rate)
    found = read_sequence(tmp_path / "3d.npz")
    for start, end in ((0.0, 8.0), (1.0, 9.0), (3.1, 5.2), (4.0, 4.1), (2.0, 2.0 + 2 / 3)):
        wanted = range(int(start * rate + 1e-6), int(np.ceil(end * rate - 1e-6)))
        assert _places(found.between(start, end)) == list(wanted), (start, end)
    assert _places(found.between(19.5, 99.0)) == [29] and not _places(found.between(20.0, 99.0))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_bare_array_has_one_vector_a_second(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"f{suffix}"
    if suffix == ".npy":
        np.save(path, np.arange(3.0)[:, None])
    else:
        np.savez(path, vectors=np.arange(3.0)[:, None])
    found = read_sequence(path)
    assert found.times.tolist() == [0, 1, 2] and found.end == 3
    assert _places(found.between(0.9, 1.1)) == [0, 1]


def test_one_time_more_is_the_end(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", vectors=np.arange(2.0)[:, None], times=[0.0, 1.5, 4.0])
    found = read_sequence(tmp_path / "f.npz")
    assert found.times.tolist() == [0.0, 1.5] and found.end == 4.0
    part = found.between(0.5, 1.0)
    assert _places(part) == [0] and part.end == 1.5
    assert _places(found.between(3.0, 5.0)) == [1] and not _places(found.between(4.0, 5.0))
    np.savez(tmp_path / "one.npz", vectors=np.zeros((1, 2)), times=[2.0])
    assert read_sequence(tmp_path / "one.npz").end == 3.0
