"""COCO and LVIS annotation files, checked entry by entry, and the image folders or zip archives that belong to them."""

import json
import os
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import fsspec

from .image_files import (
    NamedImage,
    evenly_spaced,
    file_stamp,
    is_url,
    list_files,
    name_first,
    require_complete_images,
    require_files,
)

Entry = dict[str, Any]

IMAGE_TYPES = {"id": int, "width": int, "height": int}
OBJECT_TYPES = {
    "id": int,
    "image_id": int,
    "category_id": int,
    "bbox": list,
    "area": (int, float),
    "segmentation": (list, dict),
}
CATEGORY_TYPES = {"id": int, "name": str}

LVIS_COLUMNS = ("neg_category_ids", "not_exhaustive_category_ids")
"""Per image in LVIS files: categories known to be absent, and categories of which not every object is marked."""


@dataclass(frozen=True)
class Annotations:
    """Content of an annotation file whose references are known to hold."""

    path: str
    images: list[Entry]
    objects: list[Entry]
    categories: dict[int, str]
    """Names by COCO's id, in order of the id."""


def read_annotations(path: str) -> Annotations:
    """Read and check an annotation file.

    Args:
        path: local path or URL of a JSON file.

    Raises:
        ValueError: if it is no JSON or no COCO file, has no images, an entry lacks a value, ids repeat, or an
            annotation belongs to no image or category of the file.
    """
    try:
        with fsspec.open(path, "rb") as file:
            content = json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): is it truncated? Download it again") from error
    images, objects = (
        _entries(content, path, "images", IMAGE_TYPES),
        _entries(content, path, "annotations", OBJECT_TYPES),
    )
    categories = _entries(content, path, "categories", CATEGORY_TYPES)
    if not images:
        raise ValueError(f"{path} has no images: an empty split")
    nameless = [str(image["id"]) for image in images if not candidate_names(image)]
    _refuse(nameless, len(images), path, "images have neither file_name nor coco_url", "ids")
    _require_unique([image["id"] for image in images], path, "image ids")
    _require_unique([item["id"] for item in objects], path, "annotation ids")
    _require_unique([category["id"] for category in categories], path, "category ids")
    _require_unique([category["name"] for category in categories], path, "category names")
    names = {category["id"]: category["name"] for category in sorted(categories, key=lambda entry: entry["id"])}
    _require_references(objects, "image_id", {image["id"] for image in images}, path)
    _require_references(objects, "category_id", names.keys(), path)
    crooked = [str(item["id"]) for item in objects if len(item["bbox"]) != 4 or not all(map(_is_number, item["bbox"]))]
    _refuse(crooked, len(objects), path, "annotations have a bbox that is not x, y, width, height", "ids")
    unsure = [str(item["id"]) for item in objects if item.get("iscrowd", 0) not in (0, 1)]
    _refuse(unsure, len(objects), path, "annotations have an iscrowd that is neither 0 nor 1", "ids")
    return Annotations(path, images, objects, names)


def _entries(content: Any, path: str, name: str, types: dict[str, Any]) -> list[Entry]:
    """One of the file's lists, every entry of which has values of these types."""
    if not isinstance(content, dict) or not isinstance(content.get(name), list):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} is no COCO instance file: it has no list {name!r}, only {found}")
    for index, entry in enumerate(content[name]):
        wrong = [
            key for key, kind in types.items() if not isinstance(entry, dict) or not _is_kind(entry.get(key), kind)
        ]
        if wrong:
            shown = f"{entry!r:.120}"
            raise ValueError(f"{path}: entry {index} of {name!r} has no valid {', '.join(wrong)}: {shown}")
    return content[name]


