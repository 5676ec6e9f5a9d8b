"""Fine-tuning: a pretrained method, a head and a task loss; and the supervised upper line of every table.

No paper. ``Finetuned`` is the base of all downstream tasks: it builds the pretrained method again, keeps what its
features run through, and says which of it is trained, how fast and from which step on. ``Supervised`` puts a linear
layer on the pooled features and learns one label or several a row. From fresh weights it is the upper line: what the
encoders of a method could learn from the same recordings with labels.
"""

import importlib
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.nn import functional

from triptych import catalog, distributed
from triptych.batch import Batch, Stream, View
from triptych.encoders.encoder import Encoder, Features
from triptych.errors import TriptychError, UsageError
from triptych.layers.batch_norm import BatchNorm
from triptych.losses.classification import (
    binary_cross_entropy,
    inverse_frequency,
    right,
    smooth,
    soft_cross_entropy,
    spread,
)
from triptych.method import Clock, Facts, Group, Losses, Method
from triptych.recipe import (
    Aligned,
    BatchSpec,
    Config,
    GradientSpec,
    Grid,
    OptimizerSpec,
    Recipe,
    ScheduleSpec,
    StreamSpec,
    VideoTransform,
    Viewing,
    ViewSpec,
    validate,
)


class FinetunedConfig(Config):
    """What every downstream task says of the method below it."""

    base: str = "lava"
    """Method whose features are read."""
    base_config: SerializeAsAny[Config]
    """Its configuration: the pretrained one, or that with another drop path, last norm, clip length or frame size."""
    streams: tuple[str, ...] = Field(("video",), min_length=1)
    """Features that are read, side by side; `video+audio` is one that the method itself makes of both."""
    frozen: bool = False
    """The base is not trained and stays in evaluation mode (linear evaluation)."""
    frozen_until: int = Field(0, ge=0)
    """Step before which only the head is trained; the base is in training mode all the same (AV-HuBERT)."""
    base_mode: Literal["train", "eval"] = "train"
    """`eval`: no dropout and fixed statistics of batch norms in the base, which is trained nevertheless (Everything at
    Once)."""
    base_lr: float = Field(1.0, gt=0)
    """Factor on the learning rate for the base."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor on the learning rate from each block to the one below it, and to what lies below the first
    (vision-transformers-common, section 7)."""

    @model_validator(mode="before")
    @classmethod
    def _validate_base(cls, data: object) -> object:
        if not isinstance(data, dict) or not isinstance(data.get("base_config"), dict):
            return data
        kind = catalog.resolve(str(data.get("base", "lava"))).config_class
        return {**data, "base_config": validate(kind, data["base_config"], "base_config")}


