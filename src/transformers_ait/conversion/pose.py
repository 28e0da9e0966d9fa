"""Original checkpoints of pose lifting (Hourglass Tokenizer): their names, and their forward pass anew."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..configuration_hourglass_pose import HourglassPoseConfig
from ..token_pruning import select_uniform
from .key_map import NameMap
from .parity import Probe

FIRST_NAMES = ("Spatial_patch_to_embedding.weight", "joints_embed.weight")
"""Tensors that only MixSTE and only MotionBERT have."""

RECOVERY_LAYERS = {"linear_q": "query", "linear_k": "key", "linear_v": "value", "proj": "projection"}
PARAMETERS = ("weight", "bias")  # of a layer
LAYER_NORM_EPS = 1e-5  # of the output layers' normalisation, whatever the blocks have


def pose_names(config: HourglassPoseConfig) -> NameMap:
    """Original name -> our name of every tensor.

    Raises:
        ValueError: the configuration has what no original has.
    """
    if config.has_recovery and config.recovery != "attention" or len(config.prune_before) > 1:
        raise ValueError(
            "original checkpoints of pose lifting prune once and recover by attention, got prune_before "
            f"{config.prune_before} and recovery {config.recovery!r}."
        )
    names = _mixste_names(config) if config.architecture == "mixste" else _motionbert_names(config)
    if config.has_recovery:
        names |= {"pos_embed_token": "hourglass.tables.0", "x_token": "recovery.queries"}
        names |= _layers({f"cross_attention.{x}": f"recovery.{ours}" for x, ours in RECOVERY_LAYERS.items()})
    return names


def _layers(layers: Mapping[str, str]) -> NameMap:
    """Weights and biases of layers by their names."""
    return {f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in layers.items() for part in PARAMETERS}


def _block(theirs: str, ours: str, suffix: str = "") -> NameMap:
    return _layers(
        {
            f"{theirs}.norm1{suffix}": f"{ours}.norm1",
            f"{theirs}.attn{suffix}.qkv": f"{ours}.attention.qkv",
            f"{theirs}.attn{suffix}.proj": f"{ours}.attention.projection",
            f"{theirs}.norm2{suffix}": f"{ours}.norm2",
            f"{theirs}.mlp{suffix}.fc1": f"{ours}.mlp.fc1",
            f"{theirs}.mlp{suffix}.fc2": f"{ours}.mlp.fc2",
        }
    )


def _mixste_names(config: HourglassPoseConfig) -> NameMap:
    names = _layers(
        {
            "Spatial_patch_to_embedding": "embedding",
            "Spatial_norm": "joint_norm",
            "Temporal_norm": "frame_norm",
            "head.0": "head.0",
            "head.1": "head.1",
        }
    )
    names |= {"Spatial_pos_embed": "joint_table", "Temporal_pos_embed": "frame_table"}
    for number in range(config.num_hidden_layers):
        names |= _block(f"STEblocks.{number}", f"layers.{number}.joints")
        names |= _block(f"TTEblocks.{number}", f"layers.{number}.frames")
    return names


def _motionbert_names(config: HourglassPoseConfig) -> NameMap:
    names = _layers({"joints_embed": "embedding", "norm": "norm", "pre_logits.fc": "head.0", "head": "head.2"})
    names |= {"pos_embed": "joint_table", "temp_embed": "frame_table"}
    for number in range(config.num_hidden_layers):
        for order, places in (
            ("st", ("joints_first.0", "joints_first.1")),
            ("ts", ("frames_first.1", "frames_first.0")),
        ):
            for suffix, place in zip(("_s", "_t"), places, strict=True):
                names |= _block(f"blocks_{order}.{number}", f"layers.{number}.{place}", suffix)
        names |= _layers({f"ts_attn.{number}": f"layers.{number}.mixing"})
    return names


def with_flat_tables(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, MotionBERT's table of frames (1, F, 1, C) as (1, F, C)."""
    return {name: x.squeeze(2) if name == "temp_embed" and x.ndim == 4 else x for name, x in tensors.items()}


def with_original_tables(tensors: Mapping[str, Tensor], config: HourglassPoseConfig) -> dict[str, Tensor]:
    """Our tensors with the shapes of the original's."""
    is_flat = config.architecture == "mixste"
    return {name: x if is_flat or name != "frame_table" else x.unsqueeze(2) for name, x in tensors.items()}


