"""A disk that fills up: found before training where it can be, and otherwise harmless to what was written before."""

import errno
import shutil
import warnings
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from transformers_ait.engine.loop.checkpoints import (
    check_disk_space,
    checkpoint_size,
    latest_checkpoint,
    save_checkpoint,
)
from transformers_ait.engine.reporting.log import LOG_FILE, RunLog, read_log
from transformers_ait.engine.run_files import DiskFullError, explain_full_disk, replace_text

MIB = 1 << 20
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch):
    """Function that makes every disk have so many bytes left."""
    return lambda count: monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 50, 0, count))


@pytest.fixture
def prepared():
    """An accelerator with a model of 1 MiB that has taken a step, and the model."""
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(512, 512)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.backward(model(torch.ones(1, 512)).sum())
    optimizer.step()
    return accelerator, model


@pytest.fixture
def saved(prepared, tmp_path):
    """Folder of two checkpoints, and their accelerator."""
    for step in (1, 2):
        save_checkpoint(prepared[0], tmp_path, step, keep=2)
    return tmp_path, prepared[0]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_estimate_is_what_a_checkpoint_takes(prepared, tmp_path):
    folder = save_checkpoint(prepared[0], tmp_path, 1, keep=1)
    taken = sum(path.stat().st_size for path in folder.iterdir())
    assert checkpoint_size(prepared[1]) == pytest.approx(taken, rel=0.03)
    # Frozen weights have no moving averages.
    frozen = torch.nn.Linear(512, 512).requires_grad_(False)
    assert checkpoint_size(prepared[1]) - checkpoint_size(frozen) == 2 * 4 * (512 * 512 + 512)


