"""The verb that measures a model."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from triptych.api.sources import open_model, open_source
from triptych.errors import UsageError
from triptych.evaluation.baselines import PixelsAndSpectrogram
from triptych.evaluation.classification import Average, Classification
from triptych.evaluation.evaluator import (
    Evaluator,
    Score,
    Sweeper,
    Sweeps,
    mean_score,
    places_among,
    with_windows,
)
from triptych.evaluation.events import EventLocalization
from triptych.evaluation.metrics import Ties
from triptych.evaluation.probe import KNN, LinearProbe, LinearSVM
from triptych.evaluation.retrieval import Missing, Retrieval
from triptych.evaluation.speech import SpeechRecognition
from triptych.evaluation.splits import folds as cross_validate
from triptych.evaluation.splits import train_and_test
from triptych.evaluation.steps import StepLocalization
from triptych.evaluation.table import Results
from triptych.media.collection import Rows
from triptych.methods.lavish import LAVISH
from triptych.methods.recognition import Recognition
from triptych.methods.supervised import Supervised
from triptych.model import Model, random_model


def evaluate(
    model: str | Path | Model,
    source: str | Path | Rows,
    tasks: Sequence[str] = ("retrieval",),
    label: str | None = None,
    streams: Sequence[str] | None = None,
    query: str | None = None,
    target: str | None = None,
    group: str | None = None,
    folds: str | None = None,
    windows: int | None = None,
    crops: int | None = None,
    average: Average = "probabilities",
    split: str | None = None,
    decibels: Sequence[int] = (),
    noise: str | None = None,
    seconds: float | None = None,
    stride: float = 1.0,
    ties: Ties = "average",
    missing: Missing = "out",
    more: bool = False,
    baseline: bool = True,
    seed: int = 0,
    device: str | None = None,
    workers: int | None = None,
) -> Results:
    """Measure a model beside random weights, the pixels-and-spectrogram baseline, and chance.

    Args:
        model: A model, or its name.
        source: Recordings; probes learn on ``train`` and are tested on ``test``, or else on ``val``.
        tasks: ``probe``, ``svm``, ``knn``, ``retrieval``, ``steps``; of fine-tuned models ``classes``, ``speech``,
            ``events``.
        label: Column of the labels, for probes and knn; cells with several make it a multi-label task. Column of the
            transcripts, for speech; ``caption`` where None. Column of the labels by second, for events; the one that
            the model was trained on where None; so, too, for classes.
        streams: Streams of probe and knn; what is given to speech recognition, in turn.
        query: Retrieval from this stream only.
        target: Retrieval to this stream only.
        group: Column whose equal values are one item.
        folds: Column to cross-validate over.
        windows: Windows a recording.
        crops: Crops of each window: 1, the centre, or 3 along the longer side.
        split: Split to test on.
        decibels: Ratios of speech to noise at which speech recognition is measured, too.
        noise: Folder or manifest of that noise; other utterances where None.
        average: What is averaged over the windows and crops of a recording, for classes.
        seconds: Length of a window, for steps; the model's own where None.
        stride: Seconds between windows, for steps.
        ties: What equal similarities count in retrieval.
        missing: What queries without an answer count in retrieval.
        more: Whether retrieval tells R@50, mean rank and geometric mean, too.
        baseline: Whether to measure the baseline, too.
        seed: Of baseline choices and of the intervals.
        device: Where.
        workers: Decoding processes.

    Raises:
        UsageError: If tasks, columns, streams or splits are not there.
        TriptychError: If nothing can be measured.
    """
    rows = open_source(source)
    found = model if isinstance(model, Model) else open_model(model, rows, device)
    asked = (found, rows, label, streams, query, target, group, seed, decibels, noise)
    options = (average, seconds, stride, ties, missing, more)
    evaluators = [_evaluator(Asked(task, *asked, *options)) for task in tasks]
    learns = any(task in ("probe", "svm", "knn") for task in tasks)
    if folds is not None:
        parts: list[tuple[Rows | None, Rows]] = [*cross_validate(rows, folds)]
    else:
        parts = [train_and_test(rows, split, learns)]
    tested = [test for _, test in parts]
    learned = [train for train, _ in parts if train is not None]

    twin = random_model(found.method_name, found.method.config, found.test, found.tokenizer, seed)
    twin.method.to(next(found.method.parameters()).device)
    models = {found.name: found} if found.name.startswith("random:") else {found.name: found, twin.name: twin}
    looked_at = _together(rows, [*tested, *(learned if learns else [])])
    sweeps = Sweeps(models, looked_at, with_windows(found.test, windows, crops), workers)
    scores = {name: _scores(partial(_same, sweeps.of(name)), evaluators, parts) for name in models}

    notes = [f"{len(sweeps.problems)} recordings could not be read"] if sweeps.problems else []
    if folds is not None:
        notes += [f"{name}: {score.note}" for name, score in scores[found.name].items()]
    if baseline:
        retrieves = _can_retrieve(learned, tested, {query, target})
        trained = (Classification, SpeechRecognition, EventLocalization, StepLocalization)  # pixels cannot do it
        asking = [one for one in evaluators if not isinstance(one, trained)]
        chosen = [one for one in asking if retrieves or not isinstance(one, Retrieval)]
        if chosen != asking:
            notes.append("no linear baseline of retrieval: it learns words from the captions of the split 'train'")
        if chosen:
            line = PixelsAndSpectrogram(_together(rows, [*tested, *learned]), None, workers)
            scores[line.name] = _scores(lambda train: replace(line, train=train), chosen, parts)
    count = sum(map(len, tested))
    results = Results(found.name, f"{rows.source} ({count} test recordings)", seed, scores, notes)
    _keep(found.name, results)
    return results


@dataclass(frozen=True)
class Asked:
    """What a task is built from."""

    task: str
    model: Model
    rows: Rows
    label: str | None
    streams: Sequence[str] | None
    query: str | None
    target: str | None
    group: str | None
    seed: int
    decibels: Sequence[int]
    noise: str | None
    average: Average
    seconds: float | None
    stride: float
    ties: Ties
    missing: Missing
    more: bool

    def check_streams(self) -> None:
        """Check that the model reads every stream that is asked for.

        Raises:
            UsageError: If it does not.
        """
        reads = set(self.model.test.views[0])
        for word, names in (("--streams", self.streams or []), ("--from", [self.query]), ("--to", [self.target])):
            for name in names:
                if name is not None and not set(name.split("+")) <= reads:
                    raise UsageError(f"{word} {name}: the model reads {', '.join(sorted(reads))}.")

    def column(self) -> str:
        """Return the label column.

        Raises:
            UsageError: If none is given.
        """
        if self.label is None:
            columns = ", ".join(self.rows.columns)
            raise UsageError(f"--task {self.task} needs --label COLUMN; {self.rows.source} has {columns}.")
        return self.label


def _retrieval(asked: Asked) -> Evaluator:
    if not asked.model.method.spaces:
        raise UsageError(f"{asked.model.method_name} has no joint space, so there is nothing to retrieve in.")
    conventions = (asked.ties, asked.missing, asked.more)
    spaces = asked.model.method.spaces
    return Retrieval(asked.query, asked.target, asked.group, spaces, *conventions, seed=asked.seed)


def _steps(asked: Asked) -> Evaluator:
    column, spaces = asked.column(), asked.model.method.spaces
    if not spaces or "text" not in asked.model.test.views[0]:
        raise UsageError(f"{asked.model.method_name} has no joint space of words and windows to find steps in.")
    asked.rows.column(column)
    streams = asked.streams or ([asked.target] if asked.target else None)
    windows = (asked.seconds, asked.stride)
    return StepLocalization(column, streams, asked.group, spaces, *windows, seed=asked.seed)


def _probe(asked: Asked) -> Evaluator:
    return LinearProbe(asked.column(), asked.streams, group=asked.group, seed=asked.seed)


def _svm(asked: Asked) -> Evaluator:
    return LinearSVM(asked.column(), asked.streams, group=asked.group, seed=asked.seed)


def _knn(asked: Asked) -> Evaluator:
    return KNN(asked.column(), asked.streams, group=asked.group, seed=asked.seed)


def _speech(asked: Asked) -> Evaluator:
    if not isinstance(asked.model.method, Recognition):
        raise UsageError(
            f"{asked.model.method_name} says no words; train one that does: triptych finetune --task words."
        )
    read = asked.model.method.options.streams[0]
    streams = asked.streams or list(dict.fromkeys([read, *read.split("+")]))
    column = asked.label or "caption"
    asked.rows.column(column)
    return SpeechRecognition(streams, column, asked.decibels, asked.noise, asked.group, asked.seed)


def _classes(asked: Asked) -> Evaluator:
    if not isinstance(asked.model.method, Supervised):
        raise UsageError(f"{asked.model.method_name} names no classes; train one that does: triptych finetune.")
    options = asked.model.method.options
    asked.rows.column(asked.label or options.label)
    several = options.task == "multilabel"
    label = asked.label or options.label
    return Classification(options.classes, label, several, asked.average, asked.group, asked.seed)


def _events(asked: Asked) -> Evaluator:
    if not isinstance(asked.model.method, LAVISH):
        raise UsageError(f"{asked.model.method_name} tells no events; fine-tune one that does: docs/methods/lavish.md.")
    options = asked.model.method.options
    asked.rows.column(asked.label or options.label)
    return EventLocalization(options.classes, asked.label or options.label, asked.group, asked.seed)


TASKS: dict[str, Callable[[Asked], Evaluator]] = {
    "probe": _probe,
    "svm": _svm,
    "knn": _knn,
    "retrieval": _retrieval,
    "steps": _steps,
    "classes": _classes,
    "speech": _speech,
    "events": _events,
}
"""What can be measured, by name; each checks what it needs before anything is decoded, and raises ``UsageError``."""


def _evaluator(asked: Asked) -> Evaluator:
    """Return the evaluator of a task.

    Raises:
        UsageError: If there is no such task, or what it needs is not there.
    """
    asked.check_streams()
    if asked.task not in TASKS:
        raise UsageError(f"There is no task '{asked.task}'; there are {', '.join(TASKS)}.")
    return TASKS[asked.task](asked)


def _scores(
    sweeper_of: Callable[[Rows | None], Sweeper],
    evaluators: Sequence[Evaluator],
    parts: Sequence[tuple[Rows | None, Rows]],
) -> dict[str, Score]:
    """Return the scores of whoever is measured, means over the folds."""
    scores: dict[str, Score] = {}
    for evaluator in evaluators:
        # Retrieval learns nothing: where there are no training rows, it is handed the test rows in their place.
        by_fold = [evaluator.run(sweeper_of(train), test if train is None else train, test) for train, test in parts]
        names = [name for name in by_fold[0] if all(name in fold for fold in by_fold)]
        scores |= {f"{evaluator.name} {name}": mean_score([fold[name] for fold in by_fold]) for name in names}
    return scores


def _same(sweeper: Sweeper, train: Rows | None) -> Sweeper:
    return sweeper


def _together(rows: Rows, parts: Sequence[Rows]) -> Rows:
    """Return the rows that are in any of the parts, each once."""
    return rows.select(sorted({number for part in parts for number in places_among(part, rows).tolist()}))


def _can_retrieve(learned: Sequence[Rows], tested: Sequence[Rows], asked: set[str | None]) -> bool:
    """Return whether there are captions for the linear map from statistics to words to learn and to find."""
    if not learned or not asked <= {None, "text", "audio", "video"} or "caption" not in learned[0].columns:
        return False
    return all(any(text.strip() for text in rows.column("caption")) for rows in [*learned, *tested])


def _keep(name: str, results: Results) -> None:
    """Append results to the run that was measured, for its report."""
    run = Path(name)
    if (run / "recipe.json").is_file():
        with (run / "evaluations.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(results.to_json(), ensure_ascii=False) + "\n")
