"""The Auto classes and the depth-estimation pipeline."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForDepthEstimation,
    pipeline,
)
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from transformers_ait import (
    AiTBinTokenizer,
    AiTConfig,
    AiTDepthImageProcessor,
    AiTForDenseAndInstancePrediction,
    AiTModel,
    AiTSwinV2Backbone,
    AiTVQVAEModel,
)


@pytest.fixture
def checkpoint(tiny_model, tiny_processor, tmp_path):
    """A saved model with its image processor."""
    tiny_model().save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def photographs():
    """Images of three sizes, the last one upright."""
    generator = np.random.default_rng(0)
    sizes = (48, 64), (30, 60), (64, 40)
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture
def no_messages():
    """Fails the test when transformers logs a warning or an error."""
    with CaptureLogger(logging.get_logger("transformers")) as capture:
        yield
    assert capture.out == ""


def test_auto_classes_find_the_family(checkpoint, images, depths):
    assert type(AutoConfig.from_pretrained(checkpoint)) is AiTConfig
    assert type(AutoModel.from_pretrained(checkpoint)) is AiTModel
    assert type(AutoImageProcessor.from_pretrained(checkpoint)) is AiTDepthImageProcessor
    model = AutoModelForDepthEstimation.from_pretrained(checkpoint)
    assert type(model) is AiTForDenseAndInstancePrediction
    assert model(images, depth_labels=depths).loss.isfinite()


def test_auto_classes_build_from_configurations(
    tiny_config, tiny_backbone_config, tiny_vqvae_config, bin_tokenizer_config
):
    assert type(AutoModelForDepthEstimation.from_config(tiny_config())) is AiTForDenseAndInstancePrediction
    assert type(AutoBackbone.from_config(tiny_backbone_config())) is AiTSwinV2Backbone
    assert type(AutoModel.from_config(tiny_vqvae_config())) is AiTVQVAEModel
    assert type(AutoModel.from_config(bin_tokenizer_config)) is AiTBinTokenizer


def test_tokenizer_alone_through_the_auto_classes(tiny_vqvae_config, depths, tmp_path):
    tokenizer = AiTVQVAEModel(tiny_vqvae_config()).eval()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is AiTVQVAEModel
    assert torch.equal(loaded(depths[:, None]).reconstruction, tokenizer(depths[:, None]).reconstruction)


def test_image_processor_round_trip(checkpoint, tiny_processor, photographs):
    loaded = AutoImageProcessor.from_pretrained(checkpoint)
    assert loaded.to_dict() == tiny_processor.to_dict()
    expected = tiny_processor(photographs, return_tensors="pt").pixel_values
    assert torch.equal(loaded(photographs, return_tensors="pt").pixel_values, expected)


def depth_of(result):
    return result["predicted_depth"]


def test_pipeline_on_one_image(checkpoint, photographs, no_messages):
    result = pipeline("depth-estimation", model=str(checkpoint), device="cpu")(photographs[0])
    assert depth_of(result).shape == (48, 64) and depth_of(result).dtype == torch.float32
    assert depth_of(result).min() >= 1e-3
    assert result["depth"].size == (64, 48)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_pipeline_on_lists_of_mixed_sizes_in_batches(checkpoint, photographs, no_messages, batch_size):
    estimate = pipeline("depth-estimation", model=str(checkpoint), device="cpu")
    results = estimate(photographs, batch_size=batch_size)
    assert [tuple(depth_of(r).shape) for r in results] == [(48, 64), (30, 60), (64, 40)]
    for result, photograph in zip(results, photographs, strict=True):
        assert torch.allclose(depth_of(result), depth_of(estimate(photograph)), atol=1e-4)
    assert not torch.allclose(depth_of(results[0])[:30, :40], depth_of(results[1])[:, :40], atol=1e-2)


def test_pipeline_equals_processor_model_and_post_processing(checkpoint, photographs):
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    model = AutoModelForDepthEstimation.from_pretrained(checkpoint)
    outputs = model(**processor(photographs[2], return_tensors="pt"))
    assert outputs.predicted_depth.shape == (1, 4, 32, 32)
    by_hand = processor.post_process_depth_estimation(outputs, target_sizes=[(64, 40)])[0]["predicted_depth"]
    result = pipeline("depth-estimation", model=model, image_processor=processor, device="cpu")(photographs[2])
    assert torch.equal(depth_of(result), by_hand)


def test_pipeline_on_a_generator(checkpoint, photographs):
    estimate = pipeline("depth-estimation", model=str(checkpoint), device="cpu")
    streamed = list(estimate((photograph for photograph in photographs), batch_size=2))
    assert [tuple(depth_of(r).shape) for r in streamed] == [(48, 64), (30, 60), (64, 40)]


def test_pipeline_in_bfloat16(checkpoint, photographs, no_messages):
    full = pipeline("depth-estimation", model=str(checkpoint), device="cpu")(photographs[0])
    half = pipeline("depth-estimation", model=str(checkpoint), device="cpu", dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    result = half(photographs[0])
    assert depth_of(result).dtype == torch.float32
    assert (depth_of(result) - depth_of(full)).abs().mean() < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        "import transformers_ait; from datasets import load_dataset_builder; load_dataset_builder('synthetic_rooms')",
        # None in sys.modules is how a package looks that is not installed.
        "import sys; sys.modules['datasets'] = None; import importlib.util; find = importlib.util.find_spec; "
        "importlib.util.find_spec = lambda name, *a: None if name == 'datasets' else find(name, *a); "
        "import transformers_ait; assert 'transformers_ait.data' not in sys.modules",
    ],
    ids=["with datasets", "without"],
)
def test_importing_the_package_registers_its_datasets(script):
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_can_be_chosen_on_loading(tiny_model, tmp_path, implementation):
    tiny_model().save_pretrained(tmp_path)
    model = AiTForDenseAndInstancePrediction.from_pretrained(tmp_path, attn_implementation=implementation)
    assert {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")} == {implementation}
