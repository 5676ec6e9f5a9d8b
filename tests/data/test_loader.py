"""The loader over recordings that cost nothing: their content is a function of row and second."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.batch import Batch
from triptych.data.loader import Loader
from triptych.data.targets import Number, OneLabel
from triptych.data.text import Tokenizer
from triptych.errors import TriptychError, UsageError
from triptych.media.captions import Caption
from triptych.media.collection import Row, Rows
from triptych.media.recording import Recording
from triptych.media.timeline import Extent, Probe, Timeline
from triptych.recipe import (
    Aligned,
    AroundCaption,
    AudioTransform,
    BatchSpec,
    Grid,
    Mixing,
    Several,
    Shifted,
    StreamSpec,
    TextTransform,
    TokenizerSpec,
    VideoTransform,
    Viewing,
    Whole,
)


class Pictures(Recording):
    """24 x 16 pictures whose red is the row and whose green counts tenths of a second; sound is the row's number."""

    def __init__(self, row: int, seconds: float) -> None:
        super().__init__(f"row{row}.mp4")
        self.number = row
        self._probe = Probe(duration=seconds, width=24, height=16)
        streams = {"video": Extent(0.0, seconds, 25.0)}
        if row % 4 != 3:
            streams["audio"] = Extent(0.0, seconds, 1000.0)
        captions = (Caption(f"word{row}", 0.0, seconds),) if row % 3 else ()
        self._timeline = Timeline(start=0.0, end=seconds, streams=streams, captions=captions, moments=())

    def frames(self, times: Sequence[float] | Tensor, short_side: int | None = None) -> Tensor:
        pictures = torch.zeros(len(times), 16, 24, 3, dtype=torch.uint8)
        pictures[..., 0] = self.number
        pictures[..., 1] = (torch.as_tensor(times) * 10).to(torch.uint8)[:, None, None]
        pictures[..., 2] = torch.arange(24, dtype=torch.uint8)
        return pictures

    def waveform(self, start: float, end: float, rate: float) -> Tensor:
        return torch.full((2, round((end - start) * rate)), self.number / 100)


class Shelf(Rows):
    def __init__(self, count: int, broken: frozenset[int] = frozenset(), seconds: Sequence[float] = (3.0,)) -> None:
        self.count = count
        self.broken = broken
        self.lengths = seconds

    def __len__(self) -> int:
        return self.count

    def row(self, index: int) -> Row:
        return Row({"path": f"row{index}.mp4", "seconds": str(self.lengths[index % len(self.lengths)])}, Path())

    def recording(self, index: int) -> Recording:
        if index in self.broken:
            raise TriptychError(f"row{index}.mp4 cannot be opened.")
        if index == 666:
            os.kill(os.getpid(), signal.SIGKILL)
        return Pictures(index, self.lengths[index % len(self.lengths)])

    def column(self, name: str) -> list[str]:
        return [("ball" if row % 4 else "star") if name == "kind" else str(row / 2) for row in range(self.count)]


TOKENIZER = Tokenizer.train([f"word{row}" for row in range(100)], TokenizerSpec(kind="words"))
VIDEO = StreamSpec(
    transform=VideoTransform(size=8, resize=12, crop="random", flip=0.5, brightness=0.4, pixels="raw255"), rate=4.0
)
VIDEO_PLAIN = StreamSpec(transform=VideoTransform(size=8, resize=16, crop="random", pixels="raw255"), rate=4.0)
AUDIO = StreamSpec(
    transform=AudioTransform(mels=4, hop=0.02, window=0.04, noise=0.1, time_mask=3), rate=500.0, required=False
)
TEXT = StreamSpec(transform=TextTransform(steps=6), required=False)
VIEWING = Viewing(windows=Aligned(seconds=1.0), views=({"video": VIDEO, "audio": AUDIO, "text": TEXT},))


def loader(rows: Rows | None = None, viewing: Viewing = VIEWING, rows_a_batch: int = 4, **kwargs: Any) -> Loader:
    batch = kwargs.pop("batch", BatchSpec(rows=rows_a_batch))
    return Loader(rows or Shelf(18), viewing, batch, **{"tokenizer": TOKENIZER, "workers": 0, **kwargs})


