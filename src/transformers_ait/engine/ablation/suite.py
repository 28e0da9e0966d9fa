"""Suites: variants over base recipes, as YAML; what is wrong in one is found before anything runs.

title: Soft tokens
claim: Soft tokens beat hard ones.
metric: rmse
seeds: [0, 1, 2]
steps:                     # trainings by name; `${name}` in a recipe is the folder of that training's model
  tokenizer: {script: vqvae, recipe: recipes/vqvae.yaml}
  model: {script: depth, recipe: recipes/depth.yaml, set: {model.depth_tokenizer: "${tokenizer}"}}
evaluate: model            # whose figures count; a variant may name another
ceiling: tokenizer         # whose reconstruction of the truth stands beside them
baseline: hard             # what the others are compared with
variants:
  hard: {config: {soft_feedback: false, soft_decode: false}}  # fields of the trained model's configuration
  soft: {expect: better}
  wide: {set: {model: {optim.lr: 1.0e-3}}}                    # keys of a training's recipe
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ...metrics import COCO_METRICS, MAP_METRICS
from ..recipes.reading import RecipeError, build_recipe, parse_yaml
from .scripts import SCRIPTS

OBJECT_METRICS = tuple(f"{kind}_{name}" for kind in ("box", "mask", "boundary") for name in COCO_METRICS)
METRICS = tuple(dict.fromkeys([name for kind in MAP_METRICS.values() for name in kind.names] + list(OBJECT_METRICS)))
LARGER_IS_BETTER = re.compile(r"d[123]|within_.*|.*miou|.*accuracy|.*_A[PR].*")
EXPECTATIONS = ("better", "worse", "alike")
PLACEHOLDER = re.compile(r"\$\{([\w-]+)\}")


class SuiteError(RecipeError):
    """A suite names something that does not exist, or gives a value that is not allowed."""


@dataclass(frozen=True)
class Step:
    """A training that variants share or change.

    Args:
        name: in the suite.
        script: which recipe it is, a key of `SCRIPTS`.
        values: of the recipe, the step's own changes in them; `${name}` stands for the folder of another step's model.
    """

    name: str
    script: str
    values: Mapping[str, Any]

    @property
    def needs(self) -> list[str]:
        """Names of the steps whose models it takes."""
        return placeholders(self.values)


@dataclass(frozen=True)
class Variant:
    """One line of the table.

    Args:
        name: the line's.
        evaluate: step whose model is measured.
        ceiling: step of the tokenizer whose reconstruction stands beside it, if any; of a task-solver the one inside.
        changes: by step, changes of its recipe as nested dictionaries.
        config: changes of the trained model's configuration, for the measurement alone.
        expect: what the claim says of it beside the baseline; None says nothing.
    """

    name: str
    evaluate: str
    ceiling: str | None = None
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    expect: str | None = None


@dataclass(frozen=True)
class Suite:
    """What is compared, and what a page says of it.

    Args:
        name: of the file.
        title: heading.
        claim: what is claimed, a sentence.
        paper: what the paper reports, as Markdown.
        reading: what our figures say, as Markdown.
        metric: the figure that counts.
        unit: of it, such as "m".
        task: whose figures, where the models have several tasks.
        data: changes of `EvaluationSettings`: dataset, options, split, limit, batch_size.
        seeds: of weights and data order of all trainings.
        steps: trainings by name.
        variants: by name.
        baseline: the variant that others are compared with.
        place: among the sections of the page.
    """

    name: str
    title: str
    claim: str
    metric: str
    seeds: tuple[int, ...]
    steps: Mapping[str, Step]
    variants: Mapping[str, Variant]
    baseline: str
    paper: str = ""
    reading: str = ""
    unit: str = ""
    task: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    place: int = 0

    @property
    def larger_is_better(self) -> bool:
        """Of the metric."""
        return LARGER_IS_BETTER.fullmatch(self.metric) is not None


TOP_KEYS = {entry.name for entry in fields(Suite)} - {"name"} | {"evaluate", "ceiling"}
STEP_KEYS = {"script", "recipe", "set"}
VARIANT_KEYS = {"evaluate", "ceiling", "set", "config", "expect"}
DATA_KEYS = {"dataset", "options", "split", "limit", "batch_size"}


def load_suite(path: Path, seeds: Sequence[int] | None = None) -> Suite:
    """Read and check a suite.

    Args:
        path: the file.
        seeds: in place of those in the file.

    Raises:
        FileNotFoundError: no such file, or no such recipe.
        SuiteError: a key, step, metric or value that is not allowed; the message names it.
        RecipeError: a variant gives a recipe a key or value that is not allowed.
    """
    values = _read(path)
    _check_keys(values, TOP_KEYS, str(path))
    for name in ("title", "claim", "metric", "seeds", "steps", "variants", "baseline", "evaluate"):
        if name not in values:
            raise SuiteError(f"{name} is missing in {path}.")
    if values["metric"] not in METRICS:
        raise SuiteError(
            f"metric in {path} must be a figure of evaluate.py, got {values['metric']!r}. {_close(values)}"
        )
    _check_keys(values.get("data") or {}, DATA_KEYS, str(path), "data")
    steps = {name: _step(name, entry, path) for name, entry in _section(values["steps"], "steps", path).items()}
    defaults = {name: values[name] for name in ("evaluate", "ceiling") if name in values}
    variants = {
        str(name): _variant(str(name), defaults | (entry or {}), steps, path)
        for name, entry in _section(values["variants"], "variants", path).items()
    }
    if values["baseline"] not in variants:
        raise SuiteError(f"baseline in {path} must be one of {list(variants)}, got {values['baseline']!r}.")
    given = {name: values[name] for name in TOP_KEYS & values.keys() - {"evaluate", "ceiling"}}
    chosen = _seeds(values["seeds"] if seeds is None else list(seeds), path)
    given |= {"steps": steps, "variants": variants, "seeds": chosen, "name": path.stem}
    suite = Suite(**given)
    for variant in variants.values():
        for name in required_steps(suite, variant):
            _check_recipe(suite, variant, name, path)
    return suite


def required_steps(suite: Suite, variant: Variant) -> list[str]:
    """Names of the steps that a variant needs, each after those that it takes models from.

    Raises:
        SuiteError: a step takes its own model, directly or through others.
    """
    done: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise SuiteError(f"steps of {suite.name} go in a circle: {' -> '.join([*above, name])}.")
        if name in done:
            return
        for needed in placeholders(step_values(suite, variant, name)):
            if needed not in suite.steps:
                raise SuiteError(
                    f"step {name!r} takes ${{{needed}}}, which is no step of {suite.name}; those are "
                    f"{list(suite.steps)}."
                )
            visit(needed, (*above, name))
        done.append(name)

    for name in (variant.evaluate, variant.ceiling):
        if name is not None:
            visit(name, ())
    return done


def step_values(suite: Suite, variant: Variant, name: str) -> dict[str, Any]:
    """Values of a step's recipe in a variant."""
    return merged(suite.steps[name].values, variant.changes.get(name, {}))


