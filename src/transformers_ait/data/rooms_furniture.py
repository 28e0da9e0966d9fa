"""Furniture of the synthetic rooms: every piece is a list of boxes, cylinders and ellipsoids.

Object frame: origin on the floor below the middle of the piece, x to the right, y towards the front (away from the wall
behind it), z up, metres.
"""

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

Vector = tuple[float, float, float]

WHITE: Vector = (0.8, 0.8, 0.78)
BLACK: Vector = (0.015, 0.015, 0.018)


@dataclass(frozen=True)
class Material:
    """Surface appearance.

    Args:
        pattern: name of a procedural texture, a key of `rooms_textures.PATTERNS`.
        color: linear RGB in [0, 1].
        second: linear RGB the pattern mixes with `color`.
        scale: period of the pattern in metres.
        gloss: strength of the specular highlight.
        glow: emitted radiance relative to the albedo; 0 for everything but lamps and window panes.
    """

    pattern: str
    color: Vector
    second: Vector
    scale: float = 0.3
    gloss: float = 0.0
    glow: float = 0.0


@dataclass(frozen=True)
class Primitive:
    """A box, cylinder or ellipsoid: the image of [-1, 1]^3, of the unit cylinder along z or of the unit ball.

    Args:
        shape: "box", "cylinder" or "ellipsoid".
        center: (3,) metres.
        axes: (3, 3) rotation; columns are the local axes.
        half: (3,) half sizes along the local axes, metres.
        material: surface appearance.
        taper: cylinders only: the radius runs from 1 - taper at the bottom to 1 + taper at the top, in units of `half`.
    """

    shape: str
    center: np.ndarray
    axes: np.ndarray
    half: np.ndarray
    material: Material
    taper: float = 0.0

    def moved(self, rotation: np.ndarray, offset: np.ndarray) -> "Primitive":
        """The primitive rotated by a (3, 3) matrix about the origin, then shifted by a (3,) offset."""
        return replace(self, center=rotation @ self.center + offset, axes=rotation @ self.axes)

    def bounds(self) -> np.ndarray:
        """Axis-aligned bounds, (2, 3): lowest and highest corner."""
        reach = np.abs(self.axes) @ self.half
        return np.stack([self.center - reach, self.center + reach])


@dataclass(frozen=True)
class Furniture:
    """One piece in its object frame.

    Args:
        category: one of `SYNTHETIC_ROOMS_CLASSES`, or "other" for clutter, which is no instance.
        parts: the primitives.
        surface: width, depth and height of the plane on which smaller things may stand, or None.
    """

    category: str
    parts: list[Primitive]
    surface: Vector | None = None

    def bounds(self) -> np.ndarray:
        """Axis-aligned bounds of all parts, (2, 3)."""
        corners = np.stack([part.bounds() for part in self.parts])
        return np.stack([corners[:, 0].min(0), corners[:, 1].max(0)])


def rotation_about(axis: int, angle: float) -> np.ndarray:
    """(3, 3) rotation by `angle` radians about coordinate axis 0, 1 or 2."""
    matrix = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[i, i] = matrix[j, j] = math.cos(angle)
    matrix[j, i], matrix[i, j] = math.sin(angle), -math.sin(angle)
    return matrix


def box(material: Material, size: Vector, at: Vector, axes: np.ndarray | None = None) -> Primitive:
    """Box of full `size` standing with the middle of its bottom face at `at`."""
    half = np.array(size) / 2
    return Primitive("box", np.array(at) + [0, 0, half[2]], np.eye(3) if axes is None else axes, half, material)


def cylinder(material: Material, radius: float, height: float, at: Vector, taper: float = 0.0) -> Primitive:
    """Upright cylinder (or, with `taper`, frustum) of mean `radius` standing at `at`."""
    half = np.array([radius, radius, height / 2])
    return Primitive("cylinder", np.array(at) + [0, 0, height / 2], np.eye(3), half, material, taper)


