"""The training loop on Accelerate, for any task that can make samples, a loss and an evaluation."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.logging import get_logger
from accelerate.utils import GradientAccumulationPlugin, gather_object, send_to_device, set_seed
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm
from transformers import PreTrainedModel

from .. import optimization
from ..distributed_ait import mean_over_processes
from ..modeling_ait import AiTForDenseAndInstancePrediction
from .averaging import make_average, share_buffers
from .checkpoints import (
    check_disk_space,
    checkpoint_size,
    checkpoint_step,
    explain_full_disk,
    latest_checkpoint_for_all,
    load_checkpoint,
    replace_folder,
    replace_text,
    save_checkpoint,
)
from .model_card import run_facts, write_model_card
from .recipe_sections import OptimRecipe, RunRecipe, ScheduleRecipe
from .recipes import RecipeError, build_recipe, recipe_dict
from .reporting import RunLog
from .sampling import MicroBatchSampler, Sample, SampleKey, SeededSamples
from .streaming import RowStream, StreamBatches

logger = get_logger(__name__)

MakeSampler = Callable[[range], Sampler[list[SampleKey]]]
"""Steps to run, counted from 0, to the micro-batches of this process."""
RECIPE_FILE = "recipe.yaml"
# Keys that a resumed run may change, because they do not change what is learned.
_FREE_RUN_KEYS = {
    "output",
    "resume",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "panels",
    "processes",
}
_DATA_SECTIONS = {"data", "instance_data", "depth_data"}
_FREE_DATA_KEYS = {"in_memory", "num_workers"}


class TrainingTask(Protocol):
    """What the loop needs to know of a model and its data."""

    @property
    def model(self) -> PreTrainedModel:
        """The model to train."""
        ...

    @property
    def num_rows(self) -> int:
        """Rows of training data."""
        ...

    @property
    def stream(self) -> RowStream | None:
        """Training data to read in order, None where rows have numbers."""
        ...

    @property
    def eval_counts(self) -> dict[str, int]:
        """Rows of evaluation data by the recipe's section."""
        ...

    def sample(self, index: Any) -> Sample:
        """One augmented training sample, of a row's number or of an encoded row of the stream.

        Randomness comes from torch's default generator.
        """
        ...

    def collate(self, samples: list[Sample]) -> Sample:
        """A batch of samples."""
        ...

    def weight(self, batch: Sample) -> Tensor:
        """What a micro-batch's loss is normalised by, such as its number of valid pixels.

        A scalar, or one value per task where the loss is a sum of several that are normalised each on its own.
        """
        ...

    def loss(self, model: nn.Module, batch: Sample, share: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and named scalars to log.

        The loss is normalised by `weight` averaged over processes, times `share`: the weight of this micro-batch over
        the mean weight of the micro-batches that are accumulated together, task by task.
        """
        ...

    def after_step(self, batches: list[Sample], step: int, steps: int) -> None:
        """Called after optimiser step `step` (counted from 1) of `steps`, with this process's micro-batches."""
        ...

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> tuple[dict[str, float], Image.Image | None]:
        """Metrics on the evaluation data, the same in every process, and a picture in the main process."""
        ...

    def save(self, model: PreTrainedModel, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Write the trained model, and whatever is needed to use it, as `from_pretrained` reads it."""
        ...


class Progress:
    """How far a run is; part of every checkpoint.

    Attributes:
        step: optimiser steps done.
        sums: sums of logged values since the last log line, by name.
        count: updates in `sums`.
        metrics: of the last evaluation.
        batches: micro-batches that each process took from a stream.
        positions: by process and reader, where the stream's readers stand.
    """

    def __init__(self) -> None:
        self.step = 0
        self.batches = 0
        self.positions: list[dict[int, dict[str, int]]] = []
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.metrics: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Count one update."""
        self.step += 1
        self.count += 1
        self.sums = {name: self.sums.get(name, 0) + value.float() for name, value in values.items()}

    def synchronize(self) -> None:
        """Average the sums over processes, so that every process holds what the main process saves."""
        self.sums = {name: mean_over_processes(value) for name, value in self.sums.items()}

    def take_means(self) -> dict[str, float]:
        """Means since the last call."""
        self.synchronize()
        means = {name: (value / self.count).item() for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """For Accelerate's checkpoints."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """For Accelerate's checkpoints."""
        vars(self).update(state)


def count_processes() -> int:
    """Number of processes that were launched together."""
    # Without this, processes that torchrun starts on CPUs do not find each other.
    return PartialState(cpu=not torch.accelerator.is_available()).num_processes


def micro_batch_size(run: RunRecipe, processes: int) -> int:
    """Samples per forward pass: as the recipe says, else an equal share of the batch on as many processes as it names.

    Args:
        run: the recipe.
        processes: number of processes there are.
    """
    return run.micro_batch or max(run.batch_size // max(processes, run.processes or 1), 1)


def accumulation_steps(run: RunRecipe, processes: int) -> int:
    """Forward passes of each process per optimiser step.

    Raises:
        RecipeError: the batch size cannot be shared out equally.
    """
    micro_batch = micro_batch_size(run, processes)
    if run.batch_size % (micro_batch * processes) == 0:
        return run.batch_size // (micro_batch * processes)
    share, rest = divmod(run.batch_size, processes)
    fitting = [size for size in range(1, share + 1) if share % size == 0 and not rest]
    fix = f"set run.micro_batch to one of {fitting}" if fitting else f"start a divisor of {run.batch_size} processes"
    meant = f" (the recipe is meant for {run.processes})" if run.processes else ""
    raise RecipeError(
        f"run.batch_size must be a multiple of run.micro_batch x processes ({micro_batch} x {processes}){meant}, got "
        f"{run.batch_size}; {fix}, or change run.batch_size."
    )


def make_accelerator(run: RunRecipe, accumulation: int | None = None) -> Accelerator:
    """Accelerator that accumulates as many micro-batches as the recipe's batch size asks for.

    Args:
        run: the recipe.
        accumulation: forward passes of each process per optimiser step; None is `accumulation_steps`.

    Raises:
        RecipeError: the batch size cannot be shared out equally.
    """
    processes = count_processes()
    accumulation = accumulation or accumulation_steps(run, processes)
    if run.processes is not None and processes < run.processes:
        logger.warning(
            f"The recipe is meant for {run.processes} processes; on {processes}, each accumulates gradients over "
            f"{accumulation} forward passes per step."
        )
    plugin = GradientAccumulationPlugin(num_steps=accumulation, sync_with_dataloader=False)
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=run.mixed_precision,
        gradient_accumulation_plugin=plugin,
        step_scheduler_with_optimizer=False,
    )


def number_of_steps(run: RunRecipe, num_rows: int) -> int:
    """Optimiser steps of a run, from its steps or epochs.

    Raises:
        RecipeError: epochs of a stream.
    """
    if run.steps is None and num_rows == 0:
        raise RecipeError("run.epochs needs training data of known length, which streams have not; give run.steps.")
    return run.steps if run.steps is not None else math.ceil((run.epochs or 0) * num_rows / run.batch_size)


def learning_rate(optim: OptimRecipe, run: RunRecipe) -> float:
    """Rate of the last layer, scaled to the batch where the recipe says so; batches other than published are warned of.

    Raises:
        RecipeError: the rate is to be scaled, but there is no published batch.
    """
    if run.published_batch_size is None:
        if optim.scale_lr:
            raise RecipeError("optim.scale_lr needs run.published_batch_size, the batch that optim.lr is meant for.")
        return optim.lr
    ratio = run.batch_size / run.published_batch_size
    if ratio == 1:
        return optim.lr
    what = f"run.batch_size is {run.batch_size}, published is {run.published_batch_size}"
    if not optim.scale_lr:
        logger.warning(f"{what}: results will differ. --optim.scale_lr true would multiply the rate by {ratio:.4g}.")
        return optim.lr
    logger.warning(f"{what}: the rate is {optim.lr * ratio:.4g} in place of {optim.lr:.4g}; steps stay as they are.")
    return optim.lr * ratio


def make_schedule(recipe: ScheduleRecipe, steps: int) -> optimization.Schedule:
    """Schedule of a recipe for a run of `steps`."""
    schedule = {
        "constant": optimization.constant,
        "step": lambda: optimization.step_decay(recipe.milestones, recipe.factor),
        "linear": lambda: optimization.linear_decay(steps, recipe.final),
        "cosine": lambda: optimization.cosine_decay(steps, recipe.final),
        "exponential": lambda: optimization.exponential_decay(recipe.every, recipe.factor),
    }[recipe.name]()
    return optimization.with_warmup(schedule, recipe.warmup_steps, recipe.warmup_start)


def check_run_folder(recipe: Any, accelerator: Accelerator) -> Path | None:
    """Checkpoint to go on from, None to start; nothing is written.

    Raises:
        FileExistsError: the folder is in use, and the recipe does not resume.
        RecipeError: the recipe resumes a run of another recipe.
    """
    folder = Path(recipe.run.output)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"run.output {folder} is a file; name a folder.")
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if not recipe.run.resume:
        raise FileExistsError(
            f"run.output {folder} is not empty; add --run.resume true to go on with that run, or name another folder."
        )
    stored = folder / RECIPE_FILE
    if not stored.exists():
        raise FileExistsError(
            f"run.output {folder} is not empty and holds no run ({RECIPE_FILE}); name another folder."
        )
    # Built anew, so that keys which are younger than the run have their defaults.
    earlier = build_recipe(type(recipe), yaml.safe_load(stored.read_text()), str(stored))
    before, now = (_flatten(recipe_dict(x)) for x in (earlier, recipe))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key) and not _is_free(key))
    if changed:
        raise RecipeError(
            f"{stored} was started with other values of {', '.join(changed)}; give the same, or start another run."
        )
    return latest_checkpoint_for_all(folder / "checkpoints", accelerator)


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
            load_checkpoint(self.accelerator, checkpoint)
        if self.accelerator.is_main_process:
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


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested dictionaries."""
    if not isinstance(values, Mapping) or not values:
        return {prefix: values}
    parts = (_flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in values.items())
    return {key: value for part in parts for key, value in part.items()}


def _is_free(key: str) -> bool:
    section, _, name = key.partition(".")
    return (section == "run" and name in _FREE_RUN_KEYS) or (section in _DATA_SECTIONS and name in _FREE_DATA_KEYS)
