"""Pictures of every kind of map: what colours mean, errors, legends, and one photograph in all its tasks."""

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from transformers_ait import visualization
from transformers_ait.data import render_room
from transformers_ait.map_kinds_ait import MAP_KINDS
from transformers_ait.visualization import (
    DEPTH_CMAP,
    ERROR_CMAP,
    INVALID_GREY,
    DepthPanelRow,
    PanelRow,
    class_palette,
    colorize_depth,
    colorize_map,
    dense_panel,
    depth_panel,
    task_panel,
)
from transformers_ait.visualization_colors import VALUES_CMAP, map_error

GREY = (INVALID_GREY,) * 3
IMAGE = Image.new("RGB", (64, 48), (12, 34, 56))
SIZE = (48, 64)


def matplotlib_color(share, cmap):
    return np.array(matplotlib.colormaps[cmap](share, bytes=True))[..., :3]


def contains(picture, color, share):
    """Whether at least this share of the picture has about this colour."""
    distance = np.abs(np.asarray(picture).astype(int) - np.asarray(color).astype(int)).max(-1)
    return (distance <= 2).mean() >= share


def normals_towards(x, y, z):
    return np.broadcast_to(np.array([x, y, z], dtype=np.float32)[:, None, None], (3, *SIZE)).copy()


# --- colours --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("normal", "color"),
    [
        ((0, 0, -1), (128, 128, 255)),  # faces the camera: lilac
        ((0, -1, 0), (128, 255, 128)),  # a floor: green
        ((0, 1, 0), (128, 0, 128)),  # a ceiling: purple
        ((1, 0, 0), (255, 128, 128)),  # faces right: red
        ((-1, 0, 0), (0, 128, 128)),  # faces left: turquoise
        ((0, 0, -0.2), (128, 128, 255)),  # predictions may have any length
        ((0, 0, 0), GREY),
        ((np.nan, 0, 1), GREY),
    ],
)
def test_normals_look_like_normal_maps(normal, color):
    for values in (normals_towards(*normal), torch.from_numpy(normals_towards(*normal))):
        picture = colorize_map(values, "normals")
        assert picture.dtype == np.uint8 and picture.shape == (*SIZE, 3)
        assert np.abs(picture.astype(int) - color).max() <= 1


def test_a_rendered_room_has_green_floors_and_lilac_ahead():
    """The convention agrees with the axes of the data."""
    frame = render_room(7, height=60, width=80)
    picture = colorize_map(frame.normals.transpose(2, 0, 1), "normals").astype(int)
    floor = picture[frame.semantic == 1]
    assert (floor[:, 1] > floor[:, 0]).all() and (floor[:, 1] > floor[:, 2]).all()
    assert (picture[..., 2] > 127).mean() > 0.95 and picture[..., 2].mean() > 200, "what is seen faces the camera"


def test_classes_keep_their_colours():
    ids = np.arange(40, dtype=np.uint8)[None]
    picture = colorize_map(ids, "classes")[0].astype(int)
    assert np.array_equal(colorize_map(ids[:, 7:9].astype(np.int64), "classes")[0], picture[7:9])
    assert np.array_equal(colorize_map(ids, "classes", [f"thing {index}" for index in range(40)])[0], picture)
    everything = np.concatenate((picture, [GREY, (255, 255, 255)]))
    distance = np.abs(everything[:, None] - everything[None]).sum(-1) + 1000 * np.eye(42, dtype=int)
    assert distance.min() >= 45
    assert (colorize_map(np.array([[255, 3, 255]]), "classes")[0, ::2] == INVALID_GREY).all()
    assert colorize_map(np.array([[3, 1000]]), "classes").shape == (1, 2, 3), "ids beyond the palette"


def test_what_fills_rooms_is_calm():
    names = ["wall", "floor", "bed", "Ceiling", "floor mat"]
    palette = class_palette(names).astype(int)
    assert np.array_equal(class_palette(dict(enumerate(names))), palette)
    assert np.array_equal(class_palette()[[2, 4]], palette[[2, 4]])
    spread = np.ptp(palette[:5], axis=1)
    assert max(spread[[0, 1, 3]]) < 70 < min(spread[[2, 4]])
    other = class_palette(["bed", "wall"])
    assert np.array_equal(other[1], palette[0]) and not np.array_equal(other[0], palette[0])


