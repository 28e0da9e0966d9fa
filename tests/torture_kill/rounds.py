"""Rounds: a run that is killed once or several times, goes on, and is compared with the unbroken one."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

from .processes import (
    Ended,
    Process,
    RunError,
    Task,
    after,
    counting,
    killed_before,
    run_whole,
    seeded,
    soon_after_seen,
)
from .scripts import SCRIPTS, STEPS, arguments, exec_script, run_script
from .state import broken_promises, differences, final_state

MOMENTS = ("time", "operation", "checkpoint", "end")
"""At a time of the whole run; before an operation on a file; while a checkpoint, or the model, is written."""
_AGAIN = 0.3  # share of kills after which the run that goes on is killed too
_MOST_KILLS = 4  # of one round


@dataclass(frozen=True)
class Whole:
    """The unbroken run.

    Args:
        state: what it leaves.
        seconds: how long it took.
        operations: how many changes of files it made.
    """

    state: dict[str, Any]
    seconds: float
    operations: int


@dataclass
class Outcome:
    """What a round, a fault or a save came to.

    Args:
        name: of the script or save.
        kind: "kills", or the fault.
        kills: moments at which it was killed.
        problems: what is wrong; nothing if all holds.
        said: error that a fault ended in.
        finished: whether it was over before a kill came, the last time.
    """

    name: str
    kind: str = "kills"
    kills: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    said: str = ""
    finished: bool = False


@cache
def run_unbroken(name: str, data: Path) -> Whole:
    """Run a script to its end, once.

    Raises:
        RunError: it fails.
    """
    place = data.with_name("whole") / name
    run, counts = place / "run", place / "operations"
    place.mkdir(parents=True)
    task = partial(run_script, name, arguments(name, data, run))
    ended = run_whole(counting(task, run, counts), place / "output.txt")
    return Whole(final_state(run), ended.seconds, int(counts.read_text()))


def run_round(name: str, data: Path, place: Path, whole: Whole, rng: Random, most: int = _MOST_KILLS) -> Outcome:
    """Kill a run, check what is left, and let it go on to the end, which may be killed again.

    Args:
        name: of the script.
        data: folder of its data.
        place: an empty folder.
        whole: the unbroken run.
        rng: of the moments.
        most: kills at most.
    """
    run, outcome = place / "run", Outcome(name)
    task = partial(run_script, name, arguments(name, data, run))
    pattern = SCRIPTS[name].checkpoints
    wanted = 1
    while wanted < most and rng.random() < _AGAIN:
        wanted += 1
    for _ in range(wanted):
        moment, ended = _killed(task, run, place, whole, rng)
        if not ended.killed:
            if ended.status != 0:
                outcome.problems.append(f"it ended by itself with {ended.status}: {ended.said[-600:]}")
            outcome.finished = True
            break
        outcome.kills.append(moment)
        outcome.problems += [f"after a kill at {moment}: {x}" for x in broken_promises(run, pattern, whole.state)]
    try:
        run_whole(task, place / "output.txt")
        outcome.problems += [f"differs: {x}" for x in differences(whole.state, final_state(run))[:10]]
    except RunError as error:
        outcome.problems.append(f"it does not go on: {str(error)[-900:]}")
    if not outcome.problems:
        shutil.rmtree(place)
    return outcome


def _killed(task: Task, run: Path, place: Path, whole: Whole, rng: Random) -> tuple[str, Ended]:
    """Start a run and kill it at a moment of the generator's; the moment in words, and how it ended."""
    kind = rng.choice(MOMENTS)
    log = place / "output.txt"
    if kind == "operation":
        number = rng.randint(1, whole.operations)
        return f"operation {number} of {whole.operations}", Process(killed_before(task, run, number), log).wait()
    if kind == "time":
        seconds = rng.uniform(0, whole.seconds)
        return f"{seconds:.2f} of {whole.seconds:.2f} s", Process(task, log).wait(after(seconds))
    delay = rng.choice((0.0, rng.uniform(0, 0.03), rng.uniform(0, 0.3)))
    if kind == "end":
        return f"the model's writing + {delay:.3f} s", Process(task, log).wait(
            soon_after_seen(run, "[.]model.tmp", 1, delay)
        )
    nth = rng.randint(1, STEPS // 2)
    condition = soon_after_seen(run / "checkpoints", ".*", nth, delay)
    return f"checkpoint {nth} of this start + {delay:.3f} s", Process(task, log).wait(condition)


def run_rounds(
    name: str, data: Path, place: Path, kills: int, seed: int, tell: Callable[[Outcome], None]
) -> list[Outcome]:
    """Rounds of a script until it was killed so many times."""
    whole = run_unbroken(name, data)
    place.mkdir()
    outcomes: list[Outcome] = []
    done = tries = 0
    while done < kills and tries < 4 * kills + 4:
        rng = seeded(seed, name, tries)
        folder = place / str(tries)
        folder.mkdir()
        outcome = run_round(name, data, folder, whole, rng, min(_MOST_KILLS, kills - done))
        done, tries = done + len(outcome.kills), tries + 1
        outcomes.append(outcome)
        tell(outcome)
    if done < kills:
        outcomes.append(Outcome(name, problems=[f"only {done} of {kills} kills came before the end of a run"]))
    return outcomes


def run_real_processes(data: Path, place: Path, kills: int, seed: int, tell: Callable[[Outcome], None]) -> None:
    """Kill scripts that are started as users start them, while they write a checkpoint, and let them go on likewise."""
    for number in range(kills):
        rng = seeded(seed, "real", number)
        name = rng.choice(sorted(SCRIPTS))
        folder = place / str(number)
        whole = run_unbroken(name, data)
        run, log, outcome = folder / "killed" / "run", folder / "output.txt", Outcome(name, "real process")
        task = partial(exec_script, name, arguments(name, data, run))
        nth, delay = rng.randint(1, STEPS // 2), rng.uniform(0, 0.2)
        ended = Process(task, log).wait(soon_after_seen(run / "checkpoints", ".*", nth, delay))
        if ended.killed:
            outcome.kills.append(f"checkpoint {nth} of this start + {delay:.3f} s")
        outcome.problems += broken_promises(run, SCRIPTS[name].checkpoints, whole.state)
        try:
            run_whole(task, log)
            outcome.problems += [f"differs: {x}" for x in differences(whole.state, final_state(run))[:10]]
        except RunError as error:
            outcome.problems.append(f"it does not go on: {str(error)[-900:]}")
        tell(outcome)
