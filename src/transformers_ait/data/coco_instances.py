"""`coco_instances`: a `datasets` builder for COCO, LVIS and whatever else has annotation files of that form.

After `import transformers_ait.data`:

    splits = datasets.load_dataset("coco_instances", data_dir="coco")
    split = datasets.load_dataset(
        "coco_instances", split="validation", validation_annotations="lvis_v1_val.json", validation_images="coco"
    )
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from datasets.builder import Key

from . import coco_files
from .coco_files import (
    LVIS_COLUMNS,
    Annotations,
    ImageStore,
    check_images,
    locate_images,
    make_rows,
    read_annotations,
)
from .image_files import NamedImage, file_stamp, is_url, list_files, resolve
from .image_files_builder import ROWS_PER_SHARD, SHARED_MODULES, ImageFilesBuilder, ImageFilesConfig
from .registration import source_hash

CODE_HASH = source_hash((sys.modules[__name__], coco_files, *SHARED_MODULES))

OFFICIAL_NAMES = {"train": "train2017", "validation": "val2017"}


@dataclass(frozen=True)
class SplitFiles:
    """Where a split lies: absolute paths or URLs."""

    annotations: str
    images: ImageStore


@dataclass
class COCOInstancesConfig(ImageFilesConfig):
    """Where annotation files and images lie. Relative paths are taken from `data_dir` where it is given.

    Args:
        data_dir: folder of the official layout: `annotations/instances_{train,val}2017.json` with `train2017`,
            `val2017`, as folders or as .zip files. A split of which either is missing is left out.
        train_annotations: annotation file of the train split, COCO or LVIS; None takes the official one.
        train_images: its images: a folder, or a .zip file that stays packed. LVIS takes images from two official
            folders: give the folder that holds both.
        validation_annotations: the same for the validation split.
        validation_images: the same for the validation split.
        skip_images_without_objects: whether to leave out images that have no annotation.

    Raises:
        FileNotFoundError: if a file does not exist.
        TypeError: if an option is of the wrong type.
        ValueError: if options are missing.
    """

    train_annotations: str | None = None
    train_images: str | None = None
    validation_annotations: str | None = None
    validation_images: str | None = None
    skip_images_without_objects: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.skip_images_without_objects, bool):
            value = self.skip_images_without_objects
            raise TypeError(f"skip_images_without_objects must be True or False, got {value!r}")
        if self.data_dir is not None and (is_url(self.data_dir) or not os.path.isdir(resolve(self.data_dir))):
            raise FileNotFoundError(f"data_dir must be an existing local folder, got {self.data_dir!r}")

    def split_files(self) -> dict[str, SplitFiles]:
        """The splits that there are.

        Raises:
            FileNotFoundError: if a file that an option names, or every official file, is missing.
            ValueError: if an option lacks its counterpart, or nothing is asked for.
        """
        splits = {split: files for split in OFFICIAL_NAMES if (files := self._find(split))}
        if splits:
            return splits
        if self.data_dir is None:
            raise ValueError(
                "coco_instances needs data_dir, the folder with annotations/instances_train2017.json and train2017 (or "
                "the same with val2017), or train_annotations with train_images, or validation_annotations with "
                "validation_images"
            )
        raise FileNotFoundError(
            f"no split in data_dir={self.data_dir!r}: expected annotations/instances_train2017.json with train2017 or "
            "train2017.zip, or the same with val2017; other names go into train_annotations, train_images, "
            "validation_annotations and validation_images"
        )

    def _find(self, split: str) -> SplitFiles | None:
        """The files of one split, None where neither the options nor `data_dir` has any."""
        annotations, images = getattr(self, f"{split}_annotations"), getattr(self, f"{split}_images")
        named = annotations is not None or images is not None
        if self.data_dir is None:
            if not named:
                return None
            if annotations is None or images is None:
                raise ValueError(f"{split}_annotations and {split}_images belong together: without data_dir give both")
        root = resolve(self.data_dir or "")
        official = OFFICIAL_NAMES[split]
        annotations = resolve(annotations or f"annotations/instances_{official}.json", root)
        if images is None:
            images = official if os.path.isdir(resolve(official, root)) else f"{official}.zip"
        store = ImageStore(resolve(images, root))
        if not named and not (os.path.isfile(annotations) and os.path.exists(store.path)):
            return None
        if not is_url(annotations) and not os.path.isfile(annotations):
            raise FileNotFoundError(
                f"{split}_annotations: {annotations} does not exist (a relative path is taken from data_dir)"
            )
        store.check(f"{split}_images")
        return SplitFiles(annotations, store)

    def sources(self) -> Iterable[Any]:
        """See `ImageFilesConfig.sources`."""
        parts: list[Any] = [self.skip_images_without_objects]
        for split, files in self.split_files().items():
            path = files.images.path
            content = file_stamp(path) if files.images.is_zip else sorted(list_files(path).items())
            parts.append((split, files.annotations, file_stamp(files.annotations), path, content))
        return parts


def _features(categories: Sequence[str], lvis: bool) -> datasets.Features:
    integer, number, text = (datasets.Value(name) for name in ("int64", "float64", "string"))
    objects = {
        "id": datasets.List(integer),
        "category": datasets.List(datasets.ClassLabel(names=list(categories))),
        "category_id": datasets.List(integer),
        "bbox": datasets.List(datasets.List(number, length=4)),
        "area": datasets.List(number),
        "iscrowd": datasets.List(integer),
        "segmentation": datasets.List(text),
    }
    columns = {
        "image": NamedImage(),
        "image_id": integer,
        "file_name": text,
        "width": integer,
        "height": integer,
        "objects": objects,
    }
    extra = {name: datasets.List(integer) for name in LVIS_COLUMNS if lvis}
    return datasets.Features(columns | extra)


def _require_same_categories(contents: Sequence[Annotations]) -> None:
    first = contents[0]
    for other in contents[1:]:
        if other.categories != first.categories:
            different = sorted(first.categories.items() ^ other.categories.items())
            raise ValueError(
                f"{first.path} and {other.path} define different categories ({len(different)} entries differ, first "
                f"{different[0]}): load them one by one, or give both files the same list"
            )


class COCOInstances(ImageFilesBuilder):
    """Photographs with their objects; one row per image, nothing decoded before it is asked for.

    Columns:
        image: the image file (its bytes where it comes from a zip).
        image_id: COCO's number.
        file_name: name in the annotation file, else the path in the image folder.
        width: pixels.
        height: pixels.
        objects: lists, one entry per object in the order of the annotation file: `id`, `category` (label, contiguous in
            order of COCO's category id), `category_id` (COCO's), `bbox` (x, y, width, height in pixels), `area`
            (pixels), `iscrowd` (0 or 1), `segmentation` (JSON text: polygons or run lengths, as in the file).
        neg_category_ids: LVIS files only: COCO-style ids of categories known to be absent.
        not_exhaustive_category_ids: LVIS files only: ids of categories of which not every object is marked.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = COCOInstancesConfig
    CODE_HASH = CODE_HASH
    config: COCOInstancesConfig

    def _info(self) -> datasets.DatasetInfo:
        # The categories stand in the annotation files, which are too large to be read on every load.
        return datasets.DatasetInfo(
            description="Images with instance annotations in COCO's form.", homepage="https://cocodataset.org"
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        splits = self.config.split_files()
        contents = {split: read_annotations(files.annotations) for split, files in splits.items()}
        _require_same_categories(list(contents.values()))
        lvis = any(name in image for content in contents.values() for image in content.images for name in LVIS_COLUMNS)
        if self.info.features is None:
            self.info.features = _features(list(next(iter(contents.values())).categories.values()), lvis)
        generators = []
        for split, files in splits.items():
            content = contents.pop(split)
            places = locate_images(content, files.images)
            rows = make_rows(content, places, self.config.skip_images_without_objects)
            # Streaming starts at once: it looks at a sample only.
            check_images(rows, files.images, whole=not dl_manager.is_streaming)
            if not lvis:
                rows = [{name: value for name, value in row.items() if name not in LVIS_COLUMNS} for row in rows]
            # Text takes a fraction of the memory of Python objects, and is shared by forked workers.
            parts = [rows[start : start + ROWS_PER_SHARD] for start in range(0, len(rows), ROWS_PER_SHARD)]
            shards = [json.dumps(part).encode() for part in parts]
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs={"store": files.images, "shards": shards}))
        return generators

    def _generate_examples(self, store: ImageStore, shards: list[bytes]) -> Iterator[tuple[Any, dict[str, Any]]]:
        for shard, text in enumerate(shards):
            for offset, row in enumerate(json.loads(text)):
                yield Key(shard, offset), {**row, "image": store.value(row["image"])}
