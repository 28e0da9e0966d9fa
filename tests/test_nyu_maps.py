"""`nyu_depth_v2`: semantic labels beside the frames, normals from their depth, and what is wrong with either."""

import os
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from transformers_ait.data import NYU40_CLASSES, NYUDepthV2, Pinhole, normals_from_depth
from transformers_ait.image_inputs_ait import native_map
from transformers_ait.map_kinds_ait import MAP_KINDS

HEIGHT, WIDTH = 24, 32
CAMERA = Pinhole(518.858, 519.470, 325.582, 253.736)


def write_frame(folder: Path, number: int, labels: np.ndarray | None = None) -> None:
    """One frame with random pixels; labels with every id from 0 to 39 unless others are given."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)).save(folder / f"rgb_{number:05d}.jpg")
    depth = rng.integers(700, 9000, (HEIGHT, WIDTH)).astype(np.uint16)
    Image.fromarray(depth).save(folder / f"sync_depth_{number:05d}.png")
    if labels is None:
        labels = rng.permutation(np.arange(HEIGHT * WIDTH) % 40).reshape(HEIGHT, WIDTH).astype(np.uint8)
    Image.fromarray(labels).save(folder / f"labels40_{number:05d}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """70 labelled training frames of two scenes, and a test frame without labels."""
    root = tmp_path / "nyu"
    for number in range(70):
        write_frame(root / "sync" / ("attic_0002" if number < 66 else "kitchen_0001"), number)
    write_frame(root / "official_splits" / "test" / "bathroom", 90)
    (root / "official_splits" / "test" / "bathroom" / "labels40_00090.png").unlink()
    return root


Load = Callable[..., datasets.DatasetDict]


@pytest.fixture
def load(root: Path, tmp_path: Path) -> Load:
    """`load_dataset` of the fixture's folder with its own cache."""

    def function(**options):
        settings = {"data_dir": str(root), "cache_dir": str(tmp_path / "cache")} | options
        return datasets.load_dataset("nyu_depth_v2", **settings)

    return function


def require_labels(row: dict, root: Path) -> None:
    """The row's ids are those of its file, by another reader."""
    path = root / row["name"].replace("rgb_", "labels40_").replace(".jpg", ".png")
    expected = np.asarray(Image.open(path)).astype(int)
    expected[expected == 39] = 255
    assert row["semantic"].mode == "L"
    np.testing.assert_array_equal(np.asarray(row["semantic"]), expected)


def test_names_are_the_usual_ones_in_the_usual_order() -> None:
    assert len(NYU40_CLASSES) == len(set(NYU40_CLASSES)) == 39
    positions = {"wall": 1, "floor": 2, "bed": 4, "sofa": 6, "door": 8, "bookshelf": 10, "picture": 11, "desk": 14}
    positions |= {"mirror": 19, "ceiling": 22, "television": 25, "box": 29, "whiteboard": 30, "person": 31, "lamp": 35}
    positions |= {"night stand": 32, "toilet": 33, "sink": 34, "bathtub": 36, "bag": 37, "otherfurniture": 39}
    assert {name: NYU40_CLASSES.index(name) + 1 for name in positions} == positions


def test_labels_are_a_column_of_ids(load: Load, root: Path) -> None:
    splits = load()
    assert splits["train"].column_names == ["image", "depth", "semantic", "scene", "name"]
    for row in splits["train"].select((0, 3, 65, 69)):
        require_labels(row, root)
        ids = native_map(row["semantic"], MAP_KINDS["classes"], "semantic")
        assert set(ids.unique().tolist()) == {*range(39), 255}
        MAP_KINDS["classes"].check(ids[None], len(NYU40_CLASSES), "semantic")
    with pytest.raises(AssertionError):
        require_labels({**splits["train"][0], "name": splits["train"][1]["name"]}, root)
    raw = splits["train"].cast_column("depth", datasets.Image(decode=False))[0]["depth"]
    assert raw["bytes"] is None, "the other files are not copied"


def test_split_without_labels_has_no_such_column(load: Load) -> None:
    columns = ["image", "depth", "scene", "name"]
    assert load()["test"].column_names == load(split="test").column_names == columns
    assert load(split="test[:1]").column_names == columns
    stream = load(split="test", streaming=True)
    assert stream.column_names == columns and [list(row) for row in stream] == [columns]
    assert list(load(split="test")) == list(stream)
    assert [row["semantic"] is None for row in load(split="train+test")] == [False] * 70 + [True]


@pytest.mark.slow
def test_streaming_and_several_processes_give_the_same_rows(load: Load, tmp_path: Path) -> None:
    rows = list(load(split="train"))
    stream = load(split="train", streaming=True)
    assert stream.num_shards == 2 and "semantic" in stream.column_names
    assert list(stream) == rows
    assert list(load(split="train", num_proc=2, cache_dir=str(tmp_path / "other"))) == rows
    shard = load(split="train", streaming=True).decode(False).shard(2, 1)
    assert [row["name"] for row in shard.skip(2)] == [row["name"] for row in rows[66:]]


