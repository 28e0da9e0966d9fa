"""Skeletons: the 17 joints of Human3.6M, rotations, and forward kinematics of any tree of joints."""

from collections.abc import Sequence
from functools import reduce

import numpy as np

Array = np.ndarray

JOINT_NAMES = (
    *("pelvis", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("spine", "thorax", "neck", "head"),
    *("left_shoulder", "left_elbow", "left_wrist", "right_shoulder", "right_elbow", "right_wrist"),
)
"""Human3.6M's joints in their usual order. `neck` is the point between throat and nose, `head` the top of the head."""

PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)
"""Number of the joint that each of them hangs on; -1 for the pelvis, the root."""

JOINT = {name: number for number, name in enumerate(JOINT_NAMES)}
"""Numbers of the joints by name."""

BONES = tuple((parent, joint) for joint, parent in enumerate(PARENTS) if parent >= 0)
"""Pairs of joints that a bone of constant length connects."""


def axis_rotations(axis: str, angles: Array) -> Array:
    """Rotations about one axis, counterclockwise as seen from its tip.

    Args:
        axis: "x", "y" or "z".
        angles: (...) radians.

    Returns:
        (..., 3, 3) matrices for column vectors.
    """
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    angles = np.asarray(angles, np.float64)
    matrices = np.zeros((*angles.shape, 3, 3))
    cosine, sine = np.cos(angles), np.sin(angles)
    third = 3 - first - second
    matrices[..., third, third] = 1
    matrices[..., first, first] = matrices[..., second, second] = cosine
    matrices[..., first, second], matrices[..., second, first] = -sine, sine
    return matrices


def euler_rotations(axes: str, angles: Array) -> Array:
    """Rotations about the body's own axes one after the other.

    Args:
        axes: such as "zxy", which is R_z R_x R_y; any length, the empty text is no rotation.
        angles: (..., len(axes)) radians.

    Returns:
        (..., 3, 3) matrices for column vectors.
    """
    if not axes:
        return np.tile(np.eye(3), (*angles.shape[:-1], 1, 1))
    turns = (axis_rotations(axis, angles[..., number]) for number, axis in enumerate(axes))
    return reduce(np.matmul, turns)


def forward_kinematics(rotations: Array, offsets: Array, parents: Sequence[int]) -> Array:
    """Positions of joints from the rotation of each against its parent.

    Args:
        rotations: (T, J, 3, 3) local rotations; a joint's own rotation turns what hangs on it.
        offsets: (J, 3) or (T, J, 3) position of each joint in the axes of its parent; of a root in the world.
        parents: J numbers, each lower than the joint's own; -1 for a root.

    Returns:
        (T, J, 3) positions in the world, in the offsets' unit.
    """
    count = len(rotations)
    offsets = np.broadcast_to(offsets, (count, len(parents), 3))
    with_children = set(parents)
    positions: list[Array] = []
    turned: list[Array] = []
    for joint, parent in enumerate(parents):
        local = rotations[:, joint]
        if parent < 0:
            positions.append(offsets[:, joint])
            turned.append(local)
            continue
        step = turned[parent] @ offsets[:, joint, :, None]
        positions.append(positions[parent] + step[..., 0])
        turned.append(turned[parent] @ local if joint in with_children else local)
    return np.stack(positions, 1)


def bone_lengths(joints: Array) -> Array:
    """Lengths of the 16 bones of Human3.6M's skeleton.

    Args:
        joints: (..., 17, 3).

    Returns:
        (..., 16) in the same unit, in the order of `BONES`.
    """
    starts, ends = (list(side) for side in zip(*BONES, strict=True))
    return np.linalg.norm(joints[..., ends, :] - joints[..., starts, :], axis=-1)


def resample_rotations(rotations: Array, times: Array) -> Array:
    """Rotations between frames, which stay rotations: from each frame to the next at an even pace.

    Args:
        rotations: (T, ..., 3, 3).
        times: (N,) in frames, 0 to T - 1.

    Returns:
        (N, ..., 3, 3).
    """
    before, after, share = _neighbours(len(rotations), times, rotations.ndim - 2)
    step = np.swapaxes(rotations[before], -1, -2) @ rotations[after]
    cross = (step - np.swapaxes(step, -1, -2)) / 2
    sine = np.sqrt((cross**2).sum((-1, -2)) / 2)
    angle = np.arctan2(sine, (np.trace(step, axis1=-2, axis2=-1) - 1) / 2) * share
    axis = cross / np.maximum(sine, 1e-12)[..., None, None]
    part = np.eye(3) + np.sin(angle)[..., None, None] * axis + (1 - np.cos(angle))[..., None, None] * (axis @ axis)
    return rotations[before] @ part


def resample(values: Array, times: Array) -> Array:
    """Values between frames, linearly.

    Args:
        values: (T, ...).
        times: (N,) in frames, 0 to T - 1.

    Returns:
        (N, ...).
    """
    before, after, share = _neighbours(len(values), times, values.ndim)
    return values[before] * (1 - share) + values[after] * share


def _neighbours(count: int, times: Array, ndim: int) -> tuple[Array, Array, Array]:
    """Frames before and after each time, and the share of the latter with `ndim` axes."""
    before = np.clip(np.floor(times).astype(int), 0, max(count - 2, 0))
    return before, np.minimum(before + 1, count - 1), (times - before).reshape(-1, *[1] * (ndim - 1))
