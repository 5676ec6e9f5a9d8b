from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.batch import Batch, Clip, View
from triptych.data import text
from triptych.encoders.speech import SpeechConfig
from triptych.errors import UsageError
from triptych.method import Clock, Facts, Losses
from triptych.methods import recognition
from triptych.methods.av_hubert import AVHuBERTConfig, RoundConfig
from triptych.methods.recognition import Recognition, RecognitionConfig
from triptych.recipe import (
    Aligned,
    AudioTransform,
    BatchSpec,
    Recipe,
    StreamSpec,
    TextTransform,
    TokenizerSpec,
    Viewing,
    Whole,
)
from triptych.training.optimizers import schedule_factor

AV_HUBERT = "triptych.methods.av_hubert:AVHuBERT"
SENTENCES = torch.tensor([[1, 4, 5, 6, 2], [1, 5, 5, 2, 0], [1, 7, 4, 8, 2], [1, 6, 2, 0, 0]])
SAID = [[4, 5, 6], [5, 5], [7, 4, 8], [6]]


def _build(**options: Any) -> Recognition:
    torch.manual_seed(0)
    encoder = SpeechConfig(
        width=32, layers=2, heads=2, hidden=64, stem=4, stages=(4, 8), stage_blocks=1, position_kernel=4,
        position_groups=2, dropout=0.0, layer_drop=0.0, sound_values=8,
    )  # fmt: skip
    sizes = {"vocabulary": 10, "layers": 1, "heads": 2, "hidden": 32, "dropout": 0.0, "inner_dropout": 0.0, "beam": 5}
    base = AVHuBERTConfig(encoder=encoder, rounds=(RoundConfig(),))
    config = RecognitionConfig(base=AV_HUBERT, base_config=base, **(sizes | options))
    return Recognition(config)


def _clip(data: Tensor, length: list[int]) -> Clip:
    return Clip(data, torch.tensor(length), torch.zeros(len(data), 2))


def _view(streams: str = "video+audio") -> View:
    generator = torch.Generator().manual_seed(1)
    length = [12, 9, 11, 6]
    view = {
        "video": _clip(torch.randn(4, 12, 16, 16, 1, generator=generator), length),
        "audio": _clip(torch.randn(4, 12, 8, generator=generator), length),
        "text": _clip(SENTENCES, [5, 4, 5, 3]),
    }
    return {name: clip for name, clip in view.items() if name in streams.split("+") or name == "text"}


def _losses(method: Recognition, view: View, step: int = 0) -> Losses:
    return method(Batch((view,), torch.arange(len(view["text"].length))), Clock(step=step))


def _words(method: Recognition, view: View) -> list[list[int]]:
    with torch.inference_mode():
        return [[token for token in row if token] for row in method.eval().predict(view)["words"].tolist()]


def test_special_tokens_are_those_of_the_tokenizer() -> None:
    names = ("PADDING", "BEGIN", "END", "UNKNOWN")
    assert [getattr(recognition, name) for name in names] == [getattr(text, name) for name in names]


@pytest.mark.parametrize(("head", "streams"), [("ctc", "video"), ("seq2seq", "audio"), ("joint", "video+audio")])
def test_words_are_learnt_by_heart(head: str, streams: str) -> None:
    method = _build(head=head, streams=(streams,)).train()
    view = _view(streams)
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        losses = _losses(method, view)
        losses.total.backward()
        optimizer.step()
    assert set(losses.terms) == {"ctc": {"ctc"}, "seq2seq": {"tokens"}, "joint": {"ctc", "tokens"}}[head]
    if head == "joint":
        assert losses.weights == {"ctc": 0.1, "tokens": 0.9}
    if head != "ctc":
        assert float(losses.report["accuracy"]) == 1
    method.base.train()  # batch norms of so few clips have no settled statistics
    with torch.inference_mode():
        features = method._read(view)
        assert [list(found[0].tokens) for found in method.search(features)] == SAID


def test_loss_is_the_mean_over_clips_of_sums_over_tokens() -> None:
    method, view = _build(streams=("audio",), smoothing=0.0).eval(), _view("audio")
    whole = _losses(method, view).total.item()
    alone = []
    for row in range(4):
        one = slice(row, row + 1)
        alone.append(_losses(method, {name: _cut(clip, one) for name, clip in view.items()}).total.item())
    assert whole == pytest.approx(sum(alone) / 4, rel=1e-4)


def _cut(clip: Clip, rows: slice) -> Clip:
    return Clip(clip.data[rows, : int(clip.length[rows].max())], clip.length[rows], clip.span[rows])


@pytest.mark.parametrize("head", ["ctc", "seq2seq", "joint"])
def test_rows_without_words_or_streams_do_not_count(head: str) -> None:
    method, view = _build(head=head, streams=("audio",)).eval(), _view("audio")
    few = {name: _cut(clip, slice(0, 2)) for name, clip in view.items()}
    untold = Clip(view["text"].data, torch.tensor([5, 4, 0, 2]), view["text"].span)
    wanted = _losses(method, few).terms
    found = _losses(method, view | {"text": untold}).terms
    unheard = Clip(view["audio"].data, torch.tensor([12, 9, 0, 0]), view["audio"].span)
    also = _losses(method, view | {"audio": unheard}).terms
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
        torch.testing.assert_close(also[name], value)
    assert _words(method, {"audio": unheard})[2:] == [[], []]
    nothing = Clip(view["text"].data, torch.zeros(4, dtype=torch.long), view["text"].span)
    total = _losses(method.train(), view | {"text": nothing}).total
    total.backward()
    assert total == 0 and all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("head", ["ctc", "seq2seq", "joint"])
