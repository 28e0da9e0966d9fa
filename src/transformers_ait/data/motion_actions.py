"""What bodies do: curves of angles and places over time for every action of `synthetic_motions`."""

from collections.abc import Callable

import numpy as np

from .motion_bodies import Body, Performance
from .motion_steps import Path, standing_feet, walking_feet
from .skeleton import JOINT, PARENTS

Array = np.ndarray
Rng = np.random.Generator

DEGREE = np.pi / 180

SIDES = ("right", "left")

ARM_POSTURES = {
    # degrees: flexion, abduction, inward rotation, bend of the elbow
    "hanging": (2, 9, 10, 15),
    "on the hips": (-22, 42, 48, 92),
    "crossed": (34, 14, 62, 98),
    "clasped": (22, 12, 42, 62),
    "in pockets": (-14, 16, 26, 36),
}

PAD = 3.0
"""Seconds that a path is longer than the frames, at either end: footholds lie ahead of the body and behind it."""


def ease(times: Array, start: float, stop: float) -> Array:
    """0 before `start`, 1 after `stop`, between them the course of least jerk."""
    share = np.clip((times - start) / max(stop - start, 1e-6), 0, 1)
    return share**3 * (share * (6 * share - 15) + 10)


def wander(times: Array, rng: Rng, shape: tuple[int, ...], frequency: tuple[float, float] = (0.1, 0.7)) -> Array:
    """(T, *shape) slow random curves of three waves each, with a root mean square near 1."""
    waves = rng.uniform(*frequency, (3, *shape)), rng.uniform(0, 2 * np.pi, (3, *shape))
    angles = 2 * np.pi * np.multiply.outer(times, waves[0]) + waves[1]
    return np.sin(angles).sum(1) * (2 / 3) ** 0.5


def set_arm(
    bends: Array, side: str, posture: tuple[float | Array, ...], share: Array | float = 1.0, clear: bool = True
) -> None:
    """Bring an arm into a posture, in place.

    Args:
        bends: (T, 17, 3) radians.
        side: "right" or "left".
        posture: degrees as in `ARM_POSTURES`, numbers or (T,) curves.
        share: (T,) 0 to 1, how much of the posture replaces what the arm did; 1 does whole.
        clear: False adds to what the arm did.
    """
    flexion, abduction, inward, elbow = posture
    places = [("shoulder", 0, flexion), ("shoulder", 1, abduction), ("shoulder", 2, inward), ("elbow", 0, elbow)]
    for name, axis, angle in places:
        curve = bends[:, JOINT[f"{side}_{name}"], axis]
        curve[:] = curve * (1 - share if clear else 1) + share * angle * DEGREE


def stand(body: Body, times: Array, rng: Rng) -> Performance:
    """Standing with slight sway, arms in one of a few postures: what most actions start from."""
    count = len(times)
    heading = rng.uniform(0, 2 * np.pi)
    stance = np.stack([rng.uniform(0.09, 0.17, 2) * (1, -1), rng.uniform(-0.06, 0.08, 2)], -1) * body.leg
    ground = wander(times, rng, (2,)) * 0.008
    bends = np.zeros((count, len(PARENTS), 3))
    bends[:, [0, 7, 8, 9]] = wander(times, rng, (4, 3)) * np.array([[1.0], [1.5], [1.5], [5.0]]) * DEGREE
    bends[:, JOINT["spine"], 0] += rng.normal(4, 4) * DEGREE
    bends[:, JOINT["neck"], 0] += rng.normal(5, 6) * DEGREE
    posture = np.array(ARM_POSTURES["hanging"])
    if rng.random() < 0.4:
        names = list(ARM_POSTURES)
        posture = np.array(ARM_POSTURES[names[rng.integers(len(names))]])
    for side in SIDES:
        sway = wander(times, rng, (4,)) * (2.0, 1.0, 3.0, 3.0)
        set_arm(bends, side, tuple((posture + rng.normal(0, 3, 4) + sway).T))
    feet = standing_feet(np.zeros(2), heading, body, stance, count)
    crouch = np.full(count, rng.uniform(0, 0.006) * body.leg)
    return Performance(ground, np.full(count, heading) + wander(times, rng, ()) * 0.02, crouch, bends, feet)


def window(times: Array, rng: Rng, length: float) -> Array:
    """The times moved so that they show a good part of something that happens from 0 to `length` seconds."""
    shown = times[-1] - times[0]
    return times - times[0] + rng.uniform(-0.4 * shown, max(length - 0.6 * shown, -0.4 * shown))


def _forward(action: Performance, distance: Array | float) -> None:
    """Move the pelvis ahead over the feet, in place; metres."""
    heading = action.heading
    action.ground[:] += np.stack([-np.sin(heading), np.cos(heading)], -1) * np.reshape(distance, (-1, 1))


