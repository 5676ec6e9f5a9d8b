"""The released code's key names, and what its shapes say."""

import pytest
import torch
from torch import Tensor

from triptych.encoders.speech import SpeechConfig
from triptych.errors import TriptychError
from triptych.methods.av_hubert import LAST, AVHuBERT, AVHuBERTConfig
from triptych.model import load_tensors
from triptych.weights.av_hubert import RANDOM, configure, rename

SIZES = SpeechConfig(
    width=128, layers=2, heads=2, hidden=64, stem=4, stages=(4, 8), stage_blocks=2, position_kernel=6, position_groups=4
)


def _authors(hide: str) -> dict[str, Tensor]:
    """Return tensors as the released code would name those of a small model (av-hubert, section 8)."""
    found: dict[str, Tensor] = {
        "mask_emb": torch.randn(104 if hide == "input" else 128),
        "label_embs_concat": torch.randn(34, 16),
        "feature_extractor_audio.proj.weight": torch.randn(128, 104),
        "feature_extractor_audio.proj.bias": torch.randn(128),
        "feature_extractor_video.proj.weight": torch.randn(128, 8),
        "feature_extractor_video.proj.bias": torch.randn(128),
        "post_extract_proj.weight": torch.randn(128, 256),
        "post_extract_proj.bias": torch.randn(128),
        "encoder.pos_conv.0.bias": torch.randn(128),
        "encoder.pos_conv.0.weight_g": torch.randn(1, 1, 6),
        "encoder.pos_conv.0.weight_v": torch.randn(128, 32, 6),
        "final_proj.weight": torch.randn(16, 128),
        "final_proj.bias": torch.randn(16),
    }
    resnet = "feature_extractor_video.resnet"
    found[f"{resnet}.frontend3D.0.weight"] = torch.randn(4, 1, 5, 7, 7)
    found[f"{resnet}.frontend3D.2.weight"] = torch.randn(4)

    def norm(name: str, width: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.{leaf}"] = torch.rand(width)
        found[f"{name}.num_batches_tracked"] = torch.tensor(3)

    norm(f"{resnet}.frontend3D.1", 4)
    for stage, width in ((1, 4), (2, 8)):
        for block in (0, 1):
            name, before = f"{resnet}.trunk.layer{stage}.{block}", 4 if (stage, block) == (2, 0) else width
            found[f"{name}.conv1.weight"] = torch.randn(width, before, 3, 3)
            found[f"{name}.conv2.weight"] = torch.randn(width, width, 3, 3)
            for number in (1, 2):
                norm(f"{name}.bn{number}", width)
                found[f"{name}.relu{number}.weight"] = torch.randn(width)
            if before != width:
                found[f"{name}.downsample.0.weight"] = torch.randn(width, before, 1, 1)
                norm(f"{name}.downsample.1", width)
    for layer in (0, 1):
        name = f"encoder.layers.{layer}"
        for part in ("q", "k", "v", "out"):
            found[f"{name}.self_attn.{part}_proj.weight"] = torch.randn(128, 128)
            found[f"{name}.self_attn.{part}_proj.bias"] = torch.randn(128)
        found |= {f"{name}.fc1.weight": torch.randn(64, 128), f"{name}.fc1.bias": torch.randn(64)}
        found |= {f"{name}.fc2.weight": torch.randn(128, 64), f"{name}.fc2.bias": torch.randn(128)}
    norms = ["encoder.layer_norm", "layer_norm"]
    norms += [f"encoder.layers.{n}.{kind}layer_norm" for n in (0, 1) for kind in ("self_attn_", "final_")]
    for name in norms:
        width = 256 if name == "layer_norm" else 128
        found |= {f"{name}.weight": torch.randn(width), f"{name}.bias": torch.randn(width)}
    return found


@pytest.mark.parametrize("hide", ["input", "features"])
def test_a_checkpoint_fills_the_model_that_its_shapes_say(hide: str) -> None:
    tensors = _authors(hide)
    config = configure(tensors)
    unknown = {"heads": 2, "layer_drop": 0.05}
    assert config.encoder == SIZES.model_copy(update=unknown)
    assert config.rounds[0].clusters == (30,) and config.rounds[0].hide == hide and config.class_width == 16
    method = AVHuBERT(config)
    load_tensors(method, rename(tensors), "checkpoint")
    attention = method.get_parameter("speech.blocks.1.attention.qkv.weight")
    assert torch.equal(attention.chunk(3)[1], tensors["encoder.layers.1.self_attn.k_proj.weight"])
    shortcut = method.get_parameter("speech.frames.stages.1.0.shortcut.weight")
    assert torch.equal(shortcut, tensors["feature_extractor_video.resnet.trunk.layer2.0.downsample.0.weight"])


def test_a_fine_tuned_checkpoint_gives_its_encoder() -> None:
    tensors = _authors("input")
    wrapped = {f"encoder.w2v_model.{k}": v for k, v in tensors.items() if not k.startswith(("final_proj", "label"))}
    wrapped["decoder.embed_tokens.weight"] = torch.randn(5, 8)
    found = rename(wrapped)
    assert found.keys() == {name for name in rename(tensors) if not RANDOM.search(name)}
    assert configure(wrapped).encoder == configure(tensors).encoder


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(TriptychError, match=r"'encoder.layers.0.extra' is none of AV-HuBERT's"):
        rename(_authors("input") | {"encoder.layers.0.extra": torch.zeros(1)})


def test_several_sets_of_targets_have_no_sizes() -> None:
    with pytest.raises(TriptychError, match="several sets"):
        configure(_authors("input") | {"final_proj.weight": torch.randn(32, 128), "final_proj.bias": torch.randn(32)})


@pytest.mark.parametrize(
    ("sizes", "millions"),
    [(SpeechConfig(), 103.3), (SpeechConfig(width=1024, layers=24, heads=16, hidden=4096), 325.4)],
)
def test_published_parameter_counts(sizes: SpeechConfig, millions: float) -> None:
    with torch.device("meta"):
        method = AVHuBERT(AVHuBERTConfig(encoder=sizes, rounds=(LAST,)))
    assert round(sum(p.numel() for p in method.parameters()) / 1e6, 1) == millions
