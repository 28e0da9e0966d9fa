"""BVH, ASF and AMC files: poses against SciPy and by hand, every kind of damage, and human joints."""

from pathlib import Path

import numpy as np
import pytest
from motion_file_cases import figure, write
from scipy.spatial.transform import Rotation

from transformers_ait.data.asf_files import read_amc, read_asf
from transformers_ait.data.bvh_files import read_bvh
from transformers_ait.data.mocap_clip import BANDAI_NAMCO, CMU_ASF, CMU_BVH, MocapClip, find_joints, human_joints
from transformers_ait.data.mocap_files import find_motion_files
from transformers_ait.data.motion_rows import clip_starts
from transformers_ait.data.skeleton import BONES, JOINT, JOINT_NAMES, bone_lengths, forward_kinematics

ARM = """HIERARCHY
ROOT Base
{
  OFFSET 1 2 3
  CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
  JOINT Upper
  {
    OFFSET 0 10 0
    CHANNELS 3 Yrotation Zrotation Xrotation
    JOINT Lower {
      CHANNELS 1 Xrotation
      OFFSET 0 8 0
      End Site
      {
        OFFSET 0 0 5
      }
    }
  }
}
MOTION
Frames: 2
Frame Time: 0.02
0 0 0 0 0 0 0 0 0 0
7 8 9 90 0 0 0 0 90 -90
"""


LIMBS = [number for number, (parent, _) in enumerate(BONES) if "_" in JOINT_NAMES[parent]]
"""Bones without further joints of the files in them."""


def positions(clip: MocapClip) -> np.ndarray:
    return forward_kinematics(clip.rotations, clip.offsets, clip.parents)


