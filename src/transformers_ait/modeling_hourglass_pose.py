"""Pose lifting: MixSTE, MotionBERT, MHFormer with fewer frames in the middle (HoT, arXiv 2311.12028)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_hourglass_pose import HourglassPoseConfig
from .hourglass import Hourglass
from .hypotheses_pose import (
    CrossHypothesisBlock,
    HypothesisEncoder,
    HypothesisGeneration,
    HypothesisHead,
    SelfHypothesisBlock,
)
from .loading_ait import CheckedLoading
from .losses_pose import mean_joint_error, pose_losses, total_pose_loss
from .token_pruning import Pruned
from .token_recovery import NearestRecovery, SimilarityRecovery, TokenRecoveringAttention, interpolate_tokens

JOINTS, FRAMES = "joints", "frames"


@dataclass
class HourglassPoseOutput(ModelOutput):
    """What pose lifting gives.

    Args:
        loss: (), the published one, where labels are given.
        loss_dict: its unweighted parts.
        poses: (B, F, J, 3) metres, relative to nothing but what training made them; of the output "frame" (B, 1, J, 3),
            the middle one.
        kept_frames: (B, f) int64, numbers of the frames in the middle of the model; None where none are pruned.
        kept_poses: (B, f, J, 3), what the output "frame" predicts at all of them.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    poses: Tensor | None = None
    kept_frames: Tensor | None = None
    kept_poses: Tensor | None = None


class HourglassPoseAttention(nn.Module):
    """Multi-head self-attention of poses (B, T, J, C) over their joints or over their frames.

    Args:
        config: of the model.
        axis: "joints" or "frames".
    """

    def __init__(self, config: HourglassPoseConfig, axis: str):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.axis = axis
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, J, C) to the same shape."""
        order = (3, 0, 1, 4, 2, 5) if self.axis == JOINTS else (3, 0, 2, 4, 1, 5)
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(order).flatten(1, 2).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value).unflatten(0, (x.shape[0], -1))
        back = (0, 1, 3, 2, 4) if self.axis == JOINTS else (0, 3, 1, 2, 4)
        return self.projection(attended.permute(back).flatten(3))


class HourglassPoseBlock(nn.Module):
    """Pre-norm transformer block over the joints or the frames of poses (B, T, J, C).

    Args:
        config: of the model.
        axis: "joints" or "frames".
        drop_path: rate of stochastic depth.
    """

    def __init__(self, config: HourglassPoseConfig, axis: str, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = HourglassPoseAttention(config, axis)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, int(config.hidden_size * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, J, C) to the same shape."""
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class MixSTELayer(nn.Module):
    """A block over joints, then one over frames; all layers share the normalisation after each of the two."""

    def __init__(self, config: HourglassPoseConfig, drop_path: float):
        super().__init__()
        self.joints = HourglassPoseBlock(config, JOINTS, drop_path)
        self.frames = HourglassPoseBlock(config, FRAMES, drop_path)

    def forward(self, x: Tensor, joint_norm: nn.Module, frame_norm: nn.Module, table: Tensor | None = None) -> Tensor:
        """(B, T, J, C) to the same shape; `table` (1, T, 1, C) is added before the block over frames."""
        x = joint_norm(self.joints(x))
        return frame_norm(self.frames(x if table is None else x + table))


class _Mixing(nn.Linear):
    """A linear layer that starts with both of its outputs alike."""


