"""`mocap`: rows against the files, cameras that repeat, CMU's files end to end, and bad options."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from motion_file_cases import cmu_files, figure, write

from transformers_ait.data import MocapConfig
from transformers_ait.data.bvh_files import read_bvh
from transformers_ait.data.camera_projection import project
from transformers_ait.data.depth_normals import Pinhole
from transformers_ait.data.mocap_clip import BANDAI_NAMCO, human_joints
from transformers_ait.data.skeleton import BONES, JOINT, bone_lengths


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for subject, count in (("anna", 2), ("bert", 1)):
        for number in range(count):
            write(tmp_path / "mocap", f"{subject}/walk_{number}.bvh", figure(61, number + 10 * count))
    return tmp_path / "mocap"


@pytest.fixture
def load(root: Path, tmp_path: Path):
    def function(**options):
        settings = {"data_dir": str(root), "cache_dir": str(tmp_path / "cache"), "num_frames": 40} | options
        return datasets.load_dataset("mocap", **settings)

    return function


def test_rows_of_the_builder(load, root: Path) -> None:
    splits = load(validation=["bert/*"])
    assert {name: len(split) for name, split in splits.items()} == {"train": 6, "validation": 3}
    train = splits["train"].with_format("numpy")
    assert train["action"][:].tolist() == ["anna/walk_0"] * 3 + ["anna/walk_1"] * 3
    assert train["index"][:].tolist() == [0, 1, 2, 10000, 10001, 10002] and {*train["subject"][:]} == {"anna"}
    joints = human_joints(read_bvh(str(root / "anna/walk_0.bvh")), 50.0)
    for row, start in zip(train, (0, 40, 61), strict=False):
        assert row["fps"] == 50 and row["joints"].shape == (40, 17, 3)
        np.testing.assert_allclose(bone_lengths(row["joints"]), bone_lengths(joints[start : start + 40]), atol=1e-5)
        moved = np.linalg.norm(np.diff(row["joints"], axis=0), axis=-1)
        np.testing.assert_allclose(
            moved, np.linalg.norm(np.diff(joints[start : start + 40], axis=0), axis=-1), atol=1e-5
        )
        camera = Pinhole(**{name: float(value) for name, value in row["camera"].items()})
        np.testing.assert_allclose(project(row["joints"].astype(float), camera), row["keypoints_true"], atol=2e-3)
        assert (row["joints"][:, JOINT["head"], 1] < row["joints"][:, JOINT["left_ankle"], 1]).all(), "y points down"
    assert len({float(row["camera"]["fx"]) for row in train}) == 6


def test_cameras_follow_from_path_and_seed(load, root: Path) -> None:
    first = load(split="train")["keypoints"][:]
    write(root, "aaa/first.bvh", figure(61, 5))
    again = load(split="train")
    assert len(again) == 12 and again["action"][0] == "aaa/first", "the cache notices a new file"
    np.testing.assert_array_equal(first, again["keypoints"][3:])
    other = load(split="train", seed=1)["keypoints_true"][0]
    assert np.abs(np.array(other) - np.array(again["keypoints_true"][0])).max() > 1


def test_whole_motions_and_streams(load) -> None:
    rows = load(split="train", num_frames=None, fps=30)
    assert len(rows) == 3 and np.shape(rows[0]["joints"]) == (61, 17, 3)
    stream = load(split="train", num_frames=None, fps=30, streaming=True)
    np.testing.assert_array_equal([row["joints"] for row in stream], rows["joints"][:])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_frames": 0}, ValueError, "num_frames must lie between 1 and"),
        ({"fps": 0}, ValueError, "fps must be above 0, got 0"),
        ({"fps": "50"}, TypeError, "fps must be a number, got '50'"),
        ({"scale": -1.0}, ValueError, "scale must be above 0"),
        ({"up_axis": "x"}, ValueError, 'up_axis must be "y" or "z", got \'x\''),
        ({"joints": {"pelvis": "Hips"}}, ValueError, "missing right_hip"),
        ({"joints": ["Hips"]}, TypeError, "joints must be a dict"),
        ({"joints": BANDAI_NAMCO | {"tail": "Tail"}}, ValueError, "unknown tail"),
        ({"validation": "bert/*"}, TypeError, "validation must be a list"),
        ({"validation": None}, TypeError, "validation must be a list of patterns of paths, got None"),
        ({"validation": 5}, TypeError, "validation must be a list"),
        ({"data_dir": 5}, TypeError, "data_dir must be a text, got 5"),
        ({"data_dir": None}, ValueError, "mocap needs data_dir"),
        ({"data_dir": "nowhere"}, FileNotFoundError, "data_dir must be an existing local folder, got 'nowhere'"),
    ],
)
def test_bad_configs(root: Path, change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MocapConfig(**{"data_dir": str(root), **change})


def test_what_the_files_do_not_allow(load, root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"validation: 'carl/\*' fits none of 3 files"):
        load(validation=["carl/*"])
    with pytest.raises(ValueError, match="leave no file to train on"):
        load(validation=["*"])
    with pytest.raises(ValueError, match="num_frames: no file of the split train has 500 frames .* longest has 101"):
        load(num_frames=500)
    with pytest.raises(ValueError, match="holds neither .bvh nor .amc files"):
        (tmp_path / "empty").mkdir()
        load(data_dir=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="takes data_dir and its own options"):
        load(data_files="x.bvh")


def test_cmu_files_end_to_end(load, tmp_path: Path) -> None:
    asf, amc = cmu_files()
    write(tmp_path / "cmu", "07/07.asf", asf)
    write(tmp_path / "cmu", "07/07_01.amc", amc)
    rows = load(data_dir=str(tmp_path / "cmu"), split="train", fps=60, num_frames=20).with_format("numpy")
    assert rows["action"][:].tolist() == ["07/07_01"] * 3 and {*rows["subject"][:]} == {"07"}
    unit = 0.0254 / 0.45
    for row in rows:
        lengths = bone_lengths(row["joints"])
        for side in ("left", "right"):
            for start, end, units in (("hip", "knee", 7.2), ("knee", "ankle", 7.1), ("elbow", "wrist", 4.1)):
                bone = BONES.index((JOINT[f"{side}_{start}"], JOINT[f"{side}_{end}"]))
                np.testing.assert_allclose(lengths[:, bone], units * unit, atol=1e-5)
        assert (row["joints"][:, JOINT["head"], 1] < row["joints"][:, JOINT["pelvis"], 1] - 0.4).all()
        up = row["joints"][:, JOINT["head"]] - row["joints"][:, JOINT["pelvis"]]
        out = row["joints"][:, JOINT["left_hip"]] - row["joints"][:, JOINT["right_hip"]]
        assert np.linalg.norm(np.cross(up, out), axis=-1).min() > 0.05
    slow = load(data_dir=str(tmp_path / "cmu"), split="train", fps=60, num_frames=None, amc_fps=60)
    assert np.shape(slow[0]["joints"])[0] == 97, "the option says how fast the motion is"


def test_z_up_and_scale(root: Path) -> None:
    clip = read_bvh(str(root / "bert/walk_0.bvh"))
    upright, flat = human_joints(clip, 30.0), human_joints(clip, 30.0, scale=0.005, up="z")
    np.testing.assert_allclose(flat[..., [0, 2, 1]] * [1, -1, 1], upright / 2)
