"""ASF skeletons and AMC motions, the files of CMU's motion capture database."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .mocap_clip import MocapClip
from .mocap_text import read_lines, refuse, values_of
from .skeleton import euler_rotations

Array = np.ndarray

INCH = 0.0254

ROOT = "root"


@dataclass
class AsfBone:
    """A bone of a skeleton, in the rest pose.

    Args:
        name: of the bone and of the joint at its end.
        direction: (3,) in the world.
        length: in the file's unit.
        axis: order of the rotations, such as "xyz": x is applied first.
        axis_angles: (3,) radians of the bone's own axes in the world, about the axes in that order.
        dof: degrees of freedom, such as "rx", in the order of the motion's values.
        line: where it stands in the file.
    """

    name: str = ""
    direction: tuple[float, ...] = (0.0, 0.0, 0.0)
    length: float = 0.0
    axis: str = "xyz"
    axis_angles: tuple[float, ...] = (0.0, 0.0, 0.0)
    dof: tuple[str, ...] = ()
    line: int = 0


@dataclass
class AsfSkeleton:
    """Content of an ASF file.

    Args:
        path: of the file.
        bones: the root (length 0) and all bones by name.
        parents: name of the parent of every bone but the root, parents before their children.
        position: (3,) of the root, added to its motion.
        metres: length of the file's unit; CMU's unit is an inch over the `length` of the file.
        radians: of the file's unit of angles.
    """

    path: str
    bones: dict[str, AsfBone] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    position: tuple[float, ...] = (0.0, 0.0, 0.0)
    metres: float = INCH
    radians: float = np.pi / 180


Section = list[tuple[int, list[str]]]


def read_asf(path: str) -> AsfSkeleton:
    """Read an ASF file.

    Args:
        path: local file.

    Raises:
        OSError: if it cannot be opened.
        ValueError: naming file and line, if a section is missing or something in it is wrong.
    """
    lines = read_lines(path)
    sections = _sections(lines)
    for name in (":root", ":bonedata", ":hierarchy"):
        if name not in sections:
            refuse(path, len(lines), f"there is no {name}: is it an ASF file, and complete?")
    skeleton = AsfSkeleton(path)
    for at, (key, *words) in sections.get(":units", []):
        if key == "length":
            skeleton.metres = INCH / values_of(path, at, words, 1)[0]
        elif key == "angle" and words and words[0].startswith("rad"):
            skeleton.radians = 1.0
    _read_root(skeleton, sections[":root"])
    for bone in _bones(skeleton, sections[":bonedata"]):
        if not bone.name or bone.name in skeleton.bones:
            refuse(path, bone.line, f"a bone without name, or a second {bone.name!r}")
        skeleton.bones[bone.name] = bone
    _read_hierarchy(skeleton, sections[":hierarchy"])
    return skeleton


def _sections(lines: list[str]) -> dict[str, Section]:
    """Words of each line, with its number, by the title of the section."""
    sections: dict[str, Section] = {}
    title = ""
    for at, line in enumerate(lines, 1):
        words = line.split("#", 1)[0].split()
        if words and words[0].startswith(":"):
            title = words[0].lower()
            sections.setdefault(title, [])
            words = words[1:]
        if words and title != ":documentation":
            sections.setdefault(title, []).append((at, words))
    return sections


def _order(path: str, at: int, word: str) -> str:
    """An order of rotations in small letters."""
    if sorted(word.lower()) != ["x", "y", "z"]:
        refuse(path, at, f"the axis order must be such as XYZ, got {word!r}")
    return word.lower()


def _degrees_of_freedom(path: str, at: int, words: list[str], allowed: tuple[str, ...]) -> tuple[str, ...]:
    found = tuple(word.lower() for word in words)
    if not set(found) <= set(allowed):
        refuse(path, at, f"degrees of freedom must be among {', '.join(allowed)}, got {' '.join(words)}")
    return found


def _read_root(skeleton: AsfSkeleton, section: Section) -> None:
    path, root = skeleton.path, AsfBone(ROOT, dof=("tx", "ty", "tz", "rx", "ry", "rz"))
    for at, (key, *words) in section:
        root.line = root.line or at
        if key == "order":
            root.dof = _degrees_of_freedom(path, at, words, ("tx", "ty", "tz", "rx", "ry", "rz"))
        elif key == "axis":
            root.axis = _order(path, at, "".join(words))
        elif key == "position":
            skeleton.position = tuple(values_of(path, at, words, 3))
        elif key == "orientation":
            root.axis_angles = tuple(value * skeleton.radians for value in values_of(path, at, words, 3))
    skeleton.bones[ROOT] = root


def _bones(skeleton: AsfSkeleton, section: Section) -> Iterator[AsfBone]:
    """The bones between `begin` and `end`; limits and masses are of no use here."""
    path, bone = skeleton.path, None
    for at, (key, *words) in section:
        if key == "begin":
            bone = AsfBone(line=at)
        elif bone is None:
            refuse(path, at, f"{key!r} stands outside of begin and end")
        elif key == "end":
            yield bone
            bone = None
        elif key == "name":
            bone.name = " ".join(words)
        elif key == "direction":
            bone.direction = tuple(values_of(path, at, words, 3))
        elif key == "length":
            (bone.length,) = values_of(path, at, words, 1)
        elif key == "axis":
            angles = values_of(path, at, words[:3], 3)
            bone.axis_angles = tuple(value * skeleton.radians for value in angles)
            bone.axis = _order(path, at, "".join(words[3:]))
        elif key == "dof":
            bone.dof = _degrees_of_freedom(path, at, words, ("rx", "ry", "rz"))
    if bone is not None:
        refuse(path, section[-1][0], f"bone {bone.name!r} has no end: is the file truncated?")


def _read_hierarchy(skeleton: AsfSkeleton, section: Section) -> None:
    path, placed = skeleton.path, {ROOT}
    for at, words in section:
        if words in (["begin"], ["end"]):
            continue
        for name in words:
            if name not in skeleton.bones:
                refuse(path, at, f"{name!r} is no bone of this skeleton: is a name misspelt?")
        parent, *children = words
        if parent not in placed or placed & set(children):
            refuse(path, at, f"{parent!r} must stand below root before its children, and each child once")
        skeleton.parents.update(dict.fromkeys(children, parent))
        placed.update(children)
    if len(placed) < len(skeleton.bones):
        missing = sorted(set(skeleton.bones) - placed)
        refuse(path, section[-1][0] if section else 0, f"bones without parent: {', '.join(missing)}; is it truncated?")


def read_amc(path: str, skeleton: AsfSkeleton, fps: float) -> MocapClip:
    """Read an AMC file.

    Args:
        path: local file.
        skeleton: whose motion it is.
        fps: frames per second, which the format does not hold; 120 in most of CMU's files.

    Returns:
        Its motion. Joints are called like the bones that end in them; those they begin in `<bone>_start`.

    Raises:
        OSError: if it cannot be opened.
        ValueError: naming file and line, if a frame lacks a bone, or a bone is unknown or has a wrong number of values.
    """
    movable = {name: bone for name, bone in skeleton.bones.items() if bone.dof}
    frames: list[dict[str, list[float]]] = []
    lines, radians = read_lines(path), skeleton.radians
    at = 0
    for at, line in enumerate(lines, 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if words[0].startswith(":"):
            radians = {":degrees": np.pi / 180, ":radians": 1.0}.get(words[0].lower(), radians)
        elif len(words) == 1 and words[0].isdigit():
            _require_bones(path, at, frames, movable)
            frames.append({})
        elif words[0] not in skeleton.bones:
            refuse(path, at, f"{words[0]!r} is no bone of {skeleton.path}: does that skeleton belong to this motion?")
        elif not frames:
            refuse(path, at, "values before the number of the first frame")
        else:
            frames[-1][words[0]] = values_of(path, at, words[1:], len(skeleton.bones[words[0]].dof))
    if not frames:
        refuse(path, at, "there is no frame: is it an AMC file, and complete?")
    _require_bones(path, at, frames, movable)
    values = {name: np.array([frame[name] for frame in frames]) for name in movable}
    return _clip(path, skeleton, values, radians, len(frames), fps)


def _require_bones(path: str, at: int, frames: list[dict], movable: dict[str, AsfBone]) -> None:
    """The frame that ends before this line has values for all bones that move."""
    missing = [name for name in movable if frames and name not in frames[-1]]
    if missing:
        refuse(path, at, f"frame {len(frames)} ends without {', '.join(missing)}: is it truncated? Copy the file again")


def _clip(
    path: str, skeleton: AsfSkeleton, values: dict[str, Array], radians: float, count: int, fps: float
) -> MocapClip:
    """Joints at the beginning and the end of every bone; that at the beginning turns the bone."""
    names, parents = [ROOT], [-1]
    rotations = [_rotation(skeleton.bones[ROOT], values, radians, count)]
    shift = np.zeros((count, 3)) + skeleton.position
    for column, dof in enumerate(skeleton.bones[ROOT].dof):
        if dof[0] == "t":
            shift[:, "xyz".index(dof[1])] += values[ROOT][:, column]
    offsets = [shift]
    for name, parent in skeleton.parents.items():
        bone = skeleton.bones[name]
        names += [f"{name}_start", name]
        parents += [names.index(parent), len(names) - 2]
        rotations += [_rotation(bone, values, radians, count), np.tile(np.eye(3), (count, 1, 1))]
        offsets += [np.zeros((count, 3)), np.tile(np.array(bone.direction) * bone.length, (count, 1))]
    return MocapClip(
        path, tuple(names), tuple(parents), np.stack(rotations, 1), np.stack(offsets, 1), fps, skeleton.metres
    )


def _rotation(bone: AsfBone, values: dict[str, Array], radians: float, count: int) -> Array:
    """(T, 3, 3) C M C^-1: the motion M about the bone's own axes C."""
    angles = np.zeros((count, 3))
    for column, dof in enumerate(bone.dof):
        if dof[0] == "r":
            angles[:, bone.axis.index(dof[1])] = values[bone.name][:, column] * radians
    own = euler_rotations(bone.axis[::-1], np.array(bone.axis_angles)[None, ::-1])
    motion = euler_rotations(bone.axis[::-1], angles[:, ::-1])
    return own @ motion @ np.swapaxes(own, -1, -2)
