"""Random bodies, and poses of a body from angles of its trunk and arms and places of its feet.

World: metres, z up, the floor at z = 0. A body at heading 0 looks along y, with its right side along x.
"""

from typing import NamedTuple

import numpy as np

from .skeleton import JOINT, PARENTS, axis_rotations, euler_rotations, forward_kinematics

Array = np.ndarray

SEGMENTS = {
    # share of the standing height: across to the right, ahead, up; the left side mirrors the right
    "right_hip": (0.066, 0.0, 0.0),
    "right_knee": (0.0, 0.0, -0.25),
    "right_ankle": (0.0, 0.0, -0.247),
    "spine": (0.0, 0.0, 0.137),
    "thorax": (0.0, 0.0, 0.146),
    "neck": (0.0, 0.035, 0.062),
    "head": (0.0, -0.022, 0.065),
    "right_shoulder": (0.094, 0.0, -0.004),
    "right_elbow": (0.0, 0.0, -0.168),
    "right_wrist": (0.0, 0.0, -0.148),
}
"""Lengths of an average body, near Drillis and Contini's and the mean of Human3.6M's subjects."""

ANKLE_HEIGHT = 0.045
"""Share of the standing height that an ankle lies above the sole."""

SIGNS = np.ones((len(PARENTS), 3))
"""Turns anatomical angles into rotations about x, y and z; see `local_rotations`."""
for _name in ("pelvis", "spine", "thorax", "neck"):
    SIGNS[JOINT[_name], 0] = -1
for _name in ("right_shoulder", "right_elbow"):
    SIGNS[JOINT[_name], 1] = -1
for _name in ("left_shoulder", "left_elbow"):
    SIGNS[JOINT[_name], 2] = -1

BENT = [
    *(JOINT[name] for name in ("pelvis", "spine", "thorax", "neck")),
    *(JOINT[f"{side}_{name}"] for side in ("left", "right") for name in ("shoulder", "elbow")),
]
"""Joints with angles of their own; legs follow from their feet."""

ELBOW_RANGE = (0.06, 2.6)
"""Radians that elbows bend."""

REACH = 0.995
"""Share of its length that a leg stretches to at most."""

SMOOTHING = 0.06
"""Seconds that the height of the pelvis is smoothed over."""


class Body(NamedTuple):
    """A body's measures in metres.

    Args:
        offsets: (17, 3) position of each joint in the axes of its parent, standing with hanging arms.
        ankle_height: of an ankle above the floor.
        foot: from the ankle ahead to the ball of the foot.
    """

    offsets: Array
    ankle_height: float
    foot: float

    @property
    def thigh(self) -> float:
        """From hip to knee."""
        return float(-self.offsets[JOINT["right_knee"], 2])

    @property
    def shin(self) -> float:
        """From knee to ankle."""
        return float(-self.offsets[JOINT["right_ankle"], 2])

    @property
    def leg(self) -> float:
        """From hip to ankle, stretched."""
        return self.thigh + self.shin


class Performance(NamedTuple):
    """What a body does in T frames.

    Args:
        ground: (T, 2) point of the floor below the pelvis.
        heading: (T,) radians, counterclockwise from above.
        crouch: (T,) metres that the pelvis is lower than standing; it sinks further where the feet need it.
        bends: (T, 17, 3) angles of the trunk and arms, see `local_rotations`; rows of the legs are not used.
        feet: (T, 2, 3) right and left ankle.
    """

    ground: Array
    heading: Array
    crouch: Array
    bends: Array
    feet: Array


def sample_body(rng: np.random.Generator) -> Body:
    """A random adult or youth: height 1.45 to 2.0 m, each segment about 4 % longer or shorter than average.

    Args:
        rng: source of chance.
    """
    height = float(np.clip(rng.normal(1.71, 0.1), 1.45, 2.0))
    offsets = np.zeros((len(PARENTS), 3))
    for name, share in SEGMENTS.items():
        scale = height * np.exp(np.clip(rng.normal(0, 0.04), -0.1, 0.1))
        offsets[JOINT[name]] = np.array(share) * scale
        if name.startswith("right"):
            offsets[JOINT[name.replace("right", "left")]] = np.array(share) * scale * (-1, 1, 1)
    return Body(offsets, ANKLE_HEIGHT * height, 0.09 * height)


