"""Configuration of UniPixTask's dense decoder, the tokenizer that looks at the image in place of the label."""

from collections.abc import Mapping
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_ait_swinv2 import AiTSwinV2Config
from .configuration_checks_ait import (
    MAX_LAYERS,
    AiTBaseConfig,
    check_common,
    check_list,
    require_positive,
    resolve_sub_config,
)
from .configuration_tokenizers import MapTokenizer


@strict
class DenseDecoderConfig(MapTokenizer, AiTBaseConfig):
    """Dense decoder of one task: image to codes, codes to the features of a frozen task head, features to the map.

    (UniPixTask, section 3.2 and table 8; sizes are those of its semantic segmentation.) What a task head needs is
    described by `teacher_config` and `feature_shapes`, which `describe_teacher` reads off a trained task model.

    Args:
        map_kind: what the task head predicts, a key of `MAP_KINDS` except "mask".
        image_size: side S of the square image in pixels; smaller images are zero-padded at bottom and right.
        num_channels: channels of the map; None is what the kind says, one per class for classes, else 1.
        downsample_ratio: pixels per code and axis, twice those per position of the latent features: 32 in the paper for
            segmentation, 16 for depth and normals.
        num_codes: codebook size k.
        code_dim: width d of a code vector; 16 in the paper for segmentation, 64 for depth and normals.
        hidden_size: width of latent features, restoration and transformers; divisible by 4, by the heads and by
            `num_groups`.
        num_layers: layers of each of the two transformers.
        num_attention_heads: heads of every attention.
        intermediate_size: hidden width of the feed-forward networks.
        num_groups: groups of the GroupNorm after the transposed convolution.
        dropout: dropout probability of the transformers in training.
        drop_path_rate: stochastic-depth probability of every residual branch of the transformers.
        layer_norm_eps: epsilon of every LayerNorm.
        initializer_range: standard deviation of the truncated-normal initialisation of the transformers.
        codebook_update: "gradient", the codebook loss of the paper's equation 2, or in its place moving averages,
            "ema".
        codebook_weight: weight of the codebook loss |sg(z') - e|^2; of "gradient" alone.
        commitment_weight: weight of the commitment loss |z' - sg(e)|^2.
        relative_features: divide the squared error of each feature map by the variance of the teacher's, so that maps
            of any size weigh the same; the paper takes the plain error.
        ema_decay: decay of the moving averages of cluster sizes and, for "ema", of the codebook.
        ema_epsilon: Laplace smoothing of the cluster sizes.
        tau: factor on code logits before the softmax of a soft decode.
        has_encoder: whether there is an encoded mapping; without it, codes are only decoded.
        backbone_config: of the encoded mapping: `AiTSwinV2Config`, or any configuration that `AutoBackbone` takes; all
            requested feature maps are used.
        teacher_config: configuration of the task model that the head comes from, with its `model_type`.
        teacher_task: which of its tasks, where a teacher has several.
        teacher_name: folder or name on the Hub that the teacher was loaded from.
        teacher_revision: its revision on the Hub.
        teacher_fingerprint: SHA-256 of its weights, by which a changed teacher is noticed.
        feature_shapes: (channels, height, width) of each map that the task head takes of an image of `image_size`.
        image_mean: mean of each image channel that the teacher expects; None where pixels stay in [0, 1].
        image_std: standard deviation likewise.
    """

    model_type = "dense_decoder"
    encodes_images = True
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AiTSwinV2Config, optional=True)}

    map_kind: str = "classes"
    image_size: int = 640
    num_channels: int | None = None
    downsample_ratio: int = 32
    num_codes: int = 1024
    code_dim: int = 16
    hidden_size: int = 512
    num_layers: int = 3
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    num_groups: int = 32
    dropout: float | int = 0.1
    drop_path_rate: float | int = 0.0
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    codebook_update: Literal["gradient", "ema"] = "gradient"
    codebook_weight: float | int = 1.0
    commitment_weight: float | int = 1.0
    relative_features: bool = False
    ema_decay: float | int = 0.99
    ema_epsilon: float = 1e-5
    tau: float | int = 1.0
    has_encoder: bool = True
    backbone_config: Any = None
    teacher_config: Any = None
    teacher_task: str | None = None
    teacher_name: str | None = None
    teacher_revision: str | None = None
    teacher_fingerprint: str | None = None
    feature_shapes: Any = ((256, 160, 160),)
    image_mean: list[float | int] | tuple[float | int, ...] | None = None
    image_std: list[float | int] | tuple[float | int, ...] | None = None

    def __post_init__(self, **kwargs):
        check_common({**vars(self), **kwargs})  # before channels are taken from the classes
        backbone = resolve_sub_config("backbone_config", self.backbone_config, [AiTSwinV2Config], others=True)
        stages: Any = {"out_features": ["stage1", "stage2", "stage3"]}  # up to the latent features' stride of 16
        self.backbone_config = backbone or AiTSwinV2Config(**stages)
        if isinstance(self.teacher_config, PreTrainedConfig):
            self.teacher_config = self.teacher_config.to_dict()
        self.teacher_config = _numbered(self.teacher_config)
        check_list("feature_shapes", self.feature_shapes, "(channels, height, width) of the task head's inputs")
        self.feature_shapes = [list(shape) for shape in self.feature_shapes]  # as JSON gives them back
        self._settle_channels(kwargs)
        super().__post_init__(**kwargs)

    @property
    def latent_stride(self) -> int:
        """Pixels per position of the latent features, s in the paper."""
        return self.downsample_ratio // 2

    @property
    def latent_size(self) -> int:
        """Side of the square map of latent features."""
        return self.image_size // self.latent_stride

    def validate_kind(self):
        """Box crops of masks are no maps of whole images."""
        if self.map_kind == "mask":
            raise ValueError("map_kind must not be 'mask': a dense decoder predicts maps of whole images.")

    def validate_ratio(self):
        """Codes stand at every second latent position."""
        if self.downsample_ratio < 2 or self.downsample_ratio % 2:
            raise ValueError(f"downsample_ratio must be even and at least 2, got {self.downsample_ratio}.")

    def validate_widths(self):
        """Widths that heads, groups and the sine table can split."""
        require_positive(self, "code_dim", "hidden_size", "num_attention_heads", "intermediate_size", "num_groups")
        require_positive(self, "num_layers", most=MAX_LAYERS)
        for name, number in (("num_attention_heads", self.num_attention_heads), ("num_groups", self.num_groups)):
            if self.hidden_size % number:
                raise ValueError(f"hidden_size must be divisible by {name} ({number}), got {self.hidden_size}.")
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size must be divisible by 4, got {self.hidden_size}.")

    def validate_losses(self):
        """Weights cannot be negative."""
        for name in ("codebook_weight", "commitment_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}.")

    def validate_teacher(self):
        """A teacher's configuration says which model it is of, and what its head takes are maps."""
        config = self.teacher_config
        if config is not None and not (isinstance(config, Mapping) and isinstance(config.get("model_type"), str)):
            raise ValueError(f"teacher_config must be a configuration with its model_type, got {config!r:.80}.")
        sizes = [shape for shape in self.feature_shapes if len(shape) == 3 and all(_is_size(size) for size in shape)]
        if not sizes or len(sizes) < len(self.feature_shapes):
            raise ValueError(
                f"feature_shapes must hold (channels, height, width) of at least one map, got {self.feature_shapes}."
            )

    def validate_normalization(self):
        """Mean and standard deviation come together, one value per channel."""
        given = [values for values in (self.image_mean, self.image_std) if values is not None]
        if len(given) == 1 or any(len(values) != 3 for values in given) or 0 in (self.image_std or ()):
            raise ValueError(
                "image_mean and image_std must both be given, three values each and no deviation of 0, got "
                f"{self.image_mean} and {self.image_std}."
            )


def _numbered(value: Any) -> Any:
    """Nested dictionaries with numbers as keys where JSON, which sorts "10" before "2", gives them back as text."""
    if not isinstance(value, Mapping):
        return value
    if value and all(isinstance(key, str) and key.isdecimal() for key in value):
        value = dict(sorted((int(key), entry) for key, entry in value.items()))
    return {key: _numbered(entry) for key, entry in value.items()}


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


__all__ = ["DenseDecoderConfig"]