def everything(batch: Batch) -> list[Tensor]:
    tensors = [batch.rows, *batch.drawn.values(), *batch.targets.values()]
    for view in batch.views:
        for clip in view.values():
            tensors += [clip.data, clip.length, clip.span, *([] if clip.times is None else [clip.times])]
    return tensors


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return len(first) == len(second) and all(
        len(everything(a)) == len(everything(b))
        and all(torch.equal(x, y) for x, y in zip(everything(a), everything(b), strict=True))
        for a, b in zip(first, second, strict=True)
    )


def rows_of(batches: Sequence[Batch]) -> list[int]:
    return torch.cat([batch.rows for batch in batches]).tolist()


def test_a_batch_has_the_shapes_of_the_recipe() -> None:
    batch = next(iter(loader().epoch(0)))
    view = batch.views[0]
    assert view["video"].data.shape == (4, 4, 8, 8, 3) and view["video"].data.dtype == torch.float32
    assert view["audio"].data.ndim == 3 and view["audio"].data.shape[2] == 4
    assert view["text"].data.shape == (4, 6)
    for place, row in enumerate(batch.rows.tolist()):
        assert view["audio"].present[place].item() == (row % 4 != 3)
        assert view["text"].present[place].item() == bool(row % 3)
        assert view["video"].length[place] == 4
        assert TOKENIZER.decode(view["text"].data[place].tolist()) == (f"word{row}" if row % 3 else "")
    assert view["video"].span.shape == (4, 2)


def test_frames_and_sound_are_those_of_the_row_and_second() -> None:
    plain = Viewing(
        windows=Aligned(seconds=1.0),
        views=({
            "video": StreamSpec(transform=VideoTransform(size=8, pixels="raw255"), rate=4.0),
            "audio": StreamSpec(transform=AudioTransform(front_end="waveform"), rate=500.0, required=False),
        },),
    )  # fmt: skip
    for batch in loader(viewing=plain).epoch(0):
        video, audio = batch.views[0]["video"], batch.views[0]["audio"]
        for place, row in enumerate(batch.rows.tolist()):
            assert (video.data[place, ..., 0] == row).all()
            start = video.span[place, 0].item()
            wanted = [int((start + step / 4) * 10 + 1e-4) for step in range(4)]
            assert video.data[place, :, 0, 0, 1].tolist() == pytest.approx(wanted, abs=1)
            assert audio.length[place] == (500 if row % 4 != 3 else 0)
            torch.testing.assert_close(audio.data[place], torch.full((500,), row / 100 if row % 4 != 3 else 0.0))


def test_every_row_view_and_epoch_has_its_own_crop() -> None:
    one = loader(viewing=Viewing(windows=Aligned(seconds=1.0), views=({"video": VIDEO_PLAIN}, {"video": VIDEO_PLAIN})))
    places = [
        torch.cat([batch.views[view]["video"].data[:, :, 0, 0, 2] for batch in one.epoch(epoch)])
        for view, epoch in ((0, 0), (1, 0), (0, 1))
    ]
    assert all(bool((place == place[:, :1]).all()) for place in places)  # one crop for all frames of a clip
    assert all(len(set(place[:, 0].tolist())) > 4 for place in places)
    assert not torch.equal(places[0], places[1]) and not torch.equal(places[0], places[2])


def test_an_epoch_draws_every_row_once_in_another_order_each_time() -> None:
    one = loader(Shelf(16))
    first, second = rows_of(list(one.epoch(0))), rows_of(list(one.epoch(1)))
    assert sorted(first) == sorted(second) == list(range(16)) and first != second
    assert one.steps() == 4
    assert len(rows_of(list(loader(Shelf(18)).epoch(0)))) == 16  # the incomplete batch is left out
    assert not same(list(one.epoch(0)), list(loader(Shelf(16), seed=1).epoch(0)))


def test_an_order_may_be_given() -> None:
    order = torch.tensor([5, 5, 2, 2, 7, 7, 1])
    batches = list(loader().epoch(3, order=order))
    assert rows_of(batches) == [5, 5, 2, 2] and loader().steps(order) == 1
    starts = batches[0].views[0]["video"].span[:, 0]
    assert starts[0] != starts[1]  # the second draw of a row is another


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers: int) -> None:
    rows = Shelf(18, broken=frozenset({3, 4}))
    alone = loader(rows)
    with loader(rows, workers=workers) as several:
        for epoch in (0, 1):
            assert same(list(alone.epoch(epoch)), list(several.epoch(epoch)))
        assert same(list(alone.sweep(batch_rows=5)), list(several.sweep(batch_rows=5)))
        assert sorted(alone.problems) == sorted(several.problems) and len(alone.problems) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_in_the_middle_of_an_epoch_is_exact(workers: int) -> None:
    with loader(workers=workers) as one:
        whole = list(one.epoch(2))
        assert same(whole[3:], list(one.epoch(2, skip=3)))
        assert list(one.epoch(2, skip=4)) == []