def test_held_out_frames_keep_their_labels(load: Load, root: Path) -> None:
    splits = load(num_held_out=5)
    assert len(splits["validation"]) == 5
    for row in splits["validation"]:
        require_labels(row, root)


def test_lists_choose_labelled_frames(load: Load, root: Path) -> None:
    (root / "sync/attic_0002/labels40_00007.png").unlink()
    message = r"1 of 70 files are missing in .*: sync/attic_0002/labels40_00007.png. A split has labels for all"
    with pytest.raises(FileNotFoundError, match=message):
        load()
    with pytest.raises(FileNotFoundError, match=message):
        load(streaming=True)

    def write(*numbers: int) -> None:
        lines = [f"attic_0002/rgb_{i:05d}.jpg attic_0002/sync_depth_{i:05d}.png 518.85" for i in numbers]
        (root / "train.txt").write_text("\n".join(lines))

    write(9, 3)
    listed = load(train_list="train.txt")["train"]
    assert [name[-9:-4] for name in listed["name"]] == ["00009", "00003"]
    for row in listed:
        require_labels(row, root)
    write(9, 7, 3)
    with pytest.raises(FileNotFoundError, match=r"1 of 3 files are missing in .*labels40_00007.png"):
        load(train_list="train.txt")
    write(7)
    assert "semantic" not in load(train_list="train.txt")["train"].column_names


def test_cache_notices_changed_labels(load: Load, root: Path, tmp_path: Path) -> None:
    path = root / "sync/attic_0002/labels40_00000.png"
    Image.new("L", (WIDTH, HEIGHT), 7).save(path)
    assert np.unique(load()["train"][0]["semantic"]).tolist() == [7]
    Image.new("L", (WIDTH, HEIGHT), 8).save(path)
    assert np.unique(load()["train"][0]["semantic"]).tolist() == [8]

    def folder(**options) -> str:
        return NYUDepthV2(data_dir=root, cache_dir=str(tmp_path / "cache"), **options).cache_dir

    folders = {folder()}
    os.utime(path, ns=(1, 1))
    folders.add(folder())
    assert len(folders) == 2 and folder() in folders and folder(normals=True) not in folders
    for label in (root / "sync").rglob("labels40_*.png"):
        label.unlink()
    assert "semantic" not in load()["train"].column_names


