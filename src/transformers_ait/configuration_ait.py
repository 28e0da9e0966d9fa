"""Configurations: SwinV2 backbone, tokenizers and the whole task-solver."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_token_decoder import AiTTokenDecoderConfig
from .token_vocabulary import TokenVocabulary

TOKENIZERS = {
    "depth_tokenizer_config": ("ait_vqvae", "ait_bin_tokenizer"),
    "mask_tokenizer_config": ("ait_vqvae",),
}
BIAS_CACHES = ("off", "compact", "full")
TASK_IDS = {"detection": 0, "instance": 1, "depth": 2}

_COCO_CLASS_NAMES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign "
    "parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag "
    "tie suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard "
    "tennis_racket bottle wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot "
    "hot_dog pizza donut cake chair couch potted_plant bed dining_table toilet tv laptop mouse remote keyboard "
    "cell_phone microwave oven toaster sink refrigerator book clock vase scissors teddy_bear hair_drier "
    "toothbrush"
)
COCO_CLASSES = tuple(name.replace("_", " ") for name in _COCO_CLASS_NAMES.split())


def _require_positive(config: object, *names: str) -> None:
    """Raise a ValueError for a size, or a sequence of sizes, that is not at least 1."""
    for name in names:
        value = getattr(config, name)
        if min(value if isinstance(value, list | tuple) else [value], default=0) < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


@strict
class AiTSwinV2Config(PreTrainedConfig):
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

    def validate_position_bias_cache(self):
        """The policy must be known."""
        if self.position_bias_cache not in BIAS_CACHES:
            raise ValueError(f"position_bias_cache must be one of {BIAS_CACHES}, got {self.position_bias_cache!r}.")

    def validate_stages(self):
        """Every per-stage sequence must describe the same number of stages, with widths that the heads divide."""
        _require_positive(self, "num_channels", "patch_size", "embed_dim", "depths", "num_heads", "window_sizes")
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
        """Pixels per position of the last feature map."""
        return self.patch_size * 2 ** (len(self.depths) - 1)

    @property
    def num_features(self) -> int:
        """Channels of the last feature map."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)


class _SquareGrid:
    """What every tokenizer configuration derives from its image size and downsample ratio."""

    image_size: int
    downsample_ratio: int

    @property
    def grid_size(self) -> int:
        """Side of the square grid of tokens."""
        return self.image_size // self.downsample_ratio

    @property
    def num_tokens(self) -> int:
        """Tokens of one depth map or mask."""
        return self.grid_size**2

    def validate_grid(self):
        """The image must be a whole number of tokens wide."""
        _require_positive(self, "image_size", "downsample_ratio", "num_codes")
        if self.image_size % self.downsample_ratio:
            raise ValueError(
                f"image_size must be a multiple of downsample_ratio ({self.downsample_ratio}), got {self.image_size}."
            )


@strict
class AiTVQVAEConfig(_SquareGrid, PreTrainedConfig):
    """VQ-VAE tokenizer of depth maps or box-cropped masks (AiT, arXiv 2301.02229).

    Args:
        image_size: side of the square input in pixels.
        num_channels: channels of the input.
        hidden_size: width of the FIRST convolution; doubles with every further halving of the map.
        downsample_ratio: pixels per token and axis, a power of two.
        num_resnet_blocks: residual blocks at the lowest resolution, in encoder and decoder each.
        num_codes: codebook size.
        code_dim: width of a code vector.
        symmetric_range: input in [0, 1] is mapped to [-1, 1] and the output back (masks).
        ignore_zero: pixels whose target is 0 are invalid and do not count in the reconstruction loss (depth).
        commitment_cost: weight of the commitment loss.
        ema_decay: decay of the codebook's moving averages.
        ema_epsilon: Laplace smoothing of the cluster sizes.
        tau: factor on code logits before the softmax of a soft decode (paper's inverse temperature).
    """

    model_type = "ait_vqvae"

    image_size: int = 480
    num_channels: int = 1
    hidden_size: int = 16
    downsample_ratio: int = 32
    num_resnet_blocks: int = 2
    num_codes: int = 128
    code_dim: int = 512
    symmetric_range: bool = False
    ignore_zero: bool = True
    commitment_cost: float | int = 0.25
    ema_decay: float | int = 0.99
    ema_epsilon: float = 1e-5
    tau: float | int = 1.0

    def validate_downsample_ratio(self):
        """Each convolution halves the map, so the ratio is a power of two, at least 2."""
        if self.downsample_ratio < 2 or self.downsample_ratio & (self.downsample_ratio - 1):
            raise ValueError(f"downsample_ratio must be a power of two >= 2, got {self.downsample_ratio}.")

    def validate_widths(self):
        """Nothing can be less than one channel wide."""
        _require_positive(self, "num_channels", "hidden_size", "code_dim")

    @property
    def num_downsamples(self) -> int:
        """Number of stride-2 convolutions."""
        return int(math.log2(self.downsample_ratio))

    @property
    def final_width(self) -> int:
        """Channels at the lowest resolution."""
        return self.hidden_size * self.downsample_ratio // 2


