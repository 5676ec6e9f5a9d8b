"""What is looked for, as vectors: words, a sound, a clip, a picture."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from triptych.batch import Clip
from triptych.embedding import Looks, sweep, vectors_of
from triptych.errors import TriptychError, UsageError
from triptych.media.collection import SUFFIXES, Rows
from triptych.recipe import TextTransform

SIGNALS = {"video": "picture", "audio": "sound"}
"""What people call the streams."""


def embed_words(model: Looks, words: str) -> dict[str, Float[np.ndarray, " dim"]]:
    """Return a vector of the words in each space that has text.

    Raises:
        UsageError: If the model reads no text, or the words are empty.
    """
    specs = {
        stream: spec.transform
        for stream, spec in model.test.views[0].items()
        if isinstance(spec.transform, TextTransform)
    }
    if not specs or model.tokenizer is None:
        others = " or ".join(f"--{stream}" for stream in model.test.views[0] if stream in SIGNALS)
        raise UsageError(f"This model was trained without text and cannot be asked in words; use {others}.")
    stream, spec = next(iter(specs.items()))
    ids = model.tokenizer.encode(words, spec.steps, spec.prompt, spec.marks, spec.unknown)
    if not ids:
        raise UsageError("The query is empty: say what to look for.")
    data = torch.zeros(1, spec.steps, dtype=torch.long)
    data[0, : len(ids)] = torch.tensor(ids)
    device = next(model.method.parameters()).device
    clip = Clip(data, torch.tensor([len(ids)]), torch.zeros(1, 2)).to(device)
    found = vectors_of(model.method.eval(), {stream: clip}, "embed")
    return {space: streams[stream][0].cpu().numpy() for space, streams in found.items() if stream in streams}


def embed_file(model: Looks, path: str | Path, stream: str) -> dict[str, Float[np.ndarray, " dim"]]:
    """Return the mean vector of a file's windows in each space, of one stream.

    Raises:
        UsageError: If there is no such file, it is no media file, or the model does not read the stream.
        TriptychError: If it cannot be read or lacks the stream.
    """
    path = Path(path)
    signal = SIGNALS.get(stream, stream)
    if stream not in model.test.views[0]:
        reads = ", ".join(SIGNALS.get(name, name) for name in model.test.views[0])
        raise UsageError(f"This model was trained without {signal} and cannot look for it; it reads {reads}.")
    if path.exists() and (path.is_dir() or path.suffix.lower() not in SUFFIXES):
        raise UsageError(f"{path} is no media file; give one recording whose {signal} to look for.")
    rows = Rows.open(path)
    with rows.recording(0) as recording:
        if stream not in recording.timeline.streams:
            raise TriptychError(f"{path} has no {signal} to look for.")
    only = model.test.model_copy(update={"views": ({stream: model.test.views[0][stream]},)})
    vectors = {}
    for space, table in sweep(model, rows, only, workers=0, progress=False).items():
        found = table.select(stream)
        if len(found):
            mean = found.by_row()[1][0]
            vectors[space] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    if not vectors:
        raise TriptychError(f"The {signal} of {path} is too short to look for.")
    return vectors