def test_bvh_by_hand(tmp_path: Path) -> None:
    clip = read_bvh(write(tmp_path, "arm.bvh", ARM))
    assert clip.names == ("Base", "Upper", "Lower", "Lower_end") and clip.parents == (-1, 0, 1, 2)
    assert clip.fps == pytest.approx(50) and clip.metres is None
    first, second = positions(clip)
    np.testing.assert_allclose(first, [[0, 0, 0], [0, 10, 0], [0, 18, 0], [0, 18, 5]], atol=1e-12)
    # Base turns y to -x; Upper then turns its y to its z, which Base leaves; Lower turns back, so that its z is Base's.
    expected = [[7, 8, 9], [-3, 8, 9], [-3, 8, 17], [-3, 8, 22]]
    np.testing.assert_allclose(second, expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_bvh_with_random_channels_against_scipy(tmp_path: Path, seed: int) -> None:
    """Any number and order of channels, positions on any joint; poses by SciPy, from the tip to the root."""
    rng = np.random.default_rng(seed)
    offsets, orders, text, values = [], [], "HIERARCHY\n", []
    for joint in range(5):
        offsets.append(rng.normal(size=3).round(3))
        orders.append("".join(rng.permutation(list("XYZ"))[: rng.integers(1, 4)]))
        moved = joint in (0, 3)
        names = ["Zposition", "Xposition", "Yposition"] * moved + [f"{axis}rotation" for axis in orders[-1]]
        offset = " ".join(map(str, offsets[-1]))
        channels = f"OFFSET {offset}\nCHANNELS {len(names)} {' '.join(names)}\n"
        text += f"{'JOINT' if joint else 'ROOT'} j{joint}\n{{\n{channels}"
        values.append((rng.normal(size=(3, 3)) if moved else None, rng.uniform(-180, 180, (3, len(orders[-1])))))
    text += "End Site\n{\nOFFSET 0 1 0\n}\n" + "}\n" * 5 + "MOTION\nFrames: 3\nFrame Time: 0.01\n"
    for frame in range(3):
        row = [
            number
            for place, turn in values
            for number in (*([] if place is None else place[frame][[2, 0, 1]]), *turn[frame])
        ]
        text += " ".join(f"{number:.9f}" for number in row) + "\n"
    found = positions(read_bvh(write(tmp_path, "random.bvh", text)))
    for frame in range(3):
        np.testing.assert_allclose(found[frame, 5], _end(orders, offsets, values, frame), atol=1e-6)


def _end(orders, offsets, values, frame) -> np.ndarray:
    """The end site in the world: from the tip back to the root."""
    point = np.array([0.0, 1.0, 0.0])
    for joint in reversed(range(5)):
        place, turn = values[joint]
        point = Rotation.from_euler(orders[joint], turn[frame], degrees=True).apply(point)
        point = point + (offsets[joint] if place is None else place[frame])
    return point


BVH_DAMAGE = [
    (("Frames: 2", "Frames: 3"), "line 24: Frames says 3, but there are 2: is the file truncated"),
    (("Frames: 2", "Frames: 1"), "Frames says 1, but there are 2: it has more than it says"),
    (("7 8 9 90 0 0 0 0 90 -90", "7 8 9 90 0 0"), "line 24: 6 values, but 10 are needed"),
    (("7 8 9", "7 x 9"), "line 24: 'x' is no number"),
    (("7 8 9", "7 nan 9"), "line 24: 'nan' is no number"),
    (("Yrotation Zrotation Xrotation\n    J", "Yrotation Zrot Xrotation\n    J"), "line 9: 'Zrot' is no channel"),
    (("MOTION", ""), "no MOTION"),
    (("OFFSET 0 10 0", "OFFSET 0 10"), "line 9: 'CHANNELS' is no number"),
    (
        ("        OFFSET 0 0 5\n      }\n    }\n  }\n}\n", "        OFFSET 0 0 5\n      }\n"),
        "line 16: the hierarchy ends where",
    ),
    (("ROOT", "ROOF"), "line 2: expected ROOT, found 'ROOF'"),
    (("Frame Time: 0.02\n", ""), "line 22: expected 'Frame Time:'"),
    (("Frame Time: 0.02", "Frame Time: 0"), "Frame Time above 0"),
]


@pytest.mark.parametrize(("change", "message"), BVH_DAMAGE, ids=[message for _, message in BVH_DAMAGE])
def test_damaged_bvh_files(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in ARM
    path = write(tmp_path, "arm.bvh", ARM.replace(*change))
    with pytest.raises(ValueError, match=message) as caught:
        read_bvh(path)
    assert str(caught.value).startswith(path)


def test_files_that_are_no_text_or_missing(tmp_path: Path) -> None:
    (tmp_path / "zip.bvh").write_bytes(b"PK\0\0\1")
    with pytest.raises(ValueError, match="zip.bvh is no text file"):
        read_bvh(str(tmp_path / "zip.bvh"))
    with pytest.raises(FileNotFoundError, match="gone.bvh"):
        read_bvh(str(tmp_path / "gone.bvh"))
    with pytest.raises(ValueError, match="no MOTION"):
        read_bvh(write(tmp_path, "empty.bvh", ""))


ASF = """# a comment
:version 1.10
:name test
:units
  mass 1.0
  length 0.45
  angle deg
:documentation
  begin root is no keyword here
:root
  order TX TY TZ RX RY RZ
  axis XYZ
  position 0 0 0
  orientation 0 0 0
:bonedata
  begin
    id 1
    name upper
    direction 0 -1 0
    length 10
    axis 0 0 90 XYZ
    dof rx ry rz
    limits (-160.0 20.0)
           (-70.0 70.0)
           (-60.0 70.0)
  end
  begin
    id 2
    name lower
    direction 1 0 0
    length 4
    axis 20 30 -40 XYZ
    dof rz rx
    limits (-10 170) (-10 10)
  end
  begin
    id 3
    name stub
    direction 0 0 1
    length 2
    axis 0 0 0 XYZ
  end
:hierarchy
  begin
    root upper
    upper lower
    lower stub
  end
"""
AMC = """#!OML:ASF
:FULLY-SPECIFIED
:DEGREES
1
root 0 0 0 0 0 0
upper 0 0 0
lower 0 0
2
root 1 2 3 0 90 0
upper 90 0 0
lower 0 0
3
root 1 -2 3 10 20 30
upper 40 50 -60
lower 70 -80
"""


def test_amc_by_hand(tmp_path: Path) -> None:
    clip = read_amc(write(tmp_path, "t.amc", AMC), read_asf(write(tmp_path, "t.asf", ASF)), 120.0)
    assert clip.fps == 120 and clip.metres == pytest.approx(0.0254 / 0.45)
    numbers = [clip.names.index(name) for name in ("root", "upper", "lower", "stub")]
    rest, turned, _ = positions(clip)[:, numbers]
    np.testing.assert_allclose(rest, [[0, 0, 0], [0, -10, 0], [4, -10, 0], [4, -10, 2]], atol=1e-12)
    # The x axis of `upper` is the world's y: turned by 90 degrees about it, the bone along -y stays, and what hangs on
    # it turns x to -z and z to x. The root then turns z to x and x to -z, again about y.
    np.testing.assert_allclose(turned, [[1, 2, 3], [1, -8, 3], [-3, -8, 3], [-3, -8, 1]], atol=1e-12)


def test_amc_against_scipy(tmp_path: Path) -> None:
    """C M C^-1 with SciPy's extrinsic rotations: x first, then y, then z, as the format defines them."""
    clip = read_amc(write(tmp_path, "t.amc", AMC), read_asf(write(tmp_path, "t.asf", ASF)), 120.0)
    found = positions(clip)[2]

    def rotation(angles: list[float]) -> Rotation:
        return Rotation.from_euler("xyz", angles, degrees=True)

    root = rotation([10, 20, 30])
    own = rotation([0, 0, 90])
    upper = own * rotation([40, 50, -60]) * own.inv()
    own = rotation([20, 30, -40])
    lower = own * rotation([-80, 0, 70]) * own.inv()
    point = np.array([1, -2, 3]) + (root * upper).apply([0, -10, 0])
    np.testing.assert_allclose(found[clip.names.index("upper")], point, atol=1e-9)
    point = point + (root * upper * lower).apply([4, 0, 0])
    np.testing.assert_allclose(found[clip.names.index("lower")], point, atol=1e-9)
    point = point + (root * upper * lower).apply([0, 0, 2])
    np.testing.assert_allclose(found[clip.names.index("stub")], point, atol=1e-9)
    wrong = np.array([1, -2, 3]) + (root * rotation([40, 50, -60])).apply([0, -10, 0])
    assert np.linalg.norm(found[clip.names.index("upper")] - wrong) > 1, "bones without their own axes are noticed"


def test_radians_are_read(tmp_path: Path) -> None:
    """The same skeleton and the same frame in the other unit."""
    asf = read_asf(write(tmp_path, "t.asf", ASF))
    radians = ASF.replace("angle deg", "angle rad")
    for before, values in (("0 0 90", (0, 0, 90)), ("20 30 -40", (20, 30, -40))):
        radians = radians.replace(f"axis {before}", "axis " + " ".join(f"{np.radians(value):.12f}" for value in values))
    other = read_asf(write(tmp_path, "r.asf", radians))
    text = "1\nroot 0 0 0 0 1.5707963267949 0\nupper 0.5 0 0\nlower 0.1 0.2\n"
    degrees = "1\nroot 0 0 0 0 90 0\nupper {} 0 0\nlower {} {}\n".format(*np.degrees([0.5, 0.1, 0.2]))
    first = positions(read_amc(write(tmp_path, "r.amc", text), other, 60.0))
    second = positions(read_amc(write(tmp_path, "d.amc", degrees), asf, 60.0))
    np.testing.assert_allclose(first, second, atol=1e-9)


ASF_DAMAGE = [
    (("    lower stub", "    lower stab"), "line 47: 'stab' is no bone"),
    (("    lower stub\n", ""), "bones without parent: stub"),
    ((":hierarchy", ":tree"), "there is no :hierarchy"),
    (("dof rz rx", "dof rz tx"), "line 33: degrees of freedom must be among rx, ry, rz"),
    (("length 10", "length ten"), "line 20: 'ten' is no number"),
    (("axis 0 0 90 XYZ", "axis 0 0 XYZ"), "line 21: 'XYZ' is no number"),
    (("name lower", "name upper"), "line 27: a bone without name, or a second 'upper'"),
    (("    axis 0 0 0 XYZ\n  end", "    axis 0 0 0 XYZ"), "bone 'stub' has no end: is the file truncated"),
    (("direction 1 0 0", "direction 1 0"), "line 30: 2 values, but 3 are needed"),
]


@pytest.mark.parametrize(("change", "message"), ASF_DAMAGE, ids=[message for _, message in ASF_DAMAGE])
def test_damaged_asf_files(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in ASF
    with pytest.raises(ValueError, match=message) as caught:
        read_asf(write(tmp_path, "t.asf", ASF.replace(*change)))
    assert str(caught.value).startswith(str(tmp_path / "t.asf"))


AMC_DAMAGE = [
    (("lower 70 -80\n", ""), "frame 3 ends without lower: is it truncated"),
    (("upper 90 0 0\n", ""), "line 11: frame 2 ends without upper"),
    (("upper 90 0 0", "upper 90 0"), "line 10: 2 values, but 3 are needed"),
    (("upper 90", "uppper 90"), "line 10: 'uppper' is no bone of"),
    (("lower 70 -80", "lower 70 -8O"), "line 15: '-8O' is no number"),
    ((AMC[AMC.index("1\n") :], ""), "there is no frame"),
]


@pytest.mark.parametrize(("change", "message"), AMC_DAMAGE, ids=[message for _, message in AMC_DAMAGE])
def test_damaged_amc_files(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in AMC
    skeleton = read_asf(write(tmp_path, "t.asf", ASF))
    with pytest.raises(ValueError, match=message) as caught:
        read_amc(write(tmp_path, "t.amc", AMC.replace(*change)), skeleton, 120.0)
    assert str(caught.value).startswith(str(tmp_path / "t.amc"))


def test_human_joints_are_upright_in_metres(tmp_path: Path) -> None:
    clip = read_bvh(write(tmp_path, "f.bvh", figure()))
    joints = human_joints(clip, 30.0)
    assert joints.shape == (61, 17, 3)
    head, feet = joints[:, JOINT["head"], 2], joints[:, [JOINT["left_ankle"], JOINT["right_ankle"]], 2]
    assert 1.2 < head.min() < head.max() < 1.5 and np.abs(feet - 0.08).max() < 0.3
    # Looking along the file's z, which is -y here, with left along x.
    assert (joints[:, JOINT["left_shoulder"], 0] > joints[:, JOINT["right_shoulder"], 0] + 0.2).all()
    assert np.ptp(bone_lengths(joints)[:, LIMBS], axis=0).max() < 1e-9
    assert bone_lengths(joints * [1, 1, 1.1])[:, LIMBS].std(0).max() > 1e-4, "stretching is noticed"


@pytest.mark.parametrize("fps", [25.0, 50.0, 120.0])
def test_resampling_keeps_bones_and_places(tmp_path: Path, fps: float) -> None:
    clip = read_bvh(write(tmp_path, "f.bvh", figure(61)))
    whole, joints = human_joints(clip, 30.0), human_joints(clip, fps)
    assert len(joints) == int(2 * fps + 1e-6) + 1
    assert np.ptp(bone_lengths(joints)[:, LIMBS], axis=0).max() < 1e-9
    seconds = np.arange(len(joints)) / fps
    for axis in range(3):
        expected = np.interp(seconds, np.arange(61) / 30, whole[:, JOINT["left_wrist"], axis])
        np.testing.assert_allclose(joints[:, JOINT["left_wrist"], axis], expected, atol=4e-3)


def test_tables_name_every_joint() -> None:
    for table in (BANDAI_NAMCO, CMU_BVH, CMU_ASF):
        assert {*table} == {*JOINT_NAMES} and len({*table.values()}) == 17
    assert CMU_ASF["left_knee"] == "lfemur" and CMU_BVH["right_wrist"] == "RightHand"
    assert BANDAI_NAMCO["left_hip"] == "UpperLeg_L"


def test_joints_are_found_or_the_file_named(tmp_path: Path) -> None:
    clip = read_bvh(write(tmp_path, "f.bvh", figure(2)))
    names = [clip.names[number] for number in find_joints(clip, None)]
    assert names == [BANDAI_NAMCO[name] for name in JOINT_NAMES]
    own = BANDAI_NAMCO | {"spine": "Spine"}
    assert clip.names[find_joints(clip, own)[JOINT["spine"]]] == "Spine"
    with pytest.raises(ValueError, match=r"f.bvh: no joint 'Belly', which joints has for spine; the file has Hips"):
        find_joints(clip, own | {"spine": "Belly"})
    with pytest.raises(ValueError, match=r"arm.bvh: the skeleton is none of CMU .*give the option joints"):
        find_joints(read_bvh(write(tmp_path, "arm.bvh", ARM)), None)
    with pytest.raises(ValueError, match=r"legs are 81 m long with scale 1; give the option scale"):
        human_joints(clip, 30.0, scale=1.0)


def test_clips_cover_the_motion() -> None:
    assert clip_starts(10, 4) == [(0, 4), (4, 8), (6, 10)] and clip_starts(8, 4) == [(0, 4), (4, 8)]
    assert clip_starts(3, 4) == [] and clip_starts(3, None) == [(0, 3)]


def test_skeletons_of_amc_files(tmp_path: Path) -> None:
    for name in ("07/07.asf", "07/07_01.amc", "08/08.asf", "08/081.asf", "08/08_01.amc", "08/081_1.amc", "a/b/c.bvh"):
        write(tmp_path, name, "")
    found = {file.path: (file.skeleton, file.subject, file.action) for file in find_motion_files(str(tmp_path))}
    assert found == {
        "07/07_01.amc": ("07/07.asf", "07", "07/07_01"),
        "08/081_1.amc": ("08/081.asf", "081", "08/081_1"),
        "08/08_01.amc": ("08/08.asf", "08", "08/08_01"),
        "a/b/c.bvh": ("", "b", "a/b/c"),
    }
    write(tmp_path, "09/x.amc", "")
    with pytest.raises(ValueError, match=r"09/x.amc has no skeleton: put its .asf file beside it"):
        find_motion_files(str(tmp_path))