def ellipsoid(material: Material, size: Vector, at: Vector) -> Primitive:
    """Ellipsoid of full `size` standing at `at`."""
    half = np.array(size) / 2
    return Primitive("ellipsoid", np.array(at) + [0, 0, half[2]], np.eye(3), half, material)


def linear_rgb(hue: float, saturation: float, value: float) -> Vector:
    """Linear RGB of a colour given in HSV, all in [0, 1]."""
    red, green, blue = (channel**2.2 for channel in colorsys.hsv_to_rgb(hue % 1.0, saturation, value))
    return red, green, blue


def plain(color: Vector, gloss: float = 0.0, glow: float = 0.0) -> Material:
    """Material of one colour."""
    return Material("plain", color, color, gloss=gloss, glow=glow)


class Palette:
    """Draws the materials of one room, which share a few tones.

    Args:
        rng: source of all choices.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.wood_hue = rng.uniform(0.045, 0.1)
        self.wood_value = rng.uniform(0.25, 0.85)
        self.accents = [self.any_color() for _ in range(3)]

    def any_color(self) -> Vector:
        """Any colour."""
        return linear_rgb(self.rng.uniform(), 0.1 + 0.75 * self.rng.beta(1.5, 2.0), self.rng.uniform(0.2, 0.9))

    def wood(self) -> Material:
        """Wood in the room's tone, sometimes painted white or black."""
        draw = self.rng.uniform()
        if draw < 0.2:
            return plain(WHITE if draw < 0.14 else BLACK, gloss=0.2)
        value = float(np.clip(self.wood_value + self.rng.normal(0, 0.1), 0.2, 0.9))
        saturation = self.rng.uniform(0.35, 0.65)
        light, dark = (linear_rgb(self.wood_hue, saturation, value * factor) for factor in (1.0, 0.72))
        return Material("wood", light, dark, self.rng.uniform(0.3, 0.6), gloss=self.rng.uniform(0, 0.25))

    def metal(self) -> Material:
        """Grey or black metal."""
        shade = self.rng.choice([0.02, 0.15, 0.45])
        return plain((shade, shade, shade * 1.03), gloss=0.5)

    def fabric(self) -> Material:
        """Woven, striped, checked or dotted cloth."""
        color = self.accents[self.rng.integers(3)] if self.rng.uniform() < 0.6 else self.any_color()
        if self.rng.uniform() < 0.3:
            grey = self.rng.uniform(0.03, 0.7)
            color = (grey, grey, grey)
        pattern = str(self.rng.choice(["fabric", "fabric", "fabric", "stripes", "checker", "dots"]))
        if pattern == "fabric":
            return Material(pattern, color, (color[0] * 0.6, color[1] * 0.6, color[2] * 0.6), 0.12)
        second = WHITE if self.rng.uniform() < 0.5 else self.any_color()
        return Material(pattern, color, second, self.rng.uniform(0.06, 0.25))


def four_legs(material: Material, width: float, depth: float, height: float, thickness: float) -> list[Primitive]:
    """Legs at the corners of a `width` x `depth` rectangle."""
    x, y = (width - thickness) / 2, (depth - thickness) / 2
    return [box(material, (thickness, thickness, height), (i * x, j * y, 0)) for i in (-1, 1) for j in (-1, 1)]


