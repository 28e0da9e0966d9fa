"""Shared fixtures: offline and single-threaded, optional real data, and models that run in milliseconds."""

import os
from pathlib import Path

# Before transformers is imported; a test that wants the network must not find it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from transformers.utils import logging

from transformers_ait import (
    AiTBinTokenizerConfig,
    AiTConfig,
    AiTDepthImageProcessor,
    AiTForDenseAndInstancePrediction,
    AiTSwinV2Config,
    AiTTokenDecoderConfig,
    AiTVQVAEConfig,
)

REPOSITORY = Path(__file__).resolve().parents[1]

# Two threads on tiny tensors take 100 times as long as one.
torch.set_num_threads(1)
logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate's state is one per process; no test sees another's."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of six pictures of two sizes, and nothing else."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(6):
        pixels = generator.integers(0, 256, (36, 40 + 4 * (number == 0), 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of real data: the environment variable AIT_SHARED_DIR, else `shared` beside the repository."""
    given = os.environ.get("AIT_SHARED_DIR")
    folder = Path(given) if given else REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist; set AIT_SHARED_DIR to a folder that holds it")
    return folder


def _enliven(model: torch.nn.Module, seed: int = 0, scale: float = 0.2) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="session")
def enliven():
    """Function that adds seeded noise to every weight, so that each of them matters to the output."""
    return _enliven


def _backbone_config(**overrides) -> AiTSwinV2Config:
    settings = {
        "embed_dim": 8,
        "depths": (2, 2),
        "num_heads": (2, 4),
        "window_sizes": (3, 2),  # on maps of 8 and 4 positions: padded windows first, exact ones then
        "pretrained_window_sizes": (4, 3),
        "shift_windows": (True, False),
        "drop_path_rate": 0.0,
    }
    return AiTSwinV2Config(**(settings | overrides))


@pytest.fixture(scope="session")
def tiny_backbone_config():
    """Function that builds a two-stage backbone configuration of stride 8."""
    return _backbone_config


def _decoder_config(**overrides) -> AiTTokenDecoderConfig:
    settings = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "dropout": 0.0,
        "drop_path_rate": 0.0,
        "max_positions": 24,
    }
    return AiTTokenDecoderConfig(**(settings | overrides))


@pytest.fixture(scope="session")
def tiny_decoder_config():
    """Function that builds an encoder and decoder configuration of width 16."""
    return _decoder_config


def _vqvae_config(**overrides) -> AiTVQVAEConfig:
    settings = {
        "image_size": 32,
        "downsample_ratio": 8,
        "hidden_size": 4,
        "num_resnet_blocks": 1,
        "num_codes": 12,
        "code_dim": 6,
    }
    return AiTVQVAEConfig(**(settings | overrides))


@pytest.fixture(scope="session")
def tiny_vqvae_config():
    """Function that builds a tokenizer configuration: 32 pixels, 16 tokens, 12 codes."""
    return _vqvae_config


def _config(**overrides) -> AiTConfig:
    settings = {
        "backbone_config": _backbone_config(),
        "decoder_config": _decoder_config(),
        "depth_tokenizer_config": _vqvae_config(tau=0.8),
        "image_size": 32,
        "num_bins": 10,
        "num_labels": 3,
        "num_mask_codes": 5,
        "num_depth_codes": 12,
        "num_objects": 3,
    }
    if "id2label" in overrides or overrides.get("dense_tasks"):
        del settings["num_labels"]
    return AiTConfig(**(settings | overrides))


@pytest.fixture(scope="session")
def tiny_config():
    """Function that builds a depth model's configuration: 32 pixels, 16 tokens, a vocabulary of 33 ids."""
    return _config


def _model(**overrides) -> AiTForDenseAndInstancePrediction:
    torch.manual_seed(0)
    model = _enliven(AiTForDenseAndInstancePrediction(_config(**overrides)))
    tokenizer = model.depth_tokenizer
    if tokenizer is not None and hasattr(tokenizer, "decoder"):
        tokenizer.decoder.output.bias.data += 3.0  # metres, so that nothing is below the loss's minimal depth
    return model


@pytest.fixture(scope="session")
def tiny_model():
    """Function that builds a lively depth model in evaluation mode, from overrides of `tiny_config`."""
    return _model


@pytest.fixture(scope="session")
def bin_tokenizer_config() -> AiTBinTokenizerConfig:
    """Baseline tokenizer that fits `tiny_config`."""
    return AiTBinTokenizerConfig(image_size=32, downsample_ratio=8, num_codes=12)


@pytest.fixture
def tiny_processor() -> AiTDepthImageProcessor:
    """Image processor that fits `tiny_config`."""
    return AiTDepthImageProcessor(size={"height": 32, "width": 32})


@pytest.fixture
def images() -> torch.Tensor:
    """Three images (3, 3, 32, 32) in [0, 1]."""
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def depths() -> torch.Tensor:
    """Their depth maps (3, 32, 32) in metres, a fifth of the pixels invalid."""
    generator = torch.Generator().manual_seed(2)
    depth = 1 + 4 * torch.rand(3, 32, 32, generator=generator)
    return depth * (torch.rand(3, 32, 32, generator=generator) > 0.2)
