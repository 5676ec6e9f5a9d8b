"""Swin V2: its windows against attention written out token by token."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from triptych.encoders.swin import PatchMerging, Swin, SwinBlock, WindowAttention, log_spaced_offsets, stage_sides


def _scramble(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def _attend_slowly(attention: WindowAttention, frame: Tensor, window: int, shift: int) -> Tensor:
    """Each token of a map looks at the tokens of its window of the rolled map that are near it in the picture."""
    side, width = frame.shape[0], frame.shape[2]
    heads = attention.heads
    bias = torch.cat([attention.query_bias, torch.zeros(width), attention.value_bias])
    query, key, value = (x.unflatten(-1, (heads, -1)) for x in (attention.qkv(frame) + bias).chunk(3, dim=-1))
    places = [(row, column) for row in range(side) for column in range(side)]
    out = torch.zeros(side, side, width)
    for row, column in places:
        seen = []
        for other_row, other_column in places:
            pairs = ((row, other_row), (column, other_column))
            together = all((a - shift) % side // window == (b - shift) % side // window for a, b in pairs)
            if together and all(abs(a - b) < window for a, b in pairs):
                seen.append((other_row, other_column))
        mixed = []
        for head in range(heads):
            scores = []
            for other in seen:
                offsets = torch.tensor([row - other[0], column - other[1]]) * 8.0 / (window - 1)
                offsets = offsets.sign() * (offsets.abs() + 1).log2() / math.log2(8)
                position = 16 * attention.position(offsets)[head].sigmoid()
                cosine = functional.cosine_similarity(query[row, column, head], key[other][head], dim=0)
                scores.append(cosine * attention.logit_scale[head, 0, 0].clamp(max=math.log(100)).exp() + position)
            weights = torch.stack(scores).softmax(dim=0)
            mixed.append(sum(weight * value[other][head] for weight, other in zip(weights, seen, strict=True)))
        out[row, column] = attention.output(torch.cat(mixed))
    return out


@pytest.mark.parametrize(("side", "window", "shifted"), [(4, 2, True), (4, 2, False), (3, 4, True), (6, 3, True)])
def test_windows_are_as_written_out(side: int, window: int, shifted: bool) -> None:
    torch.manual_seed(side)
    block = SwinBlock(4, 2, (side, side), window, shifted, 2.0)
    _scramble(block)
    x = torch.randn(2, 2 * side * side, 4)  # two rows of two frames
    cut = min(side, window)
    shift = window // 2 if shifted and side > window else 0
    assert block.shift == (shift, shift) and block.window == (cut, cut)
    with torch.no_grad():
        found = block.attend(x).unflatten(1, (2, side, side))
        for row in range(2):
            for frame in range(2):
                wanted = _attend_slowly(block.attention, x.unflatten(1, (2, side, side))[row, frame], cut, shift)
                torch.testing.assert_close(found[row, frame], block.norm1(wanted), atol=1e-5, rtol=1e-4)


def test_offsets_are_spaced_by_their_logarithm() -> None:
    offsets = log_spaced_offsets((12, 12))
    assert offsets.shape == (23 * 23, 2) and offsets[23 * 23 // 2].tolist() == [0.0, 0.0]
    assert offsets[0].tolist() == pytest.approx([-math.log(9, 8)] * 2)
    assert offsets[1].tolist() == pytest.approx([-math.log(9, 8), -math.log(1 + 80 / 11, 8)])
    assert log_spaced_offsets((1, 1)).tolist() == [[0.0, 0.0]]


def test_merging_takes_squares_column_by_column() -> None:
    merging = PatchMerging(1, (2, 4))
    merging.norm = torch.nn.Identity()  # type: ignore[assignment]
    merging.reduction = torch.nn.Identity()  # type: ignore[assignment]
    x = torch.arange(8.0).view(1, 8, 1)  # rows 0 1 2 3 and 4 5 6 7
    assert merging(x)[0].tolist() == [[0, 4, 1, 5], [2, 6, 3, 7]]


def _tiny() -> Swin:
    torch.manual_seed(0)
    return Swin(size=32, patch=4, width=8, depths=(2, 1), heads=(2, 4), window=4, ratio=2.0)


def test_a_new_block_adds_nothing_and_a_frame_is_seen_by_itself() -> None:
    swin = _tiny()
    x = torch.randn(2, 64, 8)
    assert torch.equal(swin.blocks[1](x), x)  # res-post-norm weights begin at zero
    _scramble(swin)
    clip = torch.randn(2, 3, 32, 32, 3)
    with torch.no_grad():
        found = swin(clip, layers=True)
        alone = swin(clip[:, 1:2])
    assert found.grid == (3, 4, 4) and found.tokens.shape == (2, 48, 16) and found.length.tolist() == [48, 48]
    torch.testing.assert_close(found.tokens[:, 16:32], alone.tokens)
    torch.testing.assert_close(found.pooled, found.tokens.mean(dim=1))
    assert found.layers is not None and [x.shape[1:] for x in found.layers] == [(192, 8)] * 2 + [(48, 16)] * 2
    with pytest.raises(ValueError, match="all tokens"):
        swin(clip, keep=torch.zeros(2, 1, dtype=torch.long))


def test_stages_are_public() -> None:
    swin = _tiny()
    _scramble(swin)
    clip = torch.randn(1, 1, 32, 32, 3)
    with torch.no_grad():
        x, valid = swin.enter(clip)
        for block in swin.blocks:
            if isinstance(block, PatchMerging):
                x = block(x)
            else:
                x = x + block.attend(x)
                x = x + block.feed(x)
        torch.testing.assert_close(swin.finish(x, valid).pooled, swin(clip).pooled)


def test_the_large_one_has_its_published_size() -> None:
    with torch.device("meta"):
        swin = Swin()
    classifier = 1536 * 21_841 + 21_841  # ImageNet-22k's; timm counts 228.77 M with it
    assert sum(parameter.numel() for parameter in swin.parameters()) + classifier == pytest.approx(228.77e6, rel=1e-4)
    assert len(swin.blocks) == 24 + 3


def test_sides_that_do_not_fit_are_refused() -> None:
    assert stage_sides(192, 4, 12, 4) == (48, 24, 12, 6)
    with pytest.raises(ValueError, match="patches of 4 pixels do not divide frames of 50"):
        stage_sides(50, 4, 4, 1)
    with pytest.raises(ValueError, match="3 x 3 tokens cannot be merged"):
        stage_sides(12, 4, 4, 2)
    with pytest.raises(ValueError, match="windows of 5 tokens do not divide a map of 8 x 8"):
        stage_sides(32, 4, 5, 1)
