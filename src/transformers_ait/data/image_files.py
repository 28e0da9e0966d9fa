"""Image files on disk: listing them, naming the missing and the broken ones, and decoding them under their names."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Any, TypeVar

import datasets
import fsspec
from PIL import Image

Item = TypeVar("Item")
Stamp = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds."""

NUM_SAMPLED = 16
"""Files per split that are decoded before a data set is prepared or streamed."""

NUM_READERS = 16
"""Threads that look at the ends of all files: on a network drive each one mostly waits."""

IMAGE_ENDINGS = (b"\xff\xd9", b"IEND\xaeB`\x82")
"""Last bytes of a complete JPEG and of a complete PNG."""


class NamedImage(datasets.Image):
    """`datasets.Image` whose errors name the file.

    It is stored as a plain `datasets.Image`, so that cached and exported data sets do not depend on this package.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, datasets.Image) and (self.mode, self.decode) == (other.mode, other.decode)

    def decode_example(self, value: dict, token_per_repo_id: dict | None = None) -> Image.Image:
        """Image file or bytes to a loaded PIL image.

        Raises:
            OSError: naming the file, if it is missing, truncated or no image.
        """
        try:
            return super().decode_example(value, token_per_repo_id)
        except (OSError, SyntaxError) as error:  # PIL raises SyntaxError for broken PNG files
            name = (value.get("path") if isinstance(value, dict) else None) or "image without a file name"
            raise OSError(_undecodable(name, error)) from error


def name_images(features: datasets.Features) -> datasets.Features:
    """The same features with every image column as `NamedImage`."""
    return datasets.Features(
        {
            name: NamedImage(mode=feature.mode, decode=feature.decode)
            if isinstance(feature, datasets.Image)
            else feature
            for name, feature in features.items()
        }
    )


def _undecodable(name: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{name} has gone since the data set was prepared; load the data set again"
    return f"{name} cannot be decoded ({error}); is it truncated? Copy or download it again"


def list_files(root: str, folder: str = "", recursive: bool = True) -> dict[str, Stamp]:
    """Files in a folder, with one directory read per folder instead of one request per file where the system allows.

    Args:
        root: folder that the returned paths are relative to.
        folder: where to look, relative to `root`; may not exist.
        recursive: whether to look into the folders inside.

    Returns:
        Stamps by path relative to `root`, with "/" between folders, in no particular order.
    """
    files: dict[str, Stamp] = {}
    pending = [folder]
    while pending:
        current = pending.pop()
        path = os.path.join(root, current)
        if not os.path.isdir(path):
            continue
        with os.scandir(path) as entries:
            for entry in entries:
                relative = f"{current}/{entry.name}" if current else entry.name
                if entry.is_file():
                    status = entry.stat()
                    files[relative] = (status.st_size, status.st_mtime_ns)
                elif recursive and entry.is_dir():
                    pending.append(relative)
    return files


def file_stamp(path: str) -> str:
    """What changes when the file does, for a local path or any URL that fsspec knows.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if is_url(path):
        filesystem, inside = fsspec.core.url_to_fs(path)
        return str(filesystem.ukey(inside))
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns}"


def is_url(path: str | os.PathLike) -> bool:
    """Whether fsspec, rather than the local file system, opens this path."""
    return "://" in os.fspath(path)


def resolve(path: str | os.PathLike, root: str | None = None) -> str:
    """Absolute path; relative ones are taken from `root`, or from the working directory where that is None."""
    text = os.fspath(path)
    if is_url(text):
        return text
    return os.path.abspath(os.path.join(root or "", os.path.expanduser(text)))


def digest(parts: Iterable[Any]) -> str:
    """16 hexadecimal digits from the representation of `parts`, in their order."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(repr(part).encode())
        hasher.update(b"\n")
    return hasher.hexdigest()[:16]


def name_first(names: Sequence[str], count: int = 3) -> str:
    """`a, b, c and 7 more`."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")


def require_files(missing: Sequence[str], total: int, root: str, fix: str) -> None:
    """Refuse to go on while files are missing.

    Args:
        missing: their paths.
        total: number of files looked for.
        root: where they were looked for.
        fix: what the user can do.

    Raises:
        FileNotFoundError: if `missing` is not empty; names the first three and says how many.
    """
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {total} files are missing in {root}: {name_first(missing)}. {fix}")


def evenly_spaced(items: Sequence[Item], count: int = NUM_SAMPLED) -> list[Item]:
    """At most `count` of the items, spread over all of them; always the same ones."""
    if len(items) <= count:
        return list(items)
    return [items[index * (len(items) - 1) // (count - 1)] for index in range(count)]


def load_image(path: str) -> Image.Image:
    """Decode a local image file whole.

    Raises:
        OSError: naming the file.
    """
    return NamedImage().decode_example({"path": path, "bytes": None})


def _is_complete(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(-min(file.tell(), 16), os.SEEK_END)
        return file.read().rstrip(b"\0").endswith(IMAGE_ENDINGS)


def require_complete_images(paths: Sequence[str]) -> None:
    """Find truncated JPEG and PNG files by their last bytes; only a file with an unusual end is decoded.

    Args:
        paths: local files.

    Raises:
        OSError: if files cannot be read or decoded; names the first three and says how many.
    """
    with ThreadPoolExecutor(NUM_READERS) as pool:
        complete = pool.map(_is_complete, paths, chunksize=256)
        doubtful = [path for path, is_fine in zip(paths, complete, strict=True) if not is_fine]
    broken: dict[str, OSError] = {}
    for path in doubtful:
        try:
            load_image(path)
        except OSError as error:
            broken[path] = error
    if broken:
        first = next(iter(broken.values()))
        raise OSError(f"{len(broken)} of {len(paths)} images are broken: {name_first(list(broken))}. {first}")


def parent_name(path: str) -> str:
    """Name of the folder that holds the file."""
    return PurePath(path).parent.name
