"""Doing what a plan lists: each training and each measurement once, by any number of processes that share a folder.

CACHE/trained/KEY/         the run's folder, as training scripts write it; `training.json` when it is done
CACHE/measured/KEY.json    figures
CACHE/claims/              which process works at what (`claims`)
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ..evaluation.inputs import EvaluationSettings
from ..evaluation.report import describe_environment, run_evaluation
from ..recipes.reading import build_recipe
from ..reporting.log import LOG_FILE, read_log
from ..run_files import replace_text
from .ceilings import tokenizer_figures
from .claims import try_claim, wait_for_others
from .plan import CODE_VERSION, Measurement, Training, describe
from .scripts import SCRIPTS
from .suite import filled, merged, with_output

DONE_FILE = "training.json"
CONFIG_FILE = "config.json"


class RunCache:
    """Finished and unfinished runs in a folder.

    Args:
        folder: made where it is missing; machines may share it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def training_folder(self, key: str) -> Path:
        """Folder of a training run."""
        return self.folder / "trained" / key

    def training(self, key: str) -> dict[str, Any] | None:
        """Record of a finished training, None before."""
        return _read_json(self.training_folder(key) / DONE_FILE)

    def measurement(self, key: str) -> dict[str, Any] | None:
        """Record of a finished measurement, None before."""
        return _read_json(self.folder / "measured" / f"{key}.json")

    def records(self) -> list[dict[str, Any]]:
        """Records of all finished trainings."""
        found = [_read_json(path) for path in sorted(self.folder.glob(f"trained/*/{DONE_FILE}"))]
        return [record for record in found if record is not None]


def run_all(wanted: Sequence[Measurement], cache: RunCache, log: Callable[[str], None] = print) -> None:
    """Do all measurements that are missing, and the trainings before them; returns when all are done.

    What another process has claimed is left to it, and done here should that process end before it is finished.

    Args:
        wanted: the measurements.
        cache: the folder.
        log: takes a line per run.

    Raises:
        RecipeError: a recipe does not fit models or data.
        FloatingPointError: a loss is not finite.
    """
    left = [measurement for measurement in wanted if cache.measurement(measurement.key) is None]
    while left:
        before = len(left)
        for measurement in list(left):
            if _try_all(measurement, cache, log):
                left.remove(measurement)
        if left and len(left) == before:
            wait_for_others()


def _try_all(measurement: Measurement, cache: RunCache, log: Callable[[str], None]) -> bool:
    """Whether a measurement is done now; False while another process works at it."""
    for training in measurement.training.chain():
        if not _once(cache, training.key, cache.training, partial(_train, training, cache, log)):
            return False
    return _once(cache, measurement.key, cache.measurement, partial(_measure, measurement, cache, log))


def _once(cache: RunCache, key: str, found: Callable[[str], Any], work: Callable[[], None]) -> bool:
    """Do a piece of work unless it is done or another process is at it; whether it is done now."""
    if found(key) is not None:
        return True
    claim = try_claim(cache.folder / "claims" / key)
    if claim is None:
        return False
    with claim:
        if found(key) is None:  # it may have been finished between both looks
            work()
    return True


def _train(training: Training, cache: RunCache, log: Callable[[str], None]) -> None:
    """Train, from the last checkpoint where there is one."""
    folder = cache.training_folder(training.key)
    folders = {needed.key: str(cache.training_folder(needed.key) / "model") for needed in training.needs}
    values = with_output(filled(training.values, folders), str(folder), training.seed)
    resumed = (folder / "recipe.yaml").is_file()
    if not resumed:
        shutil.rmtree(folder, ignore_errors=True)
    script = SCRIPTS[training.script]
    recipe = build_recipe(script.recipe, merged(values, {"run": {"resume": True}}), training.name)
    log(f"training {training.name}, seed {training.seed} ({training.key}){', resumed' if resumed else ''}")
    start = time.perf_counter()
    script.train(recipe)
    seconds = time.perf_counter() - start
    record = {
        "key": training.key,
        "name": training.name,
        "script": training.script,
        "seed": training.seed,
        "steps": training.steps,
        "seconds": None if resumed else round(seconds, 1),
        "log": _last_training_line(folder),
        "needs": [needed.key for needed in training.needs],
        "recipe": training.values,
    }
    replace_text(folder / DONE_FILE, json.dumps(record | _provenance()) + "\n")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    log(f"  done in {seconds:.0f} s")


def _measure(measurement: Measurement, cache: RunCache, log: Callable[[str], None]) -> None:
    start = time.perf_counter()
    model = cache.training_folder(measurement.training.key) / "model"
    figures, constants = _figures(model, measurement)
    record = {
        "key": measurement.key,
        "figures": figures,
        "constants": constants,
        "seconds": round(time.perf_counter() - start, 1),
        **describe(measurement),
    }
    path = cache.folder / "measured" / f"{measurement.key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(record | _provenance()) + "\n")
    log(f"measured {measurement.training.name}, seed {measurement.training.seed} ({measurement.key})")


def _figures(model: Path, measurement: Measurement) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Figures of a measurement, and those of constants by name."""
    if measurement.tokenizer:
        return tokenizer_figures(model, measurement.task, dict(measurement.data)), {}
    with changed_configuration(model, measurement.config) as folder:
        rows = run_evaluation(EvaluationSettings([folder], soft_only=True, panels=0, **measurement.data))
    own = [row for row in rows if row.folder is not None and measurement.task in (None, row.task)]
    return own[0].metrics, {row.name: row.metrics for row in rows if row.folder is None}


@contextmanager
def changed_configuration(model: Path, changes: Mapping[str, Any]) -> Any:
    """A folder with a model's files, its configuration changed; gone after the block.

    Args:
        model: a `model` folder.
        changes: nested fields of its configuration.
    """
    if not changes:
        yield model
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        folder.mkdir()
        for path in model.iterdir():
            if path.name != CONFIG_FILE:
                (folder / path.name).symlink_to(path.resolve())
        config = json.loads((model / CONFIG_FILE).read_text())
        (folder / CONFIG_FILE).write_text(json.dumps(merged(config, changes)))
        yield folder


def _last_training_line(folder: Path) -> dict[str, Any]:
    """The last logged means of training, such as losses."""
    logged = [line for line in read_log(folder / LOG_FILE) if line["split"] == "train"]
    return logged[-1] if logged else {}


def _provenance() -> dict[str, Any]:
    environment = describe_environment()
    versions = {
        name: environment["versions"][name] for name in ("torch", "transformers") if name in environment["versions"]
    }
    machine = environment["hardware"]
    return {
        "code": CODE_VERSION,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.get("accelerator", machine["cpu"]),
        "threads": machine["threads"],
        "versions": versions,
    }


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return found
