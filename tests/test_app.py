"""What the page of `transformers-ait app` shows and writes, without the page, and what the command refuses.

The page itself is tested in a browser, see tests/browser.
"""

import base64
import io
import json
import math
import re
import socket
import sys

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from transformers_ait.app import checkpoints
from transformers_ait.app.checkpoints import Checkpoint, above, labels_of, shipped_checkpoints
from transformers_ait.app.point_cloud import coloured_points, glb, pinhole_of
from transformers_ait.app.read_out import (
    READ_OUT_SIDE,
    UNIT_STEPS,
    map_read_out,
    object_read_out,
    sampled,
    sampled_positions,
)
from transformers_ait.app.views import DISPLAY_SIDE, duration, map_view, objects_view, status_line, value_range
from transformers_ait.cli import app
from transformers_ait.cli.predictor import FoundObjects, StageSeconds
from transformers_ait.data import render_room
from transformers_ait.image_inputs_ait import native_map
from transformers_ait.map_kinds_ait import MAP_KINDS
from transformers_ait.visualization import colorize_map
from transformers_ait_command import main

ROOM = 2_000_000_029
DEPTH, NORMALS, CLASSES, VALUES = (MAP_KINDS[name] for name in ("depth", "normals", "classes", "values"))


@pytest.fixture
def photo(tmp_path):
    """Path of a rendered room of 128 x 96 pixels."""
    path = tmp_path / "room.png"
    Image.fromarray(render_room(ROOM, height=96, width=128).image).save(path)
    return path


@pytest.fixture(scope="module")
def rooms(repository):
    """The joint checkpoint of rendered rooms, which has every kind of task."""
    return Checkpoint(str(repository / "hub_configs" / "ait-tiny-rooms"), "rooms")


@pytest.fixture
def no_packages_needed(monkeypatch):
    """As where Gradio is installed."""
    monkeypatch.setattr(app, "require_packages", lambda: None)


def shown_picture(view):
    """Pixels of the picture in a view."""
    data = re.search(r"data:image/webp;base64,([^\"]+)", view)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


# Values under the pointer


@pytest.mark.parametrize("size, largest", [(1, 5), (7, 7), (640, 320), (641, 320), (1000, 3)])
def test_positions_are_the_middles_of_equal_cells(size, largest):
    positions = sampled_positions(size, largest)
    cells = min(size, largest)
    middles = (np.arange(cells) + 0.5) * size / cells
    assert len(positions) == cells and (positions == np.floor(middles)).all()


def test_small_maps_are_sampled_whole_and_large_ones_keep_their_shape():
    values = np.arange(6.0).reshape(2, 3)
    assert sampled(values, 3) is not values and (sampled(values, 3) == values).all()
    assert sampled(np.zeros((3, 1500, 2000)), READ_OUT_SIDE).shape == (3, 240, 320)
    assert sampled(np.zeros((5000, 2)), READ_OUT_SIDE).shape == (320, 1)


def test_depth_is_read_in_millimetres_of_whole_pixels():
    depth = 1 + 4 * torch.rand(480, 640)
    depth[0, 0] = 0
    read = map_read_out(depth, DEPTH)
    rows, columns = sampled_positions(480, 240), sampled_positions(640, 320)
    expected = depth.numpy()[rows[:, None], columns]
    assert read.kind == "metres" and read.size == (480, 640) and read.grid.shape == (1, 240, 320)
    assert np.abs(read.grid[0] / 1000 - expected).max() <= 0.0005 + 1e-6


def test_attributes_carry_the_grid_for_the_script():
    read = map_read_out(torch.tensor([[1.5, 0.0, 70.0]]), DEPTH)
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', read.attributes()))
    assert found["kind"] == "metres" and found["cells"] == "1,1,3" and found["pixels"] == "1,3"
    assert np.frombuffer(base64.b64decode(found["grid"]), "<u2").tolist() == [1500, 0, 65535]


