"""Relative positions and the text block of T5 (vatt, section 4)."""

import math

import pytest
import torch

from triptych.layers.t5 import T5Block, relative_buckets


def test_buckets_of_the_published_sizes() -> None:
    """32 buckets, 64 words: 16 each way, of which 8 are exact."""
    before = relative_buckets(-torch.tensor([0, 1, 7, 8, 9, 11, 16, 20, 63, 64, 100]), 32, 64)
    assert before.tolist() == [0, 1, 7, 8, 8, 9, 10, 11, 15, 15, 15]
    after = relative_buckets(torch.tensor([1, 7, 8, 11, 63, 64, 100]), 32, 64)
    assert after.tolist() == [17, 23, 24, 25, 31, 31, 31]
    assert 8 + int(math.log(20 / 8) / math.log(64 / 8) * 8) == 11


@pytest.mark.parametrize(("buckets", "distance"), [(8, 16), (32, 64), (16, 32)])
def test_buckets_grow_with_the_distance_and_are_all_used(buckets: int, distance: int) -> None:
    before = relative_buckets(-torch.arange(2 * distance), buckets, distance)
    after = relative_buckets(torch.arange(1, 2 * distance), buckets, distance)
    assert (before.diff() >= 0).all() and (after.diff() >= 0).all()
    assert before.unique().tolist() == list(range(buckets // 2))
    assert after.unique().tolist() == list(range(buckets // 2 + 1, buckets))


def test_scores_are_not_scaled_and_the_norms_are_of_two_kinds() -> None:
    torch.manual_seed(0)
    block = T5Block(width=6, heads=2, head_width=3, hidden=8, dropout=0.0).eval()
    x, bias = torch.randn(1, 4, 6), torch.randn(1, 2, 4, 4)
    normed = x / x.square().mean(dim=-1, keepdim=True).add(1e-6).sqrt()
    query, key, value = (
        part.unflatten(-1, (2, 3)).transpose(1, 2) for part in block.attention.qkv(normed).chunk(3, dim=-1)
    )
    attended = ((query @ key.transpose(-1, -2) + bias).softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.attend(x, bias), block.attention.output(attended))
    centred = x - x.mean(dim=-1, keepdim=True)
    normed = centred / centred.square().mean(dim=-1, keepdim=True).add(1e-6).sqrt()
    hidden = torch.nn.functional.gelu(block.linear1(normed))
    torch.testing.assert_close(block.feed(x), block.linear2(hidden))
    assert not [name for name, _ in block.named_parameters() if name.endswith("bias") and "norm2" not in name]
