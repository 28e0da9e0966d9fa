"""Feet that stand still or step along a path, without sliding on the floor."""

from typing import NamedTuple

import numpy as np

from .motion_bodies import Body

Array = np.ndarray

STANCE = 0.6
"""Share of a stride that a foot stands."""

MIDDLE = 0.27
"""Where in a stride the ankle passes below the pelvis."""

HEEL_OFF = 0.36
"""Where in a stride the heel leaves the floor; the foot then turns about its ball until it swings."""


class Path(NamedTuple):
    """Where a body goes, for longer than the frames that are wanted.

    Args:
        times: (N,) seconds, increasing.
        ground: (N, 2) point of the floor below the pelvis.
        heading: (N,) radians.
    """

    times: Array
    ground: Array
    heading: Array

    def at(self, times: Array) -> tuple[Array, Array]:
        """The (..., 2) ground and (...) heading at times of any shape; the ends go on as they are."""
        ground = np.stack([np.interp(times, self.times, self.ground[:, axis]) for axis in (0, 1)], -1)
        return ground, np.interp(times, self.times, self.heading)


def standing_feet(ground: Array, heading: float, body: Body, stance: Array, count: int) -> Array:
    """Feet that stay where they are.

    Args:
        ground: (2,) point between the feet.
        heading: radians.
        body: whose feet.
        stance: (2, 2) metres from that point: right and left foot, each to the right and ahead.
        count: number of frames.

    Returns:
        (count, 2, 3) right and left ankle.
    """
    right, forward = _axes(np.asarray(heading))
    places = ground + stance[:, :1] * right + stance[:, 1:] * forward
    feet = np.concatenate([places, np.full((2, 1), body.ankle_height)], -1)
    return np.repeat(feet[None], count, 0)


def walking_feet(times: Array, path: Path, body: Body, cadence: float, phase: float, half_width: float) -> Array:
    """Feet that step along a path, one after the other.

    Args:
        times: (T,) seconds.
        path: where the body goes.
        body: whose feet.
        cadence: strides (two steps) per second.
        phase: share of the right foot's stride that has passed at time 0; it touches the floor at whole numbers.
        half_width: metres from the path to each foot.

    Returns:
        (T, 2, 3) right and left ankle.
    """
    strides = cadence * times[:, None] + phase + np.array([0.0, 0.5])
    number = np.floor(strides)
    share = strides - number
    starts = np.array([0.0, 0.5])
    places, forwards = [], []
    for step in (0, 1):
        ground, heading = path.at((number + step + MIDDLE - phase - starts) / cadence)
        right, forward = _axes(heading)
        places.append(ground + right * (half_width * np.array([[1.0], [-1.0]])))
        forwards.append(forward)
    swing = np.clip((share - STANCE) / (1 - STANCE), 0, 1)
    moved = (swing * swing * (3 - 2 * swing))[..., None]
    place = places[0] * (1 - moved) + places[1] * moved
    forward = forwards[0] * (1 - moved) + forwards[1] * moved
    length = np.linalg.norm(places[1] - places[0], axis=-1)
    pitch = np.minimum(length / body.leg * 0.45, 0.75) * _heel(share)
    place = place + forward * (body.foot * (1 - np.cos(pitch)))[..., None]
    lift = np.minimum(length, 0.35 * body.leg) * 0.22 * np.sin(np.pi * swing) ** 2
    height = body.ankle_height + body.foot * np.sin(pitch) + lift
    return np.concatenate([place, height[..., None]], -1)


def _heel(share: Array) -> Array:
    """How far the heel is raised, 0 to 1, over a stride: slowly up from `HEEL_OFF` and down again in the swing."""
    top, down = STANCE + 0.03, STANCE + 0.27
    up = np.clip((share - HEEL_OFF) / (top - HEEL_OFF), 0, 1)
    off = np.clip((share - top) / (down - top), 0, 1)
    return up * up * (3 - 2 * up) * (1 - off * off * (3 - 2 * off))


def _axes(heading: Array) -> tuple[Array, Array]:
    """Unit vectors (..., 2) to the right and ahead."""
    cosine, sine = np.cos(heading), np.sin(heading)
    return np.stack([cosine, sine], -1), np.stack([-sine, cosine], -1)
