"""Training of the task-solver for depth."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import PreTrainedModel

from ..configuration_ait import AiTConfig
from ..data.augmentation_depth import depth_training_transform
from ..image_processing_ait_depth import AiTDepthImageProcessor
from ..modeling_ait import AiTForDenseAndInstancePrediction
from ..visualization import DepthPanelRow, depth_panel
from .depth_data import DepthPairs, evaluate_depth, explain_crop, load_depth_pairs
from .initialization import align_positions, initialize_from, load_backbone_weights
from .loop import make_accelerator, train
from .recipes import DepthModelRecipe, DepthRecipe, RecipeError, build_config
from .sampling import Sample
from .saving import save_task_solver
from .tokenizers import load_tokenizer, with_tokenizer


class DepthTask:
    """Predict depth from images; evaluation decodes windows and flips of whole images, as at inference.

    Args:
        model: the task-solver with its trained tokenizer.
        train_rows: training data.
        eval_rows: evaluation data.
        recipe: the run's recipe.
    """

    def __init__(
        self,
        model: AiTForDenseAndInstancePrediction,
        train_rows: DepthPairs,
        eval_rows: DepthPairs,
        recipe: DepthRecipe,
    ) -> None:
        self.model = model
        self.train_rows = train_rows
        self.stream = train_rows.stream
        self.eval_rows = eval_rows
        self.num_rows = len(train_rows)
        self.num_eval = min(len(eval_rows), recipe.data.eval_limit or len(eval_rows))
        self.eval_batch = recipe.data.eval_batch
        self.panels = recipe.run.panels
        self.save_dtype: torch.dtype = getattr(torch, recipe.run.save_dtype)
        size = model.config.depth_tokenizer_config.image_size
        self.processor = _image_processor(size, recipe.model)
        chances = recipe.augmentation
        self.transform = depth_training_transform(size, chances.strip, chances.flip, chances.colour)

    @property
    def eval_counts(self) -> dict[str, int]:
        """Rows of evaluation data by the recipe's section."""
        return {"data": self.num_eval}

    def sample(self, index: Any) -> Sample:
        """Augmented image (3, S, S), normalised as the image processor does, and depth (S, S) metres."""
        sample = augmented_depth_sample(self.train_rows, index, self.transform)
        if self.processor.do_normalize:
            mean, std = (torch.tensor(x)[:, None, None] for x in (self.processor.image_mean, self.processor.image_std))
            sample["pixel_values"] = (sample["pixel_values"] - mean) / std
        return sample

    def collate(self, samples: list[Sample]) -> Sample:
        """Stack samples."""
        return default_collate(samples)

    def weight(self, batch: Sample) -> Tensor:
        """Number of images with any valid depth; each supervises the same number of tokens."""
        return (batch["depth_labels"] > 0).flatten(1).any(1).sum()

    def loss(self, model: nn.Module, batch: Sample, share: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's own loss, normalised by the tokens of the whole batch."""
        output = model(task="depth", **batch)
        return share * output.loss, {name: share * value for name, value in output.loss_dict.items()}

    def after_step(self, batches: list[Sample], step: int, steps: int) -> None:
        """Nothing is left to do."""

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> tuple[dict[str, float], Image.Image | None]:
        """Depth metrics of whole images under the test protocol."""

        def predict(indices: list[int]) -> tuple[list[Tensor], list[Tensor]]:
            images = [self.eval_rows.image(index) for index in indices]
            targets = [self.eval_rows.depth(index)[0] for index in indices]
            inputs = self.processor(images, return_tensors="pt").to(accelerator.device)
            output = model(task="depth", **inputs)
            sizes = [(target.shape[0], target.shape[1]) for target in targets]
            results = self.processor.post_process_depth_estimation(output, sizes)
            return [result["predicted_depth"].cpu() for result in results], targets

        metrics = evaluate_depth(self.num_eval, predict, self.eval_batch, accelerator)
        shown = list(range(min(self.panels, self.num_eval)))
        rows = []
        if shown:
            predictions, targets = predict(shown)
            for index, depth, truth in zip(shown, predictions, targets, strict=True):
                rows.append(DepthPanelRow(self.eval_rows.image(index).permute(1, 2, 0).numpy(), depth, truth))
        return metrics, depth_panel(rows) if rows and accelerator.is_main_process else None

    def save(self, model: PreTrainedModel, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Model and image processor, as `from_pretrained` and the depth pipeline read them."""
        save_task_solver(model, state_dict, self.save_dtype, folder)
        self.processor.save_pretrained(folder)


def augmented_depth_sample(rows: DepthPairs, index: Any, transform: v2.Compose) -> Sample:
    """Image (3, S, S) in [0, 1] as `pixel_values` and metres (S, S) as `depth_labels`, augmented.

    Args:
        rows: training data.
        index: number of a row, or a row of a stream.
        transform: of `depth_training_transform`.
    """
    image, depth = tv_tensors.Image(rows.image(index).float() / 255), tv_tensors.Mask(rows.depth(index))
    with explain_crop(index, image, depth):
        image, depth = transform(image, depth)
    return {"pixel_values": image.as_subclass(Tensor), "depth_labels": depth.as_subclass(Tensor)[0]}


def _image_processor(size: int, recipe: DepthModelRecipe) -> AiTDepthImageProcessor:
    """Image processor that prepares images as in training."""
    if recipe.image_mean is None or recipe.image_std is None:
        return AiTDepthImageProcessor(size={"height": size, "width": size})
    return AiTDepthImageProcessor(
        size={"height": size, "width": size},
        do_normalize=True,
        image_mean=recipe.image_mean,
        image_std=recipe.image_std,
    )


def build_depth_model(recipe: DepthModelRecipe) -> AiTForDenseAndInstancePrediction:
    """Task-solver of a recipe with its trained tokenizer, at the point that training starts from.

    Raises:
        FileNotFoundError: the tokenizer's folder holds no model.
        RecipeError: the configuration is not valid, or names no tokenizer.
    """
    model = _model_with_tokenizer(recipe)
    if recipe.backbone_weights is not None:
        load_backbone_weights(model, recipe.backbone_weights)
    if recipe.align_positions:
        align_positions(model)
    if recipe.initialize_from is not None:
        initialize_from(model, recipe.initialize_from)
    return model


def _model_with_tokenizer(recipe: DepthModelRecipe) -> AiTForDenseAndInstancePrediction:
    values = dict(recipe.config)
    if recipe.depth_tokenizer is None:
        if (values.get("depth_tokenizer_config") or {}).get("model_type") != "ait_bin_tokenizer":
            raise RecipeError(
                "model.depth_tokenizer is missing: give the folder of a trained VQ-VAE (the `model` folder of a "
                "run_vqvae.py run), or set model.config.depth_tokenizer_config.model_type to ait_bin_tokenizer."
            )
        return AiTForDenseAndInstancePrediction(build_config(AiTConfig, values, "the recipe"))
    tokenizer = load_tokenizer(recipe.depth_tokenizer, "model.depth_tokenizer")
    config = build_config(AiTConfig, with_tokenizer(values, tokenizer, "depth"), "the recipe")
    model = AiTForDenseAndInstancePrediction(config)
    model.depth_tokenizer.load_state_dict(tokenizer.state_dict())
    return model


def train_depth(recipe: DepthRecipe) -> Path:
    """Train a task-solver for depth; returns the folder of the trained model.

    Raises:
        FileNotFoundError: the tokenizer's folder holds no model.
        RecipeError: the recipe does not fit the model, the data or the processes.
        FileExistsError: the run's folder is in use.
    """
    accelerator = make_accelerator(recipe.run)
    set_seed(recipe.run.seed)
    model = build_depth_model(recipe.model)
    with accelerator.main_process_first():
        train_rows, eval_rows = load_depth_pairs(recipe.data)
    return train(DepthTask(model, train_rows, eval_rows, recipe), recipe, accelerator)