def placeholders(value: Any) -> list[str]:
    """Names in `${name}` anywhere in nested values, in order."""
    if isinstance(value, Mapping):
        return list(dict.fromkeys(name for entry in value.values() for name in placeholders(entry)))
    if isinstance(value, list | tuple):
        return list(dict.fromkeys(name for entry in value for name in placeholders(entry)))
    return PLACEHOLDER.findall(value) if isinstance(value, str) else []


def filled(value: Any, folders: Mapping[str, str]) -> Any:
    """Nested values with every `${name}` replaced."""
    if isinstance(value, Mapping):
        return {name: filled(entry, folders) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [filled(entry, folders) for entry in value]
    return PLACEHOLDER.sub(lambda found: folders[found[1]], value) if isinstance(value, str) else value


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`; dictionaries merge, everything else is replaced, None included."""
    result = dict(base)
    for name, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if both else value
    return result


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}; suites are in training/suites.")
    return dict(_section(parse_yaml(path.read_text(), str(path)), "the file", path))


def _section(value: Any, key: str, path: Path) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not value:
        raise SuiteError(f"{key} in {path} must be a section of keys, got {value!r}.")
    return value


def _check_keys(values: Mapping[str, Any], known: set[str], source: str, key: str = "") -> None:
    for name in values:
        if name not in known:
            prefix = f"{key}." if key else ""
            raise SuiteError(f"{prefix}{name} in {source} does not exist. Keys: {', '.join(sorted(known))}.")


def _close(values: Mapping[str, Any]) -> str:
    found = difflib.get_close_matches(str(values["metric"]), METRICS, n=3)
    return f"Did you mean {' or '.join(found)}?" if found else f"Figures: {', '.join(METRICS)}."


def _nested(changes: Any, key: str, path: Path) -> dict[str, Any]:
    """Dotted keys to nested dictionaries."""
    result: dict[str, Any] = {}
    for dotted, value in (_section(changes, key, path) if changes else {}).items():
        override: Any = value
        for part in reversed(str(dotted).split(".")):
            override = {part: override}
        result = merged(result, override)
    return result


def _step(name: str, entry: Any, path: Path) -> Step:
    key = f"steps.{name}"
    entry = _section(entry, key, path)
    _check_keys(entry, STEP_KEYS, str(path), key)
    if entry.get("script") not in SCRIPTS:
        raise SuiteError(f"{key}.script in {path} must be one of {list(SCRIPTS)}, got {entry.get('script')!r}.")
    if "recipe" not in entry:
        raise SuiteError(f"{key}.recipe is missing in {path}; name a recipe, relative to the suite.")
    values = _read(path.parent / entry["recipe"])
    return Step(name, entry["script"], merged(values, _nested(entry.get("set"), f"{key}.set", path)))


def _variant(name: str, entry: Any, steps: Mapping[str, Step], path: Path) -> Variant:
    key = f"variants.{name}"
    _check_keys(entry, VARIANT_KEYS, str(path), key)
    changed = _section(entry["set"], f"{key}.set", path) if entry.get("set") else {}
    named = [("evaluate", entry["evaluate"]), ("ceiling", entry.get("ceiling")), *(("set", step) for step in changed)]
    for what, step in named:
        if step is not None and step not in steps:
            raise SuiteError(f"{key}.{what} in {path} must name steps of {list(steps)}, got {step!r}.")
    if entry.get("expect") not in (None, *EXPECTATIONS):
        raise SuiteError(f"{key}.expect in {path} must be one of {EXPECTATIONS}, got {entry['expect']!r}.")
    config = _nested(entry.get("config"), f"{key}.config", path)
    changes = {step: _nested(values, f"{key}.set.{step}", path) for step, values in changed.items()}
    return Variant(name, entry["evaluate"], entry.get("ceiling"), changes, config, entry.get("expect"))


def _seeds(values: Any, path: Path) -> tuple[int, ...]:
    valid = isinstance(values, list) and values and all(type(seed) is int and seed >= 0 for seed in values)
    if not valid or len(set(values)) < len(values):
        raise SuiteError(
            f"seeds in {path} must list different whole numbers from 0, such as [0, 1, 2], got {values!r}."
        )
    return tuple(values)


def _check_recipe(suite: Suite, variant: Variant, name: str, path: Path) -> None:
    values = filled(step_values(suite, variant, name), dict.fromkeys(suite.steps, "folder"))
    source = f"{path}, variant {variant.name!r}, step {name!r}"
    build_recipe(SCRIPTS[suite.steps[name].script].recipe, with_output(values, "folder", 0), source)


def with_output(values: Mapping[str, Any], folder: str, seed: int) -> dict[str, Any]:
    """A recipe's values with the folder and the seed of a run."""
    return merged(values, {"run": {"output": folder, "seed": seed}})
