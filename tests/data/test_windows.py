import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from triptych.data.spans import Span
from triptych.data.windows import Drawn, draw_windows
from triptych.media.captions import Caption
from triptych.media.timeline import Extent, Timeline
from triptych.recipe import (
    Aligned,
    AroundCaption,
    AtCaption,
    AudioTransform,
    BeforeAndAfter,
    GlobalAndLocal,
    Grid,
    Interval,
    Pace,
    Several,
    Shifted,
    StreamSpec,
    TextTransform,
    TwoWindows,
    VideoTransform,
    Viewing,
    Whole,
)


def timeline(end: float = 10.0, start: float = 0.0, **kwargs: Any) -> Timeline:
    streams = {"video": Extent(start, end, 25.0), "audio": Extent(start, end, 16_000.0)}
    return Timeline(start=start, end=end, streams=streams, **{"captions": (), "moments": (), **kwargs})


def video(**kwargs: Any) -> StreamSpec:
    return StreamSpec(transform=VideoTransform(size=8), **{"rate": 4.0, **kwargs})


def audio(**kwargs: Any) -> StreamSpec:
    return StreamSpec(transform=AudioTransform(), **{"rate": 100.0, **kwargs})


def text(**kwargs: Any) -> StreamSpec:
    return StreamSpec(transform=TextTransform(), **kwargs)


def draw(row: Timeline, windows: Any, *views: dict[str, StreamSpec], seed: int = 0, **kwargs: Any) -> Drawn | None:
    return draw_windows(row, Viewing(windows=windows, views=views, **kwargs), torch.Generator().manual_seed(seed))


def only(drawn: Drawn | None, stream: str, view: int = 0) -> Span:
    assert drawn is not None
    (span,) = drawn.views[view][stream]
    return span


def seconds_of(span: Span) -> list[float]:
    assert span.times is not None
    return [round(time, 4) for time in span.times.tolist()]


def test_frame_k_lies_k_over_rate_after_the_start() -> None:
    span = only(draw(timeline(), Aligned(seconds=1.0, place="start"), {"video": video()}), "video")
    assert seconds_of(span) == [0.0, 0.25, 0.5, 0.75]
    assert (span.start, span.end, span.steps, span.length) == (0.0, 1.0, 4, 4)


def test_without_a_rate_the_native_one_counts() -> None:
    span = only(draw(timeline(), Aligned(seconds=0.2, place="start"), {"video": video(rate=None)}), "video")
    assert seconds_of(span) == [0.0, 0.04, 0.08, 0.12, 0.16]


def test_all_streams_and_views_of_aligned_see_one_window() -> None:
    view = {"video": video(), "audio": audio()}
    for seed in range(20):
        drawn = draw(timeline(), Aligned(seconds=2.0), view, view, seed=seed)
        starts = {only(drawn, stream, number).start for stream in view for number in (0, 1)}
        assert len(starts) == 1 and 0 <= starts.pop() <= 8


def test_the_places_of_a_window() -> None:
    view = {"video": video()}
    row = timeline(moments=(6.0,))
    assert only(draw(row, Aligned(seconds=2.0, place="centre"), view), "video").start == 4.0
    assert only(draw(row, Aligned(seconds=2.0, place="moment"), view), "video").start == 5.0
    assert only(draw(timeline(moments=(9.9,)), Aligned(seconds=2.0, place="moment"), view), "video").start == 8.0
    free = {only(draw(timeline(), Aligned(seconds=2.0, place="moment"), view, seed=s), "video").start for s in range(5)}
    assert len(free) == 5  # no moment: anywhere


