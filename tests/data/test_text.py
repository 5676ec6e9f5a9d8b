import gzip
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Engine

from triptych.data.text import BEGIN, END, PADDING, UNKNOWN, Tokenizer
from triptych.errors import TriptychError, UsageError
from triptych.recipe import TokenizerSpec

CAPTIONS = [f"a {size} {kind} moves {way}" for size in ("big", "small") for kind in ("ball", "star")
            for way in ("left", "right")]  # fmt: skip
KINDS: Any = ("unigram", "bpe", "words", "characters")


@pytest.mark.parametrize("kind", KINDS)
def test_captions_come_back(kind: Any) -> None:
    tokenizer = Tokenizer.train(CAPTIONS, TokenizerSpec(kind=kind, vocabulary=100))
    ids = tokenizer.encode("A  big ball\nmoves left", 32)
    assert ids[0] == BEGIN and ids[-1] == END and not {PADDING, UNKNOWN} & set(ids)
    assert tokenizer.decode(ids) == "a big ball moves left"
    assert max(ids) < tokenizer.vocabulary <= 100


def _word2vec(path: Path, binary: bool) -> dict[str, list[float]]:
    """Write a file of word vectors, commonest first; return what is in it."""
    words = {"the": [1.0, 2.0], "Don't": [3.0, 4.0], "naïve": [5.0, 6.0], "rare": [7.0, 8.0]}
    if binary:
        parts = [word.encode() + b" " + np.array(values, "<f4").tobytes() + b"\n" for word, values in words.items()]
        path.write_bytes(b"4 2\n" + b"".join(parts))
    else:
        header = "" if path.name.startswith("glove") else "4 2\n"
        lines = "".join(f"{word} {values[0]} {values[1]}\n" for word, values in words.items())
        path.write_text(header + lines, encoding="utf-8")
    return words


@pytest.mark.parametrize("name", ["w.bin", "w.txt", "glove.txt", "w.bin.gz"])
def test_words_and_vectors_of_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    words = _word2vec(path, binary=".bin" in name)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    spec = TokenizerSpec(kind="word2vec", file=str(path), vocabulary=8, lowercase=False)
    tokenizer = Tokenizer.train([], spec)
    assert tokenizer.vectors is not None and tokenizer.vectors.shape == (8, 2) and not tokenizer.vectors[:4].any()
    ids = tokenizer.encode("the naïve... Don't!", 8, marks=False)
    assert tokenizer.vectors[ids].tolist() == [words["the"], words["naïve"], words["Don't"]]
    # Case is kept; what is unknown is left out before the caption is cut.
    assert tokenizer.encode("The x the (y) rare", 8, marks=False, unknown=False) == [4, 7]
    assert tokenizer.encode("x y z the", 2, marks=False, unknown=False) == [4]
    assert tokenizer.encode("x y", 2, marks=False, unknown=False) == []
    assert Tokenizer.train([], spec.model_copy(update={"vocabulary": 6})).vectors.shape == (6, 2)  # type: ignore
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.vectors is None and again.encode("the", 3) == tokenizer.encode("the", 3)


def test_files_that_hold_no_word_vectors(tmp_path: Path) -> None:
    def train(path: Path) -> None:
        Tokenizer.train([], TokenizerSpec(kind="word2vec", file=str(path)))

    with pytest.raises(UsageError, match=r"w\.bin: there is no such file of word vectors; say where it is: --set"):
        train(tmp_path / "w.bin")
    (tmp_path / "w.bin").write_bytes(b"2 3\nthe \0\0\0\0")
    with pytest.raises(TriptychError, match="is damaged: it ends within a vector"):
        train(tmp_path / "w.bin")
    (tmp_path / "w.txt").write_text("2 3\nthe 1 2\n")
    with pytest.raises(TriptychError, match="'the' has 2 values, not 3"):
        train(tmp_path / "w.txt")
    (tmp_path / "w.txt").write_text("0 3\n")
    with pytest.raises(TriptychError, match=r"w\.txt is no file of word vectors, or is damaged: it holds none"):
        train(tmp_path / "w.txt")
    with pytest.raises(ValueError, match="has a `file` of word vectors, and no other has"):
        TokenizerSpec(kind="words", file="w.bin")


