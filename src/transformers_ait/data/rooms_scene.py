"""Random descriptions of furnished rooms: shell, furniture, lights and camera, one per index.

World frame: right-handed, metres; the floor is the plane z = 0, z points up, and the room fills [0, width] x
[0, length] x [0, height]. Camera frame: x to the right, y down, z along the optical axis (as OpenCV has it).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .rooms_furniture import (
    CATEGORIES,
    FURNITURE,
    Furniture,
    Material,
    Palette,
    Primitive,
    box,
    linear_rgb,
    make_ceiling_lamp,
    rotation_about,
)

SYNTHETIC_ROOMS_CLASSES: tuple[str, ...] = tuple(CATEGORIES)
"""Categories of the instances, in the order of the `ClassLabel` of the dataset."""

SYNTHETIC_ROOMS_SEMANTIC_CLASSES: tuple[str, ...] = ("wall", "floor", "ceiling", "other", *SYNTHETIC_ROOMS_CLASSES)
"""Semantic labels: the shell of the room, clutter ("other"), then the categories of the instances."""

WALL, FLOOR, CEILING = 0, 1, 2

THEMES: dict[str, tuple[tuple[str, str, float], ...]] = {
    # piece, where it goes, probability; "top" is on another piece, "ahead" of the last one, "around" the last table
    "bedroom": (
        ("bed", "wall", 1.0),
        ("cabinet", "wall", 0.9),
        ("table_lamp", "top", 0.7),
        ("cabinet", "wall", 0.6),
        ("table", "wall", 0.4),
        ("chair", "around", 0.5),
    ),
    "living": (
        ("sofa", "wall", 1.0),
        ("table", "ahead", 0.8),
        ("sofa", "wall", 0.5),
        ("bookshelf", "wall", 0.6),
        ("cabinet", "wall", 0.6),
        ("floor_lamp", "corner", 0.6),
    ),
    "dining": (
        ("table", "free", 1.0),
        ("chair", "around", 1.0),
        ("chair", "around", 0.9),
        ("chair", "around", 0.8),
        ("chair", "around", 0.7),
        ("cabinet", "wall", 0.7),
        ("cabinet", "wall", 0.4),
    ),
    "office": (
        ("table", "wall", 1.0),
        ("chair", "ahead", 0.9),
        ("table_lamp", "top", 0.7),
        ("bookshelf", "wall", 0.9),
        ("bookshelf", "wall", 0.5),
        ("table", "wall", 0.4),
        ("chair", "ahead", 0.6),
    ),
    "storage": (("box", "free", 0.9), ("box", "wall", 0.8), ("box", "wall", 0.6), ("cabinet", "wall", 0.4)),
}
EXTRAS: tuple[tuple[str, str, float], ...] = (
    ("plant", "corner", 0.4),
    ("small_box", "top", 0.35),
    ("table_lamp", "top", 0.2),
    ("ball", "free", 0.35),
    ("box", "free", 0.3),
    ("chair", "free", 0.3),
    ("floor_lamp", "corner", 0.2),
    ("plant", "free", 0.15),
    ("ball", "free", 0.1),
)
MOUNTED: tuple[tuple[str, float], ...] = (
    ("door", 0.8),
    ("window", 0.8),
    ("window", 0.4),
    ("picture", 0.8),
    ("picture", 0.6),
    ("picture", 0.4),
)


@dataclass(frozen=True)
class Light:
    """A small light.

    Args:
        position: (3,) metres.
        color: (3,) linear RGB times power.
        facing: (3,) unit direction of a one-sided light such as a window, or None for one that shines all around.
    """

    position: np.ndarray
    color: np.ndarray
    facing: np.ndarray | None = None


@dataclass(frozen=True)
class Sun:
    """Sunlight that falls through a window.

    Args:
        direction: (3,) unit vector towards the sun.
        color: (3,) linear RGB times power.
        axis: coordinate (0 or 1) that is constant on the window's wall.
        center: (3,) middle of the window, metres.
        half: half width and half height of the window, metres.
    """

    direction: np.ndarray
    color: np.ndarray
    axis: int
    center: np.ndarray
    half: tuple[float, float]


@dataclass(frozen=True)
class CameraPose:
    """Where the camera stands.

    Args:
        position: (3,) metres.
        rotation: (3, 3) from camera to world; columns are the camera's right, down and forward directions.
        horizontal_fov: radians.
    """

    position: np.ndarray
    rotation: np.ndarray
    horizontal_fov: float


@dataclass(frozen=True)
class Scene:
    """All that is in one room.

    Args:
        size: width (x), length (y) and height (z), metres.
        shell: the walls x = 0, x = width, y = 0, y = length, then floor and ceiling, as slabs outside the room.
        parts: primitives inside the room.
        owners: per part, 1 + its index in `objects`; 0 for what is no instance.
        labels: per part, its index in `SYNTHETIC_ROOMS_SEMANTIC_CLASSES`.
        objects: the categories of the instances.
        ambient: (3,) linear RGB of the indirect light.
        shadow_light: the light under the ceiling, which casts shadows.
        lights: further lights, without shadows.
        sun: sunlight through a window, or None.
        camera: the camera's pose.
    """

    size: np.ndarray
    shell: list[Primitive]
    parts: list[Primitive]
    owners: np.ndarray
    labels: np.ndarray
    objects: list[str]
    ambient: np.ndarray
    shadow_light: Light
    lights: list[Light]
    sun: Sun | None
    camera: CameraPose


@dataclass(frozen=True)
class _Placed:
    furniture: Furniture
    yaw: float
    position: np.ndarray
    parts: list[Primitive]


class _Layout:
    """Furniture placed so far, and the space it takes."""

    def __init__(self, size: np.ndarray, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        self.placed: list[_Placed] = []
        self.occupied = np.zeros((0, 2, 3))

    def block(self, bounds: np.ndarray) -> None:
        """Keep the (N, 2, 3) boxes free of further furniture."""
        self.occupied = np.concatenate([self.occupied, bounds])

    def fits(self, bounds: np.ndarray, margin: float) -> bool:
        """Whether (N, 2, 3) boxes lie in the room and meet nothing."""
        if (bounds[:, 0] < -1e-3).any() or (bounds[:, 1] > self.size + 1e-3).any():
            return False
        low, high = bounds[:, None, 0] + margin, bounds[:, None, 1] - margin
        return not ((low < self.occupied[None, :, 1]) & (high > self.occupied[None, :, 0])).all(-1).any()

    def add(
        self, furniture: Furniture, yaw: float, position: np.ndarray | Sequence[float], margin: float = -0.01
    ) -> bool:
        """Place a piece if there is room for it; returns whether there was."""
        rotation, offset = rotation_about(2, yaw), np.asarray(position, dtype=float)
        parts = [part.moved(rotation, offset) for part in furniture.parts]
        bounds = np.stack([part.bounds() for part in parts])
        if not self.fits(bounds, margin):
            return False
        self.placed.append(_Placed(furniture, yaw, offset, parts))
        self.block(bounds)
        return True

    def wall_spot(self, wall: int, along: float) -> tuple[float, np.ndarray, np.ndarray]:
        """Yaw of a piece with its back to wall 0..3, the point `along` (0..1) that wall, and the inward direction."""
        yaw = wall * math.pi / 2
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * self.size[:2]
        point = corners[wall] * (1 - along) + corners[wall + 1] * along
        return yaw, np.array([point[0], point[1], 0.0]), np.array([-math.sin(yaw), math.cos(yaw), 0.0])

    def against_wall(self, furniture: Furniture, corner: bool) -> bool:
        """Place a piece with its back to a random wall, in a corner if asked."""
        gap = self.rng.uniform(0.06, 0.1) - furniture.bounds()[0, 1]
        half = max(abs(furniture.bounds()[:, 0]))
        for _ in range(10):
            wall = int(self.rng.integers(4))
            length = self.size[wall % 2]
            if length < 2 * half + 0.1:
                continue
            low = (half + 0.05) / length
            along = self.rng.choice([low, 1 - low]) if corner else self.rng.uniform(low, 1 - low)
            yaw, point, inward = self.wall_spot(wall, along)
            if self.add(furniture, yaw, point + gap * inward):
                return True
        return False

    def free(self, furniture: Furniture) -> bool:
        """Place a piece anywhere on the floor, turned at random (often along the walls)."""
        for _ in range(10):
            turn = self.rng.uniform(0, 2 * math.pi) if self.rng.uniform() < 0.6 else math.pi / 2 * self.rng.integers(4)
            x, y = self.rng.uniform(0.2, 0.8, 2) * self.size[:2]
            if self.add(furniture, turn, (x, y, 0)):
                return True
        return False

    def ahead(self, furniture: Furniture) -> bool:
        """Place a piece in front of the last sofa, table or cabinet, facing it."""
        for anchor in reversed(self.placed):
            if anchor.furniture.category not in ("sofa", "table", "cabinet"):
                continue
            reach = anchor.furniture.bounds()[1, 1] + furniture.bounds()[1, 1] + self.rng.uniform(-0.1, 0.45)
            offset = rotation_about(2, anchor.yaw) @ [self.rng.uniform(-0.2, 0.2), reach, 0]
            turn = anchor.yaw + math.pi + self.rng.normal(0, 0.15 if furniture.category == "chair" else 0.0)
            return self.add(furniture, turn, anchor.position + offset)
        return False

    def around(self, furniture: Furniture) -> bool:
        """Place a chair at a random side of the last table, facing it."""
        tables = [placed for placed in self.placed if placed.furniture.category == "table"]
        if not tables:
            return self.free(furniture)
        table = tables[-1]
        for _ in range(6):
            side = int(self.rng.integers(4))
            extent = table.furniture.bounds()[1, 1 - side % 2]
            reach = extent + furniture.bounds()[1, 1] + self.rng.uniform(-0.25, 0.15)
            turn = table.yaw + side * math.pi / 2
            slide = self.rng.uniform(-0.3, 0.3) * table.furniture.bounds()[1, side % 2]
            offset = rotation_about(2, turn) @ [slide, reach, 0]
            if self.add(furniture, turn + math.pi + self.rng.normal(0, 0.12), table.position + offset):
                return True
        return False

    def on_top(self, furniture: Furniture) -> bool:
        """Place a small piece on a random surface."""
        for index in self.rng.permutation(len(self.placed)):
            base = self.placed[index]
            if base.furniture.surface is None:
                continue
            width, depth, height = base.furniture.surface
            x = self.rng.uniform(-0.5, 0.5) * max(width - 0.3, 0)
            y = self.rng.uniform(-0.5, 0.5) * max(depth - 0.3, 0)
            position = base.position + rotation_about(2, base.yaw) @ [x, y, height + 0.001]
            if self.add(furniture, base.yaw + self.rng.normal(0, 0.2), position, margin=0.0):
                return True
        return False

    def mount(self, furniture: Furniture, height: float) -> bool:
        """Hang a piece on a random wall, its lower edge at `height`; the floor ahead of a door stays free."""
        half = max(abs(furniture.bounds()[:, 0])) + 0.05
        for _ in range(8):
            wall = int(self.rng.integers(4))
            length = self.size[wall % 2]
            if length < 2 * half + 0.1:
                continue
            yaw, point, inward = self.wall_spot(wall, self.rng.uniform(half / length, 1 - half / length))
            if not self.add(furniture, yaw, point + [0, 0, height], margin=-0.04):
                continue
            if furniture.category == "door":
                middle = point + 0.45 * inward
                self.block(np.stack([middle - [0.45, 0.45, 0], middle + [0.45, 0.45, 1.9]])[None])
            return True
        return False


def _surface_material(rng: np.random.Generator, kind: str) -> Material:
    """Covering of a wall, floor or ceiling."""
    hue, pale = rng.uniform(), rng.uniform(0.6, 0.95)
    if kind == "ceiling":
        return Material("noise", linear_rgb(hue, 0.04, 0.93), linear_rgb(hue, 0.05, 0.86), 1.0)
    if kind == "wall":
        saturation = rng.choice([rng.uniform(0, 0.12), rng.uniform(0.1, 0.45)], p=[0.65, 0.35])
        color = linear_rgb(hue, saturation, pale)
        pattern = str(rng.choice(["noise", "stripes", "bricks", "dots", "tiles"], p=[0.76, 0.1, 0.05, 0.04, 0.05]))
        shade = rng.uniform(0.88, 0.97) if pattern == "noise" else rng.uniform(0.78, 0.95)
        second = linear_rgb(hue + rng.normal(0, 0.03), min(saturation * 1.3, 1), pale * shade)
        return Material(pattern, color, second, {"noise": 1.5, "tiles": 0.25}.get(pattern, rng.uniform(0.15, 0.4)))
    pattern = str(rng.choice(["wood", "tiles", "fabric", "checker"], p=[0.5, 0.2, 0.2, 0.1]))
    if pattern == "wood":
        hue, value = rng.uniform(0.05, 0.1), rng.uniform(0.3, 0.85)
        light, dark = (linear_rgb(hue, rng.uniform(0.3, 0.6), value * factor) for factor in (1.0, 0.7))
        return Material("wood", light, dark, rng.uniform(0.08, 0.2), gloss=rng.uniform(0, 0.4))
    saturation = rng.uniform(0, 0.4)
    color, second = linear_rgb(hue, saturation, pale), linear_rgb(hue, saturation, pale * rng.uniform(0.35, 0.8))
    scale = 0.15 if pattern == "fabric" else rng.uniform(0.2, 0.6)
    return Material(pattern, color, second, scale, gloss=0.0 if pattern == "fabric" else rng.uniform(0.1, 0.4))


def _make_shell(size: np.ndarray, rng: np.random.Generator) -> list[Primitive]:
    """The six slabs around the room; one wall may have an accent colour."""
    wall = _surface_material(rng, "wall")
    materials = [wall] * 4 + [_surface_material(rng, "floor"), _surface_material(rng, "ceiling")]
    if rng.uniform() < 0.3:
        materials[int(rng.integers(4))] = _surface_material(rng, "wall")
    slabs = []
    for face, material in enumerate(materials):
        axis, far = divmod(face, 2)
        half, center = size / 2 + 1.0, size / 2
        half[axis] = 0.1
        center[axis] = size[axis] + 0.1 if far else -0.1
        slabs.append(Primitive("box", center, np.eye(3), half, material))
    return slabs


def _add_structure(layout: _Layout, wall: Material, rng: np.random.Generator) -> list[Primitive]:
    """Corner block that makes the room L-shaped, or a pillar; mostly nothing."""
    width, length, height = (float(side) for side in layout.size)
    draw = rng.uniform()
    if draw < 0.2 and min(width, length) > 3.2:
        block_x, block_y = rng.uniform(0.2, 0.4) * width, rng.uniform(0.2, 0.4) * length
        corner_x, corner_y = rng.choice([-1, 1], 2)
        at = (width / 2 + corner_x * (width - block_x) / 2, length / 2 + corner_y * (length - block_y) / 2, 0.0)
        block = box(wall, (block_x, block_y, height), at)
    elif draw < 0.3 and min(width, length) > 3.2:
        side = rng.uniform(0.25, 0.45)
        block = box(wall, (side, side, height), (rng.uniform(0.15, 0.85) * width, rng.uniform(0.15, 0.85) * length, 0))
    else:
        return []
    layout.block(block.bounds()[None])
    return [block]


def _furnish(layout: _Layout, palette: Palette) -> None:
    """Fill the room: things on the walls first, then one theme, then extras."""
    rng = layout.rng
    for name, probability in MOUNTED:
        if rng.uniform() < probability:
            piece = FURNITURE[name](palette)
            ceiling = layout.size[2] - piece.bounds()[1, 2] - 0.05
            low = {"door": 0.0, "window": rng.uniform(0.8, 1.0), "picture": rng.uniform(1.1, 1.5)}[name]
            layout.mount(piece, float(min(low, ceiling)))
    themes = rng.choice(list(THEMES), 2, replace=False, p=[0.25, 0.25, 0.2, 0.2, 0.1])
    clutter = rng.uniform(0.4, 1.5)
    wishes = list(THEMES[str(themes[0])])
    if np.prod(layout.size[:2]) > 14:
        wishes += THEMES[str(themes[1])]
    wishes += [(name, where, clutter * chance) for name, where, chance in EXTRAS]
    if rng.uniform() < 0.08:
        wishes = wishes[:2]
    for name, where, probability in wishes:
        if rng.uniform() >= probability:
            continue
        piece = FURNITURE[name](palette)
        if where in ("wall", "corner"):
            layout.against_wall(piece, corner=where == "corner")
        else:
            {"free": layout.free, "ahead": layout.ahead, "around": layout.around, "top": layout.on_top}[where](piece)


def _look_at(positions: np.ndarray, targets: np.ndarray, rolls: np.ndarray) -> np.ndarray:
    """(K, 3, 3) rotations, camera to world, of cameras at (K, 3) positions that look at (K, 3) targets."""
    forward = targets - positions
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    level = np.stack([right, np.cross(forward, right), forward], axis=2)
    return level @ np.stack([rotation_about(2, roll) for roll in rolls])


def _probe(
    positions: np.ndarray, rotations: np.ndarray, spread: float, size: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What K cameras see along 7 x 5 rays: distances (K, 35), and the box hit, or -1 for the shell (K, 35)."""
    x, y = np.meshgrid(np.linspace(-0.9, 0.9, 7) * spread, np.linspace(-0.9, 0.9, 5) * spread * 0.75)
    rays = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3) @ rotations.transpose(0, 2, 1)
    inverse = 1 / np.where(np.abs(rays) < 1e-6, 1e-6, rays)
    start = positions[:, None]
    room = np.maximum((size - start) * inverse, -start * inverse).min(-1)
    first = (boxes[:, 0] - start)[:, None] * inverse[:, :, None]
    second = (boxes[:, 1] - start)[:, None] * inverse[:, :, None]
    near, far = np.minimum(first, second).max(-1), np.maximum(first, second).min(-1)
    hits = np.where((near < far) & (far > 0), np.maximum(near, 0), np.inf)
    nearest = hits.min(-1)
    return np.minimum(room, nearest), np.where(nearest < room, hits.argmin(-1), -1)


