"""What ``prepare`` measures of a recording and keeps in its row, so that later nobody opens the file for it."""

import json
from collections.abc import Sequence as Ordered
from pathlib import Path
from typing import Any

from triptych.errors import TriptychError
from triptych.media.captions import Caption
from triptych.media.recording import Recording
from triptych.media.timeline import Extent, Probe, Timeline

MEASURED = ("seconds", "width", "height", "fps", "video_codec", "audio_rate", "channels", "audio_codec", "probe")
"""Columns that ``prepare`` writes; ``probe`` is JSON with all that is needed to skip opening the file."""
SEQUENCE = "stream:"
"""Beginning of the names of columns that hold files of precomputed vectors."""


def probe_columns(recording: Recording, moments: Ordered[float] = ()) -> dict[str, Any]:
    """Return what ``prepare`` keeps of a recording, by column."""
    probe, timeline = recording.probe, recording.timeline
    kept = {
        "streams": {name: [e.start, e.end, e.rate] for name, e in timeline.streams.items()},
        "captions": [[c.text, c.start, c.end, list(c.words)] for c in timeline.captions],
        "moments": [round(second, 3) for second in moments],
        "probe": {name: getattr(probe, name) for name in Probe.__dataclass_fields__},
    }
    return {
        "seconds": f"{timeline.end:.3f}",
        "width": probe.width or "",
        "height": probe.height or "",
        "fps": round(probe.fps, 3) or "",
        "video_codec": probe.video_codec,
        "audio_rate": probe.audio_rate or "",
        "channels": probe.channels or "",
        "audio_codec": probe.audio_codec,
        "probe": json.dumps(kept, ensure_ascii=False, separators=(",", ":")),
    }


def remembered(path: Path, text: str) -> tuple[Probe, Timeline]:
    """Return what the column ``probe`` of a row keeps.

    Args:
        path: Names the row in messages.
        text: The column.

    Raises:
        TriptychError: If it is damaged.
    """
    try:
        kept = json.loads(text)
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in kept["probe"].items()}
        probe = Probe(**values)
        return probe, Timeline(
            start=0.0,
            end=probe.duration,
            streams={name: Extent(*extent) for name, extent in kept["streams"].items()},
            captions=tuple(
                Caption(text, start, end, tuple((w, a, b) for w, a, b in words))
                for text, start, end, words in kept["captions"]
            ),
            moments=tuple(kept["moments"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise TriptychError(
            f"{path}: the column 'probe' is damaged ({error}); run `triptych prepare` again."
        ) from error
