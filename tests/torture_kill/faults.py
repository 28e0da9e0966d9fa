"""Faults of disk and data during a run: a typed error that says what to do, whole checkpoints, and the run goes on.

Each takes place in a mount namespace of its own, where a small disk fills up, a folder becomes read-only for root too,
or files vanish, and nothing of it is left afterwards. Where mounting is not allowed, they are left out and said to be.
"""

import ctypes
import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from .processes import PATIENCE, Ended, Process, run_whole
from .rounds import Outcome, run_unbroken
from .scripts import SCRIPTS, STEPS, arguments, run_script
from .state import broken_promises, checkpoints, differences, final_state

_NEW_NAMESPACE, _PRIVATE, _BIND, _READ_ONLY, _REMOUNT = 0x20000, (1 << 18) | (1 << 14), 1 << 12, 1, 1 << 5
_DISK = 32 << 20
_REFUSED = 2  # exit status of a script that says what the user can correct


class MountError(OSError):
    """This process may not mount."""


def _call(name: str, *values: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*values) != 0:
        number = ctypes.get_errno()
        raise MountError(number, f"{name}: {os.strerror(number)}")


def _mount(source: str, target: Path | str, kind: str, flags: int, options: str = "") -> None:
    _call("mount", source.encode(), str(target).encode(), kind.encode(), flags, options.encode())


def own_namespace() -> None:
    """From here on, what this process mounts is seen by nobody else."""
    _call("unshare", _NEW_NAMESPACE)
    _mount("none", "/", "none", _PRIVATE)


def small_disk(folder: Path, size: int = _DISK, read_only: bool = False) -> None:
    """Put a disk of so many bytes onto an existing folder."""
    _mount("none", folder, "tmpfs", _READ_ONLY if read_only else 0, f"size={size}")


def read_only(folder: Path) -> None:
    """Make a folder read-only, for root too."""
    _mount(str(folder), folder, "none", _BIND)
    _mount("none", folder, "none", _BIND | _REMOUNT | _READ_ONLY)


def repair(folder: Path) -> None:
    """Take away what was mounted onto a folder."""
    _call("umount2", str(folder).encode(), 2)


def _stopped_at(process: Process, run: Path, name: str, step: int) -> None:
    """Stop a run once the checkpoint of a step is there; of the last step once the model is being written."""
    start = time.perf_counter()
    while not _has_come_to(run, name, step):
        if process.poll() is not None or time.perf_counter() - start > PATIENCE:
            raise RuntimeError("the run was over before the fault")
        time.sleep(0.0005)
    os.killpg(process.number, signal.SIGSTOP)


def _has_come_to(run: Path, name: str, step: int) -> bool:
    if step == STEPS:  # not at its checkpoint, as the removal of an old one still makes room after it
        return (run / ".model.tmp").exists()
    return any(int(path.name.rpartition("-")[2]) >= step for path in checkpoints(run, SCRIPTS[name].checkpoints))


def _fill(disk: Path, left: int) -> Path:
    """Fill a disk but for some bytes."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        space = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, max(space.f_bavail * space.f_frsize - left, 4096))
    return filler


def _disk_full(name: str, place: Path, run: Path, start: Callable[[], Process], step: int, left: int) -> Ended:
    process = start()
    _stopped_at(process, run, name, step)
    filler = _fill(place, left)
    os.killpg(process.number, signal.SIGCONT)
    ended = process.wait()
    filler.unlink()
    return ended


def _read_only(name: str, place: Path, run: Path, start: Callable[[], Process]) -> Ended:
    process = start()
    _stopped_at(process, run, name, 2)
    read_only(run / "checkpoints")
    os.killpg(process.number, signal.SIGCONT)
    ended = process.wait()
    repair(run / "checkpoints")
    return ended


def _read_only_output(name: str, place: Path, run: Path, start: Callable[[], Process]) -> Ended:
    run.parent.mkdir(parents=True, exist_ok=True)
    small_disk(run.parent, read_only=True)
    ended = start().wait()
    repair(run.parent)
    return ended


def _deleted(name: str, place: Path, run: Path, start: Callable[[], Process], files: Path) -> Ended:
    """An empty disk on the data's folder: for the run it is deleted. So it is for the next start."""
    process = start()
    _stopped_at(process, run, name, 2)
    small_disk(files)
    os.killpg(process.number, signal.SIGCONT)
    ended = process.wait()
    again = start().wait() if ended.status == _REFUSED else ended
    repair(files)
    return ended if again.status == ended.status else again


