"""Depth and objects from an image, plainly, and the losses of depth."""

import math

import torch
import torch.nn.functional as F

from .backbone import plain_backbone
from .decoder import Cache, plain_decoder_logits, plain_decoder_step, plain_encoder_memory, plain_start
from .layers import OriginalConfig, Tensors, select
from .vqvae import plain_vqvae_decode, plain_vqvae_decode_soft, plain_vqvae_encode

MIN_DEPTH = 1e-3


def _depth_codes(config: OriginalConfig) -> slice:
    """Range of the depth codes in the vocabulary."""
    head = config["task_heads"]["depth"]
    return slice(head["depth_token_offset"], head["depth_token_offset"] + head["vae_cfg"]["num_embeddings"])


def plain_depth_inputs(tensors: Tensors, config: OriginalConfig, codes: torch.Tensor) -> torch.Tensor:
    """Decoder inputs (B, L - 1, d) for depth codes (B, L): the codes shifted right, or the mask embedding."""
    if config["transformer"].get("parallel", False):
        return tensors["transformer.mask_embed"].expand(codes.shape[0], codes.shape[1] - 1, -1)
    return tensors["transformer.voc_embed"][_depth_codes(config)][codes[:, :-1]]


def plain_feedback(tensors: Tensors, config: OriginalConfig, logits: torch.Tensor) -> torch.Tensor:
    """Next decoder input (B, 1, d) after code logits (B, 1, K): mask embedding, soft embedding or hard embedding."""
    rows = tensors["transformer.voc_embed"][_depth_codes(config)]
    if config["transformer"].get("parallel", False):
        return tensors["transformer.mask_embed"].expand(logits.shape[0], 1, -1)
    if config["transformer"]["soft_transformer"]:
        return torch.softmax(logits, dim=-1) @ rows
    return rows[logits.argmax(dim=-1)]


def plain_decode_depth(
    tensors: Tensors, config: OriginalConfig, memory: torch.Tensor, cached: bool = True, steps: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode the depth codes greedily, one step after the other, also for a parallel model.

    Args:
        tensors: original tensors.
        config: original model configuration with a depth head.
        memory: encoder memory (B, N, d).
        cached: True keeps the self-attention keys and values and concatenates each step's (cross-attention is always
            recomputed); False runs the whole prefix again at each step.
        steps: how many codes to decode; None is all of them.

    Returns:
        Codes (B, L) and their logits (B, L, K), before any temperature.
    """
    head = config["task_heads"]["depth"]
    positions = tensors["transformer.dec_embed"][head["task_id"]]
    new = inputs = plain_start(tensors, head["task_id"], memory.shape[0])
    cache: Cache | None = None
    collected = []
    for step in range(1, (steps or head["vae_cfg"]["token_length"]) + 1):
        if cached:
            logits, cache = plain_decoder_step(tensors, config, new, memory, cache)
        else:
            logits, _ = plain_decoder_step(tensors, config, inputs, memory)
        collected.append(logits[:, -1:, _depth_codes(config)])
        new = plain_feedback(tensors, config, collected[-1]) + positions[step : step + 1]
        inputs = inputs if cached else torch.cat([inputs, new], dim=1)
    code_logits = torch.cat(collected, dim=1)
    return code_logits.argmax(dim=-1), code_logits


def plain_depth_from_logits(tensors: Tensors, config: OriginalConfig, code_logits: torch.Tensor) -> torch.Tensor:
    """Depth in metres (B, H, W), unclamped, from code logits (B, L, K): soft or hard as the head's `soft_vae` says."""
    head = config["task_heads"]["depth"]
    vqvae, vae_cfg = select(tensors, "depth_head.vqvae."), head["vae_cfg"]
    side = math.isqrt(vae_cfg["token_length"])
    if head["soft_vae"]:
        grid = code_logits.transpose(1, 2).unflatten(2, (side, side))
        depth = plain_vqvae_decode_soft(vqvae, grid, vae_cfg.get("tau", 1.0), vae_cfg.get("use_norm", True))
    else:
        codes = code_logits.argmax(dim=-1).unflatten(1, (side, side))
        depth = plain_vqvae_decode(vqvae, codes, vae_cfg.get("use_norm", True))
    return depth[:, 0]


def plain_predict_depth(tensors: Tensors, config: OriginalConfig, pixel_values: torch.Tensor) -> torch.Tensor:
    """Depth (B, H, W), unclamped, of square windows (B, 3, H, W): backbone, encoder, step loop, detokenizer."""
    memory = plain_encoder_memory(tensors, config, plain_backbone(tensors, config, pixel_values))
    return plain_depth_from_logits(tensors, config, plain_decode_depth(tensors, config, memory)[1])


