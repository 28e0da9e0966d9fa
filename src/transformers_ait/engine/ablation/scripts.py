"""The training scripts that a suite may name: recipe, function, cost. A new one is an entry here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..recipes.dense_decoder import DenseDecoderRecipe
from ..recipes.joint import JointRecipe
from ..recipes.scripts import DenseRecipe, DepthRecipe, InstanceRecipe, VQVAERecipe
from ..tasks.dense import train_dense
from ..tasks.dense_decoder import train_dense_decoder
from ..tasks.instances import train_instance
from ..tasks.joint import train_joint
from ..tasks.vqvae import train_vqvae


@dataclass(frozen=True)
class Script:
    """A training script.

    Args:
        recipe: class of its recipes.
        train: what it calls; returns the folder of the trained model.
        seconds_per_step: on one core of an AMD EPYC, for the recipes `training/suites/recipes/*.yaml`; used before
            anything was timed.
        is_tokenizer: whether its models reconstruct maps by themselves.
    """

    recipe: type[Any]
    train: Callable[[Any], Path]
    seconds_per_step: float
    is_tokenizer: bool = False


SCRIPTS = {
    "vqvae": Script(VQVAERecipe, train_vqvae, 0.06, is_tokenizer=True),
    "dense_decoder": Script(DenseDecoderRecipe, train_dense_decoder, 0.3, is_tokenizer=True),
    "depth": Script(DepthRecipe, train_dense, 0.25),
    "dense": Script(DenseRecipe, train_dense, 0.3),
    "instance": Script(InstanceRecipe, train_instance, 0.4),
    "joint": Script(JointRecipe, train_joint, 0.5),
}
