"""Training of pose lifting by `transformers.Trainer`: its recipe, windows of videos, and whole videos in evaluation."""

import json
import math
import os
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedModel, TrainingArguments
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from ...configuration_hourglass_pose import HourglassPoseConfig, middle_frame
from ...metrics import POSE_METRICS, pose_metrics
from ...modeling_hourglass_pose import HourglassForPoseLifting
from ...processing_hourglass_pose import HourglassPoseProcessor, never_seen
from ...visualization_pose import animate_poses, pose_panel
from ..recipes.reading import RecipeError, build_config
from ..recipes.sections import DataRecipe
from ..run_files import explain_full_disk, replace_folder, replace_text
from .loading import load_rows
from .pose_checkpoints import POSE_KEYS, WholeCheckpointsTrainer, last_checkpoint

logger = logging.get_logger(__name__)

EVAL_BATCH = 32  # windows per forward pass of an evaluation
SHOWN_VIDEOS = 3
LARGE_DECAY_EPOCHS = 5


@strict
@dataclass
class PoseDataRecipe:
    """Which videos, with the columns `keypoints` (T, J, 2) and `joints` (T, J, 3) metres of their data sets.

    Args:
        dataset: name for `datasets.load_dataset`.
        options: further arguments of it.
        train_split: split to train on.
        eval_split: split to evaluate on.
        eval_limit: evaluate on the first so many videos; None is all.
        stride: frames from one training window to the next; None is their length. Models of the middle frame alone were
            published with 1: a window around every frame.
    """

    dataset: str
    options: dict[str, Any] = field(default_factory=dict)
    train_split: str = "train"
    eval_split: str = "validation"
    eval_limit: int | None = None
    stride: int | None = None


@strict
@dataclass
class PoseModelRecipe:
    """What to train.

    Args:
        config: fields of `HourglassPoseConfig`.
        initialize_from: folder of a trained model to start from, whose weights must fit.
    """

    config: dict[str, Any] = field(default_factory=dict)
    initialize_from: str | None = None


@strict
@dataclass
class PoseRecipe:
    """Recipe of `training/run_pose.py`.

    Args:
        data: the videos.
        output: folder of the run.
        model: what to train.
        epoch_decay: factor on the learning rate after every epoch; None leaves it to `training.lr_scheduler_type`.
        large_decay: factor in place of `epoch_decay` after every fifth epoch, as MHFormer was published; None has none.
        amsgrad: let the optimizer, one of the Adam family, divide by the largest second moment so far.
        resume: go on from the run's last checkpoint.
        training: fields of `transformers.TrainingArguments`, but for its `output_dir`.
    """

    data: PoseDataRecipe
    output: str
    model: PoseModelRecipe = field(default_factory=PoseModelRecipe)
    epoch_decay: float | None = None
    large_decay: float | None = None
    amsgrad: bool = False
    resume: bool = False
    training: dict[str, Any] = field(default_factory=dict)

    def validate_decay(self) -> None:
        """The large decay takes the place of the other."""
        if self.large_decay is not None and self.epoch_decay is None:
            raise ValueError(
                f"large_decay {self.large_decay} takes the place of epoch_decay after every {LARGE_DECAY_EPOCHS}th "
                "epoch; give epoch_decay too, 1.0 for none in the epochs between, or leave large_decay out."
            )


