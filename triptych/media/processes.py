"""Work spread over processes, none of which can take the others with it."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from triptych.errors import TriptychError

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(work: Callable[[Job], Outcome], jobs: Iterable[Job], count: int) -> Iterator[tuple[Job, Outcome | None]]:
    """Yield every job with its outcome as it is done; None where its process ended (out of memory, a fault in FFmpeg).

    Args:
        work: What is done with a job; it is sent to each process once.
        jobs: Are asked for one by one, as processes become free.
        count: Processes; with one or fewer everything is done here.

    Raises:
        Exception: Whatever ``work`` raises.
        TriptychError: If processes cannot start.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise TriptychError(NO_GUARD)  # the script that called is being imported by the processes of that call
    if count <= 1:
        for job in jobs:
            yield job, work(job)
        return
    left = iter(jobs)
    crew: list[_Worker[Job]] = []
    try:
        for job in left:
            crew.append(_Worker(work, job))
            if len(crew) == count:
                break
        while crew:
            for ready in wait([worker.line for worker in crew]):
                place = next(number for number, worker in enumerate(crew) if worker.line is ready)
                done = crew[place].job
                outcome = crew[place].receive()
                following = next(left, _NONE)
                if outcome is None or following is _NONE:
                    crew[place].end()
                    del crew[place]
                    if following is not _NONE:
                        crew.append(_Worker(work, following))
                else:
                    crew[place].send(following)
                yield done, None if outcome is None else outcome[0]
    finally:
        for worker in crew:
            worker.end()


_NONE: Any = object()
NO_GUARD = (
    "A process for the work could not be started. If you call Triptych from a script, put the calls under "
    "'if __name__ == \"__main__\":', for each process imports the script."
)


class _Worker(Generic[Job]):
    """A process at work on one job."""

    def __init__(self, work: Callable[[Job], Any], job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()  # so that the line breaks when the process ends
        self.send(job)

    def send(self, job: Job) -> None:
        self.job = job
        self.line.send(job)

    def receive(self) -> tuple[Any] | None:
        """Return the outcome, alone in a tuple; None where the process has ended."""
        try:
            outcome, error = self.line.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            if self.process.exitcode == 1:  # not killed: Python gave up before the first job
                raise TriptychError(NO_GUARD) from None
            return None
        if error is not None:
            raise error
        return (outcome,)

    def end(self) -> None:
        self.line.close()
        self.process.terminate()
        self.process.join()


def _serve(line: Connection, work: Callable[[Any], Any]) -> None:
    """Do what comes along the line until it breaks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all; the parent decides what it means
    if "torch" in sys.modules:  # the work brought it along
        sys.modules["torch"].set_num_threads(1)
    while True:
        try:
            job = line.recv()
        except EOFError:
            return
        try:
            line.send((work(job), None))
        except Exception as error:
            line.send((None, error))
