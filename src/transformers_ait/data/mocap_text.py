"""Lines and numbers of motion capture files, with errors that name file and line."""

import math
from collections.abc import Sequence
from typing import NoReturn


def refuse(path: str, line: int, message: str) -> NoReturn:
    """Raise for a line, counted from 1.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{path}, line {line}: {message}")


def read_lines(path: str) -> list[str]:
    """Lines of a text file.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is no text.
    """
    with open(path, "rb") as file:
        content = file.read()
    if b"\0" in content:
        raise ValueError(f"{path} is no text file: give the BVH, ASF or AMC file itself")
    return content.decode("latin-1").splitlines()


def number(path: str, line: int, word: str) -> float:
    """A finite number.

    Raises:
        ValueError: naming file and line, if it is none.
    """
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        refuse(path, line, f"{word!r} is no number")
    return value


def values_of(path: str, line: int, words: Sequence[str], count: int) -> list[float]:
    """Exactly `count` numbers.

    Raises:
        ValueError: naming file and line, if there are more or fewer, or one is none.
    """
    if len(words) != count:
        refuse(path, line, f"{len(words)} values, but {count} are needed: is the line cut off? Copy the file again")
    return [number(path, line, word) for word in words]