def test_case_is_kept_where_asked() -> None:
    tokenizer = Tokenizer.train(["Ab aB"] * 3, TokenizerSpec(kind="words", lowercase=False))
    assert tokenizer.encode("Ab", 8) != tokenizer.encode("aB", 8)
    assert UNKNOWN in tokenizer.encode("ab", 8)


def test_long_captions_are_cut_and_keep_the_end_mark() -> None:
    tokenizer = Tokenizer.train(CAPTIONS, TokenizerSpec(kind="words"))
    ids = tokenizer.encode("a big ball moves left", 4)
    assert len(ids) == 4 and ids[-1] == END and tokenizer.decode(ids) == "a big"


def test_captions_may_stand_without_marks() -> None:
    tokenizer = Tokenizer.train(CAPTIONS, TokenizerSpec(kind="words"))
    marked, bare = tokenizer.encode("a big ball", 8), tokenizer.encode("a big ball", 8, marks=False)
    assert marked == [BEGIN, *bare, END] and tokenizer.encode("a big ball", 2, marks=False) == bare[:2]
    assert tokenizer.encode(" ", 8, marks=False) == []


@pytest.mark.parametrize("title", ["", "  ", "A video of", " A video", "a VIDEO of  "])
def test_a_title_that_is_only_the_prompt_is_no_text(title: str) -> None:
    tokenizer = Tokenizer.train(CAPTIONS, TokenizerSpec())
    assert tokenizer.encode(title, 32, "A video of {}") == []


def test_the_prompt_stands_round_the_caption() -> None:
    tokenizer = Tokenizer.train(["a video of balls", "a video of a ball"], TokenizerSpec(kind="words"))
    assert tokenizer.decode(tokenizer.encode("balls", 32, "A video of {}")) == "a video of balls"
    assert tokenizer.encode("a ball", 32) != []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("captions", [["a"], ["日本語 テスト", "über 😀"], ["the quick brown fox " * 20]])
@pytest.mark.parametrize("vocabulary", [8, 20, 8000])
def test_tiny_corpora_and_vocabularies_work(kind: Any, captions: list[str], vocabulary: int) -> None:
    tokenizer = Tokenizer.train(captions, TokenizerSpec(kind=kind, vocabulary=vocabulary))
    assert 5 <= tokenizer.vocabulary <= vocabulary
    assert max(tokenizer.encode(captions[0], 16)) < tokenizer.vocabulary


def test_without_captions_there_is_one_clear_sentence() -> None:
    with pytest.raises(TriptychError, match="No row of the source has a caption"):
        Tokenizer.train(["", "  "], TokenizerSpec())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_captions_make_the_same_tokenizer_in_any_order_and_process(kind: Any, tmp_path: Path) -> None:
    spec = TokenizerSpec(kind=kind, vocabulary=60)
    Tokenizer.train(CAPTIONS, spec).save(tmp_path / "a.json")
    Tokenizer.train(reversed(CAPTIONS), spec).save(tmp_path / "b.json")
    script = (
        "from triptych.data.text import Tokenizer; from triptych.recipe import TokenizerSpec; "
        f"Tokenizer.train({CAPTIONS!r}, TokenizerSpec(kind={kind!r}, vocabulary=60)).save({str(tmp_path / 'c.json')!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    first = (tmp_path / "a.json").read_text()
    assert first == (tmp_path / "b.json").read_text() == (tmp_path / "c.json").read_text()


def test_saved_loaded_and_pickled_tokenizers_agree(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(CAPTIONS, TokenizerSpec(kind="unigram"))
    tokenizer.save(tmp_path / "tokenizer.json")
    wanted = tokenizer.encode(CAPTIONS[0], 64)
    assert Tokenizer.load(tmp_path / "tokenizer.json").encode(CAPTIONS[0], 64) == wanted
    assert pickle.loads(pickle.dumps(tokenizer)).encode(CAPTIONS[0], 64) == wanted
    assert Engine.from_file(str(tmp_path / "tokenizer.json")).encode(CAPTIONS[0]).ids == wanted[1:-1]


@pytest.mark.parametrize("content", [None, "", "{}", "not json"])
def test_a_broken_tokenizer_is_named(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TriptychError, match="tokenizer"):
        Tokenizer.load(path)
