"""PaliGemma's mask tokenizer from the published facts alone: names, shapes, and what it computes, in NumPy."""

import re

import numpy as np

# The published layout: name -> shape, in PyTorch's order of axes.


def affine(name, *shape, outputs=0):
    return {f"{name}.weight": shape, f"{name}.bias": (shape[outputs],)}


def residual(name):
    layers = [affine(f"{name}.net.{i}", 128, 128, k, k) for i, k in ((0, 3), (2, 3), (4, 1))]
    return layers[0] | layers[1] | layers[2]


def published_shapes():
    shapes = {"_vq_vae._embedding": (128, 512), "_vq_vae._ema_cluster_size": (128,), "_vq_vae._ema_w": (128, 512)}
    for index, (before, after) in enumerate(((1, 16), (16, 32), (32, 64), (64, 128))):
        shapes |= affine(f"encoder.{2 * index}", after, before, 4, 4)
    shapes |= residual("encoder.8") | residual("encoder.9") | affine("encoder.10", 512, 128, 1, 1)
    shapes |= affine("decoder.0", 128, 512, 1, 1) | residual("decoder.2") | residual("decoder.3")
    for index, (before, after) in enumerate(((128, 128), (128, 64), (64, 32), (32, 16))):
        shapes |= affine(f"decoder.{4 + 2 * index}", before, after, 4, 4, outputs=1)
    return shapes | affine("decoder.12", 1, 16, 1, 1)


def random_arrays():
    generator = np.random.default_rng(0)
    arrays = {}
    for name, shape in published_shapes().items():
        transposed = re.fullmatch(r"decoder\.(4|6|8|10)\.weight", name)
        fan = np.prod(shape[1:]) if not transposed else shape[0] * 4  # four taps reach each output
        scale = (2 / fan) ** 0.5 if name.endswith("weight") else 0.1 if name.endswith("bias") else 0.3
        arrays[name] = (scale * generator.standard_normal(shape)).astype(np.float32)
    arrays["_vq_vae._ema_cluster_size"] = np.abs(arrays["_vq_vae._ema_cluster_size"])
    return arrays


# The reference: pictures (H, W, C), kernels (height, width, in, out), as big_vision has them.


def convolve(x, kernel, bias, stride=1, padding=0):
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    size = (x.shape[0] - kernel.shape[0]) // stride + 1
    out = np.zeros((size, size, kernel.shape[3])) + bias
    for i, j in np.ndindex(kernel.shape[:2]):
        out += x[i : i + stride * size : stride, j : j + stride * size : stride][:size, :size] @ kernel[i, j]
    return out


def reference_convolution(arrays, name, x, **settings):
    return convolve(x, arrays[f"{name}.weight"].transpose(2, 3, 1, 0), arrays[f"{name}.bias"], **settings)


def reference_upsampling(arrays, name, x):
    """A transposed convolution as what it is: zeros between the pixels, two around, and the mirrored kernel."""
    spread = np.zeros((2 * len(x) - 1, 2 * len(x) - 1, x.shape[2]))
    spread[::2, ::2] = x
    kernel = arrays[f"{name}.weight"].transpose(2, 3, 0, 1)[::-1, ::-1]
    return convolve(spread, kernel, arrays[f"{name}.bias"], padding=2)


def reference_residual(arrays, name, x):
    y = np.maximum(reference_convolution(arrays, f"{name}.net.0", x, padding=1), 0)
    y = np.maximum(reference_convolution(arrays, f"{name}.net.2", y, padding=1), 0)
    return x + reference_convolution(arrays, f"{name}.net.4", y)


def reference_decode(arrays, codes):
    """Mask (64, 64) around [-1, 1] of 16 codes, row by row."""
    x = arrays["_vq_vae._embedding"][codes].reshape(4, 4, 512)
    x = np.maximum(reference_convolution(arrays, "decoder.0", x), 0)
    x = reference_residual(arrays, "decoder.3", reference_residual(arrays, "decoder.2", x))
    for index in (4, 6, 8, 10):
        x = np.maximum(reference_upsampling(arrays, f"decoder.{index}", x), 0)
    return reference_convolution(arrays, "decoder.12", x)[..., 0]


def reference_encode(arrays, mask):
    """16 codes, row by row, of a mask (64, 64) in [0, 1]."""
    x = 2 * mask[..., None] - 1
    for index in (0, 2, 4, 6):
        x = np.maximum(reference_convolution(arrays, f"encoder.{index}", x, stride=2, padding=1), 0)
    x = reference_residual(arrays, "encoder.9", reference_residual(arrays, "encoder.8", x))
    vectors = reference_convolution(arrays, "encoder.10", x).reshape(16, 512)
    return ((vectors[:, None] - arrays["_vq_vae._embedding"]) ** 2).sum(-1).argmin(1)