def test_values_are_sequential_and_holes_grey():
    values = np.array([[[-1.0, 0.0, np.nan, 1.0]]], dtype=np.float32)
    picture = colorize_map(values, "values")
    np.testing.assert_array_equal(picture[0, [0, 1, 3]], matplotlib_color([0, 0.5, 1.0], VALUES_CMAP))
    assert tuple(picture[0, 2]) == GREY
    np.testing.assert_array_equal(colorize_map(values[0], "values"), picture)
    np.testing.assert_array_equal(
        colorize_map(values, "values", low=-1.0, high=3.0)[0, 3], matplotlib_color(0.5, VALUES_CMAP)
    )
    flow = np.array([[[3.0, 0.0, np.nan]], [[-4.0, 0.0, np.nan]]])
    picture = colorize_map(flow, "values", low=0.0, high=10.0)
    np.testing.assert_array_equal(picture[0, :2], matplotlib_color([0.5, 0.0], VALUES_CMAP))
    assert tuple(picture[0, 2]) == GREY


def test_depth_looks_as_it_always_did():
    depth = np.linspace(0, 5, 12, dtype=np.float32).reshape(3, 4)
    for limits in ((None, None), (1.0, 3.0)):
        np.testing.assert_array_equal(
            colorize_map(depth, MAP_KINDS["depth"], None, *limits), colorize_depth(depth, *limits)
        )


# --- errors ---------------------------------------------------------------------------------------------------------


def test_errors_of_pixels():
    nan = np.nan
    error = map_error(np.array([[2.0, 0.0, 3.0]]), np.array([[1.5, 1.0, 0.0]]), MAP_KINDS["depth"])
    np.testing.assert_allclose(error, [[0.5, nan, nan]])
    predicted = np.array([[0, 0, -2], [0, 0.3, -0.4], [1, 0, 0], [0, 0, 0], [0, 0, -1]], dtype=np.float32).T[:, None]
    true = np.array([[0, 0, -1], [0, 0, -1], [-1, 0, 0], [0, 0, -1], [0, 0, 0]], dtype=np.float32).T[:, None]
    error = map_error(predicted, true, MAP_KINDS["normals"])
    np.testing.assert_allclose(error, [[0, np.rad2deg(np.arccos(0.8)), 180, nan, nan]], atol=1e-3)
    error = map_error(np.array([[3, 3, 3, 255]]), np.array([[3, 4, 255, 3]]), MAP_KINDS["classes"])
    np.testing.assert_array_equal(error, [[0, 1, nan, nan]])
    error = map_error(np.array([[[1.0, nan]]]), np.array([[[-2.0, 0.0]]]), MAP_KINDS["values"])
    np.testing.assert_array_equal(error, [[3, nan]])
    error = map_error(np.array([[[3.0]], [[0.0]]]), np.array([[[0.0]], [[4.0]]]), MAP_KINDS["values"])
    np.testing.assert_array_equal(error, [[5]])


# --- dense_panel ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_panel_of_normals_shows_both_and_their_angle():
    rows = [PanelRow(IMAGE, normals_towards(0, 0, -1), normals_towards(0, -1, 0))]
    picture = dense_panel(rows, "normals", max_error=180)
    half = matplotlib_color(0.5, ERROR_CMAP)
    for color in ((12, 34, 56), (128, 128, 255), (128, 255, 128), half):
        assert contains(picture, color, 0.1)
    assert not contains(picture, GREY, 0.005)
    rows[0].truth[:, :, :32] = 0
    holes = dense_panel(rows, "normals", max_error=180)
    assert contains(holes, GREY, 0.1) and contains(holes, half, 0.05) and not contains(holes, half, 0.12)


@pytest.mark.slow
def test_panel_of_classes_marks_wrong_pixels():
    prediction, truth = np.full(SIZE, 3), np.full(SIZE, 3)
    truth[:, :32] = 5
    truth[:12] = 255
    right, wrong = matplotlib_color([0.0, 1.0], ERROR_CMAP)
    palette = class_palette()
    picture = dense_panel([PanelRow(IMAGE, prediction, truth)], MAP_KINDS["classes"])
    for color, share in ((palette[3], 0.2), (palette[5], 0.05), (right, 0.05), (wrong, 0.05), (GREY, 0.05)):
        assert contains(picture, color, share)
    perfect = dense_panel([PanelRow(IMAGE, prediction, prediction)], "classes")
    assert contains(perfect, right, 0.15) and not contains(perfect, wrong, 0.003)
    several = dense_panel([PanelRow(IMAGE, prediction, truth), PanelRow(IMAGE, truth)], "classes")
    assert several.height > 1.5 * picture.height and several.width == picture.width


