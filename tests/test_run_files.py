"""Folders of a run after a kill at any point: nothing half removed is seen, and leftovers go at the next start."""

import errno
import os
import shutil

import pytest
import torch
from accelerate import Accelerator

from transformers_ait.engine import run_files
from transformers_ait.engine.loop.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from transformers_ait.engine.loop.run_folder import RECIPE_FILE, check_run_folder
from transformers_ait.engine.recipes.reading import build_recipe
from transformers_ait.engine.recipes.scripts import DepthRecipe
from transformers_ait.engine.run_files import (
    DiskFullError,
    ReadOnlyFolderError,
    checkpoints_in,
    drop_old,
    explain_full_disk,
    partial_text,
    remove_folder,
)
from transformers_ait.engine.tasks.pose_checkpoints import POSE_KEYS


class Killed(BaseException):
    """Stands for a kill: nothing that handles errors sees it."""


def kill(*_, **__):
    raise Killed


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def steps(tmp_path):
    """Folder with the folders of six steps, one of which has a digit more."""
    for step in (2, 4, 6, 8, 9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "weights").write_text("x")
    return tmp_path


def test_checkpoints_are_in_the_order_of_their_steps(steps):
    found = [path.name for path in checkpoints_in(steps, "checkpoint-")]
    assert found == [f"checkpoint-{step}" for step in (2, 4, 6, 8, 9, 10)]


def test_a_folder_is_never_seen_with_some_of_its_files(steps, monkeypatch):
    real = shutil.rmtree
    monkeypatch.setattr(run_files.shutil, "rmtree", lambda path, **_: None if not path.exists() else kill())
    with pytest.raises(Killed):
        remove_folder(steps / "checkpoint-2")
    assert not (steps / "checkpoint-2").exists() and (steps / ".checkpoint-2.old").exists()
    monkeypatch.setattr(run_files.shutil, "rmtree", real)
    run_files.remove_partial(steps, "checkpoint-")
    assert not (steps / ".checkpoint-2.old").exists()


@pytest.mark.parametrize(
    ("last", "keep", "also", "left"),
    [
        (10, 2, None, (9, 10)),
        (10, 1, None, (10,)),
        (10, 9, None, (2, 4, 6, 8, 9, 10)),
        (10, 2, 4, (4, 10)),
        (6, 2, None, (4, 6, 8, 9, 10)),  # later ones, which are damaged, do not count
        (2, 1, None, (2, 4, 6, 8, 9, 10)),
    ],
)
def test_the_oldest_go(steps, last, keep, also, left):
    path = None if also is None else str(steps / f"checkpoint-{also}")
    drop_old(steps, steps / f"checkpoint-{last}", keep, "checkpoint-", path)
    assert [x.name for x in checkpoints_in(steps, "checkpoint-")] == [f"checkpoint-{step}" for step in left]


def test_what_a_kill_left_goes_where_the_run_goes_on(tmp_path, monkeypatch):
    accelerator, model = Accelerator(cpu=True), torch.nn.Linear(1, 1)
    accelerator.prepare(model)
    for step in (1, 2):
        save_checkpoint(accelerator, tmp_path, step, keep=2)
    with monkeypatch.context() as patched:
        patched.setattr("transformers_ait.engine.loop.checkpoints.drop_old", kill)
        with pytest.raises(Killed):
            save_checkpoint(accelerator, tmp_path, 3, keep=2)
    (tmp_path / ".step-00000000.old").mkdir()
    assert len(checkpoints_in(tmp_path)) == 3
    load_checkpoint(accelerator, latest_checkpoint(tmp_path), keep=2)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_folder_that_may_not_be_written_is_explained(tmp_path, number):
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / "partial").mkdir()
    with pytest.raises(ReadOnlyFolderError) as caught, explain_full_disk(tmp_path, tmp_path / "partial"):
        raise OSError(number, os.strerror(number), "the file")
    words = [
        "the file may not be written",
        os.strerror(number),
        "up to step-00000002 are whole",
        "run.output",
        "resume",
    ]
    assert [word for word in words if word not in str(caught.value)] == []
    assert caught.value.errno == number and names(tmp_path) == ["step-00000002"]


def test_errors_name_the_keys_of_the_recipe(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(DiskFullError) as caught, explain_full_disk(tmp_path, keys=POSE_KEYS):
        raise OSError(errno.ENOSPC, "full")
    words = ["up to checkpoint-2 are whole", "lower training.save_total_limit", "choose another disk for output"]
    assert [word for word in words if word not in str(caught.value)] == [] and "run." not in str(caught.value)


def recipe(folder, **run):
    values = {
        "data": {"dataset": "none"},
        "optim": {"lr": 1.0},
        "run": {"output": str(folder), "steps": 1, "batch_size": 1, **run},
    }
    return build_recipe(DepthRecipe, values, "the test")


def test_a_run_that_was_killed_at_its_very_start_can_start_again(tmp_path):
    folder, accelerator = tmp_path / "run", Accelerator(cpu=True)
    folder.mkdir()
    partial_text(folder / RECIPE_FILE).write_text("half")
    assert check_run_folder(recipe(folder), accelerator) is None
    assert check_run_folder(recipe(folder, resume=True), accelerator) is None
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no run"):
        check_run_folder(recipe(folder, resume=True), accelerator)


def test_a_new_folder_with_code_is_complete_or_absent(tmp_path, tiny_model, monkeypatch):
    from transformers_ait import AiTDenseImageProcessor, remote_code

    model, processor = tiny_model(), AiTDenseImageProcessor(size={"height": 32, "width": 32})
    with monkeypatch.context() as patched:
        patched.setattr(remote_code, "_save_processor_with_code", kill)
        with pytest.raises(Killed):
            remote_code.save_with_code(model, tmp_path / "out", processor)
    assert not (tmp_path / "out").exists()
    remote_code.save_with_code(model, tmp_path / "out", processor)
    whole = names(tmp_path / "out")
    assert {"config.json", "model.safetensors", "modeling_ait.py", "preprocessor_config.json"} <= set(whole)
    (tmp_path / "out" / "README.md").write_text("mine")
    os.remove(tmp_path / "out" / "config.json")
    remote_code.save_with_code(model, str(tmp_path / "out"), processor)
    assert names(tmp_path / "out") == sorted([*whole, "README.md"]) and names(tmp_path) == ["out"]