def _is_kind(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, and a whole number one that int64 can hold."""
    return isinstance(value, kind) and (not isinstance(value, int) or -(2**63) <= value < 2**63)


def _is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that float64 can hold."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _refuse(culprits: Sequence[str], total: int, path: str, what: str, kind: str) -> None:
    if culprits:
        raise ValueError(f"{path}: {len(culprits)} of {total} {what}; {kind} {name_first(culprits)}")


def _require_unique(values: Sequence[Any], path: str, what: str) -> None:
    repeated = [str(value) for value, count in Counter(values).items() if count > 1]
    _refuse(repeated, len(values), path, f"{what} occur more than once", "namely")


def _require_references(objects: Sequence[Entry], key: str, known: Iterable[int], path: str) -> None:
    known = set(known)
    lost = [f"{item['id']} ({key} {item[key]})" for item in objects if item[key] not in known]
    _refuse(lost, len(objects), path, f"annotations have an unknown {key}", "annotations")


def candidate_names(image: Entry) -> list[str]:
    """Paths under which an image may be found, the likeliest first: LVIS files give only the URL of COCO's copy."""
    names = [str(image["file_name"])] if image.get("file_name") else []
    if url := image.get("coco_url"):
        parts = str(url).split("/")
        names += ["/".join(parts[-2:]), parts[-1]]
    return names


def _open_zip(path: str) -> zipfile.ZipFile:
    """The archive, kept open: its table of contents takes long to read."""
    # Processes cannot share a file position, and a replaced file is another one.
    return _open_zip_once(path, os.getpid(), "" if is_url(path) else file_stamp(path))


@lru_cache(maxsize=4)
def _open_zip_once(path: str, process: int, stamp: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(fsspec.open(path, "rb").open())
    except zipfile.BadZipFile as error:
        raise OSError(f"{path} is no complete zip archive ({error}); download it again") from error


@dataclass(frozen=True)
class ImageStore:
    """Images in a local folder, or in a zip archive (local or a URL) that stays packed."""

    path: str

    @property
    def is_zip(self) -> bool:
        """Whether this is an archive."""
        return self.path.endswith(".zip")

    def check(self, option: str) -> None:
        """Refuse what is neither.

        Raises:
            FileNotFoundError: if there is nothing at this path.
            ValueError: if it is a file other than a zip, or the URL of a folder.
        """
        if is_url(self.path):
            if not self.is_zip:
                raise ValueError(
                    f"{option} must be a local folder or a .zip, got {self.path!r}: images of a URL need a zip"
                )
        elif not os.path.exists(self.path):
            raise FileNotFoundError(f"{option}: {self.path} does not exist (a relative path is taken from data_dir)")
        elif self.is_zip == os.path.isdir(self.path):
            raise ValueError(f"{option} must be a folder or a .zip file, got {self.path!r}")

    def names(self) -> dict[str, str]:
        """Places in the store by the names that annotation files may use for them."""
        if not self.is_zip:
            return {name: name for name in list_files(self.path)}
        members = [name for name in _open_zip(self.path).namelist() if not name.endswith("/")]
        # train2017.zip holds train2017/000000000009.jpg, which annotation files call 000000000009.jpg.
        return {name.partition("/")[2]: name for name in members if "/" in name} | {name: name for name in members}

    def value(self, place: str) -> dict[str, Any]:
        """What `datasets.Image` stores: the path of a file, or the bytes of an archive's member.

        Raises:
            OSError: naming archive and member, if its bytes are damaged.
        """
        path = f"{self.path}/{place}"
        if not self.is_zip:
            return {"path": path, "bytes": None}
        try:
            return {"path": path, "bytes": _open_zip(self.path).read(place)}
        except (zipfile.BadZipFile, EOFError) as error:
            raise OSError(f"{path} is damaged ({error}); download the archive again") from error


def locate_images(annotations: Annotations, store: ImageStore) -> list[str]:
    """Place in the store of every image of the file.

    Raises:
        FileNotFoundError: if images are missing; names the first three and says how many.
    """
    places = store.names()
    found = [
        next((places[name] for name in candidate_names(image) if name in places), None) for image in annotations.images
    ]
    missing = [
        candidate_names(image)[0] for image, place in zip(annotations.images, found, strict=True) if place is None
    ]
    fix = f"{annotations.path} names them: copy them there, or use an annotation file without them"
    require_files(missing, len(found), store.path, fix)
    return [place for place in found if place is not None]


def make_rows(annotations: Annotations, places: Sequence[str], skip_empty: bool) -> list[Entry]:
    """One row per image, in the order of the file; `image` holds the place in the store.

    Args:
        annotations: a checked file.
        places: see `locate_images`.
        skip_empty: whether to leave out images without any object.

    Raises:
        ValueError: if no image is left.
    """
    labels = {number: label for label, number in enumerate(annotations.categories)}
    objects: dict[int, list[Entry]] = {image["id"]: [] for image in annotations.images}
    for item in annotations.objects:
        objects[item["image_id"]].append(item)
    rows = [
        {
            "image": place,
            "image_id": image["id"],
            "file_name": image.get("file_name") or place,
            "width": image["width"],
            "height": image["height"],
            "objects": _columns(objects[image["id"]], labels),
            **{name: image.get(name, []) for name in LVIS_COLUMNS},
        }
        for image, place in zip(annotations.images, places, strict=True)
        if objects[image["id"]] or not skip_empty
    ]
    if not rows:
        raise ValueError(f"{annotations.path} has no object, so skip_images_without_objects=True leaves an empty split")
    return rows


def _columns(objects: Sequence[Entry], labels: dict[int, int]) -> dict[str, list[Any]]:
    return {
        "id": [item["id"] for item in objects],
        "category": [labels[item["category_id"]] for item in objects],
        "category_id": [item["category_id"] for item in objects],
        "bbox": [[float(value) for value in item["bbox"]] for item in objects],
        "area": [float(item["area"]) for item in objects],
        "iscrowd": [int(item.get("iscrowd", 0)) for item in objects],
        "segmentation": [json.dumps(item["segmentation"], separators=(",", ":")) for item in objects],
    }


def check_images(rows: Sequence[Entry], store: ImageStore, whole: bool) -> None:
    """Look at the images before any time is spent on them.

    Args:
        rows: see `make_rows`.
        store: where they lie.
        whole: whether to look for truncation in every file of a folder, not only in a sample.

    Raises:
        OSError: if an image cannot be decoded.
        ValueError: if it does not have the size that the annotation file gives.
    """
    if whole and not store.is_zip:
        require_complete_images([f"{store.path}/{row['image']}" for row in rows])
    for row in evenly_spaced(rows):
        size = NamedImage().decode_example(store.value(row["image"])).size
        if size != (row["width"], row["height"]):
            raise ValueError(
                f"{store.path}/{row['image']} is {size[0]} x {size[1]}, but its annotations are made for "
                f"{row['width']} x {row['height']}: use the original images, neither resized nor rotated by EXIF"
            )
