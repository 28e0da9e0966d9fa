"""Training codes of images, for task-solvers whose tokenizers are dense decoders (UniPixTask's sequence learner)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...modeling_ait import AiTForDenseAndInstancePrediction
from ...modeling_dense_decoder import DenseDecoderModel
from ...teacher_loading_ait import weights_fingerprint
from ..recipes.reading import RecipeError
from ..recipes.tokenizers import load_dense_decoder

Model = TypeVar("Model", bound=Any)
STORED_PRECISION = 2.0**-7  # relative, of the coarsest type that a model is stored in


class ImageCodes:
    """What whole dense decoders make of images, by task; the task-solver holds of each only what decodes.

    Args:
        models: dense decoders by task, frozen.
    """

    def __init__(self, models: Mapping[str, DenseDecoderModel]) -> None:
        self.models = dict(models)

    def codes(self, images: Tensor) -> dict[str, Tensor]:
        """Codes (B, h, w) by task of images (B, 3, H, W) in [0, 1], normalised as each task's teacher expects it."""
        return {task: self._encode(model, images) for task, model in self.models.items()}

    @torch.no_grad()
    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Predicted native maps (B, [C,] S, S) by task of images (B, 3, H, W) in [0, 1]."""
        found = {}
        for task, codes in self.codes(images).items():
            model = self.models[task]
            found[task] = model.config.kind.from_tokenizer(model.decode(codes).float())
        return found

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the weights by task."""
        return {task: weights_fingerprint(model) for task, model in self.models.items()}

    @torch.no_grad()
    def _encode(self, model: DenseDecoderModel, images: Tensor) -> Tensor:
        # transformers decorates `to` in a way that type checkers do not see through.
        model.to(images.device)  # type: ignore[arg-type]
        # Codes are exact, whatever precision the training has.
        with torch.autocast(images.device.type, enabled=False):
            return model.encode(model.normalize(images.float()))


def image_tasks(config: Any) -> list[str]:
    """Dense tasks of a model whose codes are made of images, and so need no labels."""
    specs = config.dense.items()
    return [task for task, spec in specs if getattr(getattr(spec, "tokenizer_config", None), "encodes_images", False)]


def with_image_codes(recipe: Model, model: Any) -> tuple[Model, ImageCodes | None]:
    """The dense decoders that a recipe's model learns from, and the recipe's section with their fingerprints.

    Args:
        recipe: a recipe's `model` section.
        model: built of it.

    Returns:
        The section, and None where no tokenizer is a dense decoder.

    Raises:
        FileNotFoundError: a dense decoder's folder holds no model.
        RecipeError: a task names none, or its weights are not those of the recipe's fingerprint.
    """
    tasks = image_tasks(model.config)
    if not tasks:
        return recipe, None
    found = ImageCodes({task: load_dense_decoder(recipe, task) for task in tasks})
    prints = found.fingerprints()
    for task, known in recipe.dense_decoder_fingerprints.items():
        if prints.get(task) not in (None, known):
            raise RecipeError(
                f"The dense decoder of {task!r} has changed: its fingerprint is {prints[task]}, not {known} as "
                f"model.dense_decoder_fingerprints.{task} says; give the one that was meant, or leave that out."
            )
    return replace(recipe, dense_decoder_fingerprints=prints), found


def check_same_dense_decoders(codes: ImageCodes | None, folder: str) -> None:
    """Raise where a model is to go on with other dense decoders than it was trained with.

    Args:
        codes: the recipe's dense decoders.
        folder: of the trained model.

    Raises:
        RecipeError: another teacher, or another codebook.
    """
    if codes is None:
        return
    earlier: Any = AiTForDenseAndInstancePrediction.from_pretrained(folder)
    for task, model in codes.models.items():
        if task not in earlier.config.dense or not earlier.config.dense[task].tokenizer_config.encodes_images:
            continue
        learnt = earlier.tokenizer(task)
        before, now = (str(x.config.teacher_fingerprint)[:12] for x in (learnt, model))
        old, new = learnt.quantizer.codebook, model.quantizer.codebook
        if before != now:
            difference = f"the teacher has changed, its fingerprint was {before}... and is {now}..."
        elif old.shape != new.shape:
            difference = f"the codebook was {tuple(old.shape)} and is {tuple(new.shape)}"
        elif not torch.allclose(old, new, rtol=STORED_PRECISION, atol=1e-6):
            difference = "the code vectors are others"
        else:
            continue
        raise RecipeError(
            f"model.finetune {folder} was trained on the codes of another dense decoder of {task!r}: {difference}. "
            f"Name the one that it was trained with, or train anew (model.initialize_from)."
        )


def flat_views(views: Tensor) -> tuple[Tensor, Sequence[int]]:
    """Views (B * V, 3, S, S) of an image processor's (B, [V,] 3, S, S), and the axes (B,) or (B, V) to unflatten to."""
    return views.flatten(0, -4), views.shape[:-3]
