"""`synthetic_motions`: bodies, feet, cameras, detector flaws, determinism, the builder; and what all motions share."""

import time
from typing import Any

import datasets
import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from transformers_ait.data import SYNTHETIC_MOTIONS_ACTIONS, MotionsConfig, SyntheticMotions, make_motion
from transformers_ait.data.camera_projection import (
    Distortion,
    look_at,
    project,
    quaternion_rotation,
    sample_camera,
    unproject,
    world_to_camera,
)
from transformers_ait.data.depth_normals import Pinhole
from transformers_ait.data.motion_actions import ACTIONS
from transformers_ait.data.motion_bodies import Body, local_rotations, perform, sample_body, smooth
from transformers_ait.data.motion_rows import LONGEST_GAP, detect
from transformers_ait.data.skeleton import (
    BONES,
    JOINT,
    JOINT_NAMES,
    PARENTS,
    bone_lengths,
    euler_rotations,
    forward_kinematics,
    resample,
    resample_rotations,
)

FPS = 50
LIMBS = [("hip", "knee", "ankle"), ("shoulder", "elbow", "wrist")]


def performed(action: str, count: int = 12, frames: int = 81) -> list[tuple[Body, np.ndarray, np.ndarray]]:
    """Bodies, headings and joints in the world."""
    motions = []
    for index in range(count):
        rng = np.random.default_rng([index, 7])
        body = sample_body(rng)
        performance = ACTIONS[action](body, np.arange(frames) / FPS, rng)
        motions.append((body, performance.heading, perform(body, performance, FPS)))
    return motions


@pytest.fixture(scope="module")
def motions() -> dict[str, list[tuple[Body, np.ndarray, np.ndarray]]]:
    with np.errstate(all="raise", under="ignore"):
        return {action: performed(action) for action in ACTIONS}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [make_motion(index) for index in range(60)]