class PoseVideos(Dataset):
    """Videos in memory: normalised joints and poses. A video of which a joint is never seen is left out.

    Args:
        rows: with `keypoints`, `joints`, `width` and `height`.
        processor: normalises, and fills gaps.
    """

    def __init__(self, rows: datasets.Dataset, processor: HourglassPoseProcessor):
        self.processor = processor
        self.keypoints: list[Tensor] = []
        self.joints: list[Tensor] = []
        columns = rows.select_columns(["keypoints", "joints", "width", "height"]).with_format("torch")
        for number, row in enumerate(tqdm(columns, desc="Videos", unit="video", delay=2.0, leave=False)):
            if never_seen(row["keypoints"]):
                continue
            try:
                size = int(row["height"]), int(row["width"])
                self.keypoints.append(processor.prepare(row["keypoints"], size))
            except ValueError as error:
                raise RecipeError(f"Video {number} of the data does not fit model.config: {error}") from error
            self.joints.append(row["joints"].float())
        if len(self) < len(rows):
            logger.warning(
                f"{len(rows) - len(self)} of {len(rows)} videos are left out: some joint is in no frame of them."
            )

    def __len__(self) -> int:
        return len(self.keypoints)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Normalised joints (T, J, channels) and poses (T, J, 3) metres."""
        return self.keypoints[index], self.joints[index]


class PoseWindows(Dataset):
    """Training windows of videos, each as it is and mirrored; without chance, so that resumed runs repeat.

    For models of the middle frame alone they lie around frames, as in evaluation, the first and the last repeated past
    the ends; with a stride of 1 around every frame. Those for sequences lie inside their video.

    Args:
        videos: the videos.
        stride: frames from one window to the next.
    """

    def __init__(self, videos: PoseVideos, stride: int):
        self.videos = videos
        self.length = videos.processor.num_frames
        self.stride = stride
        self.places = [
            (video, start) for video, keypoints in enumerate(videos.keypoints) for start in self._starts(len(keypoints))
        ]

    def _starts(self, length: int) -> range:
        """First frames of the windows over a video; they may lie before it."""
        if self.videos.processor.output == "frame":
            before = middle_frame(self.length)
            return range(min(self.stride // 2, (length - 1) // 2) - before, length - before, self.stride)
        return range(0, max(length - self.length, 0) + 1, self.stride)

    def __len__(self) -> int:
        return 2 * len(self.places)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """`keypoints` (F, J, channels) and `labels` (F, J, 3) metres; past the ends of a video its end is repeated."""
        place, is_mirrored = divmod(index, 2)
        video, start = self.places[place]
        keypoints, joints = self.videos[video]
        frames = torch.arange(start, start + self.length).clamp(0, len(keypoints) - 1)
        window = {"keypoints": keypoints[frames], "labels": joints[frames]}
        if is_mirrored:
            window = {name: self.videos.processor.mirror(x) for name, x in window.items()}
        return window


class PoseTrainer(WholeCheckpointsTrainer):
    """`Trainer` whose evaluation lifts whole videos and reports `eval_mpjpe` and the others of `pose_metrics`.

    Args:
        recipe: its `epoch_decay`, `large_decay` and `amsgrad` count here.
        options: of `Trainer`; `eval_dataset` are `PoseVideos`.
    """

    def __init__(self, *, recipe: PoseRecipe, **options: Any):
        super().__init__(**options)
        self.recipe = recipe

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """What the arguments say, and `amsgrad`."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if not self.recipe.amsgrad:
            return optimizer
        for group in optimizer.param_groups:
            if "amsgrad" not in group:
                raise RecipeError(
                    f"amsgrad is an option of Adam and AdamW, but training.optim is "
                    f"{OptimizerNames(self.args.optim).value}; set one to adamw_torch or the other to false."
                )
            group["amsgrad"] = True
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The published decay, or what the arguments say."""
        rate, large = self.recipe.epoch_decay, self.recipe.large_decay
        if rate is None:
            return super().create_scheduler(num_training_steps, optimizer)
        samples: Any = self.train_dataset
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        per_epoch = math.ceil(len(samples) / batch)
        target: Any = optimizer or self.optimizer
        decay = partial(_decay, rate, rate if large is None else large)
        schedule = torch.optim.lr_scheduler.LambdaLR(target, lambda step: decay(step // per_epoch))
        self.lr_scheduler = schedule
        return schedule

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Means over videos, which are logged."""
        figures = {
            f"{metric_key_prefix}_{name}": value
            for name, value in evaluate_poses(self.model, self.eval_dataset).items()
        }
        self.log({**figures})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures


def _decay(rate: float, large: float, epochs: int) -> float:
    """What is left of the learning rate after so many epochs."""
    return rate ** (epochs - epochs // LARGE_DECAY_EPOCHS) * large ** (epochs // LARGE_DECAY_EPOCHS)


@torch.no_grad()
def lift_video(model: PreTrainedModel, processor: HourglassPoseProcessor, keypoints: Tensor) -> Tensor:
    """Poses (T, J, 3) metres, root at 0, of one video's normalised joints (T, J, channels)."""
    windows = processor(keypoints)["keypoints"].to(model.device)
    poses = torch.cat([model(part).poses.float().cpu() for part in windows.split(EVAL_BATCH)])
    return processor.merge(poses, [len(keypoints)])[0]


def evaluate_poses(model: Any, videos: Any) -> dict[str, float]:
    """Mean of `pose_metrics` over videos, millimetres.

    Args:
        model: for pose lifting; its mode is left as it was.
        videos: with their processor.
    """
    was_training = model.training
    model.eval()
    root, found = videos.processor.root_joint, []
    pairs = zip(videos.keypoints, videos.joints, strict=True)
    for keypoints, joints in tqdm(pairs, desc="Evaluation", total=len(videos), unit="video", delay=2.0, leave=False):
        found.append(pose_metrics(lift_video(model, videos.processor, keypoints), joints, root))
    model.train(was_training)
    return {name: math.fsum(figures[name] for figures in found) / len(found) for name in POSE_METRICS}


def make_arguments(recipe: PoseRecipe) -> TrainingArguments:
    """`TrainingArguments` of a recipe.

    Raises:
        RecipeError: they do not take a field, or a value.
    """
    given = {"dataloader_pin_memory": torch.accelerator.is_available(), **recipe.training}
    try:
        return TrainingArguments(output_dir=str(Path(recipe.output) / "checkpoints"), **given)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"training does not fit transformers.TrainingArguments: {error}") from error


