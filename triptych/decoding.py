"""From scores to symbols: greedy, prefix beam, attention beam, attention with CTC (speech-common, section 4).

Clips are decoded side by side; each gets what it would get alone, but for rounding.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

IMPOSSIBLE = -math.inf
"""Log probability of what cannot be."""


@dataclass(frozen=True)
class Hypothesis:
    """What may have been said."""

    tokens: tuple[int, ...]
    """Without blanks, begin and end."""
    score: float
    """The higher the better; what it counts depends on the search."""


@runtime_checkable
class Decoder(Protocol):
    """What a beam search asks; ``layers.decoder.TokenDecoder`` answers."""

    def remember(self, memory: Float[Tensor, "batch steps width"], length: Int[Tensor, " batch"]) -> Any:
        """Return the cache to begin with; it has ``follow(parents)``."""
        ...

    def step(
        self, tokens: Int[Tensor, "batch hypotheses"], cache: Any
    ) -> tuple[Float[Tensor, "batch hypotheses classes"], Any]:
        """Return scores before softmax of the next token of each hypothesis, and the cache to go on with."""
        ...


# ---------------------------------------------------------------- CTC alone


def ctc_greedy(
    log_probs: Float[Tensor, "batch steps classes"], length: Int[Tensor, " batch"], blank: int = 0
) -> list[Hypothesis]:
    """Return for each clip the best symbol of each step, repeats merged, blanks dropped.

    Args:
        log_probs: After log-softmax.
        length: Valid steps.
        blank: Class of the blank.
    """
    best = log_probs.max(dim=-1)
    found = []
    for scores, symbols, count in zip(best.values, best.indices, length.tolist(), strict=True):
        merged = torch.unique_consecutive(symbols[:count]).tolist()
        tokens = tuple(symbol for symbol in merged if symbol != blank)
        found.append(Hypothesis(tokens, float(scores[:count].sum())))
    return found


def ctc_prefix_beam(
    log_probs: Float[Tensor, "batch steps classes"],
    length: Int[Tensor, " batch"],
    beam: int = 10,
    symbols: int | None = None,
    blank: int = 0,
) -> list[list[Hypothesis]]:
    """Return for each clip the best strings by their probability over all alignments, best first.

    Args:
        log_probs: After log-softmax.
        length: Valid steps.
        beam: Prefixes kept at each step.
        symbols: Best symbols that are looked at in each step; all where None.
        blank: Class of the blank.
    """
    rows = log_probs.double().cpu()
    return [_prefix_beam(row[:count], beam, symbols, blank) for row, count in zip(rows, length.tolist(), strict=True)]


def _prefix_beam(
    log_probs: Float[Tensor, "steps classes"], beam: int, symbols: int | None, blank: int
) -> list[Hypothesis]:
    # Of each prefix the log probability of having just ended in a blank, and of not having.
    kept: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, IMPOSSIBLE)}
    count = min(symbols or log_probs.shape[1], log_probs.shape[1])
    for step in log_probs:
        grown: dict[tuple[int, ...], tuple[float, float]] = {}

        def add(prefix: tuple[int, ...], in_blank: float, in_symbol: float, into: Any = grown) -> None:
            before = into.get(prefix, (IMPOSSIBLE, IMPOSSIBLE))
            into[prefix] = (_log_add(before[0], in_blank), _log_add(before[1], in_symbol))

        scores, places = step.topk(count)
        looked_at = list(zip(places.tolist(), scores.tolist(), strict=True))
        for prefix, (in_blank, in_symbol) in kept.items():
            both = _log_add(in_blank, in_symbol)
            add(prefix, both + float(step[blank]), IMPOSSIBLE)
            if prefix:
                add(prefix, IMPOSSIBLE, in_symbol + float(step[prefix[-1]]))
            for symbol, score in looked_at:
                if symbol != blank:
                    repeated = bool(prefix) and symbol == prefix[-1]
                    add((*prefix, symbol), IMPOSSIBLE, (in_blank if repeated else both) + score)
        possible = [entry for entry in grown.items() if max(entry[1]) > IMPOSSIBLE]
        kept = dict(sorted(possible, key=lambda entry: -_log_add(*entry[1]))[:beam])
    return [Hypothesis(prefix, _log_add(*ends)) for prefix, ends in kept.items()]


def _log_add(one: float, other: float) -> float:
    high, low = max(one, other), min(one, other)
    return high if low == IMPOSSIBLE else high + math.log1p(math.exp(low - high))


class CTCPrefixes:
    """Log probabilities under CTC of prefixes: of all strings that begin so, whatever follows.

    A state is, for each hypothesis, the log probability of having said exactly its prefix at each step (and before the
    first), ending in a symbol or in a blank: ``batch hypotheses steps+1 2``.
    """

    def __init__(
        self, log_probs: Float[Tensor, "batch steps classes"], length: Int[Tensor, " batch"], blank: int = 0
    ) -> None:
        """Hold the scores of a batch.

        Args:
            log_probs: After log-softmax.
            length: Valid steps; the others are taken for certain blanks, which change nothing.
            blank: Class of the blank.
        """
        beyond = torch.arange(log_probs.shape[1], device=log_probs.device) >= length[:, None]
        self.log_probs = log_probs.masked_fill(beyond[..., None], IMPOSSIBLE)
        self.log_probs[..., blank] = self.log_probs[..., blank].masked_fill(beyond, 0.0)
        self.blank = blank

    def begin(self, hypotheses: int) -> Float[Tensor, "batch hypotheses moments 2"]:
        """Return the state of hypotheses that have said nothing yet."""
        silent = self.log_probs[..., self.blank].cumsum(dim=1)
        silent = torch.cat([silent.new_zeros(len(silent), 1), silent], dim=1)
        state = torch.stack([torch.full_like(silent, IMPOSSIBLE), silent], dim=-1)
        return state[:, None].expand(-1, hypotheses, -1, -1)

    def score(
        self,
        state: Float[Tensor, "batch hypotheses moments 2"],
        last: Int[Tensor, "batch hypotheses"],
        symbols: Int[Tensor, "batch hypotheses candidates"],
    ) -> Float[Tensor, "batch hypotheses candidates"]:
        """Return the log probability of each hypothesis' prefix with each symbol after it.

        Args:
            state: Of the hypotheses.
            last: Their last symbol; -1 where they have said nothing.
            symbols: To score; the blank is impossible.
        """
        before = self._before(state[:, :, None], last[:, :, None] == symbols)[..., :-1]
        total = (before + self._of(symbols)).logsumexp(dim=-1)
        return total.masked_fill(symbols == self.blank, IMPOSSIBLE)

    def whole(self, state: Float[Tensor, "batch hypotheses moments 2"]) -> Float[Tensor, "batch hypotheses"]:
        """Return the log probability of having said each hypothesis' prefix and nothing more."""
        return state[:, :, -1].logsumexp(dim=-1)

    def extend(
        self,
        state: Float[Tensor, "batch hypotheses moments 2"],
        last: Int[Tensor, "batch hypotheses"],
        symbols: Int[Tensor, "batch hypotheses"],
    ) -> Float[Tensor, "batch hypotheses moments 2"]:
        """Return the state of each hypothesis after it has said a further symbol."""
        before = self._before(state, last == symbols)
        said, silence = self._of(symbols), self.log_probs[:, None, :, self.blank]
        in_symbol = in_blank = torch.full_like(before[..., 0], IMPOSSIBLE)
        moments = [torch.stack([in_symbol, in_blank], dim=-1)]
        for step in range(said.shape[-1]):
            in_blank = torch.logaddexp(in_symbol, in_blank) + silence[..., step]
            in_symbol = torch.logaddexp(in_symbol, before[..., step]) + said[..., step]
            moments.append(torch.stack([in_symbol, in_blank], dim=-1))
        return torch.stack(moments, dim=-2)

    def _before(self, state: Tensor, repeated: Tensor) -> Tensor:
        """Return from where a symbol may follow: from a blank only, where it repeats the last one."""
        return torch.where(repeated[..., None], state[..., 1], torch.logaddexp(state[..., 0], state[..., 1]))

    def _of(self, symbols: Int[Tensor, "batch *hypotheses"]) -> Float[Tensor, "batch *hypotheses steps"]:
        flat = symbols.flatten(1)
        found = self.log_probs.transpose(1, 2).gather(1, flat[..., None].expand(-1, -1, self.log_probs.shape[1]))
        return found.view(*symbols.shape, -1)


