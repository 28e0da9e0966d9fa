"""Pose lifting from the original's tensors, written anew from its description with plain tensor operations."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..configuration_hourglass_pose import HourglassPoseConfig
from ..token_pruning import select_uniform

PARAMETERS = ("weight", "bias")  # of a layer
OUTER_EPS = 1e-5
"""Of the output layers' normalisation, and before MHFormer's encoders, whatever the blocks have."""
OTHERS = {1: (2, 3), 2: (1, 3), 3: (1, 2)}
"""Of each of MHFormer's hypotheses, the two whose queries and keys say where it attends to itself."""


class PlainPoses:
    """MixSTE, MotionBERT and MHFormer.

    Args:
        tensors: original name -> tensor.
        config: of the model.
    """

    def __init__(self, tensors: Mapping[str, Tensor], config: HourglassPoseConfig):
        self.tensors, self.config = tensors, config

    def poses(self, keypoints: Tensor) -> Tensor:
        """Poses (B, F, J, 3), of a frame's model (B, f, J, 3) at the kept frames, of keypoints (B, F, J, channels)."""
        if self.config.architecture == "mhformer":
            return self.mhformer(keypoints)
        is_mixste = self.config.architecture == "mixste"
        x = self.mixste(keypoints) if is_mixste else self.motionbert(keypoints)
        if self.config.has_recovery:
            x = self.recovered(x)
        if is_mixste:
            return self.linear("head.1", self.norm("head.0", x, OUTER_EPS))
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

    def mhformer(self, keypoints: Tensor) -> Tensor:
        """Poses."""
        # A token of the encoders is one coordinate of one joint, its channels are the frames.
        x, hypotheses = keypoints.permute(0, 2, 3, 1).flatten(1, 2), {}
        for number in OTHERS:
            x = x + self.encoder(f"Transformer_encoder_{number}", self.norm(f"norm_{number}", x, OUTER_EPS))
            table = self.tensors[f"Transformer_hypothesis.pos_embed_{number}"]
            hypotheses[number] = self.frame_embedding(f"embedding_{number}", x.mT) + table
        last = self.config.num_hidden_layers - 1
        for layer in range(last):
            hypotheses = self.pruned_hypotheses(hypotheses, layer)
            block = f"Transformer_hypothesis.SHR_blocks.{layer}"
            for number, h in hypotheses.items():
                mixed = self.linear(f"{block}.attn_{number}.qkv", self.norm(f"{block}.norm1_{number}", h))
                q, k, v = mixed.chunk(3, -1)
                hypotheses[number] = h + self.linear(f"{block}.attn_{number}.proj", self.attention(q, k, v))
            hypotheses = self.mixed_hypotheses(block, hypotheses)
        hypotheses = self.pruned_hypotheses(hypotheses, last)
        block = "Transformer_hypothesis.CHI_blocks.0"
        for number, others in OTHERS.items():
            sources = [hypotheses[source] for source in (*others, number)]
            normed = [self.norm(f"{block}.norm3_{number}{place}", h) for place, h in enumerate(sources, 1)]
            name = f"{block}.attn_{number}"
            q, k, v = (self.linear(f"{name}.linear_{part}", h) for part, h in zip("qkv", normed, strict=True))
            hypotheses[number] = sources[-1] + self.linear(f"{name}.proj", self.attention(q, k, v))
        hypotheses = self.mixed_hypotheses(block, hypotheses)
        x = self.norm("Transformer_hypothesis.norm", torch.cat([*hypotheses.values()], -1))
        return self.linear("regression.1", self.batch_norm("regression.0", x)).unflatten(-1, (-1, 3))

    def encoder(self, name: str, x: Tensor) -> Tensor:
        """One of MHFormer's encoders, of (B, coordinates, F)."""
        x = x + self.tensors[f"{name}.pos_embed"]
        for number in range(self.config.generation_layers):
            x = self.block(f"{name}.blocks.{number}", x, over_frames=False, heads=self.config.generation_heads)
        return self.norm(f"{name}.norm", x)

    def frame_embedding(self, name: str, x: Tensor) -> Tensor:
        """Coordinates (B, F, coordinates) as C channels; a file that holds a normalisation applies it."""
        if f"{name}.weight" in self.tensors:
            return self.linear(name, x)
        return self.batch_norm(f"{name}.1", self.linear(f"{name}.0", x)).clamp(min=0)

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        """Normalisation of the channels by what training saw."""
        mean, variance = (self.tensors[f"{name}.running_{part}"] for part in ("mean", "var"))
        weight, bias = (self.tensors[f"{name}.{part}"] for part in PARAMETERS)
        return (x - mean) / (variance + OUTER_EPS).sqrt() * weight + bias

    def mixed_hypotheses(self, block: str, hypotheses: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The MLP over all of them at the end of a block."""
        x = torch.cat([*hypotheses.values()], -1)
        x = x + self.linear(f"{block}.mlp.fc2", F.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x))))
        return dict(zip(hypotheses, x.chunk(len(hypotheses), -1), strict=True))

    def pruned_hypotheses(self, hypotheses: dict[int, Tensor], number: int) -> dict[int, Tensor]:
        """Them without the frames that go before layer `number`."""
        return {key: self.pruned(h[:, :, None], number)[:, :, 0] for key, h in hypotheses.items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x W^T + b."""
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, eps: float | None = None) -> Tensor:
        """Layer normalisation."""
        weight, bias = (self.tensors[f"{name}.{part}"] for part in PARAMETERS)
        return F.layer_norm(x, weight.shape, weight, bias, self.config.layer_norm_eps if eps is None else eps)

    def block(self, name: str, x: Tensor, over_frames: bool, suffix: str = "", heads: int | None = None) -> Tensor:
        """Pre-norm block; attention over the frames, or over the joints, of (B, T, J, C)."""
        mixed = self.linear(f"{name}.attn{suffix}.qkv", self.norm(f"{name}.norm1{suffix}", x))
        q, k, v = (part.transpose(1, 2) if over_frames else part for part in mixed.chunk(3, -1))
        attended = self.attention(q, k, v, heads)
        attended = attended.transpose(1, 2) if over_frames else attended
        x = x + self.linear(f"{name}.attn{suffix}.proj", attended)
        hidden = F.gelu(self.linear(f"{name}.mlp{suffix}.fc1", self.norm(f"{name}.norm2{suffix}", x)))
        return x + self.linear(f"{name}.mlp{suffix}.fc2", hidden)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int | None = None) -> Tensor:
        """Softmax attention along the last axis but one."""
        heads = heads or self.config.num_attention_heads
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
