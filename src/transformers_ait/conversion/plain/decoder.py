"""The original formulas, written out plainly on a dictionary of original tensors.

Nothing here knows the models of this package: the functions take tensors under their ORIGINAL names and the ORIGINAL
configuration dictionary, and compute what AiT (arXiv 2301.02229) computes, step by step: position bias evaluated in
every block, softmax attention spelled out, cross-attention keys recomputed at every decoding step. The converter proves
its result against them, and a benchmark can time them as the plain formulation.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

Tensors = Mapping[str, torch.Tensor]
OriginalConfig = Mapping[str, Any]
Cache = list[tuple[torch.Tensor, torch.Tensor]]

REGION_MASK_VALUE = -100.0
COSINE_EPSILON = 5e-5
MIN_DEPTH = 1e-3


def select(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose name starts with `prefix`, without the prefix."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _linear(tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))


def plain_layer_norm(tensors: Tensors, name: str, x: torch.Tensor, epsilon: float) -> torch.Tensor:
    """LayerNorm `name` over the last axis, computed in at least float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias = tensors[f"{name}.weight"].to(wide), tensors[f"{name}.bias"].to(wide)
    return F.layer_norm(x.to(wide), weight.shape, weight, bias, epsilon).to(x.dtype)


def _mlp(tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return _linear(tensors, f"{name}.fc2", F.gelu(_linear(tensors, f"{name}.fc1", x)))


# --- backbone -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def relative_tables(
    window: int, pretrained_window: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-spaced offsets ((2w-1)^2, 2) and, for each (query, key) of a window, the row that holds theirs (w^2, w^2)."""
    offsets = torch.arange(1 - window, window, device=device).to(dtype)
    grid = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), dim=-1) / (pretrained_window - 1) * 8
    table = torch.sign(grid) * torch.log2(1 + grid.abs()) / math.log2(8)
    steps = torch.arange(window, device=device)
    cells = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).reshape(-1, 2)
    difference = cells[:, None] - cells[None, :] + window - 1
    return table.reshape(-1, 2), difference[..., 0] * (2 * window - 1) + difference[..., 1]


def plain_position_bias(tensors: Tensors, name: str, window: int, pretrained_window: int) -> torch.Tensor:
    """Continuous position bias of the attention layer `name`, shape (heads, window^2, window^2)."""
    weight = tensors[f"{name}.rpe_mlp.0.weight"]
    table, index = relative_tables(window, pretrained_window, weight.device, weight.dtype)
    hidden = F.relu(_linear(tensors, f"{name}.rpe_mlp.0", table))
    values = _linear(tensors, f"{name}.rpe_mlp.2", hidden)
    return 16 * torch.sigmoid(values[index].permute(2, 0, 1))


def _window_attention(
    tensors: Tensors, name: str, windows: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Cosine attention in windows (images, windows, positions, channels); mask (windows, positions, positions)."""
    images, count, positions, channels = windows.shape
    heads = bias.shape[0]
    q_bias, v_bias = tensors[f"{name}.q_bias"], tensors[f"{name}.v_bias"]
    qkv = F.linear(windows, tensors[f"{name}.qkv.weight"], torch.cat([q_bias, torch.zeros_like(q_bias), v_bias]))
    q, k, v = qkv.view(images, count, positions, 3, heads, channels // heads).permute(3, 0, 1, 4, 2, 5)
    q = q / (q.norm(dim=-1, keepdim=True) + COSINE_EPSILON)
    k = k / (k.norm(dim=-1, keepdim=True) + COSINE_EPSILON)
    scale = tensors[f"{name}.logit_scale"].clamp(max=math.log(100.0)).exp()
    logits = q @ k.transpose(-2, -1) * scale + bias
    if mask is not None:
        logits = logits + mask[:, None]
    out = (torch.softmax(logits, dim=-1) @ v).transpose(2, 3).reshape(images, count, positions, channels)
    return _linear(tensors, f"{name}.proj", out)


def _to_windows(x: torch.Tensor, window: int) -> torch.Tensor:
    """Cut (B, H, W, C), multiples of the window, into (B, windows, window^2, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(batch, -1, window * window, channels)


def _from_windows(windows: torch.Tensor, window: int, height: int, width: int) -> torch.Tensor:
    batch, channels = windows.shape[0], windows.shape[-1]
    x = windows.view(batch, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(batch, height, width, channels)


def _region_mask(height: int, width: int, window: int, shift: int, like: torch.Tensor) -> torch.Tensor:
    """Mask (windows, positions, positions): -100 between positions that were no neighbours before the roll."""

    def regions(size: int) -> torch.Tensor:
        position = torch.arange(size, device=like.device)
        return (position >= size - window).long() + (position >= size - shift).long()

    region = (3 * regions(height)[:, None] + regions(width)[None, :])[None, :, :, None]
    region = _to_windows(region, window)[0, :, :, 0]
    different = region[:, :, None] != region[:, None, :]
    return different.to(like.dtype) * REGION_MASK_VALUE


def plain_shift_mask(backbone: OriginalConfig, stage: int, x: torch.Tensor) -> torch.Tensor | None:
    """Mask (windows, positions, positions) of the shifting blocks of a stage on a map x; None if it does not shift."""
    window = backbone["window_size"][stage]
    height, width = (side + -side % window for side in x.shape[1:3])
    return _region_mask(height, width, window, window // 2, x) if backbone["use_shift"][stage] else None


def plain_swin_block(
    tensors: Tensors, backbone: OriginalConfig, stage: int, block: int, x: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """One block of one stage on a map (B, H, W, C): pad, roll, attend in windows, roll back, crop; then the MLP.

    Args:
        tensors: original tensors, names starting with `backbone.`.
        backbone: the original configuration's section `backbone`.
        stage: index of the stage.
        block: index of the block in its stage; odd ones shift where the stage does.
        x: map (B, H, W, C).
        mask: `plain_shift_mask` of the stage.

    Returns:
        Map (B, H, W, C).
    """
    name = f"backbone.layers.{stage}.blocks.{block}"
    window, pretrained_window = backbone["window_size"][stage], backbone["pretrain_window_size"][stage]
    height, width = x.shape[1:3]
    padded = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    shifts = backbone["use_shift"][stage] and block % 2 == 1
    shift = window // 2 if shifts else 0
    bias = plain_position_bias(tensors, f"{name}.attn", window, pretrained_window)
    windows = _to_windows(torch.roll(padded, (-shift, -shift), dims=(1, 2)), window)
    attended = _window_attention(tensors, f"{name}.attn", windows, bias, mask if shifts else None)
    attended = torch.roll(_from_windows(attended, window, *padded.shape[1:3]), (shift, shift), dims=(1, 2))
    x = x + plain_layer_norm(tensors, f"{name}.norm1", attended[:, :height, :width], 1e-6)
    return x + plain_layer_norm(tensors, f"{name}.norm2", _mlp(tensors, f"{name}.mlp", x), 1e-6)


def plain_patch_embedding(tensors: Tensors, pixel_values: torch.Tensor) -> torch.Tensor:
    """Map (B, H / 4, W / 4, C) of images (B, 3, H, W)."""
    name = "backbone.patch_embed.proj"
    x = F.conv2d(pixel_values, tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride=4)
    return plain_layer_norm(tensors, "backbone.patch_embed.norm", x.permute(0, 2, 3, 1), 1e-6)


def plain_patch_merging(tensors: Tensors, stage: int, x: torch.Tensor) -> torch.Tensor:
    """Map (B, H / 2, W / 2, 2C) between `stage` and the next, of a map (B, H, W, C)."""
    name = f"backbone.layers.{stage}.downsample"
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return plain_layer_norm(
        tensors, f"{name}.norm", _linear(tensors, f"{name}.reduction", torch.cat(corners, -1)), 1e-6
    )


def plain_backbone(tensors: Tensors, config: OriginalConfig, pixel_values: torch.Tensor) -> torch.Tensor:
    """Normalised map of the last stage.

    Args:
        tensors: original tensors, names starting with `backbone.`.
        config: original model configuration (`backbone`, optionally `padto`).
        pixel_values: images (B, 3, H, W); zero-padded at bottom and right to `padto` if that is larger.

    Returns:
        Map (B, 8 * embed_dim, H / 32, W / 32).
    """
    backbone, side = config["backbone"], config.get("padto", 0)
    height, width = pixel_values.shape[-2:]
    x = plain_patch_embedding(tensors, F.pad(pixel_values, (0, max(side - width, 0), 0, max(side - height, 0))))
    for stage, depth in enumerate(backbone["depths"]):
        if stage > 0:
            x = plain_patch_merging(tensors, stage - 1, x)
        mask = plain_shift_mask(backbone, stage, x)
        for block in range(depth):
            x = plain_swin_block(tensors, backbone, stage, block, x, mask)
    return plain_layer_norm(tensors, f"backbone.norm{len(backbone['depths']) - 1}", x, 1e-6).permute(0, 3, 1, 2)


# --- encoder and decoder --------------------------------------------------------------------------------------------


def plain_sine_table(
    rows: int, columns: int, channels: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Two-dimensional sine table (rows * columns, channels): the y half first, sine and cosine interleaved."""
    pair = torch.arange(channels // 4, dtype=torch.float32, device=device)
    period = 10000 ** (2 * pair / (channels // 2))

    def half(size: int) -> torch.Tensor:
        angle = torch.arange(size, dtype=torch.float32, device=device)[:, None] / period
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)

    y = half(rows)[:, None].expand(rows, columns, channels // 2)
    x = half(columns)[None].expand(rows, columns, channels // 2)
    return torch.cat([y, x], dim=-1).reshape(rows * columns, channels).to(dtype)


def _split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _attend(
    tensors: Tensors, name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Scaled dot-product attention over (B, heads, positions, head_dim), then the output projection."""
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = logits + mask
    out = (torch.softmax(logits, dim=-1) @ v).transpose(1, 2).flatten(2)
    return _linear(tensors, f"{name}.proj", out)


def plain_encoder_memory(tensors: Tensors, config: OriginalConfig, feature: torch.Tensor) -> torch.Tensor:
    """Decoder memory (B, N, d) of a backbone map (B, C, h, w) with h, w as in the configuration's sine table."""
    transformer = config["transformer"]
    heads, rows, columns = transformer["nhead"], transformer["n_rows"], transformer["n_cols"]
    table = plain_sine_table(rows, columns, transformer["d_model"], feature.device, feature.dtype)
    x = _linear(tensors, "transformer.input_proj", feature.flatten(2).transpose(1, 2))
    x = plain_layer_norm(tensors, "transformer.stem_ln", x, 1e-5) + table
    for block in range(transformer["num_encoder_layers"]):
        name = f"transformer.encoder.blocks.{block}"
        normed = plain_layer_norm(tensors, f"{name}.norm1", x, 1e-5)
        q, k, v = (_split_heads(_linear(tensors, f"{name}.attn.{w}", normed), heads) for w in ("wq", "wk", "wv"))
        x = x + _attend(tensors, f"{name}.attn", q, k, v)
        x = x + _mlp(tensors, f"{name}.mlp", plain_layer_norm(tensors, f"{name}.norm2", x, 1e-5))
    x = _linear(tensors, "transformer.proj", plain_layer_norm(tensors, "transformer.encout_ln", x, 1e-5))
    x = plain_layer_norm(tensors, "transformer.proj_ln", x, 1e-5) + table
    return x + _mlp(tensors, "transformer.proj_mlp", plain_layer_norm(tensors, "transformer.proj_mlp_ln", x, 1e-5))


def _causal_mask(queries: int, keys: int, like: torch.Tensor) -> torch.Tensor | None:
    """Additive mask for the last `queries` of `keys` positions; None for a single query, which sees everything."""
    if queries == 1:
        return None
    query = torch.arange(keys - queries, keys, device=like.device)[:, None]
    key = torch.arange(keys, device=like.device)[None]
    return torch.zeros(queries, keys, dtype=like.dtype, device=like.device).masked_fill(key > query, -math.inf)


def plain_decoder_step(
    tensors: Tensors, config: OriginalConfig, x: torch.Tensor, memory: torch.Tensor, cache: Cache | None = None
) -> tuple[torch.Tensor, Cache]:
    """Run the decoder on new positions, behind those already cached.

    Args:
        tensors: original tensors, names starting with `transformer.`.
        config: original model configuration.
        x: embeddings of the new positions (B, n, d), position embedding added.
        memory: encoder memory (B, N, d).
        cache: self-attention keys and values of each block so far, each (B, heads, past, head_dim).

    Returns:
        Logits over the vocabulary (B, n, V) and the cache grown by concatenation.
    """
    heads = config["transformer"]["nhead"]
    grown: Cache = []
    for block in range(config["transformer"]["num_decoder_layers"]):
        name = f"transformer.decoder.blocks.{block}"
        normed = plain_layer_norm(tensors, f"{name}.norm1", x, 1e-5)
        q, k, v = (_split_heads(_linear(tensors, f"{name}.attn.{w}", normed), heads) for w in ("wq", "wk", "wv"))
        if cache is not None:
            k, v = torch.cat([cache[block][0], k], dim=2), torch.cat([cache[block][1], v], dim=2)
        grown.append((k, v))
        x = x + _attend(tensors, f"{name}.attn", q, k, v, _causal_mask(q.shape[2], k.shape[2], x))
        q = _linear(tensors, f"{name}.crossattn.wq", plain_layer_norm(tensors, f"{name}.norm2", x, 1e-5))
        source = plain_layer_norm(tensors, f"{name}.norm2", memory, 1e-5)
        k, v = (_split_heads(_linear(tensors, f"{name}.crossattn.{w}", source), heads) for w in ("wk", "wv"))
        x = x + _attend(tensors, f"{name}.crossattn", _split_heads(q, heads), k, v)
        x = x + _mlp(tensors, f"{name}.mlp", plain_layer_norm(tensors, f"{name}.norm3", x, 1e-5))
    x = plain_layer_norm(tensors, "transformer.norm", x, 1e-5)
    return F.linear(x, tensors["transformer.voc_embed"], tensors["transformer.outp_bias"]), grown


def plain_start(tensors: Tensors, task_id: int, batch: int) -> torch.Tensor:
    """Embedding of the task, with its position embedding: the first decoder input (B, 1, d)."""
    start = tensors["transformer.det_embed"][task_id] + tensors["transformer.dec_embed"][task_id, :1]
    return start.expand(batch, 1, -1)


def plain_decoder_logits(
    tensors: Tensors, config: OriginalConfig, memory: torch.Tensor, task_id: int, inputs: torch.Tensor
) -> torch.Tensor:
    """Teacher-forced logits (B, L, V) for input embeddings (B, L - 1, d) behind the task embedding."""
    positions = tensors["transformer.dec_embed"][task_id, 1 : inputs.shape[1] + 1]
    x = torch.cat([plain_start(tensors, task_id, memory.shape[0]), inputs + positions], dim=1)
    return plain_decoder_step(tensors, config, x, memory)[0]


# --- depth ----------------------------------------------------------------------------------------------------------


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


# --- objects --------------------------------------------------------------------------------------------------------


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


# --- VQ-VAE (tensors without prefix: `encoder.*`, `decoder.*`, `_vq_vae.*`) -----------------------------------------


def _layers(tensors: Tensors, part: str) -> list[int]:
    """Indices of the layers with weights in `encoder` or `decoder`, in order."""
    return sorted({int(name.split(".")[1]) for name in tensors if name.startswith(f"{part}.")})


def _residual(tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    y = x
    for index, padding in ((0, 1), (2, 1), (4, 0)):
        y = F.conv2d(y, tensors[f"{name}.{index}.weight"], tensors[f"{name}.{index}.bias"], padding=padding)
        y = F.relu(y) if index < 4 else y
    return x + y


def plain_vqvae_features(tensors: Tensors, x: torch.Tensor, use_norm: bool) -> torch.Tensor:
    """Encoder output (B, D, h, w) of x (B, 1, H, W); `use_norm` maps [0, 1] to [-1, 1] first."""
    x = 2 * x - 1 if use_norm else x
    for index in _layers(tensors, "encoder"):
        name = f"encoder.{index}"
        if f"{name}.net.0.weight" in tensors:
            x = _residual(tensors, f"{name}.net", x)
        elif tensors[f"{name}.weight"].shape[-1] == 4:
            x = F.relu(F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride=2, padding=1))
        else:
            x = F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])
    return x


def plain_vqvae_quantise(tensors: Tensors, features: torch.Tensor) -> torch.Tensor:
    """Nearest codes (B, h, w), by squared Euclidean distance in float32, of encoder output (B, D, h, w)."""
    points = features.permute(0, 2, 3, 1).float()
    codebook = tensors["_vq_vae._embedding"].float()
    distances = (points**2).sum(-1, keepdim=True) + (codebook**2).sum(-1) - 2 * points @ codebook.T
    return distances.argmin(dim=-1)


def plain_vqvae_encode(tensors: Tensors, x: torch.Tensor, use_norm: bool) -> torch.Tensor:
    """Codes (B, h, w) of x (B, 1, H, W)."""
    return plain_vqvae_quantise(tensors, plain_vqvae_features(tensors, x, use_norm))


def _decode_vectors(tensors: Tensors, x: torch.Tensor) -> torch.Tensor:
    """Decoder output (B, 1, H, W) of code vectors (B, D, h, w)."""
    layers = _layers(tensors, "decoder")
    for index in layers:
        name = f"decoder.{index}"
        if f"{name}.net.0.weight" in tensors:
            x = _residual(tensors, f"{name}.net", x)
        elif tensors[f"{name}.weight"].shape[-1] == 4:
            weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            x = F.relu(F.conv_transpose2d(x, weight, bias, stride=2, padding=1))
        else:
            x = F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])
            x = F.relu(x) if index != layers[-1] else x
    return x


def plain_vqvae_decode(tensors: Tensors, codes: torch.Tensor, use_norm: bool) -> torch.Tensor:
    """Image (B, 1, H, W) of codes (B, h, w); `use_norm` maps the decoder's [-1, 1] to [0, 1], without clipping."""
    out = _decode_vectors(tensors, tensors["_vq_vae._embedding"][codes].permute(0, 3, 1, 2))
    return (out + 1) / 2 if use_norm else out


def plain_vqvae_decode_soft(tensors: Tensors, logits: torch.Tensor, tau: float, use_norm: bool) -> torch.Tensor:
    """Image (B, 1, H, W) of code logits (B, K, h, w): the expected code vector under softmax(logits * tau)."""
    probabilities = torch.softmax(logits * tau, dim=1)
    out = _decode_vectors(tensors, torch.einsum("bkhw,kd->bdhw", probabilities, tensors["_vq_vae._embedding"]))
    return (out + 1) / 2 if use_norm else out


def plain_vqvae_update(
    tensors: Tensors, features: torch.Tensor, codes: torch.Tensor, decay: float = 0.99, epsilon: float = 1e-5
) -> dict[str, torch.Tensor]:
    """Codebook buffers after one exponential-moving-average update with encoder output and its (old) codes."""
    points = features.detach().permute(0, 2, 3, 1).flatten(0, 2)
    count = tensors["_vq_vae._embedding"].shape[0]
    chosen = F.one_hot(codes.flatten(), count).to(points.dtype)
    sizes = decay * tensors["_vq_vae._ema_cluster_size"] + (1 - decay) * chosen.sum(0)
    total = sizes.sum()
    sizes = (sizes + epsilon) / (total + count * epsilon) * total
    sums = decay * tensors["_vq_vae._ema_w"] + (1 - decay) * chosen.T @ points
    updated = {"_ema_cluster_size": sizes, "_ema_w": sums, "_embedding": sums / sizes[:, None]}
    return {f"_vq_vae.{name}": buffer for name, buffer in updated.items()}


def plain_vqvae_training_forward(
    tensors: Tensors, x: torch.Tensor, target: torch.Tensor, use_norm: bool, ignore_zero: bool
) -> dict[str, torch.Tensor]:
    """One training forward with the current codebook.

    Args:
        tensors: original VQ-VAE tensors, not modified.
        x: input (B, 1, H, W), possibly masked.
        target: what to reconstruct, same shape, unmasked.
        use_norm: compare in [-1, 1]: the decoder's output with 2 * target - 1.
        ignore_zero: take the reconstruction loss over pixels whose target is > 0 only.

    Returns:
        `loss`, `recon_loss`, `reconstruction` (B, 1, H, W), and the three updated codebook buffers by original name.
    """
    features = plain_vqvae_features(tensors, x, use_norm)
    codes = plain_vqvae_quantise(tensors, features)
    quantised = tensors["_vq_vae._embedding"][codes].permute(0, 3, 1, 2)
    out = _decode_vectors(tensors, features + (quantised - features).detach())
    error = (out - (2 * target - 1 if use_norm else target)) ** 2
    reconstruction_loss = error[target > 0].mean() if ignore_zero else error.mean()
    loss = reconstruction_loss + 0.25 * F.mse_loss(features, quantised.detach())
    reconstruction = (out + 1) / 2 if use_norm else out
    updated = plain_vqvae_update(tensors, features, codes)
    return {"loss": loss, "recon_loss": reconstruction_loss, "reconstruction": reconstruction, **updated}
