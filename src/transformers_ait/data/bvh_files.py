"""BVH files: a hierarchy of joints with channels in any order, and one line of values per frame."""

import math

import numpy as np

from .mocap_clip import MocapClip
from .mocap_text import number, read_lines, refuse, values_of
from .skeleton import euler_rotations

Array = np.ndarray

CHANNELS = {f"{axis}{kind}": (kind, axis) for axis in "xyz" for kind in ("position", "rotation")}


class _Hierarchy:
    """Joints of the part before MOTION, read word by word."""

    def __init__(self, path: str, lines: list[str], stop: int) -> None:
        self.path = path
        self.words = [(word, at) for at, line in enumerate(lines[:stop], 1) for word in _split(line)]
        self.place = 0
        self.names: list[str] = []
        self.parents: list[int] = []
        self.offsets: list[list[float]] = []
        self.channels: list[list[tuple[str, str]]] = []
        self.take("HIERARCHY")
        while self.place < len(self.words):
            self.take("ROOT")
            self.joint(-1)

    def next(self, expected: str) -> tuple[str, int]:
        """The next word and its line."""
        if self.place == len(self.words):
            last = self.words[-1][1] if self.words else 1
            refuse(self.path, last, f"the hierarchy ends where {expected} should follow: is the file truncated?")
        self.place += 1
        return self.words[self.place - 1]

    def take(self, *expected: str) -> str:
        """The next word, which must be one of these in capitals or not."""
        word, line = self.next(" or ".join(expected))
        for candidate in expected:
            if word.upper() == candidate.upper():
                return candidate
        refuse(self.path, line, f"expected {' or '.join(expected)}, found {word!r}")

    def numbers(self, count: int) -> list[float]:
        """The next words as numbers."""
        return [number(self.path, line, word) for word, line in (self.next("a number") for _ in range(count))]

    def joint(self, parent: int, end: bool = False) -> None:
        """A joint from its name to its closing brace, and what hangs on it."""
        words = []
        while (word := self.next("{")[0]) != "{":
            words.append(word)
        this = len(self.names)
        self.names.append(f"{self.names[parent]}_end" if end else " ".join(words))
        self.parents.append(parent)
        self.offsets.append([0.0, 0.0, 0.0])
        self.channels.append([])
        while (word := self.take("OFFSET", "CHANNELS", "JOINT", "End", "}")) != "}":
            if word == "OFFSET":
                self.offsets[this] = self.numbers(3)
            elif word == "CHANNELS":
                (count,) = self.numbers(1)
                self.channels[this] = [self.channel() for _ in range(int(count))]
            else:
                self.joint(this, end=word == "End")

    def channel(self) -> tuple[str, str]:
        """Kind and axis of a channel."""
        word, line = self.next("a channel")
        if word.lower() not in CHANNELS:
            refuse(self.path, line, f"{word!r} is no channel; known are Xposition to Zrotation")
        return CHANNELS[word.lower()]


def _split(line: str) -> list[str]:
    return line.replace("{", " { ").replace("}", " } ").split()


def read_bvh(path: str) -> MocapClip:
    """Read a BVH file. Position channels replace the OFFSET of their joint, whichever joint it is.

    Args:
        path: local file.

    Returns:
        Its motion, lengths in the file's unit, which the format does not name.

    Raises:
        OSError: if it cannot be opened.
        ValueError: naming file and line, if it is no BVH file, truncated, or a line has too few values or too many.
    """
    lines = read_lines(path)
    stop = next((at for at, line in enumerate(lines) if line.strip().upper() == "MOTION"), None)
    if stop is None:
        refuse(path, len(lines), "there is no MOTION: is it a BVH file, and complete?")
    tree = _Hierarchy(path, lines, stop)
    rows = [(at, line) for at, line in enumerate(lines[stop + 1 :], stop + 2) if line.strip()]
    count = _header(path, rows, 0, "Frames:")
    seconds = _header(path, rows, 1, "Frame Time:")
    if count < 1 or count != int(count) or not 0 < seconds < math.inf:
        refuse(path, rows[0][0], f"Frames must be 1 or more and Frame Time above 0, got {count:g} and {seconds:g}")
    width = sum(map(len, tree.channels))
    table = np.array([values_of(path, at, line.split(), width) for at, line in rows[2:]]).reshape(-1, width)
    if len(table) != count:
        hint = "is the file truncated? Copy it again" if len(table) < count else "it has more than it says"
        refuse(path, rows[-1][0], f"Frames says {count:g}, but there are {len(table)}: {hint}, or correct that number")
    rotations, offsets = _move(tree, table)
    return MocapClip(path, tuple(tree.names), tuple(tree.parents), rotations, offsets, _rate(seconds), None)


def _rate(seconds: float) -> float:
    """Frames per second; whole ones where `Frame Time` is merely rounded, such as 0.0333333."""
    rate = 1 / seconds
    return float(round(rate)) if abs(rate - round(rate)) < 1e-4 * rate else rate


def _header(path: str, rows: list[tuple[int, str]], place: int, title: str) -> float:
    """The number after a title such as `Frames:`."""
    at, line = rows[place] if place < len(rows) else (rows[-1][0] if rows else 0, "")
    if not line.strip().lower().startswith(title.lower()):
        refuse(path, at, f"expected {title!r} and a number after MOTION, found {line.strip()!r}")
    return number(path, at, line.split(":", 1)[1].strip())


def _move(tree: _Hierarchy, table: Array) -> tuple[Array, Array]:
    """Rotations (T, J, 3, 3) and offsets (T, J, 3) from the channels' values (T, N)."""
    offsets = np.repeat(np.array(tree.offsets)[None], len(table), 0)
    rotations = np.tile(np.eye(3), (len(table), len(tree.names), 1, 1))
    column = 0
    for joint, channels in enumerate(tree.channels):
        values = table[:, column : column + len(channels)]
        column += len(channels)
        turns = [place for place, (kind, _) in enumerate(channels) if kind == "rotation"]
        rotations[:, joint] = euler_rotations(
            "".join(channels[place][1] for place in turns), np.radians(values[:, turns])
        )
        for place, (kind, axis) in enumerate(channels):
            if kind == "position":
                offsets[:, joint, "xyz".index(axis)] = values[:, place]
    return rotations, offsets