def _bend_trunk(action: Performance, degrees: Array, pelvis: float = 0.45) -> None:
    """Bend ahead, in place: a share in the hips, the rest along the spine."""
    for name, share in (("pelvis", pelvis), ("spine", 0.6 * (1 - pelvis)), ("thorax", 0.4 * (1 - pelvis))):
        action.bends[:, JOINT[name], 0] += degrees * share * DEGREE


def idle(body: Body, times: Array, rng: Rng) -> Performance:
    """Standing, shifting the weight from one leg to the other."""
    action = stand(body, times, rng)
    shift = np.tanh(1.5 * wander(times, rng, (), (0.1, 0.4)))
    right = np.stack([np.cos(action.heading), np.sin(action.heading)], -1)
    action.ground[:] += right * (shift * rng.uniform(0.02, 0.06) * body.leg)[:, None]
    action.bends[:, 0, 1] -= shift * rng.uniform(1, 5) * DEGREE
    action.bends[:, JOINT["spine"], 1] += shift * rng.uniform(1, 5) * DEGREE
    action.bends[:, JOINT["neck"], 2] += wander(times, rng, (), (0.1, 0.5)) * rng.uniform(5, 25) * DEGREE
    return action


def _path(times: Array, speed: Callable[[Array], Array], heading: Callable[[Array], Array]) -> Path:
    """The path of a body with a speed in metres per second and a heading, from one end of its pad to the other."""
    padded = np.arange(times[0] - PAD, times[-1] + PAD, 0.02)
    angle = heading(padded)
    steps = speed(padded)[:, None] * np.stack([-np.sin(angle), np.cos(angle)], -1) * 0.02
    return Path(padded, np.cumsum(steps, 0), angle)


def _step_along(body: Body, times: Array, rng: Rng, path: Path, cadence: float, vigour: float) -> Performance:
    """Walk along a path: feet, sway of the pelvis, swing of the arms; `vigour` is 1 for a brisk walk."""
    action = stand(body, times, rng)
    phase = rng.random()
    ground, heading = path.at(times)
    action.ground[:] += ground
    action.heading[:] = heading + wander(times, rng, ()) * 0.02
    stride = 2 * np.pi * (cadence * times + phase)
    right = np.stack([np.cos(heading), np.sin(heading)], -1)
    action.ground[:] += right * (np.cos(stride - 2 * np.pi * 0.3) * rng.uniform(0.012, 0.03))[:, None]
    turn = np.cos(stride) * rng.uniform(4, 8) * vigour * DEGREE
    action.bends[:, 0, 2] += turn
    action.bends[:, 0, 1] -= np.cos(stride - 2 * np.pi * 0.3) * rng.uniform(1.5, 4) * DEGREE
    action.bends[:, JOINT["spine"], 1] += np.cos(stride - 2 * np.pi * 0.3) * 2 * DEGREE
    action.bends[:, JOINT["spine"], 2] -= 1.3 * turn
    action.bends[:, JOINT["thorax"], 2] -= 0.5 * turn
    _bend_trunk(action, np.full(len(times), rng.uniform(0, 6) * vigour))
    swing, lag = rng.uniform(12, 30) * vigour, rng.uniform(-0.4, 0.4)
    free = action.bends[:, JOINT["right_elbow"], 0].mean() < 0.7  # crossed or propped arms do not swing
    for side, sign in (("right", -1), ("left", 1)):
        wave = sign * np.cos(stride + lag)
        flexion, elbow = swing * wave, 8 * vigour + 0.35 * swing * (1 + wave)
        set_arm(action.bends, side, (flexion, 0, 0, elbow), 1.0 if free else 0.15, clear=False)
    feet = walking_feet(times, path, body, cadence, phase, rng.uniform(0.05, 0.1) * body.leg)
    return action._replace(feet=feet, crouch=action.crouch + 0.01 * body.leg)


def walking(body: Body, times: Array, rng: Rng) -> Performance:
    """Walking straight or along a bend, sometimes setting off or stopping."""
    speed = rng.uniform(0.6, 1.7) * (body.leg / 0.86) ** 0.5
    start, turn = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.25)
    sway_rate, sway_phase = rng.uniform(0.05, 0.2), rng.uniform(0, 2 * np.pi)
    change = times[0] + rng.uniform(-0.3, 1) * (times[-1] - times[0])
    sets_off, stops = rng.random() < 0.15, rng.random() < 0.15

    def velocity(moments: Array) -> Array:
        moving = np.ones(len(moments))
        if sets_off:
            moving = ease(moments, change - 0.5, change + 0.5)
        elif stops:
            moving = 1 - ease(moments, change - 0.5, change + 0.5)
        return speed * moving

    def heading(moments: Array) -> Array:
        return start + turn * moments + 0.25 * np.sin(2 * np.pi * sway_rate * moments + sway_phase)

    stride = 1.52 * body.leg * (speed / 1.3) ** 0.5
    cadence = speed / stride * rng.uniform(0.94, 1.06)
    return _step_along(body, times, rng, _path(times, velocity, heading), cadence, speed / 1.4)


