"""Captions: SRT and VTT files beside a recording, its own subtitle streams, a text file, a title."""

import html
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from triptych.media.container import Medium

SIDECARS = (".srt", ".vtt", ".txt")
STAMP = r"(?:([0-9]{1,4}):)?([0-9]{1,2}):([0-9]{1,2})[.,]([0-9]{1,3})"
CUE = re.compile(rf"^\s*{STAMP}\s*-->\s*{STAMP}")
TAG = re.compile(r"</?[A-Za-z][^<>]*>|<[0-9:.,]+>|\{\\[^{}]*\}")
LANGUAGE = re.compile(r"(\.[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*)?(\.(forced|sdh|cc|default|auto))?$", re.IGNORECASE)
"""What may stand between a recording's name and the suffix of its captions: ``.en``, ``.pt-BR``, ``.en.forced``."""
WORD = re.compile(rf"<{STAMP}>([^<]*)")
SETTLED = 2_000_000_000
"""Nanoseconds after a change from which on another one is sure to have another time."""


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
        words = _plain(raw)
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
        word = _plain(piece)
        if word:
            found.append((word, begin, stop))
    return tuple(found)


def read_sidecars(path: Path, duration: float) -> tuple[Caption, ...]:
    """Return the captions of ``clip.srt``, ``clip.vtt`` (or ``clip.en.vtt``), or ``clip.txt`` beside ``clip.mp4``."""
    for candidate in sidecars_of(path):
        text = _decoded(candidate.read_bytes())
        if candidate.suffix.lower() == ".txt":
            words = " ".join(text.split())
            found: tuple[Caption, ...] = (Caption(words, 0.0, duration),) if words else ()
        else:
            found = parse_cues(text)
        if found:
            return found
    return ()


def sidecars_of(path: Path) -> list[Path]:
    """Return the caption files of a recording, best first.

    A folder is listed once for all its recordings, unless it has just been changed.
    """
    changed = path.parent.stat().st_mtime_ns
    listing = _listing if time.time_ns() - changed > SETTLED else _listing.__wrapped__
    return listing(path.parent, changed).get(path.stem, [])


@lru_cache(maxsize=8)
def _listing(folder: Path, changed: int) -> dict[str, list[Path]]:
    paths = list(folder.iterdir())
    recordings = {path.stem for path in paths if path.suffix.lower() not in SIDECARS}
    found: dict[str, list[tuple[int, int, Path]]] = {}
    for path in paths:
        if path.suffix.lower() in SIDECARS:
            rank = SIDECARS.index(path.suffix.lower())
            found.setdefault(path.stem, []).append((rank, 0, path))
            name = LANGUAGE.sub("", path.stem)
            if name != path.stem and path.stem not in recordings:
                found.setdefault(name, []).append((rank, 1, path))
    return {name: [path for *_, path in sorted(ranked)] for name, ranked in found.items()}


def _decoded(data: bytes) -> str:
    """Return text in UTF-8 or UTF-16; what is neither is taken for Windows' old encoding of western languages."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def read_embedded(medium: Medium) -> tuple[Caption, ...]:
    """Return the captions of the first text subtitle stream; streams that cannot be read count as none."""
    for number in range(len(medium.container.streams.subtitles)):
        medium.reopen()
        stream = medium.container.streams.subtitles[number]
        cues = []
        for packet in medium.demux(stream):
            if packet.pts is None:
                continue
            start = float(packet.pts * packet.time_base) - medium.origin
            end = start + float((packet.duration or 0) * packet.time_base)
            for subtitle in medium.decode(stream, packet):
                words = _plain(_dialogue(subtitle).replace("\\N", " ").replace("\\n", " ").replace("\\h", " "))
                if words and end > start:
                    cues.append(Caption(words, start, end))
        if cues:
            return tuple(cues)
    return ()


def _dialogue(subtitle: object) -> str:
    """Return the text of an event, which stands after eight commas; other subtitles are pictures."""
    return getattr(subtitle, "ass", b"").decode("utf-8", errors="replace").split(",", 8)[-1]


def _plain(text: str) -> str:
    """Return the words of a cue without tags and entities."""
    return " ".join(html.unescape(TAG.sub("", text)).split())
