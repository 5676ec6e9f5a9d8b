"""The log of a run: JSON lines, a progress bar, and TensorBoard where it is asked for."""

import json
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from triptych.errors import TriptychError


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
        self._file = path.open("a", encoding="utf-8")
        self._bar = tqdm(total=total, initial=step, desc=title, unit="step", disable=None, dynamic_ncols=True)
        self._writer = _open_tensorboard(path.parent / "tensorboard") if tensorboard else None

    def _cut(self, step: int) -> None:
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):  # the last line of a killed run may be half there
                continue
        neighbour = self.path.with_suffix(".partial")
        neighbour.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(neighbour, self.path)

    def write(self, values: dict[str, Any]) -> None:
        """Append a line; ``step`` is among the values."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)) and name != "step":
                    self._writer.add_scalar(name, value, values["step"])

    def advance(self, loss: float) -> None:
        """Move the bar by one step."""
        self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Close file and bar."""
        self._bar.close()
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def _open_tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TriptychError("TensorBoard is not installed: pip install 'triptych[log]'.") from error
    return SummaryWriter(str(folder))
