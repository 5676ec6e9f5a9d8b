"""Captions: SRT and VTT files beside a recording, its own subtitle streams, a text file, a title."""

import re
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer

SIDECARS = (".srt", ".vtt", ".txt")
STAMP = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
CUE = re.compile(rf"^\s*{STAMP}\s*-->\s*{STAMP}")
TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
WORD = re.compile(rf"<{STAMP}>([^<]*)")


@dataclass(frozen=True, slots=True)
class Caption:
    """Words and the span that they are about."""

    text: str
    start: float
    end: float
    words: tuple[tuple[str, float, float], ...] = ()
    """Each word with its start and end, where they are known."""


def parse_cues(text: str) -> tuple[Caption, ...]:
    """Return the cues of an SRT or WebVTT text in order of time; whatever is no cue is passed over.

    Tags are taken out; WebVTT's time stamps inside a cue give the times of its words.
    """
    cues = []
    lines = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff").split("\n")
    place = 0
    while place < len(lines):
        match = CUE.match(lines[place])
        place += 1
        if not match:
            continue
        start, end = _seconds(*match.groups()[:4]), _seconds(*match.groups()[4:])
        body = []
        while place < len(lines) and lines[place].strip() and not CUE.match(lines[place]):
            body.append(lines[place])
            place += 1
        if place < len(lines) and CUE.match(lines[place]) and body and body[-1].strip().isdigit():
            body.pop()  # the number of a cue that follows without a blank line
        raw = " ".join(body)
        words = " ".join(TAG.sub("", raw).split())
        if words and end > start:
            cues.append(Caption(words, start, end, _timed_words(raw, start, end)))
    return tuple(sorted(cues, key=lambda cue: (cue.start, cue.end)))


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str) -> float:
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction) / 10 ** len(fraction)


def _timed_words(raw: str, start: float, end: float) -> tuple[tuple[str, float, float], ...]:
    stamps = list(WORD.finditer(raw))
    if not stamps:
        return ()
    pieces = [(raw[: stamps[0].start()], start)]
    pieces += [(stamp.group(5), _seconds(*stamp.groups()[:4])) for stamp in stamps]
    ends = [begin for _, begin in pieces[1:]] + [end]
    found = []
    for (piece, begin), stop in zip(pieces, ends, strict=True):
        word = " ".join(TAG.sub("", piece).split())
        if word:
            found.append((word, begin, stop))
    return tuple(found)


def read_sidecars(path: Path, duration: float) -> tuple[Caption, ...]:
    """Return the captions of ``clip.srt``, ``clip.vtt`` (or ``clip.en.vtt``), or ``clip.txt`` beside ``clip.mp4``."""
    for suffix in SIDECARS:
        candidates = [path.with_suffix(suffix), *sorted(path.parent.glob(f"{_escaped(path.stem)}.*{suffix}"))]
        for candidate in candidates:
            if not candidate.is_file():
                continue
            text = candidate.read_bytes().decode("utf-8", errors="replace")
            if suffix == ".txt":
                words = " ".join(text.split())
                found: tuple[Caption, ...] = (Caption(words, 0.0, duration),) if words else ()
            else:
                found = parse_cues(text)
            if found:
                return found
    return ()


def read_embedded(container: InputContainer, name: str) -> tuple[Caption, ...]:
    """Return the captions of the first text subtitle stream; streams that cannot be read count as none."""
    for stream in container.streams.subtitles:
        cues = []
        try:
            for packet in container.demux(stream):
                if packet.pts is None or not packet.size:
                    continue
                start = float(packet.pts * packet.time_base)
                end = start + float((packet.duration or 0) * packet.time_base)
                for subtitle in packet.decode():
                    words = " ".join(TAG.sub("", _dialogue(subtitle)).replace("\\N", " ").split())
                    if words and end > start:
                        cues.append(Caption(words, start, end))
        except av.error.FFmpegError:
            cues = []
        if cues:
            return tuple(cues)
    return ()


def _dialogue(subtitle: object) -> str:
    text = getattr(subtitle, "dialogue", b"") or getattr(subtitle, "text", b"")
    return text.decode("utf-8", errors="replace") if isinstance(text, bytes) else str(text)


def _escaped(stem: str) -> str:
    return re.sub(r"([*?\[\]])", r"[\1]", stem)