def save_with(monkeypatch, saved, error, half=b"x" * MIB):
    """Save a third checkpoint with a writer that leaves half a file and raises."""

    def writer(self, folder, *arguments, **keywords):
        (Path(folder) / "model.safetensors").write_bytes(half)
        raise error

    monkeypatch.setattr(Accelerator, "save_state", writer)
    save_checkpoint(saved[1], saved[0], 3, keep=2, needed=3 * MIB)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["space", "quota", "serializer"],
)
def test_a_full_disk_leaves_the_checkpoints_before_it(saved, monkeypatch, error):
    before = {path: path.read_bytes() for path in saved[0].rglob("*") if path.is_file()}
    with pytest.raises(DiskFullError) as caught:
        save_with(monkeypatch, saved, error)
    assert caught.value.errno == errno.ENOSPC and caught.value.__cause__ is error
    words = [str(saved[0]), "3.0 MiB", "up to step-00000002 are whole", "run.keep_checkpoints", "run.output", "resume"]
    assert [word for word in words if word not in str(caught.value)] == []
    assert before == {path: path.read_bytes() for path in saved[0].rglob("*") if path.is_file()}
    assert names(saved[0]) == ["step-00000001", "step-00000002"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert latest_checkpoint(saved[0]).name == "step-00000002"
    monkeypatch.undo()
    save_checkpoint(saved[1], saved[0], 3, keep=2)
    assert names(saved[0]) == ["step-00000002", "step-00000003"]


def test_an_error_that_does_not_tell_is_judged_by_the_space_that_is_left(saved, monkeypatch, free):
    # What torch says when its writer comes to the end of the disk.
    error = RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534")
    free(2 * MIB - 1)  # 1 MiB of 3 was written
    with pytest.raises(DiskFullError, match=r"needs about 3\.0 MiB, 3\.0 MiB are free"):
        save_with(monkeypatch, saved, error)
    assert names(saved[0]) == ["step-00000001", "step-00000002"]
    free(2 * MIB)
    with pytest.raises(RuntimeError, match="unexpected pos"):
        save_with(monkeypatch, saved, error)
    assert names(saved[0]) == ["step-00000001", "step-00000002"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, a device that is always full")
def test_a_writer_that_meets_the_end_of_a_disk(saved, monkeypatch, free):
    original = Accelerator.save_state

    def onto_a_full_device(self, folder, *arguments, **keywords):
        (Path(folder) / "optimizer.bin").symlink_to("/dev/full")
        return original(self, folder, *arguments, **keywords)

    monkeypatch.setattr(Accelerator, "save_state", onto_a_full_device)
    free(0)
    with pytest.raises(DiskFullError):
        save_checkpoint(saved[1], saved[0], 3, keep=2, needed=3 * MIB)
    assert names(saved[0]) == ["step-00000001", "step-00000002"]


def test_other_errors_pass_through_and_leave_nothing_partial(saved, monkeypatch):
    with pytest.raises(ValueError, match="something else"):
        save_with(monkeypatch, saved, ValueError("something else"))
    assert names(saved[0]) == ["step-00000001", "step-00000002"]


def test_a_partial_checkpoint_of_a_killed_run_goes_with_the_next(saved):
    (saved[0] / ".step-00000007.tmp").mkdir()
    (saved[0] / ".step-00000007.tmp" / "model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(saved[0]).name == "step-00000002"
    save_checkpoint(saved[1], saved[0], 3, keep=2)
    assert names(saved[0]) == ["step-00000002", "step-00000003"]


def test_files_in_folders_of_a_checkpoint_are_checked_too(saved, monkeypatch):
    original = Accelerator.save_state

    def sharded(self, folder, *arguments, **keywords):
        (Path(folder) / "optimizer_0").mkdir()
        (Path(folder) / "optimizer_0" / "shard").write_bytes(b"whole")
        return original(self, folder, *arguments, **keywords)

    monkeypatch.setattr(Accelerator, "save_state", sharded)
    folder = save_checkpoint(saved[1], saved[0], 3, keep=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert latest_checkpoint(saved[0]) == folder
    (folder / "optimizer_0" / "shard").write_bytes(b"cut")
    with pytest.warns(UserWarning, match="optimizer_0/shard has changed"):
        assert latest_checkpoint(saved[0]).name == "step-00000002"


# --- before training ------------------------------------------------------------------------------------------------


def test_a_disk_without_room_for_one_checkpoint_is_refused_before_training(tmp_path, free):
    folder = tmp_path / "run" / "checkpoints"
    free(3 * MIB - 1)
    with pytest.raises(DiskFullError, match=r"a checkpoint needs about 3\.0 MiB, 3\.0 MiB are free.*run\.output"):
        check_disk_space(folder, 3 * MIB, 2, Accelerator(cpu=True))
    assert not folder.parent.exists()


def test_room_for_some_checkpoints_is_warned_of_and_for_all_is_not(tmp_path, free):
    accelerator = Accelerator(cpu=True)
    free(9 * MIB - 1)
    with pytest.warns(UserWarning, match=r"3 more checkpoints of about 3\.0 MiB.*run\.keep_checkpoints \(2\)"):
        check_disk_space(tmp_path / "checkpoints", 3 * MIB, 2, accelerator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        free(9 * MIB)
        check_disk_space(tmp_path / "checkpoints", 3 * MIB, 2, accelerator)
        # A run that goes on has written its part already.
        for step in (1, 2):
            (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        free(3 * MIB)
        check_disk_space(tmp_path / "checkpoints", 3 * MIB, 2, accelerator)


# --- other files ----------------------------------------------------------------------------------------------------


def test_logs_and_pictures_say_what_is_full(tmp_path, monkeypatch):
    log = RunLog(tmp_path, 0)
    log.write(1, "train", {"loss": 0.5})

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DiskFullError, match="run.output"):
        log.write(2, "train", {"loss": 0.5})
    monkeypatch.undo()
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DiskFullError, match="run.output"):
        log.picture(2, Image.new("RGB", (4, 4)))
    assert list((tmp_path / "panels").iterdir()) == []
    assert [line["step"] for line in read_log(tmp_path / LOG_FILE)] == [1]


def test_a_text_that_does_not_fit_leaves_the_one_before_it(tmp_path, monkeypatch):
    replace_text(tmp_path / "recipe.yaml", "before")

    def half(self, text):
        self.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(DiskFullError):
        replace_text(tmp_path / "recipe.yaml", "after")
    assert names(tmp_path) == ["recipe.yaml"] and (tmp_path / "recipe.yaml").read_text() == "before"


def test_nothing_happens_when_all_goes_well(tmp_path):
    (tmp_path / "kept").touch()
    with explain_full_disk(tmp_path, tmp_path / "kept", 10**18):
        pass
    assert names(tmp_path) == ["kept"]
