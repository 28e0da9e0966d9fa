"""transformers' own Trainer drives the task-solver: training, accumulation, evaluation, checkpoints."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from transformers_ait import AiTForDenseAndInstancePrediction


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 32, 32, generator=generator)
    depths = torch.rand(8, 32, 32, generator=generator) * 4 + 0.5
    return [{"pixel_values": image, "depth_labels": depth} for image, depth in zip(images, depths, strict=True)]


def arguments(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "label_names": ["depth_labels"],  # the model also has instance_labels, and Trainer would wait for both
    }
    return TrainingArguments(**{**settings, **changes})


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def run(config, samples, folder, **changes):
    torch.manual_seed(0)
    model = AiTForDenseAndInstancePrediction(config)
    trainer = Trainer(model, arguments(folder, **changes), train_dataset=samples, eval_dataset=samples)
    trainer.train()
    return trainer


def test_train_evaluate_and_save(tiny_config, samples, tmp_path):
    trainer = run(tiny_config(), samples, tmp_path, max_steps=8, save_strategy="steps", save_steps=8)
    assert losses(trainer)[-1] < losses(trainer)[0]
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0
    reloaded = AiTForDenseAndInstancePrediction.from_pretrained(tmp_path / "checkpoint-8")
    trained = trainer.model.state_dict()
    assert all(torch.equal(trained[name], tensor) for name, tensor in reloaded.state_dict().items())


def test_accumulation_does_not_scale_the_loss(tiny_config, samples, tmp_path):
    whole = run(tiny_config(), samples, tmp_path / "a", max_steps=1, per_device_train_batch_size=4)
    changes = {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    halves = run(tiny_config(), samples, tmp_path / "b", **changes)
    # The silog part is a square root of one mean over the batch, so halves agree only about.
    assert losses(halves)[0] == pytest.approx(losses(whole)[0], rel=0.05)
