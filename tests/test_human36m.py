"""`human36m`: VideoPose3D's files written here, cameras, the restricted unpickler, and every kind of damage."""

import collections
import copy
import io
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from transformers_ait.data import Human36MConfig
from transformers_ait.data.camera_projection import look_at, project
from transformers_ait.data.depth_normals import Pinhole
from transformers_ait.data.human36m_files import CAMERAS, SUBJECTS, read_cameras
from transformers_ait.data.restricted_npz import read_member
from transformers_ait.data.skeleton import JOINT, bone_lengths

FRAMES = 12
JOINTS_OF_32 = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)  # as published with VideoPose3D
ACTIONS = {"S1": ["Walking 1", "Directions"], "S9": ["Walking", "Eating 2"]}
EVERYBODY = [subject for subjects in SUBJECTS.values() for subject in subjects]
RADIAL, TANGENTIAL = (-0.2, 0.24, -0.003), (-0.001, -0.0014)


def standing() -> np.ndarray:
    """(32, 3) metres: a person with all joints of the recordings, the 15 that are dropped at places far away."""
    joints = np.full((32, 3), 77.0)
    joints[list(JOINTS_OF_32)] = [
        *([0, 0, 0.92], [0.13, 0, 0.92], [0.13, 0.02, 0.48], [0.13, -0.03, 0.05]),
        *([-0.13, 0, 0.92], [-0.13, 0.02, 0.48], [-0.13, -0.03, 0.05]),
        *([0, 0, 1.16], [0, 0, 1.41], [0, 0.08, 1.5], [0, 0.03, 1.6]),
        *([-0.15, 0, 1.4], [-0.2, 0, 1.13], [-0.2, 0.1, 0.9], [0.15, 0, 1.4], [0.2, 0, 1.13], [0.2, 0.1, 0.9]),
    ]
    return joints


def seen(points: np.ndarray, camera: int) -> np.ndarray:
    """Pixels by SciPy's rotations and the distortion written out, without a line of the package's projection."""
    turn, position, fx, fy, cx, cy = placed(camera)
    x, y, z = np.moveaxis(turn.inv().apply((points - position).reshape(-1, 3)).reshape(points.shape), -1, 0)
    x, y = x / z, y / z
    r2 = x**2 + y**2
    radial = 1 + RADIAL[0] * r2 + RADIAL[1] * r2**2 + RADIAL[2] * r2**3
    p1, p2 = TANGENTIAL
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
    v = y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
    return np.stack([fx * u + cx, fy * v + cy], -1)


def placed(camera: int) -> tuple[Rotation, np.ndarray, float, float, float, float]:
    """Camera to world, position and intrinsics of the camera with this number."""
    angle = 0.7 + camera * np.pi / 2
    position = np.array([4.5 * np.cos(angle), 4.5 * np.sin(angle), 1.5 + 0.1 * camera])
    world_to_camera = look_at(position, np.array([0.0, 0.0, 1.0]), 0.02 * camera)
    return Rotation.from_matrix(world_to_camera.T), position, 1145.0 + camera, 1143.0, 512.0 + camera, 515.0


def tables() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """3-D joints, 2-D joints and cameras."""
    positions: dict[str, Any] = {}
    keypoints: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    for subject in EVERYBODY:
        positions[subject], keypoints[subject] = {}, {}
        for action in ACTIONS.get(subject, ["Sitting"]):
            path = np.cumsum(rng.normal(0, 0.01, (FRAMES, 1, 3)), 0) + [0.4, -0.2, 0]
            joints = (standing() + path).astype(np.float32)
            positions[subject][action] = joints
            found = [seen(joints[:, list(JOINTS_OF_32)].astype(float), camera) for camera in range(4)]
            keypoints[subject][action] = [np.concatenate([pixels, pixels[-1:]]).astype(np.float32) for pixels in found]
    lenses, poses = {}, {}
    for number, name in enumerate(CAMERAS):
        turn, position, fx, fy, cx, cy = placed(number)
        lenses[name] = {"focal_length": [fx, fy], "center": [cx, cy], "width": 1000, "height": 1002}
        lenses[name] |= {"radial": list(RADIAL), "tangential": list(TANGENTIAL)}
        poses[name] = {"orientation": turn.as_quat(scalar_first=True).tolist(), "position": position.tolist()}
    return positions, keypoints, {"intrinsics": lenses, "extrinsics": {subject: dict(poses) for subject in EVERYBODY}}