def test_normals_classes_and_values_are_read_too():
    normals = torch.tensor([0.0, -2.0, 0.0])[:, None, None].repeat(1, 1, 2)
    normals[:, 0, 1] = 0
    assert map_read_out(normals, NORMALS).grid[:, 0].tolist() == [[0, 0], [-UNIT_STEPS, 0], [0, 0]]
    ids = torch.tensor([[7, 2, CLASSES.invalid]])
    read = map_read_out(ids, CLASSES, {2: "bed", 9: "lamp"})
    assert read.grid[0].tolist() == [[2, 1, 0]] and read.names == ["bed", "class 7"]
    read = map_read_out(torch.tensor([[[0.25, float("nan")]]]), VALUES)
    assert read.grid.dtype == np.float32 and read.grid[0, 0, 0] == 0.25 and np.isnan(read.grid[0, 0, 1])


def test_the_smallest_object_is_read():
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, 1, 1] = True
    masks[1, :, :3] = True
    read = object_read_out(masks, None, ["ball", "bed"], (4, 6))
    assert read.grid[0, 1, 1] == 1 and read.grid[0, 0, 0] == 2 and (read.grid[0, :, 3:] == 0).all()
    read = object_read_out(None, torch.tensor([[0.0, 0, 5, 3], [2, 1, 3, 2]]), ["bed", "ball"], (4, 6))
    assert read.grid[0, 1, 2] == 2 and read.grid[0, 3, 5] == 1
    assert (object_read_out(torch.zeros(0, 4, 6, dtype=torch.bool), None, [], (4, 6)).grid == 0).all()


# Views


def test_limits_change_the_colours_and_not_what_is_read():
    depth = torch.linspace(1, 3, 64 * 48).reshape(48, 64)
    whole, near = map_view(depth, DEPTH, None), map_view(depth, DEPTH, None, (1.0, 1.5))
    for view, limits in ((whole, (1.0, 3.0)), (near, (1.0, 1.5))):
        expected = colorize_map(depth, "depth", None, *limits).astype(int)
        assert np.abs(shown_picture(view) - expected).mean() < 3  # lossy
    assert re.search(r'data-grid="[^"]*"', whole)[0] == re.search(r'data-grid="[^"]*"', near)[0]
    assert ">1.00 m<" in near and ">1.50 m<" in near and ">3.00 m<" in whole


def test_large_pictures_are_made_smaller_for_the_page():
    view = map_view(torch.ones(1500, 2000), DEPTH, None)
    assert shown_picture(view).shape == (768, DISPLAY_SIDE, 3) and 'data-pixels="1500,2000"' in view


def test_legends_name_what_is_there():
    ids = torch.zeros(10, 10, dtype=torch.long)
    ids[0] = 2
    view = map_view(ids, CLASSES, {0: "wall", 1: "bed", 2: "<lamp>"})
    assert "wall<small>90%" in view and "&lt;lamp&gt;<small>10%" in view and "bed<" not in view
    assert "ball" in map_view(torch.nn.functional.normalize(torch.randn(3, 4, 4), dim=0), NORMALS, None)
    many = map_view(torch.arange(40).reshape(5, 8), CLASSES, None)
    assert "and 26 more" in many


def test_maps_without_a_value_are_shown():
    assert value_range(torch.zeros(2, 3), DEPTH) == (0.0, 1.0)
    assert "ait-view" in map_view(torch.zeros(2, 3), DEPTH, None)
    assert "ait-view" in map_view(torch.full((2, 3), CLASSES.invalid), CLASSES, None)


@pytest.mark.parametrize("with_masks", [True, False])
def test_objects_are_listed_with_their_colours(with_masks):
    image = Image.new("RGB", (64, 48), "white")
    masks = torch.zeros(2, 48, 64, dtype=torch.bool)
    masks[:, 4:20, 4:20] = True
    boxes = torch.tensor([[4.0, 4, 20, 20]] * 2)
    shape = (masks, None) if with_masks else (None, boxes)
    view = objects_view(image, FoundObjects(["bed", "lamp"], [0.9, 0.6], *shape, []))
    assert "<b>2 objects</b>" in view and "bed<small>0.90" in view and "lamp 0.60" in view
    assert shown_picture(view).shape[1] >= 640  # drawn large, so that labels can be read
    none = FoundObjects([], [], masks[:0] if with_masks else None, None if with_masks else boxes[:0], [])
    assert "<b>0 objects</b>" in objects_view(image, none)


