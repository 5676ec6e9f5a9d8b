"""Work in several processes, some of which die."""

import os
import signal
import subprocess
import sys
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


def test_a_script_without_a_guard_is_told_what_to_do(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from triptych.media.processes import spread\nlist(spread(abs, range(4), 2))\n")
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "if __name__ ==" in ended.stderr.splitlines()[-1]