def test_the_places_of_a_span() -> None:
    window = Aligned(seconds=2.0, place="centre")  # 4 to 6

    def start(**kwargs: Any) -> float:
        return only(draw(timeline(), window, {"video": video(**kwargs)}), "video").start

    assert start() == 4.0
    assert start(seconds=1.0, at="centre") == 4.5
    assert start(seconds=4.0, at="centre") == 3.0
    assert start(seconds=1.0, at="start", offset=0.5) == 4.5
    assert start(seconds=1.0, at="start", offset=-0.5) == 3.5
    assert start(at="beginning", seconds=1.0) == 0.0
    inside = [
        only(draw(timeline(), window, {"video": video(seconds=0.5, at="inside")}, seed=s), "video").start
        for s in range(200)
    ]
    assert 4.0 <= min(inside) < 4.1 and 5.4 < max(inside) <= 5.5
    around = [
        only(draw(timeline(), window, {"video": video(seconds=5.0, at="around")}, seed=s), "video").start
        for s in range(200)
    ]
    assert 1.0 <= min(around) < 1.2 and 3.8 < max(around) <= 4.0


def test_lava_sees_sixteen_frames_of_the_centre_and_the_first_sound() -> None:
    sound = StreamSpec(
        transform=AudioTransform(hop=0.02, steps=512), seconds=10.24, rate=16_000, at="beginning", short="zero"
    )
    view = {"video": video(seconds=1.6, rate=10.0, at="inside", short="zero"), "audio": sound, "text": text()}
    row = timeline(20.0, captions=(Caption("a title", 0.0, 20.0),))
    starts = []
    for seed in range(100):
        drawn = draw(row, Aligned(seconds=2.0, place="centre"), view, seed=seed)
        starts.append(only(drawn, "video").start)
        assert only(drawn, "video").length == 16
        heard = only(drawn, "audio")
        assert (heard.start, heard.end, heard.steps) == (0.0, 10.24, 163_840)
        assert only(drawn, "text").text == "a title"
    assert 9.0 <= min(starts) < 9.05 and 9.35 < max(starts) <= 9.4


@pytest.mark.parametrize(
    ("short", "times", "length"),
    [
        ("hold", [0.0, 0.25, 0.5, 0.6999, 0.6999, 0.6999], 6),
        ("loop", [0.0, 0.25, 0.5, 0.0, 0.25, 0.5], 6),
        ("zero", [0.0, 0.25, 0.5], 3),
    ],
)
def test_a_short_recording_is_held_looped_or_cut(short: str, times: list[float], length: int) -> None:
    row = timeline(0.7)
    spec = video(seconds=1.5, short=short, at="beginning")
    span = only(draw(row, Aligned(seconds=0.7), {"video": spec}), "video")
    assert seconds_of(span) == times and span.length == length and span.steps == 6
    assert span.end == pytest.approx(0.7)


def test_skip_takes_another_row() -> None:
    assert draw(timeline(0.7), Aligned(seconds=1.0), {"video": video(short="skip")}) is None
    assert draw(timeline(1.0), Aligned(seconds=1.0), {"video": video(short="skip")}) is not None


@pytest.mark.parametrize(
    ("short", "pieces", "length"),
    [
        ("hold", [(0, 0.0, 0.7)], 150),
        ("zero", [(0, 0.0, 0.7)], 70),
        ("loop", [(0, 0.0, 0.7), (70, 0.0, 0.7), (140, 0.0, 0.1)], 150),
    ],
)
def test_short_sound_is_filled_up(short: str, pieces: list[tuple[int, float, float]], length: int) -> None:
    spec = audio(seconds=1.5, short=short, at="beginning")
    span = only(draw(timeline(0.7), Aligned(seconds=0.7), {"audio": spec}), "audio")
    got = [(piece.at, round(piece.start, 6), round(piece.end, 6)) for piece in span.pieces]
    assert got == pieces and span.length == length and span.steps == 150


def test_sound_that_begins_before_the_row_has_zeros_first() -> None:
    span = only(draw(timeline(1.0), Aligned(seconds=1.0), {"audio": audio(offset=-0.25)}), "audio")
    (piece,) = span.pieces
    assert (piece.at, piece.start, piece.end) == (25, 0.0, 0.75) and span.length == 100


def test_a_window_leaves_room_for_longer_sound() -> None:
    view = {"video": video(seconds=1.0), "audio": audio(seconds=4.0)}
    for seed in range(50):
        span = only(draw(timeline(), Aligned(seconds=1.0), view, seed=seed), "audio")
        assert span.end - span.start == pytest.approx(4.0)


