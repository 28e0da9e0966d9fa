"""Configuration of the SwinV2 backbone."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin

from .configuration_checks_ait import MAX_LAYERS, AiTBaseConfig, check_list, require_positive

BIAS_CACHES = ("off", "compact", "full")


@strict
class AiTSwinV2Config(BackboneConfigMixin, AiTBaseConfig):
    """SwinV2 backbone whose windows and shifts are set per stage.

    Args:
        num_channels: image channels.
        patch_size: side of a patch in pixels.
        embed_dim: width of the first stage; doubles with every further stage.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        window_sizes: attention window side per stage, in tokens of that stage.
        pretrained_window_sizes: window sides in pretraining, which scale the log-spaced relative coordinates.
        shift_windows: per stage, whether odd blocks shift by half a window (even where one window covers the map).
        mlp_ratio: hidden width of the MLPs over the stage's width.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 over the blocks.
        layer_norm_eps: epsilon of every LayerNorm.
        initializer_range: standard deviation of the truncated-normal initialisation.
        position_bias_cache: what inference keeps of each block's position bias until its weights change: "off" nothing,
            "compact" the table of (heads, (2 * window - 1)^2) values (5 MB in all for the base model), "full" also the
            expanded tensors of (heads, window^2, window^2) values (1.1 GB in float32 for the base model).

    `out_features` names the feature maps, of `stage_names` ("stem", "stage1", ...), as in transformers' own backbones;
    `out_indices` numbers them. Without either it is the last stage's.
    """

    model_type = "ait_swinv2"
    base_config_key = "backbone_config"

    num_channels: int = 3
    patch_size: int = 4
    embed_dim: int = 128
    depths: list[int] | tuple[int, ...] = (2, 2, 18, 2)
    num_heads: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    window_sizes: list[int] | tuple[int, ...] = (30, 30, 30, 15)
    pretrained_window_sizes: list[int] | tuple[int, ...] = (12, 12, 12, 6)
    shift_windows: list[bool] | tuple[bool, ...] = (True, True, False, False)
    mlp_ratio: float | int = 4.0
    drop_path_rate: float | int = 0.1
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    position_bias_cache: str = "compact"
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.stage_names = ["stem"] + [f"stage{index}" for index in range(1, len(self.depths) + 1)]
        kwargs.pop("stage_names", None)  # follows from depths, which a call may have changed
        features, indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        _check_outputs(features, indices, len(self.stage_names))
        self.set_output_features_output_indices(features, indices)
        super().__post_init__(**kwargs)

    def validate_position_bias_cache(self):
        """The policy must be known."""
        if self.position_bias_cache not in BIAS_CACHES:
            raise ValueError(f"position_bias_cache must be one of {BIAS_CACHES}, got {self.position_bias_cache!r}.")

    def validate_stages(self):
        """Every per-stage sequence must describe the same number of stages, with widths that the heads divide."""
        require_positive(self, "num_channels", "patch_size", "embed_dim", "num_heads", "window_sizes")
        require_positive(self, "depths", most=MAX_LAYERS)
        for name in ("num_heads", "window_sizes", "pretrained_window_sizes", "shift_windows"):
            if len(getattr(self, name)) != len(self.depths):
                raise ValueError(
                    f"{name} must have one entry per stage ({len(self.depths)}, as depths), got {getattr(self, name)}."
                )
        for stage, heads in enumerate(self.num_heads):
            if (self.embed_dim * 2**stage) % heads:
                raise ValueError(
                    f"num_heads[{stage}] must divide the stage's width {self.embed_dim * 2**stage}, got {heads}."
                )

    @property
    def stride(self) -> int:
        """Pixels per position of the last feature map that `out_features` asks for."""
        stage = self.out_indices[-1] % len(self.stage_names)
        return self.patch_size * 2 ** max(stage - 1, 0)

    @property
    def num_features(self) -> int:
        """Channels of the last stage."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)


def _check_outputs(features: Any, indices: Any, num_stages: int) -> None:
    """Raise an error for feature maps that are none, which transformers answers with what it stumbles over."""
    for name, value, kind in (("out_features", features, str), ("out_indices", indices, int)):
        if value is None:
            continue
        check_list(name, value, "stages")
        if not value or not all(isinstance(entry, kind) and not isinstance(entry, bool) for entry in value):
            raise ValueError(f"{name} must be at least one stage, each a {kind.__name__}, got {value!r:.80}.")
        if kind is int and not all(-num_stages <= entry < num_stages for entry in value):
            raise ValueError(f"{name} must lie in {-num_stages}..{num_stages - 1}, got {value!r:.80}.")


__all__ = ["BIAS_CACHES", "AiTSwinV2Config"]
