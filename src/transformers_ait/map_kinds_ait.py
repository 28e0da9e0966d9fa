"""What the values of a dense map mean: the one home of validity, tokenizer form, losses, flips, merging and resizing.

A map has two forms. Its native form is what data sets hold and users read; its tokenizer form (B, C, H, W) is what a
tokenizer takes and gives.

| kind | native form | invalid | tokenizer form |
|---|---|---|---|
| `depth` | (B, H, W) metres, positive | 0 | the same, one channel |
| `normals` | (B, 3, H, W) unit vectors | the zero vector | the same |
| `classes` | (B, H, W) ids | 255 | one-hot in, class scores out; the zero vector is invalid |
| `values` | (B, C, H, W) real values | NaN in every channel | the same |
| `mask` | (B, 1, H, W) in [0, 1] | nothing | the same; box crops of instance masks |

A predicted native map is one that `from_tokenizer` made: depth may be negative, normals have any length, and classes
are scores (B, K, H, W) until `finish` picks the largest.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_DEPTH = 1e-3  # metres; smaller predictions count as this
IGNORED_CLASS = 255
MAX_RESIZED = 1 << 26  # numbers of all classes that are resized at once
UNIT_TOLERANCE = 0.02  # of a normal's length; 8-bit normals are off by up to 0.008


def scale_invariant_log_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """`sqrt(mean(g^2) - 0.5 * mean(g)^2)` with g = ln target - ln max(prediction, 1e-3) (Eigen et al. 2014).

    One mean over all valid pixels of the batch; 0 when there is none.

    Args:
        prediction: (B, H, W) metres.
        target: (B, H, W) metres, 0 = invalid.
    """
    valid = target > 0
    count = valid.sum()
    ratio = target.where(valid, 1.0).log() - prediction.float().clamp(min=MIN_DEPTH).log()
    ratio = ratio.where(valid, 0.0)
    mean, mean_square = (x.sum() / count.clamp(min=1) for x in (ratio, ratio.square()))
    # The lower bound keeps the square root's gradient finite where everything is exact or nothing is valid.
    return (mean_square - 0.5 * mean.square()).clamp(min=1e-12).sqrt() * (count > 0)


@dataclass(frozen=True)
class MapKind:
    """A kind of map; the methods here are those of real-valued maps, which the other kinds override.

    Args:
        name: its key in `MAP_KINDS`.
        metric: what measures it, a key of `metrics.MAP_METRICS`.
        colors: how it is drawn: "sequential", "vectors" or "categories".
        channels: of the tokenizer form; None where the tokenizer's configuration says.
        has_channels: the native form has a channel axis.
        has_scores: predicted maps are scores of classes, which have names.
        invalid: native value of a pixel without measurement.
        output: field of a model's output that holds the prediction beside `dense_maps`.
    """

    name: str
    metric: str = "values"
    colors: str = "sequential"
    channels: int | None = None
    has_channels: bool = True
    has_scores: bool = False
    invalid: float = float("nan")
    output: str | None = None

    def check(self, labels: Tensor, channels: int, name: str) -> None:
        """Raise a ValueError for native maps with values that the kind cannot have.

        Args:
            labels: native maps.
            channels: of the tokenizer form.
            name: what to call the maps.
        """
        if labels.isinf().any():
            raise ValueError(f"{name} must be finite; mark pixels without a value by NaN in every channel.")

    def check_shape(self, labels: Tensor, batch_and_size: tuple[int, int, int], channels: int, name: str) -> None:
        """Raise a ValueError for native maps that are not (batch[, channels], height, width).

        Args:
            labels: native maps.
            batch_and_size: batch, height and width of their images.
            channels: of the tokenizer form.
            name: what to call the maps.
        """
        batch, *size = batch_and_size
        expected = (batch, channels, *size) if self.has_channels else (batch, *size)
        if tuple(labels.shape) != expected:
            form = "(batch, channels, height, width)" if self.has_channels else "(batch, height, width)"
            raise ValueError(
                f"{name} must be {form} like pixel_values, {expected}, got {tuple(labels.shape)}; resize maps with "
                "their images."
            )

    def to_tokenizer(self, labels: Tensor, channels: int) -> Tensor:
        """Tokenizer form (B, C, H, W) float32 of native maps."""
        return labels.float()

    def from_tokenizer(self, decoded: Tensor) -> Tensor:
        """Predicted native maps of what a tokenizer decoded (B, C, H, W)."""
        return decoded

    def fill(self, maps: Tensor) -> Tensor:
        """Maps in tokenizer form with invalid pixels as a network can take them: 0."""
        return maps

    def valid(self, maps: Tensor) -> Tensor:
        """Which pixels (B, 1, H, W) of maps in tokenizer form were measured."""
        return ~maps.isnan().any(1, keepdim=True)

    def reconstruction_loss(self, decoded: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Loss of a tokenizer: mean squared error over channels and the valid pixels of the batch; 0 without any.

        Args:
            decoded: (B, C, H, W) float32.
            target: (B, C, H, W) float32, in tokenizer form or in the range that the network sees.
            valid: (B, 1, H, W) bool, or for depth (B, C, H, W).
        """
        error = (decoded - torch.where(valid, target, 0.0)).square()
        return (error * valid).sum() / (valid.sum() * target.shape[1]).clamp(min=1)

    def auxiliary_loss(self, decoded: Tensor, target: Tensor) -> Tensor:
        """Loss of a task-solver through the frozen detokenizer, here mean absolute error; 0 without a valid pixel.

        Args:
            decoded: (B, C, H, W) float32.
            target: (B, C, H, W) float32, in tokenizer form.
        """
        valid = self.valid(target)
        error = (decoded - torch.where(valid, target, 0.0)).abs()
        return (error * valid).sum() / (valid.sum() * target.shape[1]).clamp(min=1)

    def flip(self, maps: Tensor) -> Tensor:
        """Native maps, labels or predicted, of the horizontally flipped images."""
        return maps.flip(-1)

    def to_average(self, maps: Tensor) -> Tensor:
        """Predicted native maps as what overlapping views are averaged in."""
        return maps

    def finish(self, averaged: Tensor, size: tuple[int, int] | None) -> Tensor:
        """One averaged map ([C,] H, W) as users read it, resized bilinearly to (height, width) where that is given."""
        return _resize(averaged, size)


