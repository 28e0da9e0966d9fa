"""Ray caster of the synthetic rooms: plain NumPy, one thread, no GPU and no display."""

from dataclasses import dataclass

import numpy as np

from .rooms_casting import View, cast, cast_shell
from .rooms_lighting import illuminate, shade_surfaces
from .rooms_scene import CEILING, FLOOR, WALL, CameraPose, Scene, sample_scene
from .rooms_sensor import develop_image, measure_depth

Array = np.ndarray

MIN_SIZE, MAX_SIZE = 16, 8192  # pixels
MAX_NUMBER = 2**63 - 1
SHELL_LABELS = np.array([WALL] * 4 + [FLOOR, CEILING])


@dataclass(frozen=True)
class RoomObject:
    """One visible instance.

    Args:
        id: its value in `RoomFrame.instance_map`, 1 or more.
        category: one of `SYNTHETIC_ROOMS_CLASSES`.
        box: x0, y0, x1, y1 in pixels of its visible part; x1 and y1 are one past the last pixel.
        area: number of visible pixels.
    """

    id: int
    category: str
    box: tuple[int, int, int, int]
    area: int


@dataclass(frozen=True)
class RoomCamera:
    """Pinhole camera, x to the right, y down, z ahead; pixel (u, v) looks along ((u - cx) / fx, (v - cy) / fy, 1).

    Args:
        fx: focal length in pixels along x.
        fy: focal length in pixels along y.
        cx: column of the optical axis; column 0 is the middle of the leftmost pixel.
        cy: row of the optical axis.
        pose: (4, 4) float32, camera to world. In the world z points up and the floor is z = 0; metres.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    pose: Array


@dataclass(frozen=True)
class RoomFrame:
    """A rendered room with all that is known about it.

    Args:
        index: number of the room.
        image: (H, W, 3) uint8 sRGB.
        depth: (H, W) float32 metres along the optical axis, as a sensor measures it: with noise, and 0 in the holes.
            Rendered without holes it equals `depth_dense`.
        depth_dense: (H, W) float32 metres along the optical axis, exact, above 0 everywhere.
        normals: (H, W, 3) float32 unit vectors in the camera frame, towards the camera.
        semantic: (H, W) uint8, index in `SYNTHETIC_ROOMS_SEMANTIC_CLASSES`.
        instance_map: (H, W) uint16, 0 = background, else the `id` of an object.
        objects: the instances in the picture, by increasing `id`.
        camera: intrinsics and pose.
    """

    index: int
    image: Array
    depth: Array
    depth_dense: Array
    normals: Array
    semantic: Array
    instance_map: Array
    objects: list[RoomObject]
    camera: RoomCamera


def require_integer(name: str, value: object, low: int, high: int) -> None:
    """Reject what is no integer between two limits.

    Args:
        name: the argument's name, for the error.
        value: what came.
        low: smallest allowed value.
        high: largest allowed value.

    Raises:
        TypeError: if `value` is not an integer.
        ValueError: if it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must lie between {low} and {high}, got {value}")


def _make_view(pose: CameraPose, height: int, width: int) -> View:
    """The camera's view at a size in pixels."""
    focal = width / 2 / np.tan(pose.horizontal_fov / 2)
    return View(pose.position, pose.rotation, float(focal), height, width)


def _list_objects(scene: Scene, owners: Array) -> tuple[Array, list[RoomObject]]:
    """Instance map (H, W) with ids 1, 2, ... and the objects; slivers below 0.02 % of the picture become background."""
    height, width = owners.shape
    smallest = max(4, round(2e-4 * height * width))
    areas = np.bincount(owners.ravel(), minlength=len(scene.objects) + 1)
    new_ids = np.zeros(len(areas), np.uint16)
    objects: list[RoomObject] = []
    for owner in range(1, len(areas)):
        if areas[owner] < smallest:
            continue
        mask = owners == owner
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        bounds = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        new_ids[owner] = len(objects) + 1
        objects.append(RoomObject(len(objects) + 1, scene.objects[owner - 1], bounds, int(areas[owner])))
    return new_ids[owners], objects


def render_room(index: int, *, height: int = 240, width: int = 320, seed: int = 0, holes: bool = True) -> RoomFrame:
    """Render room number `index` of an endless, deterministic collection.

    The room does not depend on the size of the picture; camera noise does.

    Args:
        index: number of the room, 0 or more.
        height: rows of the picture, 16 to 8192.
        width: columns of the picture, 16 to 8192.
        seed: 0 or more; another seed gives another collection.
        holes: whether `depth` has a sensor's holes and noise; if not, it equals `depth_dense`.

    Returns:
        The frame.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if a number is out of range.
    """
    require_integer("index", index, 0, MAX_NUMBER)
    require_integer("seed", seed, 0, MAX_NUMBER)
    require_integer("height", height, MIN_SIZE, MAX_SIZE)
    require_integer("width", width, MIN_SIZE, MAX_SIZE)
    scene = sample_scene(int(index), int(seed))
    view = _make_view(scene.camera, int(height), int(width))
    depth, ids = cast_shell(view, scene.size)
    cast(view, scene.parts, depth, ids, first_id=len(scene.shell))
    rays = np.stack([ray.ravel() for ray in view.rays(slice(None), slice(None), view.rotation)])
    points = view.position[:, None] + rays * depth.ravel()
    surfaces = shade_surfaces([*scene.shell, *scene.parts], ids.ravel(), points, depth.ravel(), view)
    radiance = illuminate(scene, view, points, surfaces, ids < len(scene.shell))
    rng = np.random.default_rng([int(seed), int(index), 1])
    image = develop_image(radiance.reshape(3, height, width), rng)
    measured = depth.copy()
    if holes:
        cosine = -(surfaces.normals * rays).sum(0) / np.sqrt((rays * rays).sum(0))
        darkness = 1 - np.minimum(surfaces.albedo.mean(0) * 8, 1)
        shape = depth.shape
        mirror = (surfaces.glow > 0).reshape(shape)
        measured = measure_depth(depth, cosine.reshape(shape), darkness.reshape(shape), mirror, view.focal, rng)
    owners = np.concatenate([np.zeros(len(scene.shell), int), scene.owners])[ids]
    instance_map, objects = _list_objects(scene, owners)
    normals = (view.rotation.T @ surfaces.normals).reshape(3, height, width).transpose(1, 2, 0)
    pose = np.eye(4, dtype=np.float32)
    pose[:3, :3], pose[:3, 3] = view.rotation, view.position
    return RoomFrame(
        index=int(index),
        image=image,
        depth=measured,
        depth_dense=depth,
        normals=np.ascontiguousarray(normals),
        semantic=np.concatenate([SHELL_LABELS, scene.labels])[ids].astype(np.uint8),
        instance_map=instance_map,
        objects=objects,
        camera=RoomCamera(view.focal, view.focal, view.cx, view.cy, pose),
    )
