"""Captions at the edge of a window, and joining them."""

import pytest

from triptych.data.narration import caption_at, join_captions
from triptych.data.spans import Window
from triptych.media.captions import Caption

TOLD = (
    Caption("pour the milk", 2.0, 5.0),
    Caption("stir", 5.5, 6.5),
    Caption("heat it slowly", 8.0, 12.0),
    Caption("serve", 30.0, 31.0),
)


@pytest.mark.parametrize(
    ("start", "end", "place"),
    [
        (3.0, 11.0, 0),  # said where it begins
        (1.0, 9.0, 2),  # before the first: said where it ends
        (7.0, 15.0, None),  # between captions, and none at the end
        (2.0, 4.0, 0),  # exactly at the start
        (12.5, 20.5, None),
        (22.5, 30.5, 3),
    ],
)
def test_the_caption_at_the_edge_of_a_window(start: float, end: float, place: int | None) -> None:
    assert caption_at(TOLD, Window(start, end)) == place


def test_without_captions_nothing_is_said() -> None:
    assert caption_at((), Window(0.0, 8.0)) is None


def test_neighbours_that_make_the_shorter_whole_are_joined() -> None:
    """From `stir`: with the one before 4.5 s, with the one after 6.5 s; then 10 s with the one after."""
    whole = join_captions(TOLD, 1, 8.0)
    assert (whole.text, whole.start, whole.end) == ("stir pour the milk heat it slowly", 2.0, 12.0)
    short = join_captions(TOLD, 1, 4.0)
    assert (short.text, short.start, short.end) == ("stir pour the milk", 2.0, 6.5)


def test_equal_lengths_take_the_one_before_and_edges_take_what_there_is() -> None:
    even = (Caption("a", 0.0, 1.0), Caption("b", 2.0, 3.0), Caption("c", 4.0, 5.0))
    assert join_captions(even, 1, 3.0).text == "b a"
    assert join_captions(even, 0, 5.0).text == "a b c"
    alone = join_captions(even[:1], 0, 8.0)
    assert (alone.text, alone.end) == ("a", 1.0)