Fault = Callable[[str, Path, Path, Callable[[], Process]], Ended]
FAULTS: dict[str, tuple[str, ...]] = {
    "disk full": tuple(SCRIPTS),
    "disk full to the last byte": ("vqvae", "pose"),
    "disk full at the model": ("vqvae", "depth", "pose"),
    "read-only checkpoints": ("vqvae", "joint", "pose"),
    "read-only output": ("dense", "pose"),
    "deleted images": ("plain",),
    "deleted cache": ("vqvae", "instance", "dense", "pose"),
}
"""Faults and the scripts that meet them."""


def _fault(fault: str, data: Path, script: str) -> Fault:
    cache = "motions" if script == "pose" else "rooms"
    faults: dict[str, Fault] = {
        "disk full": partial(_disk_full, step=2, left=40 << 10),
        "disk full to the last byte": partial(_disk_full, step=2, left=0),
        "disk full at the model": partial(_disk_full, step=STEPS, left=16 << 10),
        "read-only checkpoints": _read_only,
        "read-only output": _read_only_output,
        "deleted images": partial(_deleted, files=data / "pairs" / "train" / "images"),
        "deleted cache": partial(_deleted, files=data / cache),
    }
    return faults[fault]


def run(fault: str, data: Path, place: Path, tell: Callable[[Outcome], None]) -> None:
    """Let all scripts of a fault meet it."""
    for script in FAULTS[fault]:
        folder = place / script
        folder.mkdir(parents=True)
        whole = run_unbroken(script, data)
        result = folder / "outcome.json"
        # The keeper of the mounts is a process of its own; what it finds out it writes down.
        keeper = partial(_meet, fault, script, data, folder, whole.state, result)
        run_whole(keeper, folder / "keeper.txt")
        tell(Outcome(**json.loads(result.read_text())))


def _meet(fault: str, script: str, data: Path, folder: Path, whole: dict, result: Path) -> None:
    outcome = Outcome(fault, script)
    disk = folder / "disk"
    disk.mkdir()
    try:
        own_namespace()
        small_disk(disk)
        meet(_fault(fault, data, script), script, data, disk, whole, outcome)
    except MountError as error:
        outcome.said = f"left out, as this process may not mount ({error})"
    result.write_text(json.dumps(asdict(outcome)))


def meet(fault: Fault, script: str, data: Path, disk: Path, whole: dict, outcome: Outcome) -> None:
    """Run a script into a fault, check what it says and leaves, and let it go on."""
    run, log = disk / "here" / "run", disk.with_suffix(".txt")
    task = partial(run_script, script, arguments(script, data, run))
    ended = fault(script, disk, run, partial(Process, task, log))
    said = "".join(re.findall(r"error: .*", ended.said)[-1:])
    outcome.said = said.replace(str(disk), "DISK").replace(str(data), "DATA")
    if ended.status not in (0, _REFUSED):
        outcome.problems.append(f"exit status {ended.status}: {ended.said[-700:]}")
    elif ended.status == 0:
        outcome.said = "it does not notice"
    elif not outcome.said:
        outcome.problems.append(f"no error is printed: {ended.said[-300:]}")
    outcome.problems += broken_promises(run, SCRIPTS[script].checkpoints, whole)
    run_whole(task, log)
    outcome.problems += [f"differs: {x}" for x in differences(whole, final_state(run))[:10]]
