"""`transformers-ait train TASK RECIPE`: what the scripts `training/run_*.py` do."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from ..engine.recipes.dense_decoder import DenseDecoderRecipe
from ..engine.recipes.joint import JointRecipe
from ..engine.recipes.reading import run_from_command_line
from ..engine.recipes.scripts import DenseRecipe, DepthRecipe, InstanceRecipe, VQVAERecipe
from ..engine.tasks.dense import train_dense
from ..engine.tasks.dense_decoder import train_dense_decoder
from ..engine.tasks.instances import train_instance
from ..engine.tasks.joint import train_joint
from ..engine.tasks.pose import PoseRecipe, train_pose
from ..engine.tasks.vqvae import train_vqvae

TASKS: dict[str, tuple[type[Any], Callable[[Any], Any], str]] = {
    "vqvae": (VQVAERecipe, train_vqvae, "A tokenizer of maps of one kind, or of instance masks."),
    "dense_decoder": (
        DenseDecoderRecipe,
        train_dense_decoder,
        "A tokenizer that looks at the image (UniPixTask), by a trained task model.",
    ),
    "dense": (DenseRecipe, train_dense, "One model for any set of dense tasks."),
    "depth": (DepthRecipe, train_dense, "The task-solver for depth."),
    "instance": (InstanceRecipe, train_instance, "The task-solver for detection or instance segmentation."),
    "joint": (JointRecipe, train_joint, "One task-solver for objects and dense tasks."),
    "pose": (PoseRecipe, train_pose, "Pose lifting: 2-D joints of videos to 3-D."),
}


def build_parser() -> argparse.ArgumentParser:
    """Options of the command itself; what follows the task is the recipe's."""
    width = max(map(len, TASKS))
    listed = "\n".join(f"  {name:{width}}  {purpose}" for name, (_, _, purpose) in TASKS.items())
    parser = argparse.ArgumentParser(
        prog="transformers-ait train",
        usage="transformers-ait train TASK RECIPE [--section.key VALUE ...]",
        description="Train by a recipe, a YAML file such as those in training/recipes.",
        epilog=f"tasks:\n{listed}\n\n`transformers-ait train TASK --help` lists the keys of its recipes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", choices=TASKS, metavar="TASK", help="one of those below")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Train; returns the exit status 0, and raises SystemExit 2 for what the user can correct."""
    recipe_class, run, purpose = TASKS[build_parser().parse_args(arguments[:1]).task]
    run_from_command_line(recipe_class, run, purpose, arguments[1:])
    return 0
