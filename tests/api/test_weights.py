"""Importing: strict, with the licence told, and with messages that name file and key."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny import tiny_lava
from triptych import api, catalog
from triptych.api.pages import describe_methods
from triptych.errors import TriptychError, UsageError
from triptych.methods.lava import LAVA
from triptych.model import model_tensors, read_model
from triptych.weights import sources


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Tensor], ModuleType]:
    """Return a checkpoint of a tiny LAVA under names of its own, and the importer that knows them."""
    recipe, _ = tiny_lava()
    torch.manual_seed(3)
    theirs = {f"net/{name}": tensor.clone() for name, tensor in model_tensors(LAVA(recipe.config)).items()}  # type: ignore[arg-type]
    save_file(theirs, tmp_path / "lava.safetensors")
    importer = ModuleType("triptych.weights.invented")
    importer.LICENCE = "All rights reserved."  # type: ignore[attr-defined]
    importer.configure = lambda tensors: recipe.config  # type: ignore[attr-defined]

    def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for name in tensors:
            if not name.startswith("net/"):
                raise TriptychError(f"The key '{name}' is none of ours.")
        return {name.removeprefix("net/"): tensor for name, tensor in tensors.items()}

    importer.rename = rename  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, importer.__name__, importer)
    monkeypatch.setitem(sources.SOURCES, "invented", sources.Source("invented", "lava", "an invention"))
    return tmp_path / "lava.safetensors", theirs, importer


def test_a_checkpoint_becomes_a_model(
    published: tuple[Path, dict[str, Tensor], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, theirs, _ = published
    assert api.import_weights("invented", path, tmp_path / "model") == tmp_path / "model"
    told = capsys.readouterr().out
    assert "All rights reserved." in told and "M parameters" in told
    model = read_model(tmp_path / "model")
    assert model.method_name == "lava" and model.made["licence"] == "All rights reserved."
    for name, tensor in model_tensors(model.method).items():
        assert torch.equal(tensor, theirs[f"net/{name}"]), name
    assert "text" not in model.test.views[0] and "video" in model.test.views[0]  # there is no tokenizer
    with pytest.raises(UsageError, match="holds something already"):
        api.import_weights("invented", path, tmp_path / "model")


def test_every_tensor_is_accounted_for(
    published: tuple[Path, dict[str, Tensor], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, theirs, importer = published

    def refused(tensors: dict[str, Tensor], message: str) -> None:
        save_file(tensors, path)
        with pytest.raises(TriptychError, match=re.escape(str(path)) + ".*" + message):
            api.import_weights("invented", path, tmp_path / "model")
        assert not (tmp_path / "model").exists()

    refused(theirs | {"loss": torch.ones(1)}, "The key 'loss' is none of ours")
    refused(theirs | {"net/other": torch.ones(1)}, "there is no tensor 'other' in LAVA")
    refused(theirs | {"net/temperature": torch.ones(2)}, r"'temperature' has the shape \(2,\), the model wants \(1,\)")
    less = {name: tensor for name, tensor in theirs.items() if "heads" not in name}
    refused(less, r"nothing in it becomes 'heads\.")
    importer.RANDOM = re.compile(r"^heads\.")  # type: ignore[attr-defined]
    api.import_weights("invented", path, tmp_path / "model")
    assert "not in the checkpoint, so random: heads." in capsys.readouterr().out


def test_weights_may_be_the_start_of_another_method(
    published: tuple[Path, dict[str, Tensor], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, theirs, importer = published
    with pytest.raises(UsageError, match="no start of supervised; methods that can begin with them: none"):
        api.import_weights("invented", path, tmp_path / "model", method="supervised")
    recipe, _ = tiny_lava()
    monkeypatch.setattr("triptych.api.weights.named_recipe", lambda name, which: recipe)
    only = {"net/temperature": theirs["net/temperature"] + 1}
    importer.STARTS = {"lava": importer.rename}  # type: ignore[attr-defined]
    save_file(only, path)
    api.import_weights("invented", path, tmp_path / "model", method="lava")
    assert torch.equal(read_model(tmp_path / "model").method.temperature, only["net/temperature"])  # type: ignore[arg-type]


def test_unknown_kinds_are_told_with_their_neighbours(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Nothing is known of weights called 'lavva'; there are lava"):
        api.import_weights("lavva", "x", tmp_path / "model")


@pytest.mark.parametrize("name", sources.SOURCES)
def test_every_source_leads_somewhere(name: str) -> None:
    source = sources.SOURCES[name]
    assert source.licence.endswith(".") and source.what
    assert catalog.resolve(source.method).config_class
    with pytest.raises(TriptychError):
        source.configure({"nothing": torch.ones(1)})
    with pytest.raises(TriptychError, match="nothing"):
        source.rename({"nothing": torch.ones(1)})


def test_the_page_of_a_method_names_its_weights() -> None:
    page = describe_methods("lava")
    assert "triptych import lava CHECKPOINT --out MODEL" in page and sources.SOURCES["lava"].licence in page
    assert "weights: none are known" in describe_methods("supervised")
