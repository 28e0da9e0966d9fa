"""A whole session: data, rounds of every script, saves, faults, real processes, and the report."""

import contextlib
import datetime
import importlib
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from . import faults as fault_cases
from . import saves, scripts
from .processes import RunError, run_whole
from .rounds import Outcome, run_real_processes, run_rounds

WEIGHTS = {**dict.fromkeys(scripts.SCRIPTS, 2), **dict.fromkeys(saves.SAVES, 1)}
"""Scripts and saves to what share of the kills they get."""
FAULTS = list(fault_cases.FAULTS)
WRITING = ("checkpoint", "the model")
REAL = "real processes"
# What runs would import on their way, each for itself.
_IMPORTED = (
    "transformers_ait.engine.tasks.dense",
    "transformers_ait.engine.tasks.instances",
    "transformers_ait.engine.tasks.joint",
    "transformers_ait.engine.tasks.pose",
    "transformers_ait.engine.tasks.vqvae",
    "transformers_ait.conversion.__main__",
    "transformers_ait.export.__main__",
    "torch.utils.tensorboard",
    "matplotlib.backends.backend_agg",
    "pycocotools.mask",
)


def import_everything() -> None:
    """What the runs need, as long as it starts no thread."""
    torch.set_num_threads(1)
    for name in _IMPORTED:
        before = len(os.listdir("/proc/self/task"))
        importlib.import_module(name)
        if len(os.listdir("/proc/self/task")) > before:
            sys.stderr.write(f"warning: importing {name} starts a thread, which forks lose\n")


def run(folder: Path, kills: Mapping[str, int], faults: Sequence[str], real: int, seed: int) -> list[Outcome]:
    """Everything that is asked for.

    Args:
        folder: empty folder to work in.
        kills: script or save to the number of kills.
        faults: names of faults.
        real: kills of real processes.
        seed: of the moments.
    """
    import_everything()
    data = folder / "data"
    data.mkdir()
    run_whole(lambda: scripts.prepare(data), folder / "prepare.txt")
    outcomes: list[Outcome] = []
    total = sum(kills.values()) + len(faults) + real
    with tqdm(total=total, unit="kill", disable=None) as bar:

        def tell(outcome: Outcome) -> None:
            outcomes.append(outcome)
            bar.update(max(len(outcome.kills), int(outcome.kind != "kills")))
            bar.set_postfix_str(f"{outcome.name}, {sum(bool(x.problems) for x in outcomes)} failed")
            for problem in outcome.problems:
                tqdm.write(f"{outcome.name}, {outcome.kind}: {problem}", file=sys.stderr)

        for name, count in kills.items():
            rounds = run_rounds if name in scripts.SCRIPTS else saves.run_rounds
            with _told(name, tell):
                rounds(name, data, folder / name, count, seed, tell)
        for name in faults:
            with _told(name, tell):
                fault_cases.run(name, data, folder / name.replace(" ", "-"), tell)
        with _told(REAL, tell):
            run_real_processes(data, folder / "real", real, seed, tell)
    return outcomes


@contextlib.contextmanager
def _told(name: str, tell: Callable[[Outcome], None]) -> Iterator[None]:
    """An unbroken run that fails is an outcome too."""
    try:
        yield
    except RunError as error:
        tell(Outcome(name, problems=[f"the unbroken run failed: {str(error)[-900:]}"]))


def markdown(outcomes: Sequence[Outcome], command: str, seconds: float) -> str:
    """The report."""
    kills = sum(len(x.kills) for x in outcomes)
    rows = [_row(name, outcomes) for name in dict.fromkeys(x.name for x in outcomes if x.kind == "kills")]
    faults = [
        f"| {x.name} | {x.kind} | {_one_line(x.said)} | {_one_line('; '.join(x.problems)) or 'holds'} |"
        for x in outcomes
        if x.kind != "kills"
    ]
    problems = [f"- {x.name}, {x.kind}, kills at {x.kills}: {_one_line(text)}" for x in outcomes for text in x.problems]
    lines = [
        "# Kill -9 over training and saving",
        "",
        f"`{command}`, {datetime.date.today()}, {_processor()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}: {kills} kills in {seconds:.0f} s, {len(problems)} problems.",
        "",
        "After every kill, each visible checkpoint is held against its manifest, and `model/` against that of the "
        "unbroken run. At the end weights, optimiser, random states, progress, log, metrics, pictures and model are "
        "compared with the unbroken run's bit for bit, and nothing partial may lie in the folder.",
        "",
        "Runs are forked from one process that has imported everything, so that a kill never falls into the start of "
        "Python; the real processes are started as users start them. Faults happen to a small disk, or to a folder "
        "made read-only, in a mount namespace of the run's own. A kill leaves what the kernel has taken: a loss of "
        "power, after which files that were never flushed may be empty, is not tried here; checkpoints are then "
        "refused by their digests.",
        "",
        "| script or save | rounds | kills | at a time | before a file operation | while writing | failed rounds |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
    if faults:
        lines += ["", "| fault | script | what it says | the rest |", "|---|---|---|---|", *faults]
    if problems:
        lines += ["", "## Problems", "", *problems]
    return "\n".join([*lines, ""])


def _row(name: str, outcomes: Sequence[Outcome]) -> str:
    """A script's or save's line of the table."""
    rounds = [x for x in outcomes if x.name == name and x.kind == "kills"]
    moments = [moment for x in rounds for moment in x.kills]
    operations, writing = (sum(moment.startswith(words) for moment in moments) for words in ("operation", WRITING))
    times, failed = len(moments) - operations - writing, sum(bool(x.problems) for x in rounds)
    return f"| {name} | {len(rounds)} | {len(moments)} | {times} | {operations} | {writing} | {failed} |"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()
