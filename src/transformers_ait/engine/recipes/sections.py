"""Sections that the recipes of all training scripts share: data, optimiser and its schedule, the run."""

from dataclasses import dataclass, field
from typing import Any, Literal

from huggingface_hub.dataclasses import strict


@strict
@dataclass
class DataRecipe:
    """Which data, and how it is read.

    Args:
        dataset: name for `datasets.load_dataset`; a builder of this package or any other with the column `image` and,
            as the task needs, columns of maps (see `native_map`) or `objects` (see `InstanceRows`).
        options: further arguments of `load_dataset`.
        columns: dense task, or kind of a tokenizer's maps, to its column; others are called like their column.
        train_split: split to train on.
        eval_split: split to evaluate on.
        eval_limit: evaluate on the first so many rows; None is all.
        eval_batch: rows per forward pass and process in evaluation.
        train_columns: first and last column (exclusive) of pixels of training maps and their images; None is all. NYUv2
            has a border outside 41..601.
        train_size: height and width that training images and maps are resized to once, or their shorter edge, as the
            image processor resizes what it is given; None leaves them as they are.
        in_memory: keep decoded rows in memory; they are decoded once.
        num_workers: data-loading processes per training process.
        streaming: read training data in order, without a copy on disk; needs `run.steps` and `eval_limit`.
        shuffle_buffer: rows of a stream that are shuffled together, per reader.
    """

    dataset: str
    options: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    train_split: str = "train"
    eval_split: str = "validation"
    eval_limit: int | None = None
    eval_batch: int = 8
    train_columns: list[int] | None = None
    train_size: list[int] | int | None = None
    in_memory: bool = False
    num_workers: int = 0
    streaming: bool = False
    shuffle_buffer: int = 1000

    def validate_streaming(self) -> None:
        """Streams have no end, so that the rows to evaluate on must be counted."""
        if self.streaming and self.eval_limit is None:
            raise ValueError("streaming needs eval_limit, the number of rows to evaluate on")

    def validate_size(self) -> None:
        """A size is one or two positive numbers of pixels, columns are two in increasing order."""
        if self.train_columns is not None and (
            len(self.train_columns) != 2 or not 0 <= self.train_columns[0] < self.train_columns[1]
        ):
            raise ValueError(f"train_columns must be a first and a last column in pixels, got {self.train_columns}")
        sides = [self.train_size] * 2 if isinstance(self.train_size, int) else self.train_size
        if sides is not None and (len(sides) != 2 or min(sides) < 1):
            raise ValueError(
                f"train_size must be a height and a width, or a shorter edge, in pixels, got {self.train_size}"
            )

    def validate_counts(self) -> None:
        """Batches and limits hold at least one row."""
        for name in ("eval_limit", "eval_batch", "shuffle_buffer"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {self.num_workers}")


@strict
@dataclass
class ScheduleRecipe:
    """How the rate changes; every factor applies to each group's own rate.

    Args:
        name: "constant"; "step" (times `factor` at `milestones`); "linear" or "cosine" (to the share `final`);
            "exponential" (times `factor` every `every` steps).
        warmup_steps: steps over which a further factor grows linearly from `warmup_start` to 1.
        warmup_start: that factor at the first step.
        final: what remains at the end of "linear" and "cosine".
        milestones: steps of "step".
        factor: of "step" and "exponential".
        every: steps between two drops of "exponential".
    """

    name: Literal["constant", "step", "linear", "cosine", "exponential"] = "cosine"
    warmup_steps: int = 0
    warmup_start: float | int = 0.1
    final: float | int = 0.0
    milestones: list[int] = field(default_factory=list)
    factor: float | int = 0.1
    every: int = 500


@strict
@dataclass
class OptimRecipe:
    """AdamW; without weight decay it is Adam.

    Args:
        lr: rate of the last layer.
        weight_decay: decay of what is decayed.
        layer_decay: factor on the rate per backbone layer, towards the input.
        betas: of AdamW.
        clip: largest gradient norm; None does not clip.
        scale_lr: multiply `lr` by `run.batch_size` over `run.published_batch_size` (the linear rule).
        schedule: how the rate changes.
    """

    lr: float | int
    weight_decay: float | int = 0.0
    layer_decay: float | int = 1.0
    betas: list[float | int] = field(default_factory=lambda: [0.9, 0.999])
    clip: float | int | None = None
    scale_lr: bool = False
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)

    def validate_numbers(self) -> None:
        """Rate, decays and moving averages lie in their ranges."""
        if self.lr <= 0 or self.weight_decay < 0 or not 0 < self.layer_decay <= 1:
            raise ValueError(
                "lr must be positive, weight_decay 0 or more, layer_decay in (0, 1], got "
                f"lr={self.lr}, weight_decay={self.weight_decay}, layer_decay={self.layer_decay}"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two values in [0, 1), got {self.betas}")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip must be positive, or null to leave gradients as they are, got {self.clip}")


@strict
@dataclass
class RunRecipe:
    """How long, how large, how often, and where to.

    Args:
        output: folder of the run; must be new or empty, unless resumed.
        steps: optimiser steps. Exactly one of `steps` and `epochs` is given.
        epochs: passes over the training data.
        batch_size: samples per optimiser step, over all processes.
        published_batch_size: the batch that the rate and the steps were chosen for; another `batch_size` is warned of.
        micro_batch: samples per forward pass and process; None is an equal share of `batch_size`. Gradients are
            accumulated over what is left.
        processes: number of processes that the recipe is meant for; on fewer, the share of `batch_size` in a forward
            pass does not grow. None is any number.
        seed: of weights, data order, augmentation and dropout.
        mixed_precision: None is what `accelerate launch` was told.
        activation_checkpointing: keep only the inputs of blocks, and compute them again on the way back; less memory,
            more time.
        compile: pass a task-solver's backbone, encoder and decoder through torch.compile, for GPUs; the first step and
            the first evaluation take minutes.
        log_every: steps between log lines.
        eval_every: steps between evaluations; there is always one at the end.
        checkpoint_every: steps between checkpoints; there is always one at the end.
        keep_checkpoints: how many of the latest checkpoints stay.
        panels: evaluation pictures per evaluation.
        channels_last: keep images and convolutions in channels-last order, which is faster on CPUs and tensor cores.
        ema: decay of an exponential moving average of a task-solver's weights, which is evaluated and saved in place of
            the last weights; None leaves it out.
        save_dtype: precision of the weights in the final `model` folder of a task-solver; half halves the file.
        resume: continue the run in `output` from its latest complete checkpoint.
    """

    output: str
    batch_size: int
    steps: int | None = None
    epochs: int | float | None = None
    published_batch_size: int | None = None
    micro_batch: int | None = None
    processes: int | None = None
    seed: int = 0
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    log_every: int = 50
    eval_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    panels: int = 4
    channels_last: bool = False
    ema: float | None = None
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    resume: bool = False

    def validate_length(self) -> None:
        """A run has one length."""
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"give either steps or epochs, got steps={self.steps} and epochs={self.epochs}")

    def validate_counts(self) -> None:
        """Counts of things that must happen are at least 1."""
        sizes = ("steps", "epochs", "batch_size", "published_batch_size", "micro_batch", "processes")
        for name in (*sizes, "log_every", "eval_every", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.keep_checkpoints < 1:
            raise ValueError(f"keep_checkpoints must be at least 1, got {self.keep_checkpoints}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in 0..4294967295, got {self.seed}")
        if self.panels < 0:
            raise ValueError(f"panels must be 0 or more, got {self.panels}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must lie between 0 and 1, or be null for the last weights, got {self.ema}")
