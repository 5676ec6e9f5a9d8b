import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from triptych.decoding import CTCPrefixes, Hypothesis, attention_beam, ctc_greedy, ctc_prefix_beam, joint_beam
from triptych.layers.decoder import TokenDecoder

BLANK = 0


def _strings(log_probs: Tensor) -> dict[tuple[int, ...], float]:
    """Return the probability of every string, by listing all alignments."""
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        said = tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != BLANK)
        score = math.exp(sum(float(log_probs[step, symbol]) for step, symbol in enumerate(path)))
        found[said] = found.get(said, 0.0) + score
    return found


def _random(steps: int, classes: int, seed: int = 0, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(batch, steps, classes, generator=generator)).log_softmax(dim=-1)


def test_two_steps_whose_best_string_is_not_the_greedy_one() -> None:
    log_probs, length = torch.tensor([[[0.6, 0.4]] * 2]).log(), torch.tensor([2])
    (greedy,) = ctc_greedy(log_probs, length)
    assert greedy.tokens == () and math.exp(greedy.score) == pytest.approx(0.36)
    (found,) = ctc_prefix_beam(log_probs, length)
    assert found[0].tokens == (1,) and math.exp(found[0].score) == pytest.approx(0.64)
    assert found[1].tokens == () and math.exp(found[1].score) == pytest.approx(0.36)


