"""Results as a table for people and as JSON for programs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from triptych.errors import TriptychError
from triptych.evaluation.evaluator import Score, as_json


@dataclass
class Results:
    """Scores of a model, beside random weights, baselines and chance."""

    model: str
    data: str
    seed: int
    scores: dict[str, dict[str, Score]]
    """Who was measured -> name of the score -> score; the model first."""
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Names of the scores, in order."""
        return list(dict.fromkeys(name for found in self.scores.values() for name in found))

    def to_json(self) -> dict[str, Any]:
        """Return everything as values that JSON can hold."""
        scores = {who: {name: as_json(score) for name, score in found.items()} for who, found in self.scores.items()}
        return {"model": self.model, "data": self.data, "seed": self.seed, "scores": scores, "notes": self.notes}

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the heading and the lines of the table."""
        who = list(self.scores)
        lines = []
        for name in self.names:
            found = {person: self.scores[person][name] for person in who if name in self.scores[person]}
            first = next(iter(found.values()))
            chance = "-" if first.chance is None else f"{first.chance:.1f}"
            lines.append([name, *(_show(found.get(person)) for person in who), chance, str(first.n)])
        return ["", *who, "chance", "n"], lines

    def render(self, as_json: bool = False) -> str:
        """Return an aligned table, or one line of JSON."""
        if as_json:
            return json.dumps(self.to_json(), ensure_ascii=False)
        heading, lines = self.cells()
        widths = [max(len(line[column]) for line in [heading, *lines]) for column in range(len(heading))]

        def row(cells: list[str]) -> str:
            first = cells[0].ljust(widths[0])
            return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))])

        rule = "  ".join("-" * width for width in widths)
        below = f"95 % intervals in brackets (bootstrap, seed {self.seed}); data: {self.data}"
        return "\n".join([row(heading), rule, *map(row, lines), below, *self.notes])

    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        heading, lines = self.cells()
        marks = ["---", *["---:"] * (len(heading) - 1)]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in [heading, marks, *lines])


def from_json(values: Mapping[str, Any], source: str) -> Results:
    """Return results that ``to_json`` gave.

    Args:
        values: What ``to_json`` gave.
        source: Where it was read, for the error.

    Raises:
        TriptychError: If something is missing.
    """
    try:
        found = {who: {name: Score(**s) for name, s in mine.items()} for who, mine in values["scores"].items()}
        return Results(values["model"], values["data"], values["seed"], found, list(values["notes"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise TriptychError(f"{source} holds something that is no result of an evaluation: {error}.") from error


def _show(score: Score | None) -> str:
    return "-" if score is None else f"{score.value:.1f} [{score.low:.1f}, {score.high:.1f}]"