@strict
class AiTBinTokenizerConfig(_SquareGrid, PreTrainedConfig):
    """The paper's baseline tokenizer: shrink a depth map bilinearly and bin it linearly.

    Args:
        image_size: side of the square depth map in pixels.
        downsample_ratio: pixels per token and axis.
        num_codes: number of bins.
        max_value: upper end of the last bin, metres.
        tau: factor on code logits before the softmax of a soft decode.
    """

    model_type = "ait_bin_tokenizer"

    image_size: int = 480
    downsample_ratio: int = 32
    num_codes: int = 128
    max_value: float | int = 10.0
    tau: float | int = 1.0


_OWN_SUB_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    c.model_type: c for c in (AiTSwinV2Config, AiTVQVAEConfig, AiTBinTokenizerConfig)
}


def _resolve_sub_config(name: str, value: Any) -> PreTrainedConfig | None:
    """Build a sub-configuration from its dictionary; classes of this file need no Auto registration."""
    if value is None or isinstance(value, PreTrainedConfig):
        return value
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be a dictionary or a configuration object, got {type(value).__name__}.")
    model_type = value.get("model_type", "")
    if model_type not in _OWN_SUB_CONFIGS and model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{name} has model_type {model_type!r}, which is neither one of {sorted(_OWN_SUB_CONFIGS)} nor known to "
            "transformers; set `model_type` in the dictionary or pass a configuration object."
        )
    config_class = _OWN_SUB_CONFIGS.get(model_type) or CONFIG_MAPPING[model_type]
    return config_class(**{key: entry for key, entry in value.items() if key != "model_type"})


