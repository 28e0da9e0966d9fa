"""Split lists and folders of the datasets, and the files of motions."""

import io
import random
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from scipy.io import savemat

import transformers_ait.data  # noqa: F401 - registers the builders
from transformers_ait.data.bvh_files import read_bvh
from transformers_ait.data.human36m_files import read_cameras
from transformers_ait.data.nyu_files import read_list
from transformers_ait.data.nyu_labelled import read_splits
from transformers_ait.data.restricted_npz import read_member

from .case import Case, Place
from .values import as_json, brief, changed_structure, damaged, number, odd_value

HEIGHT, WIDTH = 24, 32
FIGURE = """HIERARCHY
ROOT Hips
{
OFFSET 0 92 0
CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
JOINT Spine
{
OFFSET 0 10 0
CHANNELS 3 Zrotation Xrotation Yrotation
End Site
{
OFFSET 0 5 0
}
}
}
MOTION
Frames: 3
Frame Time: 0.0333333
0 92 0 1 2 3 4 5 6
0 92 1 1 2 3 4 5 6
0 92 2 1 2 3 4 5 6
"""
CAMERA = {"id": "1", "res_w": 1000, "res_h": 1000, "center": [500, 500], "focal_length": [1100, 1100]}


def prepare(folder: Path) -> None:
    """A folder of NYU's layout, and one of a user's own images and depth maps."""
    rng = np.random.default_rng(0)
    for index, scene in enumerate(("sync/a_0001", "sync/b_0002", "official_splits/test/c")):
        _write_frame(rng, folder / "nyu" / scene, f"rgb_{index:05d}.jpg", f"sync_depth_{index:05d}.png")
    for index in range(2):
        _write_frame(rng, folder / "own", f"images/{index}.jpg", f"depth/{index}.png")


def _write_frame(rng: Any, folder: Path, image: str, depth: str) -> None:
    for name in (image, depth):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)).save(folder / image)
    Image.fromarray(rng.integers(700, 9000, (HEIGHT, WIDTH)).astype(np.uint16)).save(folder / depth)


LINES = (
    "sync/a_0001/rgb_00000.jpg sync/a_0001/sync_depth_00000.png 518.8\n",
    "/b_0002/rgb_00001.jpg /b_0002/sync_depth_00001.png 518.8\n",
    "sync/b_0002/rgb_00001.jpg sync/b_0002/sync_depth_00001.png 518.8\n",
    "one_column\n",
    "\n",
    "../../etc/passwd ../../etc/passwd 1\n",
    "/dev/zero /dev/zero 1\n",
    "sync sync 1\n",
    "sync/a_0001/rgb_00000.jpg sync/b_0002/sync_depth_00001.png 1\n",
    "sync/a_0001/rgb_00000.jpg sync/a_0001/rgb_00000.jpg 1\n",
    "missing.jpg missing.png 1\n",
    "é 雪\n",
    "a\0b c\0d\n",
    f"{'x' * 5000} {'y' * 5000}\n",
)


def list_case(rng: random.Random, place: Place) -> Case:
    """A split list with odd lines or odd bytes, read alone or by the builder."""
    which = rng.random()
    if which < 0.2:
        return splits_case(rng, place)
    if which < 0.45:
        return folder_case(rng, place)
    path = place.inputs / "train.txt"
    lines = [rng.choice(LINES[:3]), *rng.choices(LINES, k=rng.choice((0, 1, 2, 6)))]
    data = "".join(lines).encode()
    what = f"lines {brief(lines)}"
    if rng.random() < 0.3:
        how, data = damaged(rng, data)
        what = f"{how} {what}"
    path.write_bytes(data)
    names = ("train.txt", "train_list", "sync", "rgb", "depth", "list", "missing.jpg", "x" * 30)
    if rng.random() < 0.35:
        given = rng.choice((path, path, place.inputs, place.inputs / "missing.txt"))
        return Case(f"read: {what} at {given.name}", lambda: read_list(str(given)), (*names, given.name))
    options: dict[str, Any] = {"train_list": str(path)}
    if rng.random() < 0.5:
        option = rng.choice(
            ("num_held_out", "held_out_seed", "normals", "data_dir", "test_list", "splits_mat", "labelled_mat")
        )
        options[option] = rng.choice((5, "x", -1, True, 2**40, str(path), "missing", odd_value(rng)))
        names = (*names, option)
        what = f"{what}, {option} {brief(options[option])}"
    return _load_case(place, "nyu_depth_v2", place.session / "nyu", what, options, names)


def _load_case(
    place: Place, builder: str, root: Path, what: str, options: dict[str, Any], names: tuple[str, ...]
) -> Case:
    """All rows of a dataset."""

    def load() -> Any:
        given = {"data_dir": str(root), "cache_dir": str(place.folder / "cache"), **options}
        splits = datasets.load_dataset(builder, **given)
        return [split[index] for split in splits.values() for index in range(min(3, len(split)))]

    return Case(f"{builder}: {what}", load, (*names, "data_dir"))


def splits_case(rng: random.Random, place: Place) -> Case:
    """A broken splits.mat."""
    path = place.inputs / "splits.mat"
    content: dict[str, Any] = {"trainNdxs": np.array([[1], [2]]), "testNdxs": np.array([[3]])}
    name = rng.choice(sorted(content))
    odd = rng.choice((np.zeros((0, 0)), np.array([[0.5]]), np.array(["x"]), np.array([[-5]]), np.ones((2, 2)), None))
    if odd is None:
        del content[name]
    else:
        content[name] = odd
    buffer = io.BytesIO()
    savemat(buffer, content)
    data, what = buffer.getvalue(), f"{name} {brief(odd)}"
    if rng.random() < 0.6:
        how, data = damaged(rng, data)
        what = f"{how}, {what}"
    path.write_bytes(data)
    given = rng.choice((path, path, path, place.inputs))
    return Case(f"splits.mat: {what}", lambda: read_splits(str(given)), ("splits.mat", "splits_mat", "Ndxs"))


