"""Evaluation of objects: average precision of boxes, masks and boundaries, and of masks that a tokenizer re-encoded."""

import csv
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import torch
from accelerate import Accelerator
from transformers.utils import logging

from ...coco_annotations_ait import contiguous_categories
from ...configuration_tokenizers import AiTVQVAEConfig
from ...data import COCOInstancesConfig
from ...data.coco_files import LVIS_COLUMNS
from ...image_processing_ait_instance import AiTInstanceImageProcessor
from ...metrics import coco_metrics, lvis_metrics, object_errors
from ...metrics.instance_inputs import mask_tools, shape_for_overlap
from ...modeling_ait import AiTForDenseAndInstancePrediction
from ...modeling_ait_vqvae import AiTVQVAEModel
from ..loop.evaluation_batches import evaluate_in_batches
from ..tasks.instance_data import NUCLEUS_SEED, InstanceRows, object_metrics, results_by_row
from ..tasks.instance_panel import MIN_SCORE, instance_panel
from ..tasks.vqvae import reencode_masks
from .dense import token_modes
from .inputs import (
    Checkpoint,
    EvaluationError,
    EvaluationSettings,
    find_processor,
    require_package,
)

logger = logging.get_logger(__name__)

IOU_TYPES = {"detection": ("bbox",), "instance": ("bbox", "segm", "boundary")}
TOKENIZER_IOU_TYPES = ("segm", "boundary")
MATCH_IOU = 0.5
_ID_COLUMNS = ("image_id", *LVIS_COLUMNS)

Entry = dict[str, Any]
Predict = Callable[[list[int]], list[list[Entry]]]
"""Row numbers to each row's COCO results; image ids are row numbers, category ids the data's class indices."""


@dataclass(frozen=True)
class ClassMatch:
    """Classes of a model and of the data, matched by name.

    Args:
        to_data: class index of the data by class index of the model, for the names that both have.
        unknown: names of the data that the model does not have, so that these objects cannot be found.
        unused: names of the model that the data does not have; its predictions of them are left out.
    """

    to_data: dict[int, int]
    unknown: list[str]
    unused: list[str]


@dataclass(frozen=True)
class ImageScore:
    """How well one image was predicted.

    Args:
        objects: true objects, crowds left out.
        predictions: with a score of at least 0.3, as the pictures show them; those on crowds left out.
        matched: pairs of both, of one class and with an IoU of at least 0.5.
    """

    objects: int
    predictions: int
    matched: int

    @property
    def f1(self) -> float:
        """2 matched / (objects + predictions); 1 where there is nothing and nothing was predicted."""
        total = self.objects + self.predictions
        return 2 * self.matched / total if total else 1.0


