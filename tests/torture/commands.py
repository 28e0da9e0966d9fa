"""Recipes, and command lines of `transformers-ait` and of the scripts in training."""

import functools
import json
import random
import runpy
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from transformers_ait.cli import train
from transformers_ait_command import main as transformers_ait

from .case import Case, Place, arguments_of_process, run_command
from .pictures import picture_file
from .tiny_models import write_folders
from .values import brief, changed_structure, damaged, json_value

TRAINING = Path(__file__).resolve().parents[2] / "training"
RECIPES = sorted((TRAINING / "recipes").glob("*.yaml"))
SCRIPTS = sorted(path for path in TRAINING.glob("*.py") if "__main__" in path.read_text())
# Words to put in place of others. None starts with "/" or "..": nothing may be written outside of the case's folder.
WORDS = (
    *(
        "",
        " ",
        "-",
        "--",
        "--x",
        "x",
        "0",
        "-1",
        "1e9",
        "nan",
        "é 雪",
        "a/b",
        "[",
        "{",
        "{}",
        "[]",
        "null",
        "true",
        "???",
    ),
    *(
        "--run.steps",
        "--help-me",
        "depth",
        "depth,depth",
        "x" * 300,
        "cuda:99",
        "meta",
        "\ud800",
        "a\0b",
        "2" * 30,
        "{a: [}",
    ),
)


def task_of(recipe: Path) -> str:
    """The subcommand of `transformers-ait train` that a recipe is for."""
    for word in ("vqvae", "pose", "joint", "detection", "instance", "coco"):
        if word in recipe.stem:
            return {"detection": "instance", "coco": "instance"}.get(word, word)
    return "dense" if "dense" in recipe.stem or "plain" in recipe.stem else "depth"


@functools.cache
def recipe_values(path: Path) -> dict[str, Any]:
    """A recipe as it stands."""
    return yaml.safe_load(path.read_text())


def recipe_case(rng: random.Random, place: Place) -> Case:
    """A recipe with something wrong in it, or overridden on the command line, that is read and not run."""
    source = rng.choice(RECIPES)
    task = task_of(source) if rng.random() < 0.9 else rng.choice(sorted(train.TASKS))
    path = place.inputs / rng.choice(("recipe.yaml", "é 雪.yaml"))
    words, names = [str(path)], [path.name, "recipe"]
    which = rng.random()
    data, what = source.read_bytes(), "as it is"
    if which < 0.2:
        what, data = damaged(rng, data)
    elif which < 0.65:
        what, keys, changed = changed_structure(rng, recipe_values(source))
        names += [key for key in keys if isinstance(key, str)]
        data = yaml.safe_dump(changed, allow_unicode=rng.random() < 0.5).encode("utf-8", "replace")
    elif which < 0.7:
        what, data = "a bomb of references", _yaml_bomb()
    if which >= 0.6:
        overrides = [_override(rng, recipe_values(source)) for _ in range(rng.choice((1, 1, 2)))]
        words += [word for override in overrides for word in override]
        names += [part for key, *_ in overrides for part in key.lstrip("-").partition("=")[0].split(".")]
    names += ["???", "--", "override", "missing"]
    where = rng.random()
    if where < 0.03:
        words[0] = rng.choice(("missing.yaml", str(place.inputs), "", "--run.steps"))
        names += [words[0]]
    else:
        path.write_bytes(data)
    return Case(
        f"{task} {source.stem}: {what} {brief(words[1:])}",
        lambda: run_command(_reader(task), words),
        tuple(filter(None, names)),
    )


def _reader(task: str) -> Callable[[Sequence[str]], Any]:
    """What a training command does before it trains."""
    recipe_class, _, purpose = train.TASKS[task]
    return lambda words: train.run_from_command_line(recipe_class, lambda recipe: None, purpose, words)


