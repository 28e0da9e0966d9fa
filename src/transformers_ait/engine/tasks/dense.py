"""Training of a model for any set of dense tasks: a task-solver, or the plain baseline."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchvision import tv_tensors
from transformers import PreTrainedModel

from ...configuration_dense_tasks import OBJECT_TASKS
from ...configuration_plain_dense import AiTPlainDenseConfig
from ...data.augmentation_dense import DenseTransform, dense_training_transform
from ...image_processing_ait_dense import AiTDenseImageProcessor
from ...image_processing_ait_depth import AiTDepthImageProcessor
from ...modeling_ait import AiTForDenseAndInstancePrediction
from ...modeling_plain_dense import AiTPlainDenseModel
from ...outputs_ait import AiTOutput, DenseMaps
from ...visualization import PanelRow, dense_panel
from ..loop.processes import make_accelerator
from ..loop.sampling import Sample
from ..loop.trainer import train
from ..recipes.finetuning import complete_model
from ..recipes.reading import RecipeError, build_config
from ..recipes.scripts import DenseModelRecipe, DenseRecipe, DepthRecipe
from ..recipes.sections import DataRecipe
from ..recipes.tokenizers import with_tokenizers
from ..reporting.model_card import AGREEMENT
from .dense_codes import ImageCodes, check_same_dense_decoders, flat_views, image_tasks, with_image_codes
from .dense_data import DenseRows, MapsByTask, evaluate_maps, explain_crop, has_valid_pixels, load_dense_rows
from .initialization import build_task_solver, load_backbone_weights
from .instance_panel import stack_pictures
from .saving import save_task_solver

_BESIDE = "agreement of "  # names such maps beside those of labels; no task is called so


class DenseTask:
    """Predict maps of all dense tasks of a model; evaluation decodes windows and flips of images, as at inference.

    Tasks of a dense decoder learn the codes of images. They are measured against the dense decoder's own maps, and
    against labels where the evaluation rows have them.

    Args:
        model: a task-solver with its trained tokenizers, or the plain baseline.
        train_rows: training data, with labels of the tasks that are no dense decoder's.
        eval_rows: evaluation data.
        recipe: the run's recipe.
        image_codes: the dense decoders, where the model has tasks of such.

    Raises:
        RecipeError: tokenizers of maps of different sizes.
    """

    def __init__(
        self,
        model: AiTForDenseAndInstancePrediction | AiTPlainDenseModel,
        train_rows: DenseRows,
        eval_rows: DenseRows,
        recipe: DenseRecipe,
        image_codes: ImageCodes | None = None,
    ) -> None:
        self.model: Any = model
        self.dense = model.config.dense
        self.kinds = {task: spec.map_kind for task, spec in self.dense.items()}
        self.image_codes = image_codes
        self.channels: dict[str, Any] = {task: spec.channels for task, spec in self.dense.items()}
        self.train_rows = train_rows
        self.stream = train_rows.stream
        self.eval_rows = eval_rows
        self.recipe = recipe
        self.num_rows = len(train_rows)
        self.num_eval = min(len(eval_rows), recipe.data.eval_limit or len(eval_rows))
        self.processor = self._processor()
        self.transform = dense_training_transform(
            map_size(model.config),
            train_rows.kinds,
            recipe.augmentation.strip,
            recipe.augmentation.flip,
            recipe.augmentation.colour,
            recipe.augmentation.scale,
        )

    @property
    def eval_counts(self) -> dict[str, int]:
        """Rows of evaluation data by the recipe's section."""
        return {"data": self.num_eval}

    def sample(self, index: Any) -> Sample:
        """Augmented image (3, S, S), normalised as the image processor does, and native maps ([C,] S, S) by task.

        For dense decoders, which normalise as their teachers do, also the image in [0, 1], as `images`.
        """
        sample = augmented_dense_sample(self.train_rows, index, self.transform)
        if self.image_codes is not None:
            sample["images"] = sample["pixel_values"]
        if self.processor.do_normalize:
            mean, std = (torch.tensor(x)[:, None, None] for x in (self.processor.image_mean, self.processor.image_std))
            sample["pixel_values"] = (sample["pixel_values"] - mean) / std
        return sample

    def collate(self, samples: list[Sample]) -> Sample:
        """Stack samples."""
        return default_collate(samples)

    def weight(self, batch: Sample) -> Tensor:
        """Number of images with any valid pixel, (tasks,); each supervises the same number of tokens of its task.

        For a dense decoder every image counts.
        """
        labels, images = batch["dense_labels"], batch["pixel_values"]
        whole = torch.tensor(len(images), device=images.device)
        counts = {task: has_valid_pixels(labels[task], self.kinds[task]).sum() for task in labels}
        return torch.stack([counts.get(task, whole) for task in self.kinds])

    def loss(self, model: nn.Module, batch: Sample, share: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's own losses of all tasks in one pass, each normalised by its tokens of the whole batch."""
        if self.image_codes is None:
            output = model(**batch)
        else:
            codes = self.image_codes.codes(batch["images"])
            output = model(batch["pixel_values"], dense_labels=batch["dense_labels"], dense_codes=codes)
        shares = dict(zip(self.kinds, share, strict=True))
        loss = sum(shares[task] * own for task, own in output.task_losses.items())
        parts = {f"{task}_{part}": value for task, value in shares.items() for part in ("ce", "aux")}
        return loss, {name: parts[name] * value for name, value in output.loss_dict.items()}

    def after_step(self, batches: list[Sample], step: int, steps: int) -> None:
        """Nothing is left to do."""

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> tuple[dict[str, float], Image.Image | None]:
        """Figures of whole images under the test protocol; the task is their prefix where there are several."""
        found, picture = self.measure(model, accelerator)
        if len(found) == 1:
            return next(iter(found.values())), picture
        return {f"{task}_{name}": x for task, figures in found.items() for name, x in figures.items()}, picture

    def measure(
        self, model: nn.Module, accelerator: Accelerator
    ) -> tuple[dict[str, dict[str, float]], Image.Image | None]:
        """Figures by task, and in the main process a picture of all tasks.

        What compares with a dense decoder's maps begins with `AGREEMENT`.
        """
        beside = {f"{_BESIDE}{task}": task for task in (self.image_codes.models if self.image_codes else ())}
        kinds = self.eval_rows.kinds | {name: self.kinds[task] for name, task in beside.items()}
        channels = self.channels | {name: self.channels[task] for name, task in beside.items()}

        def predict(indices: list[int]) -> tuple[list[MapsByTask], list[MapsByTask]]:
            return self._predict(model, indices, accelerator.device)

        figures = evaluate_maps(self.num_eval, predict, kinds, channels, self.recipe.data.eval_batch, accelerator)
        found = {task: figures.get(task, {}) for task in self.kinds}
        for name, task in beside.items():
            found[task] |= {f"{AGREEMENT}{key}": value for key, value in figures[name].items()}
        shown = list(range(min(self.recipe.run.panels, self.num_eval)))
        if not shown:
            return found, None
        predicted, true = predict(shown)
        return found, self._picture(shown, predicted, true) if accelerator.is_main_process else None

    def save(self, model: PreTrainedModel, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Model and image processors, as `from_pretrained` and the pipelines read them."""
        save_task_solver(model, state_dict, getattr(torch, self.recipe.run.save_dtype), folder)
        self.processor.save_pretrained(folder)
        self.save_task_processors(folder)

    def save_task_processors(self, folder: Path) -> None:
        """Image processors that ask for one of the tasks, in folders named like it; the default task needs none."""
        for task in self.kinds.keys() - {self.model.config.default_task}:
            self._processor(task).save_pretrained(folder / task)

    def _processor(self, task: str | None = None) -> AiTDenseImageProcessor:
        """Image processor that prepares images as in training."""
        recipe, size = self.recipe, map_size(self.model.config)
        settings: dict[str, Any] = {"size": {"height": size, "width": size}, "window_blending": "smooth", "task": task}
        if recipe.model.image_mean is not None:
            settings |= {"image_mean": recipe.model.image_mean, "image_std": recipe.model.image_std}
            settings["do_normalize"] = True
        kinds = {name: spec.kind for name, spec in self.dense.items()}
        if isinstance(recipe, DepthRecipe) and kinds == AiTDepthImageProcessor.map_kinds:
            return AiTDepthImageProcessor(**settings)
        return AiTDenseImageProcessor(map_kinds=kinds, **settings)

    def _predict(
        self, model: nn.Module, indices: list[int], device: torch.device
    ) -> tuple[list[MapsByTask], list[MapsByTask]]:
        images = [self.eval_rows.image(index) for index in indices]
        pixel_values = self.processor(images, return_tensors="pt")["pixel_values"].to(device)
        output = model(pixel_values, task=list(self.kinds))
        results = self.processor.post_process_dense(output, [(image.shape[1], image.shape[2]) for image in images])
        predicted = [{task: values.cpu() for task, values in maps.items()} for maps in results]
        true = [self.eval_rows.maps(index) for index in indices]
        if self.image_codes is not None:
            for own, labels, maps in zip(predicted, true, self._dense_decoders_maps(images, device), strict=True):
                labels |= {f"{_BESIDE}{task}": values for task, values in maps.items()}
                own |= {f"{_BESIDE}{task}": own[task] for task in maps}
        return predicted, true

    def _dense_decoders_maps(self, images: list[Tensor], device: torch.device) -> list[MapsByTask]:
        """What the dense decoders themselves make of images, by task."""
        assert self.image_codes is not None
        views = self.processor(images, do_normalize=False, return_tensors="pt")["pixel_values"].to(device)
        flat, axes = flat_views(views)
        maps = {task: x.unflatten(0, axes) for task, x in self.image_codes.maps(flat).items()}
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        results = self.processor.post_process_dense(AiTOutput(dense_maps=DenseMaps(maps)), sizes)
        return [{task: values.cpu() for task, values in found.items()} for found in results]

    def _picture(self, indices: list[int], predicted: list[MapsByTask], true: list[MapsByTask]) -> Image.Image:
        """The rows of every task, one task below the other."""
        images = [self.eval_rows.image(index).permute(1, 2, 0).numpy() for index in indices]
        panels = []
        for task, kind in self.kinds.items():
            shown = [labels[task] if task in labels else labels[f"{_BESIDE}{task}"] for labels in true]
            rows = [PanelRow(x, p[task], t) for x, p, t in zip(images, predicted, shown, strict=True)]
            panels.append(dense_panel(rows, kind, name=task, class_names=self.dense[task].class_names))
        return stack_pictures(panels)


def load_task_rows(recipe: DataRecipe, config: Any) -> tuple[DenseRows, DenseRows]:
    """Training and evaluation rows of a model's dense tasks.

    Tasks of a dense decoder have no labels in training, and in evaluation those that `recipe.columns` names.

    Args:
        recipe: which data.
        config: of the model.

    Raises:
        RecipeError: the dataset, a split or a column does not exist.
    """
    kinds, unlabelled = {task: spec.map_kind for task, spec in config.dense.items()}, image_tasks(config)
    if not unlabelled:
        return load_dense_rows(recipe, kinds)
    labelled = {task: kind for task, kind in kinds.items() if task not in unlabelled}
    columns = {task: column for task, column in recipe.columns.items() if task not in unlabelled}
    train_rows = load_dense_rows(replace(recipe, columns=columns), labelled)[0]
    measured = {task: kind for task, kind in kinds.items() if task in labelled or task in recipe.columns}
    return train_rows, load_dense_rows(recipe, measured)[1]


def augmented_dense_sample(rows: DenseRows, index: Any, transform: DenseTransform) -> Sample:
    """Image (3, S, S) in [0, 1] as `pixel_values` and native maps ([C,] S, S) by task as `dense_labels`, augmented.

    Args:
        rows: training data.
        index: number of a row, or a row of a stream.
        transform: of `dense_training_transform`.
    """
    image, maps = tv_tensors.Image(rows.image(index).float() / 255), rows.maps(index)
    with explain_crop(index, image, *maps.values()):
        image, maps = transform(image, maps)
    return {"pixel_values": image.as_subclass(Tensor), "dense_labels": maps}


def map_size(config: Any) -> int:
    """Side of the square maps of all dense tasks of a model: that of its tokenizers, or of a plain model's input.

    Args:
        config: of the model.

    Raises:
        RecipeError: tokenizers of different sizes.
    """
    sizes = {task: getattr(spec, "tokenizer_config", config).image_size for task, spec in config.dense.items()}
    if len(set(sizes.values())) > 1:
        raise RecipeError(f"The tokenizers of one model must be of maps of one size, got image_size {sizes}.")
    return next(iter(sizes.values()))


def build_dense_model(recipe: DenseModelRecipe) -> AiTForDenseAndInstancePrediction | AiTPlainDenseModel:
    """Model of a recipe, a task-solver with its trained tokenizers, at the point that training starts from.

    Raises:
        FileNotFoundError: a tokenizer's folder holds no model.
        RecipeError: the configuration is not valid, has tasks of objects, or names no tokenizer.
    """
    objects = [task for task in recipe.config.get("tasks") or [] if task in OBJECT_TASKS]
    if objects:
        raise RecipeError(f"model.config.tasks must be dense tasks, got {objects}; run_joint.py trains them too.")
    if not recipe.plain:
        return build_task_solver(recipe, *with_tokenizers(recipe.config, recipe))
    model = AiTPlainDenseModel(build_config(AiTPlainDenseConfig, recipe.config, "the recipe"))
    if recipe.backbone_weights is not None:
        load_backbone_weights(model, recipe.backbone_weights)
    return model


def train_dense(recipe: DenseRecipe) -> Path:
    """Train a model for dense tasks; returns the folder of the trained model.

    Raises:
        FileNotFoundError: a tokenizer's folder holds no model.
        RecipeError: the recipe does not fit the model, the data or the processes.
        FileExistsError: the run's folder is in use.
    """
    accelerator = make_accelerator(recipe.run)
    set_seed(recipe.run.seed)
    whole = replace(recipe, model=complete_model(recipe.model))
    model = build_dense_model(whole.model)
    if recipe.model.finetune is not None and recipe.data.train_size is None:
        whole = replace(whole, data=replace(recipe.data, train_size=map_size(model.config)))
    section, image_codes = with_image_codes(whole.model, model)
    if recipe.model.finetune is not None:
        check_same_dense_decoders(image_codes, recipe.model.finetune)
    # The run's folder then says which dense decoders they were.
    fingerprints = section.dense_decoder_fingerprints
    recipe = replace(recipe, model=replace(recipe.model, dense_decoder_fingerprints=fingerprints))
    with accelerator.main_process_first():
        train_rows, eval_rows = load_task_rows(whole.data, model.config)
    return train(DenseTask(model, train_rows, eval_rows, whole, image_codes), recipe, accelerator)
