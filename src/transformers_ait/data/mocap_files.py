"""Finding motion capture files in a folder, and cutting motions into clips."""

import os
from functools import lru_cache
from typing import NamedTuple

from .asf_files import AsfSkeleton, read_amc, read_asf
from .bvh_files import read_bvh
from .image_files import list_files, parent_name
from .mocap_clip import MocapClip


class MotionFile(NamedTuple):
    """A file with a motion.

    Args:
        path: of the .bvh or .amc file, relative to the folder of the data set.
        skeleton: of the .asf file that belongs to an .amc file, relative as well; "" for a .bvh file.
        subject: stem of the .asf file; for a .bvh file the folder it is in, "" for one at the top.
    """

    path: str
    skeleton: str
    subject: str

    @property
    def action(self) -> str:
        """The path without its ending."""
        return os.path.splitext(self.path)[0]


def find_motion_files(root: str) -> list[MotionFile]:
    """All .bvh and .amc files of a folder and the folders inside, in order of their paths.

    The skeleton of an .amc file is the .asf file beside it; of several, the one with the longest name that the motion's
    begins with (`07.asf` for `07_01.amc`).

    Raises:
        ValueError: if there is no motion, or no skeleton for one.
    """
    paths = sorted(list_files(root))
    found = []
    for path in paths:
        stem, ending = os.path.splitext(path)
        if ending.lower() == ".bvh":
            found.append(MotionFile(path, "", parent_name(path)))
        elif ending.lower() == ".amc":
            beside = [
                other
                for other in paths
                if other.lower().endswith(".asf") and os.path.dirname(other) == os.path.dirname(path)
            ]
            fitting = [other for other in beside if stem.startswith(os.path.splitext(other)[0])]
            skeletons = beside if len(beside) == 1 else sorted(fitting, key=len)
            if not skeletons:
                raise ValueError(
                    f"{os.path.join(root, path)} has no skeleton: put its .asf file beside it, with a name that the "
                    f"motion's begins with where there are several; found {', '.join(beside) or 'none'}"
                )
            found.append(MotionFile(path, skeletons[-1], os.path.splitext(os.path.basename(skeletons[-1]))[0]))
    if not found:
        raise ValueError(f"data_dir: {root} holds neither .bvh nor .amc files, nor do the folders inside")
    return found


def read_motion(root: str, file: MotionFile, amc_fps: float) -> MocapClip:
    """Read a motion with its skeleton.

    Args:
        root: folder of the data set.
        file: see `find_motion_files`.
        amc_fps: frames per second of .amc files.

    Raises:
        OSError: if a file cannot be opened.
        ValueError: naming file and line, if a file is broken.
    """
    path = os.path.join(root, file.path)
    if not file.skeleton:
        return read_bvh(path)
    skeleton = os.path.join(root, file.skeleton)
    return read_amc(path, _skeleton(skeleton, os.stat(skeleton).st_mtime_ns), amc_fps)


@lru_cache(maxsize=1)
def _skeleton(path: str, stamp: int) -> AsfSkeleton:
    """A skeleton, kept for the next motion; `stamp` is the time of the file's last change."""
    return read_asf(path)
