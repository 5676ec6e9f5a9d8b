"""Precomputed vectors for recordings, as `triptych embed --features` writes them."""

import numpy as np
from safetensors.numpy import save_file

from triptych.media.collection import Rows


def with_vectors(rows: Rows, stream: str = "video-features", width: int = 16) -> Rows:
    """Return the rows with a stream of vectors, two a second: each row's own direction, and noise."""
    places = []
    for number in range(len(rows)):
        rng = np.random.default_rng(number)
        with rows.recording(number) as recording:
            steps = int(2 * recording.timeline.end)
        vectors = rng.standard_normal(width) + 0.3 * rng.standard_normal((steps, width))
        times = np.arange(steps + 1) / 2
        places.append(f"sequences/{stream}/{number:06d}.safetensors")
        (rows.root / places[-1]).parent.mkdir(parents=True, exist_ok=True)
        arrays = {"vectors": vectors.astype(np.float32), "times": times.astype(np.float32)}
        save_file(arrays, rows.root / places[-1])
    return rows.with_columns({f"stream:{stream}": places})