def test_a_row_without_a_required_stream_is_passed_over_and_else_has_length_0() -> None:
    silent = Timeline(start=0.0, end=5.0, streams={"video": Extent(0.0, 5.0, 25.0)}, captions=(), moments=())
    assert draw(silent, Aligned(seconds=1.0), {"video": video(), "audio": audio()}) is None
    drawn = draw(silent, Aligned(seconds=1.0), {"video": video(), "audio": audio(required=False)})
    assert only(drawn, "audio").length == 0 and only(drawn, "audio").steps == 100
    assert draw(silent, Aligned(seconds=1.0), {"video": video(), "text": text()}) is None
    assert (
        only(draw(silent, Aligned(seconds=1.0), {"video": video(), "text": text(required=False)}), "text").text is None
    )


def test_a_still_that_lasts_no_time_has_its_caption() -> None:
    still = Timeline(0.0, 0.0, {"video": Extent(0.0, 0.0), "text": Extent(0.0, 0.0)}, (Caption("a frog", 0.0, 0.0),))
    for windows in (Aligned(seconds=1.0), Aligned(), Whole()):
        assert only(draw(still, windows, {"video": video(), "text": text()}), "text").text == "a frog"


def test_a_row_of_a_manifest_keeps_within_its_seconds() -> None:
    row = Timeline(start=3.0, end=5.0, streams={"video": Extent(0.0, 9.0, 25.0)}, captions=(), moments=())
    starts = [only(draw(row, Aligned(seconds=1.0), {"video": video()}, seed=s), "video").start for s in range(100)]
    assert 3.0 <= min(starts) < 3.05 and 3.95 < max(starts) <= 4.0
    assert only(draw(row, Aligned(seconds=1.0), {"video": video(at="beginning")}), "video").start == 3.0


def test_cvrl_distances_have_linearly_decreasing_density() -> None:
    # F(k) = 2k/M - (k/M)^2 with M = 9: the quartiles are M (1 - sqrt(1 - u)).
    view = {"video": video()}
    windows = TwoWindows(seconds=1.0, distance=Interval(shape="decreasing"))
    distances, first = [], 0
    for seed in range(2000):
        drawn = draw(timeline(), windows, view, view, seed=seed)
        a, b = only(drawn, "video", 0).start, only(drawn, "video", 1).start
        distances.append(abs(a - b))
        first += a < b
    quartiles = torch.tensor(distances).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    assert quartiles == pytest.approx([9 * (1 - math.sqrt(1 - u)) for u in (0.25, 0.5, 0.75)], abs=0.25)
    assert 0.46 < first / 2000 < 0.54


def test_two_windows_keep_the_distance_asked_for_and_halves_of_the_views_share_them() -> None:
    view = {"video": video()}
    windows = TwoWindows(seconds=1.0, distance=Interval(low=2.0, high=3.0))
    for seed in range(50):
        drawn = draw(timeline(), windows, *[view] * 4, seed=seed)
        starts = [only(drawn, "video", number).start for number in range(4)]
        assert starts[0] == starts[1] and starts[2] == starts[3]
        assert 2.0 - 1e-9 <= abs(starts[0] - starts[2]) <= 3.0 + 1e-9


def test_several_stand_in_order_with_gaps() -> None:
    view = {"video": video()}
    for seed in range(50):
        drawn = draw(timeline(), Several(seconds=1.0, gap=Interval(low=0.5, high=2.0)), *[view] * 3, seed=seed)
        starts = [only(drawn, "video", number).start for number in range(3)]
        for a, b in itertools.pairwise(starts):
            assert 1.5 - 1e-6 <= b - a <= 3.0 + 1e-6
    tight = draw(timeline(4.0), Several(seconds=1.0, gap=Interval(low=0.5, high=5.0)), *[view] * 3)
    starts = [only(tight, "video", number).start for number in range(3)]
    assert (
        starts[0] >= 0 and starts[2] <= 3.0 + 1e-6 and min(starts[1] - starts[0], starts[2] - starts[1]) >= 1.5 - 1e-6
    )
    assert draw(timeline(3.9), Several(seconds=1.0, gap=Interval(low=0.5, high=1.0)), *[view] * 3) is None


