import math

import pytest
import torch

from triptych.layers.decoder import Cache, TokenDecoder


def _decoder(**options: object) -> TokenDecoder:
    torch.manual_seed(0)
    sizes = {"vocabulary": 11, "width": 16, "layers": 2, "heads": 4, "hidden": 24}
    return TokenDecoder(**(sizes | options)).eval()  # type: ignore[arg-type]


MEMORY, LENGTH = torch.linspace(-2, 2, 2 * 5 * 16).view(2, 5, 16).sin(), torch.tensor([5, 3])
TOKENS = torch.tensor([[1, 4, 5, 6], [1, 9, 3, 0]])


@torch.inference_mode()
def test_a_token_sees_none_after_it() -> None:
    decoder = _decoder()
    scores = decoder(TOKENS, MEMORY, LENGTH)
    changed = TOKENS.clone()
    changed[:, 2:] = 7
    again = decoder(changed, MEMORY, LENGTH)
    torch.testing.assert_close(scores[:, :2], again[:, :2])
    assert not torch.allclose(scores[:, 2:], again[:, 2:])


@torch.inference_mode()
def test_padded_memory_changes_nothing() -> None:
    decoder = _decoder()
    changed = MEMORY.clone()
    changed[1, 3:] = 100.0
    torch.testing.assert_close(decoder(TOKENS, MEMORY, LENGTH), decoder(TOKENS, changed, LENGTH))


@pytest.mark.parametrize("form", [{}, {"sinusoids": "pairs", "scaled": True, "tied": False, "memory_width": 16}])
@torch.inference_mode()
def test_step_by_step_is_all_at_once(form: dict[str, object]) -> None:
    decoder = _decoder(**form)
    wanted = decoder(TOKENS, MEMORY, LENGTH)
    cache: Cache = decoder.remember(MEMORY, LENGTH)
    for step in range(3):
        scores, cache = decoder.step(TOKENS[:, step : step + 1], cache)
        torch.testing.assert_close(scores[:, 0], wanted[:, step])


@torch.inference_mode()
def test_hypotheses_go_on_from_their_parents() -> None:
    decoder = _decoder()
    cache = decoder.remember(MEMORY, LENGTH)
    _, cache = decoder.step(torch.tensor([[1, 1, 1], [1, 1, 1]]), cache)
    _, cache = decoder.step(torch.tensor([[4, 5, 6], [7, 8, 9]]), cache)
    scores, _ = decoder.step(torch.tensor([[3, 3, 3], [3, 3, 3]]), cache.follow(torch.tensor([[2, 2, 0], [1, 0, 1]])))
    for clip, said in enumerate([[6, 6, 4], [8, 7, 8]]):
        for place, token in enumerate(said):
            alone = decoder(torch.tensor([[1, token, 3]]), MEMORY[clip : clip + 1], LENGTH[clip : clip + 1])
            torch.testing.assert_close(scores[clip, place], alone[0, -1])


def test_positions_of_both_forms() -> None:
    tokens = torch.tensor([[5, 6, 0]])
    halves = _decoder(width=4, heads=1).positions(tokens)[0]
    # The first token's position is 2; the frequencies are 1 and 1 / 10000; padding has none.
    wanted = [math.sin(2), math.sin(2e-4), math.cos(2), math.cos(2e-4)]
    assert halves[0].tolist() == pytest.approx(wanted, abs=1e-6)
    assert halves[1, 0].item() == pytest.approx(math.sin(3), abs=1e-6)
    assert halves[2].tolist() == [0, 0, 0, 0]
    pairs = _decoder(width=4, heads=1, sinusoids="pairs").positions(tokens)[0]
    assert pairs[0].tolist() == [0, 1, 0, 1]
    assert pairs[1].tolist() == pytest.approx([math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)], abs=1e-6)


def test_output_and_embedding_are_one_tensor_where_tied() -> None:
    names = dict(_decoder().named_parameters())
    assert "embedding.weight" in names and "output.weight" not in names
    assert _decoder(tied=False).output is not None


def test_published_size() -> None:
    with torch.device("meta"):
        base = TokenDecoder(1000, 768, layers=6, heads=4, hidden=3072)
        raven = TokenDecoder(
            1049, 512, layers=6, heads=8, hidden=2048, sinusoids="pairs", scaled=True, tied=False, eps=1e-12
        )
    block = 8 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 3 * 2 * 768
    assert sum(p.numel() for p in base.parameters()) == 6 * block + 1000 * 768 + 2 * 768
    assert round(sum(p.numel() for p in raven.parameters()) / 1e6, 1) == 26.3  # raven, section 4