def label_image(mode: str, value: int | tuple[int, ...] = 3, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    return Image.new(mode, size, value)


WRONG_LABELS = [
    (label_image("L", size=(WIDTH, 20)), r"rgb_\d+.jpg is 32 x 24 but .*labels40_\d+.png is 32 x 20: .* aligned"),
    (label_image("RGB", (1, 2, 3)), r"8-bit PNG of one channel, but .*labels40_\d+.png has mode RGB"),
    (label_image("I;16"), r"8-bit PNG of one channel, but .*labels40_\d+.png has mode I;16"),
    (label_image("L", 40), r"0 to 39, and 255 where unknown, but .*labels40_\d+.png holds 40; if they count from 1"),
    (label_image("L", 200), "labels40_.* holds 200"),
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("labels", "message"), WRONG_LABELS)
def test_wrong_labels_are_noticed_first(load: Load, root: Path, labels, message: str, streaming: bool) -> None:
    labels.save(root / "sync/attic_0002/labels40_00000.png")
    with pytest.raises(ValueError, match=message):
        load(streaming=streaming)


@pytest.mark.parametrize(("labels", "message"), WRONG_LABELS)
def test_wrong_labels_are_noticed_outside_of_the_sample(load: Load, root: Path, labels, message: str) -> None:
    labels.save(root / "sync/attic_0002/labels40_00001.png")
    with pytest.raises(datasets.exceptions.DatasetGenerationError) as caught:
        load()
    with pytest.raises(ValueError, match=message):
        raise caught.value.__cause__
    with pytest.raises(ValueError, match=message):
        list(load(split="train", streaming=True))


def test_broken_labels_are_named(load: Load, root: Path) -> None:
    path = root / "sync/attic_0002/labels40_00001.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(OSError, match="1 of 210 images are broken: .*labels40_00001.png"):
        load()
    with pytest.raises(OSError, match="labels40_00001.png cannot be decoded"):
        list(load(split="train", streaming=True))


def test_palettes_and_unlabelled_ids_are_read(load: Load, root: Path) -> None:
    ids = (np.arange(HEIGHT * WIDTH) % 40).reshape(HEIGHT, WIDTH).astype(np.uint8)
    ids[0] = 255
    coloured = Image.fromarray(ids).convert("P")
    coloured.putpalette(np.random.default_rng(0).integers(0, 255, 768).tolist())
    coloured.save(root / "sync/attic_0002/labels40_00000.png")
    row = load(split="train")[0]
    assert Image.open(root / "sync/attic_0002/labels40_00000.png").mode == "P"
    np.testing.assert_array_equal(np.asarray(row["semantic"]), np.where(ids == 39, 255, ids))


def write_scene(folder: Path, number: int) -> np.ndarray:
    """A 640 x 480 frame that sees a tilted plane with a hole; returns its depth in millimetres."""
    folder.mkdir(parents=True, exist_ok=True)
    v, u = np.mgrid[:480, :640]
    directions = np.stack([(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, np.ones(u.shape)], -1)
    depth = np.rint(-2000 / (directions @ [0.36, -0.48, -0.8])).astype(np.uint16)
    depth[100 + number : 200, 300:500] = 0
    Image.fromarray(depth).save(folder / f"sync_depth_{number:05d}.png")
    Image.new("RGB", (640, 480)).save(folder / f"rgb_{number:05d}.jpg")
    return depth


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Two frames of the sensor's size."""
    for number in range(2):
        write_scene(tmp_path / "scene" / "sync" / "office", number)
    return tmp_path / "scene"


@pytest.mark.slow
def test_normals_are_computed_from_depth(load: Load, scene: Path, tmp_path: Path) -> None:
    rows = load(data_dir=str(scene), normals=True, split="train")
    assert rows.column_names == ["image", "depth", "normals", "scene", "name"]
    assert "normals" not in load(data_dir=str(scene), split="train").column_names
    for row in rows:
        depth = np.asarray(row["depth"]) / 1000
        pixels = np.asarray(row["normals"]).astype(int)
        assert row["normals"].mode == "RGB" and (pixels[depth == 0] == 128).all() and (depth == 0).any()
        expected = np.rint((normals_from_depth(depth, CAMERA) + 1) * 127.5)
        np.testing.assert_array_equal(pixels, expected)
        normals = native_map(row["normals"], MAP_KINDS["normals"], "normals").permute(1, 2, 0).numpy()
        assert (normals.any(-1) == (depth > 0)).all()
        np.testing.assert_allclose(normals[depth > 0] @ [0.36, -0.48, -0.8], 1, atol=1e-4)
    assert list(load(data_dir=str(scene), normals=True, split="train", streaming=True)) == list(rows)
    parallel = load(data_dir=str(scene), normals=True, split="train", num_proc=2, cache_dir=str(tmp_path / "other"))
    assert list(parallel) == list(rows)


@pytest.mark.slow
def test_normals_of_the_labelled_file(load: Load, tmp_path: Path) -> None:
    h5py, io = pytest.importorskip("h5py"), pytest.importorskip("scipy.io")
    depth = write_scene(tmp_path / "unused", 0)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = np.zeros((2, 3, 640, 480), np.uint8)
        file["depths"] = np.stack([depth.T / 1000.0] * 2)
    io.savemat(tmp_path / "splits.mat", {"trainNdxs": [[1]], "testNdxs": [[2]]})
    splits = load(data_dir=None, labelled_mat=str(tmp_path / "nyu_depth_v2_labeled.mat"), normals=True)
    assert splits["test"].column_names == ["image", "depth", "normals", "scene", "name"]
    expected = np.rint((normals_from_depth(depth / 1000, CAMERA) + 1) * 127.5)
    np.testing.assert_array_equal(np.asarray(splits["test"][0]["normals"]), expected)


@pytest.mark.parametrize("streaming", [False, True])
def test_normals_need_the_camera_of_the_frames(load: Load, streaming: bool) -> None:
    message = r"normals need NYU's camera, .* 640 x 480 pixels, but .*sync_depth_\d+.png is 32 x 24: .*normals=True"
    with pytest.raises(ValueError, match=message):
        load(normals=True, streaming=streaming)
    with pytest.raises(TypeError, match="normals must be True or False, got 21"):
        load(normals=21, streaming=streaming)


@pytest.mark.slow
def test_real_frames(shared_dir: Path, load: Load, tmp_path: Path) -> None:
    source = shared_dir / "data" / "nyu_depth_v2" / "sync" / "labelled"
    if not source.is_dir():
        pytest.skip(f"no real data: {source} does not exist")
    folder = tmp_path / "real" / "sync" / "labelled"
    folder.mkdir(parents=True)
    for path in sorted(source.glob("*_00419.*")) + sorted(source.glob("*_00690.*")):
        (folder / path.name).symlink_to(path)
    rows = load(data_dir=str(tmp_path / "real"), normals=True, split="train")
    assert len(rows) == 2
    for row in rows:
        require_labels(row, tmp_path / "real")
        normals = native_map(row["normals"], MAP_KINDS["normals"], "normals")
        assert 0.7 < normals.any(0).float().mean() < 0.97
    # The floor of the first frame: upwards, against y, in the camera's axes.
    normals = native_map(rows[0]["normals"], MAP_KINDS["normals"], "normals")
    floor = (np.asarray(rows[0]["semantic"]) == NYU40_CLASSES.index("floor")) & normals.any(0).numpy()
    median = normals[:, floor].median(-1).values
    assert floor.sum() > 20_000 and median[1] < -0.9 and abs(median[0]) < 0.2
