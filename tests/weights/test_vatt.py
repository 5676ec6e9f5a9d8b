"""Weights of VATT's checkpoints: object-graph keys as the specification lists them (vatt, section 8)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from triptych import api
from triptych.encoders.raw_signal import RawSignalEncoder
from triptych.errors import TriptychError
from triptych.methods.vatt import VATT
from triptych.model import load_tensors, read_model
from triptych.weights.vatt import configure, rename

ROOT, END = "model/layer_with_weights-0/_base_layer/", "/.ATTRIBUTES/VARIABLE_VALUE"
VIDEO, AUDIO, TEXT, HIDDEN, LAYERS = 12, 10, 8, 20, 2
"""Widths of the streams, of the feed-forward part; layers. Heads are 64 wide."""


def _dense(key: str, inner: int, out: int, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{key}/kernel", (inner, out)
    if bias:
        yield f"{key}/bias", (out,)


def _norm(key: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((f"{key}/gamma", (width,)), (f"{key}/beta", (width,)))


def _stack(key: str, width: int, heads: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for layer in range(LAYERS):
        at = f"{key}/layers/{layer}"
        yield from _norm(f"{at}/layer_norm", width)
        for name in "qkv":
            yield from _dense(f"{at}/mha/{name}", width, 64 * heads)
        yield from _dense(f"{at}/mha/o", 64 * heads, width)
        yield from _norm(f"{at}/feed_forward/layer_norm", width)
        yield from _dense(f"{at}/feed_forward/mlp/wi", width, HIDDEN)
        yield from _dense(f"{at}/feed_forward/mlp/wo", HIDDEN, width)
    yield from _norm(f"{key}/final_layer_norm", width)


def _positions(key: str, counts: dict[str, int], width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for axis, count in counts.items():
        yield f"{key}/{axis}_position_embeddings/embeddings", (count, width)
    yield from _norm(f"{key}/layernorm", width)


def _t5(key: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((f"{key}/agg_embedding", (5,)), (f"{key}/embedding_1/embeddings", (30, 5)))
    yield from _dense(f"{key}/pre_proj", 5, TEXT, bias=False)
    yield f"{key}/tx/layers/0/self_attention/mha/relative_attention_bias/embeddings", (8, 2)
    for layer in range(LAYERS):
        at = f"{key}/tx/layers/{layer}"
        yield f"{at}/self_attention/layer_norm/weight", (TEXT,)
        for name in "qkv":
            yield from _dense(f"{at}/self_attention/mha/{name}", TEXT, 6, bias=False)
        yield from _dense(f"{at}/self_attention/mha/o", 6, TEXT, bias=False)
        yield from _norm(f"{at}/feed_forward/layer_norm", TEXT)
        yield from _dense(f"{at}/feed_forward/mlp/wi", TEXT, HIDDEN, bias=False)
        yield from _dense(f"{at}/feed_forward/mlp/wo", HIDDEN, TEXT, bias=False)
    yield f"{key}/tx/final_layer_norm/weight", (TEXT,)


def _heads(video: int, audio: int, text: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    def batch_norm(key: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{key}/{name}", (width,)) for name in ("gamma", "beta", "moving_mean", "moving_variance"))

    yield from _dense("head/vid_to_hid", video, 7, bias=False)
    yield from batch_norm("head/hid_to_va/pre_bn", 7)
    yield from _dense("head/hid_to_va/linear_projection", 7, 6, bias=False)
    yield from batch_norm("head/hid_to_va/bn", 6)
    yield from _dense("head/va_to_vat/linear_projection", 6, 4, bias=False)
    yield from batch_norm("head/va_to_vat/bn", 4)
    yield from _dense("head/aud_to_vid", audio, 6)
    yield from _dense("head/txt_to_vid", text, 4)


def _specific() -> Iterator[tuple[str, tuple[int, ...]]]:
    base = "vid_backbone/_base"
    yield from ((f"{base}/voxel_to_patch/kernel", (2, 4, 4, 3, VIDEO)), (f"{base}/voxel_to_patch/bias", (VIDEO,)))
    yield f"{base}/agg_token_embd", (VIDEO,)
    yield from _positions(f"{base}/pos_embedding_lookup", {"temporal": 3, "vertical": 2, "horizontal": 5}, VIDEO)
    yield from _stack(f"{base}/tx", VIDEO, 2)
    base = "aud_backbone/_base"
    yield from ((f"{base}/wave_to_patch/kernel", (16, 1, AUDIO)), (f"{base}/wave_to_patch/bias", (AUDIO,)))
    yield f"{base}/agg_embedding", (AUDIO,)
    yield from _positions(f"{base}/pos_embedding_lookup", {"temporal": 6}, AUDIO)
    yield from _stack(f"{base}/tx", AUDIO, 1)
    yield from _t5("txt_backbone/_base")
    yield from _heads(VIDEO, AUDIO, TEXT)


def _agnostic() -> Iterator[tuple[str, tuple[int, ...]]]:
    base, width = "unified_backbone/unified_transformer", VIDEO
    raw = f"{base}/raw_to_embeddings"
    yield from (
        (f"{raw}/video/voxel_to_patch/kernel", (2, 4, 4, 3, width)),
        (f"{raw}/video/voxel_to_patch/bias", (width,)),
    )
    yield from ((f"{raw}/audio/wave_to_patch/kernel", (16, 1, width)), (f"{raw}/audio/wave_to_patch/bias", (width,)))
    yield f"{raw}/text/embedding/embeddings", (30, 5)
    axes = {"video": {"temporal": 3, "vertical": 2, "horizontal": 5}, "audio": {"temporal": 6}, "text": {"temporal": 7}}
    for stream, counts in axes.items():
        yield from _dense(f"{base}/pre_proj/{stream}", 5 if stream == "text" else width, width)
        yield from _dense(f"{base}/post_proj/{stream}", width, 9)
        yield from _positions(f"{base}/pos_embedding_lookup/{stream}", counts, width)
        yield f"{base}/{stream[:3] if stream != 'text' else 'txt'}_agg_embedding", (width,)
    yield from _stack(f"{base}/tx", width, 2)
    yield from _heads(9, 9, 9)


def _checkpoint(agnostic: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    keys = _agnostic() if agnostic else _specific()
    tensors = {f"{ROOT}{key}{END}": torch.randn(shape) for key, shape in keys}
    slots = {f"{key.removesuffix(END)}/.OPTIMIZER_SLOT/optimizer/m{END}": 0 * x for key, x in list(tensors.items())[:3]}
    return tensors | slots | {f"save_counter{END}": torch.tensor(3), f"optimizer/beta_1{END}": torch.tensor(0.9)}


@pytest.mark.parametrize("agnostic", [False, True])
def test_a_checkpoint_says_the_sizes_and_fills_the_model(agnostic: bool) -> None:
    tensors = _checkpoint(agnostic)
    config = configure(tensors)
    assert (config.frames, config.size, config.tubelet) == (6, (8, 20), (2, 4))
    assert (config.audio_steps, config.audio_patch) == (96, (16, 1))
    assert (config.vocabulary, config.word_width) == (30, 5)
    assert (config.hidden, config.fine, config.coarse, config.head) == (7, 6, 4, "fine_and_coarse")
    if agnostic:
        assert config.shared is not None
        assert (config.shared.layers, config.shared.width, config.shared.heads) == (LAYERS, VIDEO, 2)
        assert (config.projected, config.text_steps, config.shared.hidden) == (9, 7, HIDDEN)
    else:
        assert config.shared is None and (config.text.heads, config.text.head_width, config.text.buckets) == (2, 3, 8)
        assert (config.video.heads, config.audio.heads, config.audio.width) == (2, 1, AUDIO)
    method = VATT(config)
    load_tensors(method, rename(tensors), "checkpoint")
    base = f"{ROOT}unified_backbone/unified_transformer" if agnostic else f"{ROOT}vid_backbone/_base"
    video = method.encoder("video")
    assert isinstance(video, RawSignalEncoder)
    x = torch.randn(2, VIDEO)
    queries = x @ tensors[f"{base}/tx/layers/1/mha/q/kernel{END}"] + tensors[f"{base}/tx/layers/1/mha/q/bias{END}"]
    torch.testing.assert_close(video.blocks[1].attention.qkv(x)[:, :128], queries)
    raw = f"{base}/raw_to_embeddings/video" if agnostic else base
    clip = torch.randn(1, 2, 4, 4, 3)
    kernel = tensors[f"{raw}/voxel_to_patch/kernel{END}"].permute(4, 3, 0, 1, 2)
    convolved = functional.conv3d(clip.permute(0, 4, 1, 2, 3), kernel, tensors[f"{raw}/voxel_to_patch/bias{END}"])
    torch.testing.assert_close(video.project(video.cut(clip)).flatten(), convolved.flatten())
    mean = tensors[f"{ROOT}head/hid_to_va/pre_bn/moving_mean{END}"]
    assert torch.equal(method.state_dict()["head.video_fine.1.running_mean"], mean)


@pytest.mark.parametrize("agnostic", [False, True])
def test_a_checkpoint_becomes_a_model(agnostic: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(_checkpoint(agnostic), tmp_path / "ckpt.safetensors")
    api.import_weights("vatt", tmp_path / "ckpt.safetensors", tmp_path / "model")
    model = read_model(tmp_path / "model")
    assert model.method.options == configure(_checkpoint(agnostic))
    assert set(model.test.views[0]) == {"video", "audio"} and model.tokenizer is None
    told = capsys.readouterr().out
    assert "Apache-2.0" in told and "reads no text" in told


def test_a_key_that_is_not_known_is_named() -> None:
    with pytest.raises(TriptychError, match="The key 'vit/somewhere/kernel:0' is none of VATT's"):
        rename({"vit/somewhere/kernel:0": torch.zeros(2, 2)})