# ---------------------------------------------------------------- with a decoder that attends


@dataclass
class _Beams:
    """Hypotheses under way, equally many a clip; those with an impossible score are no longer (or not yet) any."""

    tokens: Int[Tensor, "batch hypotheses said"]
    scores: Float[Tensor, "batch hypotheses"]
    """Log probabilities by attention."""
    cache: Any

    @classmethod
    def begin(cls, decoder: Decoder, memory: Tensor, length: Tensor, beam: int, start: int) -> "_Beams":
        tokens = torch.full((len(memory), beam, 1), start, device=memory.device)
        scores = torch.full((len(memory), beam), IMPOSSIBLE, device=memory.device)
        scores[:, 0] = 0.0
        return cls(tokens, scores, decoder.remember(memory, length))

    def follow(self, parents: Tensor, tokens: Tensor, scores: Tensor) -> "_Beams":
        """Return the hypotheses that ``tokens`` make of their ``parents``."""
        before = self.tokens.gather(1, parents[..., None].expand(-1, -1, self.tokens.shape[-1]))
        return _Beams(torch.cat([before, tokens[..., None]], dim=-1), scores, self.cache.follow(parents))


def attention_beam(
    decoder: Decoder,
    memory: Float[Tensor, "batch steps width"],
    length: Int[Tensor, " batch"],
    beam: int = 50,
    penalty: float = 1.0,
    start: int = 1,
    end: int = 2,
    never: tuple[int, ...] = (0, 1),
    longest: Int[Tensor, " batch"] | None = None,
) -> list[list[Hypothesis]]:
    """Return for each clip the finished hypotheses of a sequence-to-sequence search, best first (AV-HuBERT).

    At each step a clip keeps the ``beam`` best hypotheses that go on; those that end among the ``beam`` best are
    finished, with their log probability divided by (tokens with end)^penalty. A clip is done with ``beam`` finished
    ones, or at its longest, where all must end. Something is always said.

    Args:
        decoder: Gives the scores.
        memory: What it looks at.
        length: Valid steps of the memory.
        beam: Width.
        penalty: Exponent of the length.
        start: Token before the first.
        end: Token after the last.
        never: Tokens that are never said.
        longest: Tokens at most, without the end; ``length`` where None (1.0 x the source's).
    """
    limits = (length if longest is None else longest).tolist()
    beams = _Beams.begin(decoder, memory, length, beam, start)
    finished: list[list[Hypothesis]] = [[] for _ in limits]
    for step in range(max(limits) + 1):
        logits, beams.cache = decoder.step(beams.tokens[..., -1], beams.cache)
        log_probs = logits.float().log_softmax(dim=-1)
        log_probs[..., list(never)] = IMPOSSIBLE
        if step == 0:
            log_probs[..., end] = IMPOSSIBLE
        classes = log_probs.shape[-1]
        last = torch.tensor([step == limit for limit in limits], device=memory.device)
        others = torch.arange(classes, device=memory.device) != end
        log_probs = log_probs.masked_fill(last[:, None, None] & others, IMPOSSIBLE)
        total = (beams.scores[..., None] + log_probs).flatten(1)
        scores, places = total.topk(min(2 * beam, total.shape[1]), dim=1)
        parents, tokens = places // classes, places % classes
        ending = (tokens == end) & (scores > IMPOSSIBLE)
        for clip, place in ending[:, :beam].nonzero().tolist():
            if step <= limits[clip] and len(finished[clip]) < beam:
                said = beams.tokens[clip, parents[clip, place], 1:].tolist()
                finished[clip].append(Hypothesis(tuple(said), float(scores[clip, place]) / (step + 1) ** penalty))
        if all(len(found) == beam or step >= limit for found, limit in zip(finished, limits, strict=True)):
            break
        scores = scores.masked_fill(tokens == end, IMPOSSIBLE)
        scores, order = scores.topk(beam, dim=1)
        beams = beams.follow(parents.gather(1, order), tokens.gather(1, order), scores)
    return [sorted(found, key=lambda one: -one.score) for found in finished]