def make_bed(palette: Palette) -> Furniture:
    """Bed with mattress, blanket, pillows and headboard; the head is at the back."""
    rng, frame = palette.rng, palette.wood()
    width, depth = rng.choice([0.9, 1.2, 1.5, 1.8]) + rng.uniform(0, 0.1), rng.uniform(1.95, 2.15)
    base, top = rng.uniform(0.18, 0.3), rng.uniform(0.45, 0.6)
    head = rng.uniform(0.8, 1.2)
    blanket = rng.uniform(0.55, 0.75) * depth
    parts = [
        *four_legs(frame, width, depth, 0.1, 0.07),
        box(frame, (width, depth, base - 0.1), (0, 0, 0.1)),
        box(plain(WHITE), (width - 0.04, depth - 0.08, top - base), (0, 0.02, base)),
        box(palette.fabric(), (width + 0.02, blanket, top - base + 0.04), (0, depth / 2 - blanket / 2 + 0.01, base)),
        box(frame, (width + 0.06, 0.06, head), (0, -depth / 2 - 0.03, 0)),
    ]
    pillows = 1 if width < 1.1 else 2
    cover = plain(WHITE) if rng.uniform() < 0.6 else palette.fabric()
    pillow_width = min(0.7, width / pillows * 0.9)
    for i in range(pillows):
        x = (i - (pillows - 1) / 2) * width / pillows
        parts.append(ellipsoid(cover, (pillow_width, 0.42, 0.2), (x, -depth / 2 + 0.3, top - 0.03)))
    if rng.uniform() < 0.3:
        parts.append(box(frame, (width + 0.06, 0.05, top + 0.1), (0, depth / 2 + 0.03, 0)))
    return Furniture("bed", parts)


def make_chair(palette: Palette) -> Furniture:
    """Chair with four legs or a pedestal, a solid or slatted back, sometimes arms; or a stool."""
    rng, frame = palette.rng, palette.wood() if palette.rng.uniform() < 0.7 else palette.metal()
    seat_material = palette.fabric() if rng.uniform() < 0.5 else frame
    width, depth, height = rng.uniform(0.4, 0.5), rng.uniform(0.4, 0.48), rng.uniform(0.43, 0.48)
    pedestal = rng.uniform() < 0.2
    if pedestal:
        metal = palette.metal()
        parts = [cylinder(metal, 0.26, 0.04, (0, 0, 0)), cylinder(metal, 0.03, height, (0, 0, 0))]
    else:
        parts = four_legs(frame, width - 0.02, depth - 0.02, height, 0.035)
    parts.append(box(seat_material, (width, depth, 0.05), (0, 0, height)))
    if rng.uniform() < 0.1:
        return Furniture("chair", parts)
    back, y = rng.uniform(0.38, 0.55), -depth / 2 + 0.02
    if rng.uniform() < 0.5:
        parts.append(box(seat_material, (width, 0.04, back), (0, y, height + 0.05)))
    else:
        x = width / 2 - 0.02
        parts += [box(frame, (0.035, 0.035, back), (side * x, y, height + 0.05)) for side in (-1, 1)]
        slats = int(rng.integers(2, 4))
        parts += [
            box(frame, (width - 0.06, 0.025, 0.07), (0, y, height + back * (i + 1) / slats - 0.03))
            for i in range(slats)
        ]
    if rng.uniform() < 0.25:
        for x in (-width / 2 - 0.02, width / 2 + 0.02):
            parts.append(box(frame, (0.04, depth * 0.8, 0.04), (x, 0, height + 0.22)))
            parts.append(box(frame, (0.04, 0.04, 0.22), (x, depth * 0.3, height)))
    return Furniture("chair", parts)


def make_sofa(palette: Palette) -> Furniture:
    """Armchair or sofa with one to three cushions."""
    rng, cloth = palette.rng, palette.fabric()
    seats = int(rng.choice([1, 2, 2, 3]))
    arm = rng.uniform(0.12, 0.22)
    width, depth = seats * rng.uniform(0.58, 0.75) + 2 * arm, rng.uniform(0.8, 0.95)
    seat, back, arm_height = rng.uniform(0.38, 0.45), rng.uniform(0.75, 0.95), rng.uniform(0.55, 0.65)
    foot, thickness = rng.uniform(0.04, 0.14), 0.2
    parts = [
        *four_legs(palette.wood(), width - 0.08, depth - 0.08, foot, 0.06),
        box(cloth, (width - 2 * arm, depth, seat - 0.14 - foot), (0, 0, foot)),
        box(cloth, (width - 2 * arm, thickness, back - foot), (0, -depth / 2 + thickness / 2, foot)),
    ]
    for side in (-1, 1):
        parts.append(box(cloth, (arm, depth, arm_height - foot), (side * (width - arm) / 2, 0, foot)))
    cushion, pitch = palette.fabric() if rng.uniform() < 0.25 else cloth, (width - 2 * arm) / seats
    for i in range(seats):
        x = (i - (seats - 1) / 2) * pitch
        parts.append(box(cushion, (pitch - 0.015, depth - thickness, 0.14), (x, thickness / 2 + 0.02, seat - 0.14)))
    for _ in range(int(rng.integers(0, 3))):
        lean = rotation_about(2, rng.uniform(-0.4, 0.4)) @ rotation_about(0, 0.3)
        x = rng.uniform(-0.5, 0.5) * (width - 2 * arm - 0.4)
        parts.append(box(palette.fabric(), (0.4, 0.12, 0.4), (x, -depth / 2 + thickness + 0.12, seat), lean))
    return Furniture("sofa", parts)


