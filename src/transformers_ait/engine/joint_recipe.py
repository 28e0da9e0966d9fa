"""Recipe of joint training: instances and depth with one set of weights."""

from dataclasses import dataclass, field

from huggingface_hub.dataclasses import strict

from .recipes import (
    AugmentationRecipe,
    DataRecipe,
    DepthModelRecipe,
    DepthRecipe,
    InstanceAugmentationRecipe,
    InstanceModelRecipe,
    InstanceRecipe,
    OptimRecipe,
    RecipeError,
    RunRecipe,
)


@strict
@dataclass
class MixRecipe:
    """Ratio of the two tasks' images in every optimiser step; `run.batch_size` is a multiple of its smallest terms.

    Args:
        instance: images with objects.
        depth: images with depth maps.
    """

    instance: int = 60
    depth: int = 4

    def validate_terms(self) -> None:
        """Both tasks take part."""
        if min(self.instance, self.depth) < 1:
            raise ValueError(f"instance and depth must be at least 1, got {self.instance} and {self.depth}")


@strict
@dataclass
class JointModelRecipe(InstanceModelRecipe):
    """What to train: the fields of `InstanceModelRecipe`, where `config.tasks` holds instance and depth, default first.

    Without `image_mean` and `image_std`, images of instances are normalised by ImageNet's and those of depth stay in
    [0, 1], as published.

    Args:
        depth_tokenizer: folder of a trained VQ-VAE of depth maps.
    """

    depth_tokenizer: str | None = None


@strict
@dataclass
class JointRecipe:
    """Recipe of `training/run_joint.py`: a task-solver for instances and depth."""

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
        """What the loop asks for its data-loading processes, which serve both tasks."""
        return self.instance_data


def instance_part(recipe: JointRecipe) -> InstanceRecipe:
    """What `InstanceTask` needs of a joint recipe."""
    model = InstanceModelRecipe(image_mean=recipe.model.image_mean, image_std=recipe.model.image_std)
    return InstanceRecipe(recipe.instance_data, recipe.optim, recipe.run, model, recipe.instance_augmentation)


def depth_part(recipe: JointRecipe) -> DepthRecipe:
    """What `DepthTask` needs of a joint recipe."""
    model = DepthModelRecipe(image_mean=recipe.model.image_mean, image_std=recipe.model.image_std)
    return DepthRecipe(recipe.depth_data, recipe.optim, recipe.run, model, recipe.depth_augmentation)


def check_joint_tasks(recipe: JointModelRecipe) -> None:
    """Check that a recipe trains both tasks.

    Raises:
        RecipeError: it does not.
    """
    tasks = list(recipe.config.get("tasks", []))
    if sorted(tasks) != ["depth", "instance"]:
        raise RecipeError(f"model.config.tasks must be [instance, depth] or [depth, instance], got {tasks}.")
