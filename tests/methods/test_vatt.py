"""VATT: the specification's checks (vatt, section 10), several captions a clip, and what is absent."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.api import sources
from triptych.batch import Batch, Clip, View
from triptych.data.loader import Loader
from triptych.encoders.raw_signal import RawSignalEncoder
from triptych.errors import UsageError
from triptych.media.collection import Rows
from triptych.method import Clock, Facts
from triptych.methods.supervised import Supervised, SupervisedConfig
from triptych.methods.vatt import VATT, VATTConfig, base, paper, small
from triptych.recipe import override, validate
from triptych.toyworld.write import write_toyworld
from triptych.training.optimizers import schedule_factor

SIZE = {"layers": 1, "width": 16, "heads": 2, "head_width": 8, "hidden": 24}
TINY: dict[str, Any] = {
    "video": SIZE,
    "audio": SIZE,
    "text": SIZE,
    "projected": 12,
    "frames": 4,
    "size": (16, 16),
    "tubelet": (2, 8),
    "audio_steps": 64,
    "audio_patch": (8, 1),
    "text_steps": 6,
    "vocabulary": 20,
    "word_width": 5,
    "frozen_words": False,
    "dropout": 0.0,
    "hidden": 10,
    "fine": 8,
    "coarse": 6,
}


def _build(**changes: Any) -> VATT:
    torch.manual_seed(0)
    return VATT(validate(VATTConfig, TINY | changes, "tiny"))


def _view(rows: int = 6, candidates: int = 3) -> View:
    """Return clips, of which each fifth is silent and each fourth has a missing caption."""
    torch.manual_seed(1)
    span, place = torch.zeros(rows, 2), torch.arange(rows)
    told = torch.randint(1, 7, (rows, candidates))
    told[place % 4 == 1, -1] = 0
    words = torch.randint(4, 20, (rows, candidates, 6)) * (torch.arange(6) < told[..., None])
    return {
        "video": Clip(torch.randn(rows, 4, 16, 16, 3), torch.full((rows,), 4), span),
        "audio": Clip(torch.randn(rows, 64), 64 * (place % 5 != 2), span),
        "text": Clip(words, told, torch.zeros(rows, candidates, 2)),
    }


def _losses(method: VATT, view: View) -> dict[str, Tensor]:
    rows = len(next(iter(view.values())).length)
    return method.objective(Batch(views=(view,), rows=torch.arange(rows)), Clock()).terms


def _changed(clip: Clip, **changes: Tensor) -> Clip:
    return Clip(changes.get("data", clip.data), changes.get("length", clip.length), clip.span)


AGNOSTIC = {"shared": SIZE}


@pytest.mark.parametrize("changes", [{}, AGNOSTIC])
def test_dropped_tokens_are_the_same_in_the_whole_batch(changes: dict[str, Any]) -> None:
    method, view = _build(**changes).train(), _view()
    view.pop("text")
    drawn = {"video_permutation": torch.randperm(8), "audio_permutation": torch.randperm(8)}
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    swapped = {name: Clip(clip.data[order], clip.length[order], clip.span) for name, clip in view.items()}
    with method.given(drawn):
        found, moved = (method._vectors(each)[0]["va"] for each in (view, swapped))
        for stream in ("video", "audio"):
            torch.testing.assert_close(moved[stream], found[stream][order])
            kept = method._kept(stream, view[stream].data)
            assert kept is not None and kept.tolist() == [drawn[f"{stream}_permutation"][:4].tolist()] * 6
    assert method._kept("text", view["video"].data) is None
    assert method.eval()._kept("video", view["video"].data) is None
    torch.testing.assert_close(method.embed(view)["va"]["video"], method.embed(view)["va"]["video"])


def test_how_many_tokens_stay_comes_from_the_tables() -> None:
    method = _build().train()
    kept = method._kept("audio", torch.randn(2, 96))
    assert kept is not None and kept.shape == (2, 4) and int(kept.max()) < 12


def test_published_numbers_of_tokens() -> None:
    with torch.device("meta"):
        method = VATT(VATTConfig()).train()
        clips = {"video": torch.empty(2, 32, 224, 224, 3), "audio": torch.empty(2, 153_600)}
        for stream, (all_tokens, kept_tokens) in {"video": (1568, 784), "audio": (1200, 600)}.items():
            encoder, kept = method.encoder(stream), method._kept(stream, clips[stream])
            assert isinstance(encoder, RawSignalEncoder) and kept is not None
            assert math.prod(encoder.grid(clips[stream])) == encoder.buckets == all_tokens
            assert kept.shape == (2, kept_tokens)


@pytest.mark.parametrize(("model", "video"), [("BBS", 768), ("MBS", 1024), ("LBS", 1024), ("MA", 1024)])
def test_published_models(model: str, video: int) -> None:
    recipe = paper(model)  # type: ignore[arg-type]
    assert isinstance(recipe.config, VATTConfig)
    with torch.device("meta"):
        method = VATT(recipe.config)
    text = method.encoder("text")
    if model == "MA":
        assert method.encoder("audio").blocks is method.encoder("video").blocks is text.blocks  # type: ignore[union-attr]
        assert {method.encoder(stream).width for stream in ("video", "audio", "text")} == {1024}
    else:
        counts = {stream: sum(p.numel() for p in method.encoder(stream).parameters()) for stream in ("audio", "text")}
        assert counts["text"] == 19_038_252
        # Base transformer, patches, AGG, 1200 positions and their norm.
        assert counts["audio"] == 85_056_000 + 129 * 768 + 768 + 1200 * 768 + 2 * 768
        assert method.encoder("video").width == video
    assert not [name for name, _ in method.named_parameters() if "words" in name]  # they are frozen


def test_the_learning_rate_of_the_paper() -> None:
    recipe = paper()
    steps = recipe.steps
    assert steps == 500_000
    rates = [
        recipe.optimizer.lr * schedule_factor(recipe.schedules["main"], step / steps, steps)
        for step in (0, 2_500, 5_000, 252_500, 500_000)
    ]
    assert rates == pytest.approx([0, 5e-5, 1e-4, 7.5e-5, 5e-5])


@pytest.mark.parametrize("changes", [{}, {"symmetric": True}, {"head": "joint"}, AGNOSTIC, {"mean": "global"}])
def test_rows_without_words_teach_nothing_about_words(changes: dict[str, Any]) -> None:
    """Check 6: the term is 0, and so is the gradient of the text encoder."""
    method, view = _build(**changes).train(), _view()
    clip = view["text"]
    view["text"] = _changed(clip, length=torch.zeros_like(clip.length), data=torch.zeros_like(clip.data))
    losses = _losses(method, view)
    assert float(losses["vt"].detach()) == 0 < float(losses["va"].detach())
    (losses["va"] + losses["vt"]).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
        if name.startswith(("encoders.text", "head.text")):
            assert parameter.grad is None or not parameter.grad.any(), name


def test_the_loss_is_the_weighted_mean_of_the_terms() -> None:
    view = _view()
    batch = Batch(views=(view,), rows=torch.arange(6))
    for weights in ((1.0, 1.0), (1.0, 3.0)):
        found = _build(weights=weights).eval().objective(batch, Clock())
        wanted = (weights[0] * found.terms["va"] + weights[1] * found.terms["vt"]) / sum(weights)
        torch.testing.assert_close(found.total, wanted)


@pytest.mark.parametrize("changes", [{}, {"symmetric": True}])
def test_captions_that_are_missing_are_no_candidates(changes: dict[str, Any]) -> None:
    method, view = _build(**changes).eval(), _view()
    text = view["text"]
    there = text.length > 0
    assert not there.all()
    plain = _losses(method, view)["vt"]
    other = text.data.masked_fill(~there[..., None], 9)
    torch.testing.assert_close(_losses(method, {**view, "text": _changed(text, data=other)})["vt"], plain)
    order = torch.tensor([2, 0, 1])
    turned = Clip(text.data[:, order], text.length[:, order], text.span)
    torch.testing.assert_close(_losses(method, {**view, "text": turned})["vt"], plain)
    first = Clip(text.data[:, 0], text.length[:, 0], text.span[:, 0])
    assert not torch.allclose(_losses(method, {**view, "text": first})["vt"], plain)
    one = Clip(text.data[:, :1], text.length[:, :1], text.span[:, :1])
    torch.testing.assert_close(
        _losses(method, {**view, "text": first})["vt"], _losses(method, {**view, "text": one})["vt"]
    )


def test_what_is_absent_is_no_negative_and_the_other_side_of_its_row_still_is() -> None:
    method, view = _build().eval(), _view()
    view.pop("text")
    there = view["audio"].length > 0
    assert not there.all()
    plain = _losses(method, view)["va"]
    noise = _changed(view["audio"], data=view["audio"].data + ~there[:, None])
    torch.testing.assert_close(_losses(method, {**view, "audio": noise})["va"], plain)
    moved = _changed(view["video"], data=view["video"].data + ~there.view(-1, 1, 1, 1, 1))
    assert not torch.allclose(_losses(method, {**view, "video": moved})["va"], plain)
    # Without its picture, too, a silent row might as well not be there.
    blind = {**view, "video": _changed(view["video"], length=view["video"].length * there)}
    less = {name: Clip(clip.data[there], clip.length[there], clip.span[there]) for name, clip in view.items()}
    torch.testing.assert_close(_losses(method, blind)["va"], _losses(method, less)["va"])


def test_a_modality_agnostic_model_has_one_set_of_layers() -> None:
    """Check 8: what is learned from video alone reaches the shared layers, not the projections of the others."""
    method, view = _build(**AGNOSTIC), _view()
    method.encoder("video")(view["video"].data).pooled.square().sum().backward()
    reached = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("transformer.blocks" in name for name in reached)
    assert not [name for name in reached if ".audio." in name or ".text." in name]
    names = [name for name, _ in method.named_parameters() if "transformer" in name]
    assert names and all(name.startswith("encoders.video.") for name in names)


def test_spaces() -> None:
    view = _view(candidates=1)
    view["text"] = Clip(view["text"].data[:, 0], view["text"].length[:, 0], view["text"].span[:, 0])
    found = _build().eval().embed(view)
    assert {space: {s: x.shape[1] for s, x in streams.items()} for space, streams in found.items()} == {
        "va": {"video": 8, "audio": 8},
        "vat": {"video": 6, "text": 6},
    }
    joint = _build(head="joint").eval()
    assert joint.spaces == {"joint": "cosine"} and set(joint.embed(view)["joint"]) == {"video", "audio", "text"}


def test_position_tables_of_other_sizes_are_resampled() -> None:
    method, longer = _build().eval(), _build(frames=8, audio_steps=96).eval()
    tensors = longer.resize(method.state_dict())
    assert {name: x.shape for name, x in tensors.items()} == {name: x.shape for name, x in longer.state_dict().items()}
    longer.load_state_dict(tensors)
    clip = torch.randn(2, 8, 16, 16, 3)
    torch.testing.assert_close(longer.encoder("video")(clip).pooled, method.encoder("video")(clip).pooled)


@pytest.mark.parametrize("changes", [{}, AGNOSTIC])
def test_word_vectors_of_a_file(changes: dict[str, Any]) -> None:
    recipe = override(paper("MA" if changes else "BBS"), [])
    recipe = recipe.model_copy(update={"config": validate(VATTConfig, TINY | changes, "tiny")})
    completed = VATT.complete(recipe, Facts(vocabulary=11, widths={"text": 4})).config
    assert isinstance(completed, VATTConfig) and (completed.vocabulary, completed.word_width) == (11, 4)
    method, vectors = VATT(completed), torch.randn(11, 4)
    method.take_words(vectors)
    assert [name for name, x in method.state_dict().items() if x.shape == (11, 4) and torch.equal(x, vectors)]


@pytest.mark.parametrize("changes", [{}, AGNOSTIC])
def test_an_encoder_is_fine_tuned_alone(changes: dict[str, Any]) -> None:
    """Also one whose layers are stored with another's, and with other lengths and a rate for each layer."""
    method, view = _build(**changes).eval(), _view()
    options = {"base": "vatt", "base_config": validate(VATTConfig, TINY | changes | {"audio_steps": 96}, "tiny")}
    tuned = Supervised(SupervisedConfig(**options, streams=("audio",), classes=("a", "b"), layer_decay=0.5)).eval()
    tuned.begin_with(method.state_dict(), "pretrained")
    heard = view["audio"].length > 0
    wanted = method.encoder("audio")(torch.nn.functional.pad(view["audio"].data, (0, 32)), view["audio"].length)
    longer = Clip(torch.nn.functional.pad(view["audio"].data, (0, 32)), view["audio"].length, view["audio"].span)
    torch.testing.assert_close(tuned.pooled({"audio": longer})[heard], wanted.pooled[heard])
    names = [name for name, _ in tuned.named_parameters()]
    assert not [name for name in names if ".video." in name or ".text." in name]
    rates = {name: group.lr for group in tuned.parameter_groups() for name in group.parameters}
    assert set(rates) == set(names)
    found = {rates[name] for name in names if name.endswith(("agg", "tables.time"))}
    assert found == {0.25} and rates["base.encoders.audio.transformer.norm.weight"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (6, 16)}, "no tubelet .* fits"),
        ({"audio_stem": ((4, 2, 2),)}, "need a spectrogram"),
        ({"audio_steps": 4}, "no audio_patch .* fits"),
        ({"video_stem": ((4, 3),)}, "strides of video_stem"),
        ({"mels": 8, "audio_patch": (8, 4), "audio_stem": ((4, 2, 8),)}, "strides of audio_stem"),
        ({"weights": (0.0, 0.0)}, "one of them is above"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _build(**changes)


def test_the_released_code_means_over_each_device_and_base_and_small_over_all() -> None:
    configs = [recipe.config for recipe in (paper(), base(), small())]
    assert [config.mean for config in configs if isinstance(config, VATTConfig)] == ["local", "global", "global"]


def test_several_captions_round_a_window_come_from_real_recordings(tmp_path: Path) -> None:
    """Subtitles beside a recording, seen as the paper sees them: the drawn caption and the four nearest to it."""
    manifest = write_toyworld(tmp_path / "world", recordings=2, seed=0, workers=1, progress=False)
    rows = Rows.open(manifest)
    for row in (rows.row(0), rows.row(1)):
        lines = [f"{n}\n00:00:0{n}.000 --> 00:00:0{n}.800\nword{n} and more\n" for n in range(3)]
        Path(row.path).with_suffix(".srt").write_text("\n".join(lines))
    source = tmp_path / "source.csv"
    source.write_text("path\n" + "".join(f"{rows.row(n).path}\n" for n in range(2)))
    rows = Rows.open(source)
    changes = ["config.audio_steps=4800", "config.size=[32,32]", "config.frames=8", "tokenizer={kind: words}"]
    recipe = override(paper("BBS"), [*changes, "train.views.0.video.transform.size=32"])
    recipe, tokenizer = sources.complete(recipe, rows)
    loader = Loader(rows, recipe.train, recipe.batch.model_copy(update={"rows": 2}), tokenizer=tokenizer, workers=0)
    batch = next(loader.epoch(0))
    text, video, audio = (batch.views[0][stream] for stream in ("text", "video", "audio"))
    assert text.data.shape == (2, 5, 16) and text.length.tolist() == [[3, 3, 3, 0, 0]] * 2
    assert not (text.data == 1).any() and not (text.data == 2).any()  # no marks of begin and end
    middle = text.span[:, :3].mean(dim=2)
    distance = (middle - middle[:, :1]).abs()
    assert (distance.diff(dim=1) >= 0).all()
    assert video.data.shape == (2, 32, 32, 32, 3) and float(video.data.min()) >= -1 and float(video.data.max()) <= 1
    assert audio.data.shape == (2, 153_600)
