"""What the models of the family have in common, and `AiTModel`: backbone, encoder and token decoder."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoBackbone
from transformers import initialization as init
from transformers.utils import logging

from .configuration_ait import AiTConfig
from .feature_restoration import FeaturePyramid, init_convolution
from .layer_states_ait import LayerStates
from .modeling_ait_swinv2 import AiTSwinV2Backbone
from .modeling_token_decoder import AiTEncoder, AiTTokenDecoder, sine_table
from .outputs_ait import AiTModelOutput
from .pretrained_ait import AiTBaseModel
from .token_vocabulary import shared_ids

logger = logging.get_logger(__name__)
UNREAD_STAGES = r"(^|\.)backbone\._backbone\.blocks\.\d+\."
# Tables with one row per id of the vocabulary.
ID_TABLES = ("decoder.token_embeddings", "decoder.output_bias")
# Arguments of `from_pretrained` that say where the weights are, and not what model they are for.
SOURCE_ARGUMENTS = (
    *(
        "cache_dir",
        "force_download",
        "local_files_only",
        "revision",
        "subfolder",
        "token",
        "use_safetensors",
        "variant",
    ),
)


def build_backbone(config: Any) -> Any:
    """A backbone with random weights, without stages that come after its last requested map."""
    # By model type, not class: remote code may hold a second copy of the configuration class.
    if config.model_type == "ait_swinv2":
        return AiTSwinV2Backbone(config)
    backbone = AutoBackbone.from_config(config)
    network = getattr(backbone, "_backbone", None)
    # timm's EfficientNets and MobileNets run and store all their stages; the table is private, hence the default.
    stages = getattr(network, "_stage_out_idx", None)
    if network is not None and stages:
        network.blocks = network.blocks[: max(stages)]
    return backbone


def entrance(backbone: nn.Module) -> nn.Module:
    """The module of a backbone that the image enters first, whose output is a tensor."""
    try:
        return backbone.get_input_embeddings()  # type: ignore[operator]
    except NotImplementedError:  # timm's
        return next((layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d)), backbone)


def pad_images(pixel_values: Tensor, size: int) -> Tensor:
    """Images (B, 3, S, S) of images (B, 3, H, W), zero-padded at bottom and right.

    Raises:
        ValueError: an image is larger than S.
    """
    if pixel_values.ndim != 4 or max(pixel_values.shape[2:]) > size:
        raise ValueError(
            f"pixel_values must be (batch, channels, height, width) with sides of at most {size}, the model's "
            f"image_size, got {tuple(pixel_values.shape)}; resize with the checkpoint's image processor."
        )
    height, width = pixel_values.shape[2:]
    return F.pad(pixel_values, (0, size - width, 0, size - height))


class AiTPreTrainedModel(AiTBaseModel):
    """What the models of this family share."""

    config: AiTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["AiTSwinV2Block", "AiTEncoderBlock", "AiTDecoderBlock"]
    # Checkpoints of before hold stages that no map came from, see `build_backbone`.
    _keys_to_ignore_on_load_unexpected = [UNREAD_STAGES]
    # Codes are nearest neighbours and depth spans metres: both want full precision, and the tokenizers are small.
    _keep_in_fp32_modules_strict = ["depth_tokenizer", "mask_tokenizer", "dense_tokenizers"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load a checkpoint; see `PreTrainedModel.from_pretrained`.

        With other classes (`num_labels`, `id2label`) and `ignore_mismatched_sizes=True`, the tables over the vocabulary
        do not fit, but their rows of coordinates, codes, and classes of the same name are kept all the same. What
        starts anew is reported.

        Raises:
            OSError: the weights are missing, damaged or of another model.
        """
        if not kwargs.get("ignore_mismatched_sizes"):
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        with_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        model, info = loaded
        if any(name.endswith(f".{ID_TABLES[0]}") or name == ID_TABLES[0] for name, *_ in info["mismatched_keys"]):
            _keep_known_rows(model, pretrained_model_name_or_path, kwargs)
        return (model, info) if with_info else model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.decoder_config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, nn.Conv2d):  # of the feature pyramid; backbones start as their own classes say
            init_convolution(module)
        elif isinstance(module, AiTEncoder):
            init.copy_(module.positions, sine_table(module.grid_size, module.config.hidden_size))
        elif isinstance(module, AiTTokenDecoder):
            for embedding in (module.token_embeddings, module.task_embeddings, module.position_embeddings):
                init.trunc_normal_(embedding, std=std)
            if module.mask_embedding is not None:
                init.trunc_normal_(module.mask_embedding, std=std)
            init.zeros_(module.output_bias)


