"""Fine-tunings with labels as papers ran them, by method: what ``triptych finetune --recipe NAME`` takes.

Each is a function from the configuration of a pretrained model to the recipe of its head. Where a paper does not say a
number, it is marked; what it did and is not done here is said in docs/finetuning.md.
"""

import importlib
from collections.abc import Callable
from typing import Any

from triptych import catalog
from triptych.methods.supervised import SupervisedConfig
from triptych.recipe import (
    Aligned,
    AudioTransform,
    BatchSpec,
    Config,
    GradientSpec,
    Grid,
    Mixing,
    OptimizerSpec,
    Recipe,
    ScheduleSpec,
    StreamSpec,
    VideoTransform,
    Viewing,
)


def _head(method: str, config: Config, stream: str, **options: Any) -> SupervisedConfig:
    return SupervisedConfig(base=method, base_config=config, streams=(stream,), **options)


def _spec(method: str, stream: str) -> StreamSpec:
    """Return how the published pretraining of a method looks at a stream in tests."""
    recipe: Recipe = importlib.import_module(catalog.CATALOG[method].target.partition(":")[0]).paper()
    return recipe.test.views[0][stream]


def _looks(
    stream: str, train: StreamSpec, test: StreamSpec, seconds: float, clips: int, crops: int = 1
) -> dict[str, Viewing]:
    """Return one window at a random place in training, and evenly spaced ones (and crops of each) in tests."""
    return {
        "train": Viewing(windows=Aligned(seconds=seconds), views=({stream: train},)),
        "test": Viewing(
            windows=Grid.model_validate({"seconds": seconds, "count": clips, "crops": crops}), views=({stream: test},)
        ),
    }


def _with(spec: StreamSpec, **changes: Any) -> StreamSpec:
    return spec.model_copy(update={"transform": spec.transform.model_copy(update=changes)})


# ---------------------------------------------------------------- VATT (vatt, sections 6 and 7)


def _vatt_video(config: Config) -> Recipe:
    """Kinetics and Moments in Time; the batch is from memory."""
    spec = _spec("vatt", "video")
    assert isinstance(spec.transform, VideoTransform) and spec.seconds is not None
    train = _with(spec, crop="random_resized", area=(0.08, 1.0), aspect=(0.5, 2.0), flip=0.5)
    return Recipe(
        method="supervised",
        config=_head("vatt", config, "video", smoothing=0.1, head_dropout=0.5, head_clipped=False),
        **_looks("video", train, spec, spec.seconds, clips=4, crops=3),
        batch=BatchSpec(rows=64),
        steps=100_000,
        optimizer=OptimizerSpec(name="sgd", lr=0.005, momentum=0.9),
        schedules={"main": ScheduleSpec(shape="cosine", warmup=2500 / 100_000)},
        gradients=GradientSpec(clip_norm=0.75),
    )


def _vatt_audioset(config: Config) -> Recipe:
    """AudioSet; learning rate, batch and steps are from memory, the length of the warm-up is not known."""
    spec = _spec("vatt", "audio")
    assert isinstance(spec.transform, AudioTransform) and spec.seconds is not None
    options = {
        "task": "multilabel",
        "prior_bias": True,
        "head_clipped": False,
        "over_classes": "sum",
        "weighting": "inverse_frequency",
    }
    return Recipe(
        method="supervised",
        config=_head("vatt", config, "audio", **options),
        **_looks("audio", _with(spec, peak_noise=0.01), spec, spec.seconds, clips=4),
        batch=BatchSpec(rows=1024),
        steps=50_000,
        mixing=Mixing(mixup=5.0),
        optimizer=OptimizerSpec(name="sgd", lr=0.2, momentum=0.9),
        schedules={"main": ScheduleSpec(shape="cosine", warmup=2500 / 50_000)},
        gradients=GradientSpec(clip_norm=0.75),
    )


# ---------------------------------------------------------------- XDC (xdc, sections 6 and 7)


