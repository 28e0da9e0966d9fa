"""Surface colours, normals and light of the synthetic rooms, for the points that the camera sees.

Light is ambient, a shadow-casting lamp under the ceiling, windows and further lamps without shadows, and sunlight
through a window. Corners and contacts are darkened, as indirect light would leave them.
"""

from dataclasses import dataclass

import numpy as np

from .rooms_casting import CORNERS, NEAR, View, cast, unit_frame
from .rooms_furniture import Primitive
from .rooms_scene import Light, Scene, Sun
from .rooms_textures import albedo

Array = np.ndarray

SHADOW_MAP_SIZE = 192
SHADOW_MAP_REACH = 2.2  # tangent of half the shadow map's field of view
CONTACT_REACH = 0.25  # metres over which a thing darkens the floor or wall it touches


def _surface(part: Primitive, local: Array, eye: Array) -> tuple[Array, Array, Array]:
    """Local unit-shape normals (3, N), before the inverse scaling, and surface coordinates u and v in metres.

    Args:
        part: the primitive.
        local: (3, N) surface points in its unit frame.
        eye: (3,) the camera in that frame.
    """
    half = part.half.astype(np.float32)[:, None]
    metric = local * half
    # On an edge, rounding must not pick a face that the camera does not see.
    seen = np.sign(local) * eye[:, None] > 1
    if part.shape == "ellipsoid":
        return local / half, np.arctan2(metric[1], metric[0]) * half[0], metric[2]
    if part.shape == "box":
        face = np.where(seen, np.abs(local), 0).argmax(0)
        u, v = np.where(face == 0, metric[1], metric[0]), np.where(face == 2, metric[1], metric[2])
        outside = np.zeros_like(local)
        columns = np.arange(local.shape[1])
        outside[face, columns] = np.sign(local[face, columns])
        if half[2] > half[0] and half[2] > half[1] and part.material.pattern == "wood":
            u, v = v, u  # the grain of legs, posts and doors runs upwards
        return outside, u, v
    k = np.float32(part.taper)
    radius = 1 + k * local[2]
    cap = seen[2] & (np.abs(np.abs(local[2]) - 1) < np.abs(np.hypot(local[0], local[1]) - radius))
    side = np.stack([local[0], local[1], -k * radius]) / half
    outside = np.where(cap, np.stack([0 * radius, 0 * radius, np.sign(local[2])]), side)
    u = np.where(cap, metric[0], np.arctan2(local[1], local[0]) * half[0])
    return outside, u, np.where(cap, metric[1], metric[2])


@dataclass(frozen=True)
class Surfaces:
    """What the camera sees, per pixel.

    Args:
        normals: (3, N) unit vectors in the world frame.
        albedo: (3, N) linear RGB.
        gloss: (N,) strength of the highlight.
        glow: (N,) emitted radiance relative to the albedo.
    """

    normals: Array
    albedo: Array
    gloss: Array
    glow: Array


def shade_surfaces(parts: list[Primitive], ids: Array, points: Array, depth: Array, view: View) -> Surfaces:
    """Normals and materials of the surface points seen.

    Args:
        parts: all primitives, the shell first.
        ids: (N,) which of them each pixel sees.
        points: (3, N) world points.
        depth: (N,) depth.
        view: the camera.
    """
    order = np.argsort(ids, kind="stable")
    starts = np.searchsorted(ids[order], np.arange(len(parts) + 1))
    grouped, grouped_depth = np.take(points, order, axis=1), depth[order]
    normals, colors = np.empty_like(points), np.empty_like(points)
    gloss, glow = np.zeros_like(depth), np.zeros_like(depth)
    for number in np.flatnonzero(np.diff(starts)):
        part, pixels = parts[number], slice(starts[number], starts[number + 1])
        frame, center = unit_frame(part), part.center.astype(np.float32)
        offset = grouped[:, pixels] - center[:, None]
        outside, u, v = _surface(part, frame @ offset, frame @ (view.position - center))
        outside = part.axes.astype(np.float32) @ outside
        normals[:, pixels] = outside / np.sqrt((outside * outside).sum(0))
        colors[:, pixels] = albedo(part.material, u, v, grouped_depth[pixels], view.focal)
        gloss[pixels], glow[pixels] = part.material.gloss, part.material.glow
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return Surfaces(np.take(normals, back, axis=1), np.take(colors, back, axis=1), gloss[back], glow[back])