def write(root: Path, positions: Any, keypoints: Any, cameras: Any) -> None:
    root.mkdir(exist_ok=True)
    np.savez_compressed(root / "data_3d_h36m.npz", positions_3d=positions)
    metadata = {"layout_name": "h36m", "num_joints": 17, "keypoints_symmetry": [[4, 5], [1, 2]]}
    np.savez_compressed(root / "data_2d_h36m_gt.npz", positions_2d=keypoints, metadata=metadata)
    (root / "cameras_h36m.json").write_text(json.dumps(cameras))


@pytest.fixture
def load(tmp_path: Path):
    def function(**options):
        settings = {"data_dir": str(tmp_path / "h36m"), "cache_dir": str(tmp_path / "cache")} | options
        return datasets.load_dataset("human36m", **settings)

    return function


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "h36m", *tables())
    return tmp_path / "h36m"


def test_rows_are_the_files(load, root: Path) -> None:
    positions, keypoints, _ = tables()
    splits = load()
    assert {name: len(split) for name, split in splits.items()} == {"train": 4 * 6, "test": 4 * 3}
    assert {*splits["train"]["subject"][:]} == {*SUBJECTS["train"]} and {*splits["test"]["subject"][:]} == {"S9", "S11"}
    indices = [index for split in splits.values() for index in split["index"]]
    assert len({*indices}) == 36
    assert splits["test"]["sequence"][:4] == ["Eating 2"] * 4 and splits["test"]["action"][:4] == ["Eating"] * 4
    assert splits["test"]["camera_id"][:4] == list(CAMERAS)
    for row in [*splits["train"].with_format("numpy"), *splits["test"].with_format("numpy")]:
        camera = CAMERAS.index(row["camera_id"])
        turn, position, fx, fy, cx, cy = placed(camera)
        world = positions[str(row["subject"])][str(row["sequence"])][:, list(JOINTS_OF_32)].astype(float)
        np.testing.assert_allclose(
            row["joints"], turn.inv().apply((world - position).reshape(-1, 3)).reshape(-1, 17, 3), atol=1e-5
        )
        found = keypoints[str(row["subject"])][str(row["sequence"])][camera][:FRAMES]
        np.testing.assert_array_equal(row["keypoints"], found)
        np.testing.assert_allclose(row["keypoints_true"], found, atol=2e-3)
        assert {name: float(value) for name, value in row["camera"].items()} == {"fx": fx, "fy": fy, "cx": cx, "cy": cy}
        assert (int(row["width"]), int(row["height"]), float(row["fps"])) == (1000, 1002, 50.0)
        straight = project(row["joints"].astype(float), Pinhole(fx, fy, cx, cy))
        assert 0.05 < np.abs(straight - found).max() < 30, "the lens bends"
        assert (row["joints"][:, JOINT["head"], 1] < row["joints"][:, JOINT["right_ankle"], 1]).all()
        assert np.abs(bone_lengths(row["joints"]) - bone_lengths(standing()[list(JOINTS_OF_32)])).max() < 1e-4


def test_seventeen_joints_and_other_detectors(load, root: Path) -> None:
    positions, keypoints, _ = tables()
    first = load(split="train")["joints"][:]
    chosen = {s: {a: x[:, list(JOINTS_OF_32)] for a, x in actions.items()} for s, actions in positions.items()}
    np.savez(root / "data_3d_h36m.npz", positions_3d=chosen)
    noisy = {s: {a: [x + np.float32(5) for x in seen] for a, seen in acts.items()} for s, acts in keypoints.items()}
    np.savez(root / "data_2d_h36m_cpn_ft_h36m_dbb.npz", positions_2d=noisy)
    rows = load(split="train", keypoints="cpn_ft_h36m_dbb")
    np.testing.assert_array_equal(rows["joints"][:], first)
    difference = np.array(rows["keypoints"][0]) - np.array(rows["keypoints_true"][0])
    np.testing.assert_allclose(difference, 5, atol=5e-3)