class ObjectEvaluation:
    """The rows that detection, instance segmentation and mask tokenizers are evaluated on.

    Args:
        rows: with the columns of `InstanceRows`; perhaps `image_id`, and the columns of LVIS.
        settings: what to evaluate.
        accelerator: the processes.

    Raises:
        RecipeError: a column is missing.
        EvaluationError: a package is missing, or the categories of LVIS data are unknown.
    """

    def __init__(self, rows: datasets.Dataset, settings: EvaluationSettings, accelerator: Accelerator) -> None:
        self.rows = InstanceRows(rows)
        self.settings = settings
        self.accelerator = accelerator
        self.columns = {name: list(rows[name]) for name in _ID_COLUMNS if name in rows.column_names}
        self.is_lvis = any(name in rows.column_names for name in LVIS_COLUMNS)
        for package in ("pycocotools", "faster_coco_eval"):
            require_package(package, "Average precision")
        # Large files: one process alone needs what stands in them.
        self.categories = _read_categories(settings) if accelerator.is_main_process else None
        if self.categories is not None:
            self._check_categories(self.categories)
        elif self.is_lvis and accelerator.is_main_process:
            raise EvaluationError(
                "The dataset has LVIS's columns, but not how frequent its categories are; name its annotation file "
                "(--annotations FILE)."
            )

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise an EvaluationError if a checkpoint cannot predict these objects; warn of classes that it lacks."""
        if isinstance(checkpoint.config, AiTVQVAEConfig):
            return
        find_processor(checkpoint, AiTInstanceImageProcessor)
        match = self.match(checkpoint)
        if match.unknown and self.accelerator.is_main_process:
            logger.warning(
                f"{checkpoint.folder} does not know {len(match.unknown)} of the data's {len(self.rows.class_names)} "
                f"classes, whose average precision is therefore 0: {_some(match.unknown)}."
            )

    def match(self, checkpoint: Checkpoint) -> ClassMatch:
        """Classes of a task-solver and of the data.

        Raises:
            EvaluationError: no name in common.
        """
        id2label: dict[Any, str] = dict(checkpoint.config.id2label or {})
        names = [str(id2label[index]) for index in range(len(id2label))]
        try:
            return match_classes(names, self.rows.class_names)
        except EvaluationError as error:
            raise EvaluationError(f"{checkpoint.folder}: {error}") from error

    def contenders(self, checkpoint: Checkpoint) -> Iterator[tuple[str, Predict]]:
        """Ways to use a checkpoint, each with its name."""
        config, device = checkpoint.config, self.accelerator.device
        if isinstance(config, AiTVQVAEConfig):
            tokenizer = AiTVQVAEModel.from_pretrained(checkpoint.folder).eval().to(device)
            yield "re-encoded true masks", lambda indices: self._reencode(tokenizer, indices)
            return
        model = AiTForDenseAndInstancePrediction.from_pretrained(checkpoint.folder).eval().to(device)
        processor, to_data = find_processor(checkpoint, AiTInstanceImageProcessor), self.match(checkpoint).to_data
        # Detection writes no codes, so soft and hard tokens are the same there.
        detection: list[tuple[str, dict[str, bool]]] = [("detection", {})]
        modes = detection if checkpoint.objects == "detection" else token_modes(config, self.settings.soft_only)
        for label, switches in modes:
            arguments = {"task": checkpoint.objects, **switches}
            yield label, partial(self._predict, model, processor, to_data, arguments)

    def iou_types(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """What is measured of a checkpoint."""
        tokenizer = isinstance(checkpoint.config, AiTVQVAEConfig)
        return TOKENIZER_IOU_TYPES if tokenizer else IOU_TYPES[str(checkpoint.objects)]

    def measure(
        self, predict: Predict, iou_types: Sequence[str], name: str
    ) -> tuple[dict[str, float], list[list[Entry]]]:
        """Figures such as `box_AP` and `mask_AP50` in [0, 1], and each row's results; both in every process."""
        found = evaluate_in_batches(predict, len(self.rows), self.settings.batch_size, self.accelerator, name)
        measure = lvis_metrics if self.is_lvis else coco_metrics
        return object_metrics(found, lambda: self.truth, iou_types, self.accelerator, measure), found

    def write(self, found: Sequence[Sequence[Entry]], iou_type: str, folder: Path) -> list[str]:
        """Write `predictions.json` (COCO results), `per_image.csv`, and `worst.png` of the rows with the lowest F1.

        Beside them `errors.json`, what each type of error costs of the AP at an IoU of 0.5 (`object_errors`); LVIS does
        not annotate what that needs.

        In the file of predictions images and categories have the dataset's own ids: `image_id` of the rows and the ids
        of the annotation file where these are known, else row numbers and class indices.

        Returns:
            The files' names.
        """
        image_ids = self.columns.get("image_id", range(len(self.rows)))
        ids = list(range(len(self.rows.class_names)))
        if self.categories is not None:
            ids = sorted(contiguous_categories(self.categories))
        named = [
            {**entry, "image_id": image_ids[row], "category_id": ids[entry["category_id"]]}
            for row, of_row in enumerate(found)
            for entry in of_row
        ]
        (folder / "predictions.json").write_text(json.dumps(named))
        files = ["predictions.json", "per_image.csv"]
        if not self.is_lvis:
            errors = object_errors([entry for of_row in found for entry in of_row], self.truth, iou_type)
            (folder / "errors.json").write_text(json.dumps({"iou_type": iou_type, **errors}, indent=1))
            files.append("errors.json")
        scores = image_scores(self.truth, found, iou_type)
        with (folder / "per_image.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "image_id", "objects", "predictions", "matched", "f1"])
            for row, score in enumerate(scores):
                counts = (score.objects, score.predictions, score.matched)
                writer.writerow([row, image_ids[row], *counts, f"{score.f1:.6f}"])
        # Of equally bad images, those with more objects to miss.
        worst = sorted(range(len(scores)), key=lambda row: (scores[row].f1, -scores[row].objects))
        worst = worst[: self.settings.panels]
        if not worst:
            return files
        shown = [entry for row in worst for entry in found[row]]
        instance_panel(self.rows, worst, shown).save(folder / "worst.png")
        return [*files, "worst.png"]

    @cached_property
    def truth(self) -> dict[str, Any]:
        """Annotations in COCO's form, or LVIS's, by row number and class index."""
        truth = self.rows.ground_truth(len(self.rows))
        if self.is_lvis and self.categories is not None:
            index_of = contiguous_categories(self.categories)
            frequency = {index_of[entry["id"]]: entry["frequency"] for entry in self.categories}
            for entry in truth["categories"]:
                entry["frequency"] = frequency[entry["id"]]
            for row, image in enumerate(truth["images"]):
                for name in LVIS_COLUMNS:
                    image[name] = [index_of[number] for number in self.columns[name][row] or []]
        return truth

    def _predict(
        self,
        model: AiTForDenseAndInstancePrediction,
        processor: AiTInstanceImageProcessor,
        to_data: Mapping[int, int],
        arguments: dict[str, Any],
        indices: list[int],
    ) -> list[list[Entry]]:
        images = [self.rows.image(index) for index in indices]
        pixel_values = processor(images, return_tensors="pt")["pixel_values"].to(self.accelerator.device)
        generator = torch.Generator().manual_seed(NUCLEUS_SEED)
        outputs = model.generate(pixel_values, generator=generator, **arguments)
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        identity = {number: number for number in range(len(model.config.id2label or {}))}
        results = processor.post_process_coco(outputs, indices, identity, sizes)
        known = [entry for entry in results if entry["category_id"] in to_data]
        return results_by_row([entry | {"category_id": to_data[entry["category_id"]]} for entry in known], indices)

    def _reencode(self, tokenizer: AiTVQVAEModel, indices: list[int]) -> list[list[Entry]]:
        size = tokenizer.config.image_size
        return results_by_row(reencode_masks(tokenizer, size, self.rows, indices, self.accelerator.device), indices)

    def _check_categories(self, categories: Sequence[Mapping[str, Any]]) -> None:
        by_id = sorted(categories, key=lambda entry: entry["id"])
        names = [entry["name"] for entry in by_id]
        if names != self.rows.class_names:
            different = [pair for pair in zip(names, self.rows.class_names, strict=False) if pair[0] != pair[1]][:1]
            raise EvaluationError(
                f"The annotation file has other categories than the dataset: {len(names)} and "
                f"{len(self.rows.class_names)}, first difference {different}; name the file that the data came from."
            )
        if self.is_lvis and not all("frequency" in entry for entry in categories):
            raise EvaluationError("The annotation file gives its categories no `frequency`; name LVIS's own file.")


def match_classes(model_names: Sequence[str], data_names: Sequence[str]) -> ClassMatch:
    """Match classes by name.

    Raises:
        EvaluationError: no name in common.
    """
    index_of = {name: index for index, name in enumerate(data_names)}
    to_data = {number: index_of[name] for number, name in enumerate(model_names) if name in index_of}
    if not to_data:
        raise EvaluationError(
            f"no class of the model is one of the data's. The model (id2label in config.json) has "
            f"{_some(model_names)}; the data has {_some(data_names)}. Correct id2label, or take other data."
        )
    unknown = [name for name in data_names if name not in set(model_names)]
    return ClassMatch(to_data, unknown, [name for name in model_names if name not in index_of])


def image_scores(
    truth: Mapping[str, Any], found: Sequence[Sequence[Mapping[str, Any]]], iou_type: str
) -> list[ImageScore]:
    """Scores of every image, to tell the worst ones; no figure of COCO's is defined for a single image.

    Predictions choose in the order of their scores, each the object of its class that it overlaps most.

    Args:
        truth: annotations in COCO's form, whose image ids are row numbers.
        found: each row's results.
        iou_type: "bbox" compares boxes, others masks.
    """
    objects: list[list[Mapping[str, Any]]] = [[] for _ in truth["images"]]
    for entry in truth["annotations"]:
        objects[entry["image_id"]].append(entry)
    return [
        _image_score(true, of_row, iou_type, (image["height"], image["width"]))
        for true, of_row, image in zip(objects, found, truth["images"], strict=True)
    ]


def _image_score(
    true: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], iou_type: str, size: tuple[int, int]
) -> ImageScore:
    certain = sorted((x for x in found if x["score"] >= MIN_SCORE), key=lambda entry: -entry["score"])
    crowd = np.array([bool(entry["iscrowd"]) for entry in true])
    number = int((~crowd).sum()) if len(true) else 0
    if not certain or not true:
        return ImageScore(number, len(certain), 0)
    shapes = [[shape_for_overlap(entry, iou_type, size) for entry in entries] for entries in (certain, true)]
    # (predictions, objects); of a crowd any part counts as the whole.
    overlap = np.array(mask_tools().iou(*shapes, [int(x) for x in crowd]))
    classes = [np.array([entry["category_id"] for entry in entries]) for entries in (certain, true)]
    overlap[classes[0][:, None] != classes[1][None]] = 0
    free, matched, ignored = ~crowd, 0, 0
    for row in overlap:
        choices = np.where(free, row, 0)
        best = int(choices.argmax())
        if choices[best] >= MATCH_IOU:
            free[best] = False
            matched += 1
        elif (row[crowd] >= MATCH_IOU).any():
            ignored += 1
    return ImageScore(number, len(certain) - ignored, matched)


def _read_categories(settings: EvaluationSettings) -> list[Entry] | None:
    """Categories of the annotation file, None where no file is known."""
    path = settings.annotations
    if path is None and settings.dataset == "coco_instances":
        known = {entry.name for entry in dataclasses.fields(COCOInstancesConfig)}
        splits = COCOInstancesConfig(**{k: v for k, v in settings.options.items() if k in known}).split_files()
        # "validation[:50]" and "train+validation" begin with the split; all files have the same categories.
        first = re.split(r"[\[+]", settings.split)[0]
        path = splits.get(first, next(iter(splits.values()))).annotations
    if path is None:
        return None
    try:
        with fsspec.open(path, "rb") as file:
            return list(json.load(file)["categories"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"annotations {path} is no annotation file of COCO's form: {error}") from error


def _some(names: Sequence[str], count: int = 10) -> str:
    shown = ", ".join(map(repr, names[:count]))
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"