def _shadow(scene: Scene, points: Array, normals: Array) -> Array:
    """(N,) how much of the ceiling light reaches each point, from a shadow map that looks straight down."""
    light = scene.shadow_light.position
    down = np.array([[1.0, 0, 0], [0, -1.0, 0], [0, 0, -1.0]])
    size = SHADOW_MAP_SIZE
    view = View(light, down, size / 2 / SHADOW_MAP_REACH, size, size)
    depth = np.full((size, size), np.inf, np.float32)
    cast(
        view,
        [part for part in scene.parts if part.material.glow == 0 and part.bounds()[0, 2] < light[2] - 0.1],
        depth,
        None,
    )
    raised = points + np.float32(0.05) * normals
    z = np.maximum(light[2].astype(np.float32) - raised[2], np.float32(NEAR))
    u = (raised[0] - view.position[0]) / z * np.float32(view.focal) + np.float32(view.cx)
    v = (view.position[1] - raised[1]) / z * np.float32(view.focal) + np.float32(view.cy)
    inside = (u > 0) & (v > 0) & (u < size - 2) & (v < size - 2)
    u, v = np.where(inside, u, 0), np.where(inside, v, 0)
    column, row = u.astype(np.int32), v.astype(np.int32)
    fu, fv = u - column, v - row
    flat, first, z = depth.ravel(), row * size + column, z - np.float32(0.02)
    taps = [(z < flat[first + shift]).astype(np.float32) for shift in (0, 1, size, size + 1)]
    top, bottom = taps[0] + fu * (taps[1] - taps[0]), taps[2] + fu * (taps[3] - taps[2])
    return np.where(inside, top + fv * (bottom - top), np.float32(1))


def _falloff(light: Light, points: Array, normals: Array) -> tuple[Array, Array]:
    """(N,) irradiance from a light of unit power, and (3, N) unit directions towards it."""
    to_light = light.position.astype(np.float32)[:, None] - points
    squared = (to_light * to_light).sum(0)
    to_light /= np.sqrt(squared)
    cosine = np.maximum((normals * to_light).sum(0), 0)
    if light.facing is not None:
        cosine *= np.maximum(-(light.facing.astype(np.float32) @ to_light), 0)
    return cosine / (np.float32(0.5) + squared), to_light


def _sunlight(sun: Sun, points: Array, normals: Array) -> Array:
    """(N,) sunlight that comes through the window."""
    direction = sun.direction.astype(np.float32)
    distance = (np.float32(sun.center[sun.axis]) - points[sun.axis]) / direction[sun.axis]
    across = np.abs(points[1 - sun.axis] + distance * direction[1 - sun.axis] - np.float32(sun.center[1 - sun.axis]))
    up = points[2] + distance * direction[2] - np.float32(sun.center[2])
    edge = np.minimum(np.float32(sun.half[0]) - across, np.float32(sun.half[1]) - np.abs(up))
    bar = np.minimum(across, np.float32(0.05)) * np.float32(20)  # the cross bar's shadow
    return np.clip(edge * 20, 0, 1) * bar * np.maximum(direction @ normals, 0)


def _corner_darkening(scene: Scene, points: Array, normals: Array) -> Array:
    """(N,) share of the indirect light that is left near the room's edges."""
    open_share = np.ones(points.shape[1], np.float32)
    for axis in range(3):
        size = np.float32(scene.size[axis])
        gap = np.minimum(points[axis], size - points[axis]) * np.float32(4)
        open_share *= 1 - np.float32(0.4) * (1 - np.abs(normals[axis])) / (1 + gap * gap)
    return open_share


