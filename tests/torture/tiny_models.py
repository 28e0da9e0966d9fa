"""Models that load in milliseconds, written once, for what spoils them."""

from pathlib import Path
from typing import Any

import torch

from transformers_ait import (
    AiTBinTokenizerConfig,
    AiTConfig,
    AiTDenseImageProcessor,
    AiTDepthImageProcessor,
    AiTForDenseAndInstancePrediction,
    AiTInstanceImageProcessor,
    AiTPlainDenseConfig,
    AiTPlainDenseModel,
    AiTSwinV2Config,
    AiTTokenDecoderConfig,
    AiTVQVAEConfig,
    AiTVQVAEModel,
    DenseDecoderConfig,
    DenseDecoderModel,
    HourglassForPoseLifting,
    HourglassPoseConfig,
    HourglassPoseProcessor,
    describe_teacher,
)
from transformers_ait.teachers_ait import PlainTaskModel

SIZE = {"height": 32, "width": 32}
BACKBONE = {
    "embed_dim": 4,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_sizes": [3, 2],
    "pretrained_window_sizes": [4, 3],
    "shift_windows": [True, False],
    "drop_path_rate": 0.0,
}
DECODER = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "dropout": 0.0,
    "drop_path_rate": 0.0,
    "max_positions": 40,
}
VQVAE = {
    "image_size": 32,
    "downsample_ratio": 8,
    "hidden_size": 4,
    "num_resnet_blocks": 1,
    "num_codes": 12,
    "code_dim": 6,
}
MASKS = {**VQVAE, "image_size": 8, "downsample_ratio": 4, "num_codes": 5, "symmetric_range": True, "ignore_zero": False}
BINS = {"image_size": 32, "downsample_ratio": 8, "num_codes": 12}
DEPTH: dict[str, Any] = {
    "backbone_config": {"model_type": "ait_swinv2", **BACKBONE},
    "decoder_config": DECODER,
    "depth_tokenizer_config": {"model_type": "ait_vqvae", **VQVAE},
    "image_size": 32,
    "num_bins": 10,
    "num_mask_codes": 5,
    "num_depth_codes": 12,
    "num_objects": 2,
    "id2label": {0: "bed", 1: "lamp"},
}
JOINT: dict[str, Any] = {
    **DEPTH,
    "tasks": ["depth", "normals", "instance"],
    "dense_tasks": [
        {"name": "normals", "kind": "normals", "tokenizer_config": {"model_type": "ait_vqvae", **VQVAE}},
    ],
    "mask_tokenizer_config": {"model_type": "ait_vqvae", **MASKS},
}
PLAIN: dict[str, Any] = {
    "backbone_config": {"model_type": "ait_swinv2", **BACKBONE},
    "dense_tasks": [
        {"name": "depth", "kind": "depth"},
        {"name": "rooms", "kind": "classes", "class_names": ["a", "b"]},
    ],
    "image_size": 32,
    "hidden_size": 8,
}
DENSE_DECODER: dict[str, Any] = {
    **describe_teacher(PlainTaskModel(AiTPlainDenseModel(AiTPlainDenseConfig(**PLAIN)), "depth"), 32),
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 4,
        "hidden_sizes": [4, 4],
        "depths": [1, 1],
        "layer_type": "basic",
        "out_indices": [1, 2],
    },
    "downsample_ratio": 16,
    "num_codes": 12,
    "code_dim": 6,
    "hidden_size": 16,
    "num_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_groups": 4,
}
POSE: dict[str, Any] = {
    "num_frames": 9,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "representation_size": 16,
    "prune_before": [1],
    "num_kept_frames": [3],
}
CONFIGS: tuple[tuple[type[Any], dict[str, Any]], ...] = (
    (AiTConfig, DEPTH),
    (AiTConfig, JOINT),
    (AiTSwinV2Config, BACKBONE),
    (AiTTokenDecoderConfig, DECODER),
    (AiTVQVAEConfig, VQVAE),
    (AiTVQVAEConfig, MASKS),
    (AiTBinTokenizerConfig, BINS),
    (AiTPlainDenseConfig, PLAIN),
    (DenseDecoderConfig, DENSE_DECODER),
    (HourglassPoseConfig, POSE),
)
FOLDERS = ("depth", "parallel", "joint", "vqvae", "plain", "dense_decoder", "pose")


def write_folders(root: Path) -> None:
    """A checkpoint folder of every kind, with its processor."""
    torch.manual_seed(0)
    windows = {"num_windows": 1, "do_flip_augment": False}
    _save(root / "depth", AiTForDenseAndInstancePrediction(AiTConfig(**DEPTH)), AiTDepthImageProcessor(size=SIZE))
    parallel = AiTForDenseAndInstancePrediction(AiTConfig(**DEPTH, parallel=True))
    _save(root / "parallel", parallel, AiTDepthImageProcessor(size=SIZE, **windows))
    joint = AiTForDenseAndInstancePrediction(AiTConfig(**JOINT))
    _save(root / "joint", joint, AiTDenseImageProcessor(size=SIZE, map_kinds={"depth": "depth", "normals": "normals"}))
    objects = AiTInstanceImageProcessor(size={"longest_edge": 32}, pad_size=SIZE, task="instance")
    objects.save_pretrained(root / "joint" / "instance")
    _save(root / "vqvae", AiTVQVAEModel(AiTVQVAEConfig(**VQVAE)))
    kinds = {"depth": "depth", "rooms": "classes"}
    plain = AiTPlainDenseModel(AiTPlainDenseConfig(**PLAIN))
    _save(root / "plain", plain, AiTDenseImageProcessor(size=SIZE, map_kinds=kinds, **windows))
    _save(root / "dense_decoder", DenseDecoderModel(DenseDecoderConfig(**DENSE_DECODER)))
    pose = HourglassForPoseLifting(HourglassPoseConfig(**POSE))
    _save(root / "pose", pose, HourglassPoseProcessor(num_frames=9))


def _save(folder: Path, model: Any, processor: Any = None) -> None:
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
