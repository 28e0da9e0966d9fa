"""transformers' own Trainer drives the task-solver: training, accumulation, evaluation, checkpoints."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from transformers_ait import AiTForDenseAndInstancePrediction
from transformers_ait.prediction_ait import detokenize


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


@pytest.mark.slow
def test_accumulation_does_not_scale_the_loss(tiny_config, samples, tmp_path):
    whole = run(tiny_config(), samples, tmp_path / "a", max_steps=1, per_device_train_batch_size=4)
    changes = {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    halves = run(tiny_config(), samples, tmp_path / "b", **changes)
    # The silog part is a square root of one mean over the batch, so halves agree only about.
    assert losses(halves)[0] == pytest.approx(losses(whole)[0], rel=0.05)


@pytest.mark.slow
def test_metrics_choose_the_best_checkpoint(tiny_config, samples, tmp_path):
    """`compute_metrics` sees depth that the logits were decoded to, and the best model is the one that is left."""
    torch.manual_seed(0)
    model = AiTForDenseAndInstancePrediction(tiny_config(parallel=True))
    truth = torch.stack([sample["depth_labels"] for sample in samples])
    errors = []

    def decode(logits, labels):
        logits = logits[-1]  # after the loss's parts
        rows = model.config.vocabulary.codes("depth").rows
        return detokenize(model.tokenizer("depth"), logits[..., rows], soft=True)[:, 0]

    def measure(prediction):
        assert prediction.label_ids.shape == (8, 32, 32) and (prediction.label_ids == truth.numpy()).all()
        errors.append(float(abs(prediction.predictions - prediction.label_ids).mean()))
        return {"error": errors[-1]}

    changes = {
        "max_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "error",
        "greater_is_better": False,
    }
    trainer = Trainer(
        model,
        arguments(tmp_path, **changes),
        train_dataset=samples,
        eval_dataset=samples,
        compute_metrics=measure,
        preprocess_logits_for_metrics=decode,
    )
    trainer.train()
    assert len(errors) == 2 and trainer.state.best_metric == min(errors)
    best = tmp_path / f"checkpoint-{2 * (errors.index(min(errors)) + 1)}"
    assert trainer.state.best_model_checkpoint == str(best)
    stored = AiTForDenseAndInstancePrediction.from_pretrained(best).state_dict()
    assert all(torch.equal(x, stored[name]) for name, x in trainer.model.state_dict().items())
    assert trainer.evaluate()["eval_error"] == pytest.approx(min(errors), rel=1e-5)


def test_states_do_not_disturb_an_evaluation(tiny_config, samples, tmp_path):
    model = AiTForDenseAndInstancePrediction(tiny_config())
    model.config.output_hidden_states = True
    trainer = Trainer(model, arguments(tmp_path), eval_dataset=samples)
    output = trainer.predict(samples, ignore_keys=["loss_dict", "task_losses"])
    assert output.metrics["test_loss"] > 0 and output.label_ids.shape == (8, 32, 32)


@pytest.mark.slow
def test_trainer_takes_the_counted_operations(tiny_config, samples, tmp_path):
    """As docs/own-trainer.md says; Trainer's own figure takes every pixel for a token."""

    class CountingTrainer(Trainer):
        def floating_point_ops(self, inputs):
            return self.model.floating_point_ops(inputs)

    model = AiTForDenseAndInstancePrediction(tiny_config())
    trainer = CountingTrainer(model, arguments(tmp_path), train_dataset=samples)
    trainer.train()
    batch = {"pixel_values": torch.zeros(4, 3, 32, 32), "depth_labels": torch.zeros(4, 32, 32)}
    assert trainer.state.total_flos == 2 * model.floating_point_ops(batch) > 0
