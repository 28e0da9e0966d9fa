"""Pictures for a run's log: predicted objects beside the true ones, and pictures below each other."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...coco_annotations_ait import annotation_mask
from ...visualization import draw_instances
from .instance_data import InstanceRows, has_mask

MIN_SCORE = 0.3
WIDTH = 480  # pixels of one overlay


def instance_panel(rows: InstanceRows, indices: Sequence[int], results: Sequence[dict[str, Any]]) -> Image.Image:
    """Predicted objects at the left, true ones at the right, one row per image.

    Args:
        rows: the data.
        indices: row numbers to show.
        results: COCO results with row numbers as image ids and class indices as category ids.
    """
    tiles = []
    for index in indices:
        found = [result for result in results if result["image_id"] == index and result["score"] >= MIN_SCORE]
        truth = [entry for entry in rows.annotations(index) if not entry.get("iscrowd", 0)]
        tiles.append(np.hstack([_overlay(rows, index, found, True), _overlay(rows, index, truth, False)]))
    height = max(tile.shape[0] for tile in tiles)
    padded = [np.pad(tile, ((0, height - len(tile)), (0, 0), (0, 0)), constant_values=255) for tile in tiles]
    return Image.fromarray(np.vstack(padded))


def stack_pictures(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures one above the other, on white."""
    size = (max(picture.width for picture in pictures), sum(picture.height for picture in pictures))
    whole = Image.new("RGB", size, "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def _overlay(rows: InstanceRows, index: int, entries: Sequence[dict[str, Any]], scored: bool) -> np.ndarray:
    image = Image.fromarray(rows.image(index).permute(1, 2, 0).numpy())
    size = (WIDTH, round(WIDTH * image.height / image.width))
    labels = [rows.class_names[entry["category_id"]] for entry in entries]
    scores = [entry["score"] for entry in entries] if scored else None
    where = f"row {index}"
    if all(map(has_mask, entries)):
        masks = [annotation_mask(entry, (image.height, image.width), where) for entry in entries]
        shown = [np.array(Image.fromarray(mask.numpy()).resize(size)) for mask in masks]
        drawn = draw_instances(image.resize(size), labels, scores, masks=shown)
    else:
        boxes = torch.tensor([entry["bbox"] for entry in entries]).reshape(-1, 4)
        corners = torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1) * (WIDTH / image.width)
        drawn = draw_instances(image.resize(size), labels, scores, boxes=corners)
    return np.array(drawn)