def turning(body: Body, times: Array, rng: Rng) -> Performance:
    """Turning on the spot by 60 to 200 degrees with small steps."""
    angle = rng.choice([-1, 1]) * rng.uniform(60, 200) * DEGREE
    length = abs(angle) / rng.uniform(1.0, 2.0)
    times = window(times, rng, length)
    start, drift = rng.uniform(0, 2 * np.pi), rng.uniform(-0.1, 0.15)
    path = _path(
        times,
        lambda moments: drift * (ease(moments, 0, 0.5) - ease(moments, length - 0.5, length)),
        lambda moments: start + angle * ease(moments, 0, length),
    )
    action = _step_along(body, times, rng, path, rng.uniform(0.8, 1.15), 0.25)
    ahead = np.interp(times + 0.25, path.times, path.heading) - path.at(times)[1]
    action.bends[:, JOINT["neck"], 2] += np.clip(ahead, -0.6, 0.6)
    return action


def _seat(body: Body, action: Performance, down: Array, rng: Rng) -> None:
    """Lower the pelvis onto a seat behind the feet, in place; `down` is (T,) 0 standing to 1 seated."""
    back = rng.uniform(0.85, 1.02) * body.thigh
    seat = body.ankle_height + rng.uniform(0.88, 1.12) * body.shin
    _forward(action, -back * down)
    action.crouch[:] += (body.ankle_height + body.leg - seat) * down
    lean, rest = rng.uniform(28, 48), rng.uniform(-8, 14)
    _bend_trunk(action, lean * np.sin(np.pi * np.clip(down, 0, 1)) ** 1.5 + rest * down, pelvis=0.6)
    action.bends[:, 0, 0] -= rng.uniform(0, 12) * DEGREE * down
    hands = (rng.uniform(18, 38), rng.uniform(6, 16), rng.uniform(5, 25), rng.uniform(45, 75))
    for side in SIDES:
        set_arm(action.bends, side, hands, down * 0.9)


def sitting_down(body: Body, times: Array, rng: Rng) -> Performance:
    """From standing to a seat."""
    length = rng.uniform(1.1, 2.4)
    moments = window(times, rng, length)
    action = stand(body, times, rng)
    _seat(body, action, ease(moments, 0, length), rng)
    return action


def standing_up(body: Body, times: Array, rng: Rng) -> Performance:
    """From a seat to standing."""
    length = rng.uniform(1.0, 2.2)
    moments = window(times, rng, length)
    action = stand(body, times, rng)
    _seat(body, action, 1 - ease(moments, 0, length), rng)
    return action


def sitting(body: Body, times: Array, rng: Rng) -> Performance:
    """On a seat, talking with one or both hands, or resting."""
    action = stand(body, times, rng)
    _seat(body, action, np.ones(len(times)), rng)
    action.bends[:, [7, 8, 9]] += wander(times, rng, (3, 3)) * 4 * DEGREE
    for side in SIDES:
        if rng.random() < 0.6:
            lively = np.clip(0.5 + 0.6 * wander(times, rng, ()), 0, 1)
            gesture = np.array([35, 18, 25, 95]) + wander(times, rng, (4,), (0.3, 1.2)) * (14, 8, 18, 18)
            set_arm(action.bends, side, tuple(gesture.T), lively)
    return action


def reaching(body: Body, times: Array, rng: Rng) -> Performance:
    """One or both arms stretched out to a place in front, at the side or above, and back."""
    out, hold, back = rng.uniform(0.5, 1.1), rng.uniform(0.1, 0.8), rng.uniform(0.5, 1.2)
    moments = window(times, rng, out + hold + back)
    action = stand(body, times, rng)
    share = ease(moments, 0, out) - ease(moments, out + hold, out + hold + back)
    height = rng.uniform(35, 150)
    posture = (height, rng.uniform(0, 45), rng.uniform(-25, 25), rng.uniform(5, 40))
    both = rng.random() < 0.3
    first = rng.integers(2)
    for number, side in enumerate(SIDES):
        if both or number == first:
            bent = 70 * np.sin(np.pi * np.clip(share, 0, 1)) * (1 - share)  # folded on the way, stretched at the end
            set_arm(action.bends, side, (*posture[:3], posture[3] + bent), share)
    _bend_trunk(action, share * np.interp(height, [35, 110], [30, 0]) * rng.uniform(0.3, 1))
    if not both:
        turn = rng.uniform(0, 25) * (1 if first == 0 else -1) * DEGREE
        action.bends[:, JOINT["spine"], 2] += turn * share
    _forward(action, share * rng.uniform(0, 0.06) * body.leg)
    return action