def _contact_darkening(scene: Scene, view: View, points: Array) -> Array:
    """(H, W) share of the indirect light that is left on the shell near things that stand on it or lean on it.

    Args:
        scene: the room.
        view: the camera's view.
        points: (3, H, W) world points.
    """
    coarse = np.ascontiguousarray(points[:, ::2, ::2])
    share = np.ones(coarse.shape[1:], np.float32)
    for part in scene.parts:
        low, high = part.bounds()
        if min(low.min(), (scene.size - high)[:2].min()) > 0.1 or part.half.max() < 0.08:
            continue  # too far from floor and walls, or too small, to matter
        window = view.window(part.center + (CORNERS * (part.half + CONTACT_REACH)) @ part.axes.T)
        if window is None:
            continue
        half = tuple(slice(side.start // 2, (side.stop + 1) // 2) for side in window)
        squared = np.zeros_like(share[half])
        inverse = part.axes.T.astype(np.float32)
        middle = inverse @ part.center.astype(np.float32)
        x, y, z = coarse[0][half], coarse[1][half], coarse[2][half]
        for axis in range(3):
            along = inverse[axis, 0] * x + inverse[axis, 1] * y + inverse[axis, 2] * z - middle[axis]
            beyond = np.maximum(np.abs(along) - np.float32(part.half[axis]), 0)
            squared += beyond * beyond
        near = np.maximum(1 - np.sqrt(squared) * np.float32(1 / CONTACT_REACH), 0)
        share[half] *= 1 - np.float32(0.3) * near * near
    return share.repeat(2, 0).repeat(2, 1)[: view.height, : view.width]


def _highlights(scene: Scene, view: View, points: Array, to_light: Array, normals: Array) -> Array:
    """(N,) Blinn-Phong highlights of the ceiling light on given points."""
    to_eye = view.position[:, None] - points
    half_way = to_light + to_eye / np.sqrt((to_eye * to_eye).sum(0))
    half_way /= np.sqrt((half_way * half_way).sum(0))
    strength = np.float32(0.6 * scene.shadow_light.color.mean())
    return strength * np.maximum((half_way * normals).sum(0), 0) ** 40


def illuminate(scene: Scene, view: View, points: Array, surfaces: Surfaces, shell: Array) -> Array:
    """Light the surfaces.

    Args:
        scene: the room.
        view: the camera's view, of H x W = N pixels.
        points: (3, N) world points.
        surfaces: what is at these points.
        shell: (H, W) bool, the pixels that see the room's shell.

    Returns:
        (3, N) radiance towards the camera, linear RGB.
    """
    normals = surfaces.normals
    open_share = _corner_darkening(scene, points, normals)
    contact = _contact_darkening(scene, view, points.reshape(3, *shell.shape))
    open_share *= np.where(shell, contact, 1).ravel()
    upwards = np.float32(0.85) + np.float32(0.15) * normals[2]
    light = scene.ambient.astype(np.float32)[:, None] * (open_share * upwards)
    direct, to_light = _falloff(scene.shadow_light, points, normals)
    direct *= _shadow(scene, points, normals)
    light += scene.shadow_light.color.astype(np.float32)[:, None] * direct
    for lamp in scene.lights:
        strength, _ = _falloff(lamp, points, normals)
        strength *= np.float32(0.3) + np.float32(0.7) * open_share
        light += lamp.color.astype(np.float32)[:, None] * strength
    if scene.sun is not None:
        light += scene.sun.color.astype(np.float32)[:, None] * _sunlight(scene.sun, points, normals)
    radiance = surfaces.albedo * light
    shiny = np.flatnonzero((surfaces.gloss > 0) & (direct > 0))
    highlights = _highlights(scene, view, points[:, shiny], to_light[:, shiny], normals[:, shiny])
    radiance[:, shiny] += surfaces.gloss[shiny] * highlights
    return np.where(surfaces.glow > 0, surfaces.albedo * surfaces.glow, radiance)