def test_a_batch_does_not_depend_on_its_size() -> None:
    small, large = list(loader(rows_a_batch=2).epoch(0)), list(loader(rows_a_batch=8).epoch(0))
    assert rows_of(small)[:16] == rows_of(large)
    for name in ("video", "audio", "text"):
        joined = torch.cat([batch.views[0][name].data for batch in small])[:16]
        torch.testing.assert_close(joined, torch.cat([batch.views[0][name].data for batch in large]))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_together_see_what_one_process_sees(accumulate: int) -> None:
    batch = BatchSpec(rows=8, accumulate=accumulate)
    alone = list(loader(batch=batch).epoch(0))
    ranks = [list(loader(batch=batch, rank=rank, world=2).epoch(0)) for rank in (0, 1)]
    assert len(alone) == len(ranks[0]) == len(ranks[1]) == 2 * accumulate
    for whole, left, right in zip(alone, *ranks, strict=True):
        for a, b, c in zip(everything(whole), everything(left), everything(right), strict=True):
            assert torch.equal(a, torch.cat([b, c]))


@pytest.mark.parametrize("batch", [BatchSpec(rows=4, repeat=3), BatchSpec(seconds=12.0), BatchSpec(rows=8, together=2)])
def test_what_stands_in_for_a_broken_row_does_not_depend_on_ranks(batch: BatchSpec) -> None:
    rows = Shelf(24, broken=frozenset(range(1, 20, 2)), seconds=(1.0, 2.0, 4.0))
    alone = list(loader(rows, batch=batch).epoch(0))
    ranks = [list(loader(rows, batch=batch, rank=rank, world=2).epoch(0)) for rank in (0, 1)]
    for whole, left, right in zip(alone, *ranks, strict=True):
        for a, b, c in zip(everything(whole), everything(left), everything(right), strict=True):
            assert torch.equal(a, torch.cat([b, c]))


def test_sizes_that_do_not_fit_are_wrong_usage() -> None:
    with pytest.raises(UsageError, match="multiple"):
        loader(rows_a_batch=6, world=4)
    with pytest.raises(UsageError, match="18 rows"):
        list(loader(rows_a_batch=20).epoch(0))
    with pytest.raises(UsageError, match="tokenizer"):
        loader(tokenizer=None)


def test_repeat_and_together_draw_other_windows_of_a_row() -> None:
    for batch in (BatchSpec(rows=6, repeat=3), BatchSpec(rows=6, together=3)):
        batches = list(loader(Shelf(8), batch=batch).epoch(0))
        assert len(batches) == 4
        for drawn in batches:
            rows = drawn.rows.view(2, 3)
            assert (rows == rows[:, :1]).all()
            assert len(set(drawn.views[0]["video"].span[:, 0].tolist())) == 6


def test_balance_draws_all_values_equally_often() -> None:
    batches = list(loader(Shelf(16), batch=BatchSpec(rows=4, balance="kind")).epoch(0))
    rows = rows_of(batches)
    assert sum(row % 4 == 0 for row in rows) == 8 and len(rows) == 16
    assert all(sum(row % 4 == 0 for row in batch.rows.tolist()) == 2 for batch in batches)
    starts = {
        (row, start)
        for batch in batches
        for row, start in zip(batch.rows.tolist(), batch.views[0]["video"].span[:, 0].tolist(), strict=True)
    }
    assert len(starts) == 16  # rows that come twice come with other windows


def test_short_epochs_go_on_through_all_rows() -> None:
    one = loader(Shelf(12), rows_a_batch=2, epoch_rows=4)
    epochs = [rows_of(list(one.epoch(epoch))) for epoch in range(3)]
    assert sorted(chain(*epochs)) == list(range(12)) and one.steps() == 2
    assert len(rows_of(list(loader(Shelf(3), rows_a_batch=2, epoch_rows=10).epoch(0)))) == 10


