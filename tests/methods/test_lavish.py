"""LAVISH: the specification's checks, at small sizes and, for counts, at the published ones."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from triptych.batch import Batch, Clip, View
from triptych.encoders.vit import ViTConfig
from triptych.errors import UsageError
from triptych.method import Clock
from triptych.methods import lava
from triptych.methods.lavish import (
    IMAGES,
    LAVISH,
    ImageBackbone,
    ImageBackboneConfig,
    LAVISHConfig,
    SwinSize,
    ViTSize,
    at_seconds,
    base,
    look,
    paper,
    upon,
)
from triptych.recipe import override, validate

SWIN = SwinSize(size=16, patch=4, width=8, depths=(1, 2), heads=(2, 4), window=2)
VIT = ViTSize(size=16, patch=4, transformer=ViTConfig(width=8, layers=2, heads=2, pool="class", resampling="flat"))
CLASSES = ("bark", "bell", "background")
SIDES = {"swin": (16, 16), "vit": (9, 14)}
"""Steps and mels of a spectrogram: Swin's must be as large as its pictures."""


def _method(size: SwinSize | ViTSize = SWIN, awake: bool = True, **options: object) -> LAVISH:
    torch.manual_seed(0)
    backbone = ImageBackboneConfig(size=size, shared=bool(options.pop("shared", True)))
    config = validate(
        LAVISHConfig,
        {"base": IMAGES, "base_config": backbone, "classes": CLASSES, "hidden": 8, "reduction": 2, **options},
        "config",
    )
    method = LAVISH(config)
    with torch.no_grad():
        for parameter in method.base.parameters():  # Swin's blocks begin as identities
            parameter.add_(0.1 * torch.randn_like(parameter))
        if awake:
            for name, parameter in method.named_parameters():
                if name.endswith("gate"):
                    parameter.fill_(0.5)
    return method.eval()


def _view(kind: str = "swin", rows: int = 5, seed: int = 1) -> View:
    generator = torch.Generator().manual_seed(seed)
    span, ones = torch.zeros(rows, 2), torch.ones(rows, dtype=torch.long)
    steps, mels = SIDES[kind]
    video = torch.randn(rows, 1, 16, 16, 3, generator=generator)
    audio = torch.randn(rows, steps, mels, generator=generator)
    return {"video": Clip(video, ones, span), "audio": Clip(audio, ones * steps, span)}


def _without(view: View, stream: str, rows: list[int]) -> View:
    clip = view[stream]
    length = clip.length.clone()
    length[rows] = 0
    return {**view, stream: Clip(clip.data, length, clip.span)}


def _batch(view: View, labels: list[list[int]]) -> Batch:
    """Return rows as windows of a second of as many recordings as there are lists of labels."""
    count = len(labels)
    cut = {
        s: Clip(*(x.unflatten(0, (count, -1)) for x in (clip.data, clip.length, clip.span))) for s, clip in view.items()
    }
    start = torch.arange(cut["video"].length.shape[1], dtype=torch.float32).expand(count, -1)
    drawn = {"windows": torch.stack([start, start + 1], dim=2), "start": torch.zeros(count)}
    return Batch((cut,), torch.arange(count), drawn, {"segments": torch.tensor(labels)})


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize(
    ("size", "adapters", "head"),
    [
        (SwinSize(), 8_447_808, 1_588_253),
        (ViTSize(), 13_394_112, 1_063_965),
        (
            ViTSize(transformer=ViTConfig(width=768, layers=12, heads=12, pool="class", resampling="flat")),
            3_843_168,
            801_821,
        ),
    ],
    ids=["Swin-V2-L", "ViT-L", "ViT-B"],
)
def test_trained_values_of_the_published_models(size: SwinSize | ViTSize, adapters: int, head: int) -> None:
    classes = tuple(map(str, range(29)))
    with torch.device("meta"):
        method = LAVISH(LAVISHConfig(base_config=ImageBackboneConfig(size=size), classes=classes))
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in method.named_children()}
    assert (counts["adapters"], counts["head"]) == (adapters, head)
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == adapters + head
    first, second = method.parameter_groups()
    assert {*first.parameters, *second.parameters} == set(trained) and second.lr == pytest.approx(4e-6 / 5e-5)


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("size", [SWIN, VIT], ids=["swin", "vit"])
def test_with_gates_at_zero_each_stream_is_that_of_the_frozen_backbone(size: SwinSize | ViTSize) -> None:
    method, view = _method(size, awake=False), _view(size.kind)
    with torch.no_grad():
        pooled = method.features(view)["video+audio"].pooled
        frozen = [method.encoder(stream)(view[stream].data).pooled for stream in ("video", "audio")]
        torch.testing.assert_close(pooled, torch.cat(frozen, dim=1), atol=1e-6, rtol=0)
        other = {**view, "audio": _view(size.kind, seed=2)["audio"]}
        half = pooled.shape[1] // 2
        torch.testing.assert_close(method.features(other)["video+audio"].pooled[:, :half], pooled[:, :half])
    method = _method(size)
    with torch.no_grad():
        awake = method.features(view)["video+audio"].pooled
        changed = method.features(other)["video+audio"].pooled
    assert not torch.allclose(awake, pooled, atol=1e-3)
    assert not torch.allclose(awake[:, :half], changed[:, :half], atol=1e-5)  # the picture hears the sound


