"""Training of a tokenizer, of maps of any kind or of instance masks."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import PreTrainedModel

from ...coco_annotations_ait import annotation_box, annotation_mask, encode_masks
from ...configuration_tokenizers import AiTVQVAEConfig
from ...data.augmentation_dense import map_training_transform
from ...data.mask_crops import box_crop
from ...data.patch_mask import RandomPatchMask
from ...distributed_ait import mean_over_processes
from ...mask_geometry_ait import crop_masks, paste_masks
from ...modeling_ait_vqvae import AiTVQVAEModel
from ...visualization import PanelRow, dense_panel
from ..loop.processes import make_accelerator
from ..loop.sampling import Sample
from ..loop.streaming import RowStream
from ..loop.trainer import train
from ..recipes.reading import RecipeError, build_config
from ..recipes.scripts import VQVAERecipe
from .dense_data import DenseRows, MapsByTask, evaluate_maps, explain_crop, load_dense_rows
from .instance_data import InstanceRows, evaluate_objects, load_instance_rows
from .instance_panel import instance_panel


class VQVAETask(ABC):
    """Reconstruct maps; what dense maps and masks share.

    Args:
        model: the tokenizer.
        recipe: the run's recipe.
        num_rows: training samples.
        num_eval: rows of evaluation data there are.

    Raises:
        RecipeError: patches that do not fill the maps.
    """

    def __init__(self, model: AiTVQVAEModel, recipe: VQVAERecipe, num_rows: int, num_eval: int) -> None:
        self.model = model
        self.model.quantizer.deferred = True
        self.config: Any = model.config
        self.kind = model.config.kind
        self.stream: RowStream | None = None
        self.restart = recipe.restart
        self.num_rows = num_rows
        self.num_eval = min(num_eval, recipe.data.eval_limit or num_eval)
        self.eval_batch = recipe.data.eval_batch
        self.panels = min(recipe.run.panels, self.num_eval)
        side = recipe.patch_mask.patch_size
        if self.config.image_size % side:
            raise RecipeError(
                f"patch_mask.patch_size must divide model.config.image_size {self.config.image_size}, got {side}."
            )
        self.patch_mask = RandomPatchMask(recipe.patch_mask.patch_size, recipe.patch_mask.ratio)

    @property
    def eval_counts(self) -> dict[str, int]:
        """Rows of evaluation data by the recipe's section."""
        return {"data": self.num_eval}

    @abstractmethod
    def target(self, index: int) -> Tensor:
        """One augmented native map ([C,] S, S)."""

    @abstractmethod
    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> tuple[dict[str, float], Image.Image | None]:
        """Metrics of reconstructed evaluation data, from unmasked inputs, and a picture."""

    def sample(self, index: int) -> Sample:
        """Input with patches made invalid, and whole target, native maps ([C,] S, S) each."""
        target = self.target(index)
        kept = self.patch_mask(torch.ones(1, *target.shape[-2:]))[0] > 0
        return {"pixel_values": target.where(kept, self.kind.invalid), "labels": target}

    def collate(self, samples: list[Sample]) -> Sample:
        """Stack samples."""
        return default_collate(samples)

    def weight(self, batch: Sample) -> Tensor:
        """Number of pixels in the reconstruction loss."""
        return self.kind.valid(self._tokenizer_form(batch["labels"])).sum()

    def loss(self, model: nn.Module, batch: Sample, share: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction, as one mean over the valid pixels of the whole batch, plus commitment."""
        output = model(**{name: self._tokenizer_form(maps) for name, maps in batch.items()})
        reconstruction, commitment = output.reconstruction_loss, output.loss - output.reconstruction_loss
        weight = self.weight(batch).to(reconstruction)
        share = share * weight / mean_over_processes(weight).clamp(min=1)
        used = torch.zeros(self.config.num_codes, device=share.device).scatter_(0, output.codes.flatten(), 1.0)
        parts = {
            "reconstruction": (share * reconstruction).detach(),
            "commitment": commitment.detach(),
            "codes_used": used.mean(),
        }
        return share * reconstruction + commitment, parts

    def after_step(self, batches: list[Sample], step: int, steps: int) -> None:
        """Update the codebook once for the whole step, and restart dead codes as the recipe says."""
        self.model.quantizer.apply_update()
        if self.restart.every and step % self.restart.every == 0 and step <= self.restart.until * steps:
            inputs = [self._tokenizer_form(batch["pixel_values"].to(self.model.device)) for batch in batches]
            self.model.restart_dead_codes(inputs, self.restart.min_cluster_size)

    def save(self, model: PreTrainedModel, state_dict: dict[str, Tensor], folder: Path) -> None:
        """The tokenizer, as `AiTVQVAEModel.from_pretrained` reads it."""
        model.save_pretrained(folder, state_dict=state_dict)

    def _tokenizer_form(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) of native maps."""
        return self.kind.to_tokenizer(maps, self.config.num_channels)


class VQVAEMapTask(VQVAETask):
    """Reconstruct dense maps.

    Args:
        model: the tokenizer.
        train_rows: training data, whose only task is called like the kind.
        eval_rows: evaluation data.
        recipe: the run's recipe.
    """

    def __init__(self, model: AiTVQVAEModel, train_rows: DenseRows, eval_rows: DenseRows, recipe: VQVAERecipe) -> None:
        super().__init__(model, recipe, len(train_rows), len(eval_rows))
        self.stream = train_rows.stream
        self.train_rows = train_rows
        self.eval_rows = eval_rows
        self.transform = map_training_transform(self.config.image_size, self.kind)

    def target(self, index: int) -> Tensor:
        """A random crop of a map, ([C,] S, S)."""
        native = self._map(self.train_rows, index)
        with explain_crop(index, native):
            return self.transform(native)

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> tuple[dict[str, float], Image.Image | None]:
        """Figures of reconstructed whole maps."""
        name = self.kind.name

        def predict(indices: list[int]) -> tuple[list[MapsByTask], list[MapsByTask]]:
            targets = [self._eval_map(index) for index in indices]
            inputs = self._tokenizer_form(torch.stack(targets).to(accelerator.device))
            predicted = reconstructed_maps(model(inputs).reconstruction, self.config)
            return [{name: native.cpu()} for native in predicted], [{name: native} for native in targets]

        found = evaluate_maps(
            self.num_eval,
            predict,
            {name: self.kind},
            {name: self.config.num_channels},
            self.eval_batch,
            accelerator,
        )[name]
        shown = list(range(self.panels))
        rows = []
        for index, prediction, true in zip(shown, *predict(shown), strict=True) if shown else ():
            image = self.eval_rows.image(index)[:, : true[name].shape[-2], : true[name].shape[-1]]
            rows.append(PanelRow(image.permute(1, 2, 0).numpy(), prediction[name], true[name]))
        if not rows or not accelerator.is_main_process:
            return found, None
        return found, dense_panel(rows, self.kind, class_names=self.config.id2label)

    def _eval_map(self, index: int) -> Tensor:
        """A native map, cut at bottom and right to whole tokens."""
        native = self._map(self.eval_rows, index)
        height, width = (side - side % self.config.downsample_ratio for side in native.shape[-2:])
        return native[..., :height, :width]

    def _map(self, rows: DenseRows, index: int) -> Tensor:
        """A native map that the tokenizer can take.

        Raises:
            RecipeError: values, or a number of channels, that it cannot.
        """
        native, channels, name = rows.map(index, self.kind.name), self.config.num_channels, "The map"
        try:
            self.kind.check_shape(native[None], (1, native.shape[-2], native.shape[-1]), channels, name)
            self.kind.check(native[None], channels, name)
        except ValueError as error:
            row = f"row {index}" if isinstance(index, int) else "a streamed row"
            raise RecipeError(f"The map of {row} does not fit model.config: {error}") from error
        return native


def reconstructed_maps(reconstruction: Tensor, config: AiTVQVAEConfig) -> list[Tensor]:
    """Final native maps ([C,] H, W), as users read them, of what a tokenizer decoded.

    Args:
        reconstruction: (B, C, H, W).
        config: of the tokenizer.
    """
    maps = config.kind.from_tokenizer(reconstruction.float())
    return [config.kind.finish(config.kind.to_average(native), None) for native in maps]


class VQVAEMaskTask(VQVAETask):
    """Reconstruct box crops of instance masks, which are made on the fly; one sample is one object.

    Args:
        model: the tokenizer.
        train_rows: training data.
        eval_rows: evaluation data.
        recipe: the run's recipe.
    """

    def __init__(
        self, model: AiTVQVAEModel, train_rows: InstanceRows, eval_rows: InstanceRows, recipe: VQVAERecipe
    ) -> None:
        self.objects = train_rows.index_objects()
        super().__init__(model, recipe, len(self.objects), len(eval_rows))
        self.train_rows = train_rows
        self.eval_rows = eval_rows
        self.in_memory = recipe.data.in_memory
        self._crops: dict[int, Tensor] = {}

    def target(self, index: int) -> Tensor:
        """A crop (1, S, S) of one object's mask in [0, 1]."""
        if index in self._crops:
            return self._crops[index].float() / 255
        row, number = self.objects[index]
        entry, size = self.train_rows.annotations(row)[number], self.train_rows.size(row)
        where = f"Annotation {entry['id']} of row {row}"
        box = annotation_box(entry, size, where)
        assert box is not None, "index_objects leaves objects without area out"
        crop = box_crop(annotation_mask(entry, size, where), box, self.config.image_size)
        if self.in_memory:
            self._crops[index] = (crop * 255).round().byte()
        return crop

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> tuple[dict[str, float], Image.Image | None]:
        """Mask and boundary AP of re-encoded true masks: the ceiling that the tokenizer sets to a task-solver."""

        def predict(indices: list[int]) -> list[dict[str, Any]]:
            return reencode_masks(model, self.config.image_size, self.eval_rows, indices, accelerator.device)

        metrics = evaluate_objects(
            self.eval_rows, self.num_eval, predict, ("segm", "boundary"), self.eval_batch, accelerator
        )
        shown = list(range(self.panels))
        results = predict(shown) if shown else []
        picture = instance_panel(self.eval_rows, shown, results) if shown and accelerator.is_main_process else None
        return metrics, picture


def reencode_masks(
    model: nn.Module, size: int, rows: InstanceRows, indices: list[int], device: torch.device
) -> list[dict[str, Any]]:
    """COCO results, with score 1 and the true box and class, of true masks after encoding and decoding.

    Args:
        model: the tokenizer.
        size: side of its crops.
        rows: the data.
        indices: row numbers, which become image ids.
        device: where the tokenizer is.
    """
    found = [rows.objects(index) for index in indices]
    crops = torch.cat([crop_masks(objects.masks, objects.boxes, size) for objects in found])
    decoded = model(crops[:, None].to(device)).reconstruction[:, 0].float().cpu() if len(crops) else crops
    results = []
    for index, objects, values in zip(indices, found, decoded.split([len(x.boxes) for x in found]), strict=True):
        pasted = paste_masks(values, objects.boxes, *objects.masks.shape[1:])
        for label, mask in zip(objects.class_labels.tolist(), encode_masks(pasted), strict=True):
            results.append({"image_id": index, "category_id": label, "score": 1.0, "segmentation": mask})
    return results


def train_vqvae(recipe: VQVAERecipe) -> Path:
    """Train a tokenizer; returns the folder of the trained model.

    Raises:
        RecipeError: the recipe does not fit the model, the data or the processes.
        FileExistsError: the run's folder is in use.
    """
    config = build_config(AiTVQVAEConfig, recipe.model.config_values(), "the recipe")
    masks = config.kind.name == "mask"
    _check_maps(recipe, config)
    accelerator = make_accelerator(recipe.run)
    with accelerator.main_process_first():
        if masks:
            rows: Any = load_instance_rows(recipe.data)
        else:
            rows = load_dense_rows(recipe.data, {config.kind.name: config.kind}, resize_all=True)
    set_seed(recipe.run.seed)
    task_class: Any = VQVAEMaskTask if masks else VQVAEMapTask
    return train(task_class(AiTVQVAEModel(config), *rows, recipe), recipe, accelerator)


def _check_maps(recipe: VQVAERecipe, config: AiTVQVAEConfig) -> None:
    """Raise where an older recipe's `maps` is not the configuration's kind."""
    expected = {None: config.kind.name, "masks": "mask"}.get(recipe.maps, recipe.maps)
    if expected != config.kind.name:
        raise RecipeError(
            f"maps is {recipe.maps!r}, but model.config describes a tokenizer of kind {config.kind.name!r}; set "
            f"model.config.map_kind to {expected!r} (without it, model.config.ignore_zero must be false for masks)."
        )
