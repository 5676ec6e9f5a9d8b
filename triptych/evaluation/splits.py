"""Which rows are learned on, and which are tested on."""

from triptych.errors import UsageError
from triptych.media.collection import Rows


def choose_split(rows: Rows, name: str | None) -> Rows:
    """Return the rows whose column ``split`` has this value; all rows where None.

    Raises:
        UsageError: If there are none; it names the splits there are.
    """
    if name is None:
        return rows
    if "split" not in rows.columns:
        raise UsageError(f"{rows.source} has no column 'split', so there is no split '{name}'.")
    values = rows.column("split")
    if name not in values:
        raise UsageError(
            f"{rows.source} has no split '{name}'; it has {', '.join(dict.fromkeys(filter(None, values)))}."
        )
    return rows.select([number for number, value in enumerate(values) if value == name])


def train_and_test(rows: Rows, split: str | None, learns: bool) -> tuple[Rows | None, Rows]:
    """Return the rows to learn on (None where the manifest has none) and those to test on.

    Args:
        rows: The source.
        split: The split to test on; ``test`` where None, or else ``val``.
        learns: Whether the task learns something on training rows.

    Raises:
        UsageError: If there is no such split, or what the task needs is not there.
    """
    splits = rows.splits
    if learns and not splits:
        raise UsageError(
            f"{rows.source} has no column 'split' with 'train' in it, which probes learn on; or give --folds COLUMN."
        )
    if learns and split == "train":
        raise UsageError("Probes learn on the split 'train'; test them on another: --split NAME.")
    test = split or next((name for name in ("test", "val") if name in splits), None)
    if splits and test is None:
        raise UsageError(f"{rows.source} has the splits {', '.join(splits)}; say which to test on: --split NAME.")
    tested = choose_split(rows, test)
    return (rows.split("train") if splits else None), tested


def folds(rows: Rows, column: str) -> list[tuple[Rows, Rows]]:
    """Return (train, test) for each value of a column; rows without one take no part.

    Raises:
        UsageError: If the column has fewer than two values.
    """
    values = rows.column(column)
    names = sorted({value for value in values if value})
    if len(names) < 2:
        raise UsageError(f"The column '{column}' has {len(names)} folds; cross-validation needs two or more.")
    parts = []
    for name in names:
        test = [number for number, value in enumerate(values) if value == name]
        train = [number for number, value in enumerate(values) if value and value != name]
        parts.append((rows.select(train), rows.select(test)))
    return parts
