"""`nyu_depth_v2`: folders, list files, the labelled file, the cache, and bad input."""

import os
import socket
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from transformers_ait.data import NYUDepthV2, NYUDepthV2Config
from transformers_ait.data.image_files import NamedImage, require_complete_images
from transformers_ait.data.nyu_depth_v2 import hold_out

HEIGHT, WIDTH = 24, 32


def write_frame(folder: Path, number: int, depth: np.ndarray | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    if depth is None:
        depth = rng.integers(700, 9000, (HEIGHT, WIDTH)).astype(np.uint16)
    Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)).save(folder / f"rgb_{number:05d}.jpg")
    Image.fromarray(depth).save(folder / f"sync_depth_{number:05d}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven training frames of two scenes and two test frames."""
    root = tmp_path / "nyu"
    for number in range(7):
        write_frame(root / "sync" / ("kitchen_0001" if number < 3 else "attic_0002"), number)
    Image.new("L", (WIDTH, HEIGHT)).save(root / "sync" / "attic_0002" / "labels13_00003.png")
    for number in (11, 12):
        write_frame(root / "official_splits" / "test" / "bathroom", number)
    return root


@pytest.fixture
def load(root: Path, tmp_path: Path):
    """`load_dataset` of the fixture's folder with its own cache."""

    def function(**options):
        settings = {"data_dir": str(root), "cache_dir": str(tmp_path / "cache")} | options
        return datasets.load_dataset("nyu_depth_v2", **settings)

    return function


def test_rows_are_the_files(load, root: Path) -> None:
    splits = load()
    assert {name: len(split) for name, split in splits.items()} == {"train": 7, "test": 2}
    names = [f"sync/attic_0002/rgb_{i:05d}.jpg" for i in range(3, 7)]
    names += [f"sync/kitchen_0001/rgb_{i:05d}.jpg" for i in range(3)]
    assert splits["train"]["name"][:] == names
    assert splits["test"]["scene"][:] == ["bathroom"] * 2
    assert splits["train"].column_names == splits["test"].column_names == ["image", "depth", "scene", "name"]
    for row in [*splits["train"], *splits["test"]]:
        path = root / row["name"]
        assert row["scene"] == path.parent.name
        assert row["image"].mode == "RGB" and row["depth"].mode.startswith("I;16")
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(Image.open(path)))
        depth = Image.open(path.with_name(path.name.replace("rgb_", "sync_depth_")[:-4] + ".png"))
        np.testing.assert_array_equal(np.asarray(row["depth"]), np.asarray(depth))


def test_cache_holds_paths_only(load, root: Path) -> None:
    raw = load(split="test").cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert raw == {"bytes": None, "path": str(root / "official_splits/test/bathroom/rgb_00011.jpg")}


def test_streaming_and_several_processes_give_the_same_rows(tmp_path: Path, load) -> None:
    root = tmp_path / "many"
    for number in range(70):
        write_frame(root / "sync" / "scene", number)
    rows = list(load(data_dir=str(root), split="train"))
    stream = load(data_dir=str(root), split="train", streaming=True)
    assert stream.num_shards == 2
    assert list(stream) == rows
    assert list(load(data_dir=str(root), split="train", num_proc=2, cache_dir=str(tmp_path / "other"))) == rows
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows) and len(rows) == 70


def test_stream_continues_in_the_middle(load) -> None:
    stream = load(split="train", streaming=True)
    names = []
    for row in stream:
        names.append(row["name"])
        if len(names) == 4:
            break
    again = load(split="train", streaming=True)
    again.load_state_dict(stream.state_dict())
    assert names + [row["name"] for row in again] == load(split="train")["name"][:]


