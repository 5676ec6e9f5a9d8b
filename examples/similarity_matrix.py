"""Print how near the words, the sounds and the pictures of a few recordings are to each other.

python examples/similarity_matrix.py RUN SOURCE
"""

import sys

import numpy as np

import triptych
from triptych.embedding import sweep
from triptych.media.collection import Rows


def main(run: str, source: str) -> None:
    rows = Rows.open(source).select([0, 1, 2, 3])
    table = sweep(triptych.load(run), rows, workers=0)["joint"]
    vectors = {stream: table.select(stream).by_row()[1] for stream in ("text", "audio", "video")}
    unit = {stream: x / np.linalg.norm(x, axis=1, keepdims=True) for stream, x in vectors.items()}
    for first, second in (("text", "video"), ("text", "audio"), ("audio", "video")):
        print(f"{first} x {second}")
        print(np.array2string(unit[first] @ unit[second].T, precision=2, suppress_small=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