def table_clutter(palette: Palette, width: float, depth: float, height: float) -> list[Primitive]:
    """A few small things lying on a surface: books, cups, bowls, a vase, a laptop."""
    rng, parts = palette.rng, []
    slots = rng.permutation(4)[: rng.integers(0, 4)]
    for slot in slots:
        x = (slot - 1.5) / 4 * width * 0.85 + rng.normal(0, 0.01)
        y = rng.uniform(-0.25, 0.25) * depth
        kind = rng.integers(5)
        if kind == 0:
            for i in range(int(rng.integers(1, 4))):
                turn = rotation_about(2, rng.uniform(-0.4, 0.4))
                parts.append(box(plain(palette.any_color()), (0.15, 0.21, 0.03), (x, y, height + 0.03 * i), turn))
        elif kind == 1:
            parts.append(cylinder(plain(palette.any_color(), gloss=0.3), 0.04, 0.1, (x, y, height), 0.1))
        elif kind == 2:
            parts.append(cylinder(plain(palette.any_color(), gloss=0.3), 0.1, 0.08, (x, y, height), 0.35))
        elif kind == 3:
            vase = plain(palette.any_color(), gloss=0.5)
            parts.append(ellipsoid(vase, (0.14, 0.14, 0.18), (x, y, height - 0.01)))
            parts.append(cylinder(vase, 0.03, 0.12, (x, y, height + 0.13), 0.3))
        else:
            shell = plain((0.3, 0.3, 0.32), gloss=0.3)
            parts.append(box(shell, (0.32, 0.22, 0.018), (x, y, height)))
            lid = rotation_about(0, 0.25)
            parts.append(box(plain(BLACK, gloss=0.4), (0.32, 0.012, 0.21), (x, y - 0.13, height + 0.005), lid))
    return parts


def make_table(palette: Palette) -> Furniture:
    """Dining table, desk, coffee table or round table, with things on it."""
    rng, top = palette.rng, palette.wood()
    kind = rng.choice(["dining", "desk", "coffee", "round"])
    height = rng.uniform(0.36, 0.48) if kind == "coffee" else rng.uniform(0.7, 0.78)
    legs = top if rng.uniform() < 0.7 else palette.metal()
    if kind == "round":
        radius = rng.uniform(0.4, 0.6)
        parts = [
            cylinder(top, radius, 0.04, (0, 0, height - 0.04)),
            cylinder(legs, 0.05, height - 0.04, (0, 0, 0)),
            cylinder(legs, radius * 0.55, 0.03, (0, 0, 0)),
        ]
        width = depth = radius * 1.3
        return Furniture("table", parts + table_clutter(palette, width, depth, height), (width, depth, height))
    low, high = {"dining": (1.1, 1.9), "desk": (1.0, 1.5), "coffee": (0.8, 1.2)}[kind]
    width, depth = rng.uniform(low, high), rng.uniform(0.55, 0.7) if kind != "dining" else rng.uniform(0.75, 0.95)
    parts = [box(top, (width, depth, 0.04), (0, 0, height - 0.04))]
    if kind == "desk" and rng.uniform() < 0.5:
        parts += [
            box(top, (0.04, depth - 0.02, height - 0.04), (x, 0, 0)) for x in (-width / 2 + 0.03, width / 2 - 0.03)
        ]
        parts.append(box(top, (0.4, depth - 0.06, height - 0.15), (width / 2 - 0.25, 0, 0.06)))
    else:
        parts += four_legs(legs, width - 0.06, depth - 0.06, height - 0.04, rng.uniform(0.04, 0.08))
        parts.append(box(legs, (width - 0.1, depth - 0.1, 0.07), (0, 0, height - 0.11)))
    return Furniture("table", parts + table_clutter(palette, width, depth, height), (width, depth, height))