def local_axes(heading: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(T, 3) right, ahead and up of a body."""
    return np.einsum("tij,tj->ti", Rotation.from_euler("z", -heading[:, None]).as_matrix(), vectors)


def sliding(body: Body, joints: np.ndarray) -> np.ndarray:
    """Speeds in m/s across the floor of ankles that are as low as those of standing feet."""
    ankles = joints[:, [JOINT["right_ankle"], JOINT["left_ankle"]]]
    low = ankles[..., 2] < body.ankle_height + 0.005
    speeds = np.linalg.norm(np.diff(ankles[..., :2], axis=0), axis=-1) * FPS
    return speeds[low[1:] & low[:-1]]


def test_joints_are_those_of_human36m() -> None:
    assert JOINT_NAMES[0] == "pelvis" and len(JOINT_NAMES) == 17 and len(BONES) == 16
    assert [JOINT[f"right_{name}"] for name in ("hip", "knee", "ankle", "shoulder", "elbow", "wrist")] == [
        *(1, 2, 3, 14, 15, 16)
    ]
    assert [JOINT[f"left_{name}"] for name in ("hip", "knee", "ankle", "shoulder", "elbow", "wrist")] == [
        *(4, 5, 6, 11, 12, 13)
    ]
    assert [JOINT[name] for name in ("spine", "thorax", "neck", "head")] == [7, 8, 9, 10]


@pytest.mark.parametrize("axes", ["x", "zxy", "xyz", "zyx", "xyx"])
def test_euler_angles_are_scipys_intrinsic_ones(axes: str) -> None:
    angles = np.random.default_rng(0).uniform(-3, 3, (20, len(axes)))
    expected = Rotation.from_euler(axes.upper(), angles).as_matrix()
    np.testing.assert_allclose(euler_rotations(axes, angles), expected, atol=1e-12)
    if len(axes) > 1:
        extrinsic = Rotation.from_euler(axes, angles).as_matrix()
        assert np.abs(euler_rotations(axes, angles) - extrinsic).max() > 0.1, "the other convention is noticed"


def test_forward_kinematics_are_a_chain_of_scipys_rotations() -> None:
    rng = np.random.default_rng(0)
    turns = Rotation.random(3 * 17, rng=1)
    rotations, offsets = turns.as_matrix().reshape(3, 17, 3, 3), rng.normal(size=(17, 3))
    joints = forward_kinematics(rotations, offsets, PARENTS)
    for frame in range(3):
        for joint in range(17):
            place, place_of = np.array(offsets[joint]), PARENTS[joint]
            while place_of >= 0:
                place = turns[frame * 17 + place_of].apply(place) + offsets[place_of]
                place_of = PARENTS[place_of]
            np.testing.assert_allclose(joints[frame, joint], place, atol=1e-12)


def test_resampled_rotations_are_scipys_slerp() -> None:
    keys = Rotation.from_euler("zyx", np.random.default_rng(0).uniform(-0.7, 0.7, (5, 3)))
    times = np.linspace(0, 4, 17)
    expected = Slerp(np.arange(5), keys)(times).as_matrix()
    mixed = resample_rotations(np.stack([keys.as_matrix(), np.tile(np.eye(3), (5, 1, 1))], 1), times)
    np.testing.assert_allclose(mixed[:, 0], expected, atol=1e-9)
    np.testing.assert_allclose(mixed[:, 1], np.tile(np.eye(3), (17, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(resample(np.array([0.0, 10.0, 30.0]), np.array([0.0, 0.5, 1.25, 2.0])), [0, 5, 15, 30])


def test_anatomical_angles_move_limbs_the_right_way() -> None:
    body = sample_body(np.random.default_rng(0))

    def pose(name: str, axis: int, degrees: float, fixed: tuple[str, int, float] | None = None) -> np.ndarray:
        bends = np.zeros((1, 17, 3))
        bends[0, JOINT[name], axis] = np.radians(degrees)
        if fixed:
            bends[0, JOINT[fixed[0]], fixed[1]] = np.radians(fixed[2])
        return forward_kinematics(local_rotations(bends), body.offsets, PARENTS)[0]

    for side, out in (("right", 1), ("left", -1)):
        wrist, elbow, shoulder = (JOINT[f"{side}_{name}"] for name in ("wrist", "elbow", "shoulder"))
        forward = pose(f"{side}_shoulder", 0, 90)
        assert forward[wrist, 1] - forward[shoulder, 1] > 0.4 and abs(forward[wrist, 2] - forward[shoulder, 2]) < 0.05
        outward = pose(f"{side}_shoulder", 1, 90)
        assert out * (outward[wrist, 0] - outward[shoulder, 0]) > 0.4
        bent = pose(f"{side}_elbow", 0, 90)
        assert bent[wrist, 1] - bent[elbow, 1] > 0.2
        inward = pose(f"{side}_shoulder", 2, 90, (f"{side}_elbow", 0, 90))
        assert out * (inward[wrist, 0] - inward[elbow, 0]) < -0.2
    assert pose("spine", 0, 40)[JOINT["head"], 1] > 0.2
    assert pose("spine", 1, 40)[JOINT["head"], 0] > 0.2
    assert pose("thorax", 2, 40)[JOINT["right_shoulder"], 1] > 0.05


def test_bones_keep_their_lengths_and_bodies_differ(motions) -> None:
    heights = []
    for body, _, joints in (motion for action in motions.values() for motion in action):
        lengths = bone_lengths(joints)
        assert np.ptp(lengths, axis=0).max() < 1e-9
        np.testing.assert_allclose(lengths[0], np.linalg.norm(body.offsets[1:], axis=-1), atol=1e-9)
        right, left = [[parent != joint and BONES.index((parent, joint)) for parent, joint in bones] for bones in SIDES]
        np.testing.assert_allclose(lengths[0, right], lengths[0, left], atol=1e-9)
        heights.append(body.leg)
    assert np.std(heights) > 0.03


SIDES = (
    [(JOINT["right_hip"], JOINT["right_knee"]), (JOINT["right_shoulder"], JOINT["right_elbow"])],
    [(JOINT["left_hip"], JOINT["left_knee"]), (JOINT["left_shoulder"], JOINT["left_elbow"])],
)


@pytest.mark.parametrize("action", ACTIONS)
def test_feet_stand_on_the_floor_and_do_not_slide(motions, action: str) -> None:
    for body, _, joints in motions[action]:
        ankles = joints[:, [JOINT["right_ankle"], JOINT["left_ankle"]], 2]
        assert ankles.min() > body.ankle_height - 0.01, "nothing sinks into the floor"
        assert ankles.min(1).max() < body.ankle_height + 0.09, "at least one foot is down, if only on its ball"
        assert joints[..., 2].min() > 0.02
        speeds = sliding(body, joints)
        assert np.median(speeds) < 0.01 and np.percentile(speeds, 90) < 0.1


def test_sliding_and_floating_feet_would_be_noticed(motions) -> None:
    for body, _, joints in motions["walking"][:4]:
        drift = np.linspace(0, 0.5, len(joints))[:, None, None] * np.array([1.0, 0, 0])
        assert np.median(sliding(body, joints + drift)) > 0.1
        assert len(sliding(body, joints + [0, 0, 0.05])) == 0


@pytest.mark.parametrize("action", ACTIONS)
def test_limbs_bend_the_way_they_can(motions, action: str) -> None:
    for _, heading, joints in motions[action]:
        for side in ("right", "left"):
            hip, knee, ankle = (joints[:, JOINT[f"{side}_{name}"]] for name in LIMBS[0])
            straight = hip + (ankle - hip) * (
                ((knee - hip) * (ankle - hip)).sum(-1) / ((ankle - hip) ** 2).sum(-1)
            ).reshape(-1, 1)
            ahead = local_axes(heading, knee - straight)[:, 1:] @ np.ones(2)
            assert (ahead > -0.01).all(), "knees point ahead or up, never back"
            for names in LIMBS:
                top, middle, end = (joints[:, JOINT[f"{side}_{name}"]] for name in names)
                upper, lower = middle - top, end - middle
                cosine = (upper * lower).sum(-1) / np.linalg.norm(upper, axis=-1) / np.linalg.norm(lower, axis=-1)
                assert (np.degrees(np.arccos(np.clip(cosine, -1, 1))) < 152).all()


@pytest.mark.parametrize("action", ACTIONS)
def test_motion_is_smooth(motions, action: str) -> None:
    for _, _, joints in motions[action]:
        assert np.linalg.norm(np.diff(joints, axis=0), axis=-1).max() * FPS < 8
        assert np.linalg.norm(np.diff(joints, 2, axis=0), axis=-1).max() * FPS**2 < 160


def test_actions_do_what_they_are_called(motions) -> None:
    def travelled(action: str) -> list[float]:
        return [float(np.linalg.norm(np.ptp(joints[:, 0, :2], axis=0))) for _, _, joints in motions[action]]

    assert np.median(travelled("walking")) > 0.7 and max(travelled("idle")) < 0.25
    turned = [np.degrees(np.ptp(np.unwrap(heading))) for _, heading, _ in motions["turning"]]
    assert np.median(turned) > 40 and max(turned) < 220
    for action, sign in (("sitting_down", -1), ("standing_up", 1)):
        assert all(sign * (joints[-1, 0, 2] - joints[0, 0, 2]) > 0 for _, _, joints in motions[action])
        assert np.median([np.ptp(joints[:, 0, 2]) for _, _, joints in motions[action]]) > 0.25
    for _, _, joints in motions["sitting"]:
        knees = joints[:, [JOINT["right_knee"], JOINT["left_knee"]], 2].mean()
        assert abs(joints[:, 0, 2].mean() - knees) < 0.15
    shoulders = ["right_shoulder", "left_shoulder"]
    raised = [
        max(
            np.mean(joints[-20:, JOINT[n.replace("shoulder", "wrist")], 2] > joints[-20:, JOINT[n], 2])
            for n in shoulders
        )
        for _, _, joints in motions["waving"]
    ]
    assert np.mean(np.array(raised) > 0.9) > 0.7
    for body, _, joints in motions["phoning"]:
        wrists = joints[:, [JOINT["right_wrist"], JOINT["left_wrist"]]]
        ear = (joints[:, JOINT["neck"]] + joints[:, JOINT["head"]])[:, None] / 2
        assert np.linalg.norm(wrists - ear, axis=-1).mean(0).min() < 0.22 * body.leg / 0.8


def test_sequences_of_one_frame_and_of_many() -> None:
    for frames in (1, 2, 700):
        for action in ACTIONS:
            (_, _, joints), *_ = performed(action, 1, frames)
            assert joints.shape == (frames, 17, 3) and np.isfinite(joints).all()
    assert smooth(np.ones(1), 3.0).shape == (1,)


def test_projection_there_and_back() -> None:
    rng = np.random.default_rng(0)
    camera, points = Pinhole(1145.0, 1143.5, 512.5, 515.4), rng.uniform(-1, 1, (50, 3)) + [0, 0, 4]
    pixels = project(points, camera)
    by_hand = [1145 * points[3, 0] / points[3, 2] + 512.5, 1143.5 * points[3, 1] / points[3, 2] + 515.4]
    np.testing.assert_allclose(pixels[3], by_hand)
    np.testing.assert_allclose(unproject(pixels, points[:, 2], camera), points, atol=1e-12)
    assert np.isnan(project(np.array([[0.1, 0.1, -1.0], [0.1, 0.1, 0.0]]), camera)).all()
    lens = Distortion((-0.2, 0.2, -0.01), (-0.001, -0.0015))
    straight, bent = project(points, camera), project(points, camera, lens)
    assert 0.5 < np.abs(bent - straight).max() < 30
    axis = np.array([[0.0, 0.0, 3.0]])
    np.testing.assert_allclose(project(axis, camera, lens), [[512.5, 515.4]])


def test_quaternions_are_scipys() -> None:
    for turn in Rotation.random(10, rng=0):
        quaternion = turn.as_quat(scalar_first=True)
        np.testing.assert_allclose(quaternion_rotation(2.5 * quaternion), turn.as_matrix(), atol=1e-12)


def test_cameras_stand_upright_and_look_at_their_target() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        position, target = rng.uniform(-3, 3, 3) + [5, 0, 1], rng.uniform(-1, 1, 3)
        rotation = look_at(position, target)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) > 0.999
        seen = world_to_camera(np.stack([target, target + [0, 0, 0.2]]), rotation, position)
        np.testing.assert_allclose(seen[0], [0, 0, np.linalg.norm(target - position)], atol=1e-9)
        assert seen[1, 1] < seen[0, 1] and abs(seen[1, 0]) < 1e-9, "up in the world is up in the picture"
        turned = look_at(position, target, 0.1) @ rotation.T
        np.testing.assert_allclose(turned, Rotation.from_euler("z", -0.1).as_matrix(), atol=1e-9)


def test_right_is_right_in_the_picture() -> None:
    """A body that walks away from the camera has its right side on the right."""
    body = sample_body(np.random.default_rng(0))
    joints = forward_kinematics(np.tile(np.eye(3), (1, 17, 1, 1)), body.offsets, PARENTS)
    position = np.array([0.0, -4.0, 1.0])
    seen = world_to_camera(joints, look_at(position, np.zeros(3)), position)[0]
    assert seen[JOINT["right_hip"], 0] > 0 > seen[JOINT["left_hip"], 0]


def test_camera_sees_the_whole_motion() -> None:
    rng = np.random.default_rng(0)
    joints = performed("walking", 1)[0][2]
    inside, distances, wide = [], [], []
    for _ in range(200):
        camera = sample_camera(joints, rng)
        seen = world_to_camera(joints, camera.rotation, camera.position)
        assert seen[..., 2].min() > 0.3 and camera.position[2] > 0.2
        pixels = project(seen, camera.intrinsics)
        inside.append(((pixels >= 0) & (pixels < (camera.width, camera.height))).all())
        distances.append(seen[..., 2].mean())
        wide.append(2 * np.degrees(np.arctan(max(camera.width, camera.height) / 2 / camera.intrinsics.fx)))
    assert np.mean(inside) > 0.9
    assert np.percentile(distances, 90) > 1.8 * np.percentile(distances, 10) and 34 < min(wide) < 45 < max(wide) < 76


def test_rows_agree_with_themselves(rows) -> None:
    for row in rows:
        joints = row["joints"].astype(np.float64)
        np.testing.assert_allclose(project(joints, Pinhole(**row["camera"])), row["keypoints_true"], atol=2e-3)
        depth = joints[..., 2]
        back = unproject(row["keypoints_true"].astype(np.float64), depth, Pinhole(**row["camera"]))
        np.testing.assert_allclose(back, joints, atol=2e-5)
        assert np.ptp(bone_lengths(joints), axis=0).max() < 1e-5
        assert depth.min() > 0.3 and np.abs(joints).max() < 40
        flipped = joints * [1, -1, 1]
        assert np.abs(project(flipped, Pinhole(**row["camera"])) - row["keypoints_true"]).max() > 50


def test_keypoints_have_noise_and_gaps(rows) -> None:
    keypoints = np.stack([row["keypoints"] for row in rows])
    true = np.stack([row["keypoints_true"] for row in rows])
    missing = np.isnan(keypoints)
    assert (missing[..., 0] == missing[..., 1]).all() and 0.005 < missing.mean() < 0.06
    size = np.array([np.median(np.ptp(row["keypoints_true"], axis=1).max(-1)) for row in rows])
    error = np.linalg.norm(keypoints - true, axis=-1) / size[:, None, None]
    assert 0.003 < np.nanmedian(error) < 0.02 and 0.03 < np.nanmax(error) < 0.5
    noise = (keypoints - true)[..., 0] / size[:, None, None]
    pairs = noise[:, 1:].ravel(), noise[:, :-1].ravel()
    known = ~np.isnan(pairs[0] + pairs[1])
    assert 0.2 < np.corrcoef(pairs[0][known], pairs[1][known])[0, 1] < 0.8, "neither still nor white"


def test_nothing_is_detected_outside_the_picture() -> None:
    pixels = np.random.default_rng(0).uniform(-50, 150, (40, 17, 2))
    found = detect(pixels, 100, 80, np.random.default_rng(1))
    seen = ~np.isnan(found[..., 0])
    assert ((found[seen] >= 0) & (found[seen] < (100, 80))).all() and 0.05 < seen.mean() < 0.5
    steady = detect(np.tile(np.linspace([300, 300], [700, 700], 17), (400, 1, 1)), 1000, 1000, np.random.default_rng(9))
    gone = np.isnan(steady[..., 0])
    runs = [len(run) for joint in gone.T for run in "".join("x" if g else " " for g in joint).split()]
    assert runs and 1 < np.mean(runs) < 2 * LONGEST_GAP


def test_same_index_same_motion(rows) -> None:
    again = make_motion(5)
    for name, value in rows[5].items():
        np.testing.assert_array_equal(again[name], value)
    for other in (make_motion(5, seed=1), make_motion(6)):
        assert np.abs(other["joints"] - again["joints"]).mean() > 0.05


def test_splits_share_neither_bodies_nor_cameras(rows) -> None:
    held_out = [make_motion(10**9 + index) for index in range(40)]
    for name, key in (("subject", str), ("camera", lambda camera: camera["fx"])):
        assert not {key(row[name]) for row in rows} & {key(row[name]) for row in held_out}
    lengths = [{tuple(bone_lengths(row["joints"][0]).round(5)) for row in split} for split in (rows, held_out)]
    assert not lengths[0] & lengths[1]
    by_subject: dict[str, list[np.ndarray]] = {}
    for row in rows:
        by_subject.setdefault(row["subject"], []).append(bone_lengths(row["joints"][0]))
    assert len(by_subject) == 15
    assert all(np.ptp(lengths, axis=0).max() < 1e-4 for lengths in by_subject.values())
    assert len({row["action"] for row in rows}) > 8


def test_motions_are_made_fast() -> None:
    make_motion(0)
    start = time.process_time()
    for index in range(40):
        make_motion(index)
    assert 40 / (time.process_time() - start) > 60, "200 a second on a free core; this one may be busy"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_train": -1}, ValueError, "num_train must lie between 0 and"),
        ({"num_validation": 2.5}, TypeError, "num_validation must be an integer, got 2.5"),
        ({"num_frames": 0}, ValueError, "num_frames must lie between 1 and 10000, got 0"),
        ({"num_frames": "81"}, TypeError, "num_frames must be an integer"),
        ({"seed": -5}, ValueError, "seed"),
        ({"num_train": 0, "num_validation": 0}, ValueError, "at least one sequence"),
    ],
)
def test_bad_configs(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MotionsConfig(**change)


def test_bad_motion_arguments() -> None:
    for change, error in (({"index": -1}, ValueError), ({"num_frames": 0}, ValueError), ({"seed": 1.5}, TypeError)):
        with pytest.raises(error, match=next(iter(change))):
            make_motion(**{"index": 0, **change})


SMALL: dict[str, Any] = {"num_train": 6, "num_validation": 3, "num_frames": 9, "seed": 4}


def test_load_dataset_by_name(tmp_path) -> None:
    splits = datasets.load_dataset("synthetic_motions", cache_dir=str(tmp_path), **SMALL)
    assert {name: len(split) for name, split in splits.items()} == {"train": 6, "validation": 3}
    assert splits["train"].features["action"].names == list(SYNTHETIC_MOTIONS_ACTIONS)
    for split, first in (("train", 0), ("validation", 10**9)):
        for offset, row in enumerate(splits[split].with_format("numpy")):
            expected = make_motion(first + offset, num_frames=9, seed=4)
            for name in ("keypoints", "keypoints_true", "joints"):
                assert row[name].dtype == np.float32
                np.testing.assert_array_equal(row[name], expected[name])
            assert {name: float(value) for name, value in row["camera"].items()} == expected["camera"]
            assert SYNTHETIC_MOTIONS_ACTIONS[row["action"]] == expected["action"]
    stream = datasets.load_dataset("synthetic_motions", split="train", streaming=True, **SMALL)
    np.testing.assert_array_equal([row["keypoints"] for row in stream], [row["keypoints"] for row in splits["train"]])


@pytest.mark.slow
def test_processes_share_out_the_shards(tmp_path) -> None:
    options = {"num_train": 260, "num_validation": 0, "num_frames": 2, "split": "train"}
    rows = datasets.load_dataset("synthetic_motions", num_proc=2, cache_dir=str(tmp_path), **options)
    assert rows["index"][:] == list(range(260))
    for index in (3, 255):
        np.testing.assert_array_equal(
            rows.with_format("numpy")[index]["joints"], make_motion(index, num_frames=2)["joints"]
        )
    builder = SyntheticMotions(num_train=600, num_validation=0, num_frames=5, cache_dir=str(tmp_path))
    (split,) = builder._split_generators(None)
    assert split.gen_kwargs["shards"] == [(0, 250), (250, 500), (500, 600)]
