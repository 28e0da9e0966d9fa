"""Tiny task models with random weights, one of each family that a dense decoder can learn from."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DetrConfig,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from transformers_ait import AiTPlainDenseConfig, AiTPlainDenseModel

CLASSES = ("wall", "floor", "chair")
LABELS = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: index for index, name in enumerate(CLASSES)}}
TASKS = (
    {"name": "depth", "kind": "depth"},
    {"name": "normals", "kind": "normals"},
    {"name": "semantic", "kind": "classes", "class_names": list(CLASSES)},
)


@dataclass
class TeacherCase:
    """A task model: its class, configuration, side of its images, and the field of its output that tells it apart."""

    kind: type
    config: Any
    size: int
    fields: tuple[str, ...]

    def model(self, seed: int = 0) -> Any:
        """A model with seeded weights, in evaluation mode, its normalisations not at their start."""
        torch.manual_seed(seed)
        model = self.kind(self.config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
        return model


def _vit(**fields) -> dict[str, Any]:
    return {"hidden_size": 16, "num_attention_heads": 2, "patch_size": 8, "image_size": 64, **fields}


def _swin() -> SwinConfig:
    stages = [f"stage{index}" for index in (1, 2, 3, 4)]
    return SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, image_size=64, out_features=stages
    )


def _resnet() -> ResNetConfig:
    return ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_indices=[1, 2, 3, 4]
    )


def _dinov2() -> Dinov2Config:
    return Dinov2Config(**_vit(num_hidden_layers=4, mlp_ratio=2, out_indices=[1, 2, 3, 4], reshape_hidden_states=False))


def _neck(factors=(4, 2, 1, 0.5)) -> dict[str, Any]:
    return {"reassemble_factors": list(factors), "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8}


def teacher_case(name: str) -> TeacherCase:
    """The case of a name in `CASES`, built anew: models change their configurations."""
    return CASES[name]()


def _dpt(readout="project") -> TeacherCase:
    config = DPTConfig(
        **_vit(num_hidden_layers=5, intermediate_size=32, backbone_out_indices=[0, 1, 3, 4]),
        **_neck(),
        readout_type=readout,
    )
    return TeacherCase(DPTForDepthEstimation, config, 64, ("predicted_depth",))


def _dpt_backbone() -> TeacherCase:
    config = DPTConfig(backbone_config=_dinov2(), **_neck(), readout_type="add")
    return TeacherCase(DPTForDepthEstimation, config, 64, ("predicted_depth",))


def _depth_anything() -> TeacherCase:
    config = DepthAnythingConfig(
        backbone_config=_dinov2(),
        reassemble_hidden_size=16,
        patch_size=8,
        head_hidden_size=8,
        **_neck(),
        depth_estimation_type="metric",
        max_depth=10,
    )
    return TeacherCase(DepthAnythingForDepthEstimation, config, 64, ("predicted_depth",))


def _upernet() -> TeacherCase:
    config = UperNetConfig(
        backbone_config=_resnet(), hidden_size=16, pool_scales=[1, 2], use_auxiliary_head=True, **LABELS
    )
    config.auxiliary_channels = 8
    return TeacherCase(UperNetForSemanticSegmentation, config, 64, ("logits",))


def _segformer() -> TeacherCase:
    config = SegformerConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
        **LABELS,
    )
    return TeacherCase(SegformerForSemanticSegmentation, config, 64, ("logits",))


def _maskformer() -> TeacherCase:
    decoder = DetrConfig(
        d_model=32,
        decoder_layers=2,
        encoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        num_queries=5,
    )
    config = MaskFormerConfig(
        backbone_config=_swin(), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, **LABELS
    )
    return TeacherCase(MaskFormerForInstanceSegmentation, config, 64, ("class_queries_logits", "masks_queries_logits"))


def _mask2former() -> TeacherCase:
    config = Mask2FormerConfig(
        backbone_config=_swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=2,
        decoder_layers=3,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=5,
        **LABELS,
    )
    return TeacherCase(
        Mask2FormerForUniversalSegmentation, config, 64, ("class_queries_logits", "masks_queries_logits")
    )


def _plain() -> TeacherCase:
    config = AiTPlainDenseConfig(backbone_config=_resnet(), dense_tasks=TASKS, image_size=64, hidden_size=32)
    return TeacherCase(AiTPlainDenseModel, config, 64, ())


CASES = {
    "dpt": _dpt,
    "dpt ignore": lambda: _dpt("ignore"),
    "dpt backbone": _dpt_backbone,
    "depth anything": _depth_anything,
    "upernet": _upernet,
    "segformer": _segformer,
    "maskformer": _maskformer,
    "mask2former": _mask2former,
    "plain": _plain,
}