def test_reversed_and_shuffled_orders_are_told() -> None:
    view = {"video": video()}
    seen = set()
    for seed in range(60):
        drawn = draw(timeline(), Several(seconds=1.0, reverse=0.5), *[view] * 3, seed=seed)
        assert drawn is not None
        starts = [only(drawn, "video", number).start for number in range(3)]
        assert (starts == sorted(starts, reverse=True)) == bool(drawn.labels["reversed"])
        shuffled = draw(timeline(), Several(seconds=1.0, shuffle=True), *[view] * 3, seed=seed)
        assert shuffled is not None
        starts = [only(shuffled, "video", number).start for number in range(3)]
        ranks = [sorted(starts).index(start) for start in starts]
        assert shuffled.labels["order"].tolist() == ranks
        seen.add(tuple(ranks))
    assert len(seen) == 6


def test_hard_negatives_of_avts_lie_half_a_second_away() -> None:
    # avts, check 5: clips of 1 s in 10 s, t = 4: starts in [0, 2.5] and [5.5, 9].
    row = timeline(moments=(4.5,))
    view = {"video": video(), "audio": audio()}
    windows = Shifted(seconds=1.0, place="moment", shift=Interval(low=0.5, high=0.0))
    starts = []
    for seed in range(500):
        drawn = draw(row, windows, view, view, seed=seed)
        assert only(drawn, "video", 1).start == only(drawn, "audio", 0).start == 4.0
        starts.append(only(drawn, "audio", 1).start)
    left = [start for start in starts if start < 4]
    right = [start for start in starts if start > 4]
    assert 0 <= min(left) < 0.1 and 2.4 < max(left) <= 2.5 and 5.5 <= min(right) < 5.6 and 8.9 < max(right) <= 9.0
    assert len(left) / 500 == pytest.approx(2.5 / 6, abs=0.06)


def test_super_hard_negatives_overlap_by_half() -> None:
    view = {"audio": audio()}
    windows = Shifted(seconds=1.0, place="moment", shift=Interval(low=-0.5, high=-0.5))
    starts = {only(draw(timeline(moments=(4.5,)), windows, view, view, seed=s), "audio", 1).start for s in range(20)}
    assert starts == {3.5, 4.5}


def test_a_shift_without_room_has_length_0() -> None:
    view = {"video": video(), "audio": audio()}
    drawn = draw(timeline(2.0), Shifted(seconds=1.0), view, view)
    assert only(drawn, "audio", 1).length == 0 and only(drawn, "audio", 1).steps == 100
    assert only(drawn, "audio", 0).length == 100 and only(drawn, "video", 1).length == 4


def test_before_and_after_a_moment() -> None:
    view = {"video": video()}
    windows = BeforeAndAfter(seconds=1.0, margin=Interval(low=0.25, high=0.25))
    drawn = draw(timeline(moments=(0.5, 5.0)), windows, view, view, view)  # no room before 0.5
    assert [only(drawn, "video", number).start for number in range(3)] == [3.75, 5.25, 4.5]
    assert drawn is not None and drawn.labels["moment"].item() == 5.0
    assert draw(timeline(2.4), windows, view, view) is None


def test_local_windows_lie_inside_the_global_one() -> None:
    views = [{"video": video()}, *[{"video": video(seconds=0.5)}] * 3]
    for seed in range(50):
        drawn = draw(timeline(), GlobalAndLocal(seconds=2.0), *views, seed=seed)
        whole = only(drawn, "video", 0)
        locals_ = [only(drawn, "video", number) for number in (1, 2, 3)]
        assert all(whole.start <= span.start and span.end <= whole.end + 1e-9 for span in locals_)
        assert len({span.start for span in locals_}) == 3