def _sample_camera(size: np.ndarray, boxes: np.ndarray, owners: np.ndarray, rng: np.random.Generator) -> CameraPose:
    """The best of some random views: nothing within half a metre, and a look at several things rather than at a wall.

    Args:
        size: the room's size, metres.
        boxes: (N, 2, 3) bounds of all parts in the room.
        owners: (N,) the thing each part belongs to.
        rng: source of the views.
    """
    count = 24
    fov = math.radians(rng.uniform(50, 75))
    heights = np.clip(rng.normal(1.4, 0.3, count), 0.6, min(2.0, size[2] - 0.25))
    positions = np.column_stack([rng.uniform(0.25, size[:2] - 0.25, (count, 2)), heights])
    angles = rng.uniform(0, 2 * math.pi, count)
    inner = rng.uniform(0.15, 0.85, (count, 2)) * size[:2]
    targets = np.column_stack([inner, rng.uniform(0.1, 1.7, count)])
    close = np.hypot(*(targets - positions)[:, :2].T) < 1.0
    targets[close, :2] = positions[close, :2] + 1.5 * np.column_stack([np.cos(angles), np.sin(angles)])[close]
    rotations = _look_at(positions, targets, np.radians(rng.normal(0, 2.5, count)))
    far_away = np.full((1, 2, 3), 1e3)
    distances, hits = _probe(positions, rotations, math.tan(fov / 2), size, np.concatenate([boxes, far_away]))
    gaps = np.maximum(np.maximum(boxes[:, 0] - positions[:, None], positions[:, None] - boxes[:, 1]), 0)
    clearance = np.linalg.norm(gaps, axis=-1).min(-1, initial=0.5)
    seen = np.array([len(set(owners[row[row >= 0]])) for row in hits])
    median, crowding = np.median(distances, axis=1), (distances < 0.75).mean(1)
    score = np.minimum(seen, 6) + rng.normal(0, 1.5, count) + 4 * np.minimum(median, 1.5) - 12 * crowding
    score += np.where(clearance < 0.4, 40 * clearance - 40, 0)
    best = int(score.argmax())
    return CameraPose(positions[best], rotations[best], fov)


