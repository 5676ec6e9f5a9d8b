import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Engine

from triptych.data.text import BEGIN, END, PADDING, UNKNOWN, Tokenizer
from triptych.errors import TriptychError
from triptych.recipe import TokenizerSpec

CAPTIONS = [f"a {size} {kind} moves {way}" for size in ("big", "small") for kind in ("ball", "star")
            for way in ("left", "right")]  # fmt: skip
KINDS: Any = ("unigram", "bpe", "words")


@pytest.mark.parametrize("kind", KINDS)
def test_captions_come_back(kind: Any) -> None:
    tokenizer = Tokenizer.train(CAPTIONS, TokenizerSpec(kind=kind, vocabulary=100))
    ids = tokenizer.encode("A  big ball\nmoves left", 32)
    assert ids[0] == BEGIN and ids[-1] == END and not {PADDING, UNKNOWN} & set(ids)
    assert tokenizer.decode(ids) == "a big ball moves left"
    assert max(ids) < tokenizer.vocabulary <= 100


def test_case_is_kept_where_asked() -> None:
    tokenizer = Tokenizer.train(["Ab aB"] * 3, TokenizerSpec(kind="words", lowercase=False))
    assert tokenizer.encode("Ab", 8) != tokenizer.encode("aB", 8)
    assert UNKNOWN in tokenizer.encode("ab", 8)


def test_long_captions_are_cut_and_keep_the_end_mark() -> None:
    tokenizer = Tokenizer.train(CAPTIONS, TokenizerSpec(kind="words"))
    ids = tokenizer.encode("a big ball moves left", 4)
    assert len(ids) == 4 and ids[-1] == END and tokenizer.decode(ids) == "a big"


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
