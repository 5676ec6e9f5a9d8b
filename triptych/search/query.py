"""What is looked for, as vectors: words, a sound, a clip, a picture."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from triptych.batch import Clip
from triptych.embedding import Looks, sweep, vectors_of
from triptych.errors import TriptychError, UsageError
from triptych.media.collection import Rows
from triptych.recipe import TextTransform


def embed_words(model: Looks, words: str) -> dict[str, Float[np.ndarray, " dim"]]:
    """Return a vector of the words in each space that has text.

    Raises:
        UsageError: If the model reads no text, or the words are empty.
    """
    specs = [spec.transform for spec in model.test.views[0].values() if isinstance(spec.transform, TextTransform)]
    if not specs or model.tokenizer is None:
        raise UsageError("This model was trained without text and cannot be asked in words; use --audio or --video.")
    ids = model.tokenizer.encode(words, specs[0].steps, specs[0].prompt)
    if not ids:
        raise UsageError("The query is empty: say what to look for.")
    data = torch.zeros(1, specs[0].steps, dtype=torch.long)
    data[0, : len(ids)] = torch.tensor(ids)
    device = next(model.method.parameters()).device
    clip = Clip(data, torch.tensor([len(ids)]), torch.zeros(1, 2)).to(device)
    found = vectors_of(model.method.eval(), {"text": clip}, "embed")
    return {space: streams["text"][0].cpu().numpy() for space, streams in found.items() if "text" in streams}


def embed_file(model: Looks, path: str | Path, stream: str) -> dict[str, Float[np.ndarray, " dim"]]:
    """Return the mean vector of a file's windows in each space, of one stream.

    Raises:
        UsageError: If there is no such file.
        TriptychError: If it cannot be read or lacks the stream, or the model does not read it.
    """
    if stream not in model.test.views[0]:
        raise TriptychError(f"This model does not read {stream}; it reads {', '.join(model.test.views[0])}.")
    rows = Rows.open(path)
    with rows.recording(0) as recording:
        if stream not in recording.timeline.streams:
            raise TriptychError(f"{path} has no {'picture' if stream == 'video' else 'sound'} to look for.")
    only = model.test.model_copy(update={"views": ({stream: model.test.views[0][stream]},)})
    tables = sweep(model, rows, only, workers=0, progress=False)
    vectors = {}
    for space, table in tables.items():
        found = table.select(stream)
        if len(found):
            mean = found.by_row()[1][0]
            vectors[space] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return vectors
