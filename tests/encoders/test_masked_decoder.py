"""The decoder of masked autoencoders."""

import pytest
import torch

from triptych.encoders.masked_decoder import MaskedDecoder, MaskedDecoderConfig

TINY = MaskedDecoderConfig(width=8, layers=1, heads=2)


def test_tokens_go_where_they_come_from() -> None:
    decoder = MaskedDecoder(TINY.model_copy(update={"class_token": "none"}), 6, (1, 2, 3), 5).eval()
    tokens, keep = torch.randn(2, 3, 6), torch.tensor([[4, 0, 2], [1, 5, 3]])
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(decoder(tokens, keep), decoder(tokens[:, order], keep[:, order]))
    assert decoder(tokens, keep).shape == (2, 6, 5)


@pytest.mark.parametrize("kind", ["encoder", "own", "none"])
def test_every_parameter_takes_part(kind: str) -> None:
    decoder = MaskedDecoder(TINY.model_copy(update={"class_token": kind}), 6, (1, 2, 3), 5)
    special = torch.randn(2, 1, 6) if kind == "encoder" else None
    decoder(torch.randn(2, 2, 6), torch.tensor([[4, 0], [1, 5]]), special).square().sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
