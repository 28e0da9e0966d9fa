"""Joint training of one task-solver for instances and depth."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel

from ..distributed_ait import mean_over_processes
from ..modeling_ait import AiTForDenseAndInstancePrediction
from .depth_data import load_depth_pairs
from .depth_training import DepthTask
from .instance_data import load_instance_rows
from .instance_training import InstanceTask, build_object_model
from .joint_recipe import JointModelRecipe, JointRecipe, check_joint_tasks, depth_part, instance_part
from .joint_sampling import JointSampler, Mix, plan_mix
from .loop import count_processes, make_accelerator, micro_batch_size, train
from .recipes import RecipeError
from .sampling import Sample, SampleKey
from .tokenizers import TokenizerKind, load_tokenizer

# Places of the tasks in weights, and in `JointTask.tasks`.
INSTANCE, DEPTH = 0, 1
LOGGED = (
    ("instance_box_ce", "instance_class_ce", "instance_mask_ce", "instance_aux"),
    ("depth_ce", "depth_aux"),
)


class JointTask:
    """Predict objects and depth; a micro-batch holds images of one task.

    Each task's loss is normalised by its own supervised tokens, of all micro-batches and processes of a step.

    Args:
        instance: the task of instances.
        depth: the task of depth, with the same model.
        mix: what a step holds.
    """

    def __init__(self, instance: InstanceTask, depth: DepthTask, mix: Mix) -> None:
        self.instance = instance
        self.depth = depth
        self.model = instance.model
        self.stream = None  # a step's rows are chosen by number
        self.tasks: dict[str, InstanceTask | DepthTask] = {"instance": instance, "depth": depth}
        other = "depth" if self.model.config.default_task == "instance" else "instance"
        self.tasks[other].processor.task = other  # type: ignore[assignment]
        instances = mix.instance_pass * mix.instance_passes
        images = instances + mix.depth_pass * mix.depth_passes
        # An epoch is a pass over the images with objects, the depth images of its steps included.
        self.num_rows = -(-instance.num_rows * images // instances)

    @property
    def eval_counts(self) -> dict[str, int]:
        """Rows of evaluation data by the recipe's section."""
        return {"instance_data": self.instance.num_eval, "depth_data": self.depth.num_eval}

    def sample(self, index: int) -> Sample:
        """A sample of instances, or of depth for indices that follow the last row of instances."""
        rows = self.instance.num_rows
        return self.instance.sample(index) if index < rows else self.depth.sample(index - rows)

    def collate(self, samples: list[Sample]) -> Sample:
        """A batch of one task's samples."""
        return self._task(samples[0]).collate(samples)

    def weight(self, batch: Sample) -> Tensor:
        """Supervised tokens of instances and of depth, (2,), one of which is 0."""
        tokens = self._task(batch).weight(batch)
        if self._place(batch) == DEPTH:
            tokens = tokens * self.model.config.sequence_length("depth")
        weights = torch.zeros(2, device=batch["pixel_values"].device)
        weights[self._place(batch)] = tokens
        return weights

    def loss(self, model: nn.Module, batch: Sample, share: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's own loss of the batch's task, normalised by that task's tokens in the whole step.

        Values to log are there for both tasks, so that means over batches are means over each task's tokens.
        """
        place = self._place(batch)
        share = share[place]
        # The model divides cross-entropies by the mean of what all processes run now, whichever task that is.
        tokens = self.weight(batch).sum()
        own_share = share * tokens / mean_over_processes(tokens).clamp(min=1)
        output = model(task=tuple(self.tasks)[place], **batch)
        # In the same order everywhere, as processes average one after the other.
        parts = {name: torch.zeros_like(share) for names in LOGGED for name in names}
        for name, value in output.loss_dict.items():
            parts[name] = (share if name == "depth_ce" else own_share) * value
        return share * output.loss, parts

    def after_step(self, batches: list[Sample], step: int, steps: int) -> None:
        """Nothing is left to do."""

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> tuple[dict[str, float], Image.Image | None]:
        """Metrics of both tasks, with the task as prefix, and their pictures one above the other."""
        found = {name: task.evaluate(model, accelerator) for name, task in self.tasks.items()}
        metrics = {f"{task}_{name}": value for task, (figures, _) in found.items() for name, value in figures.items()}
        pictures = [picture for _, picture in found.values() if picture is not None]
        return metrics, _stacked(pictures) if pictures else None

    def save(self, model: PreTrainedModel, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Model and the default task's image processor; the other one's lies in a folder named like its task."""
        default_task = str(self.model.config.default_task)
        self.tasks[default_task].save(model, state_dict, folder)
        for name in self.tasks.keys() - {default_task}:
            self.tasks[name].processor.save_pretrained(folder / name)

    def _place(self, batch: Sample) -> int:
        return DEPTH if "depth_labels" in batch else INSTANCE

    def _task(self, batch: Sample) -> InstanceTask | DepthTask:
        return tuple(self.tasks.values())[self._place(batch)]


def _stacked(pictures: list[Image.Image]) -> Image.Image:
    """Pictures one above the other, on white."""
    size = (max(picture.width for picture in pictures), sum(picture.height for picture in pictures))
    whole = Image.new("RGB", size, "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def build_joint_model(recipe: JointModelRecipe, class_names: list[str]) -> AiTForDenseAndInstancePrediction:
    """Task-solver of a recipe with its trained tokenizers, at the point that training starts from.

    Args:
        recipe: what to train.
        class_names: of the data with objects; they become the configuration's `id2label`.

    Raises:
        FileNotFoundError: a tokenizer's folder holds no model.
        RecipeError: the configuration is not valid, or does not fit the tokenizers or the earlier run.
    """
    check_joint_tasks(recipe)
    paths: dict[TokenizerKind, str | None] = {"mask": recipe.mask_tokenizer, "depth": recipe.depth_tokenizer}
    tokenizers = {}
    for kind, path in paths.items():
        if path is None:
            raise RecipeError(
                f"model.{kind}_tokenizer is missing: give the folder of a trained VQ-VAE of {kind}s (the `model` "
                "folder of a run_vqvae.py run)."
            )
        tokenizers[kind] = load_tokenizer(path, f"model.{kind}_tokenizer")
    return build_object_model(recipe, class_names, tokenizers)


def plan_recipe(recipe: JointRecipe, processes: int) -> Mix:
    """What a step of a recipe holds.

    Raises:
        RecipeError: the batch cannot be shared out equally.
    """
    run = recipe.run
    ratio = (recipe.mix.instance, recipe.mix.depth)
    return plan_mix(run.batch_size, ratio, micro_batch_size(run, processes), processes)


def train_joint(recipe: JointRecipe) -> Path:
    """Train a task-solver for instances and depth; returns the folder of the trained model.

    Raises:
        FileNotFoundError: a tokenizer's folder holds no model.
        RecipeError: the recipe does not fit the model, the data or the processes.
        FileExistsError: the run's folder is in use.
    """
    check_joint_tasks(recipe.model)
    if recipe.instance_data.streaming or recipe.depth_data.streaming:
        raise RecipeError("streaming is not for joint training, which chooses rows by number; leave it out.")
    mix = plan_recipe(recipe, count_processes())
    accelerator = make_accelerator(recipe.run, mix.passes // count_processes())
    with accelerator.main_process_first():
        train_objects, eval_objects = load_instance_rows(recipe.instance_data)
        train_depths, eval_depths = load_depth_pairs(recipe.depth_data)
    set_seed(recipe.run.seed)
    model = build_joint_model(recipe.model, train_objects.class_names)
    instance = InstanceTask(model, "instance", train_objects, eval_objects, instance_part(recipe))
    depth = DepthTask(model, train_depths, eval_depths, depth_part(recipe))

    def make_sampler(steps: range) -> Sampler[list[SampleKey]]:
        rank, processes = accelerator.process_index, accelerator.num_processes
        return JointSampler(len(train_objects), len(train_depths), mix, recipe.run.seed, steps, rank, processes)

    return train(JointTask(instance, depth, mix), recipe, accelerator, make_sampler)
