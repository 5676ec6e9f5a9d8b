"""Published fine-tunings: they validate, survive YAML, and hold the numbers of the specifications."""

import importlib
from collections.abc import Callable

import pytest
import yaml

from triptych import catalog
from triptych.api.finetuning import finetunings
from triptych.methods.fine_tunings import FINETUNING
from triptych.methods.supervised import SupervisedConfig
from triptych.recipe import Config, Grid, Recipe, validate
from triptych.training.optimizers import schedule_factor


def _config(method: str) -> Config:
    recipe: Recipe = importlib.import_module(catalog.CATALOG[method].target.partition(":")[0]).paper()
    return recipe.config


@pytest.mark.parametrize("method", sorted(FINETUNING.keys() & catalog.CATALOG.keys()))
def test_every_recipe_validates_and_survives_yaml(method: str) -> None:
    config = _config(method)
    for name, build in FINETUNING[method].items():
        made = build(config)
        assert isinstance(made.config, SupervisedConfig) and made.config.base_config == config, name
        assert validate(Recipe, yaml.safe_load(made.to_yaml()), name) == made
        assert set(made.train.views[0]) == set(made.test.views[0]) == set(made.config.streams)
    assert set(FINETUNING[method]) <= set(finetunings(method))


def _of(method: str, name: str) -> tuple[Recipe, SupervisedConfig]:
    build: Callable[[Config], Recipe] = FINETUNING[method][name]
    made = build(_config(method))
    assert isinstance(made.config, SupervisedConfig)
    return made, made.config


def test_vatt_on_kinetics() -> None:
    made, head = _of("vatt", "kinetics")
    assert (made.optimizer.name, made.optimizer.lr, made.gradients.clip_norm) == ("sgd", 0.005, 0.75)
    assert (head.smoothing, head.head_dropout, head.head_clipped) == (0.1, 0.5, False)
    assert isinstance(made.test.windows, Grid) and (made.test.windows.count, made.test.windows.crops) == (4, 3)
    assert made.steps == 100_000
    curve = [schedule_factor(made.schedules["main"], step / made.steps, made.steps) for step in (1250, 2500, 100_000)]
    assert curve == pytest.approx([0.5, 1.0, 0.0])


def test_xdc_on_ucf101() -> None:
    made, _ = _of("xdc", "ucf101")
    assert (made.epochs, made.epoch_rows, made.optimizer.weight_decay) == (8, 100_000, 0.005)
    steps = [schedule_factor(made.schedules["main"], epoch / 8, 1) for epoch in (1.9, 2.1, 4.1, 6.1)]
    assert steps == pytest.approx([1.0, 0.1, 0.01, 0.001])
    assert isinstance(made.test.windows, Grid) and (made.test.windows.count, made.test.windows.crops) == (10, 1)