@strict
class AiTConfig(PreTrainedConfig):
    """Task-solver: backbone, encoder, token decoder, tokenizers and the shared vocabulary (AiT, arXiv 2301.02229).

    Args:
        backbone_config: `AiTSwinV2Config`, or any configuration that `AutoBackbone` takes (timm included); its last
            requested feature map is used.
        decoder_config: encoder and token decoder.
        depth_tokenizer_config: `AiTVQVAEConfig` or `AiTBinTokenizerConfig`; needed by the task "depth".
        mask_tokenizer_config: `AiTVQVAEConfig`; needed by the task "instance".
        image_size: side S of the square input in pixels; smaller images are zero-padded at bottom and right.
        feature_stride: pixels per position of the backbone map; None takes it from an `AiTSwinV2Config`, else 32.
        tasks: what the checkpoint does, of "detection", "instance", "depth".
        default_task: the task of a call that names none; None is the first of `tasks`.
        num_bins: coordinate bins.
        coordinate_scale: pixels that the coordinate bins span; None is `image_size`.
        num_mask_codes: mask-code ids in the vocabulary.
        num_depth_codes: depth-code ids in the vocabulary.
        num_spare_tokens: unused ids at the end of the vocabulary.
        num_objects: objects per decoded sequence.
        soft_feedback: feed expected embeddings back while decoding codes, instead of picked codes.
        soft_decode: decode code probabilities, and train with the auxiliary loss through the frozen detokenizer.
        parallel: AiT-P, every input after the task embedding is one learned mask embedding, one decoder pass.
        top_p: nucleus of coordinate and class sampling; 0 is greedy.
        depth_loss_weight: weight of the whole depth loss.
        depth_aux_weight: weight of the scale-invariant log loss of the soft-decoded depth.
        detection_loss_weight: weight of the whole detection loss.
        instance_loss_weight: weight of the whole instance loss.
        instance_aux_weight: weight of Dice and squared error of the soft-decoded masks.
        mask_code_weight: weight of a mask code in the cross-entropy.
        max_aux_objects: objects per image, at most, in the auxiliary mask loss.
        initialization_only: part of the weights (the decoder, say) is untrained, so the checkpoint can start a training
            but predict nothing; set to False once trained.
    """

    model_type = "ait"
    # Any below, because a field holds a dictionary before __post_init__ and a configuration object ever after.
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(AiTSwinV2Config, optional=True),
        "decoder_config": SubConfigSpec(AiTTokenDecoderConfig),
        "depth_tokenizer_config": SubConfigSpec(AiTVQVAEConfig, optional=True),
        "mask_tokenizer_config": SubConfigSpec(AiTVQVAEConfig, optional=True),
    }

    backbone_config: Any = None
    decoder_config: Any = None
    depth_tokenizer_config: Any = None
    mask_tokenizer_config: Any = None
    image_size: int = 480
    feature_stride: int | None = None
    tasks: list[str] | tuple[str, ...] = ("depth",)
    default_task: str | None = None
    num_bins: int = 2000
    coordinate_scale: int | float | None = None
    num_mask_codes: int = 128
    num_depth_codes: int = 128
    num_spare_tokens: int = 0
    num_objects: int = 100
    soft_feedback: bool = True
    soft_decode: bool = True
    parallel: bool = False
    top_p: float | int = 0.3
    depth_loss_weight: float | int = 1.0
    depth_aux_weight: float | int = 1.0
    detection_loss_weight: float | int = 1.0
    instance_loss_weight: float | int = 1.0
    instance_aux_weight: float | int = 5.0
    mask_code_weight: float | int = 0.2
    max_aux_objects: int = 100
    initialization_only: bool = False

    def __post_init__(self, **kwargs):
        self.backbone_config = _resolve_sub_config("backbone_config", self.backbone_config) or AiTSwinV2Config()
        for name in ("depth_tokenizer_config", "mask_tokenizer_config"):
            setattr(self, name, _resolve_sub_config(name, getattr(self, name)))
            if getattr(self, name) is not None and getattr(self, name).model_type not in TOKENIZERS[name]:
                raise ValueError(
                    f"{name} must have a model_type of {TOKENIZERS[name]}, got {getattr(self, name).model_type!r}."
                )
        if self.depth_tokenizer_config is None and "depth" in self.tasks:
            self.depth_tokenizer_config = AiTVQVAEConfig(tau=0.8)
        if self.mask_tokenizer_config is None and "instance" in self.tasks:
            self.mask_tokenizer_config = AiTVQVAEConfig(
                image_size=64, downsample_ratio=16, symmetric_range=True, ignore_zero=False
            )
        if self.feature_stride is None:
            self.feature_stride = getattr(self.backbone_config, "stride", 32)
        if self.coordinate_scale is None:
            self.coordinate_scale = self.image_size
        if self.default_task is None and self.tasks:
            self.default_task = self.tasks[0]
        if self.id2label is None and kwargs.get("num_labels") is None:
            self.id2label = dict(enumerate(COCO_CLASSES))
            self.label2id = {name: index for index, name in self.id2label.items()}
        super().__post_init__(**kwargs)

    @property
    def vocabulary(self) -> TokenVocabulary:
        """The token map, the only source of vocabulary offsets and sizes."""
        return TokenVocabulary(
            num_bins=self.num_bins,
            num_classes=self.num_labels,
            num_mask_codes=self.num_mask_codes,
            num_depth_codes=self.num_depth_codes,
            num_spare=self.num_spare_tokens,
        )

    @property
    def grid_size(self) -> int:
        """Side of the backbone map, and of the encoder's position table, for a full-size image."""
        return self.image_size // self.feature_stride

    @property
    def tokens_per_object(self) -> dict[str, int]:
        """Tokens of one object for the tasks that write objects: four coordinates, the class, and the mask codes."""
        mask_tokens = self.mask_tokenizer_config.num_tokens if self.mask_tokenizer_config is not None else 0
        return {"detection": 5, "instance": 5 + mask_tokens}

    def sequence_length(self, task: str) -> int:
        """Number of tokens that `task` decodes."""
        if task == "depth":
            return self.depth_tokenizer_config.num_tokens
        return self.num_objects * self.tokens_per_object[task]

    def validate_tasks(self):
        """Tasks must be known, and the default one of them."""
        unknown = sorted(set(self.tasks) - set(TASK_IDS))
        if unknown or not self.tasks:
            raise ValueError(f"tasks must name at least one of {sorted(TASK_IDS)}, got {list(self.tasks)}.")
        if self.parallel and set(self.tasks) != {"depth"}:
            raise ValueError(
                f"parallel decoding is for tasks ['depth'] alone, got {list(self.tasks)}; set parallel=False."
            )
        if self.default_task not in self.tasks:
            raise ValueError(f"default_task must be one of tasks {list(self.tasks)}, got {self.default_task!r}.")

    def validate_image_size(self):
        """The position table needs whole positions, and no tokenizer may look at more than the model sees."""
        _require_positive(self, "image_size", "feature_stride")
        if self.image_size % self.feature_stride:
            raise ValueError(
                f"image_size must be a multiple of feature_stride {self.feature_stride}, got {self.image_size}."
            )
        stride = getattr(self.backbone_config, "stride", self.feature_stride)
        if stride != self.feature_stride:
            raise ValueError(
                f"feature_stride must be {stride}, backbone_config's stride, or left out; got {self.feature_stride}."
            )
        if "depth" in self.tasks and self.depth_tokenizer_config.image_size > self.image_size:
            raise ValueError(
                f"depth_tokenizer_config.image_size must not exceed the model's image_size {self.image_size}, got "
                f"{self.depth_tokenizer_config.image_size}."
            )

    def validate_tokenizers(self):
        """Codebooks must fit the vocabulary's ranges, sequences the position tables."""
        for task, tokenizer, name in (
            ("depth", self.depth_tokenizer_config, "num_depth_codes"),
            ("instance", self.mask_tokenizer_config, "num_mask_codes"),
        ):
            if task in self.tasks and tokenizer.num_codes != getattr(self, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but the {task} tokenizer has {tokenizer.num_codes} codes; "
                    f"set {name}={tokenizer.num_codes} or use a tokenizer of {getattr(self, name)} codes."
                )
        for task in self.tasks:
            if self.sequence_length(task) > self.decoder_config.max_positions:
                raise ValueError(
                    f"decoder_config.max_positions must be at least {self.sequence_length(task)}, the sequence "
                    f"length of task {task!r}; got {self.decoder_config.max_positions}."
                )