def _crouch(body: Body, action: Performance, share: Array, depth: float, lean: float) -> None:
    """Go down with bent knees, in place: `depth` is the share of the leg's length, `lean` the trunk's in degrees."""
    action.crouch[:] += depth * body.leg * share
    _forward(action, -share * (0.1 + 0.28 * depth) * body.leg)
    _bend_trunk(action, lean * share, pelvis=0.55)


def picking_up(body: Body, times: Array, rng: Rng) -> Performance:
    """Bending down to take something from the floor with one or both hands, and up again."""
    down, hold, up = rng.uniform(0.8, 1.4), rng.uniform(0, 0.4), rng.uniform(0.8, 1.5)
    moments = window(times, rng, down + hold + up)
    action = stand(body, times, rng)
    share = ease(moments, 0, down) - ease(moments, down + hold, down + hold + up)
    depth = rng.uniform(0.12, 0.45)
    lean = rng.uniform(0.85, 1.1) * np.interp(depth, [0.12, 0.45], [85, 55])
    _crouch(body, action, share, depth, lean)
    action.bends[:, JOINT["neck"], 0] -= 15 * DEGREE * share
    first, both = rng.integers(2), rng.random() < 0.5
    for number, side in enumerate(SIDES):
        if both or number == first:
            set_arm(action.bends, side, (lean * 0.8 + rng.uniform(-8, 12), 8, 10, rng.uniform(5, 25)), share)
        else:
            set_arm(action.bends, side, (lean * 0.5, 10, 15, 50), share)
    return action


def squatting(body: Body, times: Array, rng: Rng) -> Performance:
    """Knee bends, once or again and again, arms ahead."""
    period = rng.uniform(1.4, 2.6)
    action = stand(body, times, rng)
    share = (0.5 - 0.5 * np.cos(2 * np.pi * (times / period + rng.random()))) ** 1.3
    _crouch(body, action, share, rng.uniform(0.25, 0.52), rng.uniform(25, 45))
    posture = (rng.uniform(60, 95), rng.uniform(-2, 8), rng.uniform(0, 15), rng.uniform(5, 40))
    for side in SIDES:
        set_arm(action.bends, side, posture, share)
    return action


def waving(body: Body, times: Array, rng: Rng) -> Performance:
    """Waving with a raised hand, or both."""
    raise_time = rng.uniform(0.5, 0.9)
    moments = window(times, rng, raise_time + rng.uniform(1.5, 3.0)) + 0.3
    action = stand(body, times, rng)
    share = ease(moments, 0, raise_time)
    rate, width = rng.uniform(1.0, 2.2), rng.uniform(10, 28)
    first, both = rng.integers(2), rng.random() < 0.2
    upper, elbow = rng.uniform(55, 115), rng.uniform(55, 105)
    wave = width * np.sin(2 * np.pi * rate * moments)
    for number, side in enumerate(SIDES):
        if both or number == first:
            posture = (rng.uniform(-5, 25), upper, rng.uniform(-95, -70) + 0.4 * wave, elbow + wave)
            set_arm(action.bends, side, posture, share)
    return action


def phoning(body: Body, times: Array, rng: Rng) -> Performance:
    """A hand at the ear, standing or walking slowly."""
    if rng.random() < 0.4:
        speed, start, turn = rng.uniform(0.3, 0.9), rng.uniform(0, 2 * np.pi), rng.normal(0, 0.4)
        path = _path(times, lambda moments: np.full(len(moments), speed), lambda moments: start + turn * moments)
        cadence = speed / (1.52 * body.leg * (speed / 1.3) ** 0.5)
        action = _step_along(body, times, rng, path, cadence, 0.4)
    else:
        action = idle(body, times, rng)
    side = SIDES[rng.integers(2)]
    posture = np.array([78, 28, 8, 142]) + rng.normal(0, 5, 4) + wander(times, rng, (4,)) * 2
    set_arm(action.bends, side, tuple(posture.T))
    lean = rng.uniform(0, 8) * (1 if side == "right" else -1)
    action.bends[:, JOINT["neck"], 1] += lean * DEGREE
    return action


ACTIONS: dict[str, Callable[[Body, Array, Rng], Performance]] = {
    action.__name__: action
    for action in (
        *(walking, turning, sitting_down, standing_up, sitting, reaching, picking_up),
        *(squatting, waving, phoning, idle),
    )
}
"""Functions of (body, times (T,) in seconds, rng) by the name of the action, in the order of its `ClassLabel`."""