class MotionBERTLayer(nn.Module):
    """Joints then frames beside frames then joints, mixed at every token by a softmax over both."""

    def __init__(self, config: HourglassPoseConfig, drop_path: float):
        super().__init__()
        block = partial(HourglassPoseBlock, config, drop_path=drop_path)
        self.joints_first = nn.Sequential(block(axis=JOINTS), block(axis=FRAMES))
        self.frames_first = nn.Sequential(block(axis=FRAMES), block(axis=JOINTS))
        self.mixing = _Mixing(2 * config.hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, J, C) to the same shape."""
        first, second = self.joints_first(x), self.frames_first(x)
        share = self.mixing(torch.cat([first, second], -1)).softmax(-1)
        return first * share[..., :1] + second * share[..., 1:]


class HourglassForPoseLifting(CheckedLoading, PreTrainedModel):
    """2-D joints of a video to 3-D joints, root-relative."""

    config: HourglassPoseConfig
    config_class = HourglassPoseConfig
    base_model_prefix = "hourglass_pose"
    main_input_name = "keypoints"
    _supports_sdpa = True
    _no_split_modules = [
        *("MixSTELayer", "MotionBERTLayer"),
        *("HypothesisGeneration", "SelfHypothesisBlock", "CrossHypothesisBlock", "HypothesisHead"),
    ]
    # Losses are means of a batch; without this Trainer would scale them by the accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: HourglassPoseConfig):
        super().__init__(config)
        self.is_mixste, self.is_mhformer = (config.architecture == name for name in ("mixste", "mhformer"))
        if self.is_mhformer:
            self._add_hypotheses()
        else:
            self._add_poses()
        self.hourglass = _hourglass(config) if config.prune_before else None
        self.recovery = _recovery(config) if config.has_recovery else None
        self.post_init()

    def _drop_path_rates(self) -> list[float]:
        count = self.config.num_hidden_layers
        return [self.config.drop_path_rate * index / max(count - 1, 1) for index in range(count)]

    def _add_poses(self) -> None:
        """The parts of MixSTE and MotionBERT, whose tokens are joints in frames."""
        config, size = self.config, self.config.hidden_size
        self.embedding = nn.Linear(config.input_size, size)
        self.joint_table = nn.Parameter(torch.zeros(1, config.num_joints, size))
        self.frame_table = nn.Parameter(torch.zeros(1, config.num_frames, size))
        layer: Callable[..., nn.Module] = MixSTELayer if self.is_mixste else MotionBERTLayer
        self.layers = nn.ModuleList(layer(config, rate) for rate in self._drop_path_rates())
        norm = partial(nn.LayerNorm, size, eps=config.layer_norm_eps)
        if self.is_mixste:
            self.joint_norm, self.frame_norm = norm(), norm()
            self.head: nn.Module = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, 3))
        else:
            self.norm = norm()
            wide = config.representation_size
            self.head = nn.Sequential(nn.Linear(size, wide), nn.Tanh(), nn.Linear(wide, 3))

    def _add_hypotheses(self) -> None:
        """The parts of MHFormer, whose tokens are frames, each of three hypotheses side by side."""
        config, size, eps = self.config, self.config.hidden_size, self.config.layer_norm_eps
        self.generation = HypothesisGeneration(
            config.num_frames,
            config.num_joints * config.input_size,
            size,
            config.generation_layers,
            config.generation_heads,
            config.dropout,
            config.drop_path_rate,
            eps,
        )
        rest = size, config.num_attention_heads, int(size * config.mlp_ratio), config.dropout
        *refining, crossing = self._drop_path_rates()
        self.layers = nn.ModuleList(SelfHypothesisBlock(*rest, rate, eps) for rate in refining)
        self.layers.append(CrossHypothesisBlock(*rest, crossing, eps))
        self.head = HypothesisHead(size, config.num_joints, eps)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, _Mixing):
            init.zeros_(module.weight)
            init.constant_(module.bias, 0.5)
        elif isinstance(module, nn.Linear) and self.is_mhformer:  # as torch does, and so the published model
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            init.uniform_(module.bias, -(module.in_features**-0.5), module.in_features**-0.5)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        if isinstance(module, TokenRecoveringAttention):
            init.zeros_(module.queries)
        if isinstance(module, HypothesisEncoder):
            init.zeros_(module.table)
        if isinstance(module, nn.ParameterList):  # tables of the hourglass and of hypotheses
            for table in module:
                init.zeros_(table)
        if module is self and not self.is_mhformer:
            # MixSTE starts its tables at zero, MotionBERT at random.
            for table in (self.joint_table, self.frame_table):
                init.zeros_(table) if self.is_mixste else init.trunc_normal_(table, std=std)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of a joint's coordinates; of MHFormer that of a frame's, in the first hypothesis."""
        return self.generation.embeddings[0].get_submodule("linear") if self.is_mhformer else self.embedding

    def forward(
        self, keypoints: Tensor, labels: Tensor | None = None, return_dict: bool | None = None
    ) -> HourglassPoseOutput | tuple:
        """Lift sequences.

        Args:
            keypoints: (B, F, J, 2), or 3 with a confidence, as the processor normalises them; finite. A NaN makes its
                whole sequence NaN.
            labels: (B, F, J, 3) metres; their root joint is moved to 0. The output "frame" compares the kept frames, as
                published.
            return_dict: False returns a tuple.

        Returns:
            Poses, and with labels the published loss: of MHFormer the mean joint error, of the others a weighted sum.

        Raises:
            ValueError: another number of frames, joints or channels.
        """
        expected = (self.config.num_frames, self.config.num_joints, self.config.input_size)
        if keypoints.ndim != 4 or keypoints.shape[1:] != expected:
            raise ValueError(
                f"keypoints must be (B, {', '.join(map(str, expected))}), got {tuple(keypoints.shape)}; "
                "HourglassPoseProcessor cuts videos of any length into such sequences."
            )
        if labels is not None and labels.shape != (*keypoints.shape[:3], 3):
            raise ValueError(f"labels must be {(*keypoints.shape[:3], 3)} metres, got {tuple(labels.shape)}.")
        x, pruned = self._encode(keypoints.to(next(self.get_input_embeddings().parameters()).dtype))
        poses = self.head(x)
        output = HourglassPoseOutput(poses=poses, kept_frames=None if pruned is None else pruned.kept)
        if labels is not None:
            losses = mean_joint_error if self.is_mhformer else pose_losses
            output.loss_dict = losses(poses, self._target(labels, pruned))
            output.loss = total_pose_loss(output.loss_dict)
            output.loss_dict = {name: value.detach() for name, value in output.loss_dict.items()}
        if self.config.output == "frame":
            output.kept_poses = poses if pruned is not None else None
            output.poses = self._middle(poses, pruned)
        return output if return_dict is not False else output.to_tuple()

    def _encode(self, keypoints: Tensor) -> tuple[Tensor, Pruned | None]:
        """Tokens for the head, (B, F, J, C), of MHFormer (B, F, 3C); at the kept frames alone of the output "frame"."""
        x, blocks = self._tokens_and_blocks(keypoints)
        pruned = None
        if self.hourglass is None:
            for block in blocks:
                x = block(x)
        else:
            x, pruned = self.hourglass(x, blocks)
        if self.config.architecture == "motionbert":
            x = self.norm(x)
        return x if self.recovery is None else self.recovery(x, pruned), pruned

    def _tokens_and_blocks(self, keypoints: Tensor) -> tuple[Tensor, list[Callable]]:
        """Tokens of all frames, and what runs over them."""
        if self.is_mhformer:
            return self.generation(keypoints), [*self.layers]
        x, frame_table = self.embedding(keypoints) + self.joint_table, self.frame_table[:, :, None]
        if not self.is_mixste:
            return x + frame_table, [*self.layers]
        layer = partial(_with_norms, self.joint_norm, self.frame_norm)
        return x, [layer(block, frame_table if index == 0 else None) for index, block in enumerate(self.layers)]

    def _target(self, labels: Tensor, pruned: Pruned | None) -> Tensor:
        """Truth of the predicted frames, its root at 0."""
        root = self.config.root_joint
        target = labels - labels[:, :, root : root + 1]
        if self.config.output == "frame" and pruned is not None:
            return target.gather(1, pruned.kept[:, :, None, None].expand(-1, -1, *target.shape[2:]))
        return target

    def _middle(self, poses: Tensor, pruned: Pruned | None) -> Tensor:
        """The middle frame's row (B, 1, J, 3)."""
        middle = self.config.middle_frame
        if pruned is None:
            return poses[:, middle : middle + 1]
        place = (pruned.kept == middle).int().argmax(1)
        return poses.gather(1, place[:, None, None, None].expand(-1, 1, *poses.shape[2:]))


def _with_norms(joint_norm: nn.Module, frame_norm: nn.Module, layer: nn.Module, table: Tensor | None) -> Callable:
    return partial(layer, joint_norm=joint_norm, frame_norm=frame_norm, table=table)


def _hourglass(config: HourglassPoseConfig) -> Hourglass:
    """Pruning of frames; sequences get tables of positions, single frames keep the middle one instead."""
    is_frame = config.output == "frame"
    return Hourglass(
        config.prune_before,
        config.num_kept_frames,
        config.selection,
        always=config.middle_frame if is_frame else None,
        table_size=None if is_frame else config.hidden_size,
    )


def _recovery(config: HourglassPoseConfig) -> Any:
    if config.recovery == "attention":
        return TokenRecoveringAttention(config.hidden_size, config.num_attention_heads, config.num_frames)
    if config.recovery == "nearest":
        return NearestRecovery((config.num_frames,))
    return interpolate_tokens if config.recovery == "interpolate" else SimilarityRecovery()
