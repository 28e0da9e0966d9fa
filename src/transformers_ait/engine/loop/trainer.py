"""The training loop on Accelerate, for any task that can make samples, a loss and an evaluation."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device, set_seed
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm
from transformers import PreTrainedModel

from ... import optimization
from ...distributed_ait import mean_over_processes
from ...modeling_ait import AiTForDenseAndInstancePrediction
from ..recipes.reading import RecipeError, recipe_dict
from ..reporting.log import RunLog
from ..reporting.model_card import run_facts, write_model_card
from ..run_files import explain_full_disk, replace_folder, replace_text
from .averaging import make_average, share_buffers
from .checkpoints import (
    check_disk_space,
    checkpoint_size,
    checkpoint_step,
    load_checkpoint,
    save_checkpoint,
)
from .processes import number_of_steps
from .progress import Progress
from .run_folder import RECIPE_FILE, check_run_folder
from .sampling import MicroBatchSampler, Sample, SampleKey, SeededSamples
from .schedules import learning_rate, make_schedule
from .streaming import RowStream, StreamBatches
from .task import TrainingTask

MakeSampler = Callable[[range], Sampler[list[SampleKey]]]
"""Steps to run, counted from 0, to the micro-batches of this process."""


def train(task: TrainingTask, recipe: Any, accelerator: Accelerator, make_sampler: MakeSampler | None = None) -> Path:
    """Train, evaluate and save, from the start or from the latest checkpoint.

    The run's folder gets `recipe.yaml`, `log.jsonl`, `tensorboard/`, `checkpoints/`, `panels/`, and at the end `model/`
    and `metrics.json`.

    Args:
        task: model and data.
        recipe: a recipe with the sections `data`, `optim` and `run`.
        accelerator: from `make_accelerator`.
        make_sampler: what makes up the micro-batches; None is `MicroBatchSampler` over all rows.

    Returns:
        The folder of the trained model.

    Raises:
        DiskFullError: not even one checkpoint fits on the disk, or it fills up.
        ReadOnlyFolderError: the run's folder may not be written to.
        FileExistsError: as `check_run_folder`.
        RecipeError: as `check_run_folder`; the training data is empty.
        FloatingPointError: the loss is not finite.
    """
    if task.stream is None and task.num_rows == 0:
        raise RecipeError("The training data is empty: it has no row, or for masks no object, to learn from.")
    checkpoint = check_run_folder(recipe, accelerator)
    size = checkpoint_size(task.model, recipe.run.ema is not None)
    check_disk_space(Path(recipe.run.output) / "checkpoints", size, recipe.run.keep_checkpoints, accelerator)
    trainer = _Trainer(task, recipe, accelerator, make_sampler)
    accelerator.wait_for_everyone()
    trainer.start(checkpoint)
    trainer.run()
    return trainer.finish()


class _Trainer:
    """State of one run."""

    def __init__(
        self, task: TrainingTask, recipe: Any, accelerator: Accelerator, make_sampler: MakeSampler | None
    ) -> None:
        self.task = task
        self.recipe = recipe
        self.accelerator = accelerator
        self.make_sampler = make_sampler or self._sampler
        self.folder = Path(recipe.run.output)
        self.steps = number_of_steps(recipe.run, task.num_rows)
        self.progress = Progress()
        self.positions: dict[int, dict[str, int]] = {}
        self.log: RunLog | None = None
        if recipe.run.channels_last:
            # transformers decorates `to` in a way that type checkers do not see through.
            task.model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
        self.average = make_average(task.model, recipe.run.ema, accelerator)
        if recipe.run.activation_checkpointing:
            _checkpoint_activations(task.model)
        if recipe.run.compile:
            _compile(task.model)
        self.checkpoint_size = checkpoint_size(task.model, self.average is not None)
        optim = recipe.optim
        lr = learning_rate(optim, recipe.run)
        groups = optimization.parameter_groups(task.model, lr, optim.weight_decay, optim.layer_decay)
        optimizer = torch.optim.AdamW(groups, betas=tuple(optim.betas), fused=True)
        scheduler = optimization.make_scheduler(optimizer, make_schedule(optim.schedule, self.steps))
        self.model, self.optimizer, self.scheduler = accelerator.prepare(task.model, optimizer, scheduler)
        accelerator.register_for_checkpointing(self.progress)

    def start(self, checkpoint: Path | None) -> None:
        """Load the checkpoint or begin, and set up the folder."""
        if checkpoint is None:
            set_seed(self.recipe.run.seed, device_specific=True)
        else:
            load_checkpoint(self.accelerator, checkpoint, self.recipe.run.keep_checkpoints)
        if self.accelerator.is_main_process:
            with explain_full_disk(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            replace_text(self.folder / RECIPE_FILE, yaml.safe_dump(recipe_dict(self.recipe), sort_keys=False))
            self.log = RunLog(self.folder, checkpoint_step(checkpoint) if checkpoint else 0)

    def run(self) -> None:
        """All steps that are left."""
        run = self.recipe.run
        batches = self._batches()
        self.model.train()
        bar = tqdm(total=self.steps, initial=self.progress.step, disable=self.log is None, unit="step", smoothing=0.05)
        for step in range(self.progress.step + 1, self.steps + 1):
            group = [next(batches) for _ in range(self.accelerator.gradient_accumulation_steps)]
            self.progress.add(self._update(group))
            self.task.after_step(group, step, self.steps)
            if self.average is not None:
                self.average.update_parameters(self.accelerator.unwrap_model(self.model))
            bar.update()
            if step % run.log_every == 0 or step == self.steps:
                bar.set_postfix(self._log_training())
            if step % run.eval_every == 0 or step == self.steps:
                self._evaluate()
            if step % run.checkpoint_every == 0 or step == self.steps:
                self.progress.synchronize()
                self.progress.positions = gather_object([self.positions])
                save_checkpoint(
                    self.accelerator, self.folder / "checkpoints", step, run.keep_checkpoints, self.checkpoint_size
                )
        bar.close()

    def finish(self) -> Path:
        """Write the trained model and its metrics."""
        final = self.folder / "model"
        temporary = self.folder / ".model.tmp"
        state_dict = self.accelerator.get_state_dict(self.model if self.average is None else self.average.module)
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            model = self.accelerator.unwrap_model(self.model)
            with explain_full_disk(self.folder, temporary, self.checkpoint_size):
                self.task.save(model, state_dict, temporary)
                facts = run_facts(self.accelerator, self.progress.step, self.progress.metrics, self.task.eval_counts)
                write_model_card(temporary, model, self.recipe, facts)
            replace_folder(temporary, final)
            metrics = {"step": self.progress.step, **self.progress.metrics}
            replace_text(self.folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        if self.log is not None:
            self.log.close()
        self.accelerator.wait_for_everyone()
        return final

    def _sampler(self, steps: range) -> MicroBatchSampler:
        run, accelerator = self.recipe.run, self.accelerator
        micro_batch = run.batch_size // (accelerator.num_processes * accelerator.gradient_accumulation_steps)
        return MicroBatchSampler(
            self.task.num_rows,
            run.seed,
            steps,
            run.batch_size,
            micro_batch,
            accelerator.process_index,
            accelerator.num_processes,
        )

    def _batches(self) -> Iterator[Sample]:
        if self.task.stream is not None:
            return self._streamed(self.task.stream)
        return iter(
            DataLoader(
                SeededSamples(self.task.sample, self.recipe.run.seed),
                batch_sampler=self.make_sampler(range(self.progress.step, self.steps)),
                collate_fn=self.task.collate,
                num_workers=self.recipe.data.num_workers,
                pin_memory=self.accelerator.device.type == "cuda",
                # Otherwise the loader draws its base seed from the generator that dropout uses.
                generator=torch.Generator(),
            )
        )

    def _streamed(self, stream: RowStream) -> Iterator[Sample]:
        """Micro-batches of a stream, which count as read when they are taken, not when a worker prepares them."""
        run, data, accelerator = self.recipe.run, self.recipe.data, self.accelerator
        self.positions = self._stored_positions(max(data.num_workers, 1))
        batches = StreamBatches(
            stream,
            self.task.sample,
            self.task.collate,
            run.batch_size // (accelerator.num_processes * accelerator.gradient_accumulation_steps),
            run.seed,
            data.shuffle_buffer,
            accelerator.process_index,
            accelerator.num_processes,
            dict(self.positions),
            self.progress.batches,
        )
        loader = DataLoader(
            batches,
            batch_size=None,
            num_workers=data.num_workers,
            pin_memory=accelerator.device.type == "cuda",
            generator=torch.Generator(),
        )
        for worker, position, batch in loader:
            self.positions[worker] = position
            self.progress.batches += 1
            yield batch

    def _stored_positions(self, workers: int) -> dict[int, dict[str, int]]:
        """Where this process's readers stand according to the checkpoint."""
        if not self.progress.positions:
            return {}
        before = (len(self.progress.positions), len(self.progress.positions[0]))
        now = (self.accelerator.num_processes, workers)
        if before != now and self.progress.batches >= workers:
            raise RecipeError(
                f"The run was streamed by {before[0]} processes with {before[1]} readers each, now there are {now[0]} "
                f"with {now[1]}; resume with as many processes and data.num_workers."
            )
        return dict(self.progress.positions[self.accelerator.process_index])

    def _update(self, batches: list[Sample]) -> dict[str, Tensor]:
        """One optimiser step over micro-batches; means over them to log."""
        accelerator, clip = self.accelerator, self.recipe.optim.clip
        batches = [send_to_device(batch, accelerator.device, non_blocking=True) for batch in batches]
        logged: dict[str, Tensor] = {}
        for batch, share in zip(batches, self._shares(batches), strict=True):
            with accelerator.accumulate(self.model):
                loss, parts = self.task.loss(self.model, batch, share)
                accelerator.backward(loss)
                for name, value in {"loss": loss.detach(), **parts}.items():
                    logged[name] = logged.get(name, 0) + value / len(batches)
                if accelerator.sync_gradients and clip is not None:
                    logged["grad_norm"] = accelerator.clip_grad_norm_(self.model.parameters(), clip)
                self.optimizer.step()
                if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
                    self.scheduler.step()
                self.optimizer.zero_grad()
        return logged

    def _shares(self, batches: list[Sample]) -> Tensor:
        """Weight of each micro-batch over the mean of those accumulated together, (N,) or (N, tasks)."""
        device = self.accelerator.device
        weights = torch.stack([self.task.weight(batch).to(device, torch.float32) for batch in batches])
        if len(weights) == 1:
            return torch.ones_like(weights)
        weights = mean_over_processes(weights)
        return weights / weights.mean(dim=0).clamp(min=1e-12)

    def _log_training(self) -> dict[str, str]:
        """Write the means since the last line; what to show in the progress bar."""
        means = self.progress.take_means()
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(
                f"The loss is {means['loss']} at step {self.progress.step}. Lower optim.lr, set optim.clip, or use "
                "bf16 instead of fp16; then resume from the latest checkpoint."
            )
        means["lr"] = max(self.scheduler.get_last_lr())
        if self.log is not None:
            self.log.write(self.progress.step, "train", means)
        return {name: f"{means[name]:.4g}" for name in ("loss", "lr")}

    def _evaluate(self) -> None:
        self.model.eval()
        with torch.no_grad():
            if self.average is not None:
                share_buffers(self.average)
            evaluated = self.model if self.average is None else self.average.module
            metrics, picture = self.task.evaluate(evaluated, self.accelerator)
        self.model.train()
        self.progress.metrics = metrics
        if self.log is not None:
            self.log.write(self.progress.step, "eval", metrics)
            if picture is not None:
                self.log.picture(self.progress.step, picture)


def _checkpoint_activations(model: PreTrainedModel) -> None:
    if not model.supports_gradient_checkpointing:
        raise RecipeError("run.activation_checkpointing is for task-solvers, which have blocks; leave it out.")
    model.activation_checkpointing_enable()


def _compile(model: PreTrainedModel) -> None:
    if not isinstance(model, AiTForDenseAndInstancePrediction):
        raise RecipeError("run.compile is for task-solvers; other models are small, leave it out.")
    for part in (model.model.backbone, model.model.encoder, model.model.decoder):
        part.compile()  # in place: names of weights stay
