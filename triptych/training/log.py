"""The log of a run: JSON lines, a progress bar, and TensorBoard where it is asked for."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from triptych.errors import TriptychError
from triptych.files import replacing


class Log:
    """Appends lines to ``RUN/log.jsonl``; on resume it is cut back to the checkpoint's step."""

    def __init__(self, path: Path, step: int, total: int, title: str, tensorboard: bool = False) -> None:
        """Open the log.

        Args:
            path: The file.
            step: Lines after this step are dropped: the run is there now.
            total: Steps of the whole run.
            title: What the progress bar is called.
            tensorboard: Whether to write event files beside it, too.

        Raises:
            TriptychError: If TensorBoard is asked for and not installed.
        """
        self.path = path
        if path.exists():
            self._cut(step)
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise TriptychError(f"{path} cannot be written: {error.strerror}.") from error
        self._bar = tqdm(total=total, initial=step, desc=title, unit="step", disable=None, dynamic_ncols=True)
        self._writer = _open_tensorboard(path.parent / "tensorboard", step) if tensorboard else None

    def _cut(self, step: int) -> None:
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                values = json.loads(line)
                # Scores are taken after the checkpoint of their step, and will be again.
                if values["step"] < step or (values["step"] == step and "scores" not in values):
                    kept.append(line)
            except (ValueError, KeyError, TypeError):  # the last line of a killed run may be half there
                continue
        with replacing(self.path) as neighbour:
            neighbour.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def write(self, values: dict[str, Any]) -> None:
        """Append a line; ``step`` is among the values, ``scores`` may be.

        Raises:
            TriptychError: If the disk is full.
        """
        try:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        except OSError as error:
            raise TriptychError(
                f"{self.path} cannot be written: {error.strerror}; make room, then resume the run."
            ) from error
        if self._writer is not None:
            for name, value in (values | values.get("scores", {})).items():
                if isinstance(value, (int, float)) and name != "step":
                    self._writer.add_scalar(name, value, values["step"])

    def advance(self, loss: float) -> None:
        """Move the bar by one step."""
        self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Close file and bar."""
        self._bar.close()
        with suppress(OSError):  # what a full disk did not take was told when it was written
            self._file.close()
        if self._writer is not None:
            self._writer.close()


def _open_tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TriptychError("TensorBoard is not installed: pip install 'triptych[log]'.") from error
    return SummaryWriter(str(folder), purge_step=step + 1)
