"""Which captions are said where, and joining them: narrated videos."""

from bisect import bisect_left
from collections.abc import Sequence

from triptych.data.spans import Window
from triptych.media.captions import Caption


def caption_at(captions: Sequence[Caption], window: Window) -> int | None:
    """Return the place of the caption that is said where a window begins, or else where it ends; None: neither.

    Of captions that overlap there, the last one to begin counts.

    Args:
        captions: In order of their starts.
        window: Seconds.
    """
    starts = [caption.start for caption in captions]
    for second in (window.start, window.end):
        place = max(0, bisect_left(starts, second) - 1)
        if captions and captions[place].start <= second <= captions[place].end:
            return place
    return None


def join_captions(captions: Sequence[Caption], place: int, seconds: float) -> Caption:
    """Return the caption at ``place``, joined by those before and after it until it lasts ``seconds``.

    Of the two neighbours, the one that makes the shorter whole is taken, the one before where they are equally long.
    Words are added in the order in which they were taken, those of earlier captions too: the model that this is for
    does not see their order (everything-at-once, section 3).

    Args:
        captions: In order of their starts.
        place: Of the caption to begin with.
        seconds: Length at least, if there are captions enough.
    """
    first = last = place
    start, end, texts = captions[place].start, captions[place].end, [captions[place].text]
    while end - start < seconds and (first > 0 or last < len(captions) - 1):
        before = end - captions[first - 1].start if first > 0 else float("inf")
        after = captions[last + 1].end - start if last < len(captions) - 1 else float("inf")
        if before <= after:
            first -= 1
            start = captions[first].start
            texts.append(captions[first].text)
        else:
            last += 1
            end = captions[last].end
            texts.append(captions[last].text)
    return Caption(" ".join(texts), start, end)
