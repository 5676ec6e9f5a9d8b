"""The verbs of the command line as functions; the only place that ties everything together.

What a verb needs is imported when it is asked for: a search does not wait for the training loop.
"""

import importlib
from typing import Any

_PLACES = {
    "describe_methods": "pages",
    "embed": "searches",
    "evaluate": "measures",
    "finetune": "finetuning",
    "import_weights": "weights",
    "index": "searches",
    "info": "pages",
    "list_methods": "pages",
    "load": "sources",
    "open_model": "sources",
    "open_source": "sources",
    "predict": "predictions",
    "prepare": "manifests",
    "pretrain": "runs",
    "resume": "runs",
    "search": "searches",
    "write_report": "pages",
    "write_toyworld": "manifests",
}

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    """Load a verb when it is asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module 'triptych.api' has no attribute '{name}'")
    return getattr(importlib.import_module(f"triptych.api.{_PLACES[name]}"), name)