def test_batches_by_time_hold_rows_of_like_length() -> None:
    lengths = (1.0, 2.0, 4.0)
    rows = Shelf(30, seconds=lengths)
    viewing = Viewing(windows=Whole(), views=({"video": VIDEO},))
    one = loader(rows, viewing, batch=BatchSpec(seconds=8.0))
    epochs = [list(one.epoch(epoch)) for epoch in (0, 1)]
    for batches in epochs:
        assert len(batches) == one.steps() == 9  # 8 x 1; 2 x 1, 3 x 2; 4 x 2; 3 x 2; five times 2 x 4
        assert sorted(rows_of(batches)) == list(range(30))
        for batch in batches:
            assert sum(lengths[row % 3] for row in batch.rows.tolist()) <= 8.0
            clip = batch.views[0]["video"]
            assert clip.length.tolist() == [int(4 * lengths[row % 3]) for row in batch.rows.tolist()]
            assert clip.data.shape[1] == clip.length.max()
    assert rows_of(epochs[0]) != rows_of(epochs[1])


def test_sweeps_are_in_order_whole_and_always_the_same() -> None:
    one = loader(Shelf(18, broken=frozenset({4})))
    first, again = list(one.sweep(batch_rows=5)), list(one.sweep(batch_rows=5))
    assert rows_of(first) == [row for row in range(18) if row != 4]
    assert [path for path, _ in one.problems] == ["row4.mp4"]
    assert same(first, again)
    shares = [rows_of(list(loader(rank=rank, world=4).sweep())) for rank in range(4)]
    assert list(chain(*shares)) == list(range(18))
    assert rows_of(list(one.sweep(rows=[7, 3, 7]))) == [7, 3, 7]
    assert list(loader(Shelf(1, broken=frozenset({0}))).sweep()) == []


def test_unreadable_rows_are_replaced_told_once_and_always_alike(caplog: pytest.LogCaptureFixture) -> None:
    rows = Shelf(16, broken=frozenset({1, 2, 5}))
    one = loader(rows)
    batches = list(one.epoch(0))
    list(one.epoch(1))
    assert len(rows_of(batches)) == 16 and not {1, 2, 5} & set(rows_of(batches))
    assert sorted(path for path, _ in one.problems) == ["row1.mp4", "row2.mp4", "row5.mp4"]
    assert sum("cannot be opened" in message for message in caplog.messages) == 3
    assert same(batches, list(loader(rows).epoch(0)))
    starts = torch.cat([batch.views[0]["video"].span[:, 0] for batch in batches]).tolist()
    # A row that stands in for another shows other windows than its own.
    assert len(set(zip(rows_of(batches), starts, strict=True))) == 16


def test_too_many_unreadable_rows_are_an_error() -> None:
    with pytest.raises(TriptychError, match="More than half"):
        list(loader(Shelf(16, broken=frozenset(range(10)))).epoch(0))
    with pytest.raises(TriptychError, match=r"row.*cannot be opened"):
        list(loader(Shelf(16, broken=frozenset(range(16)))).epoch(0))


def test_rows_that_do_not_fit_are_replaced_too() -> None:
    sound = Viewing(windows=Aligned(seconds=1.0), views=({"audio": AUDIO.model_copy(update={"required": True})},))
    one = loader(Shelf(16), sound)
    assert all(row % 4 != 3 for row in rows_of(list(one.epoch(0))))
    assert len(one.problems) == 4 and "lacks a stream" in one.problems[0][1]


def test_targets_are_places_among_classes_or_numbers() -> None:
    one = loader(targets={"kind": OneLabel(("ball", "star")), "level": Number()})
    batch = next(iter(one.sweep()))
    assert batch.targets["kind"].tolist() == [0 if row % 4 else 1 for row in range(18)]
    assert batch.targets["level"].tolist() == [row / 2 for row in range(18)]
    with pytest.raises(TriptychError, match="'star'"):
        loader(targets={"kind": OneLabel(("ball",))})