def plain_depth_protocol(tensors: Tensors, config: OriginalConfig, pixel_values: torch.Tensor) -> torch.Tensor:
    """Depth (B, H, W) of wide images (B, 3, H, W): a window at each end, each also flipped; clamped at 1 mm once."""
    side, width = pixel_values.shape[-2:]
    total, count = torch.zeros_like(pixel_values[:, 0]), torch.zeros_like(pixel_values[:, 0])
    for left in (0, width - side):
        window = pixel_values[..., left : left + side]
        straight = plain_predict_depth(tensors, config, window)
        flipped = plain_predict_depth(tensors, config, window.flip(-1)).flip(-1)
        total[..., left : left + side] += (straight + flipped) / 2
        count[..., left : left + side] += 1
    return (total / count).clamp(min=MIN_DEPTH)


def plain_depth_losses(
    tensors: Tensors, config: OriginalConfig, memory: torch.Tensor, depth: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Training losses of one process for true depth (B, H, W), 0 = invalid: `depth_loss` and its unweighted parts."""
    head = config["task_heads"]["depth"]
    vqvae, vae_cfg = select(tensors, "depth_head.vqvae."), head["vae_cfg"]
    codes = plain_vqvae_encode(vqvae, depth[:, None], vae_cfg.get("use_norm", True)).flatten(1)
    inputs = plain_depth_inputs(tensors, config, codes)
    logits = plain_decoder_logits(tensors, config, memory, head["task_id"], inputs)
    targets = codes + head["depth_token_offset"]
    cross_entropy = F.cross_entropy(logits.transpose(1, 2), targets)
    auxiliary = torch.zeros_like(cross_entropy)
    if head["soft_vae"]:
        predicted = plain_depth_from_logits(tensors, config, logits[..., _depth_codes(config)])
        valid = depth > 0
        gap = torch.log(depth[valid]) - torch.log(predicted[valid].clamp(min=MIN_DEPTH))
        auxiliary = torch.sqrt((gap**2).mean() - 0.5 * gap.mean() ** 2)
    total = cross_entropy + head.get("decoder_loss_weight", 1.0) * auxiliary
    return {"depth_loss": total * head["loss_weight"], "depth_ce": cross_entropy, "depth_decoder_aux_ce": auxiliary}


def _object_rows(config: OriginalConfig, position: int) -> slice:
    """Range of the vocabulary at a position of an object: four coordinates, the class, mask codes."""
    transformer = config["transformer"]
    classes = transformer["num_bins"] + 1
    codes = classes + transformer["num_classes"] + 2
    if position < 4:
        return slice(0, classes)
    return slice(classes, codes - 2) if position == 4 else slice(codes, codes + transformer["num_embeddings"])


def plain_decode_objects(
    tensors: Tensors, config: OriginalConfig, memory: torch.Tensor, head: str, steps: int
) -> list[torch.Tensor]:
    """Decode the first tokens of an object sequence greedily, running the whole prefix again at each step.

    Args:
        tensors: original tensors.
        config: original model configuration.
        memory: encoder memory (B, N, d).
        head: "det" or "insseg".
        steps: how many tokens to decode.

    Returns:
        Per step the logits (B, K) of what may stand there; those of a class end with the noise token's.
    """
    settings, embeddings = config["task_heads"][head], tensors["transformer.voc_embed"]
    length = 5 + (settings["vae_cfg"]["token_length"] if head == "insseg" else 0)
    noise = _object_rows(config, 5).start - 1
    positions = tensors["transformer.dec_embed"][settings["task_id"]]
    inputs = plain_start(tensors, settings["task_id"], memory.shape[0])
    collected = []
    for step in range(steps):
        rows = _object_rows(config, step % length)
        every = plain_decoder_step(tensors, config, inputs, memory)[0][:, -1]
        logits = every[:, rows]
        new = embeddings[rows][logits.argmax(dim=-1)]
        if step % length > 4 and config["transformer"]["soft_transformer"]:
            new = torch.softmax(logits, dim=-1) @ embeddings[rows]
        collected.append(torch.cat([logits, every[:, noise : noise + 1]], dim=1) if step % length == 4 else logits)
        inputs = torch.cat([inputs, (new + positions[step + 1])[:, None]], dim=1)
    return collected
