"""Ray casting of boxes, cylinders and ellipsoids into depth and id buffers: plain NumPy, one thread."""

import math

import numpy as np

from .rooms_furniture import Primitive

Array = np.ndarray

NEAR = 0.02
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)


class View:
    """Pinhole view whose rays have length 1 along the optical axis, so that a ray parameter is a depth."""

    def __init__(self, position: Array, rotation: Array, focal: float, height: int, width: int) -> None:
        self.position = position.astype(np.float32)
        self.rotation = rotation.astype(np.float32)
        self.focal, self.height, self.width = focal, height, width
        self.cx, self.cy = (width - 1) / 2, (height - 1) / 2
        self.x = ((np.arange(width) - self.cx) / focal).astype(np.float32)
        self.y = ((np.arange(height) - self.cy) / focal).astype(np.float32)

    def rays(self, rows: slice, columns: slice, matrix: Array) -> list[Array]:
        """Components of `matrix` @ (x, y, 1) over a window of pixels."""
        x, y = self.x[None, columns], self.y[rows, None]
        return [row[0] * x + (row[1] * y + row[2]) for row in matrix]

    def window(self, corners: Array) -> tuple[slice, slice] | None:
        """Rows and columns that can see the hull of (8, 3) world points; None if none can."""
        x, y, z = ((corners - self.position) @ self.rotation).T
        if z.max() <= NEAR:
            return None
        if z.min() <= NEAR:
            return slice(0, self.height), slice(0, self.width)
        u, v = x / z * self.focal + self.cx, y / z * self.focal + self.cy
        left, right = max(math.floor(u.min()), 0), min(math.ceil(u.max()) + 1, self.width)
        top, bottom = max(math.floor(v.min()), 0), min(math.ceil(v.max()) + 1, self.height)
        if left >= right or top >= bottom:
            return None
        return slice(top, bottom), slice(left, right)


def unit_frame(part: Primitive) -> Array:
    """(3, 3) matrix from world offsets to the frame in which the primitive is the unit shape."""
    return (part.axes.T / part.half[:, None]).astype(np.float32)


def _enter_box(origin: Array, rays: list[Array]) -> tuple[Array, Array]:
    """Depth at which rays enter the unit box, and whether they do."""
    near = far = None
    for start, ray in zip(origin, rays, strict=True):
        inverse = np.float32(1) / np.where(np.abs(ray) < 1e-7, np.float32(1e-7), ray)
        middle, reach = -start * inverse, np.abs(inverse)
        first, last = middle - reach, middle + reach
        near = first if near is None else np.maximum(near, first, out=near)
        far = last if far is None else np.minimum(far, last, out=far)
    assert near is not None
    return near, (near <= far) & (near > NEAR)


def _enter_ellipsoid(origin: Array, rays: list[Array]) -> tuple[Array, Array]:
    """Depth at which rays enter the unit ball, and whether they do."""
    dx, dy, dz = rays
    a = dx * dx + dy * dy + dz * dz
    b = origin[0] * dx + origin[1] * dy + origin[2] * dz
    discriminant = b * b - a * (origin @ origin - np.float32(1))
    near = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
    return near, (discriminant > 0) & (near > NEAR)


def _enter_cylinder(origin: Array, rays: list[Array], taper: float) -> tuple[Array, Array]:
    """Depth at which rays enter the frustum of radius 1 + taper * z, |z| <= 1, and whether they do."""
    (ox, oy, oz), (dx, dy, dz) = origin, rays
    k = np.float32(taper)
    radius = 1 + k * oz
    a = dx * dx + dy * dy - (k * dz) ** 2
    b = ox * dx + oy * dy - k * radius * dz
    discriminant = b * b - a * (ox * ox + oy * oy - radius * radius)
    root = np.sqrt(np.maximum(discriminant, 0))
    best = np.full_like(a, np.inf)
    a = np.where(np.abs(a) < 1e-9, np.float32(1e-9), a)
    for side in ((-b - root) / a, (-b + root) / a) if taper else ((-b - root) / a,):
        good = (discriminant > 0) & (side > NEAR) & (np.abs(oz + side * dz) <= 1) & (side < best)
        np.copyto(best, side, where=good)
    cap = np.float32(math.copysign(1.0, oz))  # only the cap that faces the camera can be entered
    if abs(oz) > 1:
        depth = (cap - oz) / np.where(np.abs(dz) < 1e-7, np.float32(1e-7), dz)
        reach = (ox + depth * dx) ** 2 + (oy + depth * dy) ** 2
        good = (depth > NEAR) & (reach <= (1 + k * cap) ** 2) & (depth < best)
        np.copyto(best, depth, where=good)
    return best, np.isfinite(best)


def cast(view: View, parts: list[Primitive], depth: Array, ids: Array | None = None, first_id: int = 0) -> None:
    """Draw primitives into a (H, W) depth buffer, and their ids (counted from `first_id`) into an id buffer."""
    for number, part in enumerate(parts, first_id):
        corners = part.center + (CORNERS * (part.half * (1 + abs(part.taper)))) @ part.axes.T
        window = view.window(corners)
        if window is None:
            continue
        frame = unit_frame(part)
        origin = frame @ (view.position - part.center.astype(np.float32))
        rays = view.rays(*window, frame @ view.rotation)
        if part.shape == "box":
            found, hit = _enter_box(origin, rays)
        elif part.shape == "cylinder":
            found, hit = _enter_cylinder(origin, rays, part.taper)
        else:
            found, hit = _enter_ellipsoid(origin, rays)
        closer = hit & (found < depth[window])
        np.copyto(depth[window], found, where=closer)
        if ids is not None:
            np.copyto(ids[window], number, where=closer)


def cast_shell(view: View, size: Array) -> tuple[Array, Array]:
    """Depth of the room's shell and which of its six faces is seen, both (H, W)."""
    depth = np.full((view.height, view.width), np.inf, np.float32)
    faces = np.zeros((view.height, view.width), np.int16)
    for axis, ray in enumerate(view.rays(slice(None), slice(None), view.rotation)):
        forward = ray > 0
        wall = np.where(forward, np.float32(size[axis]), np.float32(0)) - view.position[axis]
        found = wall / np.where(np.abs(ray) < 1e-7, np.float32(1e-7), ray)
        closer = (found < depth) & (found > 0)
        np.copyto(depth, found, where=closer)
        np.copyto(faces, np.int16(2 * axis) + forward, where=closer, casting="unsafe")
    return depth, faces
