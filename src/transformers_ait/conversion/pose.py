"""Original checkpoints of pose lifting (Hourglass Tokenizer): their names, and questions that prove a conversion."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..configuration_hourglass_pose import HourglassPoseConfig
from ..hypotheses_pose import NUM_HYPOTHESES, SHORT_SEQUENCE
from .key_map import NameMap
from .parity import Probe
from .plain_pose import PlainPoses

FIRST_NAMES = ("Spatial_patch_to_embedding.weight", "joints_embed.weight", "Transformer_encoder_1.pos_embed")
"""Tensors that only MixSTE, only MotionBERT and only MHFormer have."""

CROSS_ATTENTION = {"linear_q": "query", "linear_k": "key", "linear_v": "value", "proj": "projection"}
PARAMETERS = ("weight", "bias")  # of a layer
CONVOLUTION = re.compile(r"(embedding_\d(\.0)?|regression\.1)\.weight")
"""MHFormer's convolutions over one frame at a time."""


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
    if config.architecture == "mhformer":
        return _mhformer_names(config)
    names = _mixste_names(config) if config.architecture == "mixste" else _motionbert_names(config)
    if config.has_recovery:
        names |= {"pos_embed_token": "hourglass.tables.0", "x_token": "recovery.queries"}
        names |= _layers({f"cross_attention.{x}": f"recovery.{ours}" for x, ours in CROSS_ATTENTION.items()})
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


def _mhformer_names(config: HourglassPoseConfig) -> NameMap:
    """The original counts its hypotheses from 1."""
    names: NameMap = {}
    for number in range(NUM_HYPOTHESES):
        encoder, ours = f"Transformer_encoder_{number + 1}", f"generation.encoders.{number}"
        names |= {f"{encoder}.pos_embed": f"{ours}.table"}
        names |= {f"Transformer_hypothesis.pos_embed_{number + 1}": f"generation.tables.{number}"}
        names |= _layers({f"norm_{number + 1}": f"generation.norms.{number}", f"{encoder}.norm": f"{ours}.norm"})
        for block in range(config.generation_layers):
            names |= _block(f"{encoder}.blocks.{block}", f"{ours}.blocks.{block}")
        embedding, ours = f"embedding_{number + 1}", f"generation.embeddings.{number}"
        if config.num_frames > SHORT_SEQUENCE:
            names |= _layers({embedding: f"{ours}.linear"})
        else:
            names |= _layers({f"{embedding}.0": f"{ours}.linear"}) | _batch_norm(f"{embedding}.1", f"{ours}.norm")
    *refining, crossing = range(config.num_hidden_layers)
    for layer in refining:
        names |= _refining(f"Transformer_hypothesis.SHR_blocks.{layer}", f"layers.{layer}")
    names |= _crossing("Transformer_hypothesis.CHI_blocks.0", f"layers.{crossing}")
    names |= _layers({"Transformer_hypothesis.norm": "head.norm", "regression.1": "head.linear"})
    return names | _batch_norm("regression.0", "head.batch_norm")


def _refining(theirs: str, ours: str) -> NameMap:
    """A block of self-hypothesis refinement."""
    layers = {}
    for number in range(NUM_HYPOTHESES):
        attention = f"{ours}.attentions.{number}"
        layers[f"{theirs}.norm1_{number + 1}"] = f"{ours}.norms.{number}"
        layers[f"{theirs}.attn_{number + 1}.qkv"] = f"{attention}.qkv"
        layers[f"{theirs}.attn_{number + 1}.proj"] = f"{attention}.projection"
    return _layers(layers) | _mixing(theirs, ours)


def _crossing(theirs: str, ours: str) -> NameMap:
    """A block of cross-hypothesis interaction; a normalisation has the number of its hypothesis, then its place."""
    layers = {}
    for number in range(NUM_HYPOTHESES):
        for part, mine in CROSS_ATTENTION.items():
            layers[f"{theirs}.attn_{number + 1}.{part}"] = f"{ours}.attentions.{number}.{mine}"
        for place in range(3):
            layers[f"{theirs}.norm3_{number + 1}{place + 1}"] = f"{ours}.norms.{number}.{place}"
    return _layers(layers) | _mixing(theirs, ours)


def _mixing(theirs: str, ours: str) -> NameMap:
    """The MLP over all hypotheses at the end of a block."""
    mlp = {f"{theirs}.mlp.{layer}": f"{ours}.mixing.mlp.{layer}" for layer in ("fc1", "fc2")}
    return _layers({f"{theirs}.norm2": f"{ours}.mixing.norm", **mlp})


def _batch_norm(theirs: str, ours: str) -> NameMap:
    parts = (*PARAMETERS, "running_mean", "running_var", "num_batches_tracked")
    return {f"{theirs}.{part}": f"{ours}.{part}" for part in parts}


def in_our_shapes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Original tensors: MotionBERT's table of frames (1, F, 1, C) as (1, F, C), MHFormer's convolutions as linear."""
    shaped = {name: x.squeeze(2) if name == "temp_embed" and x.ndim == 4 else x for name, x in tensors.items()}
    return {name: x.squeeze(2) if CONVOLUTION.fullmatch(name) and x.ndim == 3 else x for name, x in shaped.items()}


def in_original_shapes(tensors: Mapping[str, Tensor], config: HourglassPoseConfig) -> dict[str, Tensor]:
    """Our tensors with the shapes of the original's."""
    names = {ours: theirs for theirs, ours in pose_names(config).items()}
    widened = {ours for ours, theirs in names.items() if theirs == "temp_embed" or CONVOLUTION.fullmatch(theirs)}
    return {name: x.unsqueeze(2) if name in widened else x for name, x in tensors.items()}


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
    if config.output == "frame" and not config.prune_before:
        poses = poses[:, config.middle_frame : config.middle_frame + 1]
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