def test_the_line_of_timings():
    line = status_line((640, 480), (4000, 3000), StageSeconds(0.0123, 2.345, 0.5), "<x>", "CPU")
    words = ("640 × 480 (from 4000 × 3000)", "12 ms", "2.3 s", "500 ms", "&lt;x&gt; on CPU")
    assert all(word in line for word in words)
    assert "from" not in status_line((640, 480), (640, 480), StageSeconds(), "x", "CPU")
    assert duration(0.0004) == "0 ms" and duration(12.34) == "12.3 s"


# Point clouds


def test_a_wall_becomes_a_plane():
    """A wall 2 m ahead, seen with 90 degrees: it is 4 m wide, less the halves of the two outermost pixels."""
    photo = Image.new("RGB", (8, 4), (10, 20, 30))
    photo.putpixel((0, 0), (255, 0, 0))
    points, colors = coloured_points(photo, np.full((4, 8), 2.0, np.float32), fov=90)
    assert points.shape == (32, 3) and np.allclose(points[:, 2], -2)
    assert np.allclose(points[0], [-1.75, 0.75, -2]) and np.allclose(points[-1], [1.75, -0.75, -2])
    assert colors[0].tolist() == [255, 0, 0] and (colors[1:] == [10, 20, 30]).all()


def test_a_room_becomes_the_room():
    """Points of a rendered room lie where its camera saw them."""
    frame = render_room(ROOM, height=60, width=80)
    fov = math.degrees(2 * math.atan(40 / frame.camera.fx))
    points, _ = coloured_points(Image.fromarray(frame.image), frame.depth_dense, fov)
    ahead = points * [1, -1, -1]
    camera = frame.camera
    u = ahead[:, 0] / ahead[:, 2] * camera.fx + camera.cx
    v = ahead[:, 1] / ahead[:, 2] * camera.fy + camera.cy
    columns, rows = np.meshgrid(np.arange(80), np.arange(60))
    assert np.allclose(u, columns.ravel(), atol=1e-3) and np.allclose(v, rows.ravel(), atol=1e-3)
    assert np.allclose(ahead[:, 2], frame.depth_dense.ravel())


def test_pixels_without_depth_give_no_point_and_large_maps_are_sampled():
    depth = np.array([[1.0, 0.0, np.nan, np.inf, -1.0, 2.0]], np.float32)
    points, colors = coloured_points(Image.new("RGB", (6, 1)), depth)
    assert len(points) == len(colors) == 2
    points, _ = coloured_points(Image.new("RGB", (300, 200)), np.ones((200, 300), np.float32), max_points=600)
    assert 500 < len(points) <= 600


def test_the_glb_file_reloads():
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    colors = np.tile(np.array([[0, 128, 255]], np.uint8), (50, 1))
    scene = trimesh.load(io.BytesIO(glb(points, colors)), file_type="glb")
    (cloud,) = scene.geometry.values()
    assert isinstance(cloud, trimesh.PointCloud) and np.allclose(cloud.vertices, points, atol=1e-6)
    assert (cloud.colors == [0, 55, 255, 255]).all()  # linear: half of sRGB is about a fifth of the light


@pytest.mark.parametrize("fov", [0, 180, -5, float("nan"), "60"])
def test_impossible_views_are_refused(fov):
    with pytest.raises(ValueError, match="fov must lie between 0 and 180 degrees"):
        pinhole_of((4, 4), fov)


def test_unfit_maps_are_refused():
    with pytest.raises(ValueError, match=r"depth must be \(H, W\) of the photo, \(4, 6\)"):
        coloured_points(Image.new("RGB", (6, 4)), np.ones((6, 4), np.float32))
    with pytest.raises(ValueError, match="no positive depth"):
        glb(*coloured_points(Image.new("RGB", (6, 4)), np.zeros((4, 6), np.float32)))


# Checkpoints


