"""The VQ-VAE, plainly, on tensors without prefix: `encoder.*`, `decoder.*`, `_vq_vae.*`."""

import torch
import torch.nn.functional as F

from .layers import Tensors


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