class AiTModel(AiTPreTrainedModel):
    """Backbone, encoder and token decoder without tokenizers; its output is the encoder's memory."""

    # The tokenizers belong to AiTForDenseAndInstancePrediction, whose checkpoints this class loads too.
    _keys_to_ignore_on_load_unexpected = [r"^(depth_tokenizer|mask_tokenizer|dense_tokenizers)\.", UNREAD_STAGES]

    def __init__(self, config: AiTConfig):
        super().__init__(config)
        self.backbone = build_backbone(config.backbone_config)
        width, channels = config.decoder_config.hidden_size, self.backbone.channels
        self.pyramid = FeaturePyramid(channels, width) if config.feature_pyramid else None
        in_channels = channels[-1] if self.pyramid is None else width
        self.encoder = AiTEncoder(config.decoder_config, in_channels, config.grid_size)
        self.decoder = AiTTokenDecoder(
            config.decoder_config, config.vocabulary.size, config.parallel, config.num_task_rows
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The module that the image enters: the backbone's patch embedding or first convolution."""
        return entrance(self.backbone)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's patch embedding, where it has one."""
        self.backbone.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Backbone map (B, C, h, w) of images (B, 3, H, W), zero-padded at bottom and right to the model's size.

        With `feature_pyramid` it is the sum of all maps, as wide as the decoder.

        Raises:
            ValueError: an image is larger than the model's size, or the backbone's stride is not the configured one.
        """
        size = self.config.image_size
        # Not self.dtype, which replicas of nn.DataParallel cannot answer.
        padded = pad_images(pixel_values.to(self.decoder.token_embeddings.dtype), size)
        feature_maps = self.backbone(padded).feature_maps
        if self.pyramid is not None:
            return self.pyramid(feature_maps, self.config.grid_size)
        feature_map = feature_maps[-1]
        grid = (self.config.grid_size, self.config.grid_size)
        if feature_map.shape[2:] != grid:
            raise ValueError(
                f"The backbone's last feature map is {tuple(feature_map.shape[2:])}, but image_size {size} and "
                f"feature_stride {self.config.feature_stride} ask for {grid}; set feature_stride, or choose another "
                "map through out_indices of backbone_config."
            )
        return feature_map

    def get_encoder_memory(self, pixel_values: Tensor, states: LayerStates | None = None) -> Tensor:
        """Memory (B, N, d) that the decoder attends to, of images (B, 3, H, W); `states` gathers the encoder's."""
        features = self.get_image_features(pixel_values)
        return self.encoder(features) if states is None else self.encoder(features, states)

    def forward(
        self,
        pixel_values: Tensor,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> AiTModelOutput | tuple:
        """Memory and backbone map of images.

        Args:
            pixel_values: (B, 3, H, W).
            return_dict: False returns a tuple.
            output_hidden_states: also return the encoder's hidden states; the backbone's are its own to give, see
                `AiTSwinV2Backbone.forward`.
            output_attentions: also return the encoder's attention weights; its layers then write the softmax out,
                whatever `attn_implementation` says.
            kwargs: what transformers may hand to any model; it changes nothing here.

        Raises:
            TypeError: another argument.
            ValueError: an image is larger than the model's size.
        """
        self.check_kwargs(kwargs)
        states = LayerStates.asked(self.config, output_hidden_states, output_attentions)
        feature_map = self.get_image_features(pixel_values)
        output = AiTModelOutput(
            last_hidden_state=self.encoder(feature_map, states.or_none),
            feature_map=feature_map,
            **states.tuples(hidden_states="hidden_states", attentions="attentions"),
        )
        return self.as_asked(output, return_dict)


@torch.no_grad()
def _keep_known_rows(model: Any, source: Any, kwargs: Mapping[str, Any]) -> None:
    """Give a model with other classes the rows of the ids that the checkpoint's vocabulary has too."""
    earlier = AiTModel.from_pretrained(source, **{name: kwargs[name] for name in SOURCE_ARGUMENTS if name in kwargs})
    holder = model if isinstance(model, AiTModel) else model.model
    before, now = (list(config.id2label.values()) for config in (earlier.config, model.config))
    pairs = shared_ids(earlier.config.vocabulary, model.config.vocabulary, before, now)
    source_rows, target_rows = torch.tensor(pairs).T
    for name in ID_TABLES:
        learnt, own = (x.decoder.get_parameter(name.removeprefix("decoder.")) for x in (earlier, holder))
        if learnt.shape[1:] != own.shape[1:]:
            return  # another width: nothing of it can be kept
        own[target_rows] = learnt[source_rows].to(own)
    new = [name for name in now if name not in before]
    logger.warning(
        f"Of the vocabulary's {model.config.vocabulary.size} ids, {len(pairs)} keep what the checkpoint has learnt for "
        f"them. Classes {[name for name in now if name in before]} are kept, {new} are new and start untrained."
    )
