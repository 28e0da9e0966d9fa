"""Video files of predictions, one frame at a time, each whole or not at all."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .inputs import video_library

CODECS = ("libx264", "mpeg4")  # the first that this PyAV was built with
QUALITY = {"libx264": {"crf": "18", "preset": "veryfast"}, "mpeg4": {"qscale:v": "3"}}


class VideoFile:
    """An MP4 file that grows frame by frame; it has its name once it is complete.

    Args:
        path: of the file.
        temporary: where it lies until then.
        rate: frames per second.
        size: (width, height) pixels; an odd side loses its last pixel, which the format cannot hold.

    Raises:
        ImportError: PyAV is missing.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, temporary: Path, rate: Fraction, size: tuple[int, int]) -> None:
        self.av = av = video_library()
        self.path, self.temporary = path, temporary
        path.parent.mkdir(parents=True, exist_ok=True)
        codec = next(name for name in CODECS if name in av.codecs_available)
        self.width, self.height = (max(2, side // 2 * 2) for side in size)
        try:
            self.container: Any = av.open(str(temporary), "w", format="mp4")
            self.stream: Any = self.container.add_stream(codec, rate=rate, options=QUALITY[codec])
            self.stream.width, self.stream.height, self.stream.pix_fmt = self.width, self.height, "yuv420p"
        except av.FFmpegError as error:
            raise OSError(f"{path} cannot be written ({error})") from error

    def add(self, picture: np.ndarray) -> None:
        """Add a frame (H, W, 3) uint8 RGB.

        Raises:
            OSError: it cannot be written.
        """
        cut = np.ascontiguousarray(picture[: self.height, : self.width])
        try:
            self.container.mux(self.stream.encode(self.av.VideoFrame.from_ndarray(cut, format="rgb24")))
        except self.av.FFmpegError as error:
            raise OSError(f"{self.path} cannot be written ({error})") from error

    def close(self, complete: bool) -> None:
        """Finish the file, or remove what there is of it.

        Raises:
            OSError: it cannot be written.
        """
        try:
            if complete:
                self.container.mux(self.stream.encode())
            self.container.close()
            if complete:
                self.temporary.replace(self.path)
        except self.av.FFmpegError as error:
            raise OSError(f"{self.path} cannot be written ({error})") from error
        finally:
            self.temporary.unlink(missing_ok=True)
