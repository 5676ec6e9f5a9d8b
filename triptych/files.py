"""Writing so that a reader, or a run resumed after a kill, never meets half a file."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from triptych.errors import TriptychError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary neighbour of ``path`` to write to; sync it and rename it to ``path`` at the end.

    The neighbour keeps the suffix of ``path`` (some writers choose a format by it). If the body raises, the
    neighbour is removed and ``path`` is as it was.

    Args:
        path: The file to create or to replace; its folder is created.

    Raises:
        TriptychError: If the disk is full or the place cannot be written.
    """
    path = Path(path)
    neighbour = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield neighbour
        _sync(neighbour)
        os.replace(neighbour, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise _refused(path, error) from error
    finally:
        with suppress(OSError):
            neighbour.unlink()


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary neighbour folder to fill; sync all of it and rename it to ``path``, which must not exist.

    Raises:
        TriptychError: If ``path`` exists, the disk is full, or the place cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise TriptychError(f"{path} exists already; choose another place or remove it first.")
    neighbour = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(neighbour, ignore_errors=True)
    try:
        neighbour.mkdir(parents=True)
        yield neighbour
        for file in neighbour.rglob("*"):
            _sync(file)
        _sync(neighbour)
        os.rename(neighbour, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise _refused(path, error) from error
    finally:
        shutil.rmtree(neighbour, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder that ``new_folder`` made; it is whole until it is gone, even if this process is killed."""
    doomed = path.with_name(f".{path.name}.{os.getpid()}.partial")
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def leftovers(folder: Path) -> list[Path]:
    """Return the half-written neighbours that a killed process left in ``folder``."""
    return [*folder.glob(".*.partial"), *folder.glob(".*.partial.*")]


def _refused(path: Path, error: OSError | SafetensorError) -> TriptychError:
    reason = getattr(error, "strerror", None) or error
    return TriptychError(f"{path} cannot be written: {reason}; what was there before is as it was.")


def is_taken(path: str | Path) -> bool:
    """Return whether there is a file at ``path``, or a folder that holds something."""
    path = Path(path)
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def _sync(path: Path) -> None:
    if os.name != "posix" and path.is_dir():  # Windows has no handle of a folder to sync
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
