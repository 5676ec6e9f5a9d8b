"""The verb that says what a fine-tuned model thinks of recordings."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.api.sources import open_model, open_source
from triptych.errors import TriptychError, UsageError
from triptych.evaluation.classification import Average, Said, say
from triptych.evaluation.evaluator import with_windows
from triptych.evaluation.splits import choose_split
from triptych.files import replacing
from triptych.media.collection import Rows
from triptych.method import Method
from triptych.model import Model


def predict(
    model: str | Path | Model,
    source: str | Path | Rows,
    out: str | Path,
    split: str | None = None,
    windows: int | None = None,
    crops: int | None = None,
    each_window: bool = False,
    average: Average = "probabilities",
    device: str | None = None,
    workers: int | None = None,
) -> Path:
    """Write what a fine-tuned model says of each recording, and return the file.

    Every line has ``path``, ``start`` and ``end`` (seconds) and, by what the model was trained for,

    - ``class`` and its ``score``, and the scores of all classes; where a recording may have several classes,
      ``classes``: those whose score is 0.5 or more;
    - the same for each part of each window (``events``);
    - ``words``.

    Args:
        model: A fine-tuned model, or its name.
        source: Recordings.
        out: A ``.csv`` or ``.jsonl`` file; it is replaced.
        split: Only the rows of this split.
        windows: Windows a recording; the model's own where None.
        crops: 1 (the centre) or 3 along the longer side.
        each_window: A line for each window (and crop) instead of one for a recording.
        average: What is averaged over the windows and crops of a recording.
        device: Where.
        workers: Decoding processes.

    Raises:
        UsageError: If the model was not fine-tuned, or ``out`` is of another kind.
        TriptychError: If no recording can be read.
    """
    out = Path(out)
    if out.suffix not in (".csv", ".jsonl"):
        raise UsageError(f"{out}: predictions are written as .csv or .jsonl.")
    rows = choose_split(open_source(source), split)
    found = model if isinstance(model, Model) else open_model(model, rows, device)
    if type(found.method).predict is Method.predict:
        raise UsageError(f"{found.name} was not fine-tuned, so it predicts nothing: see triptych finetune.")
    viewing = with_windows(found.test, windows, crops)
    said = say(found, rows, viewing, workers)
    lines = _tell(said, rows, found, each_window, average)
    with replacing(out) as place:
        if not _write(lines, place, out.suffix == ".csv"):
            raise TriptychError(f"None of the {len(rows)} recordings of {rows.source} could be read.")
    return out


def _tell(
    said: Iterable[Said], rows: Rows, model: Model, each_window: bool, average: Average
) -> Iterator[dict[str, Any]]:
    names = tuple(getattr(model.method.config, "classes", ())) or model.labels
    several = getattr(model.method.config, "task", "classes") == "multilabel"
    paths = rows.column("path")

    def shares(scores: Tensor) -> Tensor:
        return scores.float().sigmoid() if several else scores.float().softmax(dim=-1)

    def line(row: int, start: float, end: float) -> dict[str, Any]:
        return {"path": paths[row], "start": round(start, 3), "end": round(end, 3)}

    kept: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for part in said:
        for row, span, place in zip(part.rows.tolist(), part.spans, range(len(part.rows)), strict=True):
            start, end = span.tolist()
            if "events" in part.outputs:
                events = shares(part.outputs["events"][place])
                for number, scores in enumerate(events):
                    length = (end - start) / len(events)
                    begin = start + number * length
                    yield {**line(row, begin, begin + length), **_named(scores, names, several)}
            elif "words" in part.outputs:
                assert model.tokenizer is not None
                yield {**line(row, start, end), "words": model.tokenizer.decode(part.outputs["words"][place].tolist())}
            elif each_window:
                yield {**line(row, start, end), **_named(shares(part.outputs["classes"][place]), names, several)}
            else:
                kept.setdefault(row, []).append((part.outputs["classes"][place], span))
    for row, windows in sorted(kept.items()):
        spans = torch.stack([span for _, span in windows])
        scores = torch.stack([score for score, _ in windows]).float()
        mean = shares(scores).mean(dim=0) if average == "probabilities" else shares(scores.mean(dim=0))
        yield {**line(row, float(spans.min()), float(spans.max())), **_named(mean, names, several)}


def _named(scores: Tensor, names: tuple[str, ...], several: bool) -> dict[str, Any]:
    """Return the best class or classes, and the score of each."""
    each = {name: round(score, 6) for name, score in zip(names, scores.tolist(), strict=True)}
    if several:
        return {"classes": [name for name, score in each.items() if score >= 0.5], "scores": each}
    best = max(each, key=lambda name: each[name])
    return {"class": best, "score": each[best], "scores": each}


def _write(lines: Iterable[dict[str, Any]], path: Path, as_csv: bool) -> int:
    """Write lines, and return how many; in CSV each class has a column ``score:NAME``, several stand between ``;``."""
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer: csv.DictWriter[str] | None = None
        for line in lines:
            count += 1
            if not as_csv:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                continue
            scores = {f"score:{name}": score for name, score in line.pop("scores", {}).items()}
            flat = {name: ";".join(value) if name == "classes" else value for name, value in line.items()} | scores
            if writer is None:
                writer = csv.DictWriter(file, list(flat), lineterminator="\n")
                writer.writeheader()
            writer.writerow(flat)
    return count