def _xdc(lr: float, clips: int) -> Callable[[Config], Recipe]:
    def build(config: Config) -> Recipe:
        """UCF101 and HMDB51, 32 frames; VMZ's values for R(2+1)D-34, which its authors' family shares."""
        spec = _spec("xdc", "video")
        train = _with(spec, crop="random", flip=0.5)
        return Recipe(
            method="supervised",
            config=_head("xdc", config, "video", head_std=0.01),
            **_looks("video", train, spec, 32 / 30, clips=10),
            batch=BatchSpec(rows=32),
            epochs=8,
            epoch_rows=clips,
            optimizer=OptimizerSpec(name="sgd", lr=lr, momentum=0.9, weight_decay=0.005),
            schedules={"main": ScheduleSpec(shape="steps", milestones=(0.25, 0.5, 0.75))},
        )

    return build


# ---------------------------------------------------------------- XKD (xkd, section 7)


def _xkd_video(lr: float, decay: float, warmup: int, mixing: Mixing | None, **head: Any) -> Callable[[Config], Recipe]:
    def build(config: Config) -> Recipe:
        """Kinetics-400, UCF101, HMDB51 at 224 pixels; the batch is not known (of the linear evaluation: 256)."""
        spec = _spec("xkd", "video")
        assert spec.seconds is not None
        test = _with(spec, size=224)
        options = {"head_dropout": 0.5, "smoothing": 0.1, "layer_decay": decay} | head
        return Recipe(
            method="supervised",
            config=_head("xkd", config, "video", **options),
            **_looks("video", _with(test, crop="random_resized", flip=0.5), test, spec.seconds, clips=3, crops=3),
            batch=BatchSpec(rows=256 if head.get("frozen") else 64),
            epochs=100,
            mixing=mixing,
            optimizer=OptimizerSpec(lr=lr, weight_decay=0.0 if head.get("frozen") else 0.05),
            schedules={"main": ScheduleSpec(shape="cosine", warmup=warmup / 100)},
        )

    return build


def _xkd_sound(lr: float, epochs: int, clips: int, shape: str, **head: Any) -> Callable[[Config], Recipe]:
    def build(config: Config) -> Recipe:
        """ESC-50 and FSD50K; batch and warm-up are not known."""
        spec = _spec("xkd", "audio")
        assert spec.seconds is not None
        return Recipe(
            method="supervised",
            config=_head("xkd", config, "audio", **head),
            **_looks("audio", _with(spec, volume=0.1), spec, spec.seconds, clips=clips),
            batch=BatchSpec(rows=64),
            epochs=epochs,
            optimizer=OptimizerSpec(lr=lr, weight_decay=0.0 if head.get("frozen") else 0.005),
            schedules={"main": ScheduleSpec.model_validate({"shape": shape})},
        )

    return build


_UNTRAINED = {"frozen": True, "head_dropout": 0.0, "smoothing": 0.0}
_TAGS: dict[str, Any] = {"task": "multilabel"}

FINETUNING: dict[str, dict[str, Callable[[Config], Recipe]]] = {
    "vatt": {"audioset": _vatt_audioset, "kinetics": _vatt_video},
    "xdc": {"hmdb51": _xdc(2e-4, 40_000), "ucf101": _xdc(1e-4, 100_000)},
    "xkd": {
        "esc50": _xkd_sound(1e-4, 100, 3, "cosine", layer_decay=0.65, head_norm="unit", head_dropout=0.5),
        "fsd50k": _xkd_sound(1e-4, 30, 8, "cosine", layer_decay=0.65, **_TAGS),
        "fsd50k-linear": _xkd_sound(1e-3, 50, 8, "constant", frozen=True, **_TAGS),
        "hmdb51": _xkd_video(1e-4, 0.75, 20, Mixing(mixup=1.0, cutmix=1.0)),
        "kinetics": _xkd_video(5e-4, 0.45, 5, Mixing(mixup=0.6, cutmix=0.5)),
        "kinetics-linear": _xkd_video(0.01, 1.0, 0, None, **_UNTRAINED),
        "ucf101": _xkd_video(5e-4, 0.45, 5, Mixing(mixup=0.6, cutmix=0.5)),
    },
}
