"""Word vectors from the files of others: word2vec's binary and text forms, GloVe's text."""

import gzip
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from triptych.errors import TriptychError, UsageError


def read_word_vectors(path: str | Path, limit: int) -> tuple[list[str], Float[Tensor, "words width"]]:
    """Return the first words of a file (in most files the commonest), each once, and their vectors.

    ``.bin`` is word2vec's binary form; anything else is text, a word and its values a line, with word2vec's first line
    of counts or without. Both may be compressed (``.gz``).

    Args:
        path: The file.
        limit: Words at most.

    Raises:
        UsageError: If there is no such file.
        TriptychError: If it is of another form, or ends early.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file of word vectors; say where it is: --set tokenizer.file=PATH.")
    words: dict[str, np.ndarray] = {}
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            first = file.readline().split()
            count, width = (int(first[0]), int(first[1])) if len(first) == 2 else (limit, len(first) - 1)
            binary = path.name.removesuffix(".gz").endswith(".bin")
            if not binary and len(first) != 2:
                words[first[0].decode("utf-8", "replace")] = np.array(first[1:], dtype=np.float32)
            for _ in tqdm(range(count - len(words)), "word vectors", delay=2, disable=None):
                if len(words) >= limit:
                    break
                entry = _binary_entry(file, width) if binary else _text_entry(file, width)
                if entry is None:
                    break
                words.setdefault(*entry)
            if not words:
                raise ValueError("it holds none")
        except (ValueError, IndexError, EOFError, OSError) as error:
            raise TriptychError(f"{path} is no file of word vectors, or is damaged: {error}.") from error
    return list(words), torch.from_numpy(np.stack(list(words.values())))


def _binary_entry(file: BufferedReader | gzip.GzipFile, width: int) -> tuple[str, np.ndarray]:
    word = bytearray()
    while (byte := file.read(1)) != b" ":
        if not byte:
            raise ValueError("it ends within a word")
        word += byte
    values = file.read(4 * width)
    if len(values) < 4 * width:
        raise ValueError("it ends within a vector")
    return word.decode("utf-8", "replace").strip(), np.frombuffer(values, dtype="<f4")


def _text_entry(file: BufferedReader | gzip.GzipFile, width: int) -> tuple[str, np.ndarray] | None:
    line = file.readline()
    if not line.strip():
        return None
    word, *values = line.decode("utf-8", "replace").rstrip().split(" ")
    if len(values) != width:
        raise ValueError(f"'{word[:30]}' has {len(values)} values, not {width}")
    return word, np.array(values, dtype=np.float32)