def test_captions_nearest_in_time_are_candidates() -> None:
    captions = tuple(
        Caption(name, start, start + 1.0) for name, start in zip("abcd", (0.0, 2.0, 5.0, 9.0), strict=True)
    )
    view = {"video": video(), "text": text()}
    wanted = {"a": "abc", "b": "bac", "c": "cbd", "d": "dcb"}  # middles 0.5, 2.5, 5.5, 9.5
    for seed in range(20):
        drawn = draw(timeline(captions=captions), AroundCaption(seconds=2.0, candidates=3), view, seed=seed)
        assert drawn is not None
        texts = [span.text for span in drawn.views[0]["text"]]
        assert "".join(map(str, texts)) == wanted[str(texts[0])]
        middle = {"a": 1.0, "b": 2.5, "c": 5.5, "d": 9.0}[str(texts[0])]  # moved into the row at both ends
        span = only(drawn, "video")
        assert (span.start + span.end) / 2 == pytest.approx(middle)
    few = draw(timeline(captions=captions[:1]), AroundCaption(seconds=2.0, candidates=3), view)
    assert few is not None and [span.text for span in few.views[0]["text"]] == ["a", None, None]


def test_a_window_round_a_caption_lasts_as_long_as_it() -> None:
    view = {"video": video(), "text": text()}
    row = timeline(captions=(Caption("a", 4.0, 5.0),))
    span = only(draw(row, AroundCaption(), view), "video")
    assert (span.start, span.end) == (4.0, 5.0)
    span = only(draw(row, AroundCaption(minimum=3.0), view), "video")
    assert (span.start, span.end) == (3.0, 6.0)


def test_text_of_a_window_is_what_is_said_in_it() -> None:
    captions = (Caption("a", 0.0, 4.0), Caption("b", 4.0, 6.0), Caption("c", 6.0, 10.0))
    view = {"video": video(), "text": text()}
    assert only(draw(timeline(captions=captions), Aligned(seconds=2.0, place="centre"), view), "text").text == "b"
    seen = {
        only(draw(timeline(captions=captions), Aligned(seconds=3.0, place="centre"), view, seed=s), "text").text
        for s in range(30)
    }
    assert seen == {"a", "b", "c"}


def test_grid_of_ten_windows() -> None:
    # retrieval-and-tasks-common, section 4: N = 100, L = 32 give 0, 7.6, 15.1, ... (floors of linspace(0, 68, 10)).
    drawn = draw(
        timeline(100.0), Grid(seconds=32.0, count=10), {"video": video(rate=1.0), "text": text(required=False)}
    )
    assert drawn is not None
    starts = [span.start for span in drawn.views[0]["video"]]
    assert [int(start) for start in starts] == [0, 7, 15, 22, 30, 37, 45, 52, 60, 68]
    short = draw(timeline(20.0), Grid(seconds=32.0, count=3), {"video": video(rate=1.0)})
    assert short is not None and [span.start for span in short.views[0]["video"]] == [0.0, 0.0, 0.0]
    centre = draw(timeline(100.0), Grid(seconds=32.0, count=1), {"video": video(rate=1.0)})
    assert only(centre, "video").start == 34.0


def test_grid_with_crops_and_strides() -> None:
    drawn = draw(timeline(), Grid(seconds=2.0, count=2, crops=3), {"video": video(), "audio": audio()})
    assert drawn is not None
    assert [(s.start, s.crop) for s in drawn.views[0]["video"]] == [
        (start, crop) for start in (0.0, 8.0) for crop in (0.0, 0.5, 1.0)
    ]
    assert [(s.start, s.crop) for s in drawn.views[0]["audio"]] == [(0.0, None), (8.0, None)]
    rolling = draw(timeline(5.0), Grid(seconds=2.0, count=None), {"video": video()})
    assert rolling is not None and [s.start for s in rolling.views[0]["video"]] == [0.0, 2.0, 3.0]
    even = draw(timeline(6.0), Grid(seconds=2.0, count=None, stride=1.0), {"video": video()})
    assert even is not None and [s.start for s in even.views[0]["video"]] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_candidates_of_a_rolling_grid_are_the_same_seconds_of_all_streams() -> None:
    row = Timeline(
        start=0.0,
        end=6.0,
        streams={"video": Extent(0.0, 6.0, 25.0), "audio": Extent(0.0, 3.0, 16_000.0)},
        captions=(),
        moments=(),
    )
    drawn = draw(row, Grid(seconds=2.0, count=None), {"video": video(), "audio": audio(required=False, short="zero")})
    assert drawn is not None
    assert [s.length for s in drawn.views[0]["video"]] == [8, 8, 8]
    assert [s.length for s in drawn.views[0]["audio"]] == [200, 100, 0]


