"""Which seconds of a recording are looked at: relations in time, as pure functions without memory or decoding.

Given what is known of a row (its timeline), a viewing and a generator, ``draw_windows`` answers which frames (as
times), which pieces of sound and which captions every view reads, or None where the row does not offer what is asked.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from triptych.batch import Stream
from triptych.data.narration import caption_at, join_captions
from triptych.data.spans import TOLERANCE, Span, Window, count_steps, cut_span, show_still
from triptych.media.captions import Caption
from triptych.media.timeline import Timeline
from triptych.recipe import (
    AroundCaption,
    AtCaption,
    BeforeAndAfter,
    GlobalAndLocal,
    Grid,
    Interval,
    Several,
    Shifted,
    StreamSpec,
    TwoWindows,
    Viewing,
    ViewSpec,
    Whole,
    Windows,
)


@dataclass(frozen=True)
class Drawn:
    """The windows of one row."""

    views: tuple[dict[Stream, tuple[Span, ...]], ...]
    """Spans by stream of each view: one, or several candidates."""
    labels: dict[str, Tensor] = field(default_factory=dict)
    """What a method may have to guess: ``pace`` (index of the speed), ``reversed``, ``order`` (place in time of each
    view's window), ``moment`` (seconds). Of a grid: ``windows`` (start and end of each, whatever its
    streams read) and ``start`` (of the row), seconds of the recording."""


class _Dice:
    """Numbers from a generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def integer(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self.generator))

    def order(self, count: int) -> list[int]:
        places: list[int] = torch.randperm(count, generator=self.generator).tolist()
        return places

    def interval(self, interval: Interval, low: float, high: float) -> float:
        """Draw from ``[low, high]`` with the density of ``interval``."""
        if interval.shape == "uniform":
            return self.uniform(low, high)
        # Density 2 (high - x) / (high - low)^2: the inverse of F = 1 - ((high - x) / (high - low))^2 (CVRL, power 1).
        return high - (high - low) * math.sqrt(1 - self.uniform(0.0, 1.0))


def has_candidates(windows: Windows, kind: str) -> bool:
    """Return whether clips of a modality have the axis ``candidates`` under a relation.

    Every stream of a ``grid`` has it (windows, or all captions of the row), and text under ``around_caption`` with more
    than one candidate.
    """
    return isinstance(windows, Grid) or (
        isinstance(windows, AroundCaption) and windows.candidates > 1 and kind == "text"
    )


def draw_windows(timeline: Timeline, viewing: Viewing, generator: torch.Generator) -> Drawn | None:
    """Draw the windows of one row.

    Args:
        timeline: What is known of the row.
        viewing: Relation and views.
        generator: Source of all draws; equal states give equal windows.

    Returns:
        Spans of every stream of every view, or None where the row lacks a required stream or is too short for it.
    """
    return _Drawing(timeline, viewing, _Dice(generator)).run()


