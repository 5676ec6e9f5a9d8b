"""Encoders of raw signals: cuts, places, what is kept, what is read (vatt, sections 4 and 5)."""

import pytest
import torch
from torch import Tensor

from triptych.encoders.raw_signal import (
    Cut,
    RawSignalEncoder,
    Spectrogram,
    Transformer,
    TransformerSize,
    Voxels,
    Waveform,
    Words,
)
from triptych.layers.patches import ConvolutionalStem

SIZE = TransformerSize(layers=2, width=12, heads=2, head_width=4, hidden=20)


def _encoder(cut: Cut, modality: str, **options: object) -> RawSignalEncoder:
    torch.manual_seed(0)
    return RawSignalEncoder(modality, cut, Transformer(SIZE, 0.0), 0.0, **options).eval()  # type: ignore[arg-type]


def _video() -> tuple[RawSignalEncoder, Tensor]:
    return _encoder(Voxels(4, (16, 24), (2, 8)), "video"), torch.randn(3, 4, 16, 24, 3)


def test_voxels_are_cut_in_the_order_time_height_width() -> None:
    cut = Voxels(4, (16, 24), (2, 8))
    video = torch.arange(4 * 16 * 24.0).view(1, 4, 16, 24, 1).expand(-1, -1, -1, -1, 3)
    tokens = cut(video)
    assert cut.buckets == {"time": 2, "height": 2, "width": 3} and tokens.shape == (1, 12, 2 * 8 * 8 * 3)
    first = [int(token[0]) for token in tokens[0]]
    assert first == [t * 16 * 24 + y * 24 + x for t in (0, 2) for y in (0, 8) for x in (0, 8, 16)]
    assert torch.equal(cut(torch.cat([video, video[:, :1]], dim=1)), tokens)  # what fills no token is left out


def test_a_projection_of_voxels_is_the_convolution() -> None:
    encoder, video = _video()
    weight = encoder.project.weight.unflatten(1, (2, 8, 8, 3)).permute(0, 4, 1, 2, 3)
    convolved = torch.nn.functional.conv3d(video.permute(0, 4, 1, 2, 3), weight, encoder.project.bias, stride=(2, 8, 8))
    torch.testing.assert_close(encoder.project(encoder.cut(video)), convolved.flatten(2).transpose(1, 2))


def test_spectrograms_are_cut_in_the_order_time_mel() -> None:
    cut = Spectrogram(150, 80, (16, 5))
    assert cut.buckets == {"time": 9, "mels": 16} and cut.values == 80 and not cut.bias
    tokens = cut(torch.arange(150 * 80.0).view(1, 150, 80))
    assert tokens.shape == (1, 144, 80)
    assert tokens[0, 17, :6].tolist() == [16 * 80 + 5 + i for i in range(5)] + [17 * 80 + 5]
    assert _encoder(cut, "audio").project.bias is None


def test_stems_keep_the_grid() -> None:
    video = Voxels(4, (16, 16), (2, 8), stem=((6, 2), (8, 2)))
    assert isinstance(video.stem, ConvolutionalStem)
    assert video.eval()(torch.randn(3, 4, 16, 16, 3)).shape == (3, 8, video.values) == (3, 8, 16)
    sound = Spectrogram(24, 16, (8, 8), stem=((6, 2, 4), (5, 2, 1)))
    assert sound.eval()(torch.randn(3, 24, 16)).shape == (3, 6, sound.values) == (3, 6, 20)


def test_the_aggregation_token_has_no_place_and_sees_a_set() -> None:
    """In evaluation the pooled vector does not depend on the order of tokens that have their positions (check 4)."""
    encoder, video = _video()
    order = torch.stack([torch.randperm(12) for _ in range(3)])
    found, moved = encoder(video), encoder(video, keep=order)
    torch.testing.assert_close(moved.pooled, found.pooled)
    torch.testing.assert_close(moved.tokens, found.tokens.gather(1, order[..., None].expand(-1, -1, 12)))
    assert found.grid == (2, 2, 3) and moved.grid is None


