"""The encoder of lips and sound."""

import pytest
import torch
from torch import nn

from triptych.batch import Clip
from triptych.encoders.speech import (
    FrameResNet,
    PositionConvolution,
    SpeechConfig,
    SpeechEncoder,
    align,
    leading,
    step_count,
)

SMALL = SpeechConfig(
    width=16,
    layers=2,
    heads=2,
    hidden=32,
    stem=4,
    stages=(4, 6, 8, 8),
    position_kernel=6,
    position_groups=4,
    dropout=0.0,
    layer_drop=0.0,
)


def _encoder(**changes: object) -> SpeechEncoder:
    torch.manual_seed(0)
    encoder = SpeechEncoder(SMALL.model_copy(update=changes)).eval()
    for module in encoder.modules():
        if hasattr(module, "running_mean"):  # else padding would be the mean
            nn.init.normal_(module.running_mean)
    return encoder


@pytest.fixture
def encoder() -> SpeechEncoder:
    return _encoder()


def test_published_sizes() -> None:
    with torch.device("meta"):
        frames = FrameResNet(64, (64, 128, 256, 512), 2)
    assert round(sum(p.numel() for p in frames.parameters()) / 1e6, 2) == 11.19


def test_shapes_of_the_papers_input() -> None:
    encoder = _encoder()
    lips, sound = torch.randn(2, 12, 88, 88, 1), torch.randn(2, 12, 104)
    with torch.no_grad():
        fronts = {"video": encoder.front("video", lips), "audio": encoder.front("audio", sound)}
        found = encoder.run(*encoder.place(encoder.fuse(encoder.join(fronts)), torch.tensor([12, 9])))
    assert found.tokens.shape == (2, 12, 16) and found.length.tolist() == [12, 9]
    torch.testing.assert_close(found.pooled[1], found.tokens[1, :9].mean(dim=0))


@torch.no_grad()
def test_lips_sound_and_both_differ_and_what_is_missing_is_zeros(encoder: SpeechEncoder) -> None:
    lips, sound = torch.randn(1, 8, 24, 24, 1), torch.randn(1, 8, 104)
    fronts = {"video": encoder.front("video", lips), "audio": encoder.front("audio", sound)}
    length = torch.tensor([8])

    def run(given: dict[str, torch.Tensor]) -> torch.Tensor:
        return encoder.run(*encoder.place(encoder.fuse(encoder.join(given)), length)).tokens

    both, seen = run(fronts), run({"video": fronts["video"]})
    assert not torch.allclose(both, seen, atol=1e-3)
    torch.testing.assert_close(run(fronts | {"audio": torch.zeros_like(fronts["audio"])}), seen, atol=0, rtol=0)
    torch.testing.assert_close(encoder(lips, length).tokens, seen)
    torch.testing.assert_close(encoder(sound, length).tokens, run({"audio": fronts["audio"]}))
    # Sound comes first.
    assert encoder.join(fronts)[..., :16].equal(fronts["audio"])


@torch.no_grad()
@pytest.mark.parametrize("stream", ["video", "audio"])
def test_padding_changes_nothing_whatever_it_holds(encoder: SpeechEncoder, stream: str) -> None:
    data = torch.randn(2, 10, 24, 24, 1) if stream == "video" else torch.randn(2, 10, 104)
    data[1, 6:] = 5.0
    padded = encoder(data, torch.tensor([10, 6]), layers=True)
    alone = encoder(data[1:, :6], torch.tensor([6]), layers=True)
    torch.testing.assert_close(padded.tokens[1:, :6], alone.tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded.pooled[1:], alone.pooled, atol=1e-5, rtol=0)
    assert padded.layers is not None and alone.layers is not None
    for one, other in zip(padded.layers, alone.layers, strict=True):
        torch.testing.assert_close(one[1:, :6], other, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_last_layer_is_not_yet_normalised(encoder: SpeechEncoder) -> None:
    found = encoder(torch.randn(1, 6, 104), layers=True)
    assert found.layers is not None and len(found.layers) == 2
    assert not torch.allclose(found.layers[-1], found.tokens)
    torch.testing.assert_close(encoder.norm(found.layers[-1]), found.tokens)


@torch.no_grad()
def test_a_row_of_nothing_and_kept_tokens(encoder: SpeechEncoder) -> None:
    sound = torch.randn(2, 6, 104)
    found = encoder(sound, torch.tensor([6, 0]))
    assert found.tokens.isfinite().all() and torch.equal(found.pooled[1], torch.zeros(16))
    some = encoder(sound, torch.tensor([6, 3]), keep=torch.tensor([[4, 1], [0, 5]]))
    assert some.tokens.shape == (2, 2, 16) and some.length.tolist() == [2, 1]


@torch.no_grad()
def test_layer_drop_passes_by_blocks_in_training_only() -> None:
    encoder = _encoder(layer_drop=0.999)
    sound = torch.randn(1, 6, 104)
    torch.manual_seed(0)
    trained = encoder.train()(sound, layers=True)
    assert trained.layers is not None and torch.equal(trained.layers[0], trained.layers[1])
    whole = encoder.eval()(sound, layers=True)
    assert whole.layers is not None and not torch.equal(whole.layers[0], whole.layers[1])


@torch.no_grad()
def test_positions_are_a_weight_normalised_convolution() -> None:
    layer = PositionConvolution(8, 4, 2)
    direction = layer.direction.clone()
    x = torch.randn(1, 5, 8)
    before = layer(x)
    layer.direction.mul_(3.0)  # its length does not count
    torch.testing.assert_close(layer(x), before)
    weight = direction * layer.scale / direction.norm(dim=(0, 1), keepdim=True)
    whole = nn.functional.conv1d(x.transpose(1, 2), weight, layer.bias, padding=2, groups=2)
    assert whole.shape[-1] == 6
    torch.testing.assert_close(before, nn.functional.gelu(whole[..., :5]).transpose(1, 2))
    assert layer.scale.shape == (1, 1, 4)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="position_groups 5 does not divide width 16"):
        SpeechConfig(width=16, heads=4, position_groups=5)


def test_sound_follows_the_picture() -> None:
    span = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    lips = Clip(torch.ones(2, 5, 4, 4, 1), torch.tensor([5, 0]), span)
    sound = Clip(torch.ones(2, 6, 3), torch.tensor([4, 6]), span + 10)
    view = {"video": lips, "audio": sound}
    length, seconds = leading(view)
    assert length.tolist() == [5, 6] and seconds.tolist() == [1.0, 13.0]
    assert step_count(view) == 6  # the second row is heard only
    assert step_count({"video": Clip(lips.data, torch.tensor([5, 5]), span), "audio": sound}) == 5
    assert align(sound, 7)[..., 0].tolist() == [[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]]
    assert align(sound, 3).shape == (2, 3, 3)
