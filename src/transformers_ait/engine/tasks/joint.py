"""Joint training of one task-solver for objects and dense tasks."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler
from transformers import PreTrainedModel

from ...distributed_ait import mean_over_processes
from ...modeling_ait import AiTForDenseAndInstancePrediction
from ..loop.processes import count_processes, make_accelerator, micro_batch_size
from ..loop.sampling import Sample, SampleKey
from ..loop.trainer import train
from ..recipes.joint import DENSE_GROUP, JointRecipe, check_joint_tasks, dense_part, instance_part
from ..recipes.reading import RecipeError
from .dense import DenseTask, load_task_rows
from .dense_codes import with_image_codes
from .instance_data import load_instance_rows
from .instance_panel import stack_pictures
from .instances import InstanceTask, build_instance_model
from .joint_sampling import JointSampler, Mix, plan_mix

OBJECT_PARTS = {"instance": ("box_ce", "class_ce", "mask_ce", "aux"), "detection": ("box_ce", "class_ce")}
DENSE_PARTS = ("ce", "aux")
TINY = 1e-12


class JointTask:
    """Predict objects and maps; a micro-batch holds images of one group: of an object task, or of all dense tasks.

    Each task's loss is normalised by its own supervised tokens, of all micro-batches and processes of a step.

    Args:
        objects: the object tasks by name.
        dense: the dense tasks, with the same model.
        mix: what a step holds of each group, the dense tasks last.
    """

    def __init__(self, objects: Mapping[str, InstanceTask], dense: DenseTask, mix: Mix) -> None:
        self.objects = dict(objects)
        self.dense = dense
        self.groups: list[InstanceTask | DenseTask] = [*objects.values(), dense]
        self.model = dense.model
        self.stream = None  # a step's rows are chosen by number
        self.tasks = list(self.model.config.tasks)
        for name, task in self.objects.items():
            if name != self.model.config.default_task:
                task.processor.task = name  # type: ignore[assignment]
        # An epoch is a pass over the first task's images with objects, the other images of its steps included.
        self.num_rows = -(-self.groups[0].num_rows * sum(mix.images) // mix.images[0])

    @property
    def eval_counts(self) -> dict[str, int]:
        """Rows of evaluation data by the recipe's section."""
        return {"instance_data": self.groups[0].num_eval, "depth_data": self.dense.num_eval}

    def sample(self, index: int) -> Sample:
        """A sample of the group whose row it is; the rows of each group are numbered after those before it."""
        for place, group in enumerate(self.groups):
            if index < group.num_rows:
                return {"group": place, "sample": group.sample(index)}
            index -= group.num_rows
        raise IndexError(index)

    def collate(self, samples: list[Sample]) -> Sample:
        """A batch of one group's samples."""
        place = samples[0]["group"]
        return {"group": place, "batch": self.groups[place].collate([entry["sample"] for entry in samples])}

    def weight(self, batch: Sample) -> Tensor:
        """What each task's loss is normalised by, (tasks,); 0 for tasks of other groups."""
        group, own = self.groups[batch["group"]], batch["batch"]
        weights = torch.zeros(len(self.tasks), device=own["pixel_values"].device)
        weights[self._places(group)] = group.weight(own).to(weights)
        return weights

    def loss(self, model: nn.Module, batch: Sample, share: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's own loss of the batch's tasks, each normalised by that task's tokens in the whole step.

        Values to log are there for all tasks, so that means over batches are means over each task's tokens.
        """
        group, weights = self.groups[batch["group"]], self.weight(batch)
        places = self._places(group)
        # Parts that the model does not divide by the mean of what all processes run now.
        own = weights / mean_over_processes(weights).clamp(min=TINY)
        loss, found = group.loss(model, batch["batch"], share[places])
        only_dense = self.model.model.decoder.mask_embedding
        if only_dense is not None and isinstance(model, DistributedDataParallel):
            # Which waits in every pass for the gradient of every weight.
            loss = loss + 0.0 * only_dense.sum()
        # In the same order everywhere, as processes average one after the other.
        parts = {f"{task}_{part}": torch.zeros_like(loss.detach()) for task in self.tasks for part in _parts(task)}
        for task, place in zip(self._names(group), places.flatten().tolist(), strict=True):
            of_task = share[place] if isinstance(group, InstanceTask) else 1.0  # dense parts have their share in them
            for part in _parts(task):
                name = f"{task}_{part}"
                parts[name] = found[name] * of_task * (1.0 if part == "ce" else own[place])
        return loss, parts

    def after_step(self, batches: list[Sample], step: int, steps: int) -> None:
        """Nothing is left to do."""

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> tuple[dict[str, float], Image.Image | None]:
        """Metrics of all tasks, with the task as prefix, and their pictures one above the other."""
        figures, pictures = {}, []
        for name, task in self.objects.items():
            figures[name], picture = task.evaluate(model, accelerator)
            pictures.append(picture)
        of_maps, picture = self.dense.measure(model, accelerator)
        shown = [x for x in (*pictures, picture) if x is not None]
        metrics = {f"{task}_{name}": x for task, found in (figures | of_maps).items() for name, x in found.items()}
        return metrics, stack_pictures(shown) if shown else None

    def save(self, model: PreTrainedModel, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Model and the default task's image processor; those of other tasks lie in folders named like them."""
        default_task = str(self.model.config.default_task)
        self.objects.get(default_task, self.dense).save(model, state_dict, folder)
        for name in self.objects.keys() - {default_task}:
            self.objects[name].processor.save_pretrained(folder / name)
        if default_task in self.objects:
            self.dense.save_task_processors(folder)

    def _names(self, group: InstanceTask | DenseTask) -> list[str]:
        return [group.task] if isinstance(group, InstanceTask) else list(group.kinds)

    def _places(self, group: InstanceTask | DenseTask) -> Tensor:
        """Places of a group's tasks in weights: a number for the one of objects, (tasks,) for dense ones."""
        places = torch.tensor([self.tasks.index(name) for name in self._names(group)])
        return places[0] if isinstance(group, InstanceTask) else places


def _parts(task: str) -> tuple[str, ...]:
    """Names of the parts of a task's loss."""
    return OBJECT_PARTS.get(task, DENSE_PARTS)


def build_joint_model(recipe: JointRecipe, class_names: list[str]) -> AiTForDenseAndInstancePrediction:
    """Task-solver of a recipe with its trained tokenizers, at the point that training starts from.

    Args:
        recipe: what to train.
        class_names: of the data with objects.

    Raises:
        FileNotFoundError: a tokenizer's folder holds no model.
        RecipeError: the configuration is not valid, or does not fit the data, the tokenizers or the earlier run.
    """
    check_joint_tasks(recipe)
    return build_instance_model(recipe.model, class_names)


def plan_recipe(recipe: JointRecipe, processes: int) -> Mix:
    """What a step of a recipe holds.

    Raises:
        RecipeError: the batch cannot be shared out equally.
    """
    run = recipe.run
    return plan_mix(run.batch_size, recipe.mix.groups(), micro_batch_size(run, processes), processes)


def train_joint(recipe: JointRecipe) -> Path:
    """Train a task-solver for objects and dense tasks; returns the folder of the trained model.

    Raises:
        FileNotFoundError: a tokenizer's folder holds no model.
        RecipeError: the recipe does not fit the model, the data or the processes.
        FileExistsError: the run's folder is in use.
    """
    check_joint_tasks(recipe)
    if recipe.instance_data.streaming or recipe.depth_data.streaming:
        raise RecipeError("streaming is not for joint training, which chooses rows by number; leave it out.")
    mix = plan_recipe(recipe, count_processes())
    accelerator = make_accelerator(recipe.run, mix.passes // count_processes())
    with accelerator.main_process_first():
        train_objects, eval_objects = load_instance_rows(recipe.instance_data)
    set_seed(recipe.run.seed)
    model = build_joint_model(recipe, train_objects.class_names)
    section, image_codes = with_image_codes(recipe.model, model)
    recipe = replace(recipe, model=section)
    with accelerator.main_process_first():
        train_maps, eval_maps = load_task_rows(recipe.depth_data, model.config)
    names = [name for name in recipe.mix.groups() if name != DENSE_GROUP]
    part = instance_part(recipe)
    objects = {name: InstanceTask(model, name, train_objects, eval_objects, part) for name in names}
    task = JointTask(objects, DenseTask(model, train_maps, eval_maps, dense_part(recipe), image_codes), mix)

    def make_sampler(steps: range) -> Sampler[list[SampleKey]]:
        rows = [group.num_rows for group in task.groups]
        rank, processes = accelerator.process_index, accelerator.num_processes
        return JointSampler(rows, mix, recipe.run.seed, steps, rank, processes)

    return train(task, recipe, accelerator, make_sampler)
