"""Claims: which process works at what, among any number of processes and machines that share a folder."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType

BEAT_SECONDS = 20.0
STALE_SECONDS = 180.0  # a claim that was not touched for so long belongs to nobody


class Claim:
    """A file that its owner made and touches; it goes away when the work ends, and is stale when the owner is gone.

    Args:
        path: of the file.
        token: what stands in it.
    """

    def __init__(self, path: Path, token: str) -> None:
        self.path = path
        self.token = token
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        if _read(self.path) == self.token:
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                return


def try_claim(path: Path) -> Claim | None:
    """The claim of a piece of work, None while another process has it.

    Args:
        path: of its file, in a folder that all processes share.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    found = _read(path)
    if found is not None and not (_is_stale(path, found) and _remove(path, found)):
        return None
    token = json.dumps({"host": _host(), "pid": os.getpid(), "id": uuid.uuid4().hex})
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return None
    with os.fdopen(descriptor, "w") as file:
        file.write(token)
    return Claim(path, token)


def _is_stale(path: Path, token: str) -> bool:
    """Whether a claim's owner is gone: a process of this machine that ended, or no touch for long."""
    try:
        owner = json.loads(token)
        if owner["host"] == _host():
            return not _is_running(owner["pid"])
    except (ValueError, KeyError, TypeError):
        pass  # half-written, by a process that was killed then or is about to go on
    return _age(path) > STALE_SECONDS


def _age(path: Path) -> float:
    """Seconds since a file was touched, by the clock of the disk that holds it."""
    clock = path.with_name(f".clock-{uuid.uuid4().hex}")
    try:
        clock.touch()
        return clock.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        clock.unlink(missing_ok=True)


def _remove(path: Path, token: str) -> bool:
    """Take a stale claim away, unless another process was faster; whether it is gone."""
    aside = path.with_name(f".stale-{uuid.uuid4().hex}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    ours = _read(aside) == token
    if not ours:
        # A new owner's, made between reading and renaming: put it back.
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)
    return ours


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _host() -> str:
    """This machine in this run of it, since numbers of processes are given anew after a restart."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}".strip()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    status = Path(f"/proc/{pid}/stat")
    # A process that was killed and not yet waited for.
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def wait_for_others(seconds: float = 5.0) -> None:
    """Sleep while other processes hold all that is left."""
    time.sleep(seconds)
