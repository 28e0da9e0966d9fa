"""The notebooks run from top to bottom and show what they say, and what is committed of their output is quiet.

Those that take long are shortened by other values for the cell tagged "parameters", and all share one kernel, whose
imports would otherwise take most of the time. `make test-all` runs them whole, each in a kernel of its own, and
compares what they print with what is committed; cells tagged "varies" print what differs between machines.
"""

import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from transformers_ait import AiTDepthImageProcessor

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
NAMES = ["convert", "export", "hourglass", "new_dense_task", "quickstart", "soft_tokens", "train"]
MOST_BYTES = 700_000
SHORT = {
    "new_dense_task": {"num_rooms": 6, "num_held_out": 2, "tokenizer_steps": 2, "model_steps": 2},
    "soft_tokens": {"num_rooms": 8},
    "train": {"num_rooms": 6, "num_held_out": 2, "tokenizer_steps": 4, "model_steps": 2},
}
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
CLEAN = """%reset -f
import os, sys
os.chdir({folder!r})
if "torch" in sys.modules:
    sys.modules["torch"].manual_seed(0)
    sys.modules["torch"].set_grad_enabled(True)
if "accelerate.state" in sys.modules:
    sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)
    sys.modules["accelerate.state"].GradientState._reset_state()
"""

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def printed(notebook):
    return "".join(output.text for output in outputs(notebook) if output.get("name") == "stdout")


def numbers(text, pattern):
    """The numbers that a pattern finds in what was printed, each of its groups one."""
    found = re.search(pattern, text)
    assert found, f"nothing like {pattern} in:\n{text}"
    return [float(group) for group in found.groups()]


@pytest.fixture(scope="module")
def shared_client(tmp_path_factory):
    """What runs the cells of all notebooks in one kernel."""
    folder, data = NOTEBOOKS[0].parent, tmp_path_factory.mktemp("datasets")
    own = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(data), "OMP_NUM_THREADS": "1"}
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=600)
    with client.setup_kernel(env=os.environ | own, cwd=str(folder)):
        yield client


def execute(path, client, values=None):
    """A notebook after its run in a client's kernel, which is cleaned first."""
    notebook = nbformat.read(path, 4)
    added = [(0, CLEAN.format(folder=str(path.parent)))]
    if values:
        (place,) = [n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
        names = set(re.findall(r"\w+", notebook.cells[place].source))
        assert names >= values.keys(), f"the notebook's parameters are {names}"
        added.append((place + 1, "\n".join(f"{name} = {value}" for name, value in values.items())))
    for place, source in reversed(added):
        notebook.cells.insert(place, nbformat.v4.new_code_cell(source))
    client.nb = notebook
    client.reset_execution_trackers()
    for index, cell in enumerate(notebook.cells):
        client.execute_cell(cell, index)
    return notebook


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@by_name
def test_committed_outputs_are_quiet_and_small(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert path.stat().st_size < MOST_BYTES
    assert outputs(notebook), "run notebooks/run.py before committing"
    assert not [o for o in outputs(notebook) if o.output_type == "error" or o.get("name") == "stderr"]
    assert not re.search(r"/(tmp|home|root|work|Users)/", printed(notebook)), "a path of somebody's machine"
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run it from top to bottom before committing"
    globals()[f"check_{path.stem}"](notebook, whole=True)


@by_name
def test_links_lead_somewhere(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (path.parent / target).exists(), target


def check_quickstart(notebook, whole):
    found, constant = numbers(printed(notebook), r"RMSE (.*) m; a constant at the true median has (.*) m")
    assert 0.1 < found < 0.75 * constant


def check_soft_tokens(notebook, whole):
    rows = re.findall(r"(?:hard|soft) feedback +([\d.]+) +([\d.]+)", printed(notebook))
    (hard, soft_decode), (soft_feedback, soft) = np.array(rows, float)
    assert soft == min(hard, soft_decode, soft_feedback, soft) < hard == max(hard, soft_decode, soft_feedback, soft)
    assert soft > 0.8 * hard, "the text calls the effect small"
    if whole:
        gain, error = numbers(printed(notebook), r"better by (.*) m \+- (.*) \(standard error\)")
        assert gain > 2 * error


def check_train(notebook, whole):
    text = printed(notebook)
    first, last = numbers(text, r"loss of the tokenizer: (.*) at first, (.*) at the end")
    tokenizer, ours, constant = numbers(text, r"tokenizer alone (.*) m, model (.*) m, constant (.*) m")
    assert last < first
    if whole:
        assert tokenizer < 0.5 * constant and ours < 0.85 * constant


def check_convert(notebook, whole):
    text = printed(notebook)
    assert "same codes: True" in text and "all as before: True" in text
    assert numbers(text, r"largest difference: (.*) mm")[0] < 0.1
    refusals = re.findall(r"^(\w+Error): ", text, re.M)
    assert refusals == ["CheckpointError"] * 3 + ["ParityError"]


def check_new_dense_task(notebook, whole):
    text = printed(notebook)
    ours, constant = numbers(text, r"height: RMSE (.*) m; the mean height everywhere: (.*) m")
    assert "['height']" in text and ours > 0
    if whole:
        assert ours < 0.75 * constant


def check_export(notebook, whole):
    text = printed(notebook)
    apart = [float(x) for x in re.findall(r"at most (\S+) m apart", text)]
    assert len(apart) == 2 and max(apart) < 1e-4
    assert "PyTorch here: False, transformers here: False" in text


def check_hourglass(notebook, whole):
    assert numbers(printed(notebook), r"mean deviation (.*)%")[0] < 10


@pytest.fixture
def short(tmp_path, tiny_model):
    """Function: name of a notebook -> what shortens it."""

    def saved(name, **settings):
        tiny_model(**settings).save_pretrained(tmp_path / name)
        AiTDepthImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / name)
        return f"Path({str(tmp_path / name)!r})"

    def values(name):
        if name != "export":
            return SHORT.get(name)
        return {"one_pass": saved("parallel", parallel=True), "step_by_step": saved("steps"), "repeats": 1}

    return values


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    NOTEBOOKS,
    ids=lambda path: path.stem,
)
def test_notebooks_run(path, shared_client, short):
    notebook = execute(path, shared_client, short(path.stem))
    assert not [o for o in outputs(notebook) if o.get("name") == "stderr"]
    globals()[f"check_{path.stem}"](notebook, whole=False)
    # Cells that say something: of how many pieces a cell's text comes depends on its pace.
    speaking = [sum(bool(cell.get("outputs")) for cell in x.cells) for x in (notebook, nbformat.read(path, 4))]
    assert speaking[0] == speaking[1]


@pytest.mark.notebooks
@by_name
def test_whole_notebooks_print_what_is_committed(path, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    notebook, committed = nbformat.read(path, 4), nbformat.read(path, 4)
    NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert not [o for o in outputs(notebook) if o.get("name") == "stderr"]
    globals()[f"check_{path.stem}"](notebook, whole=True)
    for ours, theirs in zip(notebook.cells, committed.cells, strict=True):
        if "varies" in theirs.metadata.get("tags", ()):
            continue
        texts = [
            "".join(o.text for o in cell.get("outputs", ()) if o.get("name") == "stdout") for cell in (ours, theirs)
        ]
        assert NUMBER.sub("#", texts[0]) == NUMBER.sub("#", texts[1])
        found, expected = ([float(x) for x in NUMBER.findall(text)] for text in texts)
        assert np.allclose(found, expected, rtol=0.05, atol=0.02), texts