def test_tokens_of_both_streams_may_differ_in_number() -> None:
    method, view = _method(VIT), _view("vit")
    shapes = []
    for stream, number in (("video", 16 + 1), ("audio", 2 * 3 + 1)):  # what fills no patch is left out
        tokens, _ = method.encoder(stream).enter(view[stream].data)  # type: ignore[operator]
        shapes.append(tokens.shape[1] == number)
    assert all(shapes)
    scores = method.predict(view)["events"]
    assert scores.shape == (5, 1, 3) and scores.isfinite().all()


def test_positions_of_a_spectrogram_are_read_along_the_flat_sequence() -> None:
    method, view = _method(VIT), _view("vit")
    picture = method.encoder("video")
    tokens, _ = method.encoder("audio").enter(view["audio"].data)  # type: ignore[operator]
    table = picture.positions.table  # type: ignore[union-attr]
    assert isinstance(table, Tensor)
    rows = functional.interpolate(table.T[None], 7, mode="linear")[0].T
    assert isinstance(picture.class_token, nn.Parameter)
    first = picture.class_token + rows[:1]  # the class token's row is moved like the others
    torch.testing.assert_close(tokens[:, :1], first.expand(5, 1, -1))


def test_one_backbone_or_two() -> None:
    shared, apart = _method(), _method(shared=False)
    assert shared.encoder("audio").pictures is shared.encoder("video")
    assert apart.encoder("audio").pictures is not apart.encoder("video")
    count = [sum(p.numel() for p in method.base.parameters()) for method in (shared, apart)]
    assert count[1] == 2 * count[0]
    assert apart.predict(_view())["events"].isfinite().all()


def test_what_lacks_a_stream_reads_nothing_of_it() -> None:
    method, view = _method(), _view()
    with torch.no_grad():
        whole, alone = method.scores(view), method.scores({"video": view["video"]})
        silent = method.scores(_without(view, "audio", [1, 3]))
        torch.testing.assert_close(silent[[0, 2, 4]], whole[[0, 2, 4]])
        torch.testing.assert_close(silent[[1, 3]], alone[[1, 3]])
        assert not torch.allclose(alone, whole, atol=1e-4)
        blind = method.scores(_without(view, "video", [0, 1, 2, 3, 4]))
        torch.testing.assert_close(blind, method.scores({"audio": view["audio"]}))
        zeros = {**view, "audio": Clip(0 * view["audio"].data, view["audio"].length, view["audio"].span)}
        probabilities = method.scores(zeros).softmax(dim=1)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(5))


# ---------------------------------------------------------------- objective


def _loss(method: LAVISH, batch: Batch) -> float:
    return float(method.objective(batch, Clock()).total.detach())


def test_the_mean_is_over_the_seconds_that_have_a_label() -> None:
    method, view = _method(), _view(rows=6)
    with torch.no_grad():
        probabilities = method.scores(view).softmax(dim=1)
    wanted = functional.binary_cross_entropy(
        probabilities[[0, 1, 3, 4]], functional.one_hot(torch.tensor([2, 0, 1, 1]), 3).float()
    )
    # Two recordings of three windows: the last windows lie in seconds without a label.
    assert _loss(method, _batch(view, [[2, 0], [1, 1]])) == pytest.approx(float(wanted), abs=1e-6)
    assert _loss(method, _batch(view, [[2, 0, -100], [1, 1, -100]])) == pytest.approx(float(wanted), abs=1e-6)
    entropy = _method(loss="cross_entropy")
    found = entropy.objective(_batch(view, [[2, 0], [1, 1]]), Clock())
    assert set(found.terms) == {"cross_entropy"}
    wanted = functional.cross_entropy(method.scores(view)[[0, 1, 3, 4]], torch.tensor([2, 0, 1, 1]))
    assert float(found.total.detach()) == pytest.approx(float(wanted.detach()), abs=1e-6)


def test_windows_that_a_row_does_not_have_change_nothing() -> None:
    method, view = _method().train(), _view(rows=4)
    more = {
        s: Clip(torch.cat([c.data, 0 * c.data[:2]]), torch.cat([c.length, 0 * c.length[:2]]), torch.zeros(6, 2))
        for s, c in view.items()
    }
    order = [0, 1, 4, 2, 3, 5]  # two recordings of two windows, padded to three
    padded = {s: Clip(c.data[order], c.length[order], c.span[order]) for s, c in more.items()}
    batch = _batch(padded, [[0, 1], [2, 1]])
    batch.drawn["windows"][:, 2] = 0.0  # as the loader pads them
    assert _loss(method, batch) == pytest.approx(_loss(_method().train(), _batch(view, [[0, 1], [2, 1]])), abs=1e-6)


