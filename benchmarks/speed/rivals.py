"""Models that users would pick instead, from configurations with random weights: their speed beside ours.

The numbers of every architecture are those of the published checkpoint that `source` names, written out here, so that
nothing is downloaded. Times are of the forward pass alone, from pixels to the model's outputs, as ours are.
"""

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DPTConfig,
    DPTForDepthEstimation,
    EomtConfig,
    EomtForUniversalSegmentation,
    GLPNConfig,
    GLPNForDepthEstimation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedModel,
    RfDetrConfig,
    RfDetrForInstanceSegmentation,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
)

from .models import build, build_instance
from .report import Measured, Part, table
from .setting import Setting
from .timing import Run, Timed, count_flops, interleave, milliseconds

Values = Mapping[str, Any]
DEPTH_ANYTHING_BASE = "Depth-Anything-V2 Base"


@dataclass(frozen=True)
class Rival:
    """A published architecture.

    Args:
        name: for the table.
        source: the checkpoint on the Hub whose configuration this is.
        classes: configuration and model class.
        values: the configuration's values that differ from the class's defaults.
        size: height and width of the input, pixels.
        tiny_values: widths of a tiny model of the same structure; merged into `values`.
        tiny_size: input of the tiny model.
    """

    name: str
    source: str
    classes: tuple[type, type]
    values: Values
    size: tuple[int, int]
    tiny_values: Values
    tiny_size: tuple[int, int]

    def build(self, tiny: bool) -> PreTrainedModel:
        """The model with random weights."""
        torch.manual_seed(0)
        config_class, model_class = self.classes
        values = _merged(self.values, self.tiny_values) if tiny else self.values
        return model_class(config_class(**values)).eval().requires_grad_(False)

    def input_size(self, tiny: bool) -> tuple[int, int]:
        """Height and width of the input, pixels."""
        return self.tiny_size if tiny else self.size


def _merged(values: Values, changes: Values) -> dict[str, Any]:
    """`values` with `changes`, one level of nesting deep."""
    nested = {key: {**values[key], **change} for key, change in changes.items() if isinstance(change, Mapping)}
    return {**values, **changes, **nested}


