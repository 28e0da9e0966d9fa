"""Names of the original checkpoints and of this package, both ways, and which original entries are dropped.

The functions enumerate every parameter and buffer of a configuration as a dictionary `original name -> our name`, so
strictness is a comparison of key sets, and the way back is `invert`.
"""

import re

import torch

from ..configuration_ait import AiTConfig, AiTSwinV2Config, AiTVQVAEConfig
from ..configuration_token_decoder import AiTTokenDecoderConfig

NameMap = dict[str, str]

_AFFINE = ("weight", "bias")

_SWIN_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_SWIN_BLOCK_TENSORS = {
    "attn.qkv.weight": "attention.qkv.weight",
    "attn.q_bias": "attention.q_bias",
    "attn.v_bias": "attention.v_bias",
    "attn.logit_scale": "attention.logit_scale",
    "attn.rpe_mlp.0.weight": "attention.position_mlp.0.weight",
    "attn.rpe_mlp.0.bias": "attention.position_mlp.0.bias",
    "attn.rpe_mlp.2.weight": "attention.position_mlp.2.weight",
}
_ATTENTION = {"wq": "query", "wk": "key", "wv": "value", "proj": "projection"}
_ENCODER = {
    "input_proj": "input_projection",
    "stem_ln": "input_norm",
    "encout_ln": "norm",
    "proj": "output_projection",
    "proj_ln": "output_norm",
    "proj_mlp_ln": "output_mlp_norm",
    "proj_mlp.fc1": "output_mlp.fc1",
    "proj_mlp.fc2": "output_mlp.fc2",
}
_DECODER_TENSORS = {
    "voc_embed": "token_embeddings",
    "det_embed": "task_embeddings",
    "dec_embed": "position_embeddings",
    "outp_bias": "output_bias",
}
_QUANTIZER = {"_embedding": "codebook", "_ema_cluster_size": "ema_cluster_size", "_ema_w": "ema_sums"}

DROPPED = {
    r"backbone\.layers\.\d+\.blocks\.\d+\.attn\.relative_coords_table": "computed from the window sizes",
    r"backbone\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index": "computed from the window sizes",
    r"transformer\.enc_embed": "the sine table, computed from the image size",
    r"insseg_head\.loss_seq\.weight": "cross-entropy weights, computed from mask_code_weight",
    r"(det|insseg|depth)_head\.transformer\..+": "duplicate of transformer.*",
}
# Only in backbone pretraining files, after their prefix became `backbone.`.
DROPPED_OF_PRETRAINING = {
    r"backbone\.norm\..+": "final norm of the pretraining, the task-solver trains its own",
    r"backbone\.mask_token|backbone\.head\..+|decoder\..+": "head of the pretraining",
}


def dropped_reason(name: str, pretraining: bool = False) -> str | None:
    """Why an original entry is deliberately not carried over.

    Args:
        name: original name.
        pretraining: the entry comes from a backbone pretraining file.

    Returns:
        The reason, None if the entry must be used.
    """
    patterns = DROPPED | DROPPED_OF_PRETRAINING if pretraining else DROPPED
    return next((reason for pattern, reason in patterns.items() if re.fullmatch(pattern, name)), None)


def invert(names: NameMap) -> NameMap:
    """Our name -> original name, of a dictionary original name -> our name."""
    inverse = {ours: original for original, ours in names.items()}
    if len(inverse) != len(names):
        raise ValueError("Two original names map to the same name; the map has no inverse.")
    return inverse


def _affine(original: str, ours: str) -> NameMap:
    return {f"{original}.{kind}": f"{ours}.{kind}" for kind in _AFFINE}


def backbone_names(config: AiTSwinV2Config, original: str = "backbone.", ours: str = "model.backbone.") -> NameMap:
    """Original -> our names of the SwinV2 backbone, under the given prefixes."""
    names = {
        **_affine(f"{original}patch_embed.proj", f"{ours}embeddings.projection"),
        **_affine(f"{original}patch_embed.norm", f"{ours}embeddings.norm"),
        **_affine(f"{original}norm{len(config.depths) - 1}", f"{ours}norm"),
    }
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            source, target = f"{original}layers.{stage}.blocks.{block}", f"{ours}stages.{stage}.blocks.{block}"
            for theirs, mine in _SWIN_BLOCK.items():
                names |= _affine(f"{source}.{theirs}", f"{target}.{mine}")
            names |= {f"{source}.{theirs}": f"{target}.{mine}" for theirs, mine in _SWIN_BLOCK_TENSORS.items()}
        if stage < len(config.depths) - 1:
            source, target = f"{original}layers.{stage}.downsample", f"{ours}stages.{stage}.downsample"
            names |= {f"{source}.reduction.weight": f"{target}.reduction.weight"}
            names |= _affine(f"{source}.norm", f"{target}.norm")
    return names


