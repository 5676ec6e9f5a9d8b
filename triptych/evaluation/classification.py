"""Classes that a fine-tuned model names: accuracy, or mAP, AUC and d' where rows have several labels."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from triptych.batch import Batch
from triptych.data.loader import Loader
from triptych.data.segments import segment
from triptych.embedding import Looks, fold
from triptych.errors import TriptychError, UsageError
from triptych.evaluation.evaluator import Score, Sweeper, Swept
from triptych.evaluation.probe import Labelled, Task, Windows
from triptych.media.collection import Rows
from triptych.recipe import Viewing

Average = Literal["probabilities", "logits"]
"""What is averaged over the windows and crops of a recording; most papers: probabilities."""


@dataclass(frozen=True)
class Classification:
    """Scores of what a model says of windows and crops, averaged over a recording, then over the rows of a group."""

    classes: tuple[str, ...]
    """Names of the model's classes, in their order."""
    label: str
    """Column of the labels."""
    several: bool = False
    """Whether a row has any number of labels."""
    average: Average = "probabilities"
    group: str | None = None
    """Column whose equal values are one item."""
    seed: int = 0
    name: str = "classes"

    def run(self, model: Sweeper, train: Rows, test: Rows) -> dict[str, Score]:
        """Return ``accuracy`` in percent; ``mAP`` and ``AUC`` in percent, and ``d'``, where there are several labels.

        Rows without a label, or that cannot be read, do not count.

        Raises:
            UsageError: If there is no such column.
            TriptychError: If no row has a label, one has a label that is none of the model's classes or (where a row
                has one) several, or nothing can be read.
        """
        assert isinstance(model, Swept)
        labelled = Labelled.read(test, self.label, self.group)
        unknown = sorted(labelled.classes - set(self.classes))
        if unknown:
            raise TriptychError(
                f"The column '{self.label}' of {test.source} holds '{unknown[0]}', which is none of the model's "
                f"{len(self.classes)} classes."
            )
        if not labelled.classes:
            raise TriptychError(f"No row of {test.source} that is tested has a label in the column '{self.label}'.")
        if not self.several and any(labels is not None and len(labels) != 1 for labels in labelled.labels):
            raise UsageError(f"Rows have several labels in '{self.label}'; the model was trained to name one.")
        known = [number for number, labels in enumerate(labelled.labels) if labels is not None]
        looks = model.sweeps.models[model.name]
        viewing, workers = model.sweeps.viewing, model.sweeps.workers
        found = row_scores(looks, test.select(known), viewing, self.several, self.average, workers)
        if not found:
            raise TriptychError(f"None of the {len(known)} labelled recordings of {test.source} could be read.")
        numbers = np.array([known[place] for place in found], dtype=np.int64)
        marks = np.zeros((len(numbers), len(self.classes)), dtype=bool)
        for line, number in zip(marks, numbers, strict=True):
            line[[self.classes.index(label) for label in labelled.labels[number] or ()]] = True
        scored = Windows(np.stack(list(found.values())), marks, numbers, labelled.groups[numbers])
        task = Task(self.classes, self.several, labelled, labelled)
        scores = task.score("", scored.scored(scored.x), self.seed)
        return {name.strip() or "accuracy": score for name, score in scores.items()}


class Said(NamedTuple):
    """What a model says of the windows and crops of some rows."""

    rows: Tensor
    """Row of each window and crop."""
    crops: Tensor
    """Its crop."""
    spans: Float[Tensor, "items 2"]
    """Its start and end, seconds of the recording."""
    outputs: dict[str, Tensor]
    """What ``predict`` gives, for each."""

    def take(self, chosen: Tensor) -> "Said":
        """Return some of them."""
        outputs = {name: value[chosen] for name, value in self.outputs.items()}
        return Said(self.rows[chosen], self.crops[chosen], self.spans[chosen], outputs)


def say(
    model: Looks, rows: Rows, viewing: Viewing, workers: int | None = None, title: str = "predict"
) -> Iterator[Said]:
    """Yield what a fine-tuned model says of rows, batch by batch, in order; windows without any stream are left out.

    Args:
        model: The model.
        rows: The recordings; those that cannot be read are left out and told.
        viewing: How they are seen.
        workers: Decoding processes.
        title: What the bar is called.
    """
    method, crops = model.method.eval(), getattr(viewing.windows, "crops", 1)
    device = next(method.parameters()).device
    cut = segment(rows, range(len(rows)), viewing.windows)
    places = torch.from_numpy(cut.of)
    with (
        Loader(cut.rows, viewing, tokenizer=model.tokenizer, workers=workers, device=device) as loader,
        tqdm(total=len(cut.rows), desc=title, unit="row", delay=2, disable=None) as bar,
    ):
        for batch in loader.sweep(batch_rows=cut.together):
            said = _say(model, batch, crops)
            yield said._replace(rows=places[said.rows])
            bar.update(len(batch))


@torch.inference_mode()
def _say(model: Looks, batch: Batch, crops: int) -> Said:
    folded = fold(batch.views[0], crops)
    device = batch.rows.device
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        outputs = {name: value.cpu() for name, value in model.method.predict(folded.view).items()}
    clips = list(folded.view.values())
    there = torch.stack([clip.present for clip in clips]).any(dim=0).cpu()
    spans = clips[0].span.cpu()
    if "windows" in batch.drawn:  # a stream may read more than its window, or less
        number = torch.arange(len(there)) % (len(there) // len(batch)) // crops
        spans = batch.drawn["windows"].cpu()[folded.rows, number]
    said = Said(batch.rows.cpu()[folded.rows], folded.crops, spans, outputs)
    return said.take(there.nonzero()[:, 0])


def row_scores(
    model: Looks,
    rows: Rows,
    viewing: Viewing,
    several: bool = False,
    average: Average = "probabilities",
    workers: int | None = None,
) -> dict[int, Float[np.ndarray, " classes"]]:
    """Return the class scores of each row that could be read: means over its windows and crops.

    Args:
        model: One whose ``predict`` gives ``classes``.
        rows: The recordings.
        viewing: How they are seen.
        several: Whether classes do not exclude each other: the sigmoid in the place of the softmax.
        average: What is averaged.
        workers: Decoding processes.
    """
    sums: dict[int, Tensor] = {}
    counts: Counter[int] = Counter()
    for said in say(model, rows, viewing, workers, "classify"):
        scores = said.outputs["classes"].float()
        if average == "probabilities":
            scores = scores.sigmoid() if several else scores.softmax(dim=1)
        for row in said.rows.unique().tolist():
            mine = scores[said.rows == row]
            sums[row] = sums.get(row, 0) + mine.sum(dim=0)
            counts[row] += len(mine)
    return {row: (sums[row] / counts[row]).numpy() for row in sorted(sums)}
