"""SwinV2 backbone with a window size and a shift switch per stage."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput

from .configuration_ait_swinv2 import AiTSwinV2Config
from .layer_states_ait import LayerStates
from .pretrained_ait import AiTBaseModel
from .window_attention_ait import AiTSwinV2Attention, Workspace, relative_coordinates, shift_masks

# On a CPU, inference passes as many images at once through a block as keep its widest tensor below this: the C library
# hands larger ones back to the system, and touching fresh pages costs more than a batch saves.
CPU_CHUNK_BYTES = 32 * 2**20


class AiTLayerNorm(nn.LayerNorm):
    """LayerNorm that computes in float32 whatever the model's dtype."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last axis."""
        if input.dtype == self.weight.dtype:
            return super().forward(input)  # the kernels keep float32 inside, and save two copies
        normalized = F.layer_norm(
            input.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )
        return normalized.to(input.dtype)


class AiTSwinV2Block(GradientCheckpointingLayer):
    """`x + norm(attention(x))`, then `x + norm(mlp(x))`: SwinV2's residual post-norm."""

    def __init__(self, config: AiTSwinV2Config, stage: int, shifts: bool, drop_path: float):
        super().__init__()
        width = config.embed_dim * 2**stage
        self.attention = AiTSwinV2Attention(config, stage, shifts)
        self.norm1 = AiTLayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), act_layer=nn.GELU)
        self.norm2 = AiTLayerNorm(width, eps=config.layer_norm_eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, workspace: Workspace) -> Tensor:
        """(B, H, W, C) to the same shape."""
        x = x + self.drop_path(self.norm1(self.attention(x, workspace)))
        return x + self.drop_path(self.norm2(self.mlp(x)))

    def forward_tokens(self, x: Tensor, positions: Tensor) -> Tensor:
        """Some tokens (B, k, C) of a map that is one window to the same shape, see the attention."""
        x = x + self.drop_path(self.norm1(self.attention.forward_tokens(x, positions)))
        return x + self.drop_path(self.norm2(self.mlp(x)))


class AiTSwinV2Downsample(nn.Module):
    """Patch merging: 2 x 2 neighbours concatenated, reduced to twice the width, normalised."""

    def __init__(self, width: int, layer_norm_eps: float):
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = AiTLayerNorm(2 * width, eps=layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), 2C)."""
        if x.shape[1] % 2 or x.shape[2] % 2:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        neighbours = (x[:, row::2, column::2] for column in (0, 1) for row in (0, 1))
        return self.norm(self.reduction(torch.cat(tuple(neighbours), dim=-1)))


class AiTSwinV2Stage(nn.Module):
    """Blocks of one resolution, then patch merging (absent after the last stage)."""

    def __init__(self, config: AiTSwinV2Config, stage: int, drop_paths: list[float]):
        super().__init__()
        shifts = config.shift_windows[stage]
        self.blocks = nn.ModuleList(
            AiTSwinV2Block(config, stage, shifts and index % 2 == 1, rate) for index, rate in enumerate(drop_paths)
        )
        self.widest = int(config.embed_dim * 2**stage * config.mlp_ratio)
        # Runs the blocks with fewer tokens in the middle, see `hourglass_images`: (map, blocks, workspace) to the map.
        self.hourglass: Callable[..., Tensor] | None = None
        last = stage == len(config.depths) - 1
        self.downsample = None if last else AiTSwinV2Downsample(config.embed_dim * 2**stage, config.layer_norm_eps)

    def forward(self, x: Tensor, workspace: Workspace) -> Tensor:
        """(B, H, W, C) to the next stage's (B, H', W', C')."""
        x = workspace.leave(self._run_blocks(x, workspace))
        return x if self.downsample is None else self.downsample(x)

    def _run_blocks(self, x: Tensor, workspace: Workspace) -> Tensor:
        """(B, H, W, C) to the same shape, the stage's map."""
        if workspace.attentions is not None and self.hourglass is not None:
            raise ValueError(
                "output_attentions is not possible with an hourglass, whose blocks attend among other tokens each; "
                "call its handle's remove() first."
            )
        # What is gathered must hold the whole batch.
        images = x.shape[0] if workspace.attentions is not None else _images_at_once(x, self.widest)
        own = False
        if self.hourglass is not None:
            x = torch.cat([self.hourglass(chunk, self.blocks, workspace) for chunk in x.split(images)])
        for block in self.blocks if self.hourglass is None else ():
            if images < x.shape[0]:  # len() would fix the batch of an exported program
                # The stage's input is the caller's, or a hook's, to keep; what follows is overwritten.
                target = x if own else torch.empty_like(x)
                for chunk, result in zip(x.split(images), target.split(images), strict=True):
                    result.copy_(block(chunk, workspace))
                x, own = target, True
            else:
                x = block(x, workspace)
        return x


