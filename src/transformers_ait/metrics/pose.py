"""Errors of predicted 3-D poses, in millimetres."""

import torch
from torch import Tensor

POSE_METRICS = ("mpjpe", "p_mpjpe", "velocity_error")
MILLIMETRES = 1000.0


def pose_metrics(predicted: Tensor, target: Tensor, root_joint: int = 0) -> dict[str, float]:
    """The field's three figures of one video.

    Args:
        predicted: (T, J, 3) metres, finite.
        target: (T, J, 3) metres, finite.
        root_joint: joint that both are moved to 0 at, for all but the aligned figure.

    Returns:
        mpjpe: mean distance of joints. p_mpjpe: the same after the similarity transform (rotation, scale, translation)
        that brings each frame's prediction nearest to the truth, without mirroring (protocol 2). velocity_error: mean
        distance of the frame differences, millimetres per frame; NaN for a single frame.

    Raises:
        ValueError: shapes differ or are none of poses, or values are not finite.
    """
    if predicted.shape != target.shape or predicted.ndim != 3 or predicted.shape[-1] != 3 or not predicted.numel():
        raise ValueError(
            f"predicted and target must both be (T, J, 3) metres, got {tuple(predicted.shape)}, {tuple(target.shape)}."
        )
    predicted, target = predicted.detach().cpu().double(), target.detach().cpu().double()
    if not (predicted.isfinite().all() and target.isfinite().all()):
        raise ValueError("predicted and target must be finite; leave frames with unknown joints out.")
    aligned = _mean_distance(similarity_aligned(predicted, target), target)
    predicted, target = (poses - poses[:, root_joint : root_joint + 1] for poses in (predicted, target))
    velocity = _mean_distance(predicted.diff(dim=0), target.diff(dim=0))
    figures = (_mean_distance(predicted, target), aligned, velocity)
    return dict(zip(POSE_METRICS, (MILLIMETRES * figure for figure in figures), strict=True))


def similarity_aligned(predicted: Tensor, target: Tensor) -> Tensor:
    """Predicted poses after the least-squares similarity transform of every frame to the truth (Umeyama, 1991).

    Args:
        predicted: (T, J, 3).
        target: (T, J, 3).
    """
    means = predicted.mean(1, keepdim=True), target.mean(1, keepdim=True)
    x, y = predicted - means[0], target - means[1]
    u, singular, v = torch.linalg.svd(y.transpose(1, 2) @ x)
    signs = torch.ones_like(singular)
    signs[:, -1] = torch.linalg.det(u @ v).sign()
    rotation = u * signs[:, None] @ v
    spread = x.square().sum((1, 2))
    scale = (singular * signs).sum(-1) / spread.clamp(min=torch.finfo(spread.dtype).tiny)
    return scale[:, None, None] * x @ rotation.transpose(1, 2) + means[1]


def _mean_distance(predicted: Tensor, target: Tensor) -> float:
    return torch.linalg.vector_norm(predicted - target, dim=-1).mean().item()