def _override(rng: random.Random, values: dict[str, Any]) -> tuple[str, ...]:
    sections = {name: value for name, value in values.items() if isinstance(value, dict) and value}
    section = rng.choice(sorted(sections))
    key = rng.choice(
        (f"{section}.{rng.choice(sorted(sections[section]))}", section, "x.y", "run.steps", "run.output", "", ".")
    )
    value = rng.choice((json.dumps(json_value(rng), default=str), rng.choice(WORDS)))
    return rng.choice(((f"--{key}", value), (f"--{key}={value}",), (f"--{key}",), (key, value)))


def _yaml_bomb() -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    return "\n".join(lines).encode()


def prepare(folder: Path) -> None:
    """Checkpoint folders, an untrained one among them, and a photograph."""
    write_folders(folder)
    shutil.copytree(folder / "depth", folder / "untrained")
    config = folder / "untrained" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"initialization_only": True}))
    Image.new("RGB", (40, 30), (200, 90, 10)).save(folder / "photo.png")


def command_case(rng: random.Random, place: Place) -> Case:
    """A command line with a word wrong."""
    kind = rng.choice(
        ("predict", "predict", "predict", "evaluate", "convert", "export", "train", "train", "app", "script")
    )
    if kind == "script":
        return script_case(rng)
    words = {
        "predict": _predict,
        "evaluate": _evaluate,
        "convert": _convert,
        "export": _export,
        "train": _train,
        "app": _app,
    }[kind](rng, place)
    if kind != "predict" or rng.random() < 0.6:
        words = _spoiled(rng, words)
    # No page may start, and no run but one that its data keeps from starting.
    words += ["--no-such-option"] if kind == "app" else []
    shown = [word.replace(str(place.session), "S").replace(str(place.folder), "F") for word in words]
    named = [Path(word).name if "/" in word else word for word in words if len(word) > 2]
    names = (*named, "argument", "usage", "needs the package", "override", "command line", "checkpoint", "no such file")
    return Case(f"{brief(shown, 300)}", lambda: run_command(transformers_ait, words), names, keeps_complete=True)


def _spoiled(rng: random.Random, words: list[str]) -> list[str]:
    words = list(words)
    for _ in range(rng.choice((1, 1, 2))):
        spot = rng.randrange(1, len(words))
        how = rng.choice(("replaced", "replaced", "dropped", "added", "doubled"))
        # What keeps a command from real work stays.
        if words[spot].startswith(("S:", "--data.dataset")) or words[spot - 1] == "--data.dataset":
            how = "added"
        if how == "replaced":
            words[spot] = rng.choice(WORDS)
        elif how == "dropped" and len(words) > 2:
            del words[spot]
        elif how == "doubled":
            words.insert(spot, words[spot])
        else:
            words.insert(spot, rng.choice(WORDS))
    return words


def _predict(rng: random.Random, place: Place) -> list[str]:
    _, damaged_photo = picture_file(rng, place.inputs)
    inputs = rng.choice(
        (
            [str(place.session / "photo.png"), str(damaged_photo)],
            [str(damaged_photo)],
            [str(place.inputs)],
            ["missing.png"],
        )
    )
    name = rng.choice(("depth", "parallel", "joint", "plain", "vqvae", "dense_decoder", "pose", "untrained", "missing"))
    folder = place.session / name
    if rng.random() < 0.3 and folder.is_dir():
        folder = shutil.copytree(folder, place.inputs / "model")
        file = rng.choice(sorted(path for path in folder.iterdir() if path.is_file()))
        file.write_bytes(damaged(rng, file.read_bytes())[1])
    output = place.outputs / rng.choice(("new", "taken"))
    if output.name == "taken":
        output.write_text("a file")
    further = {
        "--tasks": ("depth", "x", "depth,normals", ""),
        "--formats": ("npy", "png16", "colour,overlay", "x", "coco", "video", ""),
        "--threshold": ("0.5", "2", "nan", "x"),
        "--device": ("cpu", "x", "meta", "cuda:7"),
        "--dtype": ("auto", "float16", "x", "bfloat16"),
        "--batch-size": ("1", "0", "x", "99999999999"),
        "--smooth": ("0", "-1", "x"),
    }
    words = ["predict", *inputs, "--model", str(folder), "--output", str(output)]
    for option in rng.sample(sorted(further), rng.choice((0, 1, 1, 2))):
        words += [option, rng.choice(further[option])]
    return words