def test_clips_and_streams(load, root: Path) -> None:
    rows = load(split="test", num_frames=5)
    assert len(rows) == 12 * 3 and rows["index"][:3] == [rows["index"][0] + clip for clip in range(3)]
    whole = load(split="test").with_format("numpy")
    clips = rows.with_format("numpy")
    for clip, start in enumerate((0, 5, 7)):
        np.testing.assert_array_equal(clips[clip]["joints"], whole[0]["joints"][start : start + 5])
    stream = load(split="test", num_frames=5, streaming=True)
    np.testing.assert_array_equal([row["keypoints"] for row in stream], rows["keypoints"][:])


def test_the_cache_notices_changed_files(load, root: Path) -> None:
    before = load(split="train")["keypoints"][0]
    positions, keypoints, cameras = tables()
    keypoints["S1"]["Directions"][0] += 3
    write(root, positions, keypoints, cameras)
    np.testing.assert_allclose(np.array(load(split="train")["keypoints"][0]) - np.array(before), 3, atol=1e-3)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_numpy_are_read(tmp_path: Path, protocol: int) -> None:
    content = {
        "S1": {"a": [np.arange(6.0, dtype=np.float32).reshape(2, 3), (1, "x", None, 2.5, True)]},
        "n": np.float32(2),
    }
    text = pickle.dumps(np.array(content, dtype=object), protocol)
    for package in (b"numpy._core", b"numpy.core"):
        path = tmp_path / f"{protocol}.npz"
        renamed = rename(text, package)
        write_object_member(path, renamed)
        table = read_member(str(path), "positions_3d").item()
        np.testing.assert_array_equal(table["S1"]["a"][0], content["S1"]["a"][0])
        assert table["S1"]["a"][1] == content["S1"]["a"][1] and table["n"] == 2


def rename(text: bytes, package: bytes) -> bytes:
    """A pickle as an older NumPy would have written it; only protocols without lengths before names allow that."""
    return text.replace(b"numpy._core", package) if text[1] < 4 else text


