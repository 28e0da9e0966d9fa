"""Human3.6M in VideoPose3D's files: 3-D and 2-D joints, and cameras from a JSON file."""

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .camera_projection import Distortion, project, quaternion_rotation, world_to_camera
from .depth_normals import Pinhole
from .mocap_clip import LEG_RANGE
from .restricted_npz import read_member

Array = np.ndarray

POSITIONS_NAME = "data_3d_h36m.npz"

KEYPOINTS_NAME = "data_2d_h36m_{}.npz"

CAMERAS_NAME = "cameras_h36m.json"

SUBJECTS = {"train": ("S1", "S5", "S6", "S7", "S8"), "test": ("S9", "S11")}
"""The usual protocol."""

CAMERAS = ("54138969", "55011271", "58860488", "60457274")
"""Serial numbers of the cameras in the order of the files' 2-D joints."""

JOINTS_OF_32 = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)
"""Of the 32 joints of the recordings, those that are not doubles or ends of fingers and toes."""

LARGEST_ERROR = 20.0
"""Pixels that detected joints may lie from projected ones, in the median, before cameras count as wrong."""


class StudioCamera(NamedTuple):
    """One of the cameras as it stood for one subject.

    Args:
        intrinsics: focal lengths and optical axis in pixels.
        distortion: of the lens.
        width: of the picture in pixels.
        height: of the picture in pixels.
        rotation: (3, 3) world to camera.
        position: (3,) metres.
    """

    intrinsics: Pinhole
    distortion: Distortion
    width: int
    height: int
    rotation: Array
    position: Array


class Take(NamedTuple):
    """What one camera saw of one recording.

    Args:
        joints: (T, 17, 3) metres in the camera's axes.
        keypoints: (T, 17, 2) pixels from the file.
        keypoints_true: (T, 17, 2) pixels, projected with the lens's distortion.
        camera: the camera.
    """

    joints: Array
    keypoints: Array
    keypoints_true: Array
    camera: StudioCamera


def read_cameras(path: str) -> dict[str, dict[str, StudioCamera]]:
    """Read cameras from a JSON file such as

        {"intrinsics": {"54138969": {"focal_length": [fx, fy], "center": [cx, cy], "radial": [k1, k2, k3],
                                     "tangential": [p1, p2], "width": 1000, "height": 1002}, ...},
         "extrinsics": {"S1": {"54138969": {"orientation": [w, x, y, z], "position": [x, y, z]}, ...}, ...}}

    with pixels and metres. `orientation` turns the camera's axes (x right, y down, z ahead) to the world's, `position`
    is the camera's in the world; distortion is OpenCV's. VideoPose3D has these numbers for all subjects, positions
    (there `translation`) in millimetres; they come from the data set's own calibration.

    Args:
        path: local file.

    Returns:
        Cameras by subject and serial number.

    Raises:
        OSError: if it cannot be opened.
        ValueError: naming the file and the entry, if something is missing or of the wrong kind.
    """
    with open(path, encoding="utf-8") as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error})") from error
    cameras: dict[str, dict[str, StudioCamera]] = {}
    for subject in (subject for subjects in SUBJECTS.values() for subject in subjects):
        cameras[subject] = {}
        for name in CAMERAS:
            lens = _Entry(path, content, "intrinsics", name)
            pose = _Entry(path, content, "extrinsics", subject, name)
            width, height = (int(lens.numbers(key, 1)[0]) for key in ("width", "height"))
            intrinsics = Pinhole(*lens.numbers("focal_length", 2), *lens.numbers("center", 2))
            k1, k2, k3 = lens.numbers("radial", 3)
            p1, p2 = lens.numbers("tangential", 2)
            rotation = quaternion_rotation(np.array(pose.numbers("orientation", 4))).T
            position = np.array(pose.numbers("position", 3))
            distortion = Distortion((k1, k2, k3), (p1, p2))
            cameras[subject][name] = StudioCamera(intrinsics, distortion, width, height, rotation, position)
    return cameras


class _Entry:
    """An entry of the camera file, whose values are looked up with errors that say where."""

    def __init__(self, path: str, content: Any, *keys: str) -> None:
        self.where = f"{path}: {'/'.join(keys)}"
        for key in keys:
            content = content.get(key) if isinstance(content, dict) else None
        if not isinstance(content, dict):
            raise ValueError(f"{self.where} is missing; see `read_cameras` for the format")
        self.content = content

    def numbers(self, key: str, count: int) -> list[float]:
        value = self.content.get(key)
        values = [value] if count == 1 else value
        if (
            not isinstance(values, list)
            or len(values) != count
            or not all(isinstance(number, int | float) and np.isfinite(number) for number in values)
        ):
            raise ValueError(f"{self.where}/{key} must be {count} number{'s' * (count > 1)}, got {value!r}")
        return [float(number) for number in values]