def _warm(rng: np.random.Generator, spread: float) -> np.ndarray:
    """(3,) light colour between warm and cool white."""
    tone = rng.normal(0.08, spread)
    return np.array([1 + tone, 1.0, 1 - 1.3 * tone]).clip(0.4, 1.6)


def _sample_lights(layout: _Layout, rng: np.random.Generator) -> tuple[np.ndarray, Light, list[Light], Sun | None]:
    """Ambient light, the ceiling light, lights of windows and lamps, and the sun."""
    width, length, height = (float(side) for side in layout.size)
    spot = np.array([rng.uniform(0.3, 0.7) * width, rng.uniform(0.3, 0.7) * length, height - 0.25])
    main = Light(spot, _warm(rng, 0.12) * rng.uniform(0.5, 2.2) * (0.7 + 0.06 * width * length))
    lights: list[Light] = []
    sun = None
    for placed in layout.placed:
        glow = max(part.material.glow for part in placed.parts)
        if placed.furniture.category == "lamp" and glow > 0:
            top = max(placed.parts, key=lambda part: part.material.glow).center
            lights.append(Light(top, glow * _warm(rng, 0.05) * [1.1, 1.0, 0.75] * rng.uniform(0.2, 0.5)))
        if placed.furniture.category == "window" and glow > 0.1:
            pane = placed.parts[0]
            inward = np.array([-math.sin(placed.yaw), math.cos(placed.yaw), 0.0])
            lights.append(Light(pane.center + 0.05 * inward, _warm(rng, 0.05) * [0.85, 1, 1.15] * glow * 2.0, inward))
            if sun is None and rng.uniform() < 0.35:
                side, up = rng.uniform(-0.8, 0.8), rng.uniform(0.4, 1.3)
                outward = -inward + side * np.array([inward[1], -inward[0], 0]) + [0, 0, up]
                axis = int(np.argmax(np.abs(inward)))
                color = np.array([1.1, 1.0, 0.8]) * rng.uniform(1.0, 2.5) * glow
                half = (float(pane.half[0]), float(pane.half[2]))
                sun = Sun(outward / np.linalg.norm(outward), color, axis, pane.center, half)
    ambient = _warm(rng, 0.05) * rng.uniform(0.12, 0.35)
    return ambient, main, lights[:3], sun


