"""Checkpoints of poses, which `transformers.Trainer` writes: complete or absent, and a resumed run logs the same."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments

from transformers_ait.engine.loop.checkpoints import MANIFEST
from transformers_ait.engine.tasks.pose_checkpoints import WholeCheckpointsTrainer, last_checkpoint


class Numbers(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        return {"x": torch.tensor([float(index % 5)])}


class Line(PreTrainedModel):
    config_class = PreTrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.post_init()

    def forward(self, x):
        return {"loss": ((self.weight * x - 2 * x + torch.rand(())) ** 2).mean()}


def trainer(folder, **options):
    settings = {"max_steps": 6, "save_steps": 2, "logging_steps": 3, "save_total_limit": 2, **options}
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        learning_rate=0.1,
        **settings,
    )
    torch.manual_seed(0)
    return WholeCheckpointsTrainer(model=Line(PreTrainedConfig()), args=arguments, train_dataset=Numbers())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of an unbroken run."""
    folder = tmp_path_factory.mktemp("trained") / "whole"
    trainer(folder).train()
    return folder


@pytest.fixture
def whole(trained, tmp_path):
    """A copy of it, which a test may change."""
    return shutil.copytree(trained, tmp_path / "whole")


def test_a_run_keeps_the_latest_and_each_says_what_it_holds(whole):
    assert names(whole) == ["checkpoint-4", "checkpoint-6"]
    files = json.loads((whole / "checkpoint-6" / MANIFEST).read_text())["files"]
    assert {*files, MANIFEST} == {path.name for path in (whole / "checkpoint-6").iterdir()}
    assert {"model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", "losses_0.json"} <= set(files)


def test_a_resumed_run_logs_what_the_unbroken_one_did(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "checkpoint-6")
    (tmp_path / "broken" / ".partial").mkdir()
    (tmp_path / "broken" / ".checkpoint-2.old").mkdir()
    checkpoint = last_checkpoint(tmp_path / "broken")
    # At step 4 one of three losses is there: without it the line of step 6 would be another.
    trainer(tmp_path / "broken").train(str(checkpoint))
    assert names(tmp_path / "broken") == names(whole)
    first, second = ((folder / "checkpoint-6") for folder in (whole, tmp_path / "broken"))
    for name in ("trainer_state.json", "losses_0.json"):
        assert (first / name).read_text() == (second / name).read_text()
    weights = [load_file(folder / "model.safetensors")["weight"] for folder in (first, second)]
    assert torch.equal(*weights)


def test_a_kill_while_it_writes_leaves_the_checkpoints_before_it(whole, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    monkeypatch.setattr(WholeCheckpointsTrainer, "_save_rng_state", kill)
    with pytest.raises(Killed):
        trainer(whole, max_steps=8).train(str(whole / "checkpoint-6"))
    assert last_checkpoint(whole) == whole / "checkpoint-6" and not (whole / "checkpoint-8").exists()
    assert all(path.read_bytes() == content for path, content in before.items())


def test_damaged_checkpoints_are_passed_over(whole):
    (whole / "checkpoint-6" / "optimizer.pt").write_bytes(b"half")
    with pytest.warns(UserWarning, match=r"checkpoint-6 is damaged \(optimizer.pt"):
        assert last_checkpoint(whole) == whole / "checkpoint-4"


def test_those_of_earlier_versions_count_where_trainer_finished_them(whole, tmp_path):
    for step in (4, 6):
        (whole / f"checkpoint-{step}" / MANIFEST).unlink()
    assert last_checkpoint(whole) == whole / "checkpoint-6"
    (whole / "checkpoint-6" / "trainer_state.json").unlink()
    assert last_checkpoint(whole) == whole / "checkpoint-4"
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_the_best_checkpoint_stays(whole, tmp_path):
    whole.rename(tmp_path / "run")
    run = trainer(tmp_path / "run", save_total_limit=2)
    run.state.best_model_checkpoint = str(tmp_path / "run" / "checkpoint-4")
    (tmp_path / "run" / "checkpoint-6").rename(tmp_path / "run" / "checkpoint-7")
    shutil.copytree(tmp_path / "run" / "checkpoint-7", tmp_path / "run" / "checkpoint-9")
    run._drop_old(tmp_path / "run" / "checkpoint-9")
    assert names(tmp_path / "run") == ["checkpoint-4", "checkpoint-9"]