def test_whole_rows_and_drawn_parts_of_long_ones() -> None:
    view = {"video": video(rate=None), "audio": audio()}
    drawn = draw(timeline(2.96), Whole(), view)
    assert only(drawn, "video").length == 74 and only(drawn, "audio").length == 296
    part = draw(timeline(10.0), Whole(longest=4.0), view)
    assert only(part, "video").length == 100 and only(part, "audio").start == only(part, "video").start > 0
    silent = Timeline(start=0.0, end=3.0, streams={"video": Extent(0.0, 3.0, 25.0)}, captions=(), moments=())
    missing = draw(silent, Whole(), {"video": video(), "audio": audio(required=False)})
    assert only(missing, "audio").steps == only(missing, "audio").length == 0


def test_pace_changes_the_step_and_is_told() -> None:
    pace = Pace(speeds=(1.0, 2.0, 3.0))
    seen = set()
    for seed in range(30):
        drawn = draw(timeline(), Aligned(seconds=1.0), {"video": video(), "audio": audio()}, seed=seed, pace=pace)
        assert drawn is not None
        speed = (1.0, 2.0, 3.0)[int(drawn.labels["pace"])]
        times = seconds_of(only(drawn, "video"))
        assert len(times) == 4 and times[1] - times[0] == pytest.approx(speed / 4, abs=1e-3)
        assert only(drawn, "video").end <= 10.0 and only(drawn, "audio").length == 100
        seen.add(speed)
    assert seen == {1.0, 2.0, 3.0}


def test_pace_starts_again_at_the_first_frame() -> None:
    # pretext, section 2: N = 20 frames, from 5 (1-based) with pace 3: 5, 8, 11, 14, 17, 20, 1, 4.
    row = timeline(20.0)
    spec = video(rate=1.0, seconds=8.0, offset=4.0, at="beginning", short="loop")
    drawn = draw(row, Aligned(seconds=20.0), {"video": spec}, pace=Pace(speeds=(3.0,)))
    assert [time + 1 for time in seconds_of(only(drawn, "video"))] == [5, 8, 11, 14, 17, 20, 1, 4]


RELATIONS = [
    Aligned(seconds=1.5),
    Aligned(),
    Aligned(seconds=1.5, place="moment"),
    TwoWindows(seconds=1.0),
    TwoWindows(seconds=1.0, distance=Interval(shape="decreasing")),
    Several(seconds=0.5, gap=Interval(high=1.0), reverse=0.5, shuffle=True),
    Shifted(seconds=1.0),
    BeforeAndAfter(seconds=0.5),
    GlobalAndLocal(seconds=2.0),
    AroundCaption(seconds=1.0, candidates=2),
    AtCaption(seconds=1.0, apart=0.5, either=True),
    Grid(seconds=1.0, count=4, crops=3),
    Grid(seconds=1.0, count=None),
    Whole(longest=5.0),
]


def test_the_caption_at_the_edge_of_a_window_takes_its_place() -> None:
    told = (Caption("pour", 2.0, 5.0), Caption("stir", 5.5, 6.5), Caption("heat", 8.0, 12.0))
    row = timeline(end=40.0, captions=told)
    sound = audio(seconds=8.0, short="zero")
    view = {"video": video(short="zero"), "audio": sound, "text": text(required=False)}
    seen = set()
    for seed in range(60):
        drawn = draw(row, AtCaption(seconds=8.0, apart=4.0), view, seed=seed)
        shown, heard, said = (only(drawn, stream) for stream in ("video", "audio", "text"))
        seen.add(said.text)
        if said.text is None:  # an untold window stays, and so does its sound
            assert heard.start == shown.start and shown.end - shown.start == pytest.approx(8.0)
        else:
            assert (shown.start, shown.end) == (said.start, said.end) == (2.0, 12.0)
            assert (heard.start, heard.end) == (6.0, 14.0)
    # From any of the three, the neighbours that make the shortest whole of 8 s are all three.
    assert seen == {None, "pour stir heat", "heat stir pour", "stir pour heat"}
    either = [draw(row, AtCaption(seconds=8.0, apart=4.0, either=True), view, seed=seed) for seed in range(60)]
    sides = {only(drawn, "audio").start for drawn in either if only(drawn, "text").text is not None}
    assert sides == {0.0, 6.0}, "back to -2 s, of which the first two are no part of the recording"


