"""The head of prototypes."""

import torch
from torch.nn import functional

from triptych.layers.prototypes import PrototypeHead


def test_scores_are_normed_cosines_times_the_gain() -> None:
    head = PrototypeHead(6, hidden=8, bottleneck=4, prototypes=5, layers=3)
    x = torch.randn(3, 6)
    hidden = functional.gelu(head.norm(head.hidden[0](x)))
    hidden = functional.gelu(head.norm(head.hidden[1](hidden)))  # one norm, twice
    cosines = functional.cosine_similarity(head.bottleneck(hidden)[:, None], head.prototypes, dim=-1)
    wanted = (cosines - cosines.mean(dim=1, keepdim=True)) / (cosines.var(dim=1, unbiased=False) + 1e-5).sqrt()[:, None]
    torch.testing.assert_close(head(x), wanted, atol=1e-4, rtol=1e-4)
    assert head.gain.shape == (5, 1) and "gain" not in dict(head.named_parameters())


def test_only_the_direction_of_a_prototype_counts() -> None:
    head = PrototypeHead(6, hidden=8, bottleneck=4, prototypes=5)
    x = torch.randn(3, 6)
    before = head(x)
    with torch.no_grad():
        head.prototypes.mul_(torch.rand(5, 1) + 0.5)
    torch.testing.assert_close(head(x), before)
