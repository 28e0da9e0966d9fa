"""From a suite to runs: trainings and measurements, each with a key that follows from all it depends on."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .scripts import SCRIPTS
from .suite import Suite, SuiteError, Variant, filled, required_steps, step_values

CODE_VERSION = 1
"""Part of every key. Raise it when a change of models, losses, data, training or evaluation changes figures: all runs
count as new then. A hash of the sources would do so at every changed docstring."""

# Keys of recipes that do not change what is learned.
FREE_RUN_KEYS = {
    "output",
    "resume",
    "seed",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "panels",
}
FREE_DATA_KEYS = {"in_memory", "num_workers", "eval_batch"}
DATA_SECTIONS = ("data", "instance_data", "depth_data")
KEY_LENGTH = 16


@dataclass(frozen=True)
class Training:
    """A training run.

    Args:
        key: of its content: script, recipe, seed, and the keys of the trainings whose models it takes.
        name: of the step in the suite that asks for it first.
        script: which recipe it is.
        values: of the recipe; `${key}` stands for the folder of another training's model.
        seed: of weights and data.
        needs: those other trainings.
    """

    key: str
    name: str
    script: str
    values: Mapping[str, Any]
    seed: int
    needs: tuple["Training", ...] = ()

    @property
    def steps(self) -> int:
        """Optimiser steps, 0 where the recipe counts epochs."""
        return int(self.values["run"].get("steps") or 0)

    def chain(self) -> list["Training"]:
        """This one and all before it, in the order to run them."""
        found = [earlier for needed in self.needs for earlier in needed.chain()] + [self]
        return list({training.key: training for training in found}.values())


@dataclass(frozen=True)
class Measurement:
    """An evaluation of a trained model.

    Args:
        key: of its content: the training's key, the changes of the configuration, and the data.
        training: whose model it measures.
        config: changes of the model's configuration.
        task: whose figures count, where the model has several.
        data: fields of `EvaluationSettings`.
        tokenizer: measure the truth through the tokenizer inside the model instead (`ceilings`).
    """

    key: str
    training: Training
    config: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: bool = False


@dataclass(frozen=True)
class PlannedRun:
    """What a variant needs for one seed."""

    variant: str
    seed: int
    result: Measurement
    ceiling: Measurement | None


def plan(suite: Suite) -> list[PlannedRun]:
    """All runs of a suite, seed by seed, so that whole pairs come first."""
    return list(_planned(suite))


def measurements(suite: Suite) -> list[Measurement]:
    """What has to be measured, each once."""
    found = [x for run in plan(suite) for x in (run.result, run.ceiling) if x is not None]
    return list({measurement.key: measurement for measurement in found}.values())


def content_key(content: Any) -> str:
    """Key of nested values; the order of dictionaries does not matter, nor does 1 or 1.0."""
    text = json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def _planned(suite: Suite) -> Iterator[PlannedRun]:
    for seed in suite.seeds:
        for variant in suite.variants.values():
            trained = _trainings(suite, variant, seed)
            result = _measurement(suite, trained[variant.evaluate], variant.config, suite.task)
            ceiling = None
            if variant.ceiling is not None:
                ceiling = _ceiling(suite, trained[variant.ceiling])
            yield PlannedRun(variant.name, seed, result, ceiling)


def _trainings(suite: Suite, variant: Variant, seed: int) -> dict[str, Training]:
    """Trainings by name of the step."""
    done: dict[str, Training] = {}
    for name in required_steps(suite, variant):
        values, script = step_values(suite, variant, name), suite.steps[name].script
        # A recipe names its models by content, so that equal steps of different suites are one.
        values = filled(values, {other: f"${{{training.key}}}" for other, training in done.items()})
        needs = tuple(training for training in done.values() if training.key in json.dumps(values))
        key = content_key({"code": CODE_VERSION, "script": script, "seed": seed, "recipe": _learned(values)})
        done[name] = Training(key, name, script, values, seed, needs)
    return done


def _measurement(suite: Suite, training: Training, config: Mapping[str, Any], task: str | None) -> Measurement:
    data = evaluation_data(training.values, suite)
    content = {"code": CODE_VERSION, "training": training.key, "config": config, "task": task, "data": data}
    return Measurement(content_key(content), training, config, task, data)


def _ceiling(suite: Suite, training: Training) -> Measurement:
    """Of a trained tokenizer, or of the one inside a task-solver."""
    if SCRIPTS[training.script].is_tokenizer:
        return _measurement(suite, training, {}, None)
    plain = _measurement(suite, training, {}, suite.task)
    return replace(plain, key=content_key({"measurement": plain.key, "tokenizer": True}), tokenizer=True)


def evaluation_data(values: Mapping[str, Any], suite: Suite) -> dict[str, Any]:
    """Fields of `EvaluationSettings`: the data that a recipe itself evaluates on, with the suite's changes."""
    sections = [values[name] for name in DATA_SECTIONS if name in values]
    if not sections:
        raise SuiteError(f"{suite.name}: a recipe without data cannot be measured.")
    section = sections[-1] if suite.task is not None else sections[0]
    own = {"dataset": section["dataset"], "options": section.get("options", {})}
    own |= {"split": section.get("eval_split", "validation"), "columns": section.get("columns", {})}
    own |= {"limit": section.get("eval_limit"), "batch_size": section.get("eval_batch", 8)}
    return own | dict(suite.data)


def describe(measurement: Measurement) -> dict[str, Any]:
    """A measurement for JSON, without its trainings."""
    content = asdict(measurement)
    content["training"] = measurement.training.key
    return content


def _learned(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values without what does not change what is learned."""
    kept = dict(values)
    kept["run"] = {name: value for name, value in values["run"].items() if name not in FREE_RUN_KEYS}
    for section in DATA_SECTIONS:
        if section in values:
            kept[section] = {name: x for name, x in values[section].items() if name not in FREE_DATA_KEYS}
    return kept


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _canonical(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(entry) for entry in value]
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if whole else value
