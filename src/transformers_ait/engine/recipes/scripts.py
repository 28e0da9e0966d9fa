"""Recipes of the training scripts, as typed sections; `recipes` reads them."""

from dataclasses import dataclass, field
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .sections import DataRecipe, OptimRecipe, RunRecipe


@strict
@dataclass
class VQVAEModelRecipe:
    """What to train.

    Args:
        config: fields of `AiTVQVAEConfig`.
        class_names: of maps of classes in the order of their ids, in place of `id2label` in `config`.
    """

    config: dict[str, Any] = field(default_factory=dict)
    class_names: list[str] | None = None

    def config_values(self) -> dict[str, Any]:
        """`config` with the class names."""
        names = {} if self.class_names is None else {"id2label": dict(enumerate(self.class_names))}
        return self.config | names


@strict
@dataclass
class PatchMaskRecipe:
    """Mask augmentation of the VQ-VAE's input (AiT, arXiv 2301.02229).

    Args:
        ratio: share of patches made invalid, rounded up; 0 turns it off.
        patch_size: side of a patch in pixels.
    """

    ratio: float | int = 0.5
    patch_size: int = 16

    def validate_patches(self) -> None:
        """A share, and whole pixels."""
        if self.patch_size < 1 or not 0 <= self.ratio <= 1:
            raise ValueError(
                f"patch_size must be at least 1 and ratio lie in [0, 1], got {self.patch_size} and {self.ratio}"
            )


@strict
@dataclass
class RestartRecipe:
    """Restart of dead codes while the VQ-VAE is young; not in the original, but short trainings need it.

    Args:
        every: steps between restarts; 0 turns them off.
        until: share of the run after which the codebook is left alone.
        min_cluster_size: codes with a smaller moving-average cluster are restarted.
    """

    every: int = 0
    until: float | int = 0.7
    min_cluster_size: float | int = 0.2


@strict
@dataclass
class VQVAERecipe:
    """Recipe of `training/run_vqvae.py`: a tokenizer of maps of one kind, or of box crops of instance masks.

    The kind is that of `model.config` (`map_kind`); masks need the data's column `objects`, others the column that
    `data.columns` gives the kind, or one that is called like it.

    Args:
        maps: "depth" or "masks", of older recipes; must agree with the kind.
    """

    data: DataRecipe
    optim: OptimRecipe
    run: RunRecipe
    maps: Literal["depth", "masks"] | None = None
    model: VQVAEModelRecipe = field(default_factory=VQVAEModelRecipe)
    patch_mask: PatchMaskRecipe = field(default_factory=PatchMaskRecipe)
    restart: RestartRecipe = field(default_factory=RestartRecipe)


@strict
@dataclass
class SolverModelRecipe:
    """What the recipes of all task-solvers say of the model.

    Args:
        config: fields of `AiTConfig`.
        backbone_weights: pretrained weights of a timm backbone, a file or `package:NAME`; None starts at random.
        initialize_from: folder of an earlier run to start from. Its tokenizers serve the tasks that the recipe names
            none for.
        finetune: folder of a trained task-solver to go on with, in place of `initialize_from`: all its weights, its
            configuration, of which `config` changes fields or takes some of the `tasks`, its tokenizers, and the mean
            and standard deviation of its image processor. Not for joint training.
        image_mean: mean of each channel that the backbone expects.
        image_std: standard deviation likewise.
    """

    config: dict[str, Any] = field(default_factory=dict)
    backbone_weights: str | None = None
    initialize_from: str | None = None
    finetune: str | None = None
    image_mean: list[float | int] | None = None
    image_std: list[float | int] | None = None

    def validate_start(self) -> None:
        """A trained model starts from all of its own weights."""
        others = ("initialize_from", "backbone_weights", "align_positions", "plain")
        given = [name for name in others if getattr(self, name, None)]
        if self.finetune is not None and given:
            raise ValueError(f"finetune goes on with a whole trained model: leave {given} out")

    def validate_normalization(self) -> None:
        """Mean and standard deviation come together, one value per channel."""
        given = [values for values in (self.image_mean, self.image_std) if values is not None]
        if len(given) == 1 or any(len(values) != 3 for values in given) or 0 in (self.image_std or []):
            raise ValueError(
                "image_mean and image_std must both be given, three values each and no deviation of 0, got "
                f"{self.image_mean} and {self.image_std}"
            )


