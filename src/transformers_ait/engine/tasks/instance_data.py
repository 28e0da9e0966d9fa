"""Images with objects from a `datasets` dataset, and evaluation of predicted objects over processes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from ...coco_annotations_ait import annotation_box, annotation_mask, encode_masks
from ...mask_geometry_ait import proper_boxes
from ...metrics import coco_metrics
from ..loop.evaluation_batches import evaluate_in_batches
from ..loop.streaming import RowStream
from ..recipes.reading import RecipeError
from ..recipes.sections import DataRecipe
from .loading import load_rows, load_stream

MAP_COLUMN = "instance_map"
NUCLEUS_SEED = 0  # of sampled coordinates and classes, so that an evaluation repeats itself
REPORTED = ("AP", "AP50", "AP75")
PREFIXES = {"bbox": "box", "segm": "mask", "boundary": "boundary"}


@dataclass(frozen=True)
class ImageObjects:
    """Objects of one image that can be learnt: no crowds, nothing without area.

    Args:
        boxes: (N, 4) float32 xyxy pixels.
        class_labels: (N,) int64.
        masks: (N, H, W) bool.
    """

    boxes: Tensor
    class_labels: Tensor
    masks: Tensor


class InstanceRows:
    """Rows of a dataset with the columns `image` and `objects`.

    `objects` holds lists: `id`, `category` (a `ClassLabel`), `bbox` (x, y, width, height in pixels), `area`, and either
    `segmentation` (COCO's polygons or run-length encoding as JSON) and `iscrowd`, or a column `instance_map` beside it
    (8-bit picture, pixels hold an entry of `id`).

    Args:
        rows: the dataset.
        in_memory: keep decoded images and instance maps; otherwise every access decodes.
        boxes_alone: objects with an empty `segmentation` are their boxes; otherwise they are errors.

    Raises:
        RecipeError: a column is missing.
    """

    def __init__(self, rows: datasets.Dataset, in_memory: bool = False, boxes_alone: bool = False) -> None:
        self._check_features(rows.features)
        self.boxes_alone = boxes_alone
        self.stream: RowStream | None = None
        pictures = ["image", MAP_COLUMN] if self.has_map else ["image"]
        self.pictures = {name: rows.select_columns(name) for name in pictures}
        self.annotated = rows.select_columns("objects")
        self.in_memory = in_memory
        self._decoded: dict[tuple[str, int], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.annotated)

    def image(self, index: int) -> Tensor:
        """Image (3, H, W) uint8."""
        return torch.from_numpy(self._picture("image", index)).permute(2, 0, 1)

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """Annotations in COCO's form, crowds included; `category_id` is the class index, masks are arrays or COCO's."""
        columns = self._objects(index)
        entries = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        numbers = self._picture(MAP_COLUMN, index) if self.has_map and entries else None
        for entry in entries:
            entry["category_id"] = entry.pop("category")
            if numbers is not None:
                entry["segmentation"] = numbers == entry["id"]
            else:
                entry["segmentation"] = json.loads(entry["segmentation"])
        return entries

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image."""
        if ("image", index) in self._decoded:
            height, width = self._decoded["image", index].shape[:2]
            return height, width
        picture = self.pictures["image"][index]["image"]
        return picture.height, picture.width

    def objects(self, index: int) -> ImageObjects:
        """What can be learnt from an image.

        Raises:
            ValueError: an annotation is unusable, named by image and annotation; a RecipeError where it lacks a mask.
        """
        size = self.size(index)
        boxes, labels, masks = [], [], []
        for entry in self.annotations(index):
            if entry.get("iscrowd", 0):
                continue
            where = f"Annotation {entry['id']} of {self._name(index)}"
            box = annotation_box(entry, size, where)
            if box is None or not proper_boxes(box.float()):
                continue
            if has_mask(entry):
                mask = annotation_mask(entry, size, where)
            elif self.boxes_alone:
                mask = _box_mask(box, size)
            else:
                raise RecipeError(
                    f"{where} has no segmentation. Boxes alone train a detector: --model.config.tasks '[detection]'."
                )
            if mask.any():
                boxes.append(box.float())
                labels.append(entry["category_id"])
                masks.append(mask)
        return ImageObjects(
            torch.stack(boxes) if boxes else torch.zeros(0, 4),
            torch.tensor(labels, dtype=torch.long),
            torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool),
        )

    def index_objects(self) -> list[tuple[int, int]]:
        """(row, position within `annotations`) of every object with area, crowds left out, from boxes alone."""
        found = []
        for row, columns in enumerate(tqdm(self.annotated["objects"], desc="objects", leave=False)):
            crowds = columns.get("iscrowd") or [0] * len(columns["bbox"])
            for number, (box, crowd) in enumerate(zip(columns["bbox"], crowds, strict=True)):
                if not crowd and min(box[2:]) > 0:
                    found.append((row, number))
        return found

    def ground_truth(self, count: int) -> dict[str, Any]:
        """COCO annotations of rows 0 .. count - 1, crowds included; image ids are row numbers."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            height, width = self.size(index)
            images.append({"id": index, "height": height, "width": width})
            for entry in self.annotations(index):
                mask = entry["segmentation"]
                if isinstance(mask, np.ndarray):
                    mask = encode_masks(torch.from_numpy(mask)[None])[0]
                own = {"id": len(annotations) + 1, "image_id": index, "segmentation": mask}
                annotations.append({"iscrowd": 0, **entry, **own})
        categories = [{"id": number, "name": name} for number, name in enumerate(self.class_names)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _check_features(self, features: datasets.Features) -> None:
        missing = {"image", "objects"} - set(features)
        if missing:
            raise RecipeError(f"The dataset has no column {sorted(missing)}; its columns are {list(features)}.")
        fields = features["objects"]
        self.has_map = MAP_COLUMN in features
        if not self.has_map and "segmentation" not in fields:
            raise RecipeError(
                f"The dataset's objects have neither `segmentation` nor a column `{MAP_COLUMN}`; they have "
                f"{sorted(fields)}."
            )
        names = getattr(fields["category"].feature, "names", None)
        if names is None:
            raise RecipeError("The dataset's objects.category must be a ClassLabel, which names the classes.")
        self.class_names: list[str] = list(names)

    def _name(self, index: int) -> str:
        return f"row {index}"

    def _objects(self, index: int) -> dict[str, list[Any]]:
        return self.annotated[index]["objects"]

    def _picture(self, column: str, index: int) -> np.ndarray:
        if (column, index) in self._decoded:
            return self._decoded[column, index]
        picture = self.pictures[column][index][column]
        pixels = np.array(picture.convert("RGB") if column == "image" else picture)
        if self.in_memory:
            self._decoded[column, index] = pixels
        return pixels


class StreamedInstanceRows(InstanceRows):
    """The same of a stream; what `InstanceRows` takes indices for are encoded rows here, and the length is unknown (0).

    Args:
        stream: the data.
        boxes_alone: as `InstanceRows`.

    Raises:
        RecipeError: a column is missing.
    """

    def __init__(self, stream: RowStream, boxes_alone: bool = False) -> None:
        self._check_features(stream.features)
        self.boxes_alone = boxes_alone
        self.stream = stream

    def __len__(self) -> int:
        return 0

    def size(self, index: Any) -> tuple[int, int]:
        """Height and width of an image."""
        height, width = self._picture("image", index).shape[:2]
        return height, width

    def index_objects(self) -> list[tuple[int, int]]:
        """Not possible: objects of a stream have no numbers."""
        raise RecipeError("data.streaming is not for tokenizers of masks, which read objects by number; leave it out.")

    def _name(self, index: Any) -> str:
        return f"image {index['image_id']}" if "image_id" in index else "a streamed row"

    def _objects(self, index: Any) -> dict[str, list[Any]]:
        return index["objects"]

    def _picture(self, column: str, index: Any) -> np.ndarray:
        assert self.stream is not None
        picture = self.stream.column(index, column)
        return np.array(picture.convert("RGB") if column == "image" else picture)


def has_mask(entry: Mapping[str, Any]) -> bool:
    """Whether an annotation in COCO's form, or a result, has a segmentation that is not an empty list."""
    segmentation = entry.get("segmentation")
    return segmentation is not None and not (isinstance(segmentation, list) and not segmentation)