def folder_case(rng: random.Random, place: Place) -> Case:
    """A folder of images and depth maps with something wrong, or odd options."""
    root = place.inputs / "own"
    shutil.copytree(place.session / "own", root)
    names: tuple[str, ...] = ("images", "depth", "own")
    options: dict[str, Any] = {}
    which = rng.randrange(6)
    path = root / rng.choice(("images/0.jpg", "depth/0.png"))
    if which == 0:
        how, data = damaged(rng, path.read_bytes())
        path.write_bytes(data)
        what = f"{path.name} {how}"
    elif which == 1:
        path.unlink()
        what = f"{path.name} missing"
    elif which == 2:
        path.unlink()
        path.mkdir()
        what = f"{path.name} is a folder"
    elif which == 3:
        (root / "depth/0.png").unlink()
        what = _odd_depth_file(rng, root / "depth" / "0.npy")
    elif which == 4:
        Image.new(rng.choice(("L", "RGB", "I;16", "F")), rng.choice(((WIDTH, HEIGHT), (5, 5)))).save(
            root / "depth/0.tiff"
        )
        if rng.random() < 0.7:
            (root / "depth/0.png").unlink()
        what = "0.tiff instead"
    else:
        option = rng.choice(("images", "depths", "depth_unit", "data_dir", "data_files", "unknown"))
        options[option] = rng.choice((5, "x", "", None, "metres", "inverse", ["images"], "a\0b", odd_value(rng)))
        names = (*names, option)
        what = f"{option} {brief(options[option])}"
    return _load_case(place, "depth_folders", root, what, options, names)


def _odd_depth_file(rng: random.Random, path: Path) -> str:
    shape = rng.choice(((HEIGHT, WIDTH), (HEIGHT, WIDTH, 1), (HEIGHT, WIDTH, 3), (0, 0), (5,), ()))
    dtype = rng.choice(("float32", "uint8", "uint16", "complex64", "object", "U3", "bool", "float64"))
    values = np.full(shape, rng.choice((100, 0, 1)), dtype=dtype)
    np.save(path, values, allow_pickle=True)
    how = ""
    if rng.random() < 0.4:
        how, data = damaged(rng, path.read_bytes())
        path.write_bytes(data)
    return f"0.npy {dtype} {shape} {how}"


def motion_case(rng: random.Random, place: Place) -> Case:
    """A broken file of motions or cameras."""
    which = rng.choice(("bvh", "npz", "cameras", "mocap"))
    if which == "npz":
        return _npz_case(rng, place)
    if which == "cameras":
        path = place.inputs / "cameras.json"
        content = {f"S{n}": [dict(CAMERA, id=str(i)) for i in range(4)] for n in (1, 5, 6, 7, 8, 9, 11)}
        what, _, changed = changed_structure(rng, content)
        data = as_json(changed).encode()
        if rng.random() < 0.3:
            what, data = damaged(rng, data)
        path.write_bytes(data)
        return Case(f"cameras: {what}", lambda: read_cameras(str(path)), ("cameras.json",))
    path = place.inputs / "walk.bvh"
    text = FIGURE
    if rng.random() < 0.6:
        words = text.split(" ")
        place_of = rng.randrange(len(words))
        words[place_of] = rng.choice(("", "x", "nan", "inf", "-1", "1e400", str(number(rng)), "{", "}", "JOINT", "\0"))
        what, data = f"word {place_of} {brief(words[place_of])}", " ".join(words).encode()
    else:
        what, data = damaged(rng, text.encode())
    path.write_bytes(data)
    if which == "bvh":
        return Case(f"bvh: {what}", lambda: read_bvh(str(path)), ("walk.bvh",))
    options: dict[str, Any] = {}
    if rng.random() < 0.6:
        option = rng.choice(("num_frames", "fps", "scale", "amc_fps", "up_axis", "joints", "validation", "seed"))
        options[option] = rng.choice((5, -1, "x", 0, float("nan"), 2**40, None, {}, ["*"], odd_value(rng)))
        what = f"{what}, {option} {brief(options[option])}"
    return _load_case(place, "mocap", place.inputs, what, options, ("walk.bvh", *options))


def _npz_case(rng: random.Random, place: Place) -> Case:
    path = place.inputs / "data_3d_h36m.npz"
    values: Any = rng.choice(
        (
            {"S1": {"Walking": np.zeros((3, 32, 3), np.float32)}},
            np.zeros(3),
            "x",
            {1, 2},
            odd_value(rng),
            print,
            Path("x"),
        )
    )
    content = np.empty((), dtype=object)
    content[()] = values
    arrays = rng.choice(({"positions_3d": content}, {"positions_3d": np.zeros(3)}, {"other": content}, {}))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    data, what = buffer.getvalue(), f"{brief(values, 50)} in {sorted(arrays)}"
    if rng.random() < 0.6:
        how, data = damaged(rng, data)
        what = f"{how}, {what}"
    path.write_bytes(data)
    return Case(f"npz: {what}", lambda: read_member(str(path), "positions_3d"), ("data_3d_h36m.npz",))
