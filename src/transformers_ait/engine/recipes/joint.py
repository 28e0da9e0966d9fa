"""Recipe of joint training: objects and dense tasks with one set of weights."""

from dataclasses import dataclass, field

from huggingface_hub.dataclasses import strict

from ...configuration_dense_tasks import OBJECT_TASKS
from .reading import RecipeError
from .scripts import (
    AugmentationRecipe,
    DepthModelRecipe,
    DepthRecipe,
    InstanceAugmentationRecipe,
    InstanceModelRecipe,
    InstanceRecipe,
)
from .sections import DataRecipe, OptimRecipe, RunRecipe

DENSE_GROUP = "depth"  # what recipes call the images with maps


@strict
@dataclass
class MixRecipe:
    """Ratio of the tasks' images in every optimiser step; `run.batch_size` is a multiple of its smallest terms.

    Args:
        instance: images with objects and masks.
        depth: images with maps, which train all dense tasks.
        detection: images with objects.
    """

    instance: int = 60
    depth: int = 4
    detection: int = 0

    def validate_terms(self) -> None:
        """Objects and maps both take part."""
        if min(self.instance, self.detection) < 0 or min(self.instance + self.detection, self.depth) < 1:
            raise ValueError(
                f"depth, and instance or detection, must be at least 1, and none negative; got depth={self.depth}, "
                f"instance={self.instance}, detection={self.detection}"
            )

    def groups(self) -> dict[str, int]:
        """Images of each group that takes part; that of the dense tasks comes last."""
        images = {"instance": self.instance, "detection": self.detection, DENSE_GROUP: self.depth}
        return {name: count for name, count in images.items() if count}


@strict
@dataclass
class JointModelRecipe(InstanceModelRecipe):
    """What to train: the fields of `InstanceModelRecipe`, where `config.tasks` holds all tasks, default first.

    Without `image_mean` and `image_std`, images of objects are normalised by ImageNet's and those of maps stay in
    [0, 1], as published. A model with a task of classes has one table of classes: the objects' are among its names.

    Args:
        depth_tokenizer: the tokenizer of the task "depth", as in `tokenizers`.
        tokenizers: as in `DenseModelRecipe`.
        align_positions: as in `DenseModelRecipe`.
        dense_decoder_fingerprints: as in `DenseModelRecipe`.
    """

    depth_tokenizer: str | None = None
    tokenizers: dict[str, str] = field(default_factory=dict)
    align_positions: bool = False
    dense_decoder_fingerprints: dict[str, str] = field(default_factory=dict)


@strict
@dataclass
class JointRecipe:
    """Recipe of `training/run_joint.py`: a task-solver for objects and dense tasks, whose data is `depth_data`."""

    instance_data: DataRecipe
    depth_data: DataRecipe
    optim: OptimRecipe
    run: RunRecipe
    mix: MixRecipe = field(default_factory=MixRecipe)
    model: JointModelRecipe = field(default_factory=JointModelRecipe)
    instance_augmentation: InstanceAugmentationRecipe = field(default_factory=InstanceAugmentationRecipe)
    depth_augmentation: AugmentationRecipe = field(default_factory=AugmentationRecipe)

    @property
    def data(self) -> DataRecipe:
        """What the loop asks for its data-loading processes, which serve all tasks."""
        return self.instance_data


def instance_part(recipe: JointRecipe) -> InstanceRecipe:
    """What `InstanceTask` needs of a joint recipe."""
    model = InstanceModelRecipe(image_mean=recipe.model.image_mean, image_std=recipe.model.image_std)
    return InstanceRecipe(recipe.instance_data, recipe.optim, recipe.run, model, recipe.instance_augmentation)


def dense_part(recipe: JointRecipe) -> DepthRecipe:
    """What `DenseTask` needs of a joint recipe."""
    whole = recipe.model
    model = DepthModelRecipe(
        image_mean=whole.image_mean,
        image_std=whole.image_std,
        tokenizers=whole.tokenizers,
        depth_tokenizer=whole.depth_tokenizer,
    )
    return DepthRecipe(recipe.depth_data, recipe.optim, recipe.run, model, recipe.depth_augmentation)


def check_joint_tasks(recipe: JointRecipe) -> None:
    """Check that a recipe trains objects and maps, and that its mix is of its tasks.

    Raises:
        RecipeError: it does not.
    """
    if recipe.model.finetune is not None:
        raise RecipeError("model.finetune is not for joint training; describe the model, and set initialize_from.")
    tasks = list(recipe.model.config.get("tasks") or [])
    objects = [task for task in tasks if task in OBJECT_TASKS]
    if not objects or len(objects) == len(tasks):
        raise RecipeError(
            f"model.config.tasks must name one of {list(OBJECT_TASKS)} and a dense task, such as [instance, depth], "
            f"got {tasks}."
        )
    mixed = recipe.mix.groups().keys() - {DENSE_GROUP}
    if mixed != set(objects):
        raise RecipeError(
            f"mix must give images to the object tasks of model.config.tasks, {objects}, and to no others, got "
            f"{sorted(mixed)}."
        )
