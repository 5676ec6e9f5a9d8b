"""AV-HuBERT: targets by round, masks, a stream left out, and what is learnt of synthetic speech."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.processes import in_two_processes
from triptych import distributed
from triptych.batch import Batch, Clip, View
from triptych.encoders.speech import SpeechConfig
from triptych.errors import TriptychError, UsageError
from triptych.method import Clock
from triptych.methods.av_hubert import (
    SPECIAL,
    AVHuBERT,
    AVHuBERTConfig,
    FrameLabels,
    RoundConfig,
    Spans,
    paper,
    small,
)

ENCODER = SpeechConfig(
    width=16,
    layers=2,
    heads=2,
    hidden=32,
    stem=4,
    stages=(4, 8),
    stage_blocks=1,
    sound_values=12,
    position_kernel=6,
    position_groups=4,
    dropout=0.0,
    layer_drop=0.0,
)
INPUT = RoundConfig(
    clusters=(5,), hide="input", audio=Spans(share=0.5, steps=3), video=Spans(share=0.3, steps=2), modality_dropout=0.5
)
SETTINGS: dict[str, Any] = {"encoder": ENCODER, "class_width": 8, "sample": 1.0, "restarts": 2, "cluster_batch": 64}


def _method(**changes: Any) -> AVHuBERT:
    torch.manual_seed(0)
    return AVHuBERT(AVHuBERTConfig(**SETTINGS | {"rounds": (INPUT,)} | changes))


def _clip(data: Tensor, length: list[int], start: float = 0.0) -> Clip:
    span = torch.tensor([[start, start + n / 25] for n in length])
    return Clip(data, torch.tensor(length), span)


def _view(length: list[int], seed: int = 0) -> View:
    generator = torch.Generator().manual_seed(seed)
    rows, steps = len(length), max(length)
    return {
        "video": _clip(torch.randn(rows, steps, 8, 8, 1, generator=generator), length),
        "audio": _clip(torch.randn(rows, steps, 12, generator=generator), length),
    }


# ---------------------------------------------------------------- labels of steps


def _labels(found: dict[int, tuple[float, Tensor]], rows: int, rate: float) -> FrameLabels:
    labels = FrameLabels(1)
    labels.keep(0, found, rows, rate, torch.zeros(0, 0))
    return labels


def test_a_step_takes_the_first_of_its_labels() -> None:
    labels = _labels({0: (0.0, torch.arange(40)[:, None])}, 1, 100.0)
    found = labels.of(torch.tensor([0]), torch.tensor([0.0]), 10, 25.0)
    assert found[0, :, 0].tolist() == list(range(0, 40, 4))


def test_a_step_whose_labels_end_has_none() -> None:
    labels = _labels({0: (0.0, torch.arange(39)[:, None]), 2: (0.0, torch.arange(54)[:, None])}, 3, 100.0)
    found = labels.of(torch.tensor([0, 1, 2]), torch.zeros(3), 14, 25.0)[..., 0]
    assert found[0, 8:].tolist() == [32, -1, -1, -1, -1, -1]  # int(39 / 4) of them
    assert (found[1] == -1).all()  # a row that could not be read
    assert (found[2] >= 0).sum() == 13  # int(54 / 4): av-hubert, section 5


def test_labels_are_cut_where_the_clip_begins() -> None:
    labels = _labels({0: (2.0, torch.arange(100)[:, None])}, 1, 100.0)
    found = labels.of(torch.tensor([0]), torch.tensor([2.4]), 4, 25.0)
    assert found[0, :, 0].tolist() == [40, 44, 48, 52]
    before = labels.of(torch.tensor([0]), torch.tensor([1.92]), 3, 25.0)
    assert before[0, :, 0].tolist() == [-1, -1, 0]


def test_rates_that_do_not_divide() -> None:
    labels = _labels({0: (0.0, torch.arange(20)[:, None])}, 1, 40.0)
    assert labels.of(torch.tensor([0]), torch.zeros(1), 6, 25.0)[0, :, 0].tolist() == [0, 1, 3, 4, 6, 8]


def test_before_the_first_round_targets_say_nothing() -> None:
    assert not FrameLabels(2).of(torch.tensor([4, 5]), torch.zeros(2), 3, 25.0).any()


# ---------------------------------------------------------------- the model


def test_a_stream_is_left_out_half_the_time_and_both_alike_by_one_draw_a_batch() -> None:
    method = _method().train()
    clips = _view([4, 4, 4])
    counts: Counter[tuple[str, ...]] = Counter()
    torch.manual_seed(0)
    for _ in range(10_000):
        counts[tuple(sorted(method._drop_modality(clips, INPUT)))] += 1
    shares = {streams: count / 10_000 for streams, count in counts.items()}
    assert shares.keys() == {("audio", "video"), ("video",), ("audio",)}
    for streams, share in ((("audio", "video"), 0.5), (("video",), 0.25), (("audio",), 0.25)):
        assert abs(shares[streams] - share) < 0.02
    only = {"video": clips["video"]}
    assert all(method._drop_modality(only, INPUT) == only for _ in range(20))
    method.eval()
    assert all(len(method._drop_modality(clips, INPUT)) == 2 for _ in range(20))


def _gradients(draws: dict[str, Tensor], **changes: Any) -> dict[str, Tensor]:
    method = _method(**changes)
    with method.given(draws):
        losses = method(Batch((_view([6, 6]),), torch.arange(2)), Clock())
    (losses.total - losses.weighted["penalty"]).backward()
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


def _kept(hidden: list[int]) -> Tensor:
    kept = torch.ones(2, 6, dtype=torch.bool)
    kept[:, hidden] = False
    return kept


BOTH = {"modality": torch.tensor([0.9, 0.0])}


def test_the_front_ends_gradient_is_a_tenth() -> None:
    draws = BOTH | {"kept.audio": _kept([2, 3]), "kept.video": _kept([]), "shown.video": torch.arange(6).repeat(2, 1)}
    less, plain = _gradients(draws, front_gradient=0.1), _gradients(draws, front_gradient=1.0)
    for name, gradient in plain.items():
        front = name.startswith(("speech.frames", "speech.project", "instead.input"))
        torch.testing.assert_close(less[name], (0.1 if front else 1.0) * gradient, msg=name)
        assert gradient.any() or "frames" not in name


def test_the_vector_of_what_is_hidden_learns_from_sound_alone() -> None:
    source = torch.arange(6).repeat(2, 1)
    for hidden, reached in (({"kept.audio": _kept([1])}, True), ({"kept.video": _kept([1])}, False)):
        draws = BOTH | {"kept.audio": _kept([]), "kept.video": _kept([]), "shown.video": source} | hidden
        gradient = _gradients(draws)["instead.input"]
        assert bool(gradient.any()) is reached


def test_frames_give_way_to_others_and_sound_to_a_vector() -> None:
    method, view = _method().train(), _view([6, 6])
    seen: dict[str, Tensor] = {}
    inner = method.speech.front

    def front(stream: str, data: Tensor) -> Tensor:
        seen[stream] = data
        return inner(stream, data)

    method.speech.front = front  # type: ignore[method-assign]
    source = torch.tensor([[0, 4, 5, 3, 4, 5], [0, 1, 2, 0, 1, 5]])
    kept = {"kept.audio": _kept([0, 5]), "kept.video": source == torch.arange(6)}
    with method.given(BOTH | kept | {"shown.video": source}):
        guess = method.guess(view, INPUT)
    assert torch.equal(seen["video"][0, 1:3], view["video"].data[0, 4:6])
    assert torch.equal(seen["audio"][:, [0, 5]], method.instead["input"].expand(2, 2, 12))
    assert torch.equal(seen["audio"][:, 1:5], view["audio"].data[:, 1:5])
    assert guess.hidden[0].tolist() == [True, True, True, False, False, True]  # of either stream


def test_a_lone_clip_has_zeros_where_it_is_hidden() -> None:
    method, view = _method().train(), _view([6])
    kept = _kept([2])[:1]
    for stream in ("audio", "video"):
        hidden = method._hide(stream, view[stream].data, kept, view[stream].length)
        assert not hidden[0, 2].any() and torch.equal(hidden[0, 3], view[stream].data[0, 3])


def test_fused_steps_give_way_to_a_vector() -> None:
    features = RoundConfig(clusters=(5,), audio=Spans(share=0.5, steps=3))
    method = _method(rounds=(features,)).train()
    with method.given({"kept.features": torch.zeros(2, 6, dtype=torch.bool)}):
        first, other = (method.guess(_view([6, 6], seed=seed), features) for seed in (0, 1))
    assert torch.equal(first.tokens, other.tokens) and first.hidden.all()
    assert set(dict(method.named_parameters())) >= {"instead.features"} and "instead.input" not in method.state_dict()


def test_the_loss_is_that_of_the_hidden_steps_over_their_number() -> None:
    draws = BOTH | {"kept.audio": _kept([0]), "kept.video": _kept([3]), "shown.video": torch.arange(6).repeat(2, 1)}
    batch = Batch((_view([6, 4]),), torch.arange(2))
    values = {}
    for weight in (0.0, 1.0):
        method = _method(unmasked=weight).eval()
        labels = {row: (0.0, SPECIAL + torch.tensor([[0, 1, 2, 3, 4, 0]]).T) for row in range(2)}
        method.targets.keep(0, labels, 2, 25.0, torch.zeros(0, 0))
        with method.given(draws), torch.no_grad():
            losses = method(batch, Clock())
            guess = method.guess(batch.views[0], INPUT)
        log_probs = method.logits(guess.tokens, (5,))[0].log_softmax(dim=-1)
        wanted = SPECIAL + torch.tensor([0, 1, 2, 3, 4, 0])
        each = -log_probs.gather(2, wanted.expand(2, 6)[..., None])[..., 0]
        hidden, others = each[:, [0, 3]].sum(), each[0, [1, 2, 4, 5]].sum() + each[1, [1, 2]].sum()
        count = 4 if weight == 0 else 10
        torch.testing.assert_close(losses.terms["masked"], hidden / count)
        torch.testing.assert_close(losses.terms["penalty"], guess.joined.square().mean())
        if weight:
            torch.testing.assert_close(losses.terms["unmasked"], others / count)
        values[weight] = losses.total
        assert set(losses.terms) == ({"masked", "unmasked", "penalty"} if weight else {"masked", "penalty"})
    assert values[0.0] != values[1.0]


@torch.no_grad()
def test_rows_without_a_stream_have_zeros_behind_its_front_end() -> None:
    method, view = _method().eval(), _view([6, 6])
    less = view | {"audio": _clip(view["audio"].data, [6, 0])}
    whole, some = method.features(view), method.features(less)
    assert whole.keys() == {"audio", "video", "video+audio"}
    torch.testing.assert_close(some["video+audio"].pooled[1], whole["video"].pooled[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(some["video+audio"].pooled[0], whole["video+audio"].pooled[0], atol=1e-5, rtol=0)
    sound = method.features({"audio": view["audio"]})
    assert sound.keys() == {"audio"}
    torch.testing.assert_close(sound["audio"].pooled, whole["audio"].pooled, atol=1e-5, rtol=0)


@torch.no_grad()
def test_sound_is_fitted_to_the_picture() -> None:
    method, view = _method().eval(), _view([6])
    longer = torch.cat([view["audio"].data, torch.ones(1, 1, 12)], dim=1)
    for sound in (_clip(longer, [7]), _clip(longer[:, :6], [6])):
        found = method.features(view | {"audio": sound})["video+audio"]
        torch.testing.assert_close(found.pooled, method.features(view)["video+audio"].pooled, atol=1e-5, rtol=0)
        assert found.length.tolist() == [6]


# ---------------------------------------------------------------- rounds


@dataclass
class Kept:
    """Rows of a data set, two a batch, and each rank's share of them."""

    views: list[tuple[View, View]]

    def batches(self, rows: Tensor | None = None) -> Iterator[Batch]:
        chosen = torch.arange(len(self.views)) if rows is None else rows
        for row in chosen.tensor_split(distributed.world_size())[distributed.rank()].tolist():
            yield Batch(self.views[row], torch.tensor([row]))

    def __len__(self) -> int:
        return len(self.views)