def _attention(original: str, ours: str) -> NameMap:
    names: NameMap = {}
    for theirs, mine in _ATTENTION.items():
        names |= _affine(f"{original}.{theirs}", f"{ours}.{mine}")
    return names


def encoder_names(config: AiTTokenDecoderConfig) -> NameMap:
    """Original -> our names of the transformer encoder."""
    names: NameMap = {}
    for theirs, mine in _ENCODER.items():
        names |= _affine(f"transformer.{theirs}", f"model.encoder.{mine}")
    for block in range(config.num_encoder_layers):
        source, target = f"transformer.encoder.blocks.{block}", f"model.encoder.blocks.{block}"
        names |= _attention(f"{source}.attn", f"{target}.attention")
        for module in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            names |= _affine(f"{source}.{module}", f"{target}.{module}")
    return names


def decoder_names(config: AiTTokenDecoderConfig, parallel: bool) -> NameMap:
    """Original -> our names of the token decoder, its embeddings and its output bias."""
    names = {f"transformer.{theirs}": f"model.decoder.{mine}" for theirs, mine in _DECODER_TENSORS.items()}
    if parallel:
        names["transformer.mask_embed"] = "model.decoder.mask_embedding"
    names |= _affine("transformer.norm", "model.decoder.norm")
    for block in range(config.num_decoder_layers):
        source, target = f"transformer.decoder.blocks.{block}", f"model.decoder.blocks.{block}"
        names |= _attention(f"{source}.attn", f"{target}.self_attention")
        names |= _attention(f"{source}.crossattn", f"{target}.cross_attention")
        for module in ("norm1", "norm2", "norm3", "mlp.fc1", "mlp.fc2"):
            names |= _affine(f"{source}.{module}", f"{target}.{module}")
    return names


def vqvae_names(config: AiTVQVAEConfig, original: str = "", ours: str = "") -> NameMap:
    """Original -> our names of a VQ-VAE, under the given prefixes.

    The original counts the layers of two flat sequences, ReLUs included; ours have names.
    """
    halvings, residuals = config.num_downsamples, config.num_resnet_blocks
    modules = {f"encoder.{2 * i}": f"encoder.downsample.{i}" for i in range(halvings)}
    modules[f"encoder.{2 * halvings + residuals}"] = "encoder.projection"
    modules["decoder.0"] = "decoder.projection"
    modules |= {f"decoder.{2 + residuals + 2 * i}": f"decoder.upsample.{i}" for i in range(halvings)}
    modules[f"decoder.{2 + residuals + 2 * halvings}"] = "decoder.output"
    for part, first in (("encoder", 2 * halvings), ("decoder", 2)):
        for block in range(residuals):
            for layer, convolution in ((0, "conv1"), (2, "conv2"), (4, "conv3")):
                modules[f"{part}.{first + block}.net.{layer}"] = f"{part}.blocks.{block}.{convolution}"
    names = {f"{original}_vq_vae.{theirs}": f"{ours}quantizer.{mine}" for theirs, mine in _QUANTIZER.items()}
    for theirs, mine in modules.items():
        names |= _affine(f"{original}{theirs}", f"{ours}{mine}")
    return names


def tokenizer_names(config: AiTConfig) -> NameMap:
    """Original -> our names of the VQ-VAEs inside a task-solver."""
    names: NameMap = {}
    if "depth" in config.tasks:
        names |= vqvae_names(config.depth_tokenizer_config, "depth_head.vqvae.", "depth_tokenizer.")
    if "instance" in config.tasks:
        names |= vqvae_names(config.mask_tokenizer_config, "insseg_head.vqvae.", "mask_tokenizer.")
    return names


def task_solver_names(config: AiTConfig) -> NameMap:
    """Original -> our names of a whole task-solver with its tokenizers."""
    return {
        **backbone_names(config.backbone_config),
        **encoder_names(config.decoder_config),
        **decoder_names(config.decoder_config, config.parallel),
        **tokenizer_names(config),
    }


def dropped_shapes(config: AiTConfig) -> dict[str, torch.Size]:
    """Original name -> shape of the buffers that a configuration determines; another shape means another model."""
    backbone, width = config.backbone_config, config.decoder_config.hidden_size
    shapes = {
        "transformer.enc_embed": torch.Size([1, config.grid_size, config.grid_size, width]),
        "insseg_head.loss_seq.weight": torch.Size([config.vocabulary.size]),
    }
    for stage, (depth, window) in enumerate(zip(backbone.depths, backbone.window_sizes, strict=True)):
        for block in range(depth):
            name = f"backbone.layers.{stage}.blocks.{block}.attn"
            shapes[f"{name}.relative_coords_table"] = torch.Size([1, 2 * window - 1, 2 * window - 1, 2])
            shapes[f"{name}.relative_position_index"] = torch.Size([window**2, window**2])
    return shapes