class Finetuned(Method):
    """A pretrained method under a head. Subclasses build a head and answer ``objective`` and ``predict``."""

    options: FinetunedConfig
    base: Method
    """The method below, without what the features do not run through; its tensors keep their names."""

    def __init__(self, config: FinetunedConfig) -> None:
        """Build the base with fresh weights; ``begin_with`` puts pretrained ones in."""
        super().__init__(config)
        self.options = config
        self.base = catalog.resolve(config.base)(config.base_config)
        kept = [module for stream in config.streams for module in self.base.backbone(stream)]
        self._widths = {stream: self.base.width(stream) for stream in config.streams}
        _keep_only(self.base, set(kept))
        self.base.requires_grad_(not config.frozen)
        self._backbone = tuple(dict.fromkeys(kept))

    @classmethod
    def complete(cls, recipe: Recipe, facts: Facts) -> Recipe:
        """Take what the base takes from the data; a vocabulary only if it reads text, for else it is the head's."""
        assert isinstance(recipe.config, FinetunedConfig)
        if "text" not in "+".join(recipe.config.streams).split("+"):
            facts = replace(facts, vocabulary=None)
        base = catalog.resolve(recipe.config.base)
        inner = base.complete(recipe.model_copy(update={"config": recipe.config.base_config}), facts).config
        return recipe.model_copy(update={"config": recipe.config.model_copy(update={"base_config": inner})})

    def begin_with(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Put pretrained weights into the base.

        Args:
            tensors: Of the pretrained method, by all names of its ``state_dict``; position tables of other sizes are
                made to fit by the method, if it can.
            source: Where they come from, for the message.

        Raises:
            TriptychError: If one is missing or of another shape; it names the tensor.
        """
        resized = self.base.resize(tensors)
        state = self.base.state_dict(keep_vars=True)
        for name, tensor in state.items():
            if name not in resized:
                raise TriptychError(f"{source}: the tensor '{name}' is missing; the base's configuration differs.")
            if resized[name].shape != tensor.shape:
                there, here = tuple(resized[name].shape), tuple(tensor.shape)
                raise TriptychError(f"{source}: the tensor '{name}' has the shape {there}, the base wants {here}.")
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(resized[name])

    def train(self, mode: bool = True) -> "Finetuned":
        """Set the mode; a frozen base stays in evaluation mode, one that was a teacher does not stay a teacher."""
        super().train(mode)
        trains = mode and not self.options.frozen and self.options.base_mode == "train"
        for module in self._backbone:
            module.train(trains)
        return self

    def read(self, view: View, clock: Clock | None = None, only: Stream | None = None) -> dict[str, Features]:
        """Return the base's features of the wanted streams that are there.

        Args:
            view: Clips; other streams than those of the configuration do not count.
            clock: In training: while the base is frozen, no gradient is kept for it.
            only: The one feature that is asked for; all where None.
        """
        wanted = (only or "+".join(self.options.streams)).split("+")
        frozen = self.options.frozen or (clock is not None and clock.step < self.options.frozen_until)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            clips = {stream: clip for stream, clip in view.items() if stream in wanted}
            return self.base.features(clips) if only is None else {only: self.base.feature(clips, only)}

    def pooled(self, view: View, clock: Clock | None = None) -> Float[Tensor, "batch width"]:
        """Return the pooled features of all streams side by side, zeros where a row does not have one.

        Where features of several streams are wanted and only some of these are there, the base's features of those
        count, if it has them.
        """
        some = next(iter(view.values())).length
        parts = []
        for stream in self.options.streams:
            there = {name: view[name] for name in stream.split("+") if name in view}
            whole = len(there) == len(set(stream.split("+")))
            found = self.read(there, clock, stream if whole else None) if there else {}
            if not found:
                parts.append(torch.zeros(len(some), self._widths[stream], device=some.device))
                continue
            name = max(found, key=lambda name: name.count("+"))
            parts.append(found[name].pooled * self._present(view, name)[:, None])
        return torch.cat(parts, dim=1)

    def present(self, view: View) -> Tensor:
        """Return the rows that have any of the streams."""
        return self._present(view, "+".join(self.options.streams))

    def _present(self, view: View, streams: str) -> Tensor:
        clips = [view[stream] for stream in dict.fromkeys(streams.split("+")) if stream in view]
        return torch.stack([clip.present for clip in clips]).any(dim=0)

    @property
    def width(self) -> int:  # type: ignore[override]
        """Width of ``pooled``."""
        return sum(self._widths.values())

    def encoder(self, stream: Stream) -> Encoder:
        """Return the base's encoder of a stream."""
        return self.base.encoder(stream)

    def features(self, view: View) -> dict[str, Features]:
        """Return the base's features."""
        return self.read(view)

    def parameter_groups(self) -> list[Group]:
        """Return the head's group, then those of the base, from the last layer to the first."""
        base = {id(parameter) for parameter in self.base.parameters()}
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        groups = [self.head_group(tuple(name for name, p in trained.items() if id(p) not in base))]
        below = self._depths()
        for depth in sorted(set(below.values())):
            names = [name for name, p in trained.items() if id(p) in base and below[id(p)] == depth]
            rate = self.options.base_lr * self.options.layer_decay**depth
            # Positions and class tokens are not decayed in fine-tuning, as biases and norms are not (MAE, XKD).
            weights = tuple(name for name in names if name.endswith("weight"))
            others = tuple(name for name in names if not name.endswith("weight"))
            shared = {"lr": rate, "frozen_until": self.options.frozen_until}
            groups += [Group(weights, **shared), Group(others, decay="none", **shared)]  # type: ignore[arg-type]
        return [group for group in groups if group.parameters]

    def head_group(self, names: tuple[str, ...]) -> Group:
        """Return the group of the parameters outside the base."""
        return Group(names)

    def _depths(self) -> dict[int, int]:
        """Return how many layers below the head each parameter of the base lies; 0 for all without layer decay."""
        depths = {id(parameter): 0 for parameter in self.base.parameters()}
        if self.options.layer_decay == 1:
            return depths
        for module in self._backbone:
            blocks = list(getattr(module, "blocks", ()))
            if not blocks:
                raise UsageError(
                    f"layer_decay needs blocks; {type(module).__name__} of {self.options.base} has none: leave it at 1."
                )
            depths |= {id(parameter): len(blocks) + 1 for parameter in module.parameters()}
            for number, block in enumerate(blocks):
                depths |= {id(parameter): len(blocks) - number for parameter in block.parameters()}
            for name in getattr(module, "last", ()):
                if hasattr(module, name.split(".")[0]):
                    depths |= {id(parameter): 0 for parameter in module.get_submodule(name).parameters()}
        return depths


def _keep_only(module: nn.Module, kept: Collection[nn.Module]) -> None:
    """Remove the submodules and parameters that neither are, hold, nor belong to one of ``kept``."""
    for name in list(module._parameters):
        del module._parameters[name]
    for name, child in list(module._modules.items()):
        if child is None or child in kept:
            continue
        if any(inner in kept for inner in child.modules()):
            _keep_only(child, kept)
        else:
            del module._modules[name]


class SupervisedConfig(FinetunedConfig):
    """A linear head, what it learns, and how. Defaults are those of the upper line."""

    label: str = "kind"
    """Column of the labels."""
    classes: tuple[str, ...] = ()
    """Names of the classes; filled in from the data."""
    task: Literal["classes", "multilabel"] = "classes"
    """One label a row by softmax cross entropy, or any number by the sigmoid cross entropy of each class."""
    head_norm: Literal["none", "layer", "batch", "unit"] = "none"
    """Before the linear layer: layer norm (MAE's `fc_norm`), batch norm without weights (linear probes), or each row
    divided by its length (XKD on ESC-50)."""
    head_dropout: float = Field(0.0, ge=0, lt=1)
    """Before the linear layer (0.5: VATT, XKD)."""
    head_std: float | None = Field(None, ge=0)
    """Deviation of the first weights, biases 0 (0.01: convolutional networks; 2e-5: MAE); PyTorch's own where None."""
    prior_bias: bool = False
    """Biases begin at -ln(classes - 1), so that no class is likely at first (VATT on AudioSet)."""
    head_clipped: bool = True
    """Whether the head's gradient counts in, and is cut by, the recipe's `clip_norm` (not in VATT)."""
    smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing: share of a label that is spread evenly over all classes (over yes and no, with several)."""
    over_classes: Literal["mean", "sum"] = "mean"
    """Of `multilabel`: how the classes' cross entropies become one (`sum`: VATT)."""
    weighting: Literal["none", "inverse_frequency"] = "none"
    """Weight of a row: 1, or the mean over its classes of 1 / count of the class in the batch (VATT on AudioSet)."""


class Supervised(Finetuned):
    """A linear layer on the pooled features of a method."""

    config_class: ClassVar[type[Config]] = SupervisedConfig
    options: SupervisedConfig

    def __init__(self, config: SupervisedConfig) -> None:
        """Build the base with fresh weights, and the head."""
        super().__init__(config)
        self.norm: nn.Module = nn.Identity()
        if config.head_norm == "layer":
            self.norm = nn.LayerNorm(self.width, eps=1e-6)
        elif config.head_norm == "batch":
            self.norm = BatchNorm(self.width, eps=1e-6).requires_grad_(False)
        self.dropout = nn.Dropout(config.head_dropout)
        self.head = nn.Linear(self.width, max(len(config.classes), 2))
        if config.head_std is not None:
            nn.init.trunc_normal_(self.head.weight, std=config.head_std)
            nn.init.zeros_(self.head.bias)
        if config.prior_bias:
            nn.init.constant_(self.head.bias, -math.log(max(self.head.out_features - 1, 1)))

    @classmethod
    def complete(cls, recipe: Recipe, facts: Facts) -> Recipe:
        """Take the classes, and what the base takes, from the data."""
        recipe = super().complete(recipe, facts)
        assert isinstance(recipe.config, SupervisedConfig)
        classes = facts.classes or recipe.config.classes
        return recipe.model_copy(update={"config": recipe.config.model_copy(update={"classes": classes})})

    def objective(self, batch: Batch, clock: Clock) -> Losses:
        """Cross entropy over the rows that have a label and any of the streams."""
        view, options = batch.views[0], self.options
        scores = self._classify(view, clock)
        targets, known = spread(batch.targets[options.label], self.head.out_features)
        there = known & self.present(view)
        several = options.task == "multilabel"
        wanted = smooth(targets, options.smoothing, several) if options.smoothing else targets
        if several:
            parts = binary_cross_entropy(scores, wanted)
            each = parts.sum(dim=1) if options.over_classes == "sum" else parts.mean(dim=1)
        else:
            each = soft_cross_entropy(scores, wanted)
        if options.weighting == "inverse_frequency":
            counts = distributed.average((targets * there[:, None]).sum(dim=0)) * distributed.world_size()
            each = each * inverse_frequency(targets, counts)
        loss = distributed.mean((each * there).sum(), there.sum().float())
        if several:
            return Losses({"binary_cross_entropy": loss})
        accuracy = (right(scores, targets) * there).sum() / there.sum().clamp(min=1)
        return Losses({"cross_entropy": loss}, report={"accuracy": accuracy})

    def predict(self, view: View) -> dict[str, Tensor]:
        """Return ``classes``: a score for each class, before softmax or sigmoid."""
        return {"classes": self._classify(view)}

    def _classify(self, view: View, clock: Clock | None = None) -> Float[Tensor, "batch classes"]:
        pooled = self.norm(self.pooled(view, clock))
        if self.options.head_norm == "unit":
            pooled = functional.normalize(pooled, dim=1)
        scores: Tensor = self.head(self.dropout(pooled))
        return scores

    def head_group(self, names: tuple[str, ...]) -> Group:
        """Return the head's group, which may be left out of clipping."""
        return Group(names, clip=None if self.options.head_clipped else math.inf)


def small() -> Recipe:
    """Return LAVA's small encoders, trained on the kind of the toy world's things from the picture."""
    return like("lava", ("video",), "kind")


def like(method: str, streams: tuple[str, ...], label: str) -> Recipe:
    """Return the supervised twin of a method's small recipe: same encoders, views, steps and optimizer."""
    recipe: Recipe = importlib.import_module(catalog.CATALOG[method].target.split(":")[0]).small()
    config = SupervisedConfig(base=method, base_config=recipe.config, streams=streams, label=label)
    train = recipe.train.model_copy(update={"views": tuple(only(view, streams) for view in recipe.train.views)})
    test = recipe.test.model_copy(update={"views": tuple(only(view, streams) for view in recipe.test.views)})
    changes = {"method": "supervised", "config": config, "train": train, "test": test, "tokenizer": None}
    return recipe.model_copy(update=changes)


def upon(
    base: str,
    config: Config,
    test: Viewing,
    streams: tuple[str, ...],
    label: str,
    task: Literal["classes", "multilabel"] = "classes",
    frozen: bool = False,
) -> Recipe:
    """Return the recipe that trains a head on a pretrained method, and the method with it.

    A recording is seen through one window at a random place, as long as the method's own; pictures are cropped at
    random places and mirrored. Rates and lengths are recommendations for small data sets: papers name their own.

    Args:
        base: Name of the method.
        config: Its configuration.
        test: How it looks at a recording.
        streams: Features that the head reads.
        label: Column of the labels.
        task: One label a row, or several.
        frozen: Whether only the head is trained (linear evaluation).
    """
    view = only(test.views[0], streams)
    windows = test.windows
    if isinstance(windows, Grid):
        windows = Aligned(seconds=windows.seconds)
    head: Any = {"head_norm": "batch"} if frozen else {"smoothing": 0.1 if task == "classes" else 0.0}
    return Recipe(
        method="supervised",
        config=SupervisedConfig(
            base=base, base_config=config, streams=streams, label=label, task=task, frozen=frozen, **head
        ),
        train=Viewing(windows=windows, views=({name: varied(spec) for name, spec in view.items()},)),
        test=test.model_copy(update={"views": (view,)}),
        batch=BatchSpec(rows=32),
        epochs=30,
        optimizer=OptimizerSpec(lr=1e-3 if frozen else 3e-4, weight_decay=0.0 if frozen else 0.05),
        schedules={"main": ScheduleSpec(shape="cosine", warmup=0.1)},
        gradients=GradientSpec(clip_norm=1.0),
    )


def only(view: ViewSpec, streams: tuple[str, ...]) -> ViewSpec:
    """Return the streams of a view that these features are made of."""
    read = "+".join(streams).split("+")
    return {stream: spec for stream, spec in view.items() if stream in read}


def varied(spec: StreamSpec) -> StreamSpec:
    """Return a stream that is cropped at a random place and mirrored, where it is a picture."""
    if not isinstance(spec.transform, VideoTransform):
        return spec
    changes = {"flip": 0.5} | ({"crop": "random"} if spec.transform.crop == "centre" else {})
    return spec.model_copy(update={"transform": spec.transform.model_copy(update=changes)})