@pytest.mark.slow
def test_legend_names_the_classes_that_occur():
    def drawn(names, ids):
        return np.asarray(dense_panel([PanelRow(IMAGE, ids, ids)], "classes", class_names=names))

    one, ids = np.full(SIZE, 3), np.arange(48 * 64).reshape(SIZE) % 40
    plain = drawn(None, one)
    assert np.array_equal(plain, drawn(["other"] * 3, one)), "names of what does not occur change nothing"
    named = drawn({3: "refrigerator"}, one)
    assert plain.shape == named.shape and not np.array_equal(plain, named)
    changed = np.flatnonzero((plain != named).any((1, 2)))
    assert changed.min() > 0.75 * len(plain), "below the maps"
    assert len(drawn(None, ids)) > len(plain) + 50, "many classes take several rows"
    assert len(drawn({3: ""}, one)) == len(plain)


@pytest.mark.slow
def test_panel_of_values_and_its_limits():
    prediction, truth = np.full(SIZE, -1.0), np.full((1, *SIZE), 1.0)
    truth[:, :, :32] = np.nan
    settings = {"low": -1.0, "high": 3.0, "max_error": 4.0}
    picture = dense_panel([PanelRow(IMAGE, prediction, truth)], "values", name="height", **settings)
    for color in (*matplotlib_color([0.0, 0.5], VALUES_CMAP), matplotlib_color(0.5, ERROR_CMAP), GREY):
        assert contains(picture, color, 0.05)
    other = dense_panel([PanelRow(IMAGE, prediction, truth)], "values", name="albedo", **settings)
    assert picture.size == other.size and not np.array_equal(np.asarray(picture), np.asarray(other))


def test_depth_is_one_of_the_kinds(tmp_path):
    depth = np.linspace(1, 5, 48 * 64, dtype=np.float32).reshape(SIZE)
    old = depth_panel([DepthPanelRow(IMAGE, depth, depth[::-1], "kitchen")], None, 1.0, 4.0, 2.0)
    row = PanelRow(IMAGE, depth, depth[::-1], "kitchen")
    new = dense_panel([row], "depth", tmp_path / "depth.png", low=1.0, high=4.0, max_error=2.0)
    assert np.array_equal(np.asarray(old), np.asarray(new))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "depth.png")), np.asarray(new))


# --- task_panel -----------------------------------------------------------------------------------------------------


@pytest.fixture
def maps():
    return {
        "depth": (np.full(SIZE, 1.0), "depth", None),
        "normals": (normals_towards(0, 0, -1), MAP_KINDS["normals"], None),
        "semantic": (np.full(SIZE, 1), "classes", ["wall", "bed", "lamp"]),
    }


TRUTHS = {"depth": np.full(SIZE, 3.0), "normals": normals_towards(1, 0, 0), "semantic": np.full(SIZE, 2)}