def _fronts(
    material: Material, knob: Material, columns: int, rows: int, size: Vector, bottom: float
) -> list[Primitive]:
    """Door or drawer fronts with knobs on the +y face of a cabinet of `size`."""
    width, depth, height = size
    cell_width, cell_height = width / columns, (height - bottom) / rows
    parts = []
    for column in range(columns):
        for row in range(rows):
            x = (column + 0.5) * cell_width - width / 2
            z = bottom + row * cell_height
            front = (cell_width - 0.02, 0.018, cell_height - 0.02)
            parts.append(box(material, front, (x, depth / 2 + 0.009, z + 0.01)))
            side = 0.0 if rows > columns else (0.4 if column % 2 == 0 else -0.4) * cell_width
            at = (x + side, depth / 2 + 0.03, z + cell_height / 2 - 0.02)
            parts.append(box(knob, (0.1 if rows > columns else 0.025, 0.025, 0.03), at))
    return parts


def make_cabinet(palette: Palette) -> Furniture:
    """Wardrobe, chest of drawers, sideboard or night stand."""
    rng, body, knob = palette.rng, palette.wood(), palette.metal()
    front = body if rng.uniform() < 0.6 else plain(palette.accents[0], gloss=0.2)
    kind = rng.choice(["wardrobe", "drawers", "sideboard", "night"])
    width, depth, height, columns, rows = {
        "wardrobe": (rng.uniform(0.8, 1.6), 0.6, rng.uniform(1.8, 2.1), 2, 1),
        "drawers": (rng.uniform(0.6, 1.0), 0.45, rng.uniform(0.8, 1.2), 1, int(rng.integers(3, 5))),
        "sideboard": (rng.uniform(1.2, 1.8), 0.42, rng.uniform(0.5, 0.85), int(rng.integers(2, 4)), 1),
        "night": (rng.uniform(0.4, 0.5), 0.4, rng.uniform(0.45, 0.6), 1, 2),
    }[str(kind)]
    foot = rng.choice([0.0, 0.0, 0.1, 0.15]) if kind != "wardrobe" else 0.0
    parts = [box(body, (width, depth, height - foot), (0, 0, foot))]
    if foot:
        parts += four_legs(palette.metal(), width - 0.06, depth - 0.06, foot, 0.04)
    parts += _fronts(front, knob, columns, rows, (width, depth, height), foot + 0.02)
    if kind == "wardrobe":
        return Furniture("cabinet", parts)
    return Furniture("cabinet", parts + table_clutter(palette, width, depth, height), (width, depth, height))