def _kept_rows(count: int = 6) -> Kept:
    found = []
    for row in range(count):
        steps = 8 + row
        cepstra = torch.randn(1, 4 * steps - 2, 3, generator=torch.Generator().manual_seed(row))
        found.append((_view([steps], seed=row), {"audio": _clip(cepstra, [4 * steps - 2], start=0.0)}))
    return Kept(found)


def test_rounds_cluster_sound_then_the_model_and_begin_anew() -> None:
    second = INPUT.model_copy(update={"clusters": (7,), "layer": 2})
    method, data = _method(rounds=(INPUT, second)), _kept_rows()
    start = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    torch.manual_seed(1)
    assert method.before_epoch(Clock(), data).fresh == ()
    assert all(
        torch.equal(tensor, start[name]) for name, tensor in method.state_dict().items() if "targets" not in name
    )
    labels = method.targets
    assert (int(labels.round), float(labels.rate)) == (0, 100.0) and labels.centres.shape == (5, 3)
    assert labels.labels.min() >= SPECIAL and labels.labels.max() < SPECIAL + 5
    assert labels.begins.diff().tolist() == [4 * (8 + row) - 2 for row in range(6)]
    before = labels.labels.clone()
    assert method.before_epoch(Clock(epoch=1), data).fresh == () and torch.equal(labels.labels, before)

    for norm in method.modules():
        if hasattr(norm, "running_mean"):
            norm.running_mean.fill_(3.0)
    torch.manual_seed(1)
    plan = method.before_epoch(Clock(epoch=2, round=1), data)
    assert plan.fresh == tuple(name for name, _ in method.named_parameters())
    assert (int(labels.round), float(labels.rate)) == (1, 25.0) and labels.centres.shape == (7, 16)
    assert labels.begins.diff().tolist() == [8 + row for row in range(6)]
    now = method.state_dict()
    assert not now["speech.frames.norm.running_mean"].any()
    assert not torch.equal(now["head.weight"], start["head.weight"])
    assert labels.labels.max() < SPECIAL + 7
    assert method.classes.shape == (7 + SPECIAL, 8)
    assert method.logits(torch.randn(1, 2, 16), (5,))[0].shape[-1] == 5 + SPECIAL


