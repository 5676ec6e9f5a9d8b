"""The supervised upper line: a method's encoders and a linear head, trained on a label column.

No paper. It shows what the encoders of a self-supervised method could learn from the same recordings with labels, so
that a table can be trusted at its upper end, as ``random:METHOD`` shows its lower end.
"""

import importlib
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.nn import functional

from triptych import catalog, distributed
from triptych.batch import Batch, Stream, View
from triptych.encoders.encoder import Encoder, Features
from triptych.method import Clock, Facts, Losses, Method
from triptych.recipe import Config, Recipe, ViewSpec, validate


class SupervisedConfig(Config):
    """What is trained, and on what."""

    base: str = "lava"
    """Method whose encoders are used."""
    base_config: SerializeAsAny[Config]
    """Its configuration."""
    streams: tuple[str, ...] = ("video",)
    """Streams whose pooled features the head reads, side by side."""
    label: str = "kind"
    """Column of the labels."""
    classes: tuple[str, ...] = ()
    """Names of the classes; filled in from the data."""

    @model_validator(mode="before")
    @classmethod
    def _validate_base(cls, data: object) -> object:
        if not isinstance(data, dict) or not isinstance(data.get("base_config"), dict):
            return data
        kind = catalog.resolve(str(data.get("base", "lava"))).config_class
        return {**data, "base_config": validate(kind, data["base_config"], "base_config")}


class Supervised(Method):
    """Encoders of a method and a linear head."""

    config_class: ClassVar[type[Config]] = SupervisedConfig

    def __init__(self, config: SupervisedConfig) -> None:
        """Build the base with fresh weights, and the head."""
        super().__init__(config)
        self.options = config
        base: Method = catalog.resolve(config.base)(config.base_config)
        self.encoders = nn.ModuleDict({stream: base.encoder(stream) for stream in config.streams})
        width = sum(base.encoder(stream).width for stream in config.streams)
        self.head = nn.Linear(width, max(len(config.classes), 2))

    @classmethod
    def complete(cls, recipe: Recipe, facts: Facts) -> Recipe:
        """Take the classes, and what the base takes, from the data."""
        assert isinstance(recipe.config, SupervisedConfig)
        base = catalog.resolve(recipe.config.base)
        inner = base.complete(recipe.model_copy(update={"config": recipe.config.base_config}), facts).config
        changes = {"base_config": inner, "classes": facts.classes or recipe.config.classes}
        return recipe.model_copy(update={"config": recipe.config.model_copy(update=changes)})

    def objective(self, batch: Batch, clock: Clock) -> Losses:
        """Cross entropy over the rows that have a label and all streams."""
        view, labels = batch.views[0], batch.targets[self.options.label]
        scores = self.predict(view)["classes"]
        there = torch.stack([view[stream].present for stream in self.options.streams]).all(dim=0) & (labels >= 0)
        each = functional.cross_entropy(scores.float(), labels.clamp(min=0), reduction="none")
        loss = distributed.mean((each * there).sum(), there.sum().float())
        right = (scores.argmax(dim=1) == labels) & there
        return Losses({"cross_entropy": loss}, report={"accuracy": right.sum() / there.sum().clamp(min=1)})

    def encoder(self, stream: Stream) -> Encoder:
        """Return the encoder of a stream."""
        found = self.encoders[stream]
        assert isinstance(found, Encoder)
        return found

    def features(self, view: View) -> dict[str, Features]:
        """Return the encoders' features of the streams that the head reads."""
        return {stream: self.encoder(stream)(view[stream].data, view[stream].length) for stream in self.options.streams}

    def predict(self, view: View) -> dict[str, Float[Tensor, "batch classes"]]:
        """Return ``classes``: a score for each class, before softmax."""
        found = self.features(view)
        joined = torch.cat([found[stream].pooled for stream in self.options.streams], dim=1)
        scores: Tensor = self.head(joined)
        return {"classes": scores}


def small() -> Recipe:
    """Return LAVA's small encoders, trained on the kind of the toy world's things from the picture."""
    return like("lava", ("video",), "kind")


def like(method: str, streams: tuple[str, ...], label: str) -> Recipe:
    """Return the supervised twin of a method's small recipe: same encoders, views, steps and optimizer."""
    recipe: Recipe = importlib.import_module(catalog.CATALOG[method].target.split(":")[0]).small()

    def only(views: tuple[ViewSpec, ...]) -> tuple[ViewSpec, ...]:
        return tuple({stream: spec for stream, spec in view.items() if stream in streams} for view in views)

    config = SupervisedConfig(base=method, base_config=recipe.config, streams=streams, label=label)
    train = recipe.train.model_copy(update={"views": only(recipe.train.views)})
    test = recipe.test.model_copy(update={"views": only(recipe.test.views)})
    changes = {"method": "supervised", "config": config, "train": train, "test": test, "tokenizer": None}
    return recipe.model_copy(update=changes)