def _images_at_once(x: Tensor, widest: int) -> int:
    """How many images of x (B, H, W, C) a block should take at once, given the width of its widest tensor."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
        return x.shape[0]
    return max(1, CPU_CHUNK_BYTES // (x[0, ..., 0].numel() * widest * x.element_size()))


class AiTSwinV2Embeddings(nn.Module):
    """Patches to vectors: strided convolution, LayerNorm."""

    def __init__(self, config: AiTSwinV2Config):
        super().__init__()
        self.projection = nn.Conv2d(config.num_channels, config.embed_dim, config.patch_size, stride=config.patch_size)
        self.norm = AiTLayerNorm(config.embed_dim, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H / patch, W / patch, D); sides are zero-padded to whole patches."""
        patch = self.projection.stride[0]
        pixel_values = F.pad(pixel_values, (0, -pixel_values.shape[3] % patch, 0, -pixel_values.shape[2] % patch))
        return self.norm(self.projection(pixel_values).permute(0, 2, 3, 1))


class AiTSwinV2Backbone(BackboneMixin, AiTBaseModel):
    """Backbone of the task-solver; its feature maps are those of the stages that `out_features` names.

    Maps are as the stages leave them, before their patch merging; the last stage's is normalised.
    """

    config: AiTSwinV2Config
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _no_split_modules = ["AiTSwinV2Block"]

    def __init__(self, config: AiTSwinV2Config):
        super().__init__(config)
        total = sum(config.depths)
        rates = [config.drop_path_rate * index / max(total - 1, 1) for index in range(total)]
        starts = [sum(config.depths[:stage]) for stage in range(len(config.depths))]
        self.embeddings = AiTSwinV2Embeddings(config)
        self.stages = nn.ModuleList(
            AiTSwinV2Stage(config, stage, rates[start : start + depth])
            for stage, (start, depth) in enumerate(zip(starts, config.depths, strict=True))
        )
        self.norm = AiTLayerNorm(config.num_features, eps=config.layer_norm_eps)
        widths = [config.embed_dim * 2**stage for stage in range(len(config.depths))]
        self.num_features = [config.embed_dim, *widths]  # of the stem and of every stage
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, AiTSwinV2Attention):
            init.zeros_(module.q_bias)
            init.zeros_(module.v_bias)
            init.constant_(module.logit_scale, math.log(10.0))
            init.copy_(module.coordinates, relative_coordinates(module.window, module.pretrained_window))
            if module.shift:
                init.copy_(module.shift_masks, shift_masks(module.window, module.shift))

    def get_input_embeddings(self) -> nn.Module:
        """The patch embedding."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the patch embedding by another module of images (B, C, H, W) to (B, h, w, embed_dim)."""
        self.embeddings = value  # type: ignore[assignment]

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput | tuple:
        """Maps of an image of any size.

        Args:
            pixel_values: (B, C, H, W).
            output_hidden_states: also return the maps of the stem and of every stage.
            output_attentions: also return attention weights; those blocks write the softmax out, whatever
                `attn_implementation` says. Not possible with an hourglass.
            return_dict: False returns a tuple; None leaves these three to the configuration.
            kwargs: ignored, so that every AutoBackbone can be called alike.

        Returns:
            `feature_maps`, one (B, channels, h, w) per name of `out_features`, the finest first; of "stage2", say, h is
            H / (2 * patch_size), rounded up. `hidden_states`, one (B, h * w, channels) per name of `stage_names`,
            holding the same numbers. `attentions`, one per block (transformers' Swin models give those of every stage's
            last block): (B * windows, heads, window^2, window^2), windows in the order of the shifted map's rows.

        Raises:
            ValueError: attention weights of stages with an hourglass.
        """
        states = LayerStates.asked(self.config, output_hidden_states, output_attentions)
        wanted = [index % len(self.stage_names) for index in self.config.out_indices]
        # Stages after the last map that is asked for do not run.
        count = len(self.stages) if states.any else wanted[-1]
        only_last = wanted == [len(self.stages)] and states.hidden_states is None
        workspace = Workspace(states.attentions, None if only_last else [])
        x = workspace.leave(self.embeddings(pixel_values.to(self.norm.weight.dtype)))
        for stage in self.stages[:count]:
            x = stage(x, workspace)
        left = workspace.maps or []
        if count == len(self.stages):
            del left[-1:]
            x = workspace.leave(self.norm(x))
        maps = dict(enumerate(entry for _, entry in left)) if left else {count: x}
        feature_maps: Any = tuple(maps[index].permute(0, 3, 1, 2) for index in wanted)
        output = BackboneOutput(
            feature_maps=feature_maps,
            hidden_states=None if states.hidden_states is None else tuple(sequence for sequence, _ in left),
            attentions=None if states.attentions is None else tuple(states.attentions),
        )
        return self.as_asked(output, return_dict)