def test_greedy_merges_repeats_drops_blanks_and_stops_at_the_length() -> None:
    log_probs = torch.nn.functional.one_hot(torch.tensor([[1, 1, 0, 1, 2, 2, 0, 3]]), 4).float().log_softmax(dim=-1)
    assert ctc_greedy(log_probs, torch.tensor([8]))[0].tokens == (1, 1, 2, 3)
    assert ctc_greedy(log_probs, torch.tensor([5]))[0].tokens == (1, 1, 2)
    assert ctc_greedy(log_probs, torch.tensor([0]))[0] == Hypothesis((), 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_prefix_beam_finds_the_true_probabilities(seed: int) -> None:
    log_probs = _random(5, 3, seed)
    (found,) = ctc_prefix_beam(log_probs, torch.tensor([5]), beam=1000)
    wanted = _strings(log_probs[0])
    assert len(found) == len([score for score in wanted.values() if score])
    for one in found:
        assert math.exp(one.score) == pytest.approx(wanted[one.tokens], rel=1e-5)
    assert found[0].score == max(one.score for one in found)


def test_symbols_that_are_not_looked_at_are_not_said() -> None:
    log_probs = torch.tensor([[[0.1, 0.5, 0.4], [0.1, 0.4, 0.5]]]).log()
    (found,) = ctc_prefix_beam(log_probs, torch.tensor([2]), beam=1000, symbols=1)
    assert {one.tokens for one in found} == {(), (1,), (2,), (1, 2)}


@pytest.mark.parametrize("seed", range(3))
def test_prefixes_have_the_probability_of_all_that_begins_so(seed: int) -> None:
    log_probs = _random(5, 3, seed)
    strings = _strings(log_probs[0])
    prefixes = CTCPrefixes(log_probs, torch.tensor([5]))
    symbols = torch.tensor([[[0, 1, 2]]])
    for said in [(), (1,), (1, 1), (2, 1), (1, 2, 1)]:
        state, last = prefixes.begin(1), torch.tensor([[-1]])
        for symbol in said:
            symbol_ = torch.tensor([[symbol]])
            state, last = prefixes.extend(state, last, symbol_), symbol_
        assert math.exp(float(prefixes.whole(state))) == pytest.approx(strings[said], rel=1e-4)
        scores = prefixes.score(state, last, symbols)[0, 0].tolist()
        assert scores[BLANK] == -math.inf
        for symbol in (1, 2):
            prefix = (*said, symbol)
            wanted = sum(score for string, score in strings.items() if string[: len(prefix)] == prefix)
            assert math.exp(scores[symbol]) == pytest.approx(wanted, rel=1e-4)


def test_steps_beyond_the_length_change_no_prefix() -> None:
    short, length = _random(4, 3), torch.tensor([4])
    padded = torch.cat([short, _random(3, 3, seed=9)], dim=1)
    found = []
    for log_probs in (short, padded):
        prefixes = CTCPrefixes(log_probs, length)
        one = torch.tensor([[1]])
        state = prefixes.extend(prefixes.begin(1), torch.tensor([[-1]]), one)
        found.append([prefixes.whole(state), prefixes.score(state, one, torch.tensor([[[1, 2]]]))])
    for alone, with_padding in zip(*found, strict=True):
        torch.testing.assert_close(alone, with_padding)


# ------------------------------------------------------------ a decoder whose scores are written down


@dataclass
class Said:
    """Tokens of each hypothesis so far."""

    tokens: Tensor | None = None

    def follow(self, parents: Tensor) -> "Said":
        assert self.tokens is not None
        return Said(self.tokens.gather(1, parents[..., None].expand(-1, -1, self.tokens.shape[-1])))


class Table:
    """Next tokens by what was said before."""

    def __init__(self, after: dict[tuple[int, ...], list[float]]) -> None:
        self.after = after

    def remember(self, memory: Tensor, length: Tensor) -> Said:
        return Said()

    def step(self, tokens: Tensor, cache: Said) -> tuple[Tensor, Said]:
        said = tokens[..., None] if cache.tokens is None else torch.cat([cache.tokens, tokens[..., None]], dim=-1)
        rows = [[self.after.get(tuple(one[1:]), [0.25] * 5) for one in clip] for clip in said.tolist()]
        return torch.tensor(rows).log(), Said(said)


# Tokens: 0 padding, 1 begin, 2 end, 3 a, 4 b.
TABLE = Table(
    {
        (): [0, 0, 0.1, 0.5, 0.4],
        (3,): [0, 0, 0.3, 0.4, 0.3],
        (4,): [0, 0, 0.9, 0.05, 0.05],
        (3, 3): [0, 0, 0.8, 0.1, 0.1],
        (3, 4): [0, 0, 0.5, 0.3, 0.2],
        (4, 3): [0, 0, 0.6, 0.2, 0.2],
        (4, 4): [0, 0, 0.6, 0.2, 0.2],
        (2,): [0, 0, 0, 0.5, 0.5],  # after the end nothing is asked
    }
)
MEMORY = torch.zeros(1, 2, 1)


def test_the_attention_beam_divides_by_the_length() -> None:
    length = torch.tensor([2])
    (found,) = attention_beam(TABLE, MEMORY, length, beam=2, penalty=0.0)
    assert [one.tokens for one in found] == [(4,), (3, 3)]
    assert [math.exp(one.score) for one in found] == pytest.approx([0.36, 0.16], rel=1e-5)
    (found,) = attention_beam(TABLE, MEMORY, length, beam=2, penalty=1.0)
    assert [one.score for one in found] == pytest.approx([math.log(0.36) / 2, math.log(0.16) / 3], rel=1e-5)
    (found,) = attention_beam(TABLE, MEMORY, length, beam=2, penalty=2.0)
    assert [one.tokens for one in found] == [(3, 3), (4,)]


def test_at_its_longest_a_hypothesis_must_end_and_something_is_always_said() -> None:
    (found,) = attention_beam(TABLE, MEMORY, torch.tensor([2]), beam=3, longest=torch.tensor([1]), penalty=0.0)
    assert [one.tokens for one in found] == [(4,), (3,)]
    assert [math.exp(one.score) for one in found] == pytest.approx([0.36, 0.15], rel=1e-5)
    silent = Table({(): [0, 0, 0.98, 0.01, 0.01]})
    assert attention_beam(silent, MEMORY, torch.tensor([1]), beam=2)[0][0].tokens != ()


def test_attention_and_ctc_are_weighted() -> None:
    ctc = torch.tensor([[[0.1, 0.0, 0.0, 0.8, 0.1], [0.4, 0.0, 0.0, 0.1, 0.5]]]).log()
    strings = _strings(ctc[0])
    for weight in (0.0, 0.3, 0.7, 1.0):
        (found,) = joint_beam(TABLE, MEMORY, torch.tensor([2]), ctc, beam=5, weight=weight, best=2, never=(0, 1))
        attention = {(3,): 0.5 * 0.3, (4,): 0.4 * 0.9, (): 0.1}
        scores = {said: (1 - weight) * math.log(p) + weight * math.log(strings[said]) for said, p in attention.items()}
        # After as many tokens as there are steps, a hypothesis ends without a score for that.
        scores |= {
            (3, 3): (1 - weight) * math.log(0.2) + weight * math.log(strings.get((3, 3), 0) or 1e-30),
            (3, 4): (1 - weight) * math.log(0.15) + weight * math.log(strings[3, 4]),
        }
        best = sorted(scores.items(), key=lambda entry: -entry[1])
        assert [one.tokens for one in found] == [said for said, _ in best[:2]], weight
        assert [one.score for one in found] == pytest.approx([score for _, score in best[:2]], rel=1e-5)
        (every,) = joint_beam(TABLE, MEMORY, torch.tensor([2]), ctc, beam=5, weight=weight, best=50, never=(0, 1))
        assert not any(2 in one.tokens for one in every)  # what has ended does not go on


def _decoder() -> TokenDecoder:
    torch.manual_seed(0)
    return TokenDecoder(12, 16, layers=2, heads=2, hidden=32, memory_width=8).eval()


@pytest.fixture
def clips() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    memory = 3 * torch.randn(4, 9, 8, generator=generator)
    return memory, torch.tensor([9, 3, 6, 8]), _random(9, 12, seed=4, batch=4)


@torch.inference_mode()
def test_clips_side_by_side_are_decoded_as_one_by_one(clips: tuple[Tensor, Tensor, Tensor]) -> None:
    memory, length, log_probs = clips
    decoder = _decoder()
    searches = {
        "greedy": lambda m, n, p: [[one] for one in ctc_greedy(p, n)],
        "prefix": lambda m, n, p: ctc_prefix_beam(p, n, beam=4),
        "attention": lambda m, n, p: attention_beam(decoder, m, n, beam=5),
        "joint": lambda m, n, p: joint_beam(decoder, m, n, p, beam=5, weight=0.3, best=4),
    }
    for name, search in searches.items():
        together = search(memory, length, log_probs)
        for clip, steps in enumerate(length.tolist()):
            one = slice(clip, clip + 1)
            (alone,) = search(memory[one, :steps], length[one], log_probs[one, :steps])
            assert [found.tokens for found in together[clip]] == [found.tokens for found in alone], name
            assert [found.score for found in together[clip]] == pytest.approx(
                [found.score for found in alone], abs=1e-4
            )


@torch.inference_mode()
def test_a_beam_as_wide_as_all_finds_the_best_of_all(clips: tuple[Tensor, Tensor, Tensor]) -> None:
    memory, length = clips[0][:1, :2], torch.tensor([2])
    decoder = _decoder()
    (found,) = attention_beam(decoder, memory, length, beam=150, penalty=0.0)
    every = []
    for said in itertools.chain(*(itertools.product(range(3, 12), repeat=count) for count in (1, 2))):
        tokens = torch.tensor([[1, *said]])
        log_probs = decoder(tokens, memory, length)[0].log_softmax(dim=-1)
        every.append((float(sum(log_probs[place, token] for place, token in enumerate([*said, 2]))), said))
    every.sort(reverse=True)
    assert [one.tokens for one in found[:5]] == [said for _, said in every[:5]]
    assert [one.score for one in found[:5]] == pytest.approx([score for score, _ in every[:5]], abs=1e-4)
