"""Losses of pose lifting, as pure functions (arXiv 2203.00859, section 3.4; arXiv 2111.12707, section 3)."""

import torch
from torch import Tensor

JOINT_WEIGHTS = (1, 1, 2.5, 2.5, 1, 2.5, 2.5, 1, 1, 1, 1.5, 1.5, 4, 4, 1.5, 4, 4)
"""Published weights of Human3.6M's 17 joints: limbs that move more count more."""

CONSISTENCY_WEIGHT = 0.5
VELOCITY_WEIGHT = 2.0


def pose_losses(predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Losses of predicted sequences.

    Args:
        predicted: (B, T, J, 3) metres.
        target: (B, T, J, 3) metres, with the root joint at 0.

    Returns:
        "weighted_mpjpe", mean over everything of a joint's weight times its distance; and, where there are two frames
        or more, "temporal_consistency", mean of weight times the prediction's squared difference between frames, and
        "mean_velocity", mean distance between the frame differences of prediction and truth. All joints weigh alike in
        skeletons of other than 17.
    """
    weights = torch.ones(target.shape[2], device=target.device)
    if target.shape[2] == len(JOINT_WEIGHTS):
        weights = torch.tensor(JOINT_WEIGHTS, device=target.device)
    predicted, target = predicted.float(), target.float()
    losses = {"weighted_mpjpe": (weights * _lengths(predicted - target)).mean()}
    if target.shape[1] > 1:
        moved, should = predicted.diff(dim=1), target.diff(dim=1)
        losses["temporal_consistency"] = (weights[:, None] * moved.square()).mean()
        losses["mean_velocity"] = _lengths(moved - should).mean()
    return losses


def mean_joint_error(predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Loss of MHFormer.

    Args:
        predicted: (B, T, J, 3) metres.
        target: (B, T, J, 3) metres, with the root joint at 0.

    Returns:
        "mpjpe", mean distance of all joints in all frames.
    """
    return {"mpjpe": _lengths(predicted.float() - target.float()).mean()}


def total_pose_loss(losses: dict[str, Tensor]) -> Tensor:
    """Published sum: the joints' error, and where given 0.5 times the consistency, 2 times the velocity's error."""
    factors = {"temporal_consistency": CONSISTENCY_WEIGHT, "mean_velocity": VELOCITY_WEIGHT}
    return torch.stack([factors.get(name, 1.0) * value for name, value in losses.items()]).sum()


def _lengths(vectors: Tensor) -> Tensor:
    """Euclidean lengths along the last axis."""
    return torch.linalg.vector_norm(vectors, dim=-1)