def make_bookshelf(palette: Palette) -> Furniture:
    """Open shelf (category cabinet) with rows of books."""
    rng, body = palette.rng, palette.wood()
    width, depth, height = rng.uniform(0.6, 1.1), rng.uniform(0.26, 0.34), rng.uniform(1.1, 2.0)
    shelves = max(2, round(height / 0.38))
    pitch = (height - 0.03) / shelves
    parts = [box(body, (0.025, depth, height), (x, 0, 0)) for x in (-width / 2, width / 2)]
    parts.append(box(body, (width, 0.015, height), (0, -depth / 2 + 0.008, 0)))
    parts += [box(body, (width, depth, 0.025), (0, 0, i * pitch)) for i in range(shelves + 1)]
    for i in range(shelves):
        left = -width / 2 + 0.02
        while left < width / 2 - 0.1 and rng.uniform() < 0.9:
            run = min(rng.uniform(0.1, 0.35), width / 2 - 0.02 - left)
            tall, books = rng.uniform(0.5, 0.85) * pitch, palette.any_color()
            spines = Material("stripes", books, palette.any_color(), rng.uniform(0.05, 0.09))
            parts.append(box(spines, (run, depth * 0.65, tall), (left + run / 2, -depth * 0.1, i * pitch + 0.025)))
            left += run + rng.choice([0.0, 0.0, 0.12])
    return Furniture("cabinet", parts)


def make_floor_lamp(palette: Palette) -> Furniture:
    """Standing lamp."""
    rng, metal = palette.rng, palette.metal()
    height, radius = rng.uniform(1.3, 1.7), rng.uniform(0.14, 0.22)
    shade = plain(linear_rgb(0.1, rng.uniform(0.05, 0.4), 0.95), glow=rng.choice([0.0, 1.0, 1.6]))
    parts = [
        cylinder(metal, 0.14, 0.03, (0, 0, 0)),
        cylinder(metal, 0.015, height, (0, 0, 0)),
        cylinder(shade, radius, 0.26, (0, 0, height - 0.1), rng.uniform(-0.4, 0.0)),
    ]
    return Furniture("lamp", parts)


def make_table_lamp(palette: Palette) -> Furniture:
    """Small lamp for table tops."""
    rng = palette.rng
    shade = plain(linear_rgb(0.1, rng.uniform(0.05, 0.5), 0.95), glow=rng.choice([0.0, 1.0, 1.6]))
    foot = plain(palette.any_color(), gloss=0.4)
    parts = [
        cylinder(foot, 0.07, 0.02, (0, 0, 0)),
        ellipsoid(foot, (0.1, 0.1, 0.2), (0, 0, 0.01)),
        cylinder(shade, 0.12, 0.17, (0, 0, 0.2), -0.3),
    ]
    return Furniture("lamp", parts)


def make_box(palette: Palette) -> Furniture:
    """Cardboard or coloured storage box, sometimes two stacked."""
    rng = palette.rng
    width, depth, height = rng.uniform(0.22, 0.55), rng.uniform(0.2, 0.45), rng.uniform(0.15, 0.45)
    color = linear_rgb(0.085, 0.45, rng.uniform(0.55, 0.75)) if rng.uniform() < 0.6 else palette.any_color()
    card = Material("noise", color, (color[0] * 0.8, color[1] * 0.8, color[2] * 0.8), 0.4)
    parts = [box(card, (width, depth, height), (0, 0, 0))]
    tape = plain((color[0] * 0.5, color[1] * 0.5, color[2] * 0.45), gloss=0.3)
    parts.append(box(tape, (0.06, depth + 0.004, height + 0.002), (0, 0, 0)))
    if rng.uniform() < 0.25:
        turn = rotation_about(2, rng.uniform(-0.3, 0.3))
        parts.append(box(card, (width * 0.7, depth * 0.7, height * 0.6), (0, 0, height + 0.002), turn))
    return Furniture("box", parts)


def make_small_box(palette: Palette) -> Furniture:
    """Box small enough to stand on a table."""
    rng, color = palette.rng, palette.any_color()
    pattern = str(rng.choice(["plain", "stripes", "dots"]))
    material = Material(pattern, color, palette.any_color(), 0.08)
    return Furniture(
        "box", [box(material, (rng.uniform(0.12, 0.25), rng.uniform(0.1, 0.2), rng.uniform(0.08, 0.22)), (0, 0, 0))]
    )


