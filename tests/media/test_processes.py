"""Work in several processes, some of which die."""

import os
import signal
from pathlib import Path

import pytest

from triptych.media.processes import spread


def _square(number: int) -> int:
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 99:
        raise KeyError("99")
    return number * number


@pytest.mark.parametrize("count", [1, 2])
def test_every_job_is_done_once(count: int) -> None:
    assert sorted(spread(_square, range(6), count)) == [(n, n * n) for n in range(6)]
    assert list(spread(_square, [], count)) == []


def test_a_process_that_dies_takes_one_job_with_it() -> None:
    done = dict(spread(_square, [*range(5), 13, *range(20, 25)], 2))
    assert done.pop(13) is None
    assert done == {n: n * n for n in [*range(5), *range(20, 25)]}


def test_an_error_of_ours_is_raised_and_leaving_early_ends_the_processes() -> None:
    with pytest.raises(KeyError, match="99"):
        list(spread(_square, [1, 2, 99, 4], 2))
    outcomes = spread(_pid, range(9), 2)
    _, pid = next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert pid != os.getpid() and not Path(f"/proc/{pid}").exists()


def _pid(number: int) -> int:
    return os.getpid()
