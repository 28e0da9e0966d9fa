"""Matrices of numbers from MATLAB files of level 5, what `save` writes before v7.3, with every size checked.

scipy reads more of them, but some damaged files end its process with a segmentation fault.
"""

import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HEADER_BYTES = 128
BYTE_ORDERS = {b"IM": "<", b"MI": ">"}
MATRIX, COMPRESSED, FLAGS, SIZES, NAME = 14, 15, 6, 5, 1
"""Types of elements."""
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""NumPy's types of the elements that hold numbers."""
NUMERIC_CLASSES = range(6, 16)
MAX_BYTES = 2**26
"""Of one matrix once it is unpacked; lists of frames take a few thousand."""

Element = tuple[int, bytes]
"""Type and content."""


def read_matrices(path: str) -> dict[str, np.ndarray]:
    """Real matrices of numbers by name; other variables are left out.

    Args:
        path: local file.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: naming the file, if it is no such file, or damaged.
    """
    content = Path(path).read_bytes()
    order = BYTE_ORDERS.get(content[HEADER_BYTES - 2 : HEADER_BYTES])
    if order is None:
        raise ValueError(f"{path} is no MATLAB file of level 5: download it again")
    try:
        found = [_matrix(data, order) for kind, data in _elements(content[HEADER_BYTES:], order) if kind == MATRIX]
    except (ValueError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged MATLAB file ({error}): download it again") from error
    return dict(matrix for matrix in found if matrix is not None)


def _elements(content: bytes, order: str) -> Iterator[Element]:
    """Elements one after another, unpacked."""
    place = 0
    while place < len(content):
        if place + 8 > len(content):
            raise ValueError("it ends within an element")
        kind, size = (int(word) for word in np.frombuffer(content, f"{order}u4", 2, place))
        if kind >> 16:  # up to four bytes of content stand in the place of the size
            kind, size, start, after = kind & 0xFFFF, kind >> 16, place + 4, place + 8
            if size > 4:
                raise ValueError("a small element claims more than four bytes")
        else:
            start = place + 8
            after = start + size + (0 if kind == COMPRESSED else -size % 8)
        if start + size > len(content):
            raise ValueError("it ends within an element")
        data = content[start : start + size]
        if kind == COMPRESSED:
            yield from _elements(_unpacked(data), order)
        else:
            yield kind, data
        place = after


def _unpacked(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(data, MAX_BYTES)
    if not unpacker.eof:
        raise ValueError("a compressed element is incomplete, or enormous")
    return content


def _matrix(data: bytes, order: str) -> tuple[str, np.ndarray] | None:
    """Name and values of a matrix element; None for what is no real matrix of numbers."""
    parts = list(_elements(data, order))
    if len(parts) < 3 or [kind for kind, _ in parts[:3]] != [FLAGS, SIZES, NAME] or len(parts[0][1]) != 8:
        raise ValueError("a matrix lacks its type, size or name")
    flags = int(np.frombuffer(parts[0][1], f"{order}u4")[0])
    if flags & 0xFF not in NUMERIC_CLASSES or flags & 0x0800:
        return None
    shape = tuple(int(size) for size in np.frombuffer(parts[1][1], f"{order}i4"))
    kind, values = parts[3] if len(parts) > 3 else (0, b"")
    if kind not in NUMBERS or len(values) % np.dtype(NUMBERS[kind]).itemsize:
        raise ValueError("a matrix holds no numbers")
    numbers = np.frombuffer(values, f"{order}{NUMBERS[kind]}")
    if len(shape) < 2 or min(shape) < 0 or math.prod(shape) != len(numbers):
        raise ValueError(f"a matrix of size {shape} holds {len(numbers)} numbers")
    return parts[2][1].decode("latin1"), numbers.reshape(shape, order="F")
