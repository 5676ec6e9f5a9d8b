"""Captions to token ids, with a tokenizer trained on the source's own captions."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine
from torch import Tensor

from triptych.data.word_vectors import read_word_vectors
from triptych.errors import TriptychError
from triptych.files import replacing
from triptych.recipe import TokenizerSpec

PADDING, BEGIN, END, UNKNOWN = 0, 1, 2, 3
"""Ids of the special tokens."""
SPECIAL = ["[padding]", "[begin]", "[end]", "[unknown]"]


class Tokenizer:
    """Text to token ids and back; ids 0 to 3 are padding, begin, end and unknown."""

    vectors: Float[Tensor, "entries width"] | None = None
    """A vector of each id, where it was made from a file of them: they become part of a model, and are not saved."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def train(cls, captions: Iterable[str], spec: TokenizerSpec) -> "Tokenizer":
        """Train a tokenizer; equal captions, in whatever order, give equal tokenizers.

        The vocabulary is smaller than ``spec.vocabulary`` where the captions offer no more. That of ``word2vec`` comes
        from the file alone.

        Args:
            captions: Captions of the training rows; empty ones do not count.
            spec: Kind, size and case.

        Raises:
            TriptychError: If no caption has a word in it.
        """
        if spec.file is not None:
            return cls._of_words(spec)
        texts = sorted(text for text in captions if text.strip())
        if not texts:
            raise TriptychError(
                "No row of the source has a caption to train a tokenizer on: add a `caption` column, subtitle files "
                "beside the recordings, or use a recipe without the text stream."
            )
        engine, trainer = _untrained(spec)
        texts = [engine.normalizer.normalize_str(text) for text in texts]
        if spec.kind != "words":
            texts = _without_rare_characters(texts, spec.vocabulary - len(SPECIAL) - 2)
        engine.train_from_iterator(texts, trainer)
        if spec.kind == "unigram":
            _settle(engine)
        return cls(engine)

    @classmethod
    def _of_words(cls, spec: TokenizerSpec) -> "Tokenizer":
        """Return a tokenizer of the words of a file: letters, digits and apostrophes in a row (everything-at-once)."""
        assert spec.file is not None
        words, vectors = read_word_vectors(spec.file, spec.vocabulary - len(SPECIAL))
        ids = {word: place for place, word in enumerate(SPECIAL)}
        ids |= {word: place for place, word in enumerate(words, len(SPECIAL))}
        engine = Engine(models.WordLevel(ids, unk_token=SPECIAL[UNKNOWN]))
        engine.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\w']+"), "removed", invert=True)
        case = [normalizers.Lowercase()] if spec.lowercase else []
        engine.normalizer = normalizers.Sequence([normalizers.NFC(), *case])
        made = cls(engine)
        made.vectors = torch.cat([vectors.new_zeros(len(SPECIAL), vectors.shape[1]), vectors])
        return made

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a ``tokenizer.json``.

        Raises:
            TriptychError: If the file is missing or is no tokenizer.
        """
        try:
            return cls(Engine.from_str(Path(path).read_text(encoding="utf-8")))
        except Exception as error:  # the engine raises bare Exceptions
            raise TriptychError(f"{path} cannot be read as a tokenizer: {error}.") from error

    def save(self, path: str | Path) -> None:
        """Write a ``tokenizer.json`` that the tokenizers library reads."""
        with replacing(path) as neighbour:
            neighbour.write_text(self._engine.to_str(pretty=True), encoding="utf-8")

    def __getstate__(self) -> str:
        return self._engine.to_str()

    def __setstate__(self, state: str) -> None:
        self._engine = Engine.from_str(state)

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return self._engine.get_vocab_size()

    def encode(self, text: str, steps: int, prompt: str = "{}", marks: bool = True, unknown: bool = True) -> list[int]:
        """Return the ids of a caption.

        Args:
            text: Caption.
            steps: Ids at most; longer captions are cut, the end mark stays.
            prompt: The caption is put in the place of ``{}``.
            marks: Whether they stand between marks of begin and end.
            unknown: Whether unknown words have an id; else they are left out before the caption is cut.

        Returns:
            At most ``steps`` ids, without padding; none at all where the caption is empty or says no more than the
            beginning of the prompt (such titles would be false negatives of each other).
        """
        words = text.split()
        bare = prompt.replace("{}", " ").casefold().split()
        if [word.casefold() for word in words] == bare[: len(words)]:
            return []
        ids = self._engine.encode(prompt.replace("{}", " ".join(words))).ids
        if not unknown:
            ids = [token for token in ids if token != UNKNOWN]
        return [BEGIN, *ids[: steps - 2], END] if marks else ids[:steps]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, special tokens left out."""
        text: str = self._engine.decode([token for token in ids if token > UNKNOWN])
        return text


def _untrained(spec: TokenizerSpec) -> tuple[Engine, Any]:
    sizes: dict[str, Any] = {"vocab_size": spec.vocabulary, "special_tokens": SPECIAL, "show_progress": False}
    unknown = SPECIAL[UNKNOWN]
    engine: Engine
    trainer: Any
    if spec.kind in ("words", "characters"):
        engine, trainer = Engine(models.WordLevel(unk_token=unknown)), trainers.WordLevelTrainer(**sizes)
    elif spec.kind == "bpe":
        engine, trainer = Engine(models.BPE(unk_token=unknown)), trainers.BpeTrainer(**sizes)
    else:
        engine, trainer = Engine(models.Unigram()), trainers.UnigramTrainer(unk_token=unknown, **sizes)
    if spec.kind == "words":
        engine.pre_tokenizer = pre_tokenizers.Whitespace()
    elif spec.kind == "characters":
        engine.pre_tokenizer, engine.decoder = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse()
    else:
        engine.pre_tokenizer, engine.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    case = [normalizers.Lowercase()] if spec.lowercase else []
    engine.normalizer = normalizers.Sequence([normalizers.NFKC(), *case, normalizers.Strip()])
    return engine, trainer


def _without_rare_characters(texts: list[str], room: int) -> list[str]:
    """Replace by blanks the characters that a vocabulary of ``room`` single characters does not hold."""
    counts = Counter(character for text in texts for character in text if not character.isspace())
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    rare = dict.fromkeys(map(ord, ranked[max(room, 1) :]), " ")
    return [text.translate(rare) for text in texts] if rare else texts


def _settle(engine: Engine) -> None:
    """Put a unigram model in a fixed form: the trainer's order of entries is that of a hash table.

    Characters that it found no probability for follow each other at distances of 0.0001 above the lowest score, in that
    same order: they all get the lowest.
    """
    vocabulary = json.loads(engine.to_str())["model"]["vocab"]
    learnt = [(piece, round(score, 4)) for piece, score in vocabulary[len(SPECIAL) :]]
    lowest = min(score for _, score in learnt)
    reach = lowest + 1e-4 * (sum(len(piece) == 1 for piece, _ in learnt) + 1)
    learnt = [(piece, lowest if len(piece) == 1 and score < reach else score) for piece, score in learnt]
    learnt.sort(key=lambda entry: (-entry[1], entry[0]))
    engine.model = models.Unigram([*map(tuple, vocabulary[: len(SPECIAL)]), *learnt], unk_id=UNKNOWN)