def test_clips_are_read_side_by_side_as_alone(head: str) -> None:
    method = _build(head=head).eval()
    for name in ("video+audio", "audio", "video"):
        view = {stream: clip for stream, clip in _view(name).items() if stream != "text"}
        together = _words(method, view)
        for row in range(4):
            one = slice(row, row + 1)
            assert _words(method, {stream: _cut(clip, one) for stream, clip in view.items()}) == [together[row]]


def test_either_stream_may_be_absent() -> None:
    method = _build().eval()
    found = [_words(method, _view(streams)) for streams in ("video+audio", "video", "audio")]
    assert len(found[0]) == len(found[1]) == len(found[2]) == 4
    assert found[0] != found[1] != found[2]


def test_a_batch_is_sometimes_without_one_of_its_streams() -> None:
    method, view = _build(modality_dropout=0.5).train(), _view()
    seen = {}
    for drop, which in ((0.6, 0.1), (0.4, 0.1), (0.4, 0.9)):
        with method.given({"modality": torch.tensor([drop, which])}):
            seen[drop, which] = set(method._drop_modality(view))
    assert list(seen.values()) == [{"video", "audio", "text"}, {"video", "text"}, {"audio", "text"}]
    assert method.eval()._drop_modality(view) is view


def test_the_base_is_frozen_until_a_step() -> None:
    method = _build(frozen_until=10, streams=("audio",)).train()
    groups = method.parameter_groups()
    head = [group for group in groups if group.frozen_until == 0]
    assert all(name.startswith(("decoder.", "classify.")) for group in head for name in group.parameters)
    assert all(name.startswith("base.") for group in groups if group.frozen_until for name in group.parameters)
    _losses(method, _view("audio"), step=9).total.backward()
    assert all(p.grad is None for p in method.base.parameters()) and method.decoder is not None
    assert method.decoder.norm.weight.grad is not None
    _losses(method, _view("audio"), step=10).total.backward()
    assert method.base.speech.norm.weight.grad is not None


def _recipe(transcript: dict[str, StreamSpec]) -> Recipe:
    sound = StreamSpec(transform=AudioTransform(), rate=16_000.0)
    return Recipe(
        method="triptych.methods.recognition:Recognition",
        config=_build(streams=("audio",)).options,
        train=Viewing(windows=Whole(), views=({"audio": sound} | transcript,)),
        test=Viewing(windows=Whole(), views=({"audio": sound},)),
        batch=BatchSpec(rows=4),
        steps=1,
        tokenizer=TokenizerSpec(kind="characters"),
    )


def test_the_vocabulary_comes_from_the_data() -> None:
    recipe = _recipe({"text": StreamSpec(transform=TextTransform())})
    config = Recognition.complete(recipe, Facts(vocabulary=31)).config
    assert isinstance(config, RecognitionConfig) and config.vocabulary == 31
    for wrong in ({}, {"text": StreamSpec(transform=TextTransform(marks=False))}):
        with pytest.raises(UsageError, match="needs a stream 'text' with marks"):
            Recognition.complete(_recipe(wrong), Facts(vocabulary=31))


def test_published_settings() -> None:
    made = recognition.paper()
    assert made.steps == 120_000 and made.batch.seconds == 320  # 8 devices x 1000 frames at 25 a second
    assert isinstance(made.config, RecognitionConfig) and made.config.frozen_until == 60_000
    curve = made.schedules["main"]
    # 40,000 steps up from 1 %, 80,000 down to 5 %.
    assert [round(schedule_factor(curve, done / 120, 120_000), 3) for done in (0, 40, 80, 120)] == [
        0.01, 1, round(0.05**0.5, 3), 0.05,
    ]  # fmt: skip
    encoder = made.config.base_config.encoder  # type: ignore[attr-defined]
    assert (encoder.dropout, encoder.inner_dropout, encoder.layer_drop) == (0, 0.1, 0.1)
    assert set(made.train.views[0]) == {"video", "text"} and set(made.test.views[0]) == {"video"}
    large = AVHuBERTConfig(encoder=SpeechConfig(width=1024, layers=24, heads=16, hidden=4096))
    noisy = recognition.FINETUNING["av_hubert"]["large-noise-433h"](large)
    assert isinstance(noisy.config, RecognitionConfig)
    assert (noisy.config.layers, noisy.config.heads, noisy.config.hidden) == (9, 8, 4096)
    sound = noisy.train.views[0]["audio"].transform
    assert isinstance(sound, AudioTransform) and sound.background is not None
    assert (sound.background.probability, sound.background.decibels) == (0.25, (0, 0))
    assert noisy.test.views[0]["audio"].transform.background is None  # type: ignore[union-attr]


def test_a_method_that_looks_at_windows_reads_from_the_beginning() -> None:
    made = recognition.like("lava", "video", "ctc")
    for viewing in (made.train, made.test):
        assert isinstance(viewing.windows, Aligned) and viewing.windows.place == "start"
    assert isinstance(made.config, RecognitionConfig)
    method = Recognition(made.config).eval()
    size = made.config.base_config.size  # type: ignore[attr-defined]
    frames = made.config.base_config.frames  # type: ignore[attr-defined]
    video = torch.randn(2, frames, size, size, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = method._read({"video": _clip(video, [frames, frames // 2])})
        tokens = method.base.features({"video": _clip(video, [frames, frames // 2])})["video"]
    assert tokens.grid is not None
    time, places = tokens.grid[0], tokens.grid[1] * tokens.grid[2]
    assert found.tokens.shape[1] == time and found.length.tolist() == [time, time // 2]
    torch.testing.assert_close(found.tokens[0, 1], tokens.tokens[0, places : 2 * places].mean(dim=0))
