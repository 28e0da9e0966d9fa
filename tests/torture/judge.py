"""Runs a case and judges what came of it."""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image

from .case import Case, Kind, Place, Refused
from .values import brief

ALLOWED = (ValueError, TypeError, OSError, StrictDataclassError, Refused)
GIB = 2**30
# What libraries say where the cap on memory stopped them, whatever they make of it.
OUT_OF_MEMORY = ("allocate memory", "can't allocate", "Unable to allocate", "out of memory", "MemoryError")


@dataclass(frozen=True)
class Limits:
    """Of one case.

    Args:
        seconds: it may take.
        bytes: it may add to the process's memory.
    """

    seconds: float = 10.0
    bytes: int = 2 * GIB


@dataclass
class Outcome:
    """What came of a case.

    Args:
        kind: its kind.
        number: its number.
        what: what was odd.
        result: "accepted", or the error's type.
        message: of the error, one line.
        failure: why this must not be; None where it may.
        seconds: it took.
        peak: bytes that it added at most.
        where: last lines of the traceback of a failure.
    """

    kind: str
    number: int
    what: str = ""
    result: str = "accepted"
    message: str = ""
    failure: str | None = None
    seconds: float = 0.0
    peak: int = 0
    where: str = ""


class Hang(BaseException):
    """Raised in a case that takes too long; no `except Exception` catches it."""


def cap_memory(limits: Limits) -> None:
    """Keep this process from taking the machine's memory: half as much again as a case may have."""
    room = status_bytes("VmSize") + limits.bytes + limits.bytes // 2
    resource.setrlimit(resource.RLIMIT_AS, (room, resource.getrlimit(resource.RLIMIT_AS)[1]))


def status_bytes(name: str) -> int:
    """A figure of /proc/self/status, which gives them in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def generator(kind: str, seed: int, number: int) -> random.Random:
    """The generator that a case is drawn from."""
    return random.Random(f"{kind}/{seed}/{number}")


def run_case(
    name: str, kinds: Mapping[str, Kind], seed: int, number: int, root: Path, session: Path, limits: Limits
) -> Outcome:
    """Build a case, call it under the limits, and judge.

    Args:
        name: of its kind.
        kinds: all of them.
        seed: of the run.
        number: of the case.
        root: folder that the case's own is made in, and removed.
        session: what the kinds prepared, in a folder each.
        limits: see there.
    """
    outcome = Outcome(name, number)
    place = Place(root / "case", session / name)
    before = os.getcwd()
    try:
        os.chdir(place.folder)
        torch.manual_seed(number)
        case = kinds[name].build(generator(name, seed, number), place)
        outcome.what = case.what
        _try(case, place, limits, outcome)
    except Exception as error:
        outcome.result, outcome.failure = type(error).__name__, "the case could not be built"
        outcome.message, outcome.where = brief(str(error)), traceback.format_exc(limit=-6)
    finally:
        os.chdir(before)
        shutil.rmtree(place.folder, ignore_errors=True)
    return outcome


def _try(case: Case, place: Place, limits: Limits, outcome: Outcome) -> None:
    files = snapshot(place.folder)
    resident, virtual = status_bytes("VmRSS"), status_bytes("VmSize")
    _reset_peak()
    start, error = time.perf_counter(), None
    try:
        signal.signal(signal.SIGALRM, _raise_hang)
        signal.setitimer(signal.ITIMER_REAL, limits.seconds)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case.call()
    except (Exception, SystemExit, Hang) as raised:
        error = raised
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    outcome.seconds = time.perf_counter() - start
    outcome.peak = max(0, status_bytes("VmHWM") - resident)
    reserved = status_bytes("VmPeak") - virtual
    if error is not None:
        outcome.result, outcome.message = result_name(error), brief(str(error), 400)
        outcome.where = "".join(traceback.format_exception(error, limit=-6))[-2500:]
    left = "" if error is None else left_behind(files, place.folder, case.keeps_complete)
    outcome.failure = verdict(error, case, max(outcome.peak, reserved), left, limits)
    if outcome.failure is None and outcome.seconds > limits.seconds:  # something swallowed the alarm
        outcome.failure = verdict(Hang(), case, 0, "", limits)


def _raise_hang(*_: Any) -> None:
    raise Hang("it takes too long")


def result_name(error: BaseException) -> str:
    """What the table calls an error."""
    return f"exit {error.status}" if isinstance(error, Refused) else type(error).__name__


def verdict(error: BaseException | None, case: Case, peak: int, left: str, limits: Limits) -> str | None:
    """Why an outcome must not be; None where it may.

    Args:
        error: what was raised, if anything.
        case: the case.
        peak: bytes taken.
        left: what an error left behind, see `left_behind`.
        limits: see there.
    """
    if isinstance(error, Hang):
        return f"it takes more than {limits.seconds:g} s"
    if peak > limits.bytes or out_of_memory(error):
        return f"it takes more than {limits.bytes / GIB:g} GiB"
    if error is None:
        return None
    if not isinstance(error, ALLOWED):
        return f"the error is a {type(error).__name__}"
    message = str(error)
    if isinstance(error, Refused) and "Traceback (most recent call last)" in message:
        return "the command ends in a traceback"
    if not any(name.lower() in message.lower() for name in case.names):
        return f"the message names none of {', '.join(case.names)}"
    return f"it left {left}" if left else None


def out_of_memory(error: BaseException | None) -> bool:
    """Whether the cap on memory is behind an error, however it is dressed."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def snapshot(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder, and of what a link names."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def left_behind(before: Mapping[str, str], folder: Path, keeps_complete: bool) -> str:
    """What a failed call added, changed or removed below a folder; caches, in folders named so, do not count."""
    after = {path: digest for path, digest in snapshot(folder).items() if not path.startswith("cache")}
    gone = [f"{path} removed" for path in before if path not in after and not path.startswith("cache")]
    new = [path for path, digest in after.items() if before.get(path) != digest]
    if keeps_complete:
        new = [path for path in new if not is_complete(folder / path)]
    return ", ".join([*gone, *new][:4])


def is_complete(path: Path) -> bool:
    """Whether a written file can be read back."""
    try:
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix in (".png", ".jpg"):
            with Image.open(path) as image:
                image.load()
        else:
            return path.suffix in (".yaml", ".jsonl", ".csv", ".txt", ".md") and bool(path.read_bytes())
    except (OSError, ValueError, SyntaxError):
        return False
    return True
