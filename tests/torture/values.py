"""Odd values, damaged bytes and damaged structures, drawn from a seeded generator."""

import copy
import json
import math
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

NUMBERS = (
    *(0, -1, 1, 2, 3, 7, 17, 255, 256, 65535, 2**31, 2**31 - 1, 2**40, 2**63, -(2**63), 10**400, True, False),
    *(0.0, -0.0, 0.5, -0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf),
)
TEXTS = (
    "",
    " ",
    "x",
    "0",
    "-1",
    "depth",
    "instance",
    "é",
    "雪\u202e",
    "\0",
    "a/../b",
    "None",
    "nan",
    "x" * 3000,
    "\ud800",
)
OTHERS = (None, b"", b"\xff\xfe", 1j, (), [], {}, set(), range(3), ..., int, len, object)


class Unfriendly:
    """An object that no code expects."""

    def __repr__(self) -> str:
        return "Unfriendly()"


def number(rng: random.Random) -> Any:
    """A number, often an odd one."""
    return rng.choice(NUMBERS) if rng.random() < 0.7 else rng.randint(-40, 700)


def odd_value(rng: random.Random, depth: int = 0) -> Any:
    """Anything."""
    which = rng.randrange(8 if depth < 3 else 5)
    if which < 2:
        return number(rng)
    if which == 2:
        return rng.choice(TEXTS)
    if which == 3:
        return rng.choice(OTHERS)
    if which == 4:
        return rng.choice((Unfriendly(), np.float32(2), np.int64(-3), np.arange(3), torch.ones(2), Path("x"), {1, 2}))
    length = rng.choice((0, 1, 1, 2, 3, 4))
    values = [odd_value(rng, depth + 1) for _ in range(length)]
    if which == 5:
        return values
    if which == 6:
        return tuple(values)
    return {rng.choice((*TEXTS[:8], "height", "longest_edge", 0, 1, None)): value for value in values}


def json_value(rng: random.Random, depth: int = 0) -> Any:
    """Anything that JSON and YAML can hold."""
    which = rng.randrange(6 if depth < 3 else 4)
    if which < 2:
        return number(rng)
    if which == 2:
        return rng.choice(TEXTS[:-1])
    if which == 3:
        return None
    values = [json_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return values if which == 4 else {rng.choice(TEXTS[1:8]): value for value in values}


def nested(depth: int, value: Any = 0) -> Any:
    """A list in a list in a list."""
    for _ in range(depth):
        value = [value]
    return value


def brief(value: Any, length: int = 90) -> str:
    """A representation of one line that no value can spoil, without addresses in memory."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__} without repr: {type(error).__name__}>"
    text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= length else f"{text[:length]}... ({len(text)})"


def damaged(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Bytes with one kind of damage, and its name."""
    how = rng.choice(("truncated", "flipped", "flipped", "head", "zeros", "empty", "garbage", "doubled", "inserted"))
    if how == "truncated":
        return how, data[: rng.randrange(max(1, len(data)))]
    if how == "flipped":
        changed = bytearray(data)
        for _ in range(rng.choice((1, 3, 30))):
            if changed:
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return how, bytes(changed)
    if how == "head":  # where sizes and types stand
        changed = bytearray(data)
        for _ in range(4):
            if changed:
                changed[rng.randrange(min(len(changed), 120))] = rng.randrange(256)
        return how, bytes(changed)
    if how == "zeros":
        start = rng.randrange(max(1, len(data)))
        return how, data[:start] + bytes(len(data) - start)
    if how == "inserted":
        start = rng.randrange(max(1, len(data)))
        return how, data[:start] + rng.randbytes(rng.choice((1, 2, 100))) + data[start:]
    return how, {"empty": b"", "garbage": rng.randbytes(rng.choice((1, 8, 300))), "doubled": data + data}[how]


def large_header(rng: random.Random) -> bytes:
    """A safetensors file whose header promises more than any machine has."""
    size = rng.choice((2**34, 2**62))
    header = json.dumps({"a": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}}).encode()
    return struct.pack("<Q", rng.choice((len(header), 2**50, 2**63))) + header


def paths_of(value: Any, start: tuple = ()) -> list[tuple]:
    """Keys of every entry of nested dictionaries and lists."""
    found: list[tuple] = []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        found.append((*start, key))
        found += paths_of(entry, (*start, key))
    return found


def changed_structure(rng: random.Random, value: Any, draw=json_value) -> tuple[str, tuple, Any]:
    """Nested dictionaries and lists with one entry gone, replaced, repeated, wrapped or added.

    Returns:
        What was done, the keys of the entry, and the result.
    """
    value = copy.deepcopy(value)
    paths = paths_of(value)
    if not paths or rng.random() < 0.04:
        return "replaced whole", (), draw(rng)
    path = rng.choice(paths)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    how = rng.choice(("removed", "replaced", "replaced", "replaced", "wrapped", "renamed"))
    if how == "removed":
        del parent[path[-1]]
    elif how == "replaced":
        parent[path[-1]] = draw(rng)
        return f"{dotted(path)} = {brief(parent[path[-1]])}", path, value
    elif how == "wrapped":
        parent[path[-1]] = rng.choice(([parent[path[-1]]], {"x": parent[path[-1]]}, str(parent[path[-1]])))
    elif isinstance(parent, dict):
        parent[f"{path[-1]}_"] = parent.pop(path[-1])
    else:
        parent.insert(path[-1], parent[path[-1]])
    return f"{dotted(path)} {how}", path, value


def dotted(path: tuple) -> str:
    """Keys as one word."""
    return ".".join(map(str, path)) or "all"


def as_json(value: Any) -> str:
    """JSON of what Python can write, NaN and infinity included."""
    return json.dumps(value, default=str)