def write_object_member(path: Path, text: bytes) -> None:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    header += b" " * (64 - (len(header) + 11) % 64) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("positions_3d.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + text)


class Evil:
    """Would write a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w')",))


def test_no_pickle_runs_code(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for content in ({"S1": Evil(mark)}, {"S1": {"a": [Evil(mark)]}}):
        path = tmp_path / "evil.npz"
        np.savez(path, positions_3d=np.array(content, dtype=object))
        with pytest.raises(
            ValueError, match=r"evil.npz: 'positions_3d' is not read, because it asks for builtins.exec"
        ):
            read_member(str(path), "positions_3d")
        assert not mark.exists()
        np.load(path, allow_pickle=True)["positions_3d"]
        assert mark.exists(), "NumPy itself would have run it"
        mark.unlink()
    with pytest.raises(ValueError, match=r"collections.OrderedDict"):
        np.savez(tmp_path / "o.npz", positions_3d=np.array(collections.OrderedDict(a=1), dtype=object))
        read_member(str(tmp_path / "o.npz"), "positions_3d")


def test_plain_members_and_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "plain.npz"
    np.savez_compressed(path, numbers=np.arange(1000.0))
    np.testing.assert_array_equal(read_member(str(path), "numbers"), np.arange(1000.0))
    with pytest.raises(ValueError, match=r"plain.npz has no array 'positions_3d', only numbers.npy"):
        read_member(str(path), "positions_3d")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"plain.npz is no complete .npz file"):
        read_member(str(path), "numbers")
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (2**20, 2**20)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("numbers.npy", head.getvalue() + bytes(100))
    with pytest.raises(
        ValueError, match=r"plain.npz is no complete .npz file \(numbers.npy claims 4398046511104 bytes"
    ):
        read_member(str(path), "numbers")
    path.write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"plain.npz is no complete .npz file"):
        read_member(str(path), "numbers")
    with pytest.raises(FileNotFoundError, match=r"gone.npz"):
        read_member(str(tmp_path / "gone.npz"), "numbers")


def damaged(name: str) -> tuple[Any, Any, Any]:
    """The tables with one thing wrong."""
    positions, keypoints, cameras = copy.deepcopy(tables())
    lens, poses = cameras["intrinsics"][CAMERAS[1]], cameras["extrinsics"]["S6"]
    match name:
        case "subject":
            del positions["S7"]
        case "action":
            del keypoints["S9"]["Walking"]
        case "cameras":
            keypoints["S9"]["Walking"].pop()
        case "frames":
            keypoints["S9"]["Walking"][2] = keypoints["S9"]["Walking"][2][: FRAMES - 1]
        case "joints":
            positions["S5"]["Sitting"] = positions["S5"]["Sitting"][:, :16]
        case "nan":
            positions["S5"]["Sitting"][3, 2, 1] = np.nan
        case "millimetres":
            positions = {s: {a: x * 1000 for a, x in actions.items()} for s, actions in positions.items()}
        case "transposed":
            for camera, pose in poses.items():
                w, x, y, z = pose["orientation"]
                poses[camera] = pose | {"orientation": [w, -x, -y, -z]}
        case "order":
            poses[CAMERAS[0]], poses[CAMERAS[2]] = poses[CAMERAS[2]], poses[CAMERAS[0]]
        case "no lens":
            del cameras["intrinsics"][CAMERAS[1]]
        case "no pose":
            del cameras["extrinsics"]["S11"]
        case "short":
            lens["radial"] = [0.1, 0.2]
        case "text":
            lens["width"] = "1000"
        case "list":
            positions = [1, 2]
    return positions, keypoints, cameras


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("subject", r"data_3d_h36m.npz lacks S7 of the split train"),
        ("action", r"data_2d_h36m_gt.npz: S9/Walking must be a list of 4 arrays"),
        ("cameras", r"data_2d_h36m_gt.npz: S9/Walking must be a list of 4 arrays"),
        ("frames", r"S9/Walking, camera 58860488 has 11 frames, the 3-D joints 12: the files do not belong"),
        ("joints", r"data_3d_h36m.npz: S5/Sitting must be floats \(T, 17 or 32, 3\), got float32 \(12, 16, 3\)"),
        ("nan", r"data_3d_h36m.npz: S5/Sitting has joints that are not finite"),
        ("millimetres", r"S1/Directions has legs of .* m; metres are needed"),
        ("transposed", r"cameras_h36m.json: camera 54138969 of S6 does not fit: joints of Sitting lie .* pixels"),
        ("order", r"cameras_h36m.json: camera 54138969 of S6 does not fit"),
        ("no lens", r"cameras_h36m.json: intrinsics/55011271 is missing"),
        ("no pose", r"cameras_h36m.json: extrinsics/S11/54138969 is missing"),
        ("short", r"intrinsics/55011271/radial must be 3 numbers, got \[0.1, 0.2\]"),
        ("text", r"intrinsics/55011271/width must be 1 number, got '1000'"),
        ("list", r"'positions_3d' must be a dict of subjects"),
    ],
)
def test_damaged_files(load, root: Path, name: str, message: str) -> None:
    write(root, *damaged(name))
    with pytest.raises((ValueError, datasets.exceptions.DatasetGenerationError)) as caught:
        load()
    error = caught.value if isinstance(caught.value, ValueError) else caught.value.__cause__
    assert isinstance(error, ValueError) and re.search(message, str(error))


def test_camera_files_that_are_no_json(root: Path) -> None:
    (root / "cameras_h36m.json").write_text("{")
    with pytest.raises(ValueError, match="cameras_h36m.json is not valid JSON"):
        read_cameras(str(root / "cameras_h36m.json"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data_dir": None}, ValueError, "human36m needs data_dir"),
        ({"data_dir": "nowhere"}, FileNotFoundError, "data_dir must be an existing local folder, got 'nowhere'"),
        ({"num_frames": 0}, ValueError, "num_frames must lie between 1 and"),
        ({"num_frames": 2.0}, TypeError, "num_frames must be an integer"),
        ({"keypoints": 3}, TypeError, "keypoints must be a text, got 3"),
    ],
)
def test_bad_configs(root: Path, change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Human36MConfig(**{"data_dir": str(root), **change})


def test_missing_files_are_named(load, root: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"data_2d_h36m_hrnet.npz does not exist: choose another with the option"
    ):
        load(keypoints="hrnet")
    with pytest.raises(FileNotFoundError, match=r"mine.json does not exist: write it as"):
        load(cameras="mine.json")
    (root / "data_3d_h36m.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_3d_h36m.npz does not exist: VideoPose3D's prepare_data_h36m.py"):
        load()