@strict
@dataclass
class DenseModelRecipe(SolverModelRecipe):
    """What to train: the fields of `SolverModelRecipe`.

    `config.dense_tasks` lists name, kind, loss weights and class names of every task. `initialize_from` gives backbone,
    encoder and decoder; without `image_mean` and `image_std` pixels stay in [0, 1].

    Args:
        tokenizers: by task the folder of a trained VQ-VAE, of a dense decoder (UniPixTask), or of a task-solver that
            holds one for the same task; of its configuration a task's `tokenizer_config` may then give `tau` alone. A
            task that is not named needs a `tokenizer_config` of model_type "ait_bin_tokenizer", since an untrained
            VQ-VAE is no tokenizer. Tasks of a dense decoder are trained on images without labels.
        dense_decoder_fingerprints: SHA-256 of the weights of every dense decoder, which training writes into
            `recipe.yaml`: a run is not resumed with another one. Given by hand, the dense decoder must have it.
        align_positions: let every token attend to its own place of the image from the start.
        plain: train `AiTPlainDenseModel` in its place, the baseline without tokens; `config` holds fields of
            `AiTPlainDenseConfig`.
    """

    tokenizers: dict[str, str] = field(default_factory=dict)
    align_positions: bool = False
    plain: bool = False
    dense_decoder_fingerprints: dict[str, str] = field(default_factory=dict)

    def validate_plain(self) -> None:
        """The baseline has no tokens."""
        if self.plain and (self.tokenizers or self.align_positions or self.initialize_from is not None):
            raise ValueError("plain models have no tokens: leave tokenizers, align_positions and initialize_from out")


@strict
@dataclass
class AugmentationRecipe:
    """The training augmentation of image and maps.

    Args:
        strip: probability of a vertical strip of the depth map over the image, where there is one.
        flip: probability of a horizontal flip.
        colour: probability of each of brightness-contrast, gamma and hue-saturation-value.
        scale: least and largest factor that images and maps are resized by before they are cropped.
    """

    strip: float | int = 0.25
    flip: float | int = 0.5
    colour: float | int = 0.5
    scale: list[float | int] = field(default_factory=lambda: [1.0, 1.0])

    def validate_scale(self) -> None:
        """Two positive factors, the least first."""
        _check_scale(self.scale)


@strict
@dataclass
class DenseRecipe:
    """Recipe of `training/run_dense.py`: a task-solver for any set of dense tasks."""

    data: DataRecipe
    optim: OptimRecipe
    run: RunRecipe
    model: DenseModelRecipe = field(default_factory=DenseModelRecipe)
    augmentation: AugmentationRecipe = field(default_factory=AugmentationRecipe)


@strict
@dataclass
class DepthModelRecipe(DenseModelRecipe):
    """What to train: the fields of `DenseModelRecipe`.

    Args:
        depth_tokenizer: the tokenizer of the task "depth", as in `tokenizers`.
    """

    depth_tokenizer: str | None = None


@strict
@dataclass
class DepthRecipe(DenseRecipe):
    """Recipe of `training/run_depth.py`: a task-solver for depth."""

    model: DepthModelRecipe = field(default_factory=DepthModelRecipe)


@strict
@dataclass
class InstanceModelRecipe(SolverModelRecipe):
    """What to train: the fields of `SolverModelRecipe`.

    `config.tasks` is [detection] or [instance], and the classes are the data's. With `mask_tokenizer`,
    `config.mask_tokenizer_config` may hold `tau` alone; `initialize_from` gives backbone and encoder; without
    `image_mean` and `image_std` images are normalised by ImageNet's.

    Args:
        mask_tokenizer: folder of a trained VQ-VAE of masks, or of a task-solver that holds one, for instances.
        initialize_decoder: start from the earlier run's decoder too; a detection decoder also gives the places of boxes
            and classes in the longer sequences of instances.
    """

    mask_tokenizer: str | None = None
    initialize_decoder: bool = False


@strict
@dataclass
class InstanceAugmentationRecipe:
    """The training augmentation of image, boxes and masks.

    Args:
        scale: least and largest factor of large-scale jitter.
        flip: probability of a horizontal flip.
        colour: probability of other brightness, contrast, saturation and hue.
        background: probability that the objects are moved onto a picture of `backgrounds`.
        backgrounds: folders of pictures, or patterns of files, that show no object of the classes.
        paste: probability that objects of another image are pasted over this one (Simple Copy-Paste, arXiv 2012.07177).
    """

    scale: list[float | int] = field(default_factory=lambda: [0.1, 3.0])
    flip: float | int = 0.5
    colour: float | int = 0.0
    background: float | int = 0.0
    backgrounds: list[str] = field(default_factory=list)
    paste: float | int = 0.0

    def validate_backgrounds(self) -> None:
        """Pictures to move objects onto come from somewhere."""
        if self.background and not self.backgrounds:
            raise ValueError("background is how often backgrounds are used: name folders of pictures in backgrounds")

    def validate_scale(self) -> None:
        """Two positive factors, the least first."""
        _check_scale(self.scale)


@strict
@dataclass
class InstanceRecipe:
    """Recipe of `training/run_instance.py`: a task-solver for detection or instance segmentation."""

    data: DataRecipe
    optim: OptimRecipe
    run: RunRecipe
    model: InstanceModelRecipe = field(default_factory=InstanceModelRecipe)
    augmentation: InstanceAugmentationRecipe = field(default_factory=InstanceAugmentationRecipe)


def _check_scale(scale: list[float | int]) -> None:
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale must be two positive factors, the least first, got {scale}")