def pose_probes(tensors: Mapping[str, Tensor], config: HourglassPoseConfig) -> list[Probe]:
    """Questions to the converted model: the poses of random sequences.

    Frames are kept evenly, whatever the configuration says: by density, two frames that are each other's nearest
    differ by rounding alone, and the choice owns no weights.

    Args:
        tensors: original name -> tensor.
        config: of the model.
    """
    size = (2, config.num_frames, config.num_joints, config.input_size)
    keypoints = torch.randn(size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        poses = PlainPoses(tensors, config).poses(keypoints)
    return [Probe("pose lifting: poses", partial(_evenly_pruned_poses, keypoints), poses)]


def _evenly_pruned_poses(keypoints: Tensor, model: Any) -> Tensor:
    """Poses of all frames, or of the kept ones where only one is asked for."""
    selection = None if model.hourglass is None else model.hourglass.selection
    try:
        if selection is not None:
            model.hourglass.selection = "uniform"
        output = model(keypoints)
    finally:
        if selection is not None:
            model.hourglass.selection = selection
    return output.poses if output.kept_poses is None else output.kept_poses


class PlainPoses:
    """MixSTE and MotionBERT from the original's tensors, written from their description with plain tensor operations.

    Args:
        tensors: original name -> tensor.
        config: of the model.
    """

    def __init__(self, tensors: Mapping[str, Tensor], config: HourglassPoseConfig):
        self.tensors, self.config = tensors, config

    def poses(self, keypoints: Tensor) -> Tensor:
        """Poses (B, F, J, 3), of a frame's model (B, f, J, 3) at the kept frames, of keypoints (B, F, J, channels)."""
        is_mixste = self.config.architecture == "mixste"
        x = self.mixste(keypoints) if is_mixste else self.motionbert(keypoints)
        if self.config.has_recovery:
            x = self.recovered(x)
        if is_mixste:
            return self.linear("head.1", self.norm("head.0", x, LAYER_NORM_EPS))
        return self.linear("head", self.linear("pre_logits.fc", x).tanh())

    def mixste(self, keypoints: Tensor) -> Tensor:
        """Tokens before the recovery."""
        x = self.linear("Spatial_patch_to_embedding", keypoints) + self.tensors["Spatial_pos_embed"][:, None]
        for number in range(self.config.num_hidden_layers):
            x = self.pruned(x, number)
            x = self.norm("Spatial_norm", self.block(f"STEblocks.{number}", x, over_frames=False))
            x = x if number else x + self.tensors["Temporal_pos_embed"][:, :, None]
            x = self.norm("Temporal_norm", self.block(f"TTEblocks.{number}", x, over_frames=True))
        return x

    def motionbert(self, keypoints: Tensor) -> Tensor:
        """Tokens before the recovery, normalised."""
        x = self.linear("joints_embed", keypoints) + self.tensors["pos_embed"][:, None]
        x = x + self.tensors["temp_embed"].flatten(1, -2)[:, :, None]
        for number in range(self.config.num_hidden_layers):
            x = self.pruned(x, number)
            st, ts = f"blocks_st.{number}", f"blocks_ts.{number}"
            first = self.block(st, self.block(st, x, False, "_s"), True, "_t")
            second = self.block(ts, self.block(ts, x, True, "_t"), False, "_s")
            share = self.linear(f"ts_attn.{number}", torch.cat([first, second], -1)).softmax(-1)
            x = first * share[..., :1] + second * share[..., 1:]
        return self.norm("norm", x)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x W^T + b."""
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, eps: float | None = None) -> Tensor:
        """Layer normalisation."""
        weight, bias = (self.tensors[f"{name}.{part}"] for part in PARAMETERS)
        return F.layer_norm(x, weight.shape, weight, bias, self.config.layer_norm_eps if eps is None else eps)

    def block(self, name: str, x: Tensor, over_frames: bool, suffix: str = "") -> Tensor:
        """Pre-norm block; attention over the frames, or over the joints, of (B, T, J, C)."""
        mixed = self.linear(f"{name}.attn{suffix}.qkv", self.norm(f"{name}.norm1{suffix}", x))
        q, k, v = (part.transpose(1, 2) if over_frames else part for part in mixed.chunk(3, -1))
        attended = self.attention(q, k, v)
        attended = attended.transpose(1, 2) if over_frames else attended
        x = x + self.linear(f"{name}.attn{suffix}.proj", attended)
        hidden = F.gelu(self.linear(f"{name}.mlp{suffix}.fc1", self.norm(f"{name}.norm2{suffix}", x)))
        return x + self.linear(f"{name}.mlp{suffix}.fc2", hidden)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax attention along the last axis but one."""
        heads = self.config.num_attention_heads
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (q, k, v))
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return (weights @ v).transpose(-3, -2).flatten(-2)

    def pruned(self, x: Tensor, number: int) -> Tensor:
        """x without the frames that go before layer `number`: even ones stay, and the middle of a frame's model."""
        if number not in self.config.prune_before:
            return x
        always = self.config.middle_frame if self.config.output == "frame" else None
        (frames,) = select_uniform(x[:1].mean(2), self.config.num_kept_frames[0], always)
        return x[:, frames] + (self.tensors["pos_embed_token"][:, :, None] if self.config.has_recovery else 0)

    def recovered(self, x: Tensor) -> Tensor:
        """All frames (B, F, J, C) of the kept ones."""
        queries, x = self.tensors["x_token"], x.transpose(1, 2)
        q, k, v = (self.linear(f"cross_attention.linear_{n}", y) for n, y in (("q", queries), ("k", x), ("v", x)))
        attended = self.attention(q.expand(*x.shape[:2], -1, -1), k, v)
        return (queries + self.linear("cross_attention.proj", attended)).transpose(1, 2)