def test_builder_class_works_without_the_name(root: Path, tmp_path: Path) -> None:
    builder = NYUDepthV2(data_dir=root, cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    assert len(builder.as_dataset(split="train")) == 7


def test_nothing_is_asked_of_the_network(load, monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("a request to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("datasets.load.increase_load_count", refuse)
    assert len(load()["train"]) == 7


def test_held_out_frames_depend_on_seed_and_names_only(load) -> None:
    everything = set(load()["train"]["name"])
    splits = load(num_held_out=3)
    train, validation = (splits[name]["name"][:] for name in ("train", "validation"))
    assert len(validation) == 3 and len(train) == 4 and {*train, *validation} == everything
    streamed = load(num_held_out=3, split="validation", streaming=True)
    assert [row["name"] for row in streamed] == validation
    assert load(num_held_out=3, held_out_seed=1)["validation"]["name"][:] != validation
    names = sorted(everything)
    assert hold_out(names, names, 3, 0) == (train, validation)
    assert sorted(hold_out(names[::-1], names[::-1], 3, 0)[1]) == validation


@pytest.mark.parametrize("prefix", ["/", "", "sync/"])
def test_list_files(load, root: Path, prefix: str) -> None:
    lines = [f"{prefix}kitchen_0001/rgb_{i:05d}.jpg {prefix}kitchen_0001/sync_depth_{i:05d}.png 518.85" for i in (2, 0)]
    (root / "train.txt").write_text("\n".join(lines) + "\n\n")
    splits = load(train_list="train.txt")
    assert splits["train"]["name"][:] == [f"sync/kitchen_0001/rgb_{i:05d}.jpg" for i in (2, 0)], "in the list's order"
    assert len(splits["test"]) == 2, "the other split is not affected"


def test_cache_notices_changed_files(load, root: Path) -> None:
    first = load()["train"]
    assert load()["train"].cache_files == first.cache_files
    write_frame(root / "sync" / "cellar", 90)
    assert len(load()["train"]) == 8
    target = root / "sync/cellar/sync_depth_00090.png"
    folders = {load()["train"].cache_files[0]["filename"]}
    write_frame(root / "sync" / "cellar", 90, np.full((HEIGHT, WIDTH), 1234, np.uint16))
    folders.add(load()["train"].cache_files[0]["filename"])
    os.utime(target, ns=(1, 1))
    folders.add(load()["train"].cache_files[0]["filename"])
    assert len(folders) == 3, "content and time"
    (root / "train.txt").write_text("kitchen_0001/rgb_00000.jpg kitchen_0001/sync_depth_00000.png 5")
    assert len(load(train_list="train.txt")["train"]) == 1
    (root / "train.txt").write_text("kitchen_0001/rgb_00001.jpg kitchen_0001/sync_depth_00001.png 5")
    assert load(train_list="train.txt")["train"]["name"][0].endswith("00001.jpg")


def test_cache_folder_does_not_depend_on_how_the_path_is_written(root: Path, tmp_path: Path, monkeypatch) -> None:
    def folder(data_dir: str, **options) -> str:
        return NYUDepthV2(data_dir=data_dir, cache_dir=str(tmp_path / "cache"), **options).cache_dir

    expected = folder(str(root))
    monkeypatch.chdir(root.parent)
    assert folder("nyu") == folder("./nyu/") == expected
    assert len({expected, folder("nyu", num_held_out=1), folder("nyu", hash="other code")}) == 3


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A labelled file of six frames in MATLAB's order of axes, with its split 1 3 5 / 2 4 6."""
    h5py, io = pytest.importorskip("h5py"), pytest.importorskip("scipy.io")
    folder = tmp_path / "labelled"
    folder.mkdir()
    rng = np.random.default_rng(0)
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = rng.integers(0, 255, (6, 3, WIDTH, HEIGHT), dtype=np.uint8)
        file["depths"] = rng.uniform(0.7, 9.9, (6, WIDTH, HEIGHT)).astype(np.float32)
        raw = file["depths"][:]
        raw[:, 4, 3] = 0
        file["rawDepths"] = raw
        names = [file.create_dataset(f"#refs#/{i}", data=[[ord(c)] for c in f"room_{i}"]) for i in range(6)]
        file.create_dataset("scenes", (1, 6), h5py.ref_dtype)[0] = [name.ref for name in names]
    io.savemat(folder / "splits.mat", {"trainNdxs": [[1], [3], [5]], "testNdxs": [[2], [4], [6]]})
    return folder


def test_labelled_file(labelled: Path, load) -> None:
    import h5py

    splits = load(data_dir=None, labelled_mat=str(labelled / "nyu_depth_v2_labeled.mat"), num_proc=2)
    assert splits["train"]["scene"][:] == ["room_0", "room_2", "room_4"]
    row = splits["test"][1]
    assert row["name"] == "nyu_depth_v2_labeled.mat/00003" and row["scene"] == "room_3"
    with h5py.File(labelled / "nyu_depth_v2_labeled.mat") as file:
        image, depth = file["images"][3], file["depths"][3]
    pixels, millimetres = np.asarray(row["image"]), np.asarray(row["depth"])
    assert pixels.shape == (HEIGHT, WIDTH, 3) and millimetres.dtype == np.uint16
    assert (pixels[5, 7] == image[:, 7, 5]).all()
    np.testing.assert_allclose(millimetres / 1000, depth.T, atol=0.00051)
    inside = load(data_dir=str(labelled), streaming=True, labelled_depth="rawDepths", num_held_out=1)
    assert {name: len(list(split)) for name, split in inside.items()} == {"train": 2, "validation": 1, "test": 3}
    raw = np.asarray(next(iter(inside["test"]))["depth"])
    assert raw[3, 4] == 0 and (raw == 0).sum() == 1


def test_bad_labelled_files(labelled: Path, load, monkeypatch) -> None:
    import h5py
    from scipy import io

    mat = labelled / "nyu_depth_v2_labeled.mat"
    io.savemat(labelled / "large.mat", {"trainNdxs": [[1]], "testNdxs": [[7]]})
    with pytest.raises(ValueError, match="testNdxs names frame 7 .*has 6 frames"):
        load(data_dir=str(labelled), splits_mat="large.mat")
    io.savemat(labelled / "wrong.mat", {"train": [1]})
    with pytest.raises(ValueError, match=r"wrong.mat is no splits.mat with trainNdxs"):
        load(data_dir=str(labelled), splits_mat="wrong.mat")
    io.savemat(labelled / "halves.mat", {"trainNdxs": [[0.5]], "testNdxs": [[1]]})
    with pytest.raises(ValueError, match="halves.mat is no splits.mat: trainNdxs must hold whole numbers"):
        load(data_dir=str(labelled), splits_mat="halves.mat")
    (labelled / "cut.mat").write_bytes((labelled / "large.mat").read_bytes()[:200])
    with pytest.raises(ValueError, match="cut.mat is a damaged MATLAB file"):
        load(data_dir=str(labelled), splits_mat="cut.mat")
    with pytest.raises(FileNotFoundError, match="gone.mat does not exist"):
        load(data_dir=str(labelled), splits_mat="gone.mat")
    with h5py.File(mat, "a") as file:
        file["depths"][:] *= 1000
    with pytest.raises(ValueError, match="too large"):
        load(data_dir=str(labelled))
    mat.write_bytes(mat.read_bytes()[:3000])
    with pytest.raises(OSError, match="nyu_depth_v2_labeled.mat is no complete MATLAB v7.3"):
        load(data_dir=str(labelled))
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ImportError, match="pip install h5py"):
        load(data_dir=str(labelled))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data_dir": None}, ValueError, "nyu_depth_v2 needs data_dir"),
        ({"data_dir": "no/such/folder"}, FileNotFoundError, "data_dir must be an existing local folder"),
        ({"num_held_out": -1}, ValueError, "num_held_out must be 0 or more, got -1"),
        ({"num_held_out": 2.0}, TypeError, "num_held_out must be an integer"),
        ({"num_held_out": 7}, ValueError, "below the number of training frames, 7"),
        ({"train_list": "no.txt"}, FileNotFoundError, "no.txt does not exist"),
        ({"data_dir": 5}, TypeError, "data_dir must be a text, got 5"),
        ({"test_list": 0.5}, TypeError, "test_list must be a text, got 0.5"),
        ({"labelled_depth": "inpainted"}, ValueError, "labelled_depth must be one of"),
        ({"data_files": "*.jpg"}, ValueError, "takes data_dir"),
        ({"split": "validation"}, ValueError, "validation"),
    ],
)
def test_bad_options(load, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(**options)


@pytest.mark.parametrize("streaming", [False, True])
def test_missing_files_are_named(load, root: Path, streaming: bool) -> None:
    for number in (3, 4, 5, 6):
        (root / f"sync/attic_0002/sync_depth_{number:05d}.png").unlink()
    (root / "sync/kitchen_0001/rgb_00001.jpg").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load(streaming=streaming)
    message = str(caught.value)
    assert "5 of 14 files are missing" in message and "and 2 more" in message
    assert [f"attic_0002/sync_depth_{number:05d}.png" in message for number in (3, 4, 5, 6)] == [True] * 3 + [False]


def test_missing_files_of_a_list_are_named(load, root: Path) -> None:
    lines = [f"/kitchen_0001/rgb_{i:05d}.jpg /kitchen_0001/sync_depth_{i:05d}.png 5" for i in range(9)]
    (root / "train.txt").write_text("\n".join(lines))
    with pytest.raises(
        FileNotFoundError, match=r"12 of 18 .*: sync/kitchen_0001/rgb_00003.jpg, .* and 9 more.*train.txt"
    ):
        load(train_list="train.txt")


@pytest.mark.parametrize(
    ("text", "message"), [("\n", "names no frames"), ("a.jpg b.png 5\na.jpg\n", "line 2: expected")]
)
def test_bad_lists(load, root: Path, text: str, message: str) -> None:
    (root / "train.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(train_list="train.txt")


def test_split_without_files_is_left_out(load, root: Path) -> None:
    for path in (root / "official_splits/test/bathroom").iterdir():
        path.unlink()
    assert list(load()) == ["train"]
    with pytest.raises(ValueError, match="test"):
        load(split="test")
    (root / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no frames in data_dir=.*expected sync/<scene>/rgb_.*an empty folder"):
        load(data_dir=str(root / "empty"))


def depth_like(dtype: type, low: float, high: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, (HEIGHT, WIDTH)).astype(dtype)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (depth_like(np.uint8, 1, 255), r"16-bit PNG in millimetres, but .*sync_depth_.* has mode L \(8 bits\)"),
        (depth_like(np.uint16, 1, 10), "look like metres: multiply by 1000"),
        (depth_like(np.uint16, 70, 250), "too small.*centimetres"),
        (depth_like(np.uint16, 5000, 50000), "too large.*5000 per metre"),
        (np.zeros((HEIGHT, WIDTH), np.uint16), "no valid pixel"),
        (depth_like(np.uint16, 700, 9000)[:20], "rgb_.* is 32 x 24 but .*sync_depth_.* is 32 x 20"),
    ],
)
def test_wrong_depth_is_noticed_first(load, root: Path, depth: np.ndarray, message: str, streaming: bool) -> None:
    for number in range(7):
        write_frame(root / "sync" / ("kitchen_0001" if number < 3 else "attic_0002"), number, depth)
    with pytest.raises(ValueError, match=message):
        load(streaming=streaming)


def test_truncated_files_are_named_before_and_on_access(load, root: Path) -> None:
    splits = load()
    stream = load(streaming=True, split="train")
    path = root / "sync/attic_0002/rgb_00004.jpg"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match="attic_0002/rgb_00004.jpg cannot be decoded .*truncated"):
        splits["train"][1]
    with pytest.raises(OSError, match="attic_0002/rgb_00004.jpg cannot be decoded"):
        list(stream)
    with pytest.raises(OSError, match="attic_0002/rgb_00004.jpg cannot be decoded"):
        load()
    path.unlink()
    with pytest.raises(OSError, match="rgb_00004.jpg has gone since"):
        splits["train"][1]
    depth = root / "sync/attic_0002/sync_depth_00003.png"
    depth.write_bytes(depth.read_bytes()[:60])
    with pytest.raises(OSError, match="sync_depth_00003.png cannot be decoded"):
        splits["train"][0]


