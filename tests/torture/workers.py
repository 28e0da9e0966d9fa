"""A forked process that runs cases one after another, and is replaced where it dies or hangs."""

import faulthandler
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .case import Kind
from .judge import Limits, Outcome, cap_memory, run_case

# After the alarm inside the process; a case that is still there is stuck in a library that takes no signals.
GRACE = 5.0
# Memory that libraries keep, and address space in pieces, add up.
CASES_PER_PROCESS = 400

Job = tuple[str, int]
"""Kind and number."""


class Worker:
    """One process. Forked, so that it starts with everything imported.

    Args:
        kinds: all kinds.
        seed: of the run.
        session: what the kinds prepared.
        limits: of every case.
    """

    def __init__(self, kinds: Mapping[str, Kind], seed: int, session: Path, limits: Limits):
        context: Any = multiprocessing.get_context("fork")
        self.limits = limits
        self.root = Path(tempfile.mkdtemp(prefix="torture-"))
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, kinds, seed, self.root, session, limits))
        self.process.start()
        theirs.close()
        self.done = 0

    def run(self, job: Job) -> Outcome:
        """The outcome of a case, also where the process dies of it."""
        self.connection.send(job)
        self.done += 1
        try:
            # Building a case is not timed, hence the second share.
            if self.connection.poll(2 * self.limits.seconds + GRACE):
                return self.connection.recv()
        except EOFError:
            self.process.join()
            return Outcome(*job, result="crash", failure=f"the process died, exit code {self.process.exitcode}")
        return Outcome(*job, result="hang", failure=f"it hangs, deaf to signals, for {self.limits.seconds:g} s or more")

    def stop(self) -> None:
        """End the process and remove its folder."""
        self.connection.close()
        self.process.kill()
        self.process.join()
        shutil.rmtree(self.root, ignore_errors=True)


def _serve(
    connection: Connection, kinds: Mapping[str, Kind], seed: int, root: Path, session: Path, limits: Limits
) -> None:
    """Run what comes in until nobody sends any more."""
    faulthandler.disable()  # pytest's would write what a planted crash leaves
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    cap_memory(limits)
    while True:
        try:
            name, number = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        connection.send(run_case(name, kinds, seed, number, root, session, limits))


def run_all(
    jobs: Iterable[Job], kinds: Mapping[str, Kind], seed: int, session: Path, limits: Limits
) -> Iterator[Outcome]:
    """Outcomes of the jobs in their order, from one process at a time."""
    worker = None
    try:
        for job in jobs:
            worker = worker or Worker(kinds, seed, session, limits)
            outcome = worker.run(job)
            yield outcome
            # A failed one may have left anything in its process.
            if outcome.failure is not None or worker.done >= CASES_PER_PROCESS:
                worker.stop()
                worker = None
    finally:
        if worker is not None:
            worker.stop()
