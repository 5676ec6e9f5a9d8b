"""Published weights of Everything at Once: sizes from shapes, names, and a whole import with words of a file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from triptych import api
from triptych.errors import TriptychError
from triptych.methods.everything_at_once import EverythingAtOnce, EverythingAtOnceConfig
from triptych.model import read_model
from triptych.search.query import embed_words
from triptych.weights import everything_at_once as importer

THEIRS = (
    ("tokens.{}.0.linear", "{}_token_proj.fc"),
    ("tokens.{}.0.gate", "{}_token_proj.cg.fc"),
    ("tokens.{}.1", "{}_norm_layer"),
    ("heads.{}.linear", "{}_proj.fc"),
    ("heads.{}.gate", "{}_proj.cg.fc"),
)
BLOCK = {"attention.qkv": "attn.qkv", "attention.output": "attn.proj", "linear1": "mlp.fc1", "linear2": "mlp.fc2"}


def _published(config: EverythingAtOnceConfig) -> dict[str, Tensor]:
    """Return a checkpoint as the authors would have saved a model of this form, from several devices."""
    torch.manual_seed(0)
    renames = {ours.format(m): theirs.format(m) for ours, theirs in THEIRS for m in ("text", "video", "audio")}
    renames |= {"davenet.project": "davenet.conv1", "davenet.norm": "davenet.bn1"}
    tensors = {}
    for name, tensor in EverythingAtOnce(config).state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer in renames:
            layer = renames[layer]
        elif layer.startswith("davenet.blocks"):
            _, _, stage, block, part = layer.split(".")
            part = {"norm1": "bn1", "norm2": "bn2", "shortcut": "downsample.0", "shortcut_norm": "downsample.1"}.get(
                part, part
            )
            layer = f"davenet.layer{int(stage) + 1}.{block}.{part}"
        for ours, theirs in BLOCK.items():
            layer = layer.replace(ours, theirs) if layer.startswith("fusion.") else layer
        tensors[f"module.{layer}.{kind}"] = tensor[:, None, :, None] if name == "davenet.project.weight" else tensor
    for dead, width in (("fusion.norm", config.width), ("davenet.batchnorm1", 1)):
        tensors |= {f"module.{dead}.weight": torch.ones(width), f"module.{dead}.bias": torch.zeros(width)}
    return tensors


def _config(**changes: object) -> EverythingAtOnceConfig:
    sizes = {
        "video": ("s3d",), "video_widths": (1024,), "audio_widths": (4, 4, 6), "audio_blocks": (2, 1),
        "width": 64, "heads": 1, "dim": 20, "ratio": 0.5,
    }  # fmt: skip
    return EverythingAtOnceConfig.model_validate(sizes | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"video": ("resnet152", "resnext101"), "video_widths": (2048, 2048), "depth": 2},
        {"video": ("clip",), "video_widths": (512,), "word_width": 512},
    ],
)
def test_the_shapes_say_the_sizes(changes: dict[str, object]) -> None:
    config = _config(**changes)
    tensors = _published(config)
    assert importer.configure(tensors) == config
    assert importer.rename(tensors).keys() == EverythingAtOnce(config).state_dict().keys()
    recipe = importer.recipe(config)
    assert set(recipe.train.views[0]) == {*config.video, "audio", "text"}
    assert (recipe.tokenizer is None) == (config.video == ("clip",))


def test_what_is_unknown_or_missing_is_named() -> None:
    tensors = _published(_config())
    with pytest.raises(TriptychError, match=r"The key 'video_pos_embed' is none of Everything at Once's"):
        importer.rename({**tensors, "video_pos_embed": torch.zeros(1)})
    with pytest.raises(TriptychError, match=r"The tensor 'davenet\.conv1\.weight' is missing"):
        importer.configure({key: x for key, x in tensors.items() if "davenet.conv1" not in key})
    odd = _published(_config(video_widths=(7,)))
    with pytest.raises(TriptychError, match="Video tokens have 7 values; the published models' have 4096, 1024, 512"):
        importer.configure(odd)


def test_an_import_with_the_words_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = _config(audio_widths=(4, 4), audio_blocks=(1,))
    torch.save({"arch": "EverythingAtOnceModel", "epoch": 1, "state_dict": _published(config)}, tmp_path / "latest.pth")
    words = {"cut": 1.0, "the": 2.0, "onion": 3.0}
    lines = [" ".join([word, *[str(value)] * 300]) for word, value in words.items()]
    (tmp_path / "words.txt").write_text("3 300\n" + "\n".join(lines) + "\n")
    out = api.import_weights(
        "everything_at_once", tmp_path / "latest.pth", tmp_path / "model", tokenizer=tmp_path / "words.txt"
    )
    told = capsys.readouterr().out
    assert "No licence is stated" in told and "words.txt: the vectors of 7 words" in told
    model = read_model(out)
    method = model.method
    assert isinstance(method, EverythingAtOnce) and method.words is not None
    assert method.words.weight[4:, 0].tolist() == [1.0, 2.0, 3.0] and not method.words.weight[:4].any()
    one, other = (embed_words(model, text)["joint"] for text in ("cut the onion", "onion, the: (cut) unheard-of"))
    np.testing.assert_allclose(one, other, atol=1e-6)  # words have no order, and unknown ones do not count
    silent = api.import_weights("everything_at_once", tmp_path / "latest.pth", tmp_path / "silent")
    assert "reads no text" in capsys.readouterr().out
    assert set(read_model(silent).test.views[0]) == {"s3d", "audio"}
