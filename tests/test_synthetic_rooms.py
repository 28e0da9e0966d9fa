"""`synthetic_rooms`: geometry, labels, holes, determinism, and the `datasets` builder."""

from dataclasses import replace

import datasets
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from transformers_ait.data import (
    SYNTHETIC_ROOMS_CLASSES,
    SYNTHETIC_ROOMS_SEMANTIC_CLASSES,
    RoomFrame,
    RoomsConfig,
    SyntheticRooms,
    render_room,
)
from transformers_ait.data.rooms_casting import View, cast
from transformers_ait.data.rooms_furniture import Primitive, plain, rotation_about
from transformers_ait.data.rooms_scene import sample_scene
from transformers_ait.image_inputs_ait import native_map
from transformers_ait.map_kinds_ait import MAP_KINDS

SIZE = {"height": 96, "width": 128}


@pytest.fixture(scope="module")
def frames() -> list[RoomFrame]:
    with np.errstate(all="raise", under="ignore"):
        return [render_room(index, **SIZE) for index in range(24)]


def camera_points(frame: RoomFrame, depth: np.ndarray) -> np.ndarray:
    """(H, W, 3) points in the camera frame, from depth along the optical axis."""
    camera = frame.camera
    v, u = np.mgrid[: depth.shape[0], : depth.shape[1]]
    return np.stack([(u - camera.cx) / camera.fx * depth, (v - camera.cy) / camera.fy * depth, depth], -1)


def world_points(frame: RoomFrame, depth: np.ndarray, pose: np.ndarray) -> np.ndarray:
    return camera_points(frame, depth) @ pose[:3, :3].T + pose[:3, 3]


