"""A captured motion as a file holds it, and its 17 joints of Human3.6M in metres, upright, at any frame rate."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .skeleton import BONES, JOINT, JOINT_NAMES, bone_lengths, forward_kinematics, resample, resample_rotations

Array = np.ndarray

SIDES = ("left", "right")


def _table(trunk: dict[str, str], limbs: dict[str, str], sides: tuple[str, str]) -> dict[str, str]:
    """Names for all joints; `{}` in the names of limbs stands for the side."""
    both = zip(SIDES, sides, strict=True)
    return trunk | {f"{side}_{name}": text.format(word) for side, word in both for name, text in limbs.items()}


CMU_ASF = _table(
    {"pelvis": "root", "spine": "upperback", "thorax": "thorax", "neck": "upperneck", "head": "head"},
    {
        **{"hip": "{}hipjoint", "knee": "{}femur", "ankle": "{}tibia"},
        **{"shoulder": "{}clavicle", "elbow": "{}humerus", "wrist": "{}radius"},
    },
    ("l", "r"),
)
"""CMU's ASF files by the bone that ends in the joint."""

CMU_BVH = _table(
    {"pelvis": "Hips", "spine": "Spine1", "thorax": "Neck", "neck": "Head", "head": "Head_end"},
    {
        **{"hip": "{}UpLeg", "knee": "{}Leg", "ankle": "{}Foot"},
        **{"shoulder": "{}Arm", "elbow": "{}ForeArm", "wrist": "{}Hand"},
    },
    ("Left", "Right"),
)
"""CMU's motions as BVH files by the joint itself."""

BANDAI_NAMCO = _table(
    {"pelvis": "Hips", "spine": "Chest", "thorax": "Neck", "neck": "Head", "head": "Head_end"},
    {
        **{"hip": "UpperLeg_{}", "knee": "LowerLeg_{}", "ankle": "Foot_{}"},
        **{"shoulder": "UpperArm_{}", "elbow": "LowerArm_{}", "wrist": "Hand_{}"},
    },
    ("L", "R"),
)
"""Bandai-Namco-Research-Motiondataset; its skeleton ends where the head begins, so that `neck` and `head` coincide."""

KNOWN_SKELETONS = {"CMU (ASF)": CMU_ASF, "CMU (BVH)": CMU_BVH, "Bandai-Namco": BANDAI_NAMCO}

LEG_RANGE = (0.3, 1.4)
"""Metres from hip to ankle of anybody, children included."""


class MocapClip(NamedTuple):
    """A captured motion with T frames of a skeleton with J joints, in the file's own unit and axes.

    Args:
        path: of the file.
        names: of the joints; the end of a joint without children is called `<joint>_end`.
        parents: J numbers, each lower than the joint's own; -1 for a root.
        rotations: (T, J, 3, 3) of each joint against its parent.
        offsets: (T, J, 3) of each joint in the axes of its parent.
        fps: frames per second.
        metres: length of the file's unit, None where the file does not say.
    """

    path: str
    names: tuple[str, ...]
    parents: tuple[int, ...]
    rotations: Array
    offsets: Array
    fps: float
    metres: float | None


def check_joint_map(joints: object) -> None:
    """Refuse a user's table of joints that is none.

    Args:
        joints: must name a joint of the file for each of `JOINT_NAMES`.

    Raises:
        TypeError: if it is no dict of texts.
        ValueError: if a joint is missing or unknown.
    """
    if not isinstance(joints, Mapping) or not all(isinstance(text, str) for pair in joints.items() for text in pair):
        raise TypeError(f"joints must be a dict from Human3.6M's joints to names in the file, got {joints!r}")
    missing, unknown = [name for name in JOINT_NAMES if name not in joints], sorted(set(joints) - set(JOINT_NAMES))
    if missing or unknown:
        raise ValueError(
            f"joints must have exactly the keys {', '.join(JOINT_NAMES)}: "
            f"missing {', '.join(missing) or 'none'}, unknown {', '.join(unknown) or 'none'}"
        )


def find_joints(clip: MocapClip, joints: Mapping[str, str] | None) -> list[int]:
    """Numbers of Human3.6M's 17 joints in a clip.

    Args:
        clip: the motion.
        joints: names in the file by names in `JOINT_NAMES`; None takes the first of `KNOWN_SKELETONS` that fits.

    Raises:
        ValueError: if the clip lacks a joint, or no known skeleton fits.
    """
    known = set(clip.names)
    if joints is None:
        fitting = [table for table in KNOWN_SKELETONS.values() if known.issuperset(table.values())]
        if not fitting:
            raise ValueError(
                f"{clip.path}: the skeleton is none of {', '.join(KNOWN_SKELETONS)}; give the option joints, a "
                f"dict with the file's name for each of {', '.join(JOINT_NAMES)}. The file has {', '.join(clip.names)}"
            )
        joints = fitting[0]
    for name in JOINT_NAMES:
        if joints[name] not in known:
            raise ValueError(
                f"{clip.path}: no joint {joints[name]!r}, which joints has for {name}; the file has "
                f"{', '.join(clip.names)}"
            )
    return [clip.names.index(joints[name]) for name in JOINT_NAMES]


def human_joints(
    clip: MocapClip, fps: float, joints: Mapping[str, str] | None = None, scale: float | None = None, up: str = "y"
) -> Array:
    """A clip's motion with Human3.6M's joints.

    Rotations are resampled, not positions, so that bones keep their lengths; the trunk's change a little where the file
    has more joints in it than Human3.6M.

    Args:
        clip: the motion.
        fps: frames per second that are wanted.
        joints: see `find_joints`.
        scale: metres of the file's unit; None takes what the file says, or centimetres where it says nothing.
        up: "y" or "z", the file's axis that points upwards.

    Returns:
        (N, 17, 3) metres, z up.

    Raises:
        ValueError: see `find_joints`; or if legs are of no human's length, by which a wrong scale shows.
    """
    numbers = find_joints(clip, joints)
    count = int(np.floor((len(clip.rotations) - 1) / clip.fps * fps + 1e-6)) + 1
    times = np.minimum(np.arange(count) * clip.fps / fps, len(clip.rotations) - 1)
    rotations = resample_rotations(clip.rotations, times)
    metres = scale or clip.metres or 0.01
    positions = forward_kinematics(rotations, resample(clip.offsets, times), clip.parents)[:, numbers] * metres
    legs = [BONES.index((JOINT[f"left_{a}"], JOINT[f"left_{b}"])) for a, b in (("hip", "knee"), ("knee", "ankle"))]
    length = float(bone_lengths(positions[0])[legs].sum())
    if not LEG_RANGE[0] <= length <= LEG_RANGE[1]:
        raise ValueError(
            f"{clip.path}: legs are {length:.3g} m long with scale {metres:g}; give the option scale, the metres of "
            f"one unit of the file (0.01: centimetres, 0.0564: CMU's motions as BVH), or mend the option joints"
        )
    return positions if up == "z" else positions[..., [0, 2, 1]] * [1, -1, 1]
