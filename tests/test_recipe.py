"""Recipes: what is refused, with which words; changes by key; and a parser that garbage does not break."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych.errors import UsageError
from triptych.methods import supervised
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


def test_half_a_character_is_refused_before_it_is_to_be_written() -> None:
    with pytest.raises(UsageError, match="the value is no YAML"):
        override(small(), ['batch.balance="\\ud800"'])


def test_the_papers_numbers() -> None:
    recipe = paper()
    assert (recipe.optimizer.lr, recipe.batch.rows, recipe.epochs) == (5e-5, 128, 100)
    view = recipe.train.views[0]
    assert view["video"].seconds == 1.6 and view["audio"].at == "beginning"


def test_a_wrong_key_of_a_methods_own_part_is_told_with_its_neighbours() -> None:
    data = small().model_dump()
    with pytest.raises(UsageError, match=r"^mine: config: unknown key 'widht'; did you mean width\?$"):
        validate(Recipe, data | {"config": data["config"] | {"widht": 3}}, "mine")
    inner = {"base": "lava", "base_config": {"layrs": 3}}
    with pytest.raises(UsageError, match=r"^mine: config: base_config: unknown key 'layrs'; did you mean layers"):
        validate(Recipe, data | {"method": "supervised", "config": inner}, "mine")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("json:loads", "json:loads is no method"),
        (".relative:Method", "cannot be loaded"),
        (":", "There is no method ':'"),
        ("triptych.methods.lava:Lava", "cannot be loaded: module .* has no attribute 'Lava'"),
    ],
)
def test_what_is_no_method_is_told(method: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        validate(Recipe, small().model_dump() | {"method": method}, "recipe.yaml")


# ---------------------------------------------------------------- a recipe or a usage error, nothing else

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "1e400", "nan", "lava", "{}", 0, -1, 10**30, 1e-320])
)
VALUES = st.recursive(
    SCALARS,
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=8) | st.just("kind"), x, max_size=4),
    max_leaves=8,
)
WHOLE = [json.loads(recipe.to_json()) for recipe in (small(), paper(), supervised.small())]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every part of a recipe."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in parts:
        yield (*path, key)
        yield from _places(inner, (*path, key))


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """Return a valid recipe of which a few parts were replaced, removed, renamed or exchanged."""
    recipe: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(1, 3))):
        *outer, key = draw(st.sampled_from(list(_places(recipe))))
        place: Any = recipe
        for part in outer:
            place = place[part]
        what = draw(st.sampled_from(["replace", "remove", "rename", "exchange", "wrap"]))
        if what == "replace":
            place[key] = draw(VALUES)
        elif what == "remove":
            del place[key]
        elif what == "rename" and isinstance(place, dict):
            place[draw(st.text(max_size=8))] = place.pop(key)
        elif what == "wrap":
            place[key] = draw(st.sampled_from([[place[key]], {"x": place[key]}, str(place[key])]))
        else:
            *others, last = draw(st.sampled_from(list(_places(recipe))))
            other: Any = recipe
            for part in others:
                other = other[part]
            place[key] = copy.deepcopy(other[last])
        if not recipe:
            break
    return recipe


def _read(tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str) -> Recipe | None:
    path = tmp_path_factory.mktemp("fuzz") / f"recipe{suffix}"
    path.write_bytes(data)
    try:
        recipe = read_recipe(path)
    except UsageError as error:
        assert str(error).startswith(str(path))
        return None
    path.with_suffix(".yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert read_recipe(path.with_suffix(".yaml")) == recipe
    path.with_suffix(".json").write_text(recipe.to_json(), encoding="utf-8")
    assert read_recipe(path.with_suffix(".json")) == recipe
    return recipe


def _garbage_is_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str) -> None:
    assert _read(tmp_path_factory, data, suffix) is None


def _changes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any], suffix: str) -> None:
    text = json.dumps(data) if suffix == ".json" else yaml.safe_dump(data, allow_unicode=True)
    _read(tmp_path_factory, text.encode("utf-8", "surrogatepass"), suffix)


def _assignments_are_taken_or_refused(assignment: str) -> None:
    try:
        changed = override(small(), [assignment])
    except UsageError:
        return
    assert validate(Recipe, yaml.safe_load(changed.to_yaml()), "x") == changed


SUFFIXES = st.sampled_from([".yaml", ".json"])
BYTES = st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
KEYS = st.sampled_from([".".join(map(str, path)) for path in _places(WHOLE[0])]) | st.text(max_size=12)
ASSIGNMENTS = st.builds("{}={}".format, KEYS, st.text(max_size=12) | VALUES.map(json.dumps)) | st.text(max_size=20)


def _fuzz(check: Callable[..., None], examples: int, **strategies: st.SearchStrategy[Any]) -> Callable[..., None]:
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    limits = settings(max_examples=examples, deadline=None, suppress_health_check=quiet, database=None)
    return limits(given(**strategies)(check))


test_garbage_is_refused = _fuzz(_garbage_is_refused, 40, data=BYTES, suffix=SUFFIXES)
test_changes_are_read_or_refused = _fuzz(_changes_are_read_or_refused, 40, data=mutated(), suffix=SUFFIXES)
test_assignments_are_taken_or_refused = _fuzz(_assignments_are_taken_or_refused, 40, assignment=ASSIGNMENTS)
test_much_garbage_is_refused = pytest.mark.slow(_fuzz(_garbage_is_refused, 2000, data=BYTES, suffix=SUFFIXES))
test_many_changes_are_read_or_refused = pytest.mark.slow(
    _fuzz(_changes_are_read_or_refused, 3000, data=mutated(), suffix=SUFFIXES)
)
test_many_assignments_are_taken_or_refused = pytest.mark.slow(
    _fuzz(_assignments_are_taken_or_refused, 3000, assignment=ASSIGNMENTS)
)
