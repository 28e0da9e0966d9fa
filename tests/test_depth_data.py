"""Pairs of image and depth map: rows that do not fit are named, empty splits refused, means leave empty rows out."""

import math

import datasets
import numpy as np
import pytest
from PIL import Image
from torchvision import tv_tensors

from transformers_ait.data.augmentation_depth import depth_map_transform, depth_training_transform
from transformers_ait.engine.depth_data import DepthPairs, explain_crop, load_depth_pairs, mean_depth_metrics
from transformers_ait.engine.depth_training import augmented_depth_sample
from transformers_ait.engine.recipe_sections import DataRecipe
from transformers_ait.engine.recipes import RecipeError
from transformers_ait.metrics import DEPTH_METRICS

FEATURES = datasets.Features({"image": datasets.Image(), "depth": datasets.Image()})


def table(count, image_size=(40, 32), depth_size=(40, 32)):
    images = [Image.new("RGB", image_size)] * count
    depths = [Image.fromarray(np.full(depth_size[::-1], 1000, dtype=np.uint16))] * count
    return datasets.Dataset.from_dict({"image": images, "depth": depths}, FEATURES)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"image_size": (24, 20), "depth_size": (24, 20)}, r"row 1 \(20 x 24 and 20 x 24 pixels\).*32.*train_size"),
        ({"depth_size": (48, 40)}, r"row 1 \(32 x 40 and 40 x 48 pixels\).*one size"),
    ],
)
def test_rows_that_cannot_be_cropped_are_named(sizes, words):
    transform = depth_training_transform(32)
    augmented_depth_sample(DepthPairs(table(2)), 1, transform)
    with pytest.raises(RecipeError, match=words):
        augmented_depth_sample(DepthPairs(table(2, **sizes)), 1, transform)


def test_streamed_rows_have_no_number():
    depth = tv_tensors.Mask(np.ones((1, 8, 8), dtype=np.float32))
    with pytest.raises(RecipeError, match=r"training a streamed row \(8 x 8 pixels\)"), explain_crop({}, depth):
        depth_map_transform(16)(depth)


def test_columns_outside_the_image_are_refused():
    assert DepthPairs(table(1), columns=[30, 99]).depth(0).shape == (1, 32, 10)
    with pytest.raises(RecipeError, match=r"train_columns \[40, 50\] lie outside an image of 40 columns"):
        DepthPairs(table(1), columns=[40, 50]).image(0)


@pytest.mark.parametrize("empty", ["train_split", "eval_split"])
def test_empty_splits_are_refused(monkeypatch, empty):
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split, streaming: table(0 if split == "bare" else 2))
    with pytest.raises(RecipeError, match="'some' has no rows in split 'bare'"):
        load_depth_pairs(DataRecipe("some", **{empty: "bare"}))


def test_what_goes_wrong_in_a_builder_is_told(monkeypatch):
    def load(*_, **__):
        try:
            raise OSError("a.png is truncated")
        except OSError as error:
            raise datasets.exceptions.DatasetGenerationError("An error occurred") from error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(RecipeError, match=r"cannot be loaded: a\.png is truncated"):
        load_depth_pairs(DataRecipe("some"))


def test_rows_without_depth_do_not_count():
    row, empty = dict.fromkeys(DEPTH_METRICS, 0.5), dict.fromkeys(DEPTH_METRICS, math.nan)
    assert mean_depth_metrics([row, empty]) == row
    assert all(math.isnan(value) for value in mean_depth_metrics([empty]).values())
