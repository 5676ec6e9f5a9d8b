"""The adapter of LAVISH: the specification's hand-computed cases and checks."""

import pytest
import torch
from torch.nn import functional

from triptych.layers.adapters import GroupedLinear, LatentAdapter


def _adapter(tokens: list[list[float]]) -> LatentAdapter:
    adapter = LatentAdapter(2, tokens=len(tokens), reduction=1, groups=1, batch_norm=False)
    assert adapter.tokens is not None
    with torch.no_grad():
        adapter.tokens.copy_(torch.tensor(tokens))
    return adapter


OTHER = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])
STREAM = torch.tensor([[[0.0, 1.0]]])


def test_one_token_by_hand() -> None:
    # A1 = [0.880797, 0.119203], P' = [2.761594, 0.238406], c = P', x' = x + 0.5 c.
    adapter = _adapter([[1.0, 0.0]])
    read = adapter.read(STREAM, OTHER)[0, 0]
    assert read.tolist() == pytest.approx([2.761594, 0.238406], abs=1e-6)
    assert (STREAM[0, 0] + 0.5 * read).tolist() == pytest.approx([1.380797, 1.119203], abs=1e-6)


def test_two_tokens_by_hand() -> None:
    # P' = [[2.761594, 0.238406], [0.238406, 2.761594]], A2 = [0.0742, 0.9258].
    adapter = _adapter([[1.0, 0.0], [0.0, 1.0]])
    assert adapter.read(STREAM, OTHER)[0, 0].tolist() == pytest.approx([0.4257, 2.5743], abs=1e-4)


def test_the_whole_is_as_written_out() -> None:
    torch.manual_seed(0)
    adapter = LatentAdapter(8, tokens=3, reduction=2, groups=2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x, other = torch.randn(5, 6, 8), torch.randn(5, 4, 8)
    y = x + adapter.read_gate * adapter.read(x, other)
    y = functional.layer_norm(y, (8,), adapter.norm_before.weight, adapter.norm_before.bias)

    def convolve(x: torch.Tensor, layer: GroupedLinear) -> torch.Tensor:
        return functional.conv1d(x.transpose(1, 2), layer.weight[..., None], groups=2).transpose(1, 2)

    def normalise(x: torch.Tensor, norm: torch.nn.Module) -> torch.Tensor:
        mean, variance = x.mean(dim=(0, 1)), x.var(dim=(0, 1), unbiased=False)
        return (x - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias

    y = normalise(convolve(y, adapter.down), adapter.down_norm).relu()
    y = normalise(convolve(y, adapter.up), adapter.up_norm)
    y = adapter.gate * functional.layer_norm(y, (8,), adapter.norm_after.weight, adapter.norm_after.bias)
    torch.testing.assert_close(adapter(x, other), y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("width", "count"), [(192, 6194), (1024, 139_522)])
def test_parameters_by_the_formula(width: int, count: int) -> None:
    # nD + 1 + 2 D (D/r)/g + (2D/r + 2D) + 2D + 2D + 1 with r = 8, g = 2, n = 2
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in LatentAdapter(width).parameters()) == count


def test_a_new_adapter_adds_nothing_and_learns_by_its_gate_alone() -> None:
    adapter = LatentAdapter(8, reduction=2)
    added = adapter(torch.randn(3, 5, 8), torch.randn(3, 4, 8))
    assert not added.any()
    (added * torch.randn(3, 5, 8)).sum().backward()
    reached = {name for name, x in adapter.named_parameters() if x.grad is not None and x.grad.any()}
    assert reached == {"gate"}


def _awake(**options: object) -> LatentAdapter:
    torch.manual_seed(1)
    adapter = LatentAdapter(8, reduction=2, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        adapter.read_gate.fill_(0.7)
        if adapter.gate is not None:
            adapter.gate.fill_(1.3)
    return adapter


def test_the_order_of_the_other_stream_does_not_matter_and_that_of_its_own_is_kept() -> None:
    adapter = _awake().eval()
    x, other = torch.randn(2, 6, 8), torch.randn(2, 9, 8)  # as many tokens as you like (check 8)
    with torch.no_grad():
        added = adapter(x, other)
        torch.testing.assert_close(adapter(x, other[:, torch.randperm(9)]), added)
        order = torch.randperm(6)
        torch.testing.assert_close(adapter(x[:, order], other), added[:, order])


def test_rows_without_the_other_stream_read_nothing() -> None:
    adapter = _awake().eval()
    x, other = torch.randn(4, 6, 8), torch.randn(2, 9, 8)
    with torch.no_grad():
        added = adapter(x, other, (torch.tensor([3, 1]), torch.tensor([0, 1])))
        alone = adapter(x)
        torch.testing.assert_close(added[[0, 2]], alone[[0, 2]])
        torch.testing.assert_close(added[[3, 1]], adapter(x[[3, 1]], other))
        assert not torch.allclose(added[[3, 1]], alone[[3, 1]])
        nothing = torch.zeros(0, dtype=torch.long)
        torch.testing.assert_close(adapter(x, other[:0], (nothing, nothing)), alone)


def _distance_after_training(adapter: LatentAdapter) -> float:
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-2)
    x, other, wanted = torch.randn(4, 6, 8), torch.randn(4, 9, 8), torch.randn(4, 6, 8)
    for _ in range(50):
        optimizer.zero_grad()
        (adapter(x, other) - wanted).square().mean().backward()
        optimizer.step()
    assert adapter.tokens is not None and adapter.tokens.any()
    return float((adapter.tokens[0] - adapter.tokens[1]).detach().abs().max())


def test_tokens_that_begin_alike_stay_alike() -> None:
    assert _distance_after_training(_awake(init="zeros")) < 1e-6
    assert _distance_after_training(_awake(init="uniform")) > 0.1
    assert _distance_after_training(_awake(init="normal")) > 1e-3


def test_first_tokens() -> None:
    torch.manual_seed(0)
    uniform, normal = (LatentAdapter(64, 8, init=kind).tokens for kind in ("uniform", "normal"))
    assert uniform is not None and normal is not None
    assert uniform.min() >= 0 and uniform.max() < 1 and float(uniform.detach().mean()) == pytest.approx(0.5, abs=0.05)
    assert float(normal.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_a_plain_bottleneck_has_no_activation() -> None:
    torch.manual_seed(0)
    adapter = LatentAdapter(8, tokens=0, reduction=2, batch_norm=False, norm_before=False, norm_after=False, gate=False)
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(adapter(-x, x), -adapter(x))
    assert {name for name, _ in adapter.named_parameters()} == {"down.weight", "up.weight"}