@settings(max_examples=150, deadline=None)
@example(  # a local window beyond the end of a row that is shorter than the global one
    relation=GlobalAndLocal(seconds=2.0), start=0.0, seconds=0.0625, ahead=0.0, behind=0.0, at="start", short="hold",
    length=0.5, offset=-0.3, seed=1,
)  # fmt: skip
@given(
    relation=st.sampled_from(RELATIONS),
    start=st.floats(0.0, 5.0),
    seconds=st.floats(0.05, 20.0),
    ahead=st.floats(0.0, 2.0),
    behind=st.floats(0.0, 2.0),
    at=st.sampled_from(["start", "centre", "inside", "around", "beginning"]),
    short=st.sampled_from(["hold", "loop", "zero", "skip"]),
    length=st.sampled_from([None, 0.5, 3.0]),
    offset=st.sampled_from([0.0, -0.3, 0.4]),
    seed=st.integers(0, 1000),
)
def test_whatever_is_drawn_lies_inside_and_comes_again(
    relation: Any, start: float, seconds: float, ahead: float, behind: float, at: Any, short: Any,
    length: float | None, offset: float, seed: int,
) -> None:  # fmt: skip
    row = Timeline(
        start=start,
        end=start + seconds,
        streams={
            "video": Extent(start - ahead, start + seconds + behind, 25.0),
            "audio": Extent(start + min(ahead, seconds / 2), start + seconds, 16_000.0),
        },
        captions=(Caption("a", start, start + seconds / 2), Caption("b", start, start + seconds)),
        moments=(start + seconds / 3,),
    )
    view = {
        "video": video(at=at, short=short, seconds=length, offset=offset),
        "audio": audio(at=at, short=short, seconds=length, required=False),
        "text": text(required=False),
    }
    drawn = draw(row, relation, view, view, seed=seed)
    again = draw(row, relation, view, view, seed=seed)
    assert (drawn is None) == (again is None)
    if drawn is None or again is None:
        return
    for number, spans in enumerate(drawn.views):
        for stream, found in spans.items():
            low = max(row.start, row.streams[stream].start) if stream in row.streams else row.start
            high = min(row.end, row.streams[stream].end) if stream in row.streams else row.end
            for span, twin in zip(found, again.views[number][stream], strict=True):
                assert (span.start, span.end, span.text, span.pieces) == (twin.start, twin.end, twin.text, twin.pieces)
                assert row.start - 1e-6 <= span.start <= span.end + 1e-6 and span.end <= row.end + 1e-6
                if span.times is not None:
                    assert twin.times is not None and torch.equal(span.times, twin.times)
                    assert len(span.times) == span.length <= span.steps
                    assert bool((span.times >= low - 1e-6).all()) and bool((span.times <= high + 1e-6).all())
                for piece in span.pieces:
                    assert low - 1e-6 <= piece.start <= piece.end <= high + 1e-6 and 0 <= piece.at < span.steps


def test_a_grid_tells_its_windows_whatever_the_streams_read_of_them() -> None:
    view = {"video": video(seconds=2.0, at="centre", short="zero"), "audio": audio()}
    drawn = draw(timeline(4.0, start=1.5), Grid(seconds=1.0, count=None), view)
    assert drawn is not None and drawn.labels["start"].item() == 1.5
    assert drawn.labels["windows"].tolist() == [[1.5, 2.5], [2.5, 3.5], [3.0, 4.0]]
    assert [(span.start, span.end) for span in drawn.views[0]["video"]] == [(1.5, 3.0), (2.0, 4.0), (2.5, 4.0)]
