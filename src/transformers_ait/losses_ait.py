"""The losses of tokens and objects as pure functions; those of maps are in `map_kinds_ait`."""

import torch.nn.functional as F
from torch import Tensor

from .sequence_ait import CLASS_POSITION, HEADER_LENGTH, IGNORE_INDEX, NUM_COORDINATES


def token_cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every token over the full vocabulary, 0 where unsupervised.

    Args:
        logits: (B, L, V).
        targets: (B, L) ids, -100 where unsupervised.

    Returns:
        (B, L) float32.
    """
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return losses.view(targets.shape)


def dice_and_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over objects of the Dice loss of clipped masks plus the mean squared error of unclipped ones.

    Args:
        prediction: (M, H, W), mask probabilities that may leave [0, 1].
        target: (M, H, W) in {0, 1}.

    Returns:
        A scalar; 0 when there is no object.
    """
    if len(prediction) == 0:
        return prediction.sum()
    clipped, truth = prediction.clamp(0, 1).flatten(1), target.flatten(1)
    overlap = 2 * (clipped * truth).sum(1) + 1
    dice = 1 - overlap / (clipped.sum(1) + truth.sum(1) + 1)
    return dice.mean() + F.mse_loss(prediction, target)


def object_loss_means(losses: Tensor, target_ids: Tensor, tokens: int, task: str) -> dict[str, Tensor]:
    """Unweighted mean cross-entropies of coordinates, classes and mask codes, each 0 where nothing is supervised."""
    losses, supervised = (x.unflatten(1, (-1, tokens)) for x in (losses, target_ids != IGNORE_INDEX))
    ranges = {"box": slice(0, NUM_COORDINATES), "class": slice(CLASS_POSITION, HEADER_LENGTH)}
    if tokens > HEADER_LENGTH:
        ranges["mask"] = slice(HEADER_LENGTH, tokens)
    return {
        f"{task}_{name}_ce": losses[..., part].sum() / supervised[..., part].sum().clamp(min=1)
        for name, part in ranges.items()
    }
