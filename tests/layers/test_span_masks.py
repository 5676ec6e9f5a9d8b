"""Spans that are hidden, and what is shown in their place."""

import pytest
import torch

from triptych.layers.span_masks import keep_outside_spans, substitutes


def _noise(rows: int, steps: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    number = torch.rand(rows, generator=generator)
    places, thinning = torch.rand(2, rows, steps, generator=generator)
    return number, places, thinning


def test_overlapping_spans_hide_about_half_of_a_long_row_and_equally_much_of_all() -> None:
    length = torch.full((16,), 500)
    hidden = ~keep_outside_spans(length, 0.8, 10, *_noise(16, 500))
    counts = hidden.sum(dim=1)
    assert counts.unique().numel() == 1
    assert 0.45 <= counts[0] / 500 <= 0.62


def test_spans_by_hand() -> None:
    # 0.5 * 6 / 2 + 0.4 = 1.9: two spans at least, from the two of the first four steps with the lowest noise.
    places = torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.0, 0.0]])
    kept = keep_outside_spans(torch.tensor([6]), 0.5, 2, torch.tensor([0.4]), places, torch.rand(1, 6))
    assert kept.tolist() == [[True, False, False, False, False, True]]


def test_noise_rounds_the_number_of_spans() -> None:
    length, places = torch.tensor([30, 30]), torch.rand(1, 30).repeat(2, 1)
    thin = torch.rand(1, 30).repeat(2, 1)
    # 0.34 * 30 / 3 = 3.4: three or four spans; the first row is thinned to nothing less than what the second hides.
    kept = keep_outside_spans(length[:1], 0.34, 3, torch.tensor([0.7]), places[:1], thin[:1])
    less = keep_outside_spans(length[:1], 0.34, 3, torch.tensor([0.5]), places[:1], thin[:1])
    assert (~kept).sum() > (~less).sum()


def test_only_valid_steps_are_hidden_and_rows_without_any_do_not_count() -> None:
    length = torch.tensor([20, 0, 12])
    hidden = ~keep_outside_spans(length, 0.5, 4, *_noise(3, 24))
    assert not hidden[1].any() and not hidden[0, 20:].any() and not hidden[2, 12:].any()
    assert hidden[0].sum() == hidden[2].sum() > 0


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_a_row_shorter_than_its_spans_is_hidden_in_part(steps: int) -> None:
    for seed in range(5):
        hidden = ~keep_outside_spans(torch.tensor([steps]), 0.8, 10, *_noise(1, steps, seed))
        assert hidden.sum() <= steps


def test_thinning_shows_steps_of_the_row_that_hides_more() -> None:
    length = torch.tensor([40, 10])
    number, places, thinning = _noise(2, 40)
    alone = ~keep_outside_spans(length[:1], 0.8, 5, number[:1], places[:1], thinning[:1])
    together = ~keep_outside_spans(length, 0.8, 5, number, places, thinning)
    assert together[0].sum() == together[1].sum() < alone.sum()
    assert not (together[0] & ~alone[0]).any()


def test_substitutes_by_hand() -> None:
    kept = torch.ones(1, 10, dtype=torch.bool)
    kept[0, 4:6] = False
    length = torch.tensor([10])
    # A run of two from 4: starts 2 to 5 are forbidden, which leaves 0, 1, 6, 7, 8, 9.
    for noise, begin in ((0.0, 0), (0.2, 1), (0.4, 6), (0.99, 9)):
        source = substitutes(kept, length, torch.full((1, 10), noise))
        assert source[0].tolist() == [0, 1, 2, 3, begin, min(begin + 1, 9), 6, 7, 8, 9]


def test_a_run_takes_one_stretch_and_each_run_its_own() -> None:
    kept = torch.tensor([[True] * 3 + [False] * 3 + [True] * 8 + [False] * 2 + [True] * 4])
    noise = torch.zeros(1, 20)
    noise[0, 3], noise[0, 14] = 0.99, 0.0
    source = substitutes(kept, torch.tensor([18]), noise)[0]
    assert source[3:6].tolist() == [17, 17, 17]  # from the last valid step on, which goes on
    assert source[14:16].tolist() == [0, 1]
    assert source[18:].tolist() == [18, 19]


def test_a_run_without_another_stretch_begins_at_zero() -> None:
    kept = torch.zeros(1, 4, dtype=torch.bool)
    assert substitutes(kept, torch.tensor([4]), torch.full((1, 4), 0.7))[0].tolist() == [0, 1, 2, 3]


def test_substitutes_lie_outside_the_run_and_the_stretch_before_it() -> None:
    generator = torch.Generator().manual_seed(3)
    length = torch.full((64,), 50)
    kept = keep_outside_spans(length, 0.3, 5, *_noise(64, 50, seed=1))
    source = substitutes(kept, length, torch.rand(64, 50, generator=generator))
    assert torch.equal(source[kept], torch.arange(50).expand(64, 50)[kept])
    starts = ~kept & torch.cat([torch.ones(64, 1, dtype=torch.bool), kept[:, :-1]], dim=1)
    for row, start in starts.nonzero().tolist():
        end = start
        while end < 50 and not kept[row, end]:
            end += 1
        begin = int(source[row, start])
        assert not max(0, 2 * start - end) <= begin < end
        assert source[row, start:end].tolist() == [min(begin + n, 49) for n in range(end - start)]
