import math
import random
from dataclasses import dataclass

import jiwer
import pytest
import torch
from torch import Tensor, nn

from triptych.api.measures import evaluate
from triptych.batch import View
from triptych.data.text import Tokenizer
from triptych.errors import TriptychError, UsageError
from triptych.evaluation.evaluator import Sweeps
from triptych.evaluation.speech import Edits, SpeechRecognition, count_edits, normalize, transcribe
from triptych.media.collection import Rows
from triptych.media.write import write_video
from triptych.recipe import AudioTransform, StreamSpec, TokenizerSpec, VideoTransform, Viewing, Whole

PAIRS = [("the cat sat", "the cat"), ("a b", "a c b")]


def test_word_errors_are_summed_over_the_corpus() -> None:
    edits = [count_edits(reference.split(), said.split()) for reference, said in PAIRS]
    assert edits == [Edits(3, 0, 1, 0), Edits(2, 0, 0, 1)]
    whole = sum(edits, Edits())
    assert whole == Edits(5, 0, 1, 1) and whole.errors / whole.total == 0.4


def test_character_errors() -> None:
    assert count_edits("abc", "axc") == Edits(3, 1, 0, 0)
    assert count_edits("a b", "ab") == Edits(3, 0, 1, 0)  # blanks count


@pytest.mark.parametrize(
    ("reference", "said", "wanted"),
    [
        ("", "", Edits()),
        ("", "a b", Edits(0, 0, 0, 2)),
        ("a b", "", Edits(2, 0, 2, 0)),
        ("a b c", "x y z w", Edits(3, 3, 0, 1)),
        ("one two three", "two three one", Edits(3, 0, 1, 1)),
    ],
)
def test_edits_by_hand(reference: str, said: str, wanted: Edits) -> None:
    assert count_edits(reference.split(), said.split()) == wanted


def test_edits_are_as_few_as_jiwer_counts() -> None:
    generator = random.Random(0)
    for _ in range(200):
        one, other = (" ".join(generator.choices("abcd", k=generator.randint(1, 9))) for _ in range(2))
        words, letters = count_edits(one.split(), other.split()), count_edits(one, other)
        assert words.errors / words.total == pytest.approx(jiwer.wer(one, other))
        assert letters.errors / letters.total == pytest.approx(jiwer.cer(one, other))
        assert words.total - words.deletions + words.insertions == len(other.split())


def test_case_punctuation_and_blanks_do_not_count() -> None:
    assert normalize("  Hello, WORLD -- it's\ttwo o\u2019clock; 7.5 \u201cmiles\u201d") == (
        "hello world it's two o'clock 7 5 miles"
    )


# ------------------------------------------------------------ a reader of tones and greys

WORDS = ["red", "green", "blue", "white"]


class Reader(nn.Module):
    """Hears a tone of 400, 800, 1200 or 1600 Hz for a word, and sees a grey."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.ids = [tokenizer.encode(word, 8)[1] for word in WORDS]

    def predict(self, view: View) -> dict[str, Tensor]:
        assert set(view) <= {"audio", "video"}
        if "audio" in view:
            spectra = torch.fft.rfft(view["audio"].data[:, :8000]).abs()
            found = spectra[:, [200, 400, 600, 800]].argmax(dim=1)
        else:
            found = view["video"].data.mean(dim=(1, 2, 3, 4)).sub(0.05).div(0.25).round().long().clamp(0, 3)
        return {"words": torch.tensor([[self.ids[int(word)], 0] for word in found])}


@dataclass
class Reads:
    method: nn.Module
    test: Viewing
    tokenizer: Tokenizer | None


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Eight utterances, of which one is told another word than is spoken, one has no transcript, one is no file."""
    folder = tmp_path_factory.mktemp("speech")
    time, lines = torch.arange(16_000) / 16_000, ["path,caption,speaker"]
    for number in range(8):
        word = number % 4
        tone = 0.2 * torch.sin(2 * math.pi * 400 * (word + 1) * time)[None]
        frames = torch.full((10, 32, 32, 3), 13 + 64 * word, dtype=torch.uint8)
        write_video(folder / f"{number}.mp4", frames, 10.0, tone)
        told = {4: "Green!", 5: ""}.get(number, WORDS[word].title())
        lines.append(f"{number}.mp4,{told},{number // 2}")
    lines.append("missing.mp4,red,9")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    hiss = 0.2 * torch.randn(1, 32_000, generator=torch.Generator().manual_seed(0))
    write_video(folder / "noise" / "hiss.mp4", torch.zeros(20, 32, 32, 3, dtype=torch.uint8), 10.0, hiss)
    return Rows.open(folder / "manifest.csv")


