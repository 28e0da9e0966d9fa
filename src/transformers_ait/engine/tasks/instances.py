"""Training of the task-solver for detection and instance segmentation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchvision import tv_tensors
from transformers import PreTrainedModel

from ...configuration_dense_tasks import OBJECT_TASKS, dense_task
from ...data.augmentation_instance import instance_training_transform
from ...data.copy_paste import Backgrounds, paste_objects, some_objects
from ...image_processing_ait_instance import AiTInstanceImageProcessor
from ...modeling_ait import AiTForDenseAndInstancePrediction
from ..loop.processes import make_accelerator
from ..loop.sampling import Sample
from ..loop.trainer import train
from ..recipes.finetuning import complete_model
from ..recipes.reading import RecipeError
from ..recipes.scripts import InstanceAugmentationRecipe, InstanceModelRecipe, InstanceRecipe
from ..recipes.tokenizers import INSTANCE_TASK, with_tokenizers
from .initialization import build_task_solver
from .instance_data import NUCLEUS_SEED, InstanceRows, evaluate_objects, load_instance_rows
from .instance_panel import instance_panel
from .saving import save_task_solver


class InstanceTask:
    """Predict objects from images; evaluation decodes whole images, as at inference.

    Args:
        model: the task-solver, for instances with its trained tokenizer.
        task: "detection" or "instance".
        train_rows: training data.
        eval_rows: evaluation data.
        recipe: the run's recipe.
    """

    def __init__(
        self,
        model: AiTForDenseAndInstancePrediction,
        task: str,
        train_rows: InstanceRows,
        eval_rows: InstanceRows,
        recipe: InstanceRecipe,
    ) -> None:
        self.model = model
        self.task = task
        self.train_rows = train_rows
        self.stream = train_rows.stream
        self.eval_rows = eval_rows
        self.num_rows = len(train_rows)
        self.num_eval = min(len(eval_rows), recipe.data.eval_limit or len(eval_rows))
        self.eval_batch = recipe.data.eval_batch
        self.panels = min(recipe.run.panels, self.num_eval)
        self.save_dtype: torch.dtype = getattr(torch, recipe.run.save_dtype)
        self.size: int = model.config.image_size
        self.processor = instance_image_processor(self.size, recipe.model)
        self.mean, self.std = (
            torch.tensor(values)[:, None, None] for values in (self.processor.image_mean, self.processor.image_std)
        )
        self.augment = InstanceAugmentation(train_rows, self.size, recipe.augmentation)
        self.needed = ("boxes", "class_labels", "masks") if task == INSTANCE_TASK else ("boxes", "class_labels")
        # Of a model that shares its classes with maps, the data's may be a part, in another order.
        places = {name: index for index, name in model.config.id2label.items()}
        self.classes = torch.tensor([places[name] for name in train_rows.class_names])

    @property
    def eval_counts(self) -> dict[str, int]:
        """Rows of evaluation data by the recipe's section."""
        return {"data": self.num_eval}

    def sample(self, index: Any) -> Sample:
        """Augmented image (3, S, S), normalised and padded, and its objects in its pixels."""
        image, labels = self.augment(index)
        height, width = labels["image_size"]
        pixel_values = (image / 255 - self.mean) / self.std
        labels["class_labels"] = self.classes[labels["class_labels"]]
        wanted = {name: labels[name] for name in (*self.needed, "image_size")}
        return {
            "pixel_values": F.pad(pixel_values, (0, self.size - width, 0, self.size - height)),
            "instance_labels": wanted | {"seed": int(torch.randint(2**62, ()))},
        }

    def collate(self, samples: list[Sample]) -> Sample:
        """Stacked images; objects stay in a list, as every image has its own number."""
        pixel_values = default_collate([sample["pixel_values"] for sample in samples])
        return {"pixel_values": pixel_values, "instance_labels": [sample["instance_labels"] for sample in samples]}

    def weight(self, batch: Sample) -> Tensor:
        """Number of supervised tokens: all of a true object, the class alone of a noise object."""
        slots, tokens = self.model.config.num_objects, self.model.config.tokens_per_object[self.task]
        counts = [min(len(label["class_labels"]), slots) for label in batch["instance_labels"]]
        return torch.tensor(sum(count * tokens + slots - count for count in counts))

    def loss(self, model: nn.Module, batch: Sample, share: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's own loss, normalised by the tokens of the whole batch."""
        output = model(task=self.task, **batch)
        return share * output.loss, output.loss_dict

    def after_step(self, batches: list[Sample], step: int, steps: int) -> None:
        """Nothing is left to do."""

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> tuple[dict[str, float], Image.Image | None]:
        """COCO's average precision on whole images."""

        def predict(indices: list[int]) -> list[dict[str, Any]]:
            return self._predict(model, indices, accelerator.device)

        iou_types = ("bbox", "segm") if self.task == INSTANCE_TASK else ("bbox",)
        metrics = evaluate_objects(self.eval_rows, self.num_eval, predict, iou_types, self.eval_batch, accelerator)
        shown = list(range(self.panels))
        results = predict(shown) if shown else []
        picture = instance_panel(self.eval_rows, shown, results) if shown and accelerator.is_main_process else None
        return metrics, picture

    def save(self, model: PreTrainedModel, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Model and image processor, as `from_pretrained` and the pipelines read them."""
        save_task_solver(model, state_dict, self.save_dtype, folder)
        self.processor.save_pretrained(folder)

    def _predict(self, model: nn.Module, indices: list[int], device: torch.device) -> list[dict[str, Any]]:
        images = [self.eval_rows.image(index) for index in indices]
        inputs = self.processor(images, return_tensors="pt").to(device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(NUCLEUS_SEED)
            outputs = model(task=self.task, **inputs)
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        count, known = len(self.classes), self.classes.tolist()
        # Classes of the model that the data has not get numbers of their own, and no part in the figures.
        others = [index for index in range(self.model.config.num_labels) if index not in known]
        results = self.processor.post_process_coco(outputs, indices, dict(enumerate([*known, *others])), sizes)
        return [entry for entry in results if entry["category_id"] < count]


class InstanceAugmentation:
    """Augmented images and their labels as the model takes them.

    Args:
        rows: training data.
        size: side of the model's input.
        recipe: what is done to them.

    Raises:
        RecipeError: pasting from a stream, whose rows have no numbers.
        FileNotFoundError: a folder of backgrounds holds no picture.
    """

    def __init__(self, rows: InstanceRows, size: int, recipe: InstanceAugmentationRecipe) -> None:
        if recipe.paste and rows.stream is not None:
            raise RecipeError(
                "augmentation.paste picks other images by number, which data.streaming has not; leave one out."
            )
        self.rows = rows
        self.size = size
        self.paste, self.background = recipe.paste, recipe.background
        self.backgrounds = Backgrounds(recipe.backgrounds) if recipe.background else None
        self.transform = instance_training_transform(size, recipe.scale, recipe.flip, recipe.colour)

    def __call__(self, index: Any) -> tuple[Tensor, dict[str, Any]]:
        """Image (3, h, w) uint8 and labels, masks padded to (N, size, size), of a row's number or a stream's row."""
        sample = self._moved(index)
        # Without these no number is drawn: older recipes see the samples that they always saw.
        if self.backgrounds is not None and float(torch.rand(())) < self.background:
            everything = torch.ones(len(sample["labels"]), dtype=torch.bool)
            sample = paste_objects(self.backgrounds.draw((self.size, self.size)), sample, everything)
        if self.paste and float(torch.rand(())) < self.paste:
            other = self._moved(int(torch.randint(len(self.rows), ())))
            sample = paste_objects(sample, other, some_objects(len(other["labels"])))
        moved = {name: value.as_subclass(Tensor) for name, value in sample.items()}
        height, width = moved["image"].shape[1:]
        labels = {
            "boxes": moved["boxes"].float(),
            "class_labels": moved["labels"],
            "masks": F.pad(moved["masks"], (0, self.size - width, 0, self.size - height)),
            "image_size": (height, width),
        }
        return moved["image"], labels

    def _moved(self, index: Any) -> dict[str, Any]:
        objects, image = self.rows.objects(index), self.rows.image(index)
        boxes = tv_tensors.BoundingBoxes(objects.boxes, format="XYXY", canvas_size=image.shape[1:])
        masks = tv_tensors.Mask(objects.masks)
        return self.transform(
            {"image": tv_tensors.Image(image), "boxes": boxes, "masks": masks, "labels": objects.class_labels}
        )


def instance_image_processor(size: int, recipe: InstanceModelRecipe) -> AiTInstanceImageProcessor:
    """Image processor that prepares images as in training; without mean and standard deviation, ImageNet's."""
    settings: dict[str, Any] = {"size": {"longest_edge": size}, "pad_size": {"height": size, "width": size}}
    if recipe.image_mean is not None and recipe.image_std is not None:
        settings |= {"image_mean": recipe.image_mean, "image_std": recipe.image_std}
    return AiTInstanceImageProcessor(**settings)


def build_instance_model(recipe: InstanceModelRecipe, class_names: list[str]) -> AiTForDenseAndInstancePrediction:
    """Task-solver of a recipe with its trained tokenizers, at the point that training starts from.

    Args:
        recipe: what to train.
        class_names: of the data. The configuration's `id2label` are these, or in a model that also predicts maps of
            classes the names of those, among which they must be.

    Raises:
        FileNotFoundError: a tokenizer's folder holds no model.
        RecipeError: the configuration is not valid, or does not fit the data, the tokenizers or the earlier run.
    """
    values, tokenizers = with_tokenizers(recipe.config, recipe)
    names = _class_table(values, class_names)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    return build_task_solver(recipe, {**values, **labels}, tokenizers)


def _class_table(values: dict[str, Any], class_names: list[str]) -> list[str]:
    """Names of the classes of objects, and of the maps of classes that the same model predicts."""
    specs = [dense_task(entry) for entry in values.get("dense_tasks") or []]
    tables = [(spec.name, list(spec.class_names or [])) for spec in specs if spec.map_kind.has_scores]
    if not tables:
        return class_names
    unknown = [name for name in class_names if name not in tables[0][1]]
    if unknown:
        raise RecipeError(
            f"The data's objects have the classes {unknown}, which the task {tables[0][0]!r} has not; it has "
            f"{tables[0][1]}. A model of both has one table of classes."
        )
    return tables[0][1]


def recipe_task(recipe: InstanceModelRecipe) -> str:
    """The task that a recipe trains.

    Raises:
        RecipeError: not exactly one of detection and instance.
    """
    tasks = list(recipe.config.get("tasks", []))
    if len(tasks) != 1 or tasks[0] not in OBJECT_TASKS:
        raise RecipeError(f"model.config.tasks must be [detection] or [instance], got {tasks}.")
    return tasks[0]


def train_instance(recipe: InstanceRecipe) -> Path:
    """Train a task-solver for detection or instances; returns the folder of the trained model.

    Raises:
        FileNotFoundError: the tokenizer's folder holds no model.
        RecipeError: the recipe does not fit the model, the data or the processes.
        FileExistsError: the run's folder is in use.
    """
    whole = replace(recipe, model=complete_model(recipe.model))
    task = recipe_task(whole.model)
    accelerator = make_accelerator(recipe.run)
    with accelerator.main_process_first():
        train_rows, eval_rows = load_instance_rows(recipe.data, boxes_alone=task != INSTANCE_TASK)
    set_seed(recipe.run.seed)
    model = build_instance_model(whole.model, train_rows.class_names)
    return train(InstanceTask(model, task, train_rows, eval_rows, whole), recipe, accelerator)