def joint_beam(
    decoder: Decoder,
    memory: Float[Tensor, "batch steps width"],
    length: Int[Tensor, " batch"],
    ctc_log_probs: Float[Tensor, "batch steps classes"],
    beam: int = 40,
    weight: float = 0.1,
    start: int = 1,
    end: int = 2,
    never: tuple[int, ...] = (1,),
    blank: int = 0,
    best: int = 1,
    candidates: float = 1.5,
) -> list[list[Hypothesis]]:
    """Return for each clip the hypotheses of a label-synchronous search by attention and CTC, best first (RAVEn).

    The score is (1 - w) log p_attention + w log p_ctc, where the latter is that of the prefix, and of the exact string
    once it ends. At each step a clip keeps the ``beam`` best hypotheses; those among them that end leave it. It is done
    when no other can overtake its ``best`` finished ones; after as many tokens as the memory has steps all are, without
    a score for ending.

    Args:
        decoder: Gives the scores of attention.
        memory: What it looks at.
        length: Valid steps of the memory and of CTC.
        ctc_log_probs: After log-softmax.
        beam: Width.
        weight: w.
        start: Token before the first.
        end: Token after the last.
        never: Tokens that are never said; the blank is none.
        blank: CTC's blank.
        best: Hypotheses that are wanted.
        candidates: Tokens of each hypothesis that CTC looks at, over ``beam``: the best by attention (and the end).
    """
    limits = length.tolist()
    beams = _Beams.begin(decoder, memory, length, beam, start)
    prefixes = CTCPrefixes(ctc_log_probs.float(), length, blank)
    state = prefixes.begin(beam)
    finished: list[list[Hypothesis]] = [[] for _ in limits]
    for step in range(max(limits)):
        last = beams.tokens[..., -1]
        logits, beams.cache = decoder.step(last, beams.cache)
        last = last if step else torch.full_like(last, -1)
        log_probs = logits.float().log_softmax(dim=-1)
        log_probs[..., [*never, blank]] = IMPOSSIBLE
        looked_at = log_probs.topk(min(int(candidates * beam), log_probs.shape[-1]), dim=-1).indices
        symbols = torch.cat([looked_at, torch.full_like(looked_at[..., :1], end)], dim=-1)  # the end in its own place
        heard = beams.scores[..., None] + log_probs.gather(-1, symbols)
        heard[..., :-1] = heard[..., :-1].masked_fill(looked_at == end, IMPOSSIBLE)
        ctc = torch.cat([prefixes.score(state, last, looked_at), prefixes.whole(state)[..., None]], dim=-1)
        total = (_share(1 - weight, heard) + _share(weight, ctc)).masked_fill(heard == IMPOSSIBLE, IMPOSSIBLE)
        scores, places = total.flatten(1).topk(beam, dim=1)
        parents, tokens = places // symbols.shape[-1], symbols.flatten(1).gather(1, places)
        rows = parents[..., None, None].expand(-1, -1, *state.shape[2:])
        state = prefixes.extend(state.gather(1, rows), last.gather(1, parents), tokens)
        ended = tokens == end
        beams = beams.follow(parents, tokens, heard.flatten(1).gather(1, places).masked_fill(ended, IMPOSSIBLE))
        for clip, place in (scores > IMPOSSIBLE).nonzero().tolist():
            if step < limits[clip] and (ended[clip, place] or step + 1 == limits[clip]):
                said = beams.tokens[clip, place, 1:].tolist()
                finished[clip].append(
                    Hypothesis(tuple(said[:-1] if ended[clip, place] else said), float(scores[clip, place]))
                )
        going = scores.masked_fill(ended, IMPOSSIBLE).max(dim=1).values.tolist()
        if all(step + 1 >= limits[clip] or _settled(finished[clip], best, going[clip]) for clip in range(len(limits))):
            break
    return [sorted(found, key=lambda one: -one.score)[:best] for found in finished]


def _share(weight: float, scores: Tensor) -> Tensor:
    """Return weighted scores; what has no weight says nothing, also not that something is impossible."""
    return weight * scores if weight else torch.zeros_like(scores)


def _settled(finished: list[Hypothesis], best: int, going: float) -> bool:
    """Return whether no hypothesis under way can come among the ``best``: scores only fall."""
    scores = sorted((one.score for one in finished), reverse=True)
    return going == IMPOSSIBLE or (len(scores) >= best and scores[best - 1] >= going)