@pytest.fixture(scope="module")
def sweeps(rows: Rows) -> Sweeps:
    tokenizer = Tokenizer.train(WORDS, TokenizerSpec(kind="words"))
    sound = StreamSpec(transform=AudioTransform(front_end="waveform"), rate=16_000.0, required=False, short="zero")
    picture = StreamSpec(transform=VideoTransform(size=16, pixels="unit"), rate=5.0, required=False)
    viewing = Viewing(windows=Whole(), views=({"video": picture, "audio": sound},))
    reader = Reads(Reader(tokenizer), viewing, tokenizer)
    return Sweeps({"reader": reader}, rows, viewing, workers=0)  # type: ignore[dict-item]


@pytest.mark.parametrize("streams", ["audio", "video", "video+audio"])
def test_error_rates_of_what_is_seen_and_heard(rows: Rows, sweeps: Sweeps, streams: str) -> None:
    scores = SpeechRecognition([streams]).run(sweeps.of("reader"), rows, rows)
    assert set(scores) == {f"{streams} WER", f"{streams} CER"}
    words, letters = scores[f"{streams} WER"], scores[f"{streams} CER"]
    assert words.value == pytest.approx(100 / 7) and words.n == 7
    assert words.note.startswith("N 7, S 1, D 0, I 0; lower case")
    assert words.low == 0 and words.high > words.value
    # "green" for "red": two letters more, and one other.
    assert letters.value == pytest.approx(100 * count_edits("green", "red").errors / sum(map(len, _told(rows))))


def _told(rows: Rows) -> list[str]:
    return [normalize(text) for text in rows.column("caption")[:8] if text]


def test_noise_reaches_what_is_heard_and_leaves_what_is_seen(rows: Rows, sweeps: Sweeps) -> None:
    noise = str(rows.root / "noise")
    evaluator = SpeechRecognition(["audio", "video"], decibels=[40, -40], noise=noise)
    scores = evaluator.run(sweeps.of("reader"), rows, rows)
    assert {name for name in scores if name.endswith("WER")} == {
        "audio WER", "video WER", "audio 40 dB WER", "audio -40 dB WER",
    }  # fmt: skip
    assert scores["audio 40 dB WER"].value == scores["audio WER"].value
    assert scores["audio -40 dB WER"].value > 40
    babble = SpeechRecognition(["audio"], decibels=[-20]).run(sweeps.of("reader"), rows, rows)
    assert babble["audio -20 dB WER"].value > 40


def test_intervals_resample_speakers(rows: Rows, sweeps: Sweeps) -> None:
    alone = SpeechRecognition(["video"]).run(sweeps.of("reader"), rows, rows)["video WER"]
    together = SpeechRecognition(["video"], group="speaker").run(sweeps.of("reader"), rows, rows)["video WER"]
    assert alone.value == together.value and alone.high != together.high


def test_what_cannot_be_measured_is_told(rows: Rows, sweeps: Sweeps) -> None:
    with pytest.raises(TriptychError, match=r"No row of .* that is tested has a transcript in 'caption'"):
        SpeechRecognition(["video"]).run(sweeps.of("reader"), rows, rows.select([5]))
    with pytest.raises(TriptychError, match=r"None of the 1 utterances .* could be read"):
        SpeechRecognition(["video"]).run(sweeps.of("reader"), rows, rows.select([8]))
    with pytest.raises(UsageError, match="says no words"):
        transcribe(Reads(nn.Linear(1, 1), sweeps.viewing, None), rows, sweeps.viewing)  # type: ignore[arg-type]


def test_a_model_without_words_is_told_before_anything_is_decoded(rows: Rows) -> None:
    with pytest.raises(UsageError, match="says no words; train one that does"):
        evaluate("random:lava", rows.select(range(8)), ["speech"])
