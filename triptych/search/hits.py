"""Answers of a search: where to look."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Hit:
    """An answer: where to look."""

    path: str
    """Relative to the source."""
    start: float
    end: float
    score: float
    """Standard deviations above this query's usual similarity with the stream's windows: comparable over streams."""
    similarity: float
    stream: str
    space: str


@dataclass(frozen=True)
class Hits:
    """Answers of a search, best first."""

    query: str
    hits: list[Hit]
    saved: list[str]
    """Files that the hits were cut out to."""
    failed: list[str] = field(default_factory=list)
    """Why others could not be."""

    def render(self, as_json: bool = False) -> str:
        """Return an aligned list, or one line of JSON."""
        if as_json:
            return json.dumps(asdict(self), ensure_ascii=False)
        if not self.hits:
            return "no hits"
        width = max(len(hit.path) for hit in self.hits)
        lines = []
        for place, hit in enumerate(self.hits, 1):
            where = f"{hit.path.ljust(width)}  {clock(hit.start)} to {clock(hit.end)}"
            lines.append(f"{place:3d}  {hit.score:5.2f}  {where}  {hit.stream}")
        return "\n".join(["     score  where", *lines, *(f"saved {path}" for path in self.saved)])


def clock(seconds: float) -> str:
    """Return seconds as hours (where there are any), minutes and seconds."""
    minutes, tenths = divmod(round(10 * seconds), 600)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02d}:" if hours else f"{minutes}:") + f"{tenths / 10:04.1f}"


def merge(hits: Sequence[Hit]) -> list[Hit]:
    """Return hits, best first, without those that overlap or touch a better one of the same file."""
    kept: dict[str, list[Hit]] = {}
    for hit in sorted(hits, key=lambda hit: -hit.score):
        others = kept.setdefault(hit.path, [])
        if not any(hit.start <= other.end and other.start <= hit.end for other in others):
            others.append(hit)
    return sorted((hit for found in kept.values() for hit in found), key=lambda hit: -hit.score)