def _box_mask(box: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask (H, W) bool of the pixels that an xyxy box touches."""
    mask = torch.zeros(size, dtype=torch.bool)
    left, top = box[:2].floor().int().tolist()
    right, bottom = box[2:].ceil().int().tolist()
    mask[top:bottom, left:right] = True
    return mask


def load_instance_rows(recipe: DataRecipe, boxes_alone: bool = False) -> tuple[InstanceRows, InstanceRows]:
    """Training and evaluation rows of a recipe.

    Args:
        recipe: which data.
        boxes_alone: as `InstanceRows`, for tasks that need no masks.

    Raises:
        RecipeError: the dataset, a split or a column does not exist, or the splits differ in their classes.
    """
    eval_rows = InstanceRows(load_rows(recipe, recipe.eval_split), recipe.in_memory, boxes_alone)
    train_rows: InstanceRows
    if recipe.streaming:
        train_rows = StreamedInstanceRows(load_stream(recipe, recipe.train_split), boxes_alone)
    else:
        train_rows = InstanceRows(load_rows(recipe, recipe.train_split), recipe.in_memory, boxes_alone)
    if train_rows.class_names != eval_rows.class_names:
        raise RecipeError(f"The splits {recipe.train_split!r} and {recipe.eval_split!r} have different classes.")
    return train_rows, eval_rows


def evaluate_objects(
    rows: InstanceRows,
    count: int,
    predict: Callable[[list[int]], list[dict[str, Any]]],
    iou_types: Sequence[str],
    batch_size: int,
    accelerator: Accelerator,
) -> dict[str, float]:
    """COCO metrics over rows that the processes share out.

    Args:
        rows: the data.
        count: number of rows; rows 0 .. count - 1 are evaluated.
        predict: row numbers to COCO results, with row numbers as image ids and class indices as category ids.
        iou_types: of "bbox", "segm" and "boundary".
        batch_size: rows per call of `predict`.
        accelerator: the processes.

    Returns:
        `box_AP`, `box_AP50`, `box_AP75`, likewise `mask_` and `boundary_`, in [0, 1]; the same in every process.
    """

    def by_row(indices: list[int]) -> list[list[dict[str, Any]]]:
        return results_by_row(predict(indices), indices)

    found = evaluate_in_batches(by_row, count, batch_size, accelerator)
    figures = object_metrics(found, lambda: rows.ground_truth(count), iou_types, accelerator)
    return {f"{PREFIXES[x]}_{name}": figures[f"{PREFIXES[x]}_{name}"] for x in iou_types for name in REPORTED}


def results_by_row(results: Sequence[dict[str, Any]], indices: Sequence[int]) -> list[list[dict[str, Any]]]:
    """COCO results of some rows, whose numbers are the image ids, as one list per row."""
    found: dict[int, list[dict[str, Any]]] = {index: [] for index in indices}
    for entry in results:
        found[entry["image_id"]].append(entry)
    return [found[index] for index in indices]


def object_metrics(
    found: Sequence[Sequence[dict[str, Any]]],
    make_truth: Callable[[], dict[str, Any]],
    iou_types: Sequence[str],
    accelerator: Accelerator,
    measure: Callable[..., dict[str, float]] = coco_metrics,
) -> dict[str, float]:
    """Figures such as `box_AP` and `mask_AP50` in [0, 1], computed by the main process for all.

    Args:
        found: each row's COCO results.
        make_truth: annotations in the form that `measure` takes; called in the main process alone.
        iou_types: of "bbox", "segm" and "boundary".
        accelerator: the processes.
        measure: `coco_metrics` or `lvis_metrics`.
    """
    figures: list[dict[str, float]] = [{}]
    if accelerator.is_main_process:
        results, truth = [entry for of_row in found for entry in of_row], make_truth()
        for iou_type in iou_types:
            values = measure(results, truth, iou_type)
            figures[0] |= {f"{PREFIXES[iou_type]}_{name}": value for name, value in values.items()}
    return broadcast_object_list(figures)[0]
