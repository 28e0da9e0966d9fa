"""NumPy's .npz files whose arrays hold Python objects, without the danger of pickle.

Such a member is a pickle, and a pickle may call any function while it is read. Here it may name nothing but what builds
NumPy arrays; dicts, lists, texts and numbers need no names.
"""

import math
import os
import pickle
import zipfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy._core import multiarray, numeric

Array = np.ndarray


def _encode(text: str, encoding: str) -> bytes:
    """What pickles of protocol 2 write for bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}
for _package in ("numpy.core", "numpy._core"):
    ALLOWED[f"{_package}.multiarray", "_reconstruct"] = multiarray._reconstruct
    ALLOWED[f"{_package}.multiarray", "scalar"] = multiarray.scalar
    ALLOWED[f"{_package}.numeric", "_frombuffer"] = numeric._frombuffer  # type: ignore[attr-defined]


class MissingArrayError(ValueError):
    """A whole file without the array that is wanted."""


class _ArrayUnpickler(pickle.Unpickler):
    """Refuses every name but those of `ALLOWED`."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """The object of that name."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return ALLOWED[module, name]


def read_member(path: str, name: str) -> Array:
    """One array of an .npz file.

    Args:
        path: local file.
        name: of the array.

    Returns:
        The array; of dtype object where the file has objects: arrays, dicts, lists, tuples, texts, numbers.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: naming the file, if it is no .npz, broken, lacks the array, or asks for anything but such objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_member(archive, name)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: {name!r} is not read, because {error}; get the file from its source again"
        ) from error
    except MissingArrayError as error:
        raise ValueError(f"{path} {error}") from error
    except Exception as error:  # zip archives, pickles and headers that are damaged raise anything
        raise ValueError(f"{path} is no complete .npz file ({error}): copy or download it again") from error


def _read_member(archive: zipfile.ZipFile, name: str) -> Array:
    if f"{name}.npy" not in archive.namelist():
        raise MissingArrayError(f"has no array {name!r}, only {', '.join(archive.namelist())}")
    with archive.open(f"{name}.npy") as file:
        if _header(file)[1].hasobject:
            content = _ArrayUnpickler(file).load()
            if not isinstance(content, np.ndarray):
                raise MissingArrayError(f"holds a {type(content).__name__} as {name!r} instead of an array")
            return content
    _require_whole(archive, f"{name}.npy")
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def require_whole_arrays(path: str | os.PathLike) -> None:
    """Look at the sizes that an .npz file claims, before NumPy takes memory for them.

    Raises:
        ValueError: an array that is larger than what the archive holds of it.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith(".npy"):
                _require_whole(archive, member)


def _require_whole(archive: zipfile.ZipFile, member: str) -> None:
    with archive.open(member) as file:
        shape, dtype = _header(file)
    size, held = math.prod(shape) * dtype.itemsize, archive.getinfo(member).file_size
    if size > held and not dtype.hasobject:
        raise ValueError(f"{member} claims {size} bytes of numbers, and the archive holds {held}")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of a .npy file."""
    major, _ = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    return shape, dtype