@lru_cache(maxsize=2)
def _load(path: str, name: str, stamp: int) -> Mapping[str, Mapping[str, Any]]:
    """The dict by subject and action in a file; `stamp` is the time of its last change."""
    content = read_member(path, name)
    table = content.item() if content.shape == () else None
    if not isinstance(table, dict) or not all(isinstance(actions, dict) for actions in table.values()):
        raise ValueError(f"{path}: {name!r} must be a dict of subjects with a dict of actions each")
    return table


class Human36MFiles:
    """The files of a folder.

    Args:
        positions: path of the 3-D joints.
        keypoints: path of the 2-D joints.
        cameras: path of the cameras.

    Raises:
        OSError: if a file is missing.
        ValueError: naming file and entry, if something is missing or of the wrong kind.
    """

    def __init__(self, positions: str, keypoints: str, cameras: str) -> None:
        self.positions, self.keypoints = positions, keypoints
        self.cameras_path, self.cameras = cameras, read_cameras(cameras)

    def takes(self, split: str) -> list[tuple[str, str]]:
        """Subjects and actions of a split, in the order of `SUBJECTS`, then by name.

        Raises:
            ValueError: if a subject is missing.
        """
        table = _load(self.positions, "positions_3d", os.stat(self.positions).st_mtime_ns)
        missing = [subject for subject in SUBJECTS[split] if not table.get(subject)]
        if missing:
            raise ValueError(f"{self.positions} lacks {', '.join(missing)} of the split {split}: convert all subjects")
        return [(subject, action) for subject in SUBJECTS[split] for action in sorted(table[subject])]

    def take(self, subject: str, action: str, camera: str) -> Take:
        """What a camera saw; 2-D joints beyond the last 3-D frame are dropped, as VideoPose3D does.

        Raises:
            ValueError: naming file and entry, if joints are missing or of the wrong shape.
        """
        where = f"{subject}/{action}"
        table = _load(self.positions, "positions_3d", os.stat(self.positions).st_mtime_ns)
        world = _human_joints(table[subject][action], 3, f"{self.positions}: {where}")
        seen = _load(self.keypoints, "positions_2d", os.stat(self.keypoints).st_mtime_ns).get(subject, {}).get(action)
        if not isinstance(seen, list | tuple | np.ndarray) or len(seen) != len(CAMERAS):
            raise ValueError(f"{self.keypoints}: {where} must be a list of {len(CAMERAS)} arrays, one per camera")
        keypoints = _human_joints(seen[CAMERAS.index(camera)], 2, f"{self.keypoints}: {where}, camera {camera}")
        if len(keypoints) < len(world):
            raise ValueError(
                f"{self.keypoints}: {where}, camera {camera} has {len(keypoints)} frames, the 3-D joints {len(world)}: "
                f"the files do not belong together"
            )
        lens = self.cameras[subject][camera]
        joints = world_to_camera(world, lens.rotation, lens.position)
        projected = project(joints, lens.intrinsics, lens.distortion)
        return Take(joints, keypoints[: len(world)], projected, lens)

    def check(self, subject: str, action: str) -> None:
        """Refuse wrong units and wrong cameras, which would otherwise spoil every figure unnoticed.

        Raises:
            ValueError: if legs are of no human's length, or projected joints lie far from those of the 2-D file.
        """
        for camera in CAMERAS:
            take = self.take(subject, action, camera)
            legs = np.linalg.norm(np.diff(take.joints[0, 1:4], axis=0), axis=-1).sum()
            if not LEG_RANGE[0] <= legs <= LEG_RANGE[1]:
                raise ValueError(f"{self.positions}: {subject}/{action} has legs of {legs:.3g} m; metres are needed")
            error = np.linalg.norm(take.keypoints - take.keypoints_true, axis=-1)
            if not np.nanmedian(np.where(np.isnan(error), np.inf, error)) < LARGEST_ERROR:
                raise ValueError(
                    f"{self.cameras_path}: camera {camera} of {subject} does not fit: joints of {action} lie "
                    f"{np.median(error):.0f} pixels from those of {self.keypoints}; is orientation w, x, y, z from "
                    f"camera to world, and position in metres?"
                )


def _human_joints(values: Any, channels: int, where: str) -> Array:
    """(T, 17, channels) float64 from 17 joints or the recordings' 32; a third channel of 2-D joints is dropped."""
    joints = np.asarray(values)
    shape = joints.shape
    if joints.dtype.kind != "f" or len(shape) != 3 or shape[0] < 1 or shape[1] not in (17, 32) or shape[2] < channels:
        raise ValueError(f"{where} must be floats (T, 17 or 32, {channels}), got {joints.dtype} {shape}")
    joints = joints[..., :channels].astype(np.float64)
    if not np.isfinite(joints).all():
        raise ValueError(f"{where} has joints that are not finite")
    return joints[:, list(JOINTS_OF_32)] if shape[1] == 32 else joints
