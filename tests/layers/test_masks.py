"""Kept tokens: counts of the papers, indices from noise."""

import pytest
import torch

from triptych.layers.masks import count_kept, hidden, keep_lowest, pick


@pytest.mark.parametrize(
    ("tokens", "ratio", "floor", "nearest"),
    [(10, 0.8, 1, 2), (512, 0.8, 102, 102), (784, 0.8, 156, 157), (560, 0.8, 111, 112), (392, 0.85, 58, 59)],
)
def test_counts_are_those_of_the_papers(tokens: int, ratio: float, floor: int, nearest: int) -> None:
    """vision-transformers-common, section 4; xkd, trap 3."""
    assert count_kept(tokens, ratio) == floor
    assert count_kept(tokens, ratio, "round") == nearest


def test_a_hundred_tokens_of_which_nine_tenths_are_hidden_keep_nine() -> None:
    """cav-mae, trap 9: 100 (1 - 0.9) is 9.999999999999998 in double precision."""
    assert count_kept(100, 0.9) == 9


def test_the_lowest_noise_is_kept_in_its_order() -> None:
    noise = torch.tensor([[0.5, 0.1, 0.9, 0.3], [0.2, 0.8, 0.4, 0.6]])
    keep = keep_lowest(noise, 2)
    assert keep.tolist() == [[1, 3], [0, 2]]
    assert hidden(keep, 4).tolist() == [[True, False, True, False], [False, True, False, True]]
    x = torch.arange(8.0).view(2, 4, 1).expand(2, 4, 3)
    assert pick(x, keep)[..., 0].tolist() == [[1.0, 3.0], [4.0, 6.0]]


def test_each_row_hides_what_it_does_not_keep() -> None:
    keep = keep_lowest(torch.rand(5, 20), 7)
    assert hidden(keep, 20).sum(dim=1).tolist() == [13] * 5