def normal_errors(frame: RoomFrame, depth: np.ndarray, shell: bool) -> np.ndarray:
    """Degrees between `normals` and the normals of 3 x 3 blocks of points, inside the shell or inside objects."""
    points = camera_points(frame, depth.astype(np.float64))
    across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    estimate = -np.cross(across, down)
    estimate /= np.linalg.norm(estimate, axis=-1, keepdims=True)
    height, width = depth.shape
    windows = [(slice(1 + i, height - 1 + i), slice(1 + j, width - 1 + j)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    centre = frame.normals[1:-1, 1:-1]
    flat = np.all([(frame.normals[window] * centre).sum(-1) > 0.99999 for window in windows], axis=0)
    same = np.all([frame.semantic[window] == frame.semantic[1:-1, 1:-1] for window in windows], axis=0)
    chosen = flat & same & ((frame.semantic[1:-1, 1:-1] < 3) == shell)
    return np.degrees(np.arccos(np.clip((estimate * centre).sum(-1)[chosen], -1, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(("shell", "outliers"), [(True, 0.01), (False, 0.2)])
def test_normals_agree_with_depth(frames: list[RoomFrame], shell: bool, outliers: float) -> None:
    # Objects have steps between parallel faces, such as drawer fronts, across which differences mean nothing.
    errors = np.concatenate([normal_errors(frame, frame.depth_dense, shell) for frame in frames])
    assert len(errors) > 20_000
    assert np.median(errors) < 0.1 and (errors > 1).mean() < outliers
    ray_length = [np.linalg.norm(camera_points(frame, frame.depth_dense), axis=-1) for frame in frames]
    wrong = [normal_errors(frame, depth, shell) for frame, depth in zip(frames, ray_length, strict=True)]
    assert np.median(np.concatenate(wrong)) > 5, "ray length in place of depth is noticed"


def test_normals_face_the_camera(frames: list[RoomFrame]) -> None:
    for frame in frames:
        np.testing.assert_allclose(np.linalg.norm(frame.normals, axis=-1), 1, atol=1e-4)
        assert ((frame.normals * camera_points(frame, frame.depth_dense)).sum(-1) < 1e-3).all()


@pytest.mark.slow
def test_shell_lies_on_its_planes(frames: list[RoomFrame]) -> None:
    for frame in frames:
        size = sample_scene(frame.index, 0).size
        points = world_points(frame, frame.depth_dense, frame.camera.pose)
        assert (points > -2e-3).all() and (points < size + 2e-3).all()
        floor, ceiling = (
            frame.semantic == SYNTHETIC_ROOMS_SEMANTIC_CLASSES.index(name) for name in ("floor", "ceiling")
        )
        np.testing.assert_allclose(points[floor][:, 2], 0, atol=2e-3)
        np.testing.assert_allclose(points[ceiling][:, 2], size[2], atol=2e-3)
        upwards = frame.camera.pose[2, :3]
        np.testing.assert_allclose(frame.normals[floor] @ upwards, 1, atol=1e-4)
        np.testing.assert_allclose(frame.normals[frame.semantic == 0] @ upwards, 0, atol=1e-4)


def test_inverted_pose_would_be_noticed(frames: list[RoomFrame]) -> None:
    frame = next(frame for frame in frames if (frame.semantic == 1).mean() > 0.1)
    points = world_points(frame, frame.depth_dense, np.linalg.inv(frame.camera.pose))
    assert np.abs(points[frame.semantic == 1][:, 2]).max() > 0.1


@pytest.mark.parametrize(("shape", "taper"), [("box", 0.0), ("ellipsoid", 0.0), ("cylinder", 0.0), ("cylinder", -0.4)])
def test_cast_finds_the_first_point_of_the_solid(shape: str, taper: float) -> None:
    """Against marching along each ray with an inside test, which shares no formula with the intersections."""
    rng = np.random.default_rng(0)
    step = 0.004
    for _ in range(3):
        axes = rotation_about(2, rng.uniform(0, 6)) @ rotation_about(0, rng.uniform(0, 6))
        part = Primitive(shape, rng.normal([0, 0, 2.0], 0.2), axes, rng.uniform(0.15, 0.5, 3), plain((1, 1, 1)), taper)
        view = View(np.zeros(3), np.eye(3), 30.0, 40, 48)
        depth = np.full((40, 48), np.inf, np.float32)
        cast(view, [part], depth)
        rays = np.stack(view.rays(slice(None), slice(None), np.eye(3)), -1)
        marched = np.full((40, 48), np.inf)
        for z in np.arange(0.5, 3.5, step):
            x, y, local_z = np.moveaxis((rays * z - part.center) @ part.axes / part.half, -1, 0)
            if shape == "box":
                inside = np.maximum(np.maximum(abs(x), abs(y)), abs(local_z)) <= 1
            elif shape == "ellipsoid":
                inside = x**2 + y**2 + local_z**2 <= 1
            else:
                inside = (np.hypot(x, y) <= 1 + taper * local_z) & (abs(local_z) <= 1)
            marched = np.where(inside & np.isinf(marched), z, marched)
        hit, marched_hit = np.isfinite(depth), np.isfinite(marched)
        assert hit.mean() > 0.02
        assert not (marched_hit & ~hit).any()
        assert (hit & ~marched_hit).sum() <= 0.1 * hit.sum(), "only rims thinner than a step may be missed"
        both = hit & marched_hit
        np.testing.assert_allclose(depth[both], marched[both], atol=1.5 * step)


@pytest.mark.slow
def test_things_rest_and_do_not_pierce_each_other() -> None:
    rng = np.random.default_rng(0)
    for index in range(40):
        scene = sample_scene(index, 0)
        bounds = np.stack([part.bounds() for part in scene.parts])
        boxes = [i for i, part in enumerate(scene.parts) if part.shape == "box" and scene.owners[i]]
        for i in boxes:
            part = scene.parts[i]
            inside = part.center + (rng.uniform(-0.9, 0.9, (64, 3)) * part.half) @ part.axes.T
            for j in boxes:
                if scene.owners[i] != scene.owners[j]:
                    local = (inside - scene.parts[j].center) @ scene.parts[j].axes / scene.parts[j].half
                    assert not (np.abs(local) < 0.9).all(-1).any(), (index, i, j)
        for owner, category in enumerate(scene.objects, 1):
            lowest = bounds[scene.owners == owner, 0, 2].min()
            assert lowest > -1e-6
            if category in ("bed", "chair", "sofa", "table", "cabinet", "plant", "door"):
                assert lowest < 1e-6, (index, category)


@pytest.mark.slow
def test_camera_is_in_no_solid() -> None:
    for index in range(100):
        scene = sample_scene(index, 0)
        position = scene.camera.position
        assert ((position > 0.2) & (position < scene.size - 0.2)).all()
        for part in scene.parts:
            assert (np.abs((position - part.center) @ part.axes / part.half) > 1).any()


def test_objects_match_the_instance_map(frames: list[RoomFrame]) -> None:
    assert sum(len(frame.objects) for frame in frames) > 60
    for frame in frames:
        assert [item.id for item in frame.objects] == list(range(1, len(frame.objects) + 1))
        assert set(np.unique(frame.instance_map)) - {0} == {item.id for item in frame.objects}
        for item in frame.objects:
            encoded = coco_mask.encode(np.asfortranarray(frame.instance_map == item.id, dtype=np.uint8))
            x, y, width, height = coco_mask.toBbox(encoded)
            assert item.box == (x, y, x + width, y + height)
            assert item.area == coco_mask.area(encoded)
            label = SYNTHETIC_ROOMS_SEMANTIC_CLASSES.index(item.category)
            assert (frame.semantic[frame.instance_map == item.id] == label).all()


def test_holes_are_like_a_sensor_s(frames: list[RoomFrame]) -> None:
    holes = np.array([(frame.depth == 0).mean() for frame in frames])
    assert 0.05 < holes.mean() < 0.25 and holes.min() > 0.005 and holes.max() < 0.6
    grazing, facing = [], []
    for frame in frames:
        valid = frame.depth > 0
        error = np.abs(frame.depth - frame.depth_dense)[valid] / frame.depth_dense[valid] ** 2
        assert 1e-4 < error.mean() < 5e-3 and error.max() < 0.02
        rays = camera_points(frame, np.ones(frame.depth.shape))
        cosine = -(frame.normals * rays).sum(-1) / np.linalg.norm(rays, axis=-1)
        grazing.append((~valid)[cosine < 0.1])
        facing.append((~valid)[cosine > 0.5])
    assert np.concatenate(grazing).mean() > 4 * np.concatenate(facing).mean()


def test_without_holes_depth_is_exact() -> None:
    frame = render_room(3, **SIZE, holes=False)
    assert (frame.depth == frame.depth_dense).all() and (frame.depth > 0).all()
    np.testing.assert_array_equal(frame.image, render_room(3, **SIZE).image)


def test_same_index_same_room_whatever_was_rendered_before(frames: list[RoomFrame]) -> None:
    again = render_room(5, **SIZE)
    for name in ("image", "depth", "depth_dense", "normals", "semantic", "instance_map"):
        np.testing.assert_array_equal(getattr(again, name), getattr(frames[5], name))
    assert again.objects == frames[5].objects
    for other in (render_room(6, **SIZE), render_room(5, **SIZE, seed=1)):
        assert np.abs(other.depth_dense - again.depth_dense).mean() > 0.05


def test_room_does_not_depend_on_the_picture_size(frames: list[RoomFrame]) -> None:
    large = render_room(5, height=288, width=384)
    np.testing.assert_array_equal(large.camera.pose, frames[5].camera.pose)
    difference = np.abs(large.depth_dense[1::3, 1::3] - frames[5].depth_dense)
    assert (difference < 1e-3).mean() > 0.99, "the middle pixel of each 3 x 3 block looks the same way"


def test_a_model_must_look_at_the_picture(frames: list[RoomFrame]) -> None:
    depth = np.stack([frame.depth_dense for frame in frames])
    assert 2.0 < np.median(depth) < 3.2
    assert np.percentile(depth, 1) > 0.5 and np.percentile(depth, 99) < 8
    assert np.sqrt(np.mean((depth - depth.mean(0)) ** 2)) > 0.8, "not even the mean picture predicts it"
    assert len({item.category for frame in frames for item in frame.objects}) >= 10
    assert all(40 < frame.image.mean() < 215 and frame.image.std() > 10 for frame in frames)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"height": 15}, ValueError, "height must lie between 16 and 8192, got 15"),
        ({"width": 0}, ValueError, "width"),
        ({"height": 96.0}, TypeError, "height must be an integer, got 96.0"),
        ({"seed": -1}, ValueError, "seed"),
        ({"index": -1}, ValueError, "index"),
        ({"index": True}, TypeError, "index"),
    ],
)
def test_bad_render_arguments(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        render_room(**{"index": 0, **SIZE, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_train": -1}, ValueError, "num_train must lie between 0 and"),
        ({"num_test": 2.5}, TypeError, "num_test must be an integer"),
        ({"height": 8}, ValueError, "height"),
        ({"seed": -5}, ValueError, "seed"),
        ({"holes": 1}, TypeError, "holes must be True or False, got 1"),
        ({"num_train": 0, "num_validation": 0, "num_test": 0}, ValueError, "at least one room"),
    ],
)
def test_bad_configs(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RoomsConfig(**change)


SMALL = {"num_train": 60, "num_validation": 2, "num_test": 3, "height": 32, "width": 48, "seed": 4}


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> datasets.DatasetDict:
    """Loaded by name, with two processes, from an empty working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))
        return datasets.load_dataset("synthetic_rooms", cache_dir=tmp_path_factory.mktemp("cache"), num_proc=2, **SMALL)


@pytest.mark.slow
def test_rows_hold_the_rendered_frame(rooms: datasets.DatasetDict) -> None:
    assert {name: len(split) for name, split in rooms.items()} == {"train": 60, "validation": 2, "test": 3}
    indices = [index for split in rooms.values() for index in split["index"]]
    assert rooms["train"]["index"][:] == list(range(60)) and len(set(indices)) == 65
    categories = rooms["train"].features["objects"]["category"].feature
    assert categories.names == list(SYNTHETIC_ROOMS_CLASSES)
    for row in (rooms["train"][55], rooms["test"][2]):
        frame = render_room(row["index"], height=32, width=48, seed=4)
        assert row["depth"].mode.startswith("I;16")
        np.testing.assert_array_equal(np.array(row["depth"]), np.rint(frame.depth * 1000))
        np.testing.assert_array_equal(np.array(row["semantic"]), frame.semantic)
        np.testing.assert_array_equal(np.array(row["instance_map"]), frame.instance_map)
        np.testing.assert_allclose(np.array(row["normals"]) / 127.5 - 1, frame.normals, atol=0.5 / 127.5 + 1e-6)
        assert np.abs(np.array(row["image"]).astype(int) - frame.image).mean() < 6, "JPEG"
        np.testing.assert_allclose(row["camera"]["pose"], frame.camera.pose)
        assert row["camera"]["fx"] == pytest.approx(frame.camera.fx)
        assert categories.int2str(row["objects"]["category"]) == [item.category for item in frame.objects]
        for bbox, item in zip(row["objects"]["bbox"], frame.objects, strict=True):
            x0, y0, x1, y1 = item.box
            assert bbox == [x0, y0, x1 - x0, y1 - y0]


@pytest.mark.slow
def test_columns_are_maps_of_their_kinds(rooms: datasets.DatasetDict) -> None:
    seen = set()
    for row in rooms["train"]:
        labels = native_map(row["semantic"], MAP_KINDS["classes"], "semantic")
        MAP_KINDS["classes"].check(labels[None], len(SYNTHETIC_ROOMS_SEMANTIC_CLASSES), "semantic")
        seen |= {SYNTHETIC_ROOMS_SEMANTIC_CLASSES[label] for label in labels.unique()}
        stored = np.array(row["normals"]) / 127.5 - 1
        np.testing.assert_allclose(np.linalg.norm(stored, axis=-1), 1, atol=0.0075)
        normals = native_map(row["normals"], MAP_KINDS["normals"], "normals").numpy()
        camera, upwards = row["camera"], np.array(row["camera"]["pose"])[2, :3]
        v, u = np.mgrid[: normals.shape[1], : normals.shape[2]]
        directions = np.stack([(u - camera["cx"]) / camera["fx"], (v - camera["cy"]) / camera["fy"], np.ones(u.shape)])
        assert ((normals * directions).sum(0) < 0.03).all(), "x right, y down, z ahead, towards the camera"
        floor = (labels == SYNTHETIC_ROOMS_SEMANTIC_CLASSES.index("floor")).numpy()
        assert (upwards @ normals[:, floor] > 0.99).all() and upwards[1] < 0
    assert {"wall", "floor", "other"} < seen and len(seen) > 12


@pytest.mark.slow
def test_rows_embed_their_pictures(rooms: datasets.DatasetDict) -> None:
    raw = rooms["test"].cast_column("depth", datasets.Image(decode=False))[0]["depth"]
    assert raw["path"] is None and raw["bytes"].startswith(b"\x89PNG")


@pytest.mark.slow
def test_streaming_and_one_process_give_the_same_rows(rooms: datasets.DatasetDict, tmp_path) -> None:
    stream = datasets.load_dataset("synthetic_rooms", split="train", streaming=True, **SMALL)
    assert stream.num_shards == 2
    builder = SyntheticRooms(cache_dir=str(tmp_path), **{**SMALL, "num_train": 2})
    builder.download_and_prepare()
    single = builder.as_dataset(split="train")
    for row, streamed in zip(single, stream, strict=False):
        assert row == streamed == rooms["train"][row["index"]]


def test_code_changes_and_settings_do_not_share_a_cache(tmp_path) -> None:
    def folder(**settings) -> str:
        return SyntheticRooms(cache_dir=str(tmp_path), **{**SMALL, **settings}).cache_dir

    assert folder() == folder()
    assert len({folder(), folder(seed=5), folder(height=33), folder(holes=False), folder(hash="other code")}) == 5


def test_files_of_the_working_directory_are_ignored(tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> None:
    files, cache = tmp_path_factory.mktemp("files"), str(tmp_path_factory.mktemp("cache"))
    folders = []
    (files / "train.csv").write_text("a\n1\n")
    for directory in (files, files.parent):
        monkeypatch.chdir(directory)
        builder = datasets.load_dataset_builder("synthetic_rooms", cache_dir=cache, **SMALL)
        assert builder.config.data_files is None
        folders.append(builder.cache_dir)
    assert folders[0] == folders[1]
    table = datasets.load_dataset("csv", data_dir=str(files), cache_dir=cache)
    assert table["train"][0] == {"a": 1}, "other builders still find their files"


def test_moved_parts_keep_their_shape() -> None:
    part = Primitive("box", np.array([1.0, 0, 0]), np.eye(3), np.array([0.1, 0.2, 0.3]), plain((1, 1, 1)))
    turned = part.moved(rotation_about(2, np.pi / 2), np.array([0, 0, 1.0]))
    np.testing.assert_allclose(turned.bounds(), [[-0.2, 0.9, 0.7], [0.2, 1.1, 1.3]], atol=1e-12)
    np.testing.assert_allclose(replace(part, axes=rotation_about(2, np.pi)).bounds(), part.bounds(), atol=1e-12)