def test_other_lengths_and_sizes_are_reached_by_the_spline() -> None:
    encoder, _ = _video()
    found = encoder(torch.randn(2, 6, 32, 24, 3))
    assert found.tokens.shape == (2, 3 * 4 * 3, 12) and found.grid == (3, 4, 3)
    sound = _encoder(Waveform(64, 8), "audio")
    assert sound(torch.randn(2, 99)).grid == (12, 1, 1)


def test_valid_tokens_are_those_that_begin_before_the_end() -> None:
    encoder, video = _video()
    assert encoder(video, torch.tensor([4, 1, 0])).length.tolist() == [12, 6, 0]
    assert encoder(video).length.tolist() == [12, 12, 12]
    keep = torch.tensor([[0, 11], [0, 11], [0, 11]])
    assert encoder(video, torch.tensor([4, 1, 0]), keep).length.tolist() == [2, 1, 0]


def test_padding_of_words_is_not_attended_to_and_that_of_signals_is() -> None:
    text = _encoder(Words(6, 20, 5, frozen=False), "text", projected=7)
    words = torch.tensor([[3, 4, 5, 0, 0, 0]])
    found = text(words)
    found.pooled.sum().backward()
    reached = text.positions.tables["time"].grad
    assert reached is not None and reached[:3].abs().min() > 0 and not reached[3:].any()
    assert found.length.tolist() == [3] and text.width == found.pooled.shape[1] == 7
    nothing = text(torch.zeros(1, 6, dtype=torch.long))
    assert nothing.pooled.isfinite().all() and nothing.length.tolist() == [0]
    encoder, video = _video()
    torch.testing.assert_close(encoder(video, torch.tensor([2, 2, 2])).pooled, encoder(video).pooled)


def test_the_maximum_is_over_valid_tokens_and_the_aggregation_token() -> None:
    encoder = _encoder(Waveform(64, 8), "audio", pool="max")
    found = encoder(torch.randn(2, 64), torch.tensor([24, 0]))
    assert found.special is not None
    torch.testing.assert_close(found.pooled[0], torch.cat([found.special[0], found.tokens[0, :3]]).amax(dim=0))
    torch.testing.assert_close(found.pooled[1], found.special[1, 0])


def test_its_stages_are_its_forward_pass() -> None:
    encoder, video = _video()
    x, valid = encoder.enter(video, torch.tensor([4, 2, 4]))
    layers = []
    for block in encoder.blocks:
        x = x + block.attend(x)
        x = x + block.feed(x)
        layers.append(x)
    found = encoder(video, torch.tensor([4, 2, 4]), layers=True)
    torch.testing.assert_close(encoder.finish(x, valid).pooled, found.pooled)
    assert found.layers is not None
    for one, other in zip(layers, found.layers, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("module", ["transformer.norm", "after"])
def test_what_lies_behind_the_layers_is_named(module: str) -> None:
    encoder, _ = _video()
    assert module in encoder.last and encoder.get_submodule(module) is not None


def test_published_parameter_counts() -> None:
    with torch.device("meta"):
        base = RawSignalEncoder("video", Voxels(32, (224, 224), (4, 16)), Transformer(TransformerSize(), 0.1), 0.1)
        sound = Waveform(153_600, 128)
        text = Words(16, 65_536, 300, frozen=True)
    counts = {
        name: sum(p.numel() for p in base.get_submodule(name).parameters()) for name in ("transformer", "project")
    }
    assert counts == {"transformer": 85_056_000, "project": 2_360_064}
    assert base.buckets == 1568 and sound.buckets == {"time": 1200}
    assert not list(text.parameters()) and text.words.weight.shape == (65_536, 300)
    with torch.device("meta"):
        assert base.grid(torch.empty(2, 32, 224, 224, 3)) == (8, 14, 14)
        assert sound.grid(torch.empty(2, 153_600)) == (1200,)
