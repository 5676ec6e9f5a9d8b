"""Word and character error rates of a model that says what is spoken: of what it sees, hears, or both, and in noise."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from triptych.embedding import Looks
from triptych.errors import TriptychError, UsageError
from triptych.evaluation.classification import say
from triptych.evaluation.evaluator import Score, Sweeper, Swept
from triptych.evaluation.metrics import bootstrap, edit_costs
from triptych.media.collection import Rows
from triptych.methods.recognition import only, with_background
from triptych.recipe import Background, Viewing

NORMALIZER = "lower case, no punctuation but apostrophes, single blanks"
"""What ``normalize`` does, told with every number."""


def normalize(text: str) -> str:
    """Return lower-case words without punctuation but apostrophes, one blank apart; digits stay as they are spelt."""
    straight = text.lower().replace("\u2019", "'")
    kept = (" " if unicodedata.category(one)[0] in "PS" and one != "'" else one for one in straight)
    return " ".join("".join(kept).split())


@dataclass(frozen=True)
class Edits:
    """What turns references into hypotheses."""

    total: int = 0
    """Words (or characters) of the references."""
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    def __add__(self, other: "Edits") -> "Edits":
        return Edits(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def count_edits(reference: Sequence[str], hypothesis: Sequence[str]) -> Edits:
    """Return the fewest edits from a reference to a hypothesis (Levenshtein); ties prefer substitutions.

    Args:
        reference: Words, or characters.
        hypothesis: What was said instead.
    """
    costs = edit_costs(reference, hypothesis)
    row, column = len(reference), len(hypothesis)
    substitutions = deletions = insertions = 0
    while row or column:
        here = costs[row, column]
        if row and column:
            wrong = int(reference[row - 1] != hypothesis[column - 1])
            if costs[row - 1, column - 1] + wrong == here:
                substitutions, row, column = substitutions + wrong, row - 1, column - 1
                continue
        if row and costs[row - 1, column] + 1 == here:
            deletions, row = deletions + 1, row - 1
        else:
            insertions, column = insertions + 1, column - 1
    return Edits(len(reference), substitutions, deletions, insertions)


@dataclass(frozen=True)
class Condition:
    """What a recogniser is given."""

    streams: str
    """What it sees and hears."""
    decibels: int | None = None
    """Of the speech over the noise; None: as it is."""

    def __str__(self) -> str:
        return self.streams if self.decibels is None else f"{self.streams} {self.decibels} dB"


@dataclass(frozen=True)
class SpeechRecognition:
    """Error rates over all utterances together, with 95 % intervals by resampling utterances (or groups of them)."""

    streams: Sequence[str]
    """What the model is given, in turn: ``video+audio``, ``video``, ``audio``."""
    column: str = "caption"
    """Transcripts."""
    decibels: Sequence[int] = ()
    """Ratios of speech to noise at which all that hears is measured, too."""
    noise: str | None = None
    """Folder or manifest of noise; the other utterances of a batch (babble) where None."""
    group: str | None = None
    """Column whose equal values are drawn together for the interval (speakers)."""
    seed: int = 0
    name: str = "speech"

    def run(self, model: Sweeper, train: Rows, test: Rows) -> dict[str, Score]:
        """Return ``WER`` and ``CER`` in percent for each condition; both may exceed 100.

        Utterances that cannot be read, or have no transcript, do not count; the note says how many do, how many words
        they have, and how the errors are made up.

        Raises:
            TriptychError: If no utterance has a transcript, or none can be read.
        """
        assert isinstance(model, Swept)
        references = [normalize(text) for text in test.column(self.column)]
        told = [number for number, text in enumerate(references) if text]
        if not told:
            raise TriptychError(f"No row of {test.source} that is tested has a transcript in '{self.column}'.")
        groups = test.column(self.group) if self.group else [str(number) for number in range(len(test))]
        rows = test.select(told)
        scores: dict[str, Score] = {}
        for condition in self._conditions():
            viewing = self._seen(model.sweeps.viewing, condition)
            said = transcribe(model.sweeps.models[model.name], rows, viewing, model.sweeps.workers)
            pairs = [
                (references[number], normalize(text), groups[number])
                for number, text in zip(told, said, strict=True)
                if text is not None
            ]
            if not pairs:
                raise TriptychError(f"None of the {len(rows)} utterances of {test.source} could be read.")
            split: dict[str, Callable[[str], Sequence[str]]] = {"WER": str.split, "CER": list}
            for unit, parts in split.items():
                edits = [count_edits(parts(reference), parts(text)) for reference, text, _ in pairs]
                scores[f"{condition} {unit}"] = self._score(edits, [group for _, _, group in pairs])
        return scores

    def _conditions(self) -> list[Condition]:
        quiet = [Condition(streams) for streams in self.streams]
        heard = [one for one in quiet if "audio" in one.streams.split("+")]
        return [*quiet, *(replace(one, decibels=ratio) for ratio in self.decibels for one in heard)]

    def _seen(self, viewing: Viewing, condition: Condition) -> Viewing:
        view = only(viewing, condition.streams)
        seen = viewing.model_copy(update={"views": (view,)})
        if condition.decibels is None:
            return with_background(seen, None)
        ratio = (condition.decibels, condition.decibels)
        return with_background(seen, Background(source=self.noise, probability=1.0, decibels=ratio))

    def _score(self, edits: list[Edits], groups: list[str]) -> Score:
        errors = np.array([one.errors for one in edits])
        totals = np.array([one.total for one in edits])

        def rate(places: Int[np.ndarray, " draws"]) -> float:
            return 100 * float(errors[places].sum()) / float(totals[places].sum())

        whole = sum(edits, Edits())
        low, high = bootstrap(rate, groups, seed=self.seed)
        made_of = f"N {whole.total}, S {whole.substitutions}, D {whole.deletions}, I {whole.insertions}"
        return Score(rate(np.arange(len(edits))), low, high, len(edits), note=f"{made_of}; {NORMALIZER}")


def transcribe(model: Looks, rows: Rows, viewing: Viewing, workers: int | None = None) -> list[str | None]:
    """Return what a model says is spoken in each row; None for those that could not be read.

    Args:
        model: One whose ``predict`` gives words.
        rows: The utterances.
        viewing: How they are seen and heard.
        workers: Decoding processes.

    Raises:
        UsageError: If the model says no words.
    """
    if model.tokenizer is None:
        raise UsageError("This model has no tokenizer, so it says no words: triptych finetune --task words makes one.")
    found: list[str | None] = [None] * len(rows)
    for said in say(model, rows, viewing, workers, "listen"):
        for number, ids in zip(said.rows.tolist(), said.outputs["words"].tolist(), strict=True):
            found[number] = model.tokenizer.decode(ids)
    return found
