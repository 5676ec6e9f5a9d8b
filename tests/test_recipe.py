"""Recipes: what is refused, with which words; changes by key; and a parser that garbage does not break."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.errors import UsageError
from triptych.methods.lava import LAVAConfig, paper, small
from triptych.methods.supervised import SupervisedConfig
from triptych.recipe import Recipe, override, read_recipe, validate


def test_a_file_gives_the_recipe_back(tmp_path: Path) -> None:
    for suffix, text in ((".yaml", small().to_yaml()), (".json", small().to_json())):
        path = tmp_path / f"recipe{suffix}"
        path.write_text(text)
        assert read_recipe(path) == small()


def test_the_configuration_is_of_the_class_that_the_method_names() -> None:
    assert isinstance(validate(Recipe, small().model_dump(), "x").config, LAVAConfig)
    other = SupervisedConfig(base_config=LAVAConfig())
    with pytest.raises(UsageError, match="config is a SupervisedConfig; lava wants LAVAConfig"):
        validate(Recipe, {**dict(small()), "config": other}, "x")


def test_changes_by_key() -> None:
    changed = override(
        small(), ["optimizer.lr=1e-4", "train.views.0.video.seconds=1.5", "config.pairs=[av]", "ema=null"]
    )
    assert changed.optimizer.lr == 1e-4 and changed.train.views[0]["video"].seconds == 1.5
    assert isinstance(changed.config, LAVAConfig) and changed.config.pairs == ("av",)
    assert small().optimizer.lr != 1e-4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"optimizer": {"lrr": 1}}, "unknown key 'optimizer.lrr'; did you mean lr?"),
        ({"epochs": 3}, "either `epochs` or `steps`"),
        ({"schedules": {}}, "needs a curve named `main`"),
        ({"batch": {"rows": 6, "accumulate": 4}}, "must be a multiple of `accumulate`"),
        ({"tokenizer": None}, "a view has text"),
        ({"method": "nothing"}, "There is no method 'nothing'"),
        ({"train": {"windows": {"kind": "sometimes"}, "views": []}}, "windows"),
    ],
)
def test_what_is_wrong_is_named(data: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        validate(Recipe, small().model_dump() | data, "recipe.yaml")


def test_the_papers_numbers() -> None:
    recipe = paper()
    assert (recipe.optimizer.lr, recipe.batch.rows, recipe.epochs) == (5e-5, 128, 100)
    view = recipe.train.views[0]
    assert view["video"].seconds == 1.6 and view["audio"].at == "beginning"


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_garbage_is_a_usage_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "recipe.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(UsageError):
        read_recipe(path)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_value_is_a_recipe_or_a_usage_error(value: object) -> None:
    for key in ("train", "batch", "optimizer", "config", "schedules"):
        with pytest.raises(UsageError):
            validate(Recipe, small().model_dump() | {key: {"x": value}}, "fuzz")
