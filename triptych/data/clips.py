"""From windows to batches: decoding and cutting in a worker, padding into a batch, transforms on the device.

A worker decodes a recording once for all spans of all views and leaves frames as bytes; what is random about a clip is
drawn there too and travels with it, so that a batch is the same whatever the number of workers and processes.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.nn import functional

from triptych.batch import Batch, Clip, Stream
from triptych.data.audio import draw_sound, finish_sound
from triptych.data.mixing import Mix, lay_background
from triptych.data.spans import Piece, Span
from triptych.data.text import Tokenizer
from triptych.data.video import Box, cut, draw_box, draw_colours, finish_video, needed_side
from triptych.data.windows import has_candidates
from triptych.media.recording import Recording
from triptych.recipe import (
    AudioTransform,
    SequenceTransform,
    StreamSpec,
    TextTransform,
    VideoTransform,
    Viewing,
    ViewSpec,
)

GAP = 1.0
"""Pieces of sound less than so many seconds apart are decoded in one go."""


@dataclass
class RawClip:
    """One stream of one view before the transforms of the device; fields as in ``Clip``, for one row or for a batch."""

    data: Tensor
    length: Tensor
    span: Tensor
    times: Tensor | None = None
    draws: dict[str, Tensor] = field(default_factory=dict)
    """What the transforms apply."""

    def pin_memory(self) -> "RawClip":
        """Return the clip in page-locked memory."""
        return self.each(lambda x: x.pin_memory())

    def to(self, device: torch.device) -> "RawClip":
        """Return the clip on ``device``."""
        return self.each(lambda x: x.to(device, non_blocking=True))

    def each(self, change: Callable[[Tensor], Tensor]) -> "RawClip":
        """Return the clip with every tensor changed."""
        return RawClip(
            change(self.data),
            change(self.length),
            change(self.span),
            None if self.times is None else change(self.times),
            {name: change(value) for name, value in self.draws.items()},
        )


@dataclass
class Item:
    """A row, decoded."""

    row: int
    views: tuple[dict[Stream, RawClip], ...]
    labels: dict[str, Tensor]


@dataclass
class RawBatch:
    """Rows side by side, padded, before the transforms of the device."""

    views: tuple[dict[Stream, RawClip], ...]
    rows: Int[Tensor, " batch"]
    drawn: dict[str, Tensor]

    def pin_memory(self) -> "RawBatch":
        """Return the batch with its clips in page-locked memory (called by the loader's thread)."""
        return replace(self, views=tuple({s: clip.pin_memory() for s, clip in view.items()} for view in self.views))


@dataclass(frozen=True)
class Look:
    """One view of one draw of a row: what is read, how it is transformed, and the key of its randomness."""

    spans: dict[Stream, tuple[Span, ...]]
    view: ViewSpec
    key: tuple[int, ...]


def seeded(*key: int | str) -> torch.Generator:
    """Return a generator whose state is a hash of ``key``: draws of different keys have nothing in common."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def decode(
    recording: Recording, looks: Sequence[Look], viewing: Viewing, tokenizer: Tokenizer | None
) -> list[dict[Stream, RawClip]]:
    """Read everything that ``looks`` ask of a recording, in one pass a stream.

    Args:
        recording: The open recording.
        looks: Views to fill.
        viewing: The viewing that they belong to.
        tokenizer: Needed where a view has text.

    Returns:
        The clips of each look.

    Raises:
        TriptychError: If the recording cannot be read there.
    """
    filled: Filled = [{} for _ in looks]
    _read_pictures(recording, looks, filled)
    _read_sounds(recording, looks, filled)
    _lay_noise(recording, looks, filled)
    for look, parts in zip(looks, filled, strict=True):
        for stream, spec in look.view.items():
            if isinstance(spec.transform, TextTransform):
                assert tokenizer is not None
                parts[stream] = _Parts([_tokens(span, spec.transform, tokenizer) for span in look.spans[stream]])
            elif isinstance(spec.transform, SequenceTransform):
                parts[stream] = _read_vectors(recording, stream, look.spans[stream], spec.transform)
    return [
        {
            stream: _stack(
                parts[stream], look.spans[stream], spec, has_candidates(viewing.windows, spec.transform.kind)
            )
            for stream, spec in look.view.items()
        }
        for look, parts in zip(looks, filled, strict=True)
    ]


@dataclass
class _Parts:
    """One stream of one look: the steps of each candidate, their times where uneven, and the draws."""

    data: list[Tensor]
    draws: dict[str, Tensor] = field(default_factory=dict)
    times: list[Tensor] | None = None


Filled = list[dict[Stream, _Parts]]
"""By look and stream."""


@dataclass(frozen=True)
class _Square:
    """What is cut out of some frames, and where it goes."""

    times: Tensor
    box: Box
    size: int
    parts: list[Tensor]
    place: int


def _read_pictures(recording: Recording, looks: Sequence[Look], filled: Filled) -> None:
    """Decode the union of all frames once, as small as the largest crop allows, and cut every look's square."""
    squares: list[_Square] = []
    side = 0
    for look, found in zip(looks, filled, strict=True):
        for stream, spec in look.view.items():
            transform, spans = spec.transform, look.spans[stream]
            if not isinstance(transform, VideoTransform):
                continue
            empty = torch.zeros(0, transform.size, transform.size, 3, dtype=torch.uint8)
            parts = _Parts([empty] * len(spans), draw_colours(transform, seeded(*look.key, stream)))
            if spec.short == "loop":
                parts.times = [torch.zeros(0) if span.times is None else span.times.float() for span in spans]
            found[stream] = parts
            for place, span in enumerate(spans):
                if span.times is not None:
                    width, height = recording.probe.width, recording.probe.height
                    box = draw_box(transform, width, height, seeded(*look.key, stream, "crop"), span.crop)
                    side = max(side, min(needed_side(box, transform, width, height), width, height))
                    squares.append(_Square(span.times, box, transform.size, parts.data, place))
    if not squares:
        return
    union, inverse = torch.unique(torch.cat([square.times for square in squares]), return_inverse=True)
    frames = recording.frames(union, short_side=side)
    chosen = torch.split(inverse, [len(square.times) for square in squares])
    for square, frame in zip(squares, chosen, strict=True):
        square.parts[square.place] = cut(frames[frame], square.box, square.size)


def _read_sounds(recording: Recording, looks: Sequence[Look], filled: Filled) -> None:
    """Decode each stretch of sound once, mixed to one channel, and fill every look's steps from it."""
    pieces: dict[float, list[tuple[Tensor, Piece]]] = {}
    for number, look in enumerate(looks):
        for stream, spec in look.view.items():
            if not isinstance(spec.transform, AudioTransform):
                continue
            extent = recording.timeline.streams.get(stream)
            rate = spec.rate or (extent and extent.rate) or 0.0  # without the stream there is nothing to read
            parts = [torch.zeros(span.steps) for span in look.spans[stream]]
            for part, span in zip(parts, look.spans[stream], strict=True):
                pieces.setdefault(rate, []).extend((part, piece) for piece in span.pieces)
            filled[number][stream] = _Parts(parts, draw_sound(spec.transform, seeded(*look.key, stream)))
    for rate, wanted in pieces.items():
        for stretch in _stretches(wanted):
            start, end = stretch[0][1].start, max(piece.end for _, piece in stretch)
            sound = recording.waveform(start, end, rate).mean(dim=0)
            for part, piece in stretch:
                first = round((piece.start - start) * rate)
                samples = sound[first : first + round((piece.end - piece.start) * rate)][: len(part) - piece.at]
                part[piece.at : piece.at + len(samples)] = samples


def _lay_noise(recording: Recording, looks: Sequence[Look], filled: Filled) -> None:
    """Lay noise from files under the sounds of all looks that want it."""
    for look, found in zip(looks, filled, strict=True):
        for stream, spec in look.view.items():
            noise = spec.transform.background if isinstance(spec.transform, AudioTransform) else None
            lengths = [span.length for span in look.spans[stream]]
            if noise is None or noise.source is None or not any(lengths):
                continue
            rate = spec.rate or recording.timeline.streams[stream].rate or 0.0
            options = (noise.source, rate, found[stream].draws["decibels"])
            lay_background(found[stream].data, lengths, *options, seeded(*look.key, stream, "background"))


def _stretches(pieces: list[tuple[Tensor, Piece]]) -> list[list[tuple[Tensor, Piece]]]:
    """Group pieces, in order of time, that lie close enough to be decoded together."""
    groups: list[list[tuple[Tensor, Piece]]] = []
    end = -math.inf
    for part, piece in sorted(pieces, key=lambda entry: entry[1].start):
        if piece.start > end + GAP:
            groups.append([])
        groups[-1].append((part, piece))
        end = max(end, piece.end)
    return groups


def _read_vectors(
    recording: Recording, stream: Stream, spans: tuple[Span, ...], transform: SequenceTransform
) -> _Parts:
    parts = _Parts([], times=[])
    assert parts.times is not None
    for span in spans:
        vectors, times = torch.zeros(0, 0), torch.zeros(0)
        for piece in span.pieces:
            found = recording.sequence(stream, piece.start, piece.end)
            vectors, times = found.vectors, found.times
            if transform.like is not None:
                there = transform.like in recording.sequences
                count = len(recording.sequence(transform.like, piece.start, piece.end).times) if there else 0
                vectors, times = (nearest(x, count) for x in (vectors, times))
            vectors, times = _fit(vectors, times, transform)
        parts.data.append(functional.normalize(vectors, dim=1) if transform.normalize else vectors)
        parts.times.append(times)
    return parts


def nearest(x: Shaped[Tensor, "steps ..."], count: int) -> Shaped[Tensor, "kept ..."]:
    """Return ``count`` of the steps, evenly spaced: step floor(i steps / count) in the place i; none of none."""
    return x[torch.arange(count if len(x) else 0) * len(x) // max(count, 1)]


def _fit(vectors: Tensor, times: Tensor, transform: SequenceTransform) -> tuple[Tensor, Tensor]:
    """Bring more vectors than the transform's steps down to these."""
    steps = transform.steps
    if steps is None or len(times) <= steps:
        return vectors, times
    if transform.fit == "cut":
        return vectors[:steps], times[:steps]
    if transform.fit == "nearest":
        return nearest(vectors, steps), nearest(times, steps)
    return functional.adaptive_max_pool1d(vectors.T, steps).T, nearest(times, steps)


def _tokens(span: Span, transform: TextTransform, tokenizer: Tokenizer) -> Int[Tensor, " steps"]:
    options = (transform.steps, transform.prompt, transform.marks, transform.unknown)
    return torch.tensor([] if span.text is None else tokenizer.encode(span.text, *options), dtype=torch.long)


def _stack(parts: _Parts, spans: tuple[Span, ...], spec: StreamSpec, candidates: bool) -> RawClip:
    """Pad the candidates of a row to one length; without the axis if the relation has none."""
    if isinstance(spec.transform, TextTransform | SequenceTransform):
        lengths = [len(part) for part in parts.data]
        steps = max(lengths) if spec.transform.steps is None else spec.transform.steps
    else:
        lengths, steps = [span.length for span in spans], max(span.steps for span in spans)
    data = _side_by_side([_pad(part, steps) for part in parts.data])
    times = None if parts.times is None else torch.stack([_pad(part, steps) for part in parts.times])
    clip = RawClip(data, torch.tensor(lengths), torch.tensor([[span.start, span.end] for span in spans]), times)
    clip = clip if candidates else clip.each(lambda x: x[0])
    return replace(clip, draws=parts.draws)


def _pad(x: Shaped[Tensor, "steps ..."], steps: int) -> Shaped[Tensor, "{steps} ..."]:
    if len(x) == steps:
        return x
    return torch.cat([x, x.new_zeros(steps - len(x), *x.shape[1:])])


def collate(items: Sequence[Item]) -> RawBatch:
    """Put rows side by side; candidates and steps are padded with zeros to the longest, ``length`` tells."""
    views = []
    for number in range(len(items[0].views)):
        view = {}
        for stream in items[0].views[number]:
            clips = [item.views[number][stream] for item in items]
            times = [clip.times for clip in clips if clip.times is not None]
            view[stream] = RawClip(
                data=_side_by_side([clip.data for clip in clips]),
                length=_side_by_side([clip.length for clip in clips]),
                span=_side_by_side([clip.span for clip in clips]),
                times=_side_by_side(times) if times else None,
                draws={name: torch.stack([clip.draws[name] for clip in clips]) for name in clips[0].draws},
            )
        views.append(view)
    return RawBatch(
        views=tuple(views),
        rows=torch.tensor([item.row for item in items]),
        drawn={name: _side_by_side([item.labels[name] for item in items]) for name in items[0].labels},
    )


def _side_by_side(tensors: list[Tensor]) -> Tensor:
    """Stack tensors whose axes may differ in size, zeros where one is smaller."""
    shapes = {tensor.shape for tensor in tensors}
    if len(shapes) == 1:
        return torch.stack(tensors)
    shape = [max(max(sizes), 1) for sizes in zip(*shapes, strict=True)]
    stacked = tensors[0].new_zeros(len(tensors), *shape)
    for row, tensor in zip(stacked, tensors, strict=True):
        row[tuple(slice(size) for size in tensor.shape)] = tensor
    return stacked


def finish(
    raw: RawBatch, viewing: Viewing, device: torch.device, targets: dict[str, Tensor], mix: Mix | None = None
) -> Batch:
    """Bring a batch to ``device`` and transform it there, with the draws that came along.

    Args:
        raw: From ``collate``.
        viewing: The viewing that it was decoded for.
        device: Where the method lives.
        targets: By column, one value a row of the data set.
        mix: Which rows are mixed, and how; the targets are shares then.
    """
    views = []
    for view, specs in zip(raw.views, viewing.views, strict=True):
        views.append({stream: _finish_clip(clip.to(device), specs[stream], mix) for stream, clip in view.items()})
    chosen = {name: values[raw.rows] for name, values in targets.items()}
    if mix is not None:
        chosen = {name: mix.blend(values) for name, values in chosen.items()}
    return Batch(tuple(views), raw.rows, raw.drawn, chosen).to(device)


def _finish_clip(clip: RawClip, spec: StreamSpec, mix: Mix | None = None) -> Clip:
    data, length = clip.data, clip.length
    if isinstance(spec.transform, VideoTransform):
        data = finish_video(data, clip.draws, spec.transform)
        if mix is not None:
            data, length = mix.blend_pictures(data), mix.longer(length)
    elif isinstance(spec.transform, AudioTransform):
        if mix is not None:
            data, length = mix.blend(data), mix.longer(length)
        data, length = finish_sound(data, length, spec.rate, clip.draws, spec.transform)
    return Clip(data, length, clip.span, clip.times)