def test_rows_of_an_epoch_are_mixed_with_their_targets_and_those_of_a_sweep_are_not() -> None:
    options = {"targets": {"kind": OneLabel(("ball", "star")), "level": Number()}}
    plain, mixed = loader(**options), loader(**options, mixing=Mixing(mixup=1.0))
    before, after = next(iter(plain.epoch(0))), next(iter(mixed.epoch(0)))
    assert before.rows.tolist() == after.rows.tolist()
    shares = torch.nn.functional.one_hot(before.targets["kind"], 2).float()
    level, other = before.targets["level"], before.targets["level"].flip(0)
    lam = (after.targets["level"] - other) / (level - other)
    assert torch.allclose(lam, lam[0], atol=1e-4) and 0 < float(lam[0]) < 1
    torch.testing.assert_close(
        after.targets["kind"], shares * lam[0] + shares.flip(0) * (1 - lam[0]), atol=1e-4, rtol=0
    )
    picture = before.views[0]["video"].data
    wanted = picture * lam[0] + picture.flip(0) * (1 - lam[0])
    torch.testing.assert_close(after.views[0]["video"].data, wanted, atol=1e-3, rtol=1e-3)
    assert same([next(iter(mixed.epoch(0)))], [after])
    swept = next(iter(mixed.sweep()))
    assert set(swept.targets["kind"].flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(swept.views[0]["video"].data, next(iter(plain.sweep())).views[0]["video"].data)


def test_candidates_have_an_axis() -> None:
    grid = Viewing(windows=Grid(seconds=1.0, count=3, crops=3), views=({"video": VIDEO, "audio": AUDIO, "text": TEXT},))
    batch = next(iter(loader(viewing=grid).sweep()))
    view = batch.views[0]
    assert view["video"].data.shape == (18, 9, 4, 8, 8, 3) and view["video"].length.shape == (18, 9)
    assert view["audio"].data.shape[:2] == (18, 3) and view["text"].data.shape == (18, 1, 6)
    assert view["audio"].present.tolist() == [row % 4 != 3 for row in range(18)]
    near = Viewing(windows=AroundCaption(seconds=1.0, candidates=2), views=({"video": VIDEO, "text": TEXT},))
    view = next(iter(loader(viewing=near).epoch(0))).views[0]
    assert view["video"].data.ndim == 5 and view["text"].data.shape == (4, 2, 6)


def test_labels_of_the_windows_come_along() -> None:
    several = Viewing(windows=Several(seconds=0.5, shuffle=True), views=({"video": VIDEO},) * 3)
    batch = next(iter(loader(viewing=several).epoch(0)))
    starts = torch.stack([view["video"].span[:, 0] for view in batch.views], dim=1)
    assert torch.equal(batch.drawn["order"], starts.argsort(dim=1).argsort(dim=1))
    shifted = Viewing(windows=Shifted(seconds=2.0), views=({"video": VIDEO, "audio": AUDIO},) * 2)
    batch = next(iter(loader(viewing=shifted).epoch(0)))
    assert not batch.views[1]["audio"].present.any()


def children() -> set[int]:
    return {process.pid for process in multiprocessing.active_children() if process.pid is not None}


def test_workers_live_on_between_epochs_and_end_when_an_epoch_is_left() -> None:
    before = children()
    with loader(Shelf(40), workers=2) as one:
        batches = one.epoch(0)
        next(batches)
        first = children() - before
        assert len(first) == 2
        assert len(list(batches)) == 9
        assert len(list(one.epoch(1))) == 10
        assert children() - before == first
        left: Iterator[Batch] = one.epoch(2)
        next(left)
        left.close()  # type: ignore[attr-defined]
        assert not children() & first
        assert same(list(one.epoch(3)), list(loader(Shelf(40)).epoch(3)))
    assert children() == before


SCRIPT = """
import sys, time
sys.path.insert(0, {folder!r})
import test_loader
if __name__ == "__main__":
    batches = test_loader.loader(test_loader.Shelf(40), workers=2).epoch(0)
    next(batches)
    import multiprocessing
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9")
def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parent)))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.kill()
    until = time.monotonic() + 10
    while time.monotonic() < until and any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.1)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_a_worker_that_dies_is_a_clear_error() -> None:
    start = time.monotonic()
    with loader(Shelf(700), workers=1) as one, pytest.raises(TriptychError, match="ended unexpectedly"):
        list(one.epoch(0, order=torch.tensor([1, 2, 3, 4, 5, 666, 7, 8, *range(80)])))
    assert time.monotonic() - start < 30