def _depth_anything(name: str, width: int, heads: int, fusion: int) -> Rival:
    return Rival(
        name=f"Depth-Anything-V2 {name}",
        source=f"depth-anything/Depth-Anything-V2-{name}-hf",
        classes=(DepthAnythingConfig, DepthAnythingForDepthEstimation),
        values={
            "backbone_config": {
                "model_type": "dinov2",
                "hidden_size": width,
                "num_attention_heads": heads,
                "num_hidden_layers": 12,
                "image_size": 518,
                "patch_size": 14,
                "out_indices": [3, 6, 9, 12],
                "reshape_hidden_states": False,
            },
            "patch_size": 14,
            "reassemble_hidden_size": width,
            "reassemble_factors": [4, 2, 1, 0.5],
            "neck_hidden_sizes": [width // 8, width // 4, width // 2, width],
            "fusion_hidden_size": fusion,
            "head_hidden_size": 32,
        },
        size=(518, 518),
        tiny_values={
            "backbone_config": {"hidden_size": 32, "num_attention_heads": 2, "image_size": 56},
            "reassemble_hidden_size": 32,
            "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 8,
        },
        tiny_size=(56, 56),
    )


_DPT_LARGE = Rival(
    name="DPT-large",
    source="Intel/dpt-large",
    classes=(DPTConfig, DPTForDepthEstimation),
    values={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 16,
        "backbone_out_indices": [5, 11, 17, 23],
        "neck_hidden_sizes": [256, 512, 1024, 1024],
        "fusion_hidden_size": 256,
        "readout_type": "project",
    },
    size=(384, 384),
    tiny_values={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "image_size": 64,
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 8,
    },
    tiny_size=(64, 64),
)

_GLPN = Rival(
    name="GLPN",
    source="vinvino02/glpn-nyu",
    classes=(GLPNConfig, GLPNForDepthEstimation),
    values={
        "depths": [3, 8, 27, 3],
        "hidden_sizes": [64, 128, 320, 512],
        "num_attention_heads": [1, 2, 5, 8],
        "mlp_ratios": [4, 4, 4, 4],
        "sr_ratios": [8, 4, 2, 1],
        "decoder_hidden_size": 64,
    },
    size=(480, 640),
    tiny_values={"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 10, 16], "decoder_hidden_size": 8},
    tiny_size=(64, 64),
)

_ZOEDEPTH = Rival(
    name="ZoeDepth",
    source="Intel/zoedepth-nyu",
    classes=(ZoeDepthConfig, ZoeDepthForDepthEstimation),
    values={
        "backbone_config": {
            "model_type": "beit",
            "image_size": 384,
            "num_hidden_layers": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "use_relative_position_bias": True,
            "reshape_hidden_states": False,
            "out_features": ["stage6", "stage12", "stage18", "stage24"],
        },
        "neck_hidden_sizes": [256, 512, 1024, 1024],
        "fusion_hidden_size": 256,
        "num_relative_features": 32,
        "bottleneck_features": 256,
        "num_attractors": [16, 8, 4, 1],
        "bin_embedding_dim": 128,
        "bin_configurations": [{"n_bins": 64, "min_depth": 0.001, "max_depth": 10.0}],
    },
    size=(384, 512),
    tiny_values={
        "backbone_config": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "image_size": 64},
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 8,
        "bottleneck_features": 8,
    },
    tiny_size=(64, 64),
)

_MASK2FORMER = Rival(
    name="Mask2Former Swin-B",
    source="facebook/mask2former-swin-base-coco-instance",
    classes=(Mask2FormerConfig, Mask2FormerForUniversalSegmentation),
    values={
        "backbone_config": {
            "model_type": "swin",
            "image_size": 384,
            "embed_dim": 128,
            "depths": [2, 2, 18, 2],
            "num_heads": [4, 8, 16, 32],
            "window_size": 12,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        "num_queries": 100,
        "num_labels": 80,
    },
    size=(640, 640),
    tiny_values={
        "backbone_config": {
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 4, 8],
            "window_size": 4,
            "image_size": 64,
        },
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_queries": 5,
    },
    tiny_size=(96, 96),
)

# 624 is this size's published input, and the multiple of its 24 pixels (patch times windows) nearest to 640.
_RF_DETR = Rival(
    name="RF-DETR-Seg XLarge",
    source="Roboflow/rf-detr-seg-xlarge",
    classes=(RfDetrConfig, RfDetrForInstanceSegmentation),
    values={
        "backbone_config": {
            "model_type": "rf_detr_dinov2",
            "hidden_size": 384,
            "num_attention_heads": 6,
            "num_hidden_layers": 12,
            "image_size": 624,
            "patch_size": 12,
            "num_windows": 2,
            "out_features": ["stage3", "stage6", "stage9", "stage12"],
        },
        "decoder_layers": 6,
        "decoder_n_points": 2,
        "decoder_self_attention_heads": 8,
        "decoder_cross_attention_heads": 16,
        "num_queries": 300,
        "group_detr": 13,
        "mask_downsample_ratio": 4,
        "num_labels": 91,
    },
    size=(624, 624),
    tiny_values={
        "backbone_config": {"hidden_size": 24, "num_attention_heads": 2, "image_size": 96},
        "decoder_layers": 2,
        "num_queries": 5,
    },
    tiny_size=(96, 96),
)

_EOMT = Rival(
    name="EoMT Large",
    source="tue-mps/coco_instance_eomt_large_640",
    classes=(EomtConfig, EomtForUniversalSegmentation),
    values={
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 640,
        "patch_size": 16,
        "num_blocks": 4,
        "num_upscale_blocks": 2,
        "num_queries": 200,
        "num_labels": 80,
    },
    size=(640, 640),
    tiny_values={"hidden_size": 32, "num_attention_heads": 2, "image_size": 96, "num_queries": 5},
    tiny_size=(96, 96),
)

DEPTH_RIVALS = (
    _depth_anything("Base", width=768, heads=12, fusion=128),
    _depth_anything("Small", width=384, heads=6, fusion=64),
    _DPT_LARGE,
    _GLPN,
    _ZOEDEPTH,
)
SEGMENTATION_RIVALS = (_MASK2FORMER, _RF_DETR, _EOMT)


@dataclass(frozen=True)
class Subject:
    """A model in the table: one of ours, or a rival.

    Args:
        name: for the table.
        size: height and width of its input, pixels.
        parameters: how many.
        flops: floating-point operations of one image.
    """

    name: str
    size: tuple[int, int]
    parameters: int
    flops: int

    def cells(self) -> list[str]:
        """Name, input, parameters, operations."""
        size = f"{self.size[0]} x {self.size[1]}"
        return [self.name, size, f"{self.parameters / 1e6:.1f} M", f"{self.flops / 1e9:.0f} GFLOP"]


def _described(name: str, size: tuple[int, int], model: torch.nn.Module, run: Run) -> Subject:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Subject(name, size, parameters, count_flops(run))


def _against(rival: Rival, ours: Run, setting: Setting) -> tuple[Subject, Timed, Timed]:
    """The rival, its time and ours, interleaved; the rival is freed on return."""
    size = rival.input_size(setting.tiny)
    model = setting.place(rival.build(setting.tiny))
    image = setting.images(1, *size)

    def run() -> Any:
        return model(pixel_values=image)

    # Counting operations warms the rival up; ours was warmed up in the same way.
    subject = _described(rival.name, size, model, run)
    timed = interleave(rival.name, {"rival": run, "ours": ours}, setting, warm_up=False)
    return subject, timed["rival"], timed["ours"]


def _race(name: str, model: Any, rivals: tuple[Rival, ...], setting: Setting) -> tuple[list[str], dict[str, float]]:
    """Table of one of our models beside its rivals, and the rivals' times over ours by name."""
    side = model.config.image_size
    image = setting.images(1, side, side)

    def ours() -> Any:
        return model.generate(image)

    subject = _described(name, (side, side), model, ours)
    rows, ratios = [[*subject.cells(), "", "", ""]], {}
    for rival in rivals:
        found, theirs, mine = _against(rival, ours, setting)
        ratios[rival.name] = theirs.median / mine.median
        times = (milliseconds(theirs.median), milliseconds(mine.median), f"{ratios[rival.name]:.2f}x")
        rows.append([*found.cells(), *times])
        print(" | ".join(rows[-1]), flush=True)
        gc.collect()
    return table(("model", "input", "parameters", "per image", "time (A)", "ours beside it (B)", "A / B"), rows), ratios


def measure(setting: Setting) -> Part:
    """Depth rivals beside AiT-P base, segmentation rivals beside the base instance model, batch 1."""
    parallel = setting.place(build(setting.tiny, parallel=True))
    depth_lines, ratios = _race("AiT-P base (ours)", parallel, DEPTH_RIVALS, setting)
    del parallel
    instance = setting.place(build_instance(setting.tiny))
    objects = f"AiT base instances, {instance.config.num_objects} objects (ours)"
    instance_lines, _ = _race(objects, instance, SEGMENTATION_RIVALS, setting)
    lines = [
        "Random weights, forward pass from pixels to outputs. Operations are those of matrix products, convolutions "
        "and attention, as `torch.utils.flop_counter` counts them. Rivals run interleaved with our model (A B A B).",
        "",
        f"Configurations: {', '.join(f'`{rival.source}`' for rival in (*DEPTH_RIVALS, *SEGMENTATION_RIVALS))}.",
        "",
        *depth_lines,
        "",
        *instance_lines,
    ]
    return Part("Against other models", lines, {"depth_anything": Measured(1 / ratios[DEPTH_ANYTHING_BASE], "batch 1")})
