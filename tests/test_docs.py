"""README and docs as their readers use them: Python runs, command lines are understood, links and extras exist."""

import configparser
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from transformers_ait.cli.train import TASKS
from transformers_ait.data import render_room
from transformers_ait.engine.ablation.suite import load_suite
from transformers_ait.engine.recipes.reading import load_recipe
from transformers_ait_command import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)\s]+))?\)")
# The parsers of what is no subcommand.
PARSERS = {
    "training/evaluate.py": "transformers_ait.cli.evaluate",
    "transformers_ait.conversion": "transformers_ait.conversion.__main__",
    "transformers_ait.export": "transformers_ait.export.__main__",
}
# Run elsewhere (test_paligemma_tokens, test_export).
RUN_ELSEWHERE = {"docs/paligemma.md", "docs/export.md"}
# For minutes: real data, hundreds of rooms, torch.compile.
SLOW = {"docs/hourglass.md", "docs/own-depth.md", "docs/speed.md", "docs/tasks.md"}
REAL_DATA = {"docs/hourglass.md": "data/nyu_depth_v2"}


def blocks(page, *languages):
    return [code for language, code in BLOCK.findall((ROOT / page).read_text()) if language in languages]


def python_pages():
    for page in PAGES:
        if blocks(page, "python") and page not in RUN_ELSEWHERE:
            yield pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else [])


def commands(page):
    """Command lines of a page as words, comments left out."""
    for code in blocks(page, "bash", "sh"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if 'python -c "' not in code else []
            if words:
                yield words


@pytest.mark.parametrize("page", python_pages())
def test_python_runs(page, request, tmp_path, monkeypatch):
    """All blocks of a page one after the other, as a reader has them in a notebook."""
    if page in REAL_DATA:
        data = request.getfixturevalue("shared_dir") / REAL_DATA[page]
        (tmp_path / data.name).symlink_to(data)
    for name in ("hub_configs", "training"):
        (tmp_path / name).symlink_to(ROOT / name)
    room = render_room(2_000_000_029, height=120, width=160)
    for name in ("photo.jpg", "room.jpg"):
        Image.fromarray(room.image).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, code in enumerate(blocks(page, "python")):
        exec(compile(code, f"{page}, block {number + 1}", "exec"), names)


def understand(words):
    """Parse a command line as its program does, without running it."""
    match words:
        case ["export" | "source", *_]:
            return
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
        case ["pip", "install", *rest]:
            setup = configparser.ConfigParser()
            setup.read(ROOT / "setup.cfg")
            extras = re.findall(r"\[(\w[\w-]*)\]", " ".join(rest))
            assert set(extras) <= set(setup["options.extras_require"])
        case ["accelerate", "launch", "--config_file", config, *rest]:
            assert (ROOT / config).is_file()
            understand(["python", *rest])
        case ["transformers-ait" | "transformers_ait", "train", task, recipe, *rest]:
            path = ROOT / recipe
            load_recipe(TASKS[task][0], [str(path if path.is_file() else Path(recipe)), *rest])
        case ["transformers-ait", ("convert" | "export") as name, *rest]:
            understand(["python", "-m", f"transformers_ait.{'conversion' if name == 'convert' else name}", *rest])
        case ["transformers-ait", command, *rest]:
            assert command in COMMANDS
            importlib.import_module(f"transformers_ait.cli.{command}").build_parser().parse_args(rest)
        case ["python", "-m", module, *rest] | ["python", module, *rest] if module in PARSERS:
            importlib.import_module(PARSERS[module]).build_parser().parse_args(rest)
        case ["python", script, *rest] if found := re.fullmatch(r"training/run_(\w+)\.py", script):
            understand(["transformers-ait", "train", found[1], *rest])
        case ["python", "training/ablate.py", *rest]:
            spec = importlib.util.spec_from_file_location("ablate", ROOT / "training/ablate.py")
            ablate = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(ablate)
            for suite in ablate.build_parser().parse_args(rest).suites:
                load_suite(ROOT / suite)
        case ["python", script, *_]:
            assert (ROOT / script).is_file(), script
        case _:
            raise AssertionError(f"nobody knows how to check {words}")


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))])
def test_command_lines_are_understood(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code in blocks(page, "yaml"):  # recipes that the page tells its reader to write, as far as the page has them
        named = re.match(r"# (\S+\.yaml), from (\S+)", code)
        if named:
            base = yaml.safe_load((ROOT / named[2]).read_text())
            Path(named[1]).write_text(yaml.safe_dump(merged(base, yaml.safe_load(code))))
    for words in commands(page):
        understand(words)


def merged(base, changes):
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return base | {key: merged(base.get(key), value) for key, value in changes.items()}


@pytest.mark.parametrize(
    "line",
    [
        "transformers-ait predict photo.jpg --model folder",
        "python training/run_depth.py training/recipes/nothing.yaml",
        "python training/run_depth.py training/recipes/depth-base.yaml --optim.nothing 1",
        "python training/nothing.py",
        "python training/ablate.py training/suites/nothing.yaml",
        "python training/ablate.py --nothing",
        'pip install -e ".[nothing]"',
        "make nothing",
        "rm photo.jpg",
    ],
)
def test_wrong_command_lines_are_noticed(line):
    with pytest.raises((AssertionError, SystemExit, ValueError, FileNotFoundError)):
        understand(shlex.split(line))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for path, anchor in LINK.findall(BLOCK.sub("", (ROOT / page).read_text())):
        if re.match(r"\w+://", path):
            continue
        target = (ROOT / page).parent / path
        assert target.exists(), f"{page} links to {path}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page} links to {path}#{anchor}"


def test_every_page_is_in_the_site():
    listed = re.findall(r"\w[\w-]*\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