def test_a_window_has_the_label_of_the_second_in_its_middle() -> None:
    labels = torch.tensor([[5, 6, 7]])
    windows = torch.tensor([[[0.0, 1.0], [0.6, 1.7], [1.4, 2.5], [1.9, 3.0], [2.6, 3.6], [-1.0, 0.5]]])
    assert at_seconds(labels, windows).tolist() == [[5, 6, 6, 7, -100, -100]]
    starts = torch.linspace(0, 8.9, 10)  # of the released code, over ten seconds
    ten = torch.stack([starts, starts + 1.1], dim=1)[None]
    assert at_seconds(torch.arange(10)[None], ten).tolist() == [list(range(10))]


def test_only_adapters_and_head_learn_and_the_base_stays_as_it_is() -> None:
    method = _method(init="zeros").train()
    before = {name: x.clone() for name, x in method.base.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    batch, losses = _batch(_view(rows=8), [[0, 1, 2, 0], [1, 1, 2, 0]]), []
    for _ in range(20):
        optimizer.zero_grad()
        total = method.objective(batch, Clock()).total
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is None for p in method.base.parameters())
    assert all(torch.equal(x, before[name]) for name, x in method.base.state_dict().items())
    adapter = method.adapters["video"][1].feed  # type: ignore[index]
    tokens = adapter.tokens.detach()
    assert tokens.any() and float((tokens[0] - tokens[1]).abs().max()) < 1e-6  # those that begin alike stay alike


# ---------------------------------------------------------------- bases


def _small_lava() -> LAVISHConfig:
    recipe = override(lava.small(), ["config.width=16", "config.layers=2", "config.heads=2"])
    config = upon("lava", recipe.config, recipe.test).config
    assert isinstance(config, LAVISHConfig)
    return config.model_copy(update={"classes": CLASSES, "reduction": 2})


def test_a_pretrained_method_is_a_base_too() -> None:
    config = _small_lava()
    torch.manual_seed(0)
    method = LAVISH(config).train()
    donor = lava.LAVA(config.base_config)
    method.begin_with(donor.state_dict(), "donor")
    view: View = {
        "video": Clip(torch.randn(4, 8, 48, 48, 3), torch.full((4,), 8), torch.zeros(4, 2)),
        "audio": Clip(torch.randn(4, 96, 64), torch.full((4,), 96), torch.zeros(4, 2)),
    }
    means = {name: x.clone() for name, x in method.base.named_buffers()}
    _loss(method, _batch(view, [[0, 1], [2, 2]]))
    assert means and all(torch.equal(x, means[name]) for name, x in method.base.named_buffers())
    with torch.no_grad():
        found, wanted = method.eval().features(view)["video+audio"].pooled, donor.eval().features(view)
    joined = torch.cat([wanted["video"].pooled, wanted["audio"].pooled], dim=1)
    torch.testing.assert_close(found, joined, atol=1e-5, rtol=1e-4)


def test_bases_that_cannot_be_walked_are_refused() -> None:
    config = _small_lava()
    post = config.base_config.model_copy(update={"norm": "post"})
    with pytest.raises(UsageError, match="pre-norm"):
        LAVISH(config.model_copy(update={"base_config": post}))
    with pytest.raises(UsageError, match="3 groups do not divide a width of 16"):
        LAVISH(config.model_copy(update={"groups": 3}))
    with pytest.raises(UsageError, match="5 depths and 2 numbers of heads"):
        validate(SwinSize, {"depths": (1,) * 5, "heads": (1, 1)}, "size")
    with pytest.raises(UsageError, match="either order"):
        validate(LAVISHConfig, {"streams": ("video",)}, "config")
    with pytest.raises(UsageError, match="grid of windows"):
        batch = _batch(_view(rows=2), [[0], [1]])
        _method().objective(Batch(batch.views, batch.rows, {}, batch.targets), Clock())
    silent = lava.small().test.model_copy(update={"views": ({"video": lava.small().test.views[0]["video"]},)})
    with pytest.raises(UsageError, match="lava reads no audio"):
        upon("lava", lava.small().config, silent)


def test_recipes_see_what_the_release_saw() -> None:
    view = paper().train.views[0]
    assert paper() != base() and paper().test == paper().train
    sound = view["audio"].transform
    assert sound.kind == "audio" and (sound.mels, sound.steps) == (192, 192)
    assert sound.std == pytest.approx(7.4159560202)
    other = look(VIT).views[0]["audio"].transform
    assert other.kind == "audio" and (other.mels, other.steps, other.hop) == (128, 102, 0.01)


def test_an_image_backbone_is_tuned_as_released() -> None:
    backbone = ImageBackboneConfig(size=VIT)
    made = upon(IMAGES, backbone, look(VIT))
    assert made.config.model_dump() == paper().config.model_dump() | {
        "base_config": backbone.model_dump(),
        "streams": ("audio", "video"),
    }
    assert upon(IMAGES, ImageBackboneConfig(), look(SWIN)) == paper()


def test_an_image_backbone_is_a_method() -> None:
    method = ImageBackbone(ImageBackboneConfig(size=SWIN))
    found = method.features(_view())
    assert set(found) == {"video", "audio"} and found["audio"].grid == (1, 2, 2)
