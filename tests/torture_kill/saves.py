"""What writes a folder or file in one go, killed meanwhile: it is whole or absent, and a second attempt succeeds."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from transformers_ait import AiTDenseImageProcessor, AiTForDenseAndInstancePrediction
from transformers_ait.configuration_ait import AiTConfig
from transformers_ait.conversion.converter import convert
from transformers_ait.conversion.reverser import reverse
from transformers_ait.export.exporter import export_checkpoint
from transformers_ait.remote_code import save_with_code

from .processes import Process, RunError, after, counting, killed_before, run_whole, seeded
from .rounds import Outcome
from .scripts import DENSE_TASKS, SOLVER
from .state import differences, final_state

OUT = "out"


def _solver() -> AiTForDenseAndInstancePrediction:
    settings = {"num_depth_codes": 8, "parallel": True, "soft_feedback": False}
    return AiTForDenseAndInstancePrediction(AiTConfig(**SOLVER, dense_tasks=DENSE_TASKS[:1], **settings)).eval()


def _convert(sources: Path, folder: Path) -> None:
    convert(sources / "tokenizer.pth", sources / "tokenizer", folder / OUT)


def _reverse(sources: Path, folder: Path) -> None:
    reverse(sources / "tokenizer", folder / f"{OUT}.pth")


def _export(sources: Path, folder: Path) -> None:
    export_checkpoint(sources / "solver", folder / OUT, file_format="torch", batch=1)


def _with_code(sources: Path, folder: Path) -> None:
    model = AiTForDenseAndInstancePrediction.from_pretrained(sources / "solver")
    save_with_code(model, folder / OUT, AiTDenseImageProcessor.from_pretrained(sources / "solver"))


SAVES: dict[str, Callable[[Path, Path], None]] = {
    "convert": _convert,
    "reverse": _reverse,
    "export": _export,
    "save_with_code": _with_code,
}


def _prepare(data: Path, sources: Path) -> None:
    """A tokenizer in both layouts, and a task-solver."""
    shutil.copytree(data / "depth_tokenizer", sources / "tokenizer")
    reverse(sources / "tokenizer", sources / "tokenizer.pth")
    _solver().save_pretrained(sources / "solver")
    AiTDenseImageProcessor(size={"height": 32, "width": 32}).save_pretrained(sources / "solver")


def visible_state(folder: Path) -> dict[str, Any]:
    """`final_state` without what is hidden."""
    return {name: x for name, x in final_state(folder).items() if not name.startswith(".")}


def run_rounds(
    name: str, data: Path, place: Path, kills: int, seed: int, tell: Callable[[Outcome], None]
) -> list[Outcome]:
    """Kill a save so many times, each time from the start, and try again after each."""
    sources = place / "sources"
    sources.mkdir(parents=True)
    log = place / "output.txt"
    run_whole(partial(_prepare, data, sources), log)
    folder, counts = place / "whole", place / "operations"
    folder.mkdir()
    seconds = run_whole(counting(partial(SAVES[name], sources, folder), folder, counts), log).seconds
    operations, whole = int(counts.read_text()), visible_state(folder)
    outcomes: list[Outcome] = []
    done = tries = 0
    while done < kills and tries < 3 * kills + 3:
        rng = seeded(seed, name, tries)
        folder = place / str(tries)
        folder.mkdir()
        task, outcome = partial(SAVES[name], sources, folder), Outcome(name)
        tries += 1
        if rng.random() < 0.6:
            number = rng.randint(1, operations)
            outcome.kills.append(f"operation {number} of {operations}")
            ended = Process(killed_before(task, folder, number), log).wait()
        else:
            moment = rng.uniform(0, seconds)
            outcome.kills.append(f"{moment:.2f} of {seconds:.2f} s")
            ended = Process(task, log).wait(after(moment))
        if not ended.killed:
            shutil.rmtree(folder)
            continue
        outcome.problems += check_and_repeat(task, folder, whole, log)
        done += 1
        outcomes.append(outcome)
        tell(outcome)
    return outcomes


def check_and_repeat(task: Callable[[], None], folder: Path, whole: dict[str, Any], log: Path) -> list[str]:
    """What is wrong with what a killed save left, or with a second attempt in the same place."""
    left = visible_state(folder)
    if left == {} or left.keys() < whole.keys() and not differences(left, {name: whole[name] for name in left}):
        # Of files beside each other one may be whole and the other absent; within a folder that would be half of it.
        problems = [f"half of the folder is there: {sorted(left)}"] if any("/" in name for name in left) else []
    else:
        problems = [f"half-written: {name}" for name in differences(whole, left)]
    for path in folder.glob("[!.]*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        run_whole(task, log)
    except RunError as error:
        return [*problems, f"a second attempt fails: {str(error)[-600:]}"]
    return problems + [f"the second attempt differs: {x}" for x in differences(whole, visible_state(folder))]
