"""`human36m`: a `datasets` builder for Human3.6M as VideoPose3D writes it.

    poses = datasets.load_dataset("human36m", data_dir="VideoPose3D/data", keypoints="cpn_ft_h36m_dbb")

The folder holds `data_3d_h36m.npz`, `data_2d_h36m_<keypoints>.npz`, and the cameras as `cameras_h36m.json`, whose
format `human36m_files.read_cameras` describes. The .npz files hold pickled dicts; they are read by an unpickler that
builds arrays and plain containers only.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from datasets.builder import Key

from . import (
    camera_projection,
    depth_normals,
    human36m_files,
    mocap_clip,
    motion_rows,
    restricted_npz,
    skeleton,
)
from .human36m_files import CAMERAS, CAMERAS_NAME, KEYPOINTS_NAME, POSITIONS_NAME, SUBJECTS, Human36MFiles
from .image_files import file_stamp, is_url, resolve
from .image_files_builder import SHARED_MODULES, ImageFilesBuilder, ImageFilesConfig
from .motion_rows import MAX_FRAMES, camera_column, clip_starts, motion_features
from .registration import source_hash
from .rooms_render import require_integer

CODE_HASH = source_hash(
    (
        *(sys.modules[__name__], camera_projection, depth_normals, human36m_files, mocap_clip, motion_rows),
        *(restricted_npz, skeleton, *SHARED_MODULES),
    )
)

TAKES_PER_SHARD = 8
"""Recordings, of four cameras each, in one unit of work."""

FPS = 50.0

ROW_STRIDE = 10_000
"""Distance between the first indices of two rows' sequences, which bounds the clips of one."""


@dataclass
class Human36MConfig(ImageFilesConfig):
    """Which files to read.

    Args:
        data_dir: folder with `data_3d_h36m.npz` and the other files.
        keypoints: which 2-D joints: "gt", "cpn_ft_h36m_dbb", or what else stands in a name `data_2d_h36m_<...>.npz`.
        cameras: JSON file of the cameras; a relative path is taken from `data_dir`.
        num_frames: frames of each row, 1 to 10000, cut one after the other, the last to end with the recording; shorter
            recordings give no row. None gives whole recordings, as figures of the whole test split need them.

    Raises:
        FileNotFoundError: if a file does not exist.
        TypeError: if an option is of the wrong type.
        ValueError: if an option is missing or out of range.
    """

    keypoints: str = "gt"
    cameras: str = CAMERAS_NAME
    num_frames: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("keypoints", "cameras"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a text, got {getattr(self, name)!r}")
        if self.num_frames is not None:
            require_integer("num_frames", self.num_frames, 1, MAX_FRAMES)
        if self.data_dir is None:
            raise ValueError(
                f'human36m needs data_dir, the folder that holds {POSITIONS_NAME}: load_dataset("human36m", '
                f'data_dir="...")'
            )
        if is_url(self.data_dir) or not os.path.isdir(resolve(self.data_dir)):
            raise FileNotFoundError(f"data_dir must be an existing local folder, got {self.data_dir!r}")

    def paths(self) -> tuple[str, str, str]:
        """Absolute paths of 3-D joints, 2-D joints and cameras.

        Raises:
            FileNotFoundError: if one does not exist.
        """
        root = resolve(self.data_dir or "")
        names = {
            POSITIONS_NAME: "VideoPose3D's prepare_data_h36m.py writes it",
            KEYPOINTS_NAME.format(
                self.keypoints
            ): "choose another with the option keypoints, or get it from VideoPose3D",
            self.cameras: "write it as human36m_files.read_cameras describes, or name it with the option cameras",
        }
        for name, fix in names.items():
            if not os.path.isfile(resolve(name, root)):
                raise FileNotFoundError(f"{resolve(name, root)} does not exist: {fix}")
        positions, keypoints, cameras = (resolve(name, root) for name in names)
        return positions, keypoints, cameras

    def sources(self) -> Iterable[Any]:
        """See `ImageFilesConfig.sources`."""
        return [self.num_frames, *((path, file_stamp(path)) for path in self.paths())]


class Human36M(ImageFilesBuilder):
    """Recordings of seven people, seen by four cameras; one row per recording and camera, or per clip of it.

    Splits are S1, S5, S6, S7, S8 (`train`) and S9, S11 (`test`). Columns are those of `motion_features`, and:

        sequence: the recording's name; `action` is that without its number, over which figures are averaged.
        camera_id: the camera's serial number.

    `keypoints` are those of the chosen file. `keypoints_true` are projected through the lens; from `joints` projected
    with `camera` alone they differ by its distortion.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = Human36MConfig
    CODE_HASH = CODE_HASH
    config: Human36MConfig

    def _info(self) -> datasets.DatasetInfo:
        text = datasets.Value("string")
        return datasets.DatasetInfo(
            description="Human3.6M: 2-D and 3-D joints of recorded people.",
            homepage="http://vision.imar.ro/human3.6m/",
            features=datasets.Features(
                {**motion_features(text, self.config.num_frames), "sequence": text, "camera_id": text}
            ),
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        files = Human36MFiles(*self.config.paths())
        generators, number = [], 0
        for split in SUBJECTS:
            takes = files.takes(split)
            for subject in SUBJECTS[split]:
                files.check(*next(take for take in takes if take[0] == subject))
            numbered = [(number + place, *take) for place, take in enumerate(takes)]
            number += len(takes)
            starts = range(0, len(numbered), TAKES_PER_SHARD)
            shards = [numbered[start : start + TAKES_PER_SHARD] for start in starts]
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs={"shards": shards}))
        return generators

    def _generate_examples(self, shards: list[list[tuple[int, str, str]]]) -> Iterator[tuple[Any, dict[str, Any]]]:
        files = Human36MFiles(*self.config.paths())
        for shard, takes in enumerate(shards):
            rows = (row for take in takes for row in self._rows(files, *take))
            for offset, row in enumerate(rows):
                yield Key(shard, offset), row

    def _rows(self, files: Human36MFiles, number: int, subject: str, sequence: str) -> Iterator[dict[str, Any]]:
        """The rows of one recording, camera by camera."""
        for place, camera in enumerate(CAMERAS):
            take = files.take(subject, sequence, camera)
            first = (number * len(CAMERAS) + place) * ROW_STRIDE
            arrays = {name: getattr(take, name) for name in ("keypoints", "keypoints_true", "joints")}
            for clip, (start, stop) in enumerate(clip_starts(len(take.joints), self.config.num_frames)):
                yield {
                    "index": first + clip,
                    "action": sequence.split(" ")[0],
                    "subject": subject,
                    "fps": FPS,
                    "width": take.camera.width,
                    "height": take.camera.height,
                    **{name: values[start:stop].astype(np.float32) for name, values in arrays.items()},
                    "camera": camera_column(take.camera.intrinsics),
                    "sequence": sequence,
                    "camera_id": camera,
                }