class _Drawing:
    """The draws of one row, with what they share at hand."""

    def __init__(self, timeline: Timeline, viewing: Viewing, dice: _Dice) -> None:
        self.timeline = timeline
        self.viewing = viewing
        self.dice = dice
        self.labels: dict[str, Tensor] = {}
        media = {s for view in viewing.views for s, spec in view.items() if spec.transform.kind != "text"}
        self.still = "video" in timeline.streams and timeline.streams["video"].rate is None
        self.extents = {s: _extent(timeline, s) for s in sorted(media) if s in timeline.streams}
        self.area = self._shared_area()
        self.speed = self._draw_speed()

    def run(self) -> Drawn | None:
        for view in self.viewing.views:
            for stream, spec in view.items():
                if spec.required and not self._has(stream, spec):
                    return None
        if isinstance(self.viewing.windows, Grid):
            return self._finish([self._grid_view(self.viewing.windows, view) for view in self.viewing.views])
        if isinstance(self.viewing.windows, AroundCaption):
            return self._around_caption(self.viewing.windows)
        if isinstance(self.viewing.windows, AtCaption):
            return self._at_caption(self.viewing.windows)
        windows = self._windows()
        if windows is None:
            return None
        views = []
        for number, (view, window) in enumerate(zip(self.viewing.views, windows, strict=True)):
            spans: dict[Stream, tuple[Span, ...] | None] = {}
            for stream, spec in view.items():
                place = self._moved.get(stream, window) if number == 1 else window
                spans[stream] = self._spans(stream, spec, place)
            views.append(spans)
        return self._finish(views)

    # ------------------------------------------------------------ what the row offers

    def _has(self, stream: Stream, spec: StreamSpec) -> bool:
        return bool(self.timeline.captions) if spec.transform.kind == "text" else stream in self.timeline.streams

    def _shared_area(self) -> Window:
        """Return where all required streams that are there exist together (all that are there, if none is required)."""
        wanted: dict[Stream, bool] = {}
        for view in self.viewing.views:
            for stream, spec in view.items():
                if stream in self.extents:
                    wanted[stream] = wanted.get(stream, False) or spec.required
        chosen = [stream for stream in wanted if wanted[stream]] or list(wanted)
        if not chosen:
            return Window(self.timeline.start, self.timeline.end)
        start = max(self.extents[stream].start for stream in chosen)
        end = min(self.extents[stream].end for stream in chosen)
        if end < start:  # they never exist together: what is not required comes with length 0
            start = min(self.extents[stream].start for stream in chosen)
            end = max(self.extents[stream].end for stream in chosen)
        return Window(start, end)

    def _draw_speed(self) -> float:
        pace = self.viewing.pace
        if pace is None:
            return 1.0
        index = self.dice.integer(len(pace.speeds))
        self.labels["pace"] = torch.tensor(index)
        return pace.speeds[index]

    def _speed_of(self, stream: Stream) -> float:
        pace = self.viewing.pace
        return self.speed if pace is not None and stream in pace.streams else 1.0

    # ------------------------------------------------------------ places of windows

    def _room(self, views: tuple[ViewSpec, ...], seconds: float) -> tuple[float, float]:
        """Return the first and last start of a window in which every stream of ``views`` finds all of its span."""
        low, high = self.area.start, self.area.end - seconds
        for view in views:
            for stream, spec in view.items():
                if stream not in self.extents or spec.at == "beginning" or (self.still and stream == "video"):
                    continue
                extent = self.extents[stream]
                length = (spec.seconds or seconds) * self._speed_of(stream)
                slack = seconds - length
                first, last = {
                    "start": (0.0, 0.0),
                    "centre": (slack / 2, slack / 2),
                    "inside": (min(0.0, slack), max(0.0, slack)),
                    "around": (min(0.0, slack), max(0.0, slack)),
                }[spec.at]
                low = max(low, extent.start - spec.offset - last)
                high = min(high, extent.end - spec.offset - length - first)
        return low, high

    def _place(self, views: tuple[ViewSpec, ...], seconds: float, tail: float = 0.0) -> float:
        """Return the start of a window, drawn as ``place`` says; ``tail`` is kept free after it."""
        low, high = self._room(views, seconds)
        high -= tail
        if high < low + TOLERANCE:
            loops = all(
                spec.short == "loop" for view in views for spec in view.values() if spec.transform.kind != "text"
            )
            if loops and high < low - TOLERANCE:  # the clip wraps round, so it may begin anywhere
                return self.dice.uniform(self.area.start, self.area.end)
            return max(low, self.area.start) if high >= low - TOLERANCE else self.area.start
        place = self.viewing.windows.place
        if place == "start":
            return low
        if place == "centre":
            return min(max((self.area.start + self.area.end - seconds) / 2, low), high)
        if place == "moment" and self.timeline.moments:
            moment = self.timeline.moments[self.dice.integer(len(self.timeline.moments))]
            self.labels["moment"] = torch.tensor(moment, dtype=torch.float32)
            return min(max(moment - seconds / 2, low), high)
        return self.dice.uniform(low, high)

    def _windows(self) -> list[Window] | None:
        """Return the window of each view; ``_moved`` holds the one of the shifted streams of the second view."""
        self._moved: dict[Stream, Window] = {}
        relation, views = self.viewing.windows, self.viewing.views
        seconds = relation.seconds or self.area.seconds
        if isinstance(relation, TwoWindows):
            return self._two_windows(relation, seconds)
        if isinstance(relation, Several):
            return self._several(relation, seconds)
        if isinstance(relation, BeforeAndAfter):
            return self._before_and_after(relation, seconds)
        if isinstance(relation, Whole):
            start, end = self.area.start, self.area.end
            if relation.longest is not None and end - start > relation.longest:
                start = self.dice.uniform(start, end - relation.longest)
                end = start + relation.longest
            return [Window(start, end)] * len(views)
        start = self._place(views[:1] if isinstance(relation, GlobalAndLocal) else views, seconds)
        window = Window(start, start + seconds)
        if isinstance(relation, GlobalAndLocal):
            return [
                window if number < relation.global_views else self._inside(window, view)
                for number, view in enumerate(views)
            ]
        if isinstance(relation, Shifted):
            self._shift(relation, window)
        return [window] * len(views)

    def _two_windows(self, relation: TwoWindows, seconds: float) -> list[Window]:
        views = self.viewing.views
        low, high = self._room(views, seconds)
        if high > low:
            farthest = min(relation.distance.high or math.inf, high - low)
            distance = self.dice.interval(relation.distance, min(relation.distance.low, farthest), farthest)
            first = self._place(views, seconds, tail=distance)
            starts = [first, first + distance]
            if self.dice.integer(2):  # either may come first (CVRL)
                starts.reverse()
        else:
            starts = [self._place(views, seconds), self._place(views, seconds)]
        return [
            Window(starts[2 * number // len(views)], starts[2 * number // len(views)] + seconds)
            for number in range(len(views))
        ]

    def _several(self, relation: Several, seconds: float) -> list[Window] | None:
        views = self.viewing.views
        count = len(views)
        gaps = [
            self.dice.interval(relation.gap, relation.gap.low, max(relation.gap.low, relation.gap.high))
            for _ in range(count - 1)
        ]
        low, high = self._room(views, seconds)
        spare = high - low - (count - 1) * (seconds + relation.gap.low)
        if spare < -TOLERANCE:
            return None
        extra = sum(gaps) - (count - 1) * relation.gap.low
        if extra > spare:  # the drawn gaps are too wide for the row: shrink what exceeds the smallest
            gaps = [relation.gap.low + (gap - relation.gap.low) * max(spare, 0.0) / extra for gap in gaps]
        start = self._place(views, seconds, tail=sum(gaps) + (count - 1) * seconds)
        windows = []
        for number in range(count):
            windows.append(Window(start, start + seconds))
            start += seconds + (gaps[number] if number < count - 1 else 0.0)
        order = list(range(count))
        if relation.reverse:
            turned = self.dice.uniform(0.0, 1.0) < relation.reverse
            self.labels["reversed"] = torch.tensor(int(turned))
            order = order[::-1] if turned else order
        if relation.shuffle:
            order = [order[place] for place in self.dice.order(count)]
            self.labels["order"] = torch.tensor(order)
        return [windows[place] for place in order]

    def _before_and_after(self, relation: BeforeAndAfter, seconds: float) -> list[Window] | None:
        margins = [
            self.dice.interval(relation.margin, relation.margin.low, max(relation.margin.low, relation.margin.high))
            for _ in range(2)
        ]
        low = self.area.start + margins[0] + seconds
        high = self.area.end - margins[1] - seconds
        if high < low - TOLERANCE:
            return None
        fitting = [moment for moment in self.timeline.moments if low - TOLERANCE <= moment <= high + TOLERANCE]
        moment = fitting[self.dice.integer(len(fitting))] if fitting else self.dice.uniform(low, max(low, high))
        self.labels["moment"] = torch.tensor(moment, dtype=torch.float32)
        before = Window(moment - margins[0] - seconds, moment - margins[0])
        after = Window(moment + margins[1], moment + margins[1] + seconds)
        around = Window(moment - seconds / 2, moment + seconds / 2)
        return [before, after, *[around] * len(self.viewing.views)][: len(self.viewing.views)]

    def _inside(self, window: Window, view: ViewSpec) -> Window:
        """Return a window inside ``window``, as long as the longest span of a local view."""
        lengths = [
            (spec.seconds or window.seconds) * self._speed_of(s) for s, spec in view.items() if s in self.extents
        ]
        seconds = min(max(lengths, default=window.seconds), window.seconds)
        start = self.dice.uniform(window.start, window.end - seconds)
        return Window(start, start + seconds)

    def _shift(self, relation: Shifted, window: Window) -> None:
        """Draw another place for the moved streams; where there is none, they lie outside the row and get length 0."""
        moved = {stream: spec for stream, spec in self.viewing.views[1].items() if stream in relation.streams}
        first, last = self._room((moved,), window.seconds)
        shift = relation.shift
        farthest = shift.high + window.seconds if shift.high else math.inf
        nearest = shift.low + window.seconds  # between the starts; the recipe counts from end to start
        left = (nearest, min(farthest, window.start - first))
        right = (nearest, min(farthest, last - window.start))
        room = [max(0.0, high - low) for low, high in (left, right)]
        possible = [high >= low - TOLERANCE for low, high in (left, right)]
        if not any(possible):
            nowhere = Window(math.inf, math.inf)
            self._moved = dict.fromkeys(moved, nowhere)
            return
        if sum(room) > 0:
            side = 0 if self.dice.uniform(0.0, sum(room)) < room[0] else 1
        else:
            sides = [number for number in range(2) if possible[number]]
            side = sides[self.dice.integer(len(sides))]
        low, high = (left, right)[side]
        start = window.start + (-1, 1)[side] * self.dice.interval(shift, low, max(low, high))
        self._moved = dict.fromkeys(moved, Window(start, start + window.seconds))

    # ------------------------------------------------------------ relations with candidates

    def _around_caption(self, relation: AroundCaption) -> Drawn | None:
        captions = self.timeline.captions
        chosen: list[Caption] = []
        if captions:
            chosen = [captions[self.dice.integer(len(captions))]]
            middle = _middle(chosen[0])
            others = sorted((abs(_middle(other) - middle), place) for place, other in enumerate(captions))
            chosen += [captions[place] for _, place in others if captions[place] is not chosen[0]]
            chosen = chosen[: relation.candidates]
        window = self._caption_window(relation, chosen)
        texts = tuple(_text_span(caption) for caption in chosen)
        missing = self._untold(window)
        texts += (missing,) * (relation.candidates - len(texts))
        return self._with_texts(texts, window, {})

    def _caption_window(self, relation: AroundCaption, chosen: list[Caption]) -> Window:
        if not chosen:
            seconds = relation.seconds or self.area.seconds
            start = self._place(self.viewing.views, seconds)
        else:
            seconds = relation.seconds or max(chosen[0].end - chosen[0].start, relation.minimum)
            low, high = self._room(self.viewing.views, seconds)
            start = max(min(_middle(chosen[0]) - seconds / 2, high), low)
        return Window(start, start + seconds)

    def _at_caption(self, relation: AtCaption) -> Drawn | None:
        seconds = relation.seconds or self.area.seconds
        start = self._place(self.viewing.views, seconds)
        window, told, shift = Window(start, start + seconds), None, 0.0
        place = caption_at(self.timeline.captions, window)
        if place is not None:
            told = join_captions(self.timeline.captions, place, seconds)
            window = Window(told.start, told.end)
            shift = -relation.apart if relation.either and self.dice.integer(2) else relation.apart
        moved = Window(window.start + shift, window.end + shift)
        text = self._untold(window) if told is None else _text_span(told)
        return self._with_texts((text,), window, dict.fromkeys(relation.streams, moved))

    def _with_texts(self, texts: tuple[Span, ...], window: Window, moved: dict[Stream, Window]) -> Drawn | None:
        """Return views of a window (or the one that a stream was moved to) with the same texts in all of them."""
        views = []
        for view in self.viewing.views:
            spans: dict[Stream, tuple[Span, ...] | None] = {}
            for stream, spec in view.items():
                told = spec.transform.kind == "text"
                spans[stream] = texts if told else self._spans(stream, spec, moved.get(stream, window))
            views.append(spans)
        return self._finish(views)

    def _grid_view(self, relation: Grid, view: ViewSpec) -> dict[Stream, tuple[Span, ...] | None]:
        seen = [stream for stream, spec in view.items() if spec.transform.kind != "text"]  # subtitles may outlast it
        present = [self.extents[stream] for stream in seen if stream in self.extents] or [self.area]
        row = Window(min(extent.start for extent in present), max(extent.end for extent in present))
        windows = [[window.start, window.end] for window in _grid_windows(relation, row)]
        self.labels |= {"windows": torch.tensor(windows), "start": torch.tensor(self.timeline.start)}
        spans: dict[Stream, tuple[Span, ...] | None] = {}
        for stream, spec in view.items():
            if spec.transform.kind == "text":
                texts = tuple(_text_span(caption) for caption in self.timeline.captions)
                spans[stream] = texts or (Span(row.start, row.end),)
                continue
            found: list[Span] = []
            for window in _grid_windows(relation, row if relation.count is None else self.extents.get(stream, row)):
                cut = self._cut(stream, spec, window)
                if cut is None:
                    return {stream: None}
                crops = (None,) if relation.crops == 1 or spec.transform.kind != "video" else (0.0, 0.5, 1.0)
                found += [replace(cut, crop=crop) for crop in crops]
            spans[stream] = tuple(found)
        return spans

    # ------------------------------------------------------------ spans of streams

    def _spans(self, stream: Stream, spec: StreamSpec, window: Window) -> tuple[Span, ...] | None:
        if spec.transform.kind == "text":
            return (self._text_in(window),)
        span = self._cut(stream, spec, window)
        return None if span is None else (span,)

    def _cut(self, stream: Stream, spec: StreamSpec, window: Window) -> Span | None:
        """Return the span of a stream for a window; None where it is too short for ``short="skip"``."""
        nowhere = not math.isfinite(window.start)
        seconds = spec.seconds or ((self.viewing.windows.seconds or 0.0) if nowhere else window.seconds)
        extent = self.extents.get(stream)
        rate = spec.rate or (None if extent is None else self.timeline.streams[stream].rate)
        if extent is None or nowhere:
            # Steps that come from the row's own length are not known of a row without the stream: the batch pads.
            fixed = spec.seconds is not None or self.viewing.windows.seconds is not None
            return Span(self.area.start, self.area.start, steps=count_steps(spec, seconds, rate) if fixed else 0)
        if self.still and spec.transform.kind == "video":
            return show_still(spec, seconds, extent)
        speed = self._speed_of(stream)
        start = self._start_of(spec, window, extent, seconds * speed)
        return cut_span(spec, start, seconds, rate, speed, extent)

    def _start_of(self, spec: StreamSpec, window: Window, extent: Window, length: float) -> float:
        slack = window.seconds - length
        if spec.at == "beginning":
            return self.timeline.start + spec.offset
        if spec.at == "start":
            return window.start + spec.offset
        if spec.at == "centre":
            return window.start + slack / 2 + spec.offset
        low, high = window.start + min(0.0, slack) + spec.offset, window.start + max(0.0, slack) + spec.offset
        # Of the places that hold (or are held by) the window, prefer those where the stream is there all along.
        inner_low, inner_high = max(low, extent.start), min(high, extent.end - length)
        if inner_low <= inner_high:
            low, high = inner_low, inner_high
        else:
            low = high = min(max(extent.start, low), high)
        return self.dice.uniform(low, high)

    def _text_in(self, window: Window) -> Span:
        """Return a drawn caption among those that are said in the window or belong to the whole row."""
        heard = [caption for caption in self.timeline.captions if _meet(window, Window(caption.start, caption.end))]
        return _text_span(heard[self.dice.integer(len(heard))]) if heard else self._untold(window)

    def _untold(self, window: Window) -> Span:
        """Return the span of a window, as far as it lies in the row, of which nothing is told."""
        start, end = (min(max(second, self.timeline.start), self.timeline.end) for second in (window.start, window.end))
        return Span(start, end)

    def _finish(self, views: list[dict[Stream, tuple[Span, ...] | None]]) -> Drawn | None:
        done: list[dict[Stream, tuple[Span, ...]]] = []
        for view, spans in zip(self.viewing.views, views, strict=True):
            kept: dict[Stream, tuple[Span, ...]] = {}
            for stream, found in spans.items():
                if found is None:
                    return None
                spec = view[stream]
                there = any(span.text is not None if spec.transform.kind == "text" else span.length for span in found)
                moved = isinstance(self.viewing.windows, Shifted) and stream in self.viewing.windows.streams
                if spec.required and not there and not moved:
                    return None
                kept[stream] = found
            done.append(kept)
        return Drawn(tuple(done), self.labels)


def _extent(timeline: Timeline, stream: Stream) -> Window:
    """Return where a stream exists within the row; a still lasts as long as the row."""
    extent = timeline.streams[stream]
    if stream == "video" and extent.rate is None:
        return Window(timeline.start, timeline.end)
    return Window(max(extent.start, timeline.start), min(extent.end, timeline.end))


def _meet(one: Window, other: Window) -> bool:
    """Return whether windows overlap; where one lasts no time (a still's), whether they touch."""
    common = min(one.end, other.end) - max(one.start, other.start)
    return common > (TOLERANCE if min(one.seconds, other.seconds) > TOLERANCE else -TOLERANCE)


def _middle(caption: Caption) -> float:
    return (caption.start + caption.end) / 2


def _text_span(caption: Caption) -> Span:
    return Span(caption.start, caption.end, text=caption.text)


def _grid_windows(relation: Grid, extent: Window) -> list[Window]:
    seconds = relation.seconds or extent.seconds
    last = extent.end - seconds
    if last <= extent.start + TOLERANCE:
        starts = [extent.start] * (relation.count or 1)
    elif relation.count == 1:
        starts = [(extent.start + last) / 2]
    elif relation.count is not None:
        starts = [
            extent.start + place * (last - extent.start) / (relation.count - 1) for place in range(relation.count)
        ]
    else:
        stride = relation.stride or seconds
        count = int((last - extent.start) / stride + TOLERANCE) + 1
        starts = [extent.start + place * stride for place in range(count)]
        if last - starts[-1] > 0.1 * seconds:  # what remains is seen too, in a window that ends with the row
            starts.append(last)
    return [Window(start, start + seconds) for start in starts]
