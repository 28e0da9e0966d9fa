"""The checkpoint that ships with the repository: it loads everywhere, is small, and looks at the image."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForDepthEstimation, pipeline

from transformers_ait import AiTDepthImageProcessor, AiTForDenseAndInstancePrediction, AiTModel
from transformers_ait.data import render_room
from transformers_ait.metrics import depth_metrics

MEGABYTE = 1_000_000
FIRST_TEST_ROOM = 2_000_000_000


@pytest.fixture(scope="module")
def folder(repository):
    return repository / "hub_configs" / "ait-tiny-rooms-depth"


@pytest.fixture(scope="module")
def rooms():
    return [render_room(FIRST_TEST_ROOM + index, height=128, width=160) for index in range(12)]


def rmse(estimator, rooms):
    results = estimator([Image.fromarray(room.image) for room in rooms], batch_size=4)
    return np.mean(
        [depth_metrics(r["predicted_depth"], room.depth)["rmse"] for r, room in zip(results, rooms, strict=True)]
    )


def test_size(folder):
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12 * MEGABYTE


def test_every_auto_class(folder):
    assert AutoConfig.from_pretrained(folder).tasks == ["depth"]
    assert isinstance(AutoModel.from_pretrained(folder), AiTModel)
    assert isinstance(AutoModelForDepthEstimation.from_pretrained(folder), AiTForDenseAndInstancePrediction)
    assert isinstance(AutoImageProcessor.from_pretrained(folder), AiTDepthImageProcessor)


def test_beats_half_of_a_constant(folder, rooms):
    estimator = pipeline("depth-estimation", model=str(folder))
    truth = np.concatenate([room.depth[room.depth > 0] for room in rooms])
    constant = np.mean([depth_metrics(np.full_like(r.depth, truth.mean()), r.depth)["rmse"] for r in rooms])
    assert rmse(estimator, rooms) <= constant / 2
    # Planted: the same model on rooms that belong to other truths must fail the same bound.
    shifted = [type(room)(**{**vars(room), "image": rooms[index - 1].image}) for index, room in enumerate(rooms)]
    assert rmse(estimator, shifted) > constant / 2


def test_soft_tokens_reach_the_prediction(folder, rooms):
    model = AutoModelForDepthEstimation.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    pixel_values = processor(Image.fromarray(rooms[0].image), return_tensors="pt")["pixel_values"]
    soft = model.generate(pixel_values).predicted_depth
    hard = model.generate(pixel_values, soft_feedback=False, soft_decode=False).predicted_depth
    assert not torch.allclose(soft, hard, atol=1e-2)
