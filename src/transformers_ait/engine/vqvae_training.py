"""Training of a depth tokenizer."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from transformers import PreTrainedModel

from ..configuration_ait import AiTVQVAEConfig
from ..data.augmentation_depth import depth_map_transform
from ..data.patch_mask import RandomPatchMask
from ..distributed_ait import mean_over_processes
from ..image_processing_ait_depth import MIN_DEPTH
from ..modeling_ait_vqvae import AiTVQVAEModel
from ..visualization import DepthPanelRow, depth_panel
from .depth_data import DepthPairs, evaluate_depth, load_depth_pairs
from .loop import make_accelerator, train
from .recipes import VQVAERecipe, build_config
from .sampling import Sample


class VQVAEDepthTask:
    """Reconstruct depth maps from inputs with masked patches.

    Args:
        model: the tokenizer.
        train_rows: training data.
        eval_rows: evaluation data.
        recipe: the run's recipe.
    """

    def __init__(
        self, model: AiTVQVAEModel, train_rows: DepthPairs, eval_rows: DepthPairs, recipe: VQVAERecipe
    ) -> None:
        self.model = model
        self.restart = recipe.restart
        self.config = model.config
        self.train_rows = train_rows
        self.eval_rows = eval_rows
        self.num_rows = len(train_rows)
        self.num_eval = min(len(eval_rows), recipe.data.eval_limit or len(eval_rows))
        self.eval_batch = recipe.data.eval_batch
        self.panels = recipe.run.panels
        self.transform = depth_map_transform(self.config.image_size)
        self.patch_mask = RandomPatchMask(recipe.patch_mask.patch_size, recipe.patch_mask.ratio)

    def sample(self, index: int) -> Sample:
        """Masked input and whole target, (1, S, S) metres each."""
        target = self.transform(tv_tensors.Mask(self.train_rows.depth(index))).as_subclass(Tensor)
        return {"pixel_values": self.patch_mask(target), "labels": target}

    def weight(self, batch: Sample) -> Tensor:
        """Number of pixels in the reconstruction loss."""
        return (batch["labels"] > 0).sum() if self.config.ignore_zero else torch.tensor(batch["labels"].numel())

    def loss(self, model: nn.Module, batch: Sample, share: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction, as one mean over the valid pixels of the whole batch, plus commitment."""
        output = model(**batch)
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

    def after_step(self, batch: Sample, step: int, steps: int) -> None:
        """Restart dead codes, as the recipe says."""
        if self.restart.every and step % self.restart.every == 0 and step <= self.restart.until * steps:
            inputs = batch["pixel_values"].to(self.model.device)
            self.model.restart_dead_codes(inputs, self.restart.min_cluster_size)

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> tuple[dict[str, float], Image.Image | None]:
        """Depth metrics of reconstructed whole maps, from unmasked inputs."""

        def predict(indices: list[int]) -> tuple[list[Tensor], list[Tensor]]:
            targets = [self._eval_depth(index) for index in indices]
            output = model(torch.stack(targets).to(accelerator.device))
            predictions = output.reconstruction.float().clamp(min=MIN_DEPTH).cpu()
            return list(predictions[:, 0]), [target[0] for target in targets]

        metrics = evaluate_depth(self.num_eval, predict, self.eval_batch, accelerator)
        shown = list(range(min(self.panels, self.num_eval)))
        rows = []
        if shown:
            predictions, targets = predict(shown)
            for index, depth, truth in zip(shown, predictions, targets, strict=True):
                image = self.eval_rows.image(index)[:, : truth.shape[0], : truth.shape[1]]
                rows.append(DepthPanelRow(image.permute(1, 2, 0).numpy(), depth, truth))
        return metrics, depth_panel(rows) if rows and accelerator.is_main_process else None

    def save(self, model: PreTrainedModel, state_dict: dict[str, Tensor], folder: Path) -> None:
        """The tokenizer, as `AiTVQVAEModel.from_pretrained` reads it."""
        model.save_pretrained(folder, state_dict=state_dict)

    def _eval_depth(self, index: int) -> Tensor:
        """Depth (1, H, W), cut at bottom and right to whole tokens."""
        depth = self.eval_rows.depth(index)
        height, width = (side - side % self.config.downsample_ratio for side in depth.shape[1:])
        return depth[:, :height, :width]


def train_vqvae(recipe: VQVAERecipe) -> Path:
    """Train a depth tokenizer; returns the folder of the trained model.

    Raises:
        RecipeError: the recipe does not fit the model, the data or the processes.
        FileExistsError: the run's folder is in use.
    """
    config = build_config(AiTVQVAEConfig, recipe.model.config, "the recipe")
    accelerator = make_accelerator(recipe.run)
    with accelerator.main_process_first():
        train_rows, eval_rows = load_depth_pairs(recipe.data)
    set_seed(recipe.run.seed)
    model = AiTVQVAEModel(config)
    return train(VQVAEDepthTask(model, train_rows, eval_rows, recipe), recipe, accelerator)