def local_rotations(bends: Array) -> Array:
    """Rotations of joints from anatomical angles.

    Args:
        bends: (T, 17, 3) radians. Limbs: flexion (ahead), abduction (away from the body), inward rotation; alike on
            both sides. Trunk and neck: bend ahead, lean to the right, turn to the left.

    Returns:
        (T, 17, 3, 3) R_y R_x R_z of each joint of `BENT`, no rotation for others.
    """
    flexion, abduction, twist = np.moveaxis(bends[:, BENT] * SIGNS[BENT], -1, 0)
    rotations = np.tile(np.eye(3), (*bends.shape[:2], 1, 1))
    rotations[:, BENT] = euler_rotations("yxz", np.stack([abduction, flexion, twist], -1))
    return rotations


def perform(body: Body, performance: Performance, fps: float) -> Array:
    """The joints of a body in motion.

    Args:
        body: its measures.
        performance: what it does.
        fps: frames per second.

    Returns:
        (T, 17, 3) metres in the world. Feet are where `performance` has them as far as the legs reach; lengths of bones
        do not change.
    """
    bends = performance.bends.copy()
    elbows = [JOINT["right_elbow"], JOINT["left_elbow"]]
    bends[:, elbows, 0] = np.clip(bends[:, elbows, 0], *ELBOW_RANGE)
    local = local_rotations(bends)
    pelvis = axis_rotations("z", performance.heading) @ local[:, 0]
    local[:, 0] = pelvis
    hips = np.stack([pelvis @ body.offsets[JOINT[name]] for name in ("right_hip", "left_hip")], 1)
    hips[..., :2] += performance.ground[:, None]
    height = _pelvis_height(body, performance, hips, fps)
    hips[..., 2] += height[:, None]
    forward = np.stack([-np.sin(performance.heading), np.cos(performance.heading)], -1)
    thighs, flexions = _leg_angles(body, hips, performance.feet, forward[:, None])
    local[:, [JOINT["right_hip"], JOINT["left_hip"]]] = np.swapaxes(pelvis, -1, -2)[:, None] @ thighs
    local[:, [JOINT["right_knee"], JOINT["left_knee"]]] = axis_rotations("x", -flexions)
    offsets = np.repeat(body.offsets[None], len(height), 0)
    offsets[:, 0] = np.concatenate([performance.ground, height[:, None]], -1)
    return forward_kinematics(local, offsets, PARENTS)


def _pelvis_height(body: Body, performance: Performance, hips: Array, fps: float) -> Array:
    """(T,) height at which both ankles are in reach of the (T, 2, 3) hips, whose z is that above the pelvis."""
    across = np.linalg.norm(hips[..., :2] - performance.feet[..., :2], axis=-1)
    length = REACH * body.leg
    upright = np.sqrt(np.maximum(length**2 - across**2, (0.25 * length) ** 2))
    reachable = (performance.feet[..., 2] + upright - hips[..., 2]).min(-1)
    wanted = body.ankle_height + length - performance.crouch
    height = smooth(np.minimum(wanted, reachable), SMOOTHING * fps)
    return height - max(0.0, float((height - reachable).max()))


def smooth(values: Array, frames: float) -> Array:
    """Values (T,) averaged with Gaussian weights of a standard deviation in frames; ends go on as they are."""
    reach = max(1, round(3 * frames))
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (steps / max(frames, 0.1)) ** 2)
    return np.convolve(np.pad(values, reach, mode="edge"), weights / weights.sum(), mode="valid")


def _leg_angles(body: Body, hips: Array, ankles: Array, forward: Array) -> tuple[Array, Array]:
    """The thighs' axes (T, 2, 3, 3) in the world and the knees' flexion (T, 2) that bring the ankles (T, 2, 3) to their
    places, the knees pointing along `forward` (T, 1, 2)."""
    reach = ankles - hips
    distance = np.linalg.norm(reach, axis=-1)
    along = reach / distance[..., None]
    distance = np.clip(distance, abs(body.thigh - body.shin) + 0.05, 0.9995 * body.leg)
    ahead = np.concatenate([forward, np.zeros((len(forward), 1, 1))], -1)
    ahead = ahead - (ahead * along).sum(-1, keepdims=True) * along
    ahead /= np.linalg.norm(ahead, axis=-1, keepdims=True)
    cosine = (body.thigh**2 + distance**2 - body.shin**2) / (2 * body.thigh * distance)
    angle = np.arccos(np.clip(cosine, -1, 1))[..., None]
    down = np.cos(angle) * along + np.sin(angle) * ahead
    front = np.cos(angle) * ahead - np.sin(angle) * along
    bent = (body.thigh**2 + body.shin**2 - distance**2) / (2 * body.thigh * body.shin)
    return np.stack([np.cross(down, front), front, -down], -1), np.pi - np.arccos(np.clip(bent, -1, 1))
