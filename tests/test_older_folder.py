"""A folder of the version before the table of dense tasks loads without a word and predicts the same."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from transformers_ait import AiTForDenseAndInstancePrediction

FOLDER = Path(__file__).parent / "goldens" / "older_folder"
# On the machine that saved the folder nothing differs in any bit; others multiply in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def expected():
    return load_file(FOLDER / "expected.safetensors")


@pytest.fixture(scope="module")
def model():
    return AiTForDenseAndInstancePrediction.from_pretrained(FOLDER).eval()


def test_its_configuration_knows_nothing_of_dense_tasks():
    stored = json.loads((FOLDER / "config.json").read_text())
    assert "dense_tasks" not in stored and "map_kind" not in stored["depth_tokenizer_config"]
    assert "map_kinds" not in json.loads((FOLDER / "preprocessor_config.json").read_text())


def test_it_loads_quietly_with_every_weight():
    with CaptureLogger(logging.get_logger("transformers.modeling_utils")) as captured:
        AiTForDenseAndInstancePrediction.from_pretrained(FOLDER)
    assert captured.out == ""


def test_depth(model, expected):
    processor = AutoImageProcessor.from_pretrained(FOLDER)
    inputs = processor(expected["image"], return_tensors="pt")
    assert list(inputs) == ["pixel_values"] and torch.allclose(inputs["pixel_values"], expected["pixel_values"])
    output = model(**inputs)
    assert torch.equal(output.sequences, expected["sequences"])
    assert torch.allclose(output.predicted_depth, expected["predicted_depth"], **TOLERANCE)
    depth = processor.post_process_depth_estimation(output, [(40, 56)])[0]["predicted_depth"]
    assert torch.allclose(depth, expected["processed_depth"], **TOLERANCE)


def test_instances(model, expected):
    output = model.generate(expected["images"], "instance", top_p=0.0)
    assert torch.equal(output.sequences, expected["instance_sequences"])
    for name in ("boxes", "scores", "mask_values"):
        assert torch.allclose(getattr(output, name), expected[name], **TOLERANCE)


def test_loss(model, expected):
    loss = model(expected["images"], task="depth", depth_labels=expected["depth_labels"]).loss
    assert loss.item() == pytest.approx(expected["loss"].item(), rel=1e-6)


def test_a_task_row_that_moved_would_show(model, expected):
    with torch.no_grad():
        embeddings = model.model.decoder.task_embeddings
        kept = embeddings.clone()
        embeddings[2] = kept[1]
        moved = model.generate(expected["images"], "depth").predicted_depth
        embeddings.copy_(kept)
        assert not torch.allclose(moved, model.generate(expected["images"], "depth").predicted_depth, **TOLERANCE)