def sample_scene(index: int, seed: int) -> Scene:
    """Describe room number `index`.

    Args:
        index: number of the room, 0 or more.
        seed: seed of the whole dataset, 0 or more.

    Returns:
        The scene; the same for the same arguments, whatever the picture's size.
    """
    rng = np.random.default_rng([seed, index, 0])
    size = np.array([*2.5 * (8.0 / 2.5) ** rng.beta(1.2, 1.6, 2), rng.uniform(2.2, 3.5)])
    palette, layout = Palette(rng), _Layout(size, rng)
    shell = _make_shell(size, rng)
    structure = _add_structure(layout, shell[0].material, rng)
    _furnish(layout, palette)
    ambient, main, lights, sun = _sample_lights(layout, rng)
    things = [(placed.furniture.category, placed.parts) for placed in layout.placed]
    if rng.uniform() < 0.7:
        hanging = make_ceiling_lamp(palette, rng.uniform(0.0, 0.45) if size[2] > 2.5 else 0.02)
        parts = [part.moved(np.eye(3), np.array([*main.position[:2], size[2]])) for part in hanging.parts]
        things.append((hanging.category, parts))
    if rng.uniform() < 0.45:
        rug = FURNITURE["rug"](palette)
        turn, offset = rotation_about(2, rng.normal(0, 0.1)), np.array([*rng.uniform(0.4, 0.6, 2) * size[:2], 0.0])
        things.append((rug.category, [part.moved(turn, offset) for part in rug.parts]))
    parts, labels, owners, objects = list(structure), [WALL] * len(structure), [0] * len(structure), []
    for category, pieces in things:
        owner = 0
        if category != "other":
            objects.append(category)
            owner = len(objects)
        parts += pieces
        owners += [owner] * len(pieces)
        labels += [SYNTHETIC_ROOMS_SEMANTIC_CLASSES.index(category)] * len(pieces)
    bounds = np.array([part.bounds() for part in parts]).reshape(-1, 2, 3)
    ids, categories = np.array(owners, dtype=int), np.array(labels, dtype=int)
    camera = _sample_camera(size, bounds, ids, rng)
    return Scene(size, shell, parts, ids, categories, objects, ambient, main, lights, sun, camera)