@pytest.mark.slow
def test_files_are_those_of_predict(rooms, photo, repository, tmp_path):
    result, output = rooms.predict(photo), tmp_path / "out"
    model = str(repository / "hub_configs" / "ait-tiny-rooms")
    given = ["--threshold", "0.3", "--formats", "png16,npy,coco", "--device", "cpu"]
    assert main(["predict", str(photo), "--model", model, "--output", str(output), *given]) == 0
    for task, format_name in (("depth", "png16"), ("semantic", "png16"), ("depth", "npy"), ("normals", "npy")):
        path = result.write(task, format_name)
        assert path.read_bytes() == (output / path.name).read_bytes()
    with Image.open(result.write("depth", "png16")) as stored:
        depth = native_map(stored, DEPTH, "depth")
    assert (depth - result.predictions["depth"]).abs().max() <= 0.0005 + 1e-6
    for task in ("instance", "detection"):
        path = result.write_objects(task, above(result.predictions[task], 0.3))
        assert json.loads(path.read_text()) == json.loads((output / path.name).read_text())
    assert result.seconds.model > 0 and result.seconds.processor > 0 and result.seconds.post_processing > 0
    result.discard()
    assert not result.folder.exists()


def test_thresholds_keep_whole_objects():
    masks = torch.eye(3, dtype=torch.bool)[:, None]
    found = FoundObjects(["bed", "lamp", "box"], [0.9, 0.5, 0.2], masks, None, [{"score": x} for x in (0.9, 0.5, 0.2)])
    kept = above(found, 0.5)
    assert kept.labels == ["bed", "lamp"] and kept.scores == [0.9, 0.5] and kept.results == found.results[:2]
    assert torch.equal(kept.masks, masks[:2]) and kept.boxes is None
    assert above(found, 1).labels == [] and len(above(found, 1).masks) == 0


def test_large_photographs_are_made_smaller(tiny_model, tiny_processor, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    tiny = Checkpoint(str(tmp_path / "model"), "tiny")
    Image.new("RGB", (400, 300), "grey").save(tmp_path / "large.jpg")
    result = tiny.predict(tmp_path / "large.jpg", max_side=200)
    assert result.photo.size == (200, 150) and result.original_size == (400, 300)
    assert result.predictions["depth"].shape == (150, 200)
    assert tiny.predict(tmp_path / "large.jpg").photo.size == (400, 300)


def test_shipped_checkpoints_and_labels(monkeypatch, tmp_path):
    assert labels_of(shipped_checkpoints()) == ["ait-lite-nyu", "ait-tiny-rooms", "ait-tiny-rooms-instance"]
    assert labels_of(["runs/a/model", "runs/b/model", "me/x"]) == ["runs/a/model", "runs/b/model", "x"]
    monkeypatch.setattr(checkpoints, "__file__", str(tmp_path / "a" / "b" / "c" / "d.py"))
    assert shipped_checkpoints() == []


# The command


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 2
    assert capsys.readouterr().err == (
        'error: The page needs gradio, which is optional: pip install "transformers_ait[app]".\n'
    )


@pytest.mark.usefixtures("no_packages_needed")
def test_without_a_clone_a_checkpoint_is_needed(monkeypatch, capsys):
    monkeypatch.setattr(checkpoints, "shipped_checkpoints", lambda: [])
    assert main(["app"]) == 2
    assert "--checkpoint is needed: this is no clone" in capsys.readouterr().err


@pytest.mark.usefixtures("no_packages_needed")
@pytest.mark.parametrize(
    "folders, words",
    [
        (["ait-vqvae-depth"], "predicts nothing from photographs"),
        (["ait-tiny-rooms", "ait-tiny-rooms"], "is given twice"),
        (["nowhere"], "is no folder, and the Hub does not give it"),
    ],
)
def test_unfit_checkpoints_are_refused(repository, capsys, folders, words):
    given = [str(repository / "hub_configs" / name) for name in folders]
    assert main(["app", "--checkpoint", *given]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.usefixtures("no_packages_needed")
def test_a_taken_port_is_named(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["app", "--port", str(port)]) == 2
        assert app.free_port("127.0.0.1", None) != port
    assert f"cannot listen at --host 127.0.0.1, port {port}" in capsys.readouterr().err
    assert main(["app", "--host", "256.0.0.1", "--port", "7860"]) == 2
    assert "give another --port or --host" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--port", "0"], ["--port", "70000"], ["--max-side", "-1"], ["--device", "abacus"]])
def test_wrong_options_are_refused(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["app", *option])
    assert stop.value.code == 2 and option[0] in capsys.readouterr().err
