"""Training of UniPixTask's dense decoders, by a task model and images without labels."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import AutoImageProcessor, PreTrainedModel

from ...configuration_unipixtask import DenseDecoderConfig
from ...data.augmentation_dense import dense_training_transform
from ...image_processing_ait_dense import AiTDenseImageProcessor
from ...metrics import MAP_METRICS
from ...modeling_dense_decoder import DenseDecoderModel
from ...outputs_ait import AiTOutput, DenseMaps
from ...teacher_loading_ait import describe_teacher, fingerprint, load_task_model
from ...teachers_ait import TaskModel
from ...vector_quantizer import code_usage
from ...visualization import PanelRow, dense_panel
from ..loop.evaluation_batches import evaluate_in_batches
from ..loop.processes import make_accelerator
from ..loop.sampling import Sample
from ..loop.streaming import RowStream
from ..loop.trainer import train
from ..recipes.dense_decoder import DenseDecoderModelRecipe, DenseDecoderRecipe
from ..recipes.reading import RecipeError, build_config
from ..reporting.model_card import AGREEMENT
from .dense import augmented_dense_sample
from .dense_data import DenseRows, load_dense_rows
from .dense_decoder_start import first_images, fit_scales
from .initialization import load_backbone_weights
from .saving import save_task_solver

TEACHER = "teacher_"
"""What figures of the teacher against the labels begin with."""


class DenseDecoderTask:
    """Restore a teacher's features from codes of the image.

    Evaluation decodes windows of whole images, as at inference. The dense decoder is always measured against the
    teacher, and both against the labels where the evaluation data has them.

    Args:
        model: the dense decoder, with the teacher's head.
        teacher: with its backbone.
        train_rows: training images.
        eval_rows: evaluation images, and labels of the task where there are any.
        recipe: the run's recipe.
    """

    def __init__(
        self,
        model: DenseDecoderModel,
        teacher: TaskModel,
        train_rows: DenseRows,
        eval_rows: DenseRows,
        recipe: DenseDecoderRecipe,
    ) -> None:
        self.model = model
        self.model.quantizer.deferred = True
        self.config: Any = model.config
        self.kind = model.config.kind
        self.teacher = teacher
        self.train_rows, self.eval_rows = train_rows, eval_rows
        self.stream: RowStream | None = train_rows.stream
        self.recipe = recipe
        self.num_rows = len(train_rows)
        self.num_eval = min(len(eval_rows), recipe.data.eval_limit or len(eval_rows))
        self.task = map_name(model.config)
        self.processor = self._processor()
        augmentation = recipe.augmentation
        self.transform = dense_training_transform(
            self.config.image_size, {}, 0.0, augmentation.flip, augmentation.colour, augmentation.scale
        )

    def fit_start(self) -> None:
        """Scale the new model to the first training images; alike in all processes."""
        views = self.processor(first_images(self.train_rows), return_tensors="pt")["pixel_values"]
        images = views if views.ndim == 4 else views[:, 0]
        set_seed(self.recipe.run.seed)
        fit_scales(self.model, images, self._teacher_features(images))

    @property
    def eval_counts(self) -> dict[str, int]:
        """Rows of evaluation data by the recipe's section."""
        return {"data": self.num_eval}

    def sample(self, index: Any) -> Sample:
        """Augmented image (3, S, S), normalised as the teacher expects it."""
        image = augmented_dense_sample(self.train_rows, index, self.transform)["pixel_values"]
        return {"pixel_values": self.model.normalize(image)}

    def collate(self, samples: list[Sample]) -> Sample:
        """Stack samples."""
        return default_collate(samples)

    def weight(self, batch: Sample) -> Tensor:
        """Number of images."""
        return torch.tensor(len(batch["pixel_values"]))

    def loss(self, model: nn.Module, batch: Sample, share: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Feature regression, codebook and commitment loss (UniPixTask, equations 2 and 3)."""
        images = batch["pixel_values"]
        output = model(images, teacher_features=self._teacher_features(images))
        used, perplexity = code_usage(output.codes, self.config.num_codes)
        parts = {
            "features": (share * output.feature_loss).detach(),
            "codebook": (share * output.codebook_loss).detach(),
            "commitment": (share * output.commitment_loss).detach(),
            "codes_used": used,
            "perplexity": perplexity,
        }
        return share * output.loss, parts

    def after_step(self, batches: list[Sample], step: int, steps: int) -> None:
        """Update the codes' statistics once for the whole step, and restart dead codes as the recipe says."""
        self.model.quantizer.apply_update()
        restart = self.recipe.restart
        if restart.every and step % restart.every == 0 and step <= restart.until * steps:
            inputs = [batch["pixel_values"].to(self.model.device) for batch in batches]
            self.model.restart_dead_codes(inputs, restart.min_cluster_size)

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> tuple[dict[str, float], Image.Image | None]:
        """Figures of whole images, use of the codebook over all of them, and a picture."""
        metric, channels = MAP_METRICS[self.kind.metric], self.config.num_channels

        def measure(indices: list[int]) -> list[dict[str, Any]]:
            rows = []
            for index, row in zip(indices, self._predict(model, indices, accelerator.device), strict=True):
                found = {AGREEMENT: metric.measure(row["decoded"], row["teacher"], channels)}
                if self.eval_rows.kinds:
                    true = self.eval_rows.map(index, self.task)
                    found[""] = metric.measure(row["decoded"], true, channels)
                    found[TEACHER] = metric.measure(row["teacher"], true, channels)
                rows.append({"figures": found, "codes": row["codes"], "error": row["error"]})
            return rows

        rows = evaluate_in_batches(measure, self.num_eval, self.recipe.data.eval_batch, accelerator)
        used, perplexity = code_usage(torch.cat([row["codes"].flatten() for row in rows]), self.config.num_codes)
        figures: dict[str, float] = {}
        for prefix in ("", TEACHER, AGREEMENT):
            if prefix in rows[0]["figures"]:
                combined = metric.combine([row["figures"][prefix] for row in rows])
                figures |= {f"{prefix}{name}": value for name, value in combined.items()}
        figures["feature_error"] = sum(row["error"] for row in rows) / len(rows)
        figures |= {"codes_used": used.item(), "perplexity": perplexity.item()}
        shown = list(range(min(self.recipe.run.panels, self.num_eval)))
        results = self._predict(model, shown, accelerator.device) if shown else []
        return figures, self._picture(shown, results) if shown and accelerator.is_main_process else None

    def save(self, model: PreTrainedModel, state_dict: dict[str, Tensor], folder: Path) -> None:
        """The dense decoder with its task head, as `from_pretrained` reads it, and its image processor."""
        save_task_solver(model, state_dict, getattr(torch, self.recipe.run.save_dtype), folder)
        self.processor.save_pretrained(folder)

    def _processor(self) -> AiTDenseImageProcessor:
        """Image processor that prepares images as in training."""
        size = self.config.image_size
        settings: dict[str, Any] = {"size": {"height": size, "width": size}, "window_blending": "smooth"}
        if self.config.image_mean is not None:
            settings |= {"image_mean": list(self.config.image_mean), "image_std": list(self.config.image_std)}
            settings["do_normalize"] = True
        return AiTDenseImageProcessor(map_kinds={self.task: self.kind.name}, **settings)

    @torch.no_grad()
    def _teacher_features(self, images: Tensor) -> tuple[Tensor, ...]:
        self.teacher.to(images.device)
        # The teacher is exact, whatever precision the training has.
        with torch.autocast(images.device.type, enabled=False):
            return self.teacher.features(images.float())

    def _predict(self, model: nn.Module, indices: list[int], device: torch.device) -> list[dict[str, Any]]:
        """By row: final maps of dense decoder and teacher on the CPU, codes of all views, and the features' error."""
        images = [self.eval_rows.image(index) for index in indices]
        views = self.processor(images, return_tensors="pt")["pixel_values"].to(device)
        grouped = views if views.ndim == 5 else views[:, None]
        pixel_values = grouped.flatten(0, 1)
        output, features = model(pixel_values), self._teacher_features(pixel_values)
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        # The frozen head outside of what may be wrapped: it has no gradients to share.
        true = self.model.head(features, self.config.image_size)
        maps = {"decoded": output.maps, "teacher": true}
        finished = {name: self._finished(x, views.shape[:-3], sizes) for name, x in maps.items()}
        errors = [_relative_error(mine, exact) for mine, exact in zip(output.features, features, strict=True)]
        error = torch.stack(errors).mean(0).unflatten(0, grouped.shape[:2]).mean(1).cpu()
        codes = output.codes.unflatten(0, grouped.shape[:2]).cpu()
        return [
            {"decoded": finished["decoded"][row], "teacher": finished["teacher"][row], "codes": codes[row]}
            | {"error": error[row].item()}
            for row in range(len(indices))
        ]

    def _finished(self, maps: Tensor, views: torch.Size, sizes: list[tuple[int, int]]) -> list[Tensor]:
        """Final native maps of the images, of maps (images * views, C, S, S) in tokenizer form."""
        native = self.kind.from_tokenizer(maps.float()).unflatten(0, views)
        results = self.processor.post_process_dense(AiTOutput(dense_maps=DenseMaps({self.task: native})), sizes)
        return [result[self.task].cpu() for result in results]

    def _picture(self, indices: list[int], results: list[dict[str, Any]]) -> Image.Image:
        """Images, decoded maps, and the teacher's in place of the truth."""
        images = [self.eval_rows.image(index).permute(1, 2, 0).numpy() for index in indices]
        rows = [PanelRow(x, row["decoded"], row["teacher"]) for x, row in zip(images, results, strict=True)]
        names = self.config.class_names if self.kind.has_scores else None
        return dense_panel(rows, self.kind, name=self.task, class_names=names)


def _relative_error(restored: Tensor, exact: Tensor) -> Tensor:
    """Squared error (B,) of a feature map over the variance of the true one."""
    error, exact = (restored.float() - exact).square().flatten(1).mean(1), exact.float()
    return error / exact.var().clamp(min=1e-12)


def map_name(config: DenseDecoderConfig) -> str:
    """What a dense decoder's maps are called: like the teacher's task, or like their kind."""
    return config.teacher_task or config.map_kind


def build_dense_decoder(recipe: DenseDecoderModelRecipe, teacher: TaskModel) -> DenseDecoderModel:
    """Dense decoder of a recipe with its teacher's head, at the point that training starts from.

    Args:
        recipe: what to train.
        teacher: with its backbone; it is not changed.

    Raises:
        FileNotFoundError: there are no such weights.
        RecipeError: the configuration is not valid, describes the teacher a second time, or weights do not fit.
    """
    values = dict(recipe.config)
    size = values.get("image_size", getattr(teacher.model.config, "image_size", None))
    if not isinstance(size, int):
        raise RecipeError(f"model.config.image_size must be given, as the teacher has no single one (it has {size!r}).")
    try:
        described = describe_teacher(teacher, size)
    except (ValueError, RuntimeError) as error:
        raise RecipeError(f"model.teacher cannot take images of {size} x {size} pixels: {error}") from error
    # DPT does not say whether its depth is in metres: there the kind is the recipe's to give.
    given = sorted((described.keys() - {"image_size", "map_kind"}) & values.keys())
    if given:
        raise RecipeError(f"model.config must leave {given} out: they follow from model.teacher.")
    mean, std = _normalization(recipe)
    identity = {"teacher_name": recipe.teacher, "teacher_revision": recipe.teacher_revision}
    if recipe.backbone_from_teacher:
        values["backbone_config"] = _backbone_config(teacher)
    fields = described | identity | {"image_mean": mean, "image_std": std} | values
    model = DenseDecoderModel(build_config(DenseDecoderConfig, fields, "the recipe"))
    model.load_head(teacher)
    if recipe.backbone_weights is not None:
        encoder: Any = model.encoder
        load_backbone_weights(encoder, recipe.backbone_weights)
    if recipe.backbone_from_teacher:
        encoder = model.encoder
        encoder.backbone.load_state_dict(teacher.backbone.state_dict())
    return model


def _backbone_config(teacher: TaskModel) -> Any:
    config = copy.deepcopy(getattr(teacher.model.config, "backbone_config", None))
    if config is None:
        raise RecipeError(
            f"model.backbone_from_teacher needs a teacher with a backbone_config, which {teacher.model_class} has not "
            "here; set model.config.backbone_config."
        )
    if hasattr(config, "reshape_hidden_states"):
        config.reshape_hidden_states = True  # maps in place of sequences
    return config


def _normalization(recipe: DenseDecoderModelRecipe) -> tuple[list[float] | None, list[float] | None]:
    """Mean and standard deviation that the teacher expects; None where pixels stay in [0, 1]."""
    if recipe.image_mean is not None or recipe.image_std is not None:
        return recipe.image_mean, recipe.image_std
    try:
        processor = AutoImageProcessor.from_pretrained(recipe.teacher, revision=recipe.teacher_revision or "main")
    except (OSError, ValueError):  # a folder without one
        return None, None
    return (list(processor.image_mean), list(processor.image_std)) if processor.do_normalize else (None, None)


def load_teacher(recipe: DenseDecoderModelRecipe) -> tuple[TaskModel, DenseDecoderModelRecipe]:
    """The recipe's teacher, and the recipe with its fingerprint.

    Raises:
        RecipeError: there is no such model, or its weights are not those of the recipe's fingerprint.
    """
    try:
        teacher = load_task_model(recipe.teacher, recipe.teacher_revision, recipe.teacher_task)
    except (OSError, ValueError) as error:
        raise RecipeError(f"model.teacher {recipe.teacher!r} cannot be loaded: {error}") from error
    found = fingerprint(teacher)
    if recipe.teacher_fingerprint not in (None, found):
        raise RecipeError(
            f"model.teacher {recipe.teacher!r} has changed: its fingerprint is {found}, not the recipe's "
            f"{recipe.teacher_fingerprint}; give the teacher that was meant, or leave model.teacher_fingerprint out."
        )
    return teacher, replace(recipe, teacher_fingerprint=found)


def train_dense_decoder(recipe: DenseDecoderRecipe) -> Path:
    """Train a dense decoder; returns the folder of the trained model.

    Raises:
        RecipeError: the recipe does not fit the teacher, the data or the processes; or a resumed run's teacher changed.
        FileExistsError: the run's folder is in use.
    """
    accelerator = make_accelerator(recipe.run)
    with accelerator.main_process_first():
        teacher, described = load_teacher(recipe.model)
    recipe = replace(recipe, model=described)  # the run's folder then says which teacher it was
    set_seed(recipe.run.seed)
    model = build_dense_decoder(recipe.model, teacher)
    name = map_name(model.config)
    labels = {name: model.config.kind} if recipe.data.columns else {}
    with accelerator.main_process_first():
        train_rows = load_dense_rows(replace(recipe.data, columns={}), {})[0]
        eval_rows = load_dense_rows(recipe.data, labels)[1]
    task = DenseDecoderTask(model, teacher, train_rows, eval_rows, recipe)
    task.fit_start()
    return train(task, recipe, accelerator)