class DepthKind(MapKind):
    """Positive metres; 0 is invalid."""

    def check(self, labels: Tensor, channels: int, name: str) -> None:
        """See `MapKind.check`."""
        if not ((labels >= 0) & labels.isfinite()).all():
            raise ValueError(f"{name} must be finite and not negative; mark invalid pixels with 0.")

    def to_tokenizer(self, labels: Tensor, channels: int) -> Tensor:
        """See `MapKind.to_tokenizer`."""
        return labels.float().unsqueeze(1)

    def from_tokenizer(self, decoded: Tensor) -> Tensor:
        """See `MapKind.from_tokenizer`."""
        return decoded.squeeze(1)

    def valid(self, maps: Tensor) -> Tensor:
        """See `MapKind.valid`."""
        return maps > 0

    def reconstruction_loss(self, decoded: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Mean squared error (AiT, arXiv 2301.02229)."""
        return ((decoded - target).square() * valid).sum() / valid.sum().clamp(min=1)

    def auxiliary_loss(self, decoded: Tensor, target: Tensor) -> Tensor:
        """Scale-invariant log loss."""
        return scale_invariant_log_loss(decoded.squeeze(1), target.squeeze(1))

    def finish(self, averaged: Tensor, size: tuple[int, int] | None) -> Tensor:
        """See `MapKind.finish`; clamped at 1 mm before resizing."""
        return _resize(averaged.clamp(min=MIN_DEPTH), size)


class NormalsKind(MapKind):
    """Unit vectors in the camera's axes: x right, y down, z ahead; the zero vector is invalid."""

    def check(self, labels: Tensor, channels: int, name: str) -> None:
        """See `MapKind.check`."""
        length = labels.float().square().sum(dim=1).sqrt()
        wrong = ~((length - 1).abs() <= UNIT_TOLERANCE) & (length != 0)
        if wrong.any():
            raise ValueError(
                f"{name} must be vectors of length 1, and zero vectors where invalid, got a length of "
                f"{length[wrong][0].item():.3g}; divide them by their length."
            )

    def valid(self, maps: Tensor) -> Tensor:
        """See `MapKind.valid`."""
        return (maps != 0).any(1, keepdim=True)

    def auxiliary_loss(self, decoded: Tensor, target: Tensor) -> Tensor:
        """1 - cosine of the angle between prediction and truth."""
        valid = self.valid(target).squeeze(1)
        cosine = (_unit(decoded.float()) * target).sum(dim=1)  # the truth has length 1, or 0 where invalid
        return ((1 - cosine) * valid).sum() / valid.sum().clamp(min=1)

    def flip(self, maps: Tensor) -> Tensor:
        """See `MapKind.flip`; x changes its sign."""
        return maps.flip(-1) * maps.new_tensor([-1.0, 1.0, 1.0])[:, None, None]

    def to_average(self, maps: Tensor) -> Tensor:
        """See `MapKind.to_average`."""
        return _unit(maps)

    def finish(self, averaged: Tensor, size: tuple[int, int] | None) -> Tensor:
        """See `MapKind.finish`; of length 1."""
        return _unit(_resize(averaged, size))


class ClassesKind(MapKind):
    """Class ids; 255 is invalid."""

    def check(self, labels: Tensor, channels: int, name: str) -> None:
        """See `MapKind.check`."""
        if labels.is_floating_point():
            raise ValueError(f"{name} must be integer class ids, got {labels.dtype}.")
        wrong = ((labels < 0) | (labels >= channels)) & (labels != IGNORED_CLASS)
        if wrong.any():
            raise ValueError(
                f"{name} must be class ids in [0, {channels}), and {IGNORED_CLASS} where invalid, got "
                f"{int(labels[wrong][0])}; map other ids to {IGNORED_CLASS}, or train a tokenizer of more classes."
            )

    def to_tokenizer(self, labels: Tensor, channels: int) -> Tensor:
        """See `MapKind.to_tokenizer`."""
        # A spare class takes the invalid pixels, and is dropped.
        ids = torch.where(labels == IGNORED_CLASS, channels, labels).long()
        return F.one_hot(ids, channels + 1)[..., :channels].movedim(-1, -3).float()

    def valid(self, maps: Tensor) -> Tensor:
        """See `MapKind.valid`."""
        return (maps > 0).any(1, keepdim=True)

    def reconstruction_loss(self, decoded: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Cross-entropy of the class scores."""
        # A row of scores per pixel: against one-hot maps in another memory order, two thirds of the time were copies.
        scores, ids = decoded.float().movedim(1, -1).flatten(0, -2), target.argmax(dim=1).flatten()
        losses = F.cross_entropy(scores, ids, reduction="none") * valid.flatten()
        return losses.sum() / valid.sum().clamp(min=1)

    def auxiliary_loss(self, decoded: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the class scores."""
        return self.reconstruction_loss(decoded, target, self.valid(target))

    def to_average(self, maps: Tensor) -> Tensor:
        """See `MapKind.to_average`; probabilities."""
        return maps.softmax(dim=-3)

    def finish(self, averaged: Tensor, size: tuple[int, int] | None) -> Tensor:
        """See `MapKind.finish`; ids (H, W) int64 of the largest probabilities."""
        if size is None or len(averaged) * size[0] * size[1] <= MAX_RESIZED or len(averaged) > IGNORED_CLASS:
            return _resize(averaged, size).argmax(dim=-3)
        # One class after the other, as all of them at the size of a large photograph would fill the memory.
        best = _resize(averaged[0], size).clone()
        ids = torch.zeros_like(best, dtype=torch.uint8)
        for index, scores in enumerate(averaged[1:], start=1):
            resized = _resize(scores, size)
            ids.masked_fill_(resized > best, index)
            torch.maximum(best, resized, out=best)
        return ids.long()


class ValuesKind(MapKind):
    """Real values of any meaning, such as heights, flow or albedo; NaN is invalid."""

    def fill(self, maps: Tensor) -> Tensor:
        """See `MapKind.fill`."""
        return maps.nan_to_num(nan=0.0)


class MaskKind(MapKind):
    """Box crops of instance masks, in [0, 1]; every pixel is valid."""

    def reconstruction_loss(self, decoded: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Mean squared error (AiT, arXiv 2301.02229)."""
        return (decoded - target).square().mean()

    def valid(self, maps: Tensor) -> Tensor:
        """See `MapKind.valid`."""
        return torch.ones_like(maps[:, :1], dtype=torch.bool)


MAP_KINDS: dict[str, MapKind] = {
    "depth": DepthKind("depth", metric="depth", channels=1, has_channels=False, invalid=0.0, output="predicted_depth"),
    "normals": NormalsKind("normals", metric="normals", colors="vectors", channels=3, invalid=0.0),
    "classes": ClassesKind(
        "classes",
        metric="segmentation",
        colors="categories",
        has_channels=False,
        has_scores=True,
        invalid=IGNORED_CLASS,
    ),
    "values": ValuesKind("values"),
    "mask": MaskKind("mask", channels=1, invalid=0.0),
}
DENSE_KINDS = tuple(name for name, kind in MAP_KINDS.items() if not isinstance(kind, MaskKind))


def _unit(vectors: Tensor) -> Tensor:
    """Vectors (..., 3, H, W) of length 1; F.normalize takes seven times as long along this axis."""
    return vectors / vectors.square().sum(-3, keepdim=True).sqrt().clamp(min=1e-12)


def _resize(maps: Tensor, size: tuple[int, int] | None) -> Tensor:
    if size is None or tuple(maps.shape[-2:]) == size:
        return maps
    batched = maps[None, None] if maps.ndim == 2 else maps[None]
    if batched.shape[1] > 4:  # in channels-last order many channels take half the time on a CPU
        batched = batched.contiguous(memory_format=torch.channels_last)
    return F.interpolate(batched, size=size, mode="bilinear", align_corners=False).reshape(*maps.shape[:-2], *size)


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Native maps ([...], H, W) of any kind at another size, each pixel the nearest one."""
    # nearest-exact samples at pixel centres, as the filters of images do; "nearest" is half a pixel off.
    flat = labels.reshape(1, -1, *labels.shape[-2:]).to(torch.float32)
    return F.interpolate(flat, size=size, mode="nearest-exact").view(*labels.shape[:-2], *size).to(labels.dtype)


__all__ = [
    "DENSE_KINDS",
    "IGNORED_CLASS",
    "MAP_KINDS",
    "MIN_DEPTH",
    "MapKind",
    "resize_labels",
    "scale_invariant_log_loss",
]
