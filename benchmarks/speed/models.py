"""The models of this package that are timed: published sizes, or tiny ones of the same structure; random weights."""

from pathlib import Path
from typing import Any

import torch

from transformers_ait import AiTConfig, AiTForDenseAndInstancePrediction
from transformers_ait.conversion.key_map import invert, task_solver_names
from transformers_ait.conversion.original_config import original_from_ait_config

TOKEN_SCALE, DETOKENIZER_SCALE = 5, 3
HUB_CONFIGS = Path(__file__).resolve().parents[2] / "hub_configs"


def tiny_config(parallel: bool) -> dict[str, Any]:
    """A depth model of the same structure that runs in milliseconds."""
    return {
        "backbone_config": {
            "model_type": "ait_swinv2",
            "embed_dim": 16,
            "depths": [2, 2, 2, 2],
            "num_heads": [1, 2, 4, 8],
            "window_sizes": [6, 6, 6, 3],
            "pretrained_window_sizes": [4, 4, 4, 2],
        },
        "depth_tokenizer_config": {"model_type": "ait_vqvae", "image_size": 96, "hidden_size": 2, "code_dim": 16},
        "image_size": 96,
        "parallel": parallel,
        "soft_feedback": not parallel,
    }


def build(tiny: bool, parallel: bool) -> AiTForDenseAndInstancePrediction:
    """A base depth model of 480 x 480 in evaluation mode, autoregressive or parallel (AiT-P)."""
    torch.manual_seed(0)
    config = AiTConfig(**(tiny_config(parallel) if tiny else {"parallel": parallel, "soft_feedback": not parallel}))
    return _enlivened(AiTForDenseAndInstancePrediction(config).eval())


def _enlivened(model: AiTForDenseAndInstancePrediction) -> AiTForDenseAndInstancePrediction:
    """The model with weights so scaled that probabilities are decided and depth depends on the image.

    Freshly drawn weights give one depth everywhere, and then any two models agree; and among hundreds of nearly equal
    candidates of a nucleus a rounding error would choose.
    """
    with torch.no_grad():
        model.model.decoder.token_embeddings.mul_(TOKEN_SCALE)
        for weight in model.depth_tokenizer.decoder.parameters():
            if weight.ndim > 1:
                weight.mul_(DETOKENIZER_SCALE)
    return model


def build_instance(tiny: bool) -> AiTForDenseAndInstancePrediction:
    """The base instance model of 640 x 640 in evaluation mode."""
    torch.manual_seed(0)
    if tiny:
        values = tiny_config(parallel=False) | {"tasks": ["instance"], "num_objects": 2}
        return AiTForDenseAndInstancePrediction(AiTConfig(**values)).eval()
    config = AiTConfig.from_pretrained(HUB_CONFIGS / "ait-swinv2-base-instance")
    return AiTForDenseAndInstancePrediction(config).eval()


def original_form(model: AiTForDenseAndInstancePrediction) -> tuple[dict[str, torch.Tensor], dict]:
    """The model's tensors under original names, and its original configuration, as the plain functions take them."""
    names = invert(task_solver_names(model.config))
    tensors = {names[name]: tensor for name, tensor in model.state_dict().items() if name in names}
    return tensors, original_from_ait_config(model.config)
