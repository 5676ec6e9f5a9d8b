"""Joint representations of video, audio and language, learned from unlabelled videos.

>>> import triptych
>>> model = triptych.load("run")
>>> vectors = model.embed("clip.mp4")["joint"]["video"]
"""

import importlib
from typing import Any

_PLACES = {
    "Index": "triptych.search.index",
    "Recording": "triptych.media.recording",
    "TriptychError": "triptych.errors",
    "UsageError": "triptych.errors",
    "embed": "triptych.api",
    "evaluate": "triptych.api",
    "finetune": "triptych.api",
    "import_weights": "triptych.api",
    "list_methods": "triptych.api",
    "load": "triptych.api",
    "predict": "triptych.api",
    "prepare": "triptych.api",
    "pretrain": "triptych.api",
    "resume": "triptych.api",
    "write_report": "triptych.api",
    "write_toyworld": "triptych.api",
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for, so that importing the package costs nothing."""
    if name not in _PLACES:
        raise AttributeError(f"module 'triptych' has no attribute '{name}'")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