def make_ball(palette: Palette) -> Furniture:
    """Ball of 16 to 60 cm."""
    rng, size = palette.rng, palette.rng.choice([0.16, 0.22, 0.24, 0.35, 0.6])
    pattern = str(rng.choice(["plain", "stripes", "checker", "dots"]))
    skin = Material(pattern, palette.any_color(), palette.any_color(), size * 0.5, gloss=0.3)
    return Furniture("ball", [ellipsoid(skin, (size, size, size), (0, 0, 0))])


def make_plant(palette: Palette) -> Furniture:
    """Potted plant with a round or a blade-like crown."""
    rng = palette.rng
    size = rng.uniform(0.6, 1.3)
    pot_height, pot = rng.uniform(0.18, 0.35), rng.uniform(0.1, 0.17)
    hue = rng.uniform(0.2, 0.36)
    leaf = Material("noise", linear_rgb(hue, 0.7, 0.55), linear_rgb(hue, 0.8, 0.25), 0.15)
    parts = [
        cylinder(plain(palette.any_color(), gloss=0.2), pot, pot_height, (0, 0, 0), 0.15),
        cylinder(plain((0.03, 0.02, 0.01)), pot, 0.01, (0, 0, pot_height - 0.004)),
    ]
    if rng.uniform() < 0.5:
        parts.append(cylinder(plain((0.08, 0.05, 0.02)), 0.018, size * 0.5, (0, 0, pot_height)))
        for _ in range(7):
            x, y, z = rng.normal(0, 0.09, 3)
            blob = rng.uniform(0.16, 0.3)
            parts.append(ellipsoid(leaf, (blob, blob, blob * 0.8), (x, y, pot_height + size * 0.5 + z - 0.1)))
        return Furniture("plant", parts)
    for i in range(10):
        turn = rotation_about(2, i * 2.4 + rng.uniform(-0.3, 0.3)) @ rotation_about(0, rng.uniform(0.1, 0.7))
        length = rng.uniform(0.5, 0.9) * (size - pot_height)
        center = np.array([0, 0, pot_height]) + turn @ [0, 0, length / 2]
        parts.append(Primitive("ellipsoid", center, turn, np.array([0.035, 0.008, length / 2]), leaf))
    return Furniture("plant", parts)


def make_picture(palette: Palette) -> Furniture:
    """Framed picture; it hangs with its back at y = 0."""
    rng, frame = palette.rng, palette.wood()
    width, height = rng.uniform(0.35, 1.2), rng.uniform(0.35, 0.9)
    art = Material("art", palette.any_color(), palette.any_color(), rng.uniform(0.4, 1.2))
    border = rng.uniform(0.02, 0.05)
    parts = [
        box(frame, (width, 0.025, height), (0, 0.0125, 0)),
        box(art, (width - 2 * border, 0.006, height - 2 * border), (0, 0.026, border)),
    ]
    return Furniture("picture", parts)


def make_window(palette: Palette) -> Furniture:
    """Window with frame, cross bars, sky behind and sometimes curtains; its back is at y = 0."""
    rng = palette.rng
    width, height = rng.uniform(0.8, 1.8), rng.uniform(0.9, 1.4)
    frame = plain(WHITE, gloss=0.2) if rng.uniform() < 0.7 else palette.wood()
    day = rng.uniform(1.2, 3.0) if rng.uniform() < 0.8 else 0.02
    sky = Material("sky", (0.75, 0.85, 0.95), linear_rgb(0.58, rng.uniform(0.1, 0.5), 0.9), height, glow=day)
    parts = [box(sky, (width, 0.01, height), (0, 0.005, 0))]
    parts += [box(frame, (width + 0.12, 0.04, 0.06), (0, 0.02, z)) for z in (-0.06, height)]
    parts += [box(frame, (0.06, 0.04, height), (x * (width / 2 + 0.03), 0.02, 0)) for x in (-1, 1)]
    parts.append(box(frame, (0.04, 0.03, height), (0, 0.015, 0)))
    if rng.uniform() < 0.5:
        parts.append(box(frame, (width, 0.03, 0.04), (0, 0.015, height * 0.62)))
    if rng.uniform() < 0.5:
        color = palette.accents[int(rng.integers(3))]
        cloth = Material("curtain", color, (color[0] * 0.45, color[1] * 0.45, color[2] * 0.45), 0.09)
        spread = width * rng.uniform(0.18, 0.35)
        for side in (-1, 1):
            parts.append(box(cloth, (spread, 0.05, height + 0.45), (side * (width + 0.2 - spread) / 2, 0.075, -0.3)))
        parts.append(box(palette.metal(), (width + 0.4, 0.025, 0.025), (0, 0.08, height + 0.15)))
    return Furniture("window", parts)