def load_videos(recipe: PoseRecipe, processor: HourglassPoseProcessor) -> tuple[PoseVideos, PoseVideos]:
    """Training and evaluation videos."""
    data = recipe.data
    source = DataRecipe(data.dataset, data.options)
    train_rows, eval_rows = (load_rows(source, split) for split in (data.train_split, data.eval_split))
    if data.eval_limit is not None:
        eval_rows = eval_rows.select(range(min(data.eval_limit, len(eval_rows))))
    return PoseVideos(train_rows, processor), PoseVideos(eval_rows, processor)


def train_pose(recipe: PoseRecipe) -> Path:
    """Train pose lifting; returns the folder of the trained model, with processor, figures, picture and animation.

    Raises:
        DiskFullError: the disk fills up.
        FileExistsError: the run's folder is in use, and the recipe does not resume.
        ReadOnlyFolderError: the run's folder may not be written to.
        RecipeError: the recipe does not fit the model or the data.
    """
    config = build_config(HourglassPoseConfig, recipe.model.config, "the recipe")
    output, arguments = Path(recipe.output), make_arguments(recipe)
    if output.exists() and any(output.iterdir()) and not recipe.resume:
        raise FileExistsError(f"output {output} is not empty; add --resume true to go on, or name another folder.")
    processor = HourglassPoseProcessor.for_model(config)
    train_videos, eval_videos = load_videos(recipe, processor)
    windows = PoseWindows(train_videos, recipe.data.stride or config.num_frames)
    if not len(windows) or not len(eval_videos):
        raise RecipeError("The data is empty: it has no video to learn from, or none to evaluate on.")
    torch.manual_seed(arguments.seed)
    if recipe.model.initialize_from is None:
        model = HourglassForPoseLifting(config)
    else:
        model = HourglassForPoseLifting.from_pretrained(recipe.model.initialize_from, config=config)
    with explain_full_disk(output, keys=POSE_KEYS):
        output.mkdir(parents=True, exist_ok=True)
    trainer = PoseTrainer(
        model=model,
        args=arguments,
        train_dataset=windows,
        eval_dataset=eval_videos,
        recipe=recipe,
    )
    checkpoint = last_checkpoint(Path(str(arguments.output_dir))) if recipe.resume else None
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return _finish(trainer, processor, output)


def _finish(trainer: PoseTrainer, processor: HourglassPoseProcessor, output: Path) -> Path:
    """Evaluate and write; everything is complete or absent."""
    figures, folder = trainer.evaluate(), output / "model"
    if trainer.is_world_process_zero():
        temporary = output / ".model.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        with explain_full_disk(output, temporary, keys=POSE_KEYS):
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(temporary)
            processor.save_pretrained(temporary)
        replace_folder(temporary, folder)
        replace_text(output / "metrics.json", json.dumps(figures, indent=2) + "\n")
        pictures = output / ".pictures.tmp"
        with explain_full_disk(output, pictures, keys=POSE_KEYS):
            pictures.mkdir(exist_ok=True)
            write_pictures(trainer.model, trainer.eval_dataset, pictures)
            for path in list(pictures.iterdir()):
                os.replace(path, output / path.name)
            pictures.rmdir()
    return folder


def write_pictures(model: Any, videos: Any, folder: Path) -> None:
    """`poses.png`, moments of some videos, and `poses.gif`, the first of them in motion.

    Args:
        model: in evaluation mode.
        videos: of which the first are shown.
        folder: where to.
    """
    shown = range(min(SHOWN_VIDEOS, len(videos)))
    lifted = [lift_video(model.eval(), videos.processor, videos.keypoints[index]) for index in shown]
    root = videos.processor.root_joint
    truths = [videos.joints[index] - videos.joints[index][:, root : root + 1] for index in shown]
    inputs = [videos.keypoints[index] for index in shown]
    pose_panel(inputs, lifted, truths).save(folder / "poses.png")
    animate_poses(inputs[0], lifted[0], truths[0], folder / "poses.gif")
