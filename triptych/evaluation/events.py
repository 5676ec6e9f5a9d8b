"""Audio-visual event localization: how many seconds of how many recordings are named rightly (AVE)."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from triptych.data.targets import LabelsBySecond
from triptych.embedding import Looks
from triptych.errors import TriptychError
from triptych.evaluation.classification import say
from triptych.evaluation.evaluator import Score, Sweeper, Swept
from triptych.evaluation.metrics import bootstrap
from triptych.media.collection import Rows
from triptych.recipe import Viewing


@dataclass(frozen=True)
class EventLocalization:
    """Share of the labelled seconds whose class is right, background being one of the classes (Tian et al. 2018).

    A second's class is the likeliest by the mean softmax over the windows (or parts of windows) whose middle lies in
    it. A second that no window looks at is wrong; a recording that cannot be read does not count.
    """

    classes: tuple[str, ...]
    """Names of the model's classes, in their order."""
    label: str = "segments"
    """Column of the labels: a JSON list, one for each second."""
    group: str | None = None
    """Column whose equal values are drawn together for the interval; the file where None."""
    seed: int = 0
    name: str = "events"

    def run(self, model: Sweeper, train: Rows, test: Rows) -> dict[str, Score]:
        """Return ``accuracy`` in percent over all seconds, with a 95 % interval by resampling files or groups.

        Chance is to name the commonest class of the test seconds always.

        Raises:
            UsageError: If there is no such column, or a cell of it is no JSON list.
            TriptychError: If a label is none of the model's classes, no second has one, or nothing can be read.
        """
        assert isinstance(model, Swept)
        labels = LabelsBySecond(self.classes).read(test, self.label).numpy()
        if not (labels >= 0).any():
            raise TriptychError(
                f"No second of the rows of {test.source} that are tested has a label in '{self.label}'."
            )
        looks = model.sweeps.models[model.name]
        found = second_scores(looks, test, model.sweeps.viewing, labels.shape[1], model.sweeps.workers)
        if not found:
            raise TriptychError(f"None of the {len(test)} recordings of {test.source} could be read.")
        right, total = count_right(labels[list(found)], np.stack(list(found.values())))
        groups = test.column(self.group) if self.group else [row["path"] for row in test]

        def rate(places: Int[np.ndarray, " draws"]) -> float:
            return 100 * float(right[places].sum()) / max(float(total[places].sum()), 1.0)

        low, high = bootstrap(rate, [groups[number] for number in found], seed=self.seed)
        counts = Counter(labels[list(found)][labels[list(found)] >= 0].tolist())
        place, most = counts.most_common(1)[0]
        seconds = int(total.sum())
        note = f"{seconds} seconds, {len(self.classes)} classes; chance: always '{self.classes[place]}'"
        value = rate(np.arange(len(found)))
        return {"accuracy": Score(value, low, high, len(found), 100 * most / seconds, note)}


def count_right(
    labels: Int[np.ndarray, "rows seconds"], scores: Float[np.ndarray, "rows seconds classes"]
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    """Return how many seconds of each row are named rightly, and how many have a label.

    Args:
        labels: Class of each second; below 0 where it has none.
        scores: Of each class; NaN where nothing looked at the second.
    """
    known = labels >= 0
    seen = ~np.isnan(scores).any(axis=2)
    named = np.where(seen, np.nan_to_num(scores).argmax(axis=2), -1)
    return ((named == labels) & known).sum(axis=1), known.sum(axis=1)


def second_scores(
    model: Looks, rows: Rows, viewing: Viewing, seconds: int, workers: int | None = None
) -> dict[int, Float[np.ndarray, "seconds classes"]]:
    """Return, for each row that could be read, the mean probability of each class in its first ``seconds`` seconds.

    Args:
        model: One whose ``predict`` gives ``events``.
        rows: The recordings.
        viewing: How they are seen, through a grid of windows.
        seconds: How many.
        workers: Decoding processes.
    """
    starts = torch.tensor([max(row.number("start") or 0.0, 0.0) for row in rows])
    sums: dict[int, Float[Tensor, "seconds classes"]] = {}
    counts: dict[int, Float[Tensor, " seconds"]] = {}
    for said in say(model, rows, viewing, workers, "localize"):
        scores = said.outputs["events"].float().softmax(dim=2)
        parts = scores.shape[1]
        begin = said.spans[:, :1] - starts[said.rows][:, None]
        length = (said.spans[:, 1:] - said.spans[:, :1]) / parts
        second = (begin + length * (torch.arange(parts) + 0.5)).floor().long()
        inside = (second >= 0) & (second < seconds)
        for row in said.rows.unique().tolist():
            mine = inside & (said.rows == row)[:, None]
            known = sums.setdefault(row, torch.zeros(seconds, scores.shape[2]))
            known.index_add_(0, second[mine], scores[mine])
            counts.setdefault(row, torch.zeros(seconds)).index_add_(0, second[mine], torch.ones(int(mine.sum())))
    # 0 / 0 is what no window looked at.
    return {row: (total / counts[row][:, None]).numpy() for row, total in sorted(sums.items())}