def make_door(palette: Palette) -> Furniture:
    """Closed door with frame, panels and handle; its back is at y = 0."""
    rng = palette.rng
    leaf = palette.wood() if rng.uniform() < 0.6 else plain(WHITE, gloss=0.2)
    frame = plain(WHITE) if rng.uniform() < 0.6 else leaf
    width, height = rng.uniform(0.75, 0.95), rng.uniform(1.95, 2.1)
    parts = [box(leaf, (width, 0.03, height), (0, 0.015, 0))]
    parts += [box(frame, (0.08, 0.05, height + 0.08), (x * (width / 2 + 0.04), 0.025, 0)) for x in (-1, 1)]
    parts.append(box(frame, (width, 0.05, 0.08), (0, 0.025, height)))
    if rng.uniform() < 0.6:
        parts += [box(leaf, (width * 0.7, 0.02, 0.75), (0, 0.04, z)) for z in (0.2, 1.1)]
    side = rng.choice([-1, 1])
    parts.append(box(palette.metal(), (0.12, 0.04, 0.025), (side * (width / 2 - 0.11), 0.055, 1.0)))
    return Furniture("door", parts)


def make_rug(palette: Palette) -> Furniture:
    """Flat rug, part of the clutter."""
    rng = palette.rng
    pattern = str(rng.choice(["fabric", "stripes", "checker", "dots", "art"]))
    cloth = Material(pattern, palette.any_color(), palette.any_color(), rng.uniform(0.15, 0.5))
    if rng.uniform() < 0.3:
        return Furniture("other", [cylinder(cloth, rng.uniform(0.5, 1.0), 0.012, (0, 0, 0))])
    return Furniture("other", [box(cloth, (rng.uniform(1.2, 2.4), rng.uniform(0.8, 1.7), 0.012), (0, 0, 0))])


def make_ceiling_lamp(palette: Palette, drop: float) -> Furniture:
    """Lamp hanging `drop` metres below its origin, which is on the ceiling."""
    rng = palette.rng
    size = rng.uniform(0.2, 0.4)
    shade = plain(linear_rgb(0.12, rng.uniform(0.02, 0.3), 1.0), glow=2.5)
    cord = cylinder(plain(BLACK), 0.008, drop, (0, 0, -drop))
    if rng.uniform() < 0.5:
        return Furniture("lamp", [cord, ellipsoid(shade, (size, size, size), (0, 0, -drop - size * 0.9))])
    return Furniture("lamp", [cord, cylinder(shade, size * 0.6, size * 0.5, (0, 0, -drop - size * 0.4), -0.35)])


FURNITURE: dict[str, Callable[[Palette], Furniture]] = {
    "bed": make_bed,
    "chair": make_chair,
    "sofa": make_sofa,
    "table": make_table,
    "cabinet": make_cabinet,
    "bookshelf": make_bookshelf,
    "floor_lamp": make_floor_lamp,
    "table_lamp": make_table_lamp,
    "box": make_box,
    "small_box": make_small_box,
    "ball": make_ball,
    "plant": make_plant,
    "picture": make_picture,
    "window": make_window,
    "door": make_door,
    "rug": make_rug,
}

CATEGORIES: Sequence[str] = (
    "bed",
    "chair",
    "sofa",
    "table",
    "cabinet",
    "lamp",
    "box",
    "ball",
    "plant",
    "picture",
    "window",
    "door",
)