@pytest.mark.slow
def test_all_tasks_of_a_photograph(maps, tmp_path):
    objects, others = Image.new("RGB", (64, 48), (200, 0, 0)), Image.new("RGB", (64, 48), (0, 90, 0))
    picture = task_panel(IMAGE, maps, TRUTHS, objects, others, tmp_path / "tasks.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "tasks.png")), np.asarray(picture))
    palette = class_palette()
    depths = matplotlib_color([0.0, 1.0], DEPTH_CMAP)  # one scale for both
    for color in (*depths, (128, 128, 255), (255, 128, 128), palette[1], palette[2], (200, 0, 0), (0, 90, 0)):
        assert contains(picture, color, 0.03)
    assert contains(picture, (12, 34, 56), 0.2), "the photograph is as high as both rows"
    panel = depth_panel([DepthPanelRow(IMAGE, np.ones(SIZE), np.ones(SIZE))])
    assert abs(picture.width - panel.width) <= 1, "fits below or above a depth_panel"


@pytest.mark.slow
def test_without_truths_there_is_one_row(maps):
    picture, both = task_panel(IMAGE, maps), task_panel(IMAGE, maps, TRUTHS)
    assert abs(picture.width - both.width) <= 1 and both.height > 1.2 * picture.height
    assert contains(picture, (128, 128, 255), 0.1) and not contains(picture, (255, 128, 128), 0.01)
    some = task_panel(IMAGE, maps, {"depth": TRUTHS["depth"]})
    assert some.size == both.size and not contains(some, (255, 128, 128), 0.01)


@pytest.mark.slow
def test_places_of_the_tasks(maps):
    pixels = np.asarray(task_panel(IMAGE, maps, TRUTHS)).astype(int)
    found = {}
    for name, color in (("predicted", (128, 128, 255)), ("true", (255, 128, 128)), ("image", (12, 34, 56))):
        rows, columns = np.nonzero(np.abs(pixels - color).max(-1) <= 2)
        found[name] = np.median(rows), np.median(columns)
    assert found["predicted"][0] < found["image"][0] < found["true"][0]
    assert abs(found["predicted"][1] - found["true"][1]) < 3 and found["image"][1] < found["true"][1] - 300


def test_headings_name_tasks_and_truths(maps, monkeypatch):
    shown = []

    class Recorded(visualization.Panel):
        def __init__(self, tiles, titles, headings, *sizes):
            shown.extend(headings)
            super().__init__(tiles, titles, headings, *sizes)

    monkeypatch.setattr(visualization, "Panel", Recorded)
    task_panel(IMAGE, maps, {"normals": TRUTHS["normals"]}, IMAGE)
    dense_panel([PanelRow(IMAGE, *[TRUTHS["semantic"]] * 2)], "classes", name="semantic")
    assert shown == [
        ["Photograph", "Depth", "Normals", "Semantic classes", "Objects"],
        ["", "", "True normals", "", ""],
        ["Image", "Predicted semantic classes", "True semantic classes", "Error"],
    ]


def test_holes_are_explained(maps):
    plain = task_panel(IMAGE, maps)
    maps["normals"][0][:, :, :32] = 0
    holes = task_panel(IMAGE, maps)
    assert contains(holes, GREY, 0.05) and not contains(plain, GREY, 0.001)
    corner = [np.asarray(picture)[-150:, :300] for picture in (plain, holes)]
    assert not np.array_equal(*corner)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (np.ones((48, 64, 3)), "normals", r"normals must be one \(3, H, W\) map, got shape \(48, 64, 3\)"),
        (np.ones((2, 48, 64)), "normals", r"normals must be one \(3, H, W\) map"),
        (np.ones((1, 48, 64), dtype=int), "classes", r"classes must be one \(H, W\) map, got shape \(1, 48, 64\)"),
        (np.ones(SIZE), "classes", "classes must hold integer class ids, got float64; take the argmax"),
        (np.ones((1, 1, 48, 64)), "values", r"values must be one \(C, H, W\) map"),
        (np.ones(SIZE), "heat", r"kind must be one of \['classes', 'depth', 'mask', 'normals', 'values'\], got 'heat'"),
    ],
)
def test_maps_of_another_kind_are_refused(values, kind, message):
    for draw in (colorize_map, lambda values, kind: dense_panel([PanelRow(IMAGE, values)], kind)):
        with pytest.raises(ValueError, match=message):
            draw(values, kind)


def test_bad_panels_are_refused(maps):
    with pytest.raises(ValueError, match="low must not exceed high, got 3.0 and 1.0"):
        colorize_map(np.ones(SIZE), "values", low=3.0, high=1.0)
    with pytest.raises(ValueError, match="rows is empty; give at least one PanelRow"):
        dense_panel([], "depth")
    with pytest.raises(TypeError, match=r"rows\[0\] must be a PanelRow, got DepthPanelRow"):
        dense_panel([DepthPanelRow(IMAGE, np.ones(SIZE))], "depth")
    with pytest.raises(ValueError, match=r"truth must have the size of semantic classes, got \(3, 3\) and \(48, 64\)"):
        dense_panel([PanelRow(IMAGE, np.ones(SIZE, int), np.ones((3, 3), int))], "classes", name="semantic")
    with pytest.raises(ValueError, match="maps is empty"):
        task_panel(IMAGE, {})
    with pytest.raises(ValueError, match=r"truths must be of the tasks of maps, .*, got \['height'\]"):
        task_panel(IMAGE, maps, {"height": np.ones(SIZE)})
    with pytest.raises(ValueError, match=r"truth must have the size of depth"):
        task_panel(IMAGE, maps, {"depth": np.ones((3, 3))})
