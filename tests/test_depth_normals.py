"""Normals from depth: analytic surfaces, another fit, holes and edges, coarse steps, flips, and bad input."""

import numpy as np
import pytest
from PIL import Image

from transformers_ait.data import Pinhole, normals_from_depth, render_room
from transformers_ait.data.depth_normals import normals_to_pixels
from transformers_ait.image_inputs_ait import native_map
from transformers_ait.map_kinds_ait import MAP_KINDS

CAMERA = Pinhole(fx=130.0, fy=125.0, cx=44.0, cy=29.5)
HEIGHT, WIDTH = 64, 80
STEP = 0.0392  # metres, between the values of NYU's depth where it comes from 8 bits
WALLS = ((0.0, 0.0, -1.0), (0.6, 0.0, -0.8), (0.0, -0.8, -0.6), (-0.36, 0.48, -0.8))


def rays(camera: Pinhole = CAMERA, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W, 3) directions with z = 1, from the definition of a pinhole camera."""
    return np.array(
        [[((u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, 1.0) for u in range(width)] for v in range(height)]
    )


def plane_depth(normal: tuple[float, ...], distance: float, camera: Pinhole = CAMERA, **size: int) -> np.ndarray:
    """Depth of the plane with this normal that is `distance` away from the camera."""
    return -distance / (rays(camera, **size) @ normal)


def degrees(normals: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((normals * truth).sum(-1), -1, 1)))


@pytest.mark.parametrize("normal", WALLS)
def test_plane(normal: tuple[float, ...]) -> None:
    depth = plane_depth(normal, 2.0)
    assert (depth > 0).all()
    normals = normals_from_depth(depth, CAMERA)
    assert normals.shape == (HEIGHT, WIDTH, 3) and normals.dtype == np.float32
    np.testing.assert_allclose(normals, np.broadcast_to(normal, normals.shape), atol=1e-5)
    for wrong in (CAMERA._replace(fx=CAMERA.fy, fy=CAMERA.fx), CAMERA._replace(cx=CAMERA.cy, cy=CAMERA.cx)):
        if normal != WALLS[0]:
            assert degrees(normals_from_depth(depth, wrong), np.array(normal)).max() > 0.5, "another camera is noticed"


def test_plane_in_coarse_steps() -> None:
    camera = Pinhole(518.858, 519.470, 160.0, 120.0)
    for normal in WALLS:
        depth = plane_depth(normal, 1.5, camera, height=240, width=320)
        coarse = np.rint(depth / STEP) * STEP
        errors = degrees(normals_from_depth(coarse, camera), np.array(normal))
        assert np.median(errors) < 1.5 and (errors < 8).mean() > 0.95, normal
    small = degrees(normals_from_depth(coarse, camera, windows=(9,)), np.array(normal))
    assert np.median(small) > 10, "small windows see the steps"


def test_corner_of_a_room_stays_sharp() -> None:
    faces = np.array([[2, 0, -(2**0.5)], [-1, 3**0.5, -(2**0.5)], [-1, -(3**0.5), -(2**0.5)]]) / 6**0.5
    np.testing.assert_allclose(faces @ faces.T, np.eye(3), atol=1e-12)
    depths = np.stack([plane_depth(face, 1.5) for face in faces])
    depths[depths <= 0] = np.inf
    # Seen from inside, the nearest of the three planes hides the others.
    truth, depth = faces[depths.argmin(0)], depths.min(0)
    assert np.bincount(depths.argmin(0).ravel(), minlength=3).min() > 300
    normals = normals_from_depth(depth, CAMERA, windows=(21, 9), tolerance=1e-5)
    valid = normals.any(-1)
    assert valid.mean() > 0.97 and degrees(normals, truth)[valid].max() < 0.1
    blunt = normals_from_depth(depth, CAMERA, windows=(9,), tolerance=np.inf)
    assert (degrees(blunt, truth) > 10).mean() > 0.05, "without a tolerance windows reach around the corner"


def test_sphere() -> None:
    centre, radius = np.array([0.05, -0.02, 2.0]), 0.4
    directions = rays()
    a, b, c = (directions**2).sum(-1), directions @ centre, centre @ centre - radius**2
    root = b * b - a * c
    depth = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, 0)
    truth = (directions * depth[..., None] - centre) / radius
    normals = normals_from_depth(depth, CAMERA, windows=(5,))
    valid = normals.any(-1)
    assert not valid[depth == 0].any() and valid[depth > 0].mean() > 0.9
    assert np.median(degrees(normals, truth)[valid]) < 1.5
    assert np.median(degrees(normals * [1, -1, 1], truth)[valid]) > 10, "y upwards is noticed"


def test_fits_are_those_of_a_solver() -> None:
    """Against `lstsq` on each window, with holes."""
    rng = np.random.default_rng(0)
    depth = plane_depth(WALLS[1], 2.0) * rng.uniform(0.9, 1.1, (HEIGHT, WIDTH))
    depth[rng.uniform(size=depth.shape) < 0.2] = 0
    normals = normals_from_depth(depth, CAMERA, windows=(9,), tolerance=np.inf)
    assert not normals[depth == 0].any() and normals[depth > 0].any(-1).all()
    directions, differences = rays(), []
    for row, column in zip(*np.nonzero(depth), strict=True):
        window = slice(max(row - 4, 0), row + 5), slice(max(column - 4, 0), column + 5)
        points = depth[window] > 0
        if points.sum() < 9 * 9 / 2:
            continue
        plane = np.linalg.lstsq(directions[window][points], 1 / depth[window][points])[0]
        differences.append(np.abs(normals[row, column] + plane / np.linalg.norm(plane)).max())
    assert len(differences) > 3000 and max(differences) < 1e-5


def test_pixels_without_a_plane_have_no_normal() -> None:
    depth = np.full((HEIGHT, WIDTH), 2.0)
    depth[:, 30:] = 3.0
    depth[:, 60:64] = 1.0  # narrower than half of the window
    depth[:, 64:] = np.random.default_rng(0).uniform(1, 5, (HEIGHT, 16))
    depth[10, 20] = 0
    valid = normals_from_depth(depth, CAMERA, windows=(11,)).any(-1)
    expected = np.broadcast_to(np.arange(WIDTH) < 60, valid.shape).copy()
    expected[10, 20] = False
    # Windows with the pixel at their rim reach up to both sides of an edge.
    assert (valid == expected).mean() > 0.99 and not valid[10, 20]
    assert (valid == expected)[:, 24:36].all()


def test_small_thing_before_a_wall_does_not_take_its_normal() -> None:
    depth = plane_depth(WALLS[1], 2.0)
    thing = np.zeros(depth.shape, bool)
    thing[30:33, 40:43] = True
    depth[thing] *= 0.95
    normals = normals_from_depth(depth, CAMERA, windows=(21,))
    np.testing.assert_array_equal(normals.any(-1), ~thing)
    assert degrees(normals, np.array(WALLS[1]))[~thing].max() < 8


def test_half_of_a_window_is_enough() -> None:
    depth = np.where(np.arange(WIDTH) < 40, plane_depth(WALLS[0], 2.0), 0)
    valid = normals_from_depth(depth, CAMERA, windows=(21,)).any(-1)
    assert valid[:, :40].all() and not valid[:, 40:].any()
    stripes = np.where(np.arange(WIDTH) % 20 < 9, plane_depth(WALLS[0], 2.0), 0)
    assert not normals_from_depth(stripes, CAMERA, windows=(21,)).any()
    assert not normals_from_depth(np.zeros((HEIGHT, WIDTH)), CAMERA).any()
    assert not normals_from_depth(depth[:9, :9], CAMERA).any(), "the picture is smaller than half of each window"


@pytest.fixture(scope="module")
def rooms() -> list:
    return [render_room(index, height=240, width=320, holes=False) for index in range(4)]


def camera_of(frame) -> Pinhole:
    return Pinhole(frame.camera.fx, frame.camera.fy, frame.camera.cx, frame.camera.cy)


@pytest.mark.slow
def test_agrees_with_rendered_normals(rooms: list) -> None:
    errors, wrong = [], []
    for frame in rooms:
        coarse = np.rint(frame.depth_dense / STEP) * STEP
        normals = normals_from_depth(coarse, camera_of(frame), windows=(31, 11))
        valid = normals.any(-1)
        assert valid.mean() > 0.85
        errors.append(degrees(normals, frame.normals)[valid])
        wrong += [degrees(normals * sign, frame.normals)[valid] for sign in ([-1, 1, 1], [1, -1, 1], [1, 1, -1])]
    assert np.median(np.concatenate(errors)) < 2
    assert min(np.median(error) for error in wrong[:3]) > 10, "axes of another direction are noticed"


def test_flip(rooms: list) -> None:
    depth = np.rint(rooms[0].depth_dense / STEP) * STEP
    camera = camera_of(rooms[0])._replace(cx=150.0)
    normals = normals_from_depth(depth, camera)
    mirrored = camera._replace(cx=depth.shape[1] - 1 - camera.cx)
    flipped = normals_from_depth(depth[:, ::-1], mirrored)[:, ::-1] * [-1, 1, 1]
    # Where two windows are equally flat, rounding picks another one.
    assert (np.abs(flipped - normals).max(-1) < 1e-4).mean() > 0.99
    unmirrored = normals_from_depth(depth[:, ::-1], camera)[:, ::-1] * [-1, 1, 1]
    assert (np.abs(unmirrored - normals).max(-1) < 1e-4).mean() < 0.5


def test_all_face_the_camera_and_have_unit_length(rooms: list) -> None:
    frame = rooms[1]
    normals = normals_from_depth(frame.depth_dense, camera_of(frame))
    valid = normals.any(-1)
    directions = rays(camera_of(frame), *frame.depth.shape)
    assert ((normals * directions).sum(-1)[valid] < 0).all() and (normals[..., 2] < 0)[valid].mean() > 0.8
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1)[valid], 1, atol=1e-5)


def test_pixels_are_read_as_normals(rooms: list) -> None:
    normals = normals_from_depth(rooms[2].depth, camera_of(rooms[2]))
    pixels = normals_to_pixels(normals)
    assert pixels.dtype == np.uint8 and (pixels[~normals.any(-1)] == 128).all()
    assert np.abs(pixels / 127.5 - 1 - normals).max() <= 0.5 / 127.5 + 1e-6
    native = native_map(Image.fromarray(pixels), MAP_KINDS["normals"], "normals").permute(1, 2, 0).numpy()
    assert (native.any(-1) == normals.any(-1)).all()
    assert degrees(native, normals)[normals.any(-1)].max() < 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": np.ones((3, 4, 1))}, r"depth must be \(height, width\), got shape \(3, 4, 1\)"),
        ({"depth": -np.ones((3, 4))}, "finite and not negative; mark invalid pixels with 0"),
        ({"depth": np.full((3, 4), np.nan)}, "finite and not negative"),
        ({"windows": (4,)}, r"windows must be odd numbers of pixels, 3 or more, got \(4,\)"),
        ({"windows": ()}, "windows"),
        ({"windows": (21, 1)}, "windows"),
        ({"tolerance": 0}, "tolerance must be above 0, got 0"),
    ],
)
def test_bad_arguments(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normals_from_depth(**{"depth": np.ones((8, 8)), "camera": CAMERA} | change)
