"""The T5-style text encoder (vatt, section 4, checks 6 and 7)."""

import torch
from torch.nn import functional

from triptych.encoders.text import T5Encoder, T5Size

SIZE = T5Size(layers=2, width=12, heads=3, head_width=4, hidden=20, buckets=8, distance=16)
WORDS = torch.tensor([[3, 4, 5, 0, 0, 0], [7, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])


def _encoder(**options: object) -> T5Encoder:
    torch.manual_seed(0)
    return T5Encoder(SIZE, 20, 5, frozen=True, dropout=0.0, **options).eval()  # type: ignore[arg-type]


def test_padding_is_not_attended_to() -> None:
    encoder = _encoder()
    found, longer = encoder(WORDS), encoder(functional.pad(WORDS, (0, 4)))
    torch.testing.assert_close(found.pooled, longer.pooled)
    assert found.length.tolist() == [3, 1, 0] and found.grid == (6, 1, 1) and found.tokens.shape == (3, 6, 12)


def test_without_a_word_only_the_aggregation_token_is_there() -> None:
    encoder = _encoder()
    nothing = encoder(WORDS).pooled[2]
    assert nothing.isfinite().all()
    torch.testing.assert_close(nothing, encoder(torch.zeros(1, 0, dtype=torch.long)).pooled[0])


def test_the_order_of_words_counts_by_distance_alone() -> None:
    encoder = _encoder()
    found = encoder(torch.tensor([[3, 4, 5]])).pooled
    assert not torch.allclose(found, encoder(torch.tensor([[5, 4, 3]])).pooled)
    torch.nn.init.zeros_(encoder.relative.weight)
    found = encoder(torch.tensor([[3, 4, 5]])).pooled
    torch.testing.assert_close(found, encoder(torch.tensor([[5, 4, 3]])).pooled)


def test_kept_words_stay_where_they_were() -> None:
    encoder = _encoder()
    order = torch.tensor([[2, 0, 1, 5, 4, 3]]).expand(3, -1)
    found, moved = encoder(WORDS), encoder(WORDS, keep=order)
    torch.testing.assert_close(moved.pooled, found.pooled)
    torch.testing.assert_close(moved.tokens, found.tokens[:, order[0]])


def test_the_bias_of_layer_0_serves_all_layers() -> None:
    encoder = _encoder()
    assert [name for name, _ in encoder.named_parameters() if "relative" in name] == ["relative.weight"]
    found = encoder(WORDS, layers=True).layers
    assert found is not None and len(found) == 2
    places, there = torch.arange(7)[None], functional.pad(WORDS != 0, (1, 0), value=True)
    bias = encoder.bias(places, there)
    torch.testing.assert_close(encoder.blocks[1](found[0], bias), found[1])
    assert (bias[1, :, :, 2:] == -1e9).all() and (bias[:, :, :, 0] > -1e9).all()


def test_the_maximum_is_over_words_and_the_aggregation_token() -> None:
    found = _encoder(pool="max")(WORDS)
    assert found.special is not None
    torch.testing.assert_close(found.pooled[1], torch.cat([found.special[1], found.tokens[1, :1]]).amax(dim=0))


def test_the_published_parameter_count() -> None:
    with torch.device("meta"):
        encoder = T5Encoder(T5Size(), 65_536, 300, frozen=True, dropout=0.1)
    assert sum(p.numel() for p in encoder.parameters()) == 19_038_252
