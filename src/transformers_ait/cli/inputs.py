"""Photographs and videos of a command line: found, named without collisions, and read one at a time."""

import glob
import importlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from ..image_processing_ait_dense import AiTDenseImageProcessor

PHOTO_SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv")
UNKNOWN_RATE = Fraction(25)  # frames per second of a video that does not say

_READER = AiTDenseImageProcessor()


@dataclass(frozen=True)
class Source:
    """A file to read.

    Args:
        path: of the file.
        file_name: relative to what all inputs have in common, with "/".
        key: what its outputs are called, relative to the folder of outputs and without suffix; no two sources share
            it. Of a video it is a folder, with an output of each frame.
    """

    path: Path
    file_name: str
    key: str

    @property
    def is_video(self) -> bool:
        """Whether the file holds frames."""
        return is_video(self.path)


@dataclass(frozen=True)
class Frame:
    """A photograph, or a frame of a video.

    Args:
        image: upright RGB.
        file_name: as in `Source`; of a frame the video's with the frame's number.
        key: as in `Source`; of a frame below the video's.
        video: of a frame the video's key; None of a photograph.
        rate: of a frame, how many its video shows in a second.
    """

    image: Image.Image
    file_name: str
    key: str
    video: str | None = None
    rate: Fraction | None = None


def is_video(path: Path) -> bool:
    """Whether a file is a video by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def find_sources(
    inputs: Sequence[str], recursive: bool = False, output: Path | None = None
) -> tuple[list[Source], list[str]]:
    """The files that the words of a command line name, each once, and what cannot be found.

    Args:
        inputs: files, folders, and patterns such as "photos/*.jpg". A file that is named is read whatever its suffix;
            of a folder those with a suffix of photographs or videos, hidden ones not.
        recursive: look into folders inside of folders.
        output: folder of outputs, which is left out where it lies inside of an input.

    Returns:
        The sources in the order of the inputs, those of a folder by name; and a line for every input without any.
    """
    found: dict[str, Path] = {}
    bases: list[str] = []
    problems = []
    for text in inputs:
        files = [entry for path in _expanded(text) for entry in _files(path, recursive, output)]
        bases += [os.path.abspath(base) for base, _ in files]
        found |= {os.path.abspath(path): path for _, path in files if os.path.abspath(path) not in found}
        if not files:
            problems.append(f"{text}: {_why_nothing(text, recursive)}")
    root = os.path.commonpath(bases) if bases else ""
    names = [PurePosixPath(Path(os.path.relpath(path, root)).as_posix()) for path in found]
    return _named(list(found.values()), names), problems


def read_frames(source: Source, is_wanted: Callable[[str], bool]) -> Iterator[Frame]:
    """The photograph of a source, or its frames one after another.

    Args:
        source: what to read.
        is_wanted: whether the frame of a key is to be read; what is not is not decoded where that is possible.

    Raises:
        ImportError: a video without PyAV.
        OSError: the file cannot be read.
    """
    if not source.is_video:
        if is_wanted(source.key):
            yield Frame(read_photo(source.path), source.file_name, source.key)
        return
    frames = _video_images(source.path, lambda x: is_wanted(_frame_name(source.key, x)))
    for number, (image, rate) in enumerate(frames):
        if image is not None:
            names = _frame_name(source.file_name, number), _frame_name(source.key, number)
            yield Frame(image, *names, video=source.key, rate=rate)


def read_photo(path: Path) -> Image.Image:
    """A photograph as every image processor of this package sees it: upright 8-bit RGB, transparency on white.

    Raises:
        OSError: the file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            pixels = _READER.process_image(image, do_convert_rgb=True)
    except Exception as error:  # decoders raise anything on damaged files
        raise OSError(f"cannot be read as an image ({error.__cause__ or error})") from error
    return Image.fromarray(pixels.movedim(0, -1).numpy())


def video_library() -> Any:
    """PyAV; ImportError names the extra that brings it."""
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise ImportError("Videos need PyAV, which is optional: pip install 'transformers_ait[video]'.") from error


def _video_images(path: Path, is_wanted: Callable[[int], bool]) -> Iterator[tuple[Image.Image | None, Fraction]]:
    """Every frame of a video, upright, and frames per second; None in place of frames that are not wanted."""
    av = video_library()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise OSError("holds no pictures")
            rate = container.streams.video[0].average_rate or UNKNOWN_RATE
            for number, frame in enumerate(container.decode(video=0)):
                turned = frame.to_image().rotate(frame.rotation, expand=True) if is_wanted(number) else None
                yield turned, rate
    except av.FFmpegError as error:
        raise OSError(f"cannot be read as a video to its end ({error})") from error


def _frame_name(video: str, number: int) -> str:
    return f"{video}/{number:06d}"


def _expanded(text: str) -> list[Path]:
    """What a word names: a path, or what a pattern matches."""
    if os.path.exists(text):
        return [Path(text)]
    return [Path(match) for match in sorted(glob.glob(text, recursive=True))]


def _files(path: Path, recursive: bool, output: Path | None) -> list[tuple[Path, Path]]:
    """Pairs of the folder that names start from, and the file."""
    if not path.is_dir():
        return [(path.parent, path)]
    below = path.rglob("*") if recursive else path.iterdir()
    known = sorted(x for x in below if x.suffix.lower() in PHOTO_SUFFIXES + VIDEO_SUFFIXES and x.is_file())
    shown = [x for x in known if not any(part.startswith(".") for part in x.relative_to(path).parts)]
    if output is not None and path.resolve() in output.resolve().parents:
        shown = [x for x in shown if output.resolve() not in x.resolve().parents]
    return [(path, x) for x in shown]


def _why_nothing(text: str, recursive: bool) -> str:
    if os.path.isdir(text):
        return "no photographs or videos in it" + ("" if recursive else "; --recursive looks into folders inside")
    return "nothing matches" if glob.has_magic(text) else "no such file or folder"


def _named(paths: Sequence[Path], names: Sequence[PurePosixPath]) -> list[Source]:
    """Sources with keys: names without suffix, but whole names in folders where two would be the same."""
    photos = [name for path, name in zip(paths, names, strict=True) if not is_video(path)]
    stems = Counter(name.with_suffix("") for name in photos)
    ambiguous = {name.parent for name in photos if stems[name.with_suffix("")] > 1}
    return [
        Source(path, str(name), str(name if is_video(path) or name.parent in ambiguous else name.with_suffix("")))
        for path, name in zip(paths, names, strict=True)
    ]