def test_several_sets_of_targets() -> None:
    both = INPUT.model_copy(update={"clusters": (5, 3)})
    method, data = _method(rounds=(both,)), _kept_rows()
    method.before_epoch(Clock(), data)
    assert method.targets.labels.shape[1] == 2 and method.targets.centres.shape == (8, 3)
    losses = method.train()(Batch((_view([8, 9]),), torch.tensor([0, 1])), Clock())
    assert losses.total.isfinite()
    with pytest.raises(ValueError, match="equally many sets"):
        AVHuBERTConfig(rounds=(INPUT, both))


def test_without_a_second_view_the_first_round_says_what_it_needs() -> None:
    only = Kept([(view, {}) for view, _ in _kept_rows().views])
    with pytest.raises(UsageError, match="needs a second view with the stream 'audio'"):
        _method().before_epoch(Clock(), only)


def test_recordings_without_sound_have_no_labels() -> None:
    data = _kept_rows()
    silent = {"audio": _clip(torch.zeros(1, 4, 3), [0])}
    data.views[2] = (data.views[2][0], silent)
    method = _method()
    method.before_epoch(Clock(), data)
    assert method.targets.begins.diff()[2] == 0
    losses = method.train()(Batch((_view([8, 9]),), torch.tensor([2, 2])), Clock())
    assert not losses.terms["masked"].any()
    with pytest.raises(TriptychError, match="None of the recordings"):
        _method().before_epoch(Clock(), Kept([(view, silent) for view, _ in data.views]))


