"""Recipe of UniPixTask's dense decoders."""

from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.dataclasses import strict

from .scripts import AugmentationRecipe, RestartRecipe
from .sections import DataRecipe, OptimRecipe, RunRecipe


@strict
@dataclass
class DenseDecoderModelRecipe:
    """What to train, and the task model that it learns from.

    Args:
        teacher: folder or name on the Hub of a trained task model, see `TASK_MODELS` in `teachers_ait.py`.
        teacher_revision: its revision on the Hub.
        teacher_task: which of its tasks, where it has several; None is the first.
        teacher_fingerprint: SHA-256 of its weights, which training writes into `recipe.yaml`: a run is not resumed with
            another teacher. Given by hand, the teacher must have it.
        config: fields of `DenseDecoderConfig` that do not follow from the teacher.
        backbone_from_teacher: the encoded mapping's backbone starts as a copy of the teacher's, and has its
            configuration.
        backbone_weights: pretrained weights of a timm backbone, a file or `package:NAME`; None starts at random.
        image_mean: mean of each channel that the teacher expects; None is what its image processor says.
        image_std: standard deviation likewise.
    """

    teacher: str
    teacher_revision: str | None = None
    teacher_task: str | None = None
    teacher_fingerprint: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    backbone_from_teacher: bool = False
    backbone_weights: str | None = None
    image_mean: list[float | int] | None = None
    image_std: list[float | int] | None = None

    def validate_start(self) -> None:
        """A backbone starts from one thing."""
        if self.backbone_from_teacher and (self.backbone_weights or "backbone_config" in self.config):
            raise ValueError(
                "backbone_from_teacher copies a whole backbone: leave backbone_weights and config out of it"
            )


@strict
@dataclass
class DenseDecoderRecipe:
    """Recipe of `training/run_dense_decoder.py`: a dense decoder, trained by a task model on images without labels.

    Of `data.columns`, `{TASK: COLUMN}` with the teacher's task, or the kind of its maps where it has one task, names
    labels that evaluation also measures against; without it only images are read.
    """

    model: DenseDecoderModelRecipe
    data: DataRecipe
    optim: OptimRecipe
    run: RunRecipe
    augmentation: AugmentationRecipe = field(default_factory=AugmentationRecipe)
    restart: RestartRecipe = field(default_factory=RestartRecipe)