def _evaluate(rng: random.Random, place: Place) -> list[str]:
    name = rng.choice(("depth", "joint", "plain", "vqvae", "dense_decoder", "pose", "untrained", "missing"))
    folder = str(place.session / name)
    data = rng.choice(
        (
            ["--dataset", "depth_folders", "--options", '{"data_dir": "missing"}'],
            ["--dataset", "no_such_dataset"],
            ["--dataset", "nyu_depth_v2", "--options", "{}"],
            ["--dataset", "synthetic_rooms", "--options", '{"num_test": -1}'],
            ["--dataset", "coco_instances", "--options", '{"data_dir": 5}'],
        )
    )
    return ["evaluate", folder, *data, "--limit", "1", "--output", str(place.outputs / "new")]


def _convert(rng: random.Random, place: Place) -> list[str]:
    path = place.inputs / "original.pth"
    path.write_bytes(damaged(rng, b"PK\x03\x04 and so on")[1])
    words = ["convert", "--checkpoint", str(path), "--config", rng.choice(("ait-vqvae-mask", "x")), "--output", "new"]
    return (
        words
        if rng.random() < 0.6
        else ["convert", "--checkpoint", str(place.session / "plain"), "--reverse", "--output", "back.pth"]
    )


def _export(rng: random.Random, place: Place) -> list[str]:
    folder = str(place.session / rng.choice(("untrained", "vqvae", "pose", "missing")))
    return ["export", folder, "--output", str(place.outputs / "new"), "--format", "torch", "--batch", "1"]


def _train(rng: random.Random, place: Place) -> list[str]:
    """A run whose data is not there, of a recipe for tiny models."""
    source = rng.choice([path for path in RECIPES if "tiny" in path.stem and "pose" not in path.stem])
    folder = str(place.session / rng.choice(("depth", "joint", "vqvae", "plain", "missing")))
    words = [
        "train",
        task_of(source),
        str(source),
        "--data.dataset",
        "depth_folders",
        "--run.output",
        str(place.outputs / "run"),
    ]
    settings = [
        ["--data.options", "{data_dir: missing}"],
        ["--run.steps", "1"],
        ["--run.resume", "true"],
        ["--model.initialize_from", folder],
        ["--model.finetune", folder],
        ["--model.tokenizers", f"{{depth: {folder}}}"],
        ["--model.config", "{image_size: 33}"],
        ["--run.mixed_precision", rng.choice(("bf16", "x"))],
        ["--data.num_workers", "-1"],
    ]
    return [*words, *(word for chosen in rng.sample(settings, rng.choice((1, 2, 3))) for word in chosen)]


def _app(rng: random.Random, place: Place) -> list[str]:
    return ["app", "--checkpoint", str(place.session / "depth"), "--port", "8000", "--device", "cpu", "--max-side", "9"]


def script_case(rng: random.Random) -> Case:
    """A script of `training` with words that it does not know."""
    script = rng.choice(SCRIPTS)
    words = ["--no-such-option", "x", *rng.choices(WORDS, k=rng.choice((0, 1, 2)))]

    def main(given: Sequence[str]) -> Any:
        before = list(sys.path)
        sys.path.insert(0, str(TRAINING))
        try:
            with arguments_of_process([script.name, *given]):
                runpy.run_path(str(script), run_name="__main__")
        finally:
            sys.path[:] = before

    return Case(
        f"{script.name} {brief(words)}",
        lambda: run_command(main, words),
        ("argument", "no-such-option", "recipe", "usage"),
    )