def test_truncation_is_found_in_every_file(load, tmp_path: Path) -> None:
    root = tmp_path / "many"
    for number in range(40):
        write_frame(root / "sync" / "scene", number)
    (root / "sync/scene/rgb_00020.jpg").write_bytes((root / "sync/scene/rgb_00020.jpg").read_bytes() + b"a note")
    assert len(load(data_dir=str(root))["train"]) == 40, "bytes after the end of a JPEG do no harm"
    for number in (9, 17, 24, 32):
        path = root / f"sync/scene/rgb_{number:05d}.jpg"
        path.write_bytes(path.read_bytes()[:-20])
    load(data_dir=str(root), streaming=True)  # the sample holds none of them
    with pytest.raises(
        OSError, match=r"4 of 80 images are broken: .*rgb_00009.jpg, .*rgb_00017.jpg, .*24.jpg and 1 more"
    ):
        load(data_dir=str(root))
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(OSError, match="empty.jpg"):
        require_complete_images([str(tmp_path / "empty.jpg")])


def test_named_image_is_an_image_to_datasets(load) -> None:
    assert NamedImage() == datasets.Image() and datasets.Image() == NamedImage()
    assert NamedImage() != datasets.Image(decode=False)
    split = load(split="train")
    assert isinstance(split.features["image"], NamedImage)
    plain = split.cast_column("image", datasets.Image()).cast_column("depth", datasets.Image())
    assert len(datasets.concatenate_datasets([split, plain])) == 14
    assert datasets.Features.from_dict(split.features.to_dict()) == split.features


@pytest.mark.slow
def test_real_frames(shared_dir: Path, tmp_path: Path) -> None:
    folder = shared_dir / "data" / "nyu_depth_v2"
    if not (folder / "sync").is_dir():
        pytest.skip(f"no real data: {folder / 'sync'} does not exist")
    splits = datasets.load_dataset("nyu_depth_v2", data_dir=str(folder), num_held_out=145, cache_dir=str(tmp_path))
    assert {name: len(split) for name, split in splits.items()} == {"train": 650, "validation": 145}
    assert len({*splits["train"]["name"], *splits["validation"]["name"]}) == 795
    for row in splits["validation"].select(range(0, 145, 12)):
        depth = np.asarray(row["depth"]) / 1000
        assert depth.shape == (480, 640) and row["image"].size == (640, 480)
        assert depth.min() >= 0.725 and depth.max() <= 10.015


def test_config_names_what_it_takes() -> None:
    with pytest.raises(TypeError, match="held_out_seed must be an integer, got True"):
        NYUDepthV2Config(data_dir=".", held_out_seed=True)