def _labelled(rank: int, data: Kept) -> Any:
    second = INPUT.model_copy(update={"clusters": (4,), "layer": 1})
    method = _method(rounds=(INPUT, second))
    found = []
    for number in range(2):
        torch.manual_seed(number)
        method.before_epoch(Clock(round=number), data)
        found.append(
            (method.targets.labels.clone(), method.targets.begins.clone(), method.head.weight.detach().clone())
        )
    return found


def test_two_processes_label_as_one_does() -> None:
    data = _kept_rows(5)
    alone = _labelled(0, data)
    for found in in_two_processes(_labelled, data):
        for one, other in zip(found, alone, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_published_rounds() -> None:
    config = paper().config
    assert isinstance(config, AVHuBERTConfig)
    assert [one.layer for one in config.rounds] == [None, 9, 12, 12, 12]
    assert [one.hide for one in config.rounds] == ["features"] * 4 + ["input"]
    assert [one.modality_dropout for one in config.rounds] == [0.0] * 4 + [0.5]
    assert config.of_round(7) == config.rounds[-1]
    assert paper().rounds == 5 and small().rounds == 2
    with pytest.raises(ValueError, match="clusters layer 13 of 12"):
        AVHuBERTConfig(rounds=(INPUT, INPUT.model_copy(update={"layer": 13})))


# ---------------------------------------------------------------- learning


def _speech(seed: int, steps: int = 40, phones: int = 6) -> tuple[View, Tensor]:
    """Return lips and sound of phones that last some steps each, in a fixed cycle, and the phones."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 6, (steps,), generator=generator)
    start = int(torch.randint(phones, (), generator=generator))
    spoken = torch.arange(start, start + steps).remainder(phones).repeat_interleave(lengths)[:steps]
    table = torch.randn(phones, 12 + 64, generator=torch.Generator().manual_seed(99))
    made = table[spoken] + 0.5 * torch.randn(steps, 76, generator=generator)
    sound, lips = made[None, :, :12], made[None, :, 12:].reshape(1, steps, 8, 8, 1)
    return {"video": _clip(lips, [steps]), "audio": _clip(sound, [steps])}, spoken


def test_hidden_clusters_are_learnt_better_than_by_their_frequency() -> None:
    """One round on clusters of the sound (av-hubert, section 10, item 10), also from lips alone."""
    rows = [_speech(seed) for seed in range(48)]
    cepstra = [{"audio": _clip(view["audio"].data.repeat_interleave(4, dim=1), [160])} for view, _ in rows]
    data = Kept([(view, more) for (view, _), more in zip(rows, cepstra, strict=True)])
    now = INPUT.model_copy(update={"clusters": (8,)})
    method = _method(rounds=(now,), front_gradient=1.0)
    torch.manual_seed(0)
    method.before_epoch(Clock(), data)
    optimizer = torch.optim.AdamW(method.train().parameters(), lr=5e-3)
    views = {s: torch.cat([view[s].data for view, _ in rows]) for s in ("video", "audio")}
    for step in range(150):
        torch.manual_seed(step)
        chosen = torch.randperm(40)[:10]
        view = {stream: _clip(x[chosen], [40] * 10) for stream, x in views.items()}
        optimizer.zero_grad()
        method(Batch((view,), chosen), Clock()).total.backward()
        optimizer.step()
    method.eval()
    unseen = torch.arange(40, 48)
    labels = method.targets.of(torch.arange(48), torch.zeros(48), 40, 25.0)[..., 0]
    counts = labels[:40].flatten().bincount().float()
    unigram = -(counts / counts.sum()).clamp(min=1e-9).log()
    for streams in (("video", "audio"), ("video",)):
        view = {stream: _clip(views[stream][unseen], [40] * 8) for stream in streams}
        with torch.no_grad():
            losses = method(Batch((view,), unseen), Clock())
        assert losses.terms["masked"] < 0.6 * math.log(8), streams
        assert losses.terms["masked"] < 0.6 * unigram[labels[40:]].mean(), streams
        assert losses.report["accuracy_masked"] > 0.5, streams
