"""Vision transformers: order of tokens, kept tokens, other sizes, the public stages."""

import pytest
import torch

from triptych.encoders.audio_vit import AudioViT
from triptych.encoders.vit import VideoViT, ViT, ViTConfig

TINY = ViTConfig(width=16, layers=2, heads=2)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _video(**options: object) -> VideoViT:
    return VideoViT(TINY.model_copy(update=options), frames=4, size=12, tubelet=(2, 4)).eval()


@pytest.mark.parametrize(
    ("width", "heads", "layers", "block"),
    [(384, 6, 12, 1_774_464), (768, 12, 12, 7_087_872), (1024, 16, 24, 12_596_224), (1280, 16, 32, 19_677_440)],
)
def test_blocks_have_the_published_number_of_parameters(width: int, heads: int, layers: int, block: int) -> None:
    """vision-transformers-common, section 1."""
    with torch.device("meta"):
        encoder = VideoViT(ViTConfig(width=width, heads=heads, layers=layers), frames=1, tubelet=(1, 16))
    assert _count(encoder.blocks[0]) == block
    assert _count(encoder) == layers * block + 197 * width + width + 768 * width + width + 2 * width


def test_tokens_stand_in_the_order_time_row_column() -> None:
    encoder = _video(class_token=False)
    video = torch.zeros(1, 4, 12, 12, 3)
    video[0, 2:4, 4:8, 8:12] = 1.0  # tubelet (1, 1, 2) of (2, 3, 3)
    filled = encoder.patches(video).any(dim=-1)[0].nonzero()[:, 0]
    assert filled.tolist() == [1 * 9 + 1 * 3 + 2]
    assert encoder(video).grid == (2, 3, 3)
    sound = AudioViT(TINY, steps=12, mels=8, patch=(4, 2))
    spectrogram = torch.zeros(1, 12, 8)
    spectrogram[0, 4:8, 6:8] = torch.arange(8.0).view(4, 2) + 1
    patches = sound.patches(spectrogram)
    assert patches.any(dim=-1)[0].nonzero()[:, 0].tolist() == [1 * 4 + 3]
    assert patches[0, 7].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]


def test_keeping_all_tokens_differs_only_in_their_order() -> None:
    encoder, video = _video(), torch.randn(2, 4, 12, 12, 3)
    keep = torch.rand(2, 18).argsort(dim=1)
    whole, shuffled = encoder(video), encoder(video, keep=keep)
    torch.testing.assert_close(shuffled.pooled, whole.pooled)
    torch.testing.assert_close(shuffled.tokens, whole.tokens.gather(1, keep[..., None].expand(-1, -1, 16)))


def test_hidden_patches_are_not_seen() -> None:
    encoder, video = _video(), torch.randn(2, 4, 12, 12, 3)
    keep = torch.tensor([[0, 5, 7], [3, 4, 17]])
    before = encoder(video, keep=keep)
    hidden = torch.ones(2, 18, dtype=torch.bool).scatter(1, keep, False)
    cut = video.unflatten(1, (2, 2)).unflatten(3, (3, 4)).unflatten(5, (3, 4))
    noise = torch.randn_like(cut) * hidden.view(2, 2, 1, 3, 1, 3, 1, 1)
    after = encoder((cut + noise).flatten(5, 6).flatten(3, 4).flatten(1, 2), keep=keep)
    assert torch.equal(before.tokens, after.tokens)
    assert before.grid is None and before.length.tolist() == [3, 3]


def test_clips_of_other_sizes_are_encoded_and_what_fills_no_patch_is_left_out() -> None:
    encoder = _video()
    features = encoder(torch.randn(2, 3, 9, 17, 3))
    assert features.grid == (1, 2, 4) and features.tokens.shape == (2, 8, 16)
    assert features.special is not None and features.special.shape == (2, 1, 16)


def test_the_public_stages_are_the_forward_pass() -> None:
    encoder, video = _video(), torch.randn(2, 4, 12, 12, 3)
    x, valid = encoder.enter(video)
    torch.testing.assert_close(x[:, 1:], encoder.tokenize(video))
    outputs = []
    for block in encoder.blocks:
        x = block(x)
        outputs.append(x)
    whole = encoder(video, layers=True)
    assert torch.equal(encoder.finish(x, valid).pooled, whole.pooled)
    assert whole.layers is not None and all(torch.equal(a, b) for a, b in zip(outputs, whole.layers, strict=True))


def test_length_counts_the_tokens_of_begun_patches() -> None:
    encoder = AudioViT(TINY, steps=12, mels=8, patch=(4, 2))
    length = torch.tensor([0, 1, 8, 12, 99])
    assert encoder(torch.randn(5, 12, 8), length).length.tolist() == [0, 4, 8, 12, 12]


@pytest.mark.parametrize("norm", ["tokens", "pooled", "none"])
@pytest.mark.parametrize("pool", ["mean", "class"])
def test_norm_and_pool_stand_where_they_are_asked_for(norm: str, pool: str) -> None:
    encoder: ViT = _video(norm=norm, pool=pool)
    x = torch.randn(2, 19, 16) * 5 + 3
    found = encoder.finish(x, torch.tensor([18, 18]))
    tokens = encoder.norm(x) if norm == "tokens" else x
    torch.testing.assert_close(found.tokens, tokens[:, 1:])
    pooled = tokens[:, 0] if pool == "class" else tokens[:, 1:].mean(dim=1)
    torch.testing.assert_close(found.pooled, encoder.norm(pooled) if norm == "pooled" else pooled)


def test_drop_path_rises_from_none() -> None:
    encoder = VideoViT(ViTConfig(width=16, layers=3, heads=2, drop_path=0.2), 4, 12, (2, 4))
    assert [block.drop_path for block in encoder.blocks] == pytest.approx([0.0, 0.1, 0.2])


def test_a_class_token_that_is_not_there_cannot_be_pooled() -> None:
    with pytest.raises(ValueError, match="class_token"):
        _video(class_token=False, pool="class")


def test_a_stem_does_not_see_hidden_patches_and_keeps_their_places() -> None:
    video = VideoViT(TINY, frames=4, size=16, tubelet=(2, 8), stem=((4, 2), (6, 2))).eval()
    sound = AudioViT(TINY, steps=16, mels=8, patch=(4, 4), stem=((4, 2, 2), (6, 2, 1))).eval()
    for encoder, data in ((video, torch.randn(2, 4, 16, 16, 3)), (sound, torch.randn(2, 16, 8))):
        keep = torch.tensor([[0, 3], [5, 2]])
        before = encoder(data, keep=keep)
        hidden = data.clone()
        hidden[0, -2:] += 1.0  # in tokens 4 to 7, and 6 and 7
        assert torch.equal(encoder(hidden, keep=keep).tokens[0], before.tokens[0])
        assert not torch.equal(encoder(hidden).tokens[0], encoder(data).tokens[0])
        whole = encoder(data, keep=torch.arange(8).expand(2, 8))
        torch.testing.assert_close(whole.tokens, encoder(data).tokens)
        assert encoder(data).grid == encoder.grid
