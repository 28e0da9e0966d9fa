"""Runs as processes that are forked from this one, which has imported all they need; killed by SIGKILL.

This process never computes: it has no threads that a fork would lose.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Task = Callable[[], None]

PATIENCE = 1200.0
"""Seconds that a run may take."""
_PAUSE = 0.0005
# What Python tells of whatever changes files.
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree"}


class RunError(RuntimeError):
    """A run that was left alone did not end well."""


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Args:
        status: exit status; negative is the signal that ended it.
        seconds: how long it took.
        said: the end of what it printed.
    """

    status: int
    seconds: float
    said: str

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.status == -signal.SIGKILL


class Process:
    """A forked process in a group of its own.

    Args:
        task: what it does.
        log: file of what it prints.
    """

    def __init__(self, task: Task, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self.start = log, time.perf_counter()
        sys.stdout.flush()
        sys.stderr.flush()
        self.number = os.fork()
        if self.number == 0:
            _run(task, log)

    def poll(self) -> int | None:
        """Exit status, None while it runs; negative is a signal."""
        number, status = os.waitpid(self.number, os.WNOHANG)
        return None if number == 0 else os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """SIGKILL to the process and all that it started."""
        try:
            os.killpg(self.number, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(self.number, signal.SIGKILL)  # it has not made its group yet

    def wait(self, kill_when: Callable[[float], bool] | None = None) -> Ended:
        """Wait for the end, and kill once the condition, of the seconds since the start, holds.

        Raises:
            RunError: it takes too long.
        """
        while (status := self.poll()) is None:
            seconds = time.perf_counter() - self.start
            if seconds > PATIENCE:
                self.kill()
                raise RunError(f"a run takes more than {PATIENCE:.0f} s: {_tail(self.log)}")
            if kill_when is not None and kill_when(seconds):
                self.kill()
                kill_when = None
            time.sleep(_PAUSE if kill_when is not None else 0.005)
        return Ended(status, time.perf_counter() - self.start, _tail(self.log))


def _run(task: Task, log: Path) -> None:
    """What the child does; never returns."""
    status = 1
    try:
        os.setpgid(0, 0)
        number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(number, 1)
        os.dup2(number, 2)
        sys.stdout = sys.stderr = os.fdopen(number, "w", buffering=1, closefd=False)
        task()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_whole(task: Task, log: Path) -> Ended:
    """A run that nothing interrupts.

    Raises:
        RunError: it fails.
    """
    ended = Process(task, log).wait()
    if ended.status != 0:
        raise RunError(f"exit status {ended.status}: {ended.said}")
    return ended


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:] if log.exists() else ""


# --- moments to kill at ---------------------------------------------------------------------------------------------


def counting(task: Task, folder: Path, counts: Path) -> Task:
    """The task, which leaves in a file how many operations on files under a folder it did."""

    def counted() -> None:
        seen = _watch(folder, lambda count: None)
        try:
            task()
        finally:
            counts.write_text(str(seen[0]))

    return counted


def killed_before(task: Task, folder: Path, operation: int) -> Task:
    """The task, killed right before its n-th operation on files under a folder, counted from 1."""

    def kill(count: int) -> None:
        if count == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched() -> None:
        _watch(folder, kill)
        task()

    return watched


def _watch(folder: Path, tell: Callable[[int], None]) -> list[int]:
    """Tell of every opening to write, renaming, making and removing under a folder, before it happens."""
    seen, root, process = [0], f"{folder}{os.sep}", os.getpid()

    def hook(event: str, values: tuple[object, ...]) -> None:
        if event == "open":
            changes = isinstance(values[2], int) and bool(values[2] & (os.O_WRONLY | os.O_RDWR))
        else:
            changes = event in _CHANGES
        # Relative names come from shutil, which works below a folder it has opened.
        if changes and os.getpid() == process and (event in ("os.remove", "os.rmdir") or _lies_in(values[:2], root)):
            seen[0] += 1
            tell(seen[0])

    sys.addaudithook(hook)
    return seen


def _lies_in(values: tuple[object, ...], root: str) -> bool:
    return any(os.fspath(value).startswith(root) for value in values if isinstance(value, str | Path))


def after(seconds: float) -> Callable[[float], bool]:
    """Condition: so many seconds have passed."""
    return lambda passed: passed >= seconds


def soon_after_seen(folder: Path, pattern: str, nth: int, delay: float) -> Callable[[float], bool]:
    """Condition: the n-th different file or folder of a pattern has been there for some seconds."""
    known: set[str] = set()
    since: list[float] = []

    def holds(passed: float) -> bool:
        if not since:
            known.update(path.name for path in folder.glob(pattern))
            if len(known) >= nth:
                since.append(passed)
        return bool(since) and passed - since[0] >= delay

    return holds


def seeded(*words: object) -> random.Random:
    """Random numbers of words, the same everywhere."""
    return random.Random(" ".join(map(str, words)))
