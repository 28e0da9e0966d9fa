"""Rows of pose sequences: their columns, and what a camera and a detector of joints make of a motion."""

from typing import Any

import datasets
import numpy as np

from .camera_projection import project, sample_camera, world_to_camera
from .depth_normals import Pinhole
from .skeleton import JOINT, JOINT_NAMES

Array = np.ndarray

MAX_FRAMES = 10_000
"""Frames of a row, at most, where their number is an option."""

JOINT_NOISE = np.ones(len(JOINT_NAMES))
"""How much less certain a detector is of one joint than of others."""
JOINT_NOISE[[JOINT[f"{side}_{name}"] for side in ("left", "right") for name in ("wrist", "ankle")]] = 1.5
JOINT_NOISE[[JOINT[name] for name in ("pelvis", "spine", "thorax", "neck")]] = 0.7

NOISE_FRAMES = 6
"""Frames after which the slow part of the noise is a new one."""

LONGEST_GAP = 10
"""Frames that a joint is missing for, at most, at one drop-out."""


def motion_features(action: Any, num_frames: int | None) -> datasets.Features:
    """Columns of every data set of pose sequences.

    Args:
        action: feature of the column `action`.
        num_frames: T, None where rows differ in length.

    Returns:
        `index`, `action`, `subject`; `fps`; `width` and `height` of the picture; `keypoints` (T, 17, 2) pixels as a
        detector finds them, NaN where it finds none; `keypoints_true` (T, 17, 2) pixels; `joints` (T, 17, 3) metres in
        the camera's axes: x right, y down, z ahead; `camera` with `fx`, `fy`, `cx`, `cy` in pixels.
    """
    count = len(JOINT_NAMES)
    text, integer, number = (datasets.Value(name) for name in ("string", "int64", "float32"))
    return datasets.Features(
        {
            "index": integer,
            "action": action,
            "subject": text,
            "fps": number,
            "width": integer,
            "height": integer,
            "keypoints": datasets.Array3D((num_frames, count, 2), "float32"),
            "keypoints_true": datasets.Array3D((num_frames, count, 2), "float32"),
            "joints": datasets.Array3D((num_frames, count, 3), "float32"),
            "camera": dict.fromkeys(("fx", "fy", "cx", "cy"), number),
        }
    )


def camera_column(camera: Pinhole) -> dict[str, float]:
    """Intrinsics as the column `camera` holds them."""
    return {name: float(np.float32(value)) for name, value in camera._asdict().items()}


def filmed(joints: Array, rng: np.random.Generator) -> dict[str, Any]:
    """The columns that follow from a motion before a random camera and a detector with flaws.

    Args:
        joints: (T, 17, 3) metres in the world, z up.
        rng: source of chance.

    Returns:
        `width`, `height`, `keypoints`, `keypoints_true`, `joints`, `camera`; see `motion_features`.
    """
    camera = sample_camera(joints, rng)
    seen = world_to_camera(joints, camera.rotation, camera.position)
    pixels = project(seen, camera.intrinsics)
    return {
        "width": camera.width,
        "height": camera.height,
        "keypoints": detect(pixels, camera.width, camera.height, rng),
        "keypoints_true": pixels.astype(np.float32),
        "joints": seen.astype(np.float32),
        "camera": camera_column(camera.intrinsics),
    }


def detect(pixels: Array, width: int, height: int, rng: np.random.Generator) -> Array:
    """Joints as a detector finds them: noise that grows with the person's size, some of it slow, a few gross errors,
    joints missing for some frames, and none outside the picture.

    Args:
        pixels: (T, 17, 2) true places.
        width: of the picture.
        height: of the picture.
        rng: source of chance.

    Returns:
        (T, 17, 2) float32, NaN where a joint is missing.
    """
    count, joints = pixels.shape[:2]
    size = np.median(np.ptp(pixels.reshape(count, -1, 2), 1).max(-1))
    level = size * rng.uniform(0.002, 0.012)
    knots = rng.standard_normal((count // NOISE_FRAMES + 2, joints, 2))
    times = np.arange(count) / NOISE_FRAMES
    before = times.astype(int)
    share = (times - before)[:, None, None]
    slow = (knots[before] * (1 - share) + knots[before + 1] * share) / np.sqrt(share**2 + (1 - share) ** 2)
    noise = 0.8 * slow + 0.6 * rng.standard_normal(pixels.shape)
    gross = rng.random((count, joints)) < 0.004
    noise[gross] *= rng.uniform(3, 10, (int(gross.sum()), 1))
    found = pixels + level * JOINT_NOISE[:, None] * noise
    missing = _gaps(count, joints, rng.uniform(0, 0.008), rng)
    outside = (found < 0).any(-1) | (found >= (width, height)).any(-1)
    found[missing | outside] = np.nan
    return found.astype(np.float32)


def _gaps(count: int, joints: int, rate: float, rng: np.random.Generator) -> Array:
    """(T, 17) true where a joint is missing; `rate` gaps begin per frame and joint."""
    begins = rng.random((count, joints)) < rate
    lengths = rng.integers(1, LONGEST_GAP + 1, (count, joints))
    frames = np.arange(count)[:, None]
    ends = np.maximum.accumulate(np.where(begins, frames + lengths, 0), 0)
    return ends > frames


def clip_starts(length: int, num_frames: int | None) -> list[tuple[int, int]]:
    """First frame and end of the clips of a motion, one after the other; the last ends with the motion, and shares
    frames with the one before where the length is no multiple.

    Args:
        length: frames of the motion.
        num_frames: of each clip; None makes the whole motion one.

    Returns:
        Pairs; none where the motion is shorter than a clip.
    """
    if num_frames is None:
        return [(0, length)]
    if length < num_frames:
        return []
    starts = [*range(0, length - num_frames + 1, num_frames)]
    if starts[-1] + num_frames < length:
        starts.append(length - num_frames)
    return [(start, start + num_frames) for start in starts]
