"""int8 weights through torchao and transformers' own quantizer: smaller, still accurate, also when stepped or saved."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, TorchAoConfig, pipeline

from transformers_ait import AiTForDenseAndInstancePrediction
from transformers_ait.data import render_room
from transformers_ait.metrics import depth_metrics

torchao = pytest.importorskip("torchao.quantization")

FIRST_TEST_ROOM = 2_000_000_000


@pytest.fixture(scope="module")
def folder(repository):
    return repository / "hub_configs" / "ait-tiny-rooms-depth"


def load_quantized(folder):
    config = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    return AiTForDenseAndInstancePrediction.from_pretrained(folder, quantization_config=config)


@pytest.fixture(scope="module")
def quantized(folder):
    return load_quantized(folder)


def quantized_names(model):
    return {name for name, parameter in model.named_parameters() if type(parameter.data) is not torch.Tensor}


def parts(model):
    return {".".join(name.split(".")[:2]) for name in quantized_names(model)}


def rmse(model, folder, rooms):
    processor = AutoImageProcessor.from_pretrained(folder)
    estimator = pipeline("depth-estimation", model=model, image_processor=processor)
    results = estimator([Image.fromarray(room.image) for room in rooms], batch_size=4)
    return np.mean(
        [depth_metrics(r["predicted_depth"], room.depth)["rmse"] for r, room in zip(results, rooms, strict=True)]
    )


@pytest.mark.slow
def test_error_grows_by_at_most_one_percent(folder, quantized):
    rooms = [render_room(FIRST_TEST_ROOM + index, height=128, width=160) for index in range(8)]
    full = rmse(AiTForDenseAndInstancePrediction.from_pretrained(folder), folder, rooms)
    assert parts(quantized) == {"model.encoder", "model.decoder"}, "the backbone is convolutional"
    assert rmse(quantized, folder, rooms) <= 1.01 * full
    # Planted: a wrong sign in one layer must break the same bound.
    broken = load_quantized(folder)
    broken.model.encoder.input_projection.weight.data.scale.neg_()
    assert rmse(broken, folder, rooms) > 1.01 * full


@pytest.mark.slow
def test_saved_and_loaded_bit_for_bit(quantized, tmp_path):
    images = torch.rand(1, 3, quantized.config.image_size, quantized.config.image_size)
    expected = quantized.generate(images).predicted_depth
    quantized.save_pretrained(tmp_path)
    loaded = AiTForDenseAndInstancePrediction.from_pretrained(tmp_path)
    assert quantized_names(loaded) == quantized_names(quantized)
    assert torch.equal(loaded.generate(images).predicted_depth, expected)


@pytest.mark.parametrize("parallel", [False, True])
def test_every_layer_may_be_quantised(tiny_model, images, parallel):
    model = tiny_model(parallel=parallel)
    expected = model.generate(images).predicted_depth
    torchao.quantize_(model.model, torchao.Int8WeightOnlyConfig())
    assert parts(model) == {"model.backbone", "model.encoder", "model.decoder"}
    actual = model.generate(images).predicted_depth
    assert 0 < (actual - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize("first", ["int8", "bfloat16"])
def test_quantised_and_half_in_either_order(tiny_model, images, first):
    model = tiny_model()
    expected = model.generate(images).predicted_depth
    steps = [
        lambda: torchao.quantize_(model.model, torchao.Int8WeightOnlyConfig()),
        lambda: model.model.to(torch.bfloat16),
    ]
    for step in steps if first == "int8" else reversed(steps):
        step()
    actual = model.generate(images).predicted_depth
    assert 0 < (actual - expected).norm() / expected.norm() < 0.1


def test_packed_weights_are_refused_by_name(tiny_model, images):
    model = tiny_model()
    layer = model.model.decoder.blocks[0].mlp.fc1
    layer.weight = torch.nn.Parameter(torch.zeros(7, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(TypeError, match="cannot read the weight of Linear.*Leave the decoder out"):
        model.generate(images)
