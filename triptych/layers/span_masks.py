"""Spans of steps that are hidden, and what is seen in their place (av-hubert, section 5).

A mask is true for the steps that are KEPT, padding among them. Noise is drawn by the caller, uniformly from [0, 1).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


def keep_outside_spans(
    length: Int[Tensor, " batch"],
    share: float,
    span: int,
    number: Float[Tensor, " batch"],
    places: Float[Tensor, "batch steps"],
    thinning: Float[Tensor, "batch steps"],
    least: int = 2,
) -> Bool[Tensor, "batch steps"]:
    """Hide spans of each row, then show steps of them again until all rows hide equally many (fairseq's sampler).

    A row of n steps has ``max(least, int(share n / span + number))`` spans, which may overlap and are cut at its end.
    Their starts are drawn without replacement from the first n - span steps (from a few more, where a row is so short
    that it has fewer starts than spans). Rows without steps do not count.

    Args:
        length: Valid steps of each row.
        share: Of the steps that all spans together would hide if none overlapped.
        span: Steps.
        number: Noise that rounds the number of spans up or down.
        places: Noise that draws the starts.
        thinning: Noise that draws which of the hidden steps stay hidden.
        least: Spans at least.
    """
    place = torch.arange(places.shape[1], device=places.device)
    spans = (share * length.double() / span + number).long().clamp(min=least)
    room = torch.where(length - span <= spans, spans + 1, length - span)[:, None]
    starts = _lowest(places, place < room, spans[:, None])
    begun = starts.cumsum(dim=1)
    ended = functional.pad(begun, (span, 0))[:, : places.shape[1]]
    hidden = (begun > ended) & (place < length[:, None])
    fewest = hidden.sum(dim=1).masked_fill(length == 0, places.shape[1]).min()
    return ~_lowest(thinning, hidden, fewest)


def _lowest(
    noise: Float[Tensor, "batch steps"], among: Bool[Tensor, "batch steps"], count: Int[Tensor, "..."]
) -> Bool[Tensor, "batch steps"]:
    """Return the ``count`` steps of ``among`` with the smallest noise, or all where there are fewer."""
    rank = noise.masked_fill(~among, 1.0).argsort(dim=1, stable=True).argsort(dim=1)
    return among & (rank < count)


def substitutes(
    kept: Bool[Tensor, "batch steps"], length: Int[Tensor, " batch"], noise: Float[Tensor, "batch steps"]
) -> Int[Tensor, "batch steps"]:
    """Return for each step the one that is shown in its place: itself, or for a hidden run another stretch of the row.

    A run of l hidden steps from s on becomes l consecutive steps from a start that is drawn uniformly from those
    outside [s - l, s + l); what would lie beyond the row's end is its last step. Where there is no such start, it is 0.

    Args:
        kept: What is not hidden.
        length: Valid steps of each row.
        noise: That of a run's first step draws the start.
    """
    steps = kept.shape[1]
    place = torch.arange(steps, device=kept.device).expand_as(kept)
    hidden = ~kept & (place < length[:, None])
    first = hidden & ~functional.pad(hidden, (1, 0))[:, :-1]
    start = place.where(first, 0).cummax(dim=1).values
    end = place.where(~hidden, steps).flip(1).cummin(dim=1).values.flip(1)
    low = (2 * start - end).clamp(min=0)
    free = length[:, None] - (end - low)
    drawn = (noise.gather(1, start) * free).long()
    begin = torch.where(drawn < low, drawn, drawn + end - low).where(free > 0, 0)
    source = torch.minimum(begin + place - start, length[:, None] - 1)
    return source.where(hidden, place)
