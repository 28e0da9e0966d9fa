"""PaliGemma's text of boxes and masks, `<locNNNN>` and `<segNNN>`, to objects in pixels and back.

What the text says follows PaliGemma's own code (google-research/big_vision: `pp/proj/paligemma/segmentation.py` writes
it, `evaluators/proj/paligemma/transfers/segmentation.py` reads it):

- an object is four `<loc>` in the order y1 x1 y2 x2, then, when it has a mask, sixteen `<seg>` of 4 x 4 codes row by
  row, then its label; objects are separated by " ; ";
- `<loc0000>` to `<loc1023>` are fractions of the image's height or width, `round(1023 * fraction)`;
- `<seg000>` to `<seg127>` are codes of a 64 x 64 mask of what is inside the box. Their tokenizer is AiT's VQ-VAE;
  `python -m transformers_ait.conversion` makes an `AiTVQVAEModel` of the published `vae-oid.npz`.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from .mask_geometry_ait import MASK_THRESHOLD, proper_boxes
from .modeling_ait_vqvae import AiTVQVAEModel

LAST_LOCATION = 1023
NUM_CODES = 128
CODES_PER_MASK = 16
# Tokens of one object and the text behind them; a run of text without tokens matches too, and is no object.
OBJECT = re.compile(r"((?:<loc\d+>\s*)*)((?:<seg\d+>\s*)*)([^;<>]*)", re.ASCII)

logger = logging.get_logger(__name__)


class PaliGemmaDetection(NamedTuple):
    """One object of PaliGemma's text.

    Args:
        label: class name or description, without spaces around it; "" where the text has none.
        box: (x1, y1, x2, y2) in fractions of the image, [0, 1].
        codes: the 16 mask codes, each 0 to 127, row by row; None without a mask.
    """

    label: str
    box: tuple[float, float, float, float]
    codes: tuple[int, ...] | None = None


def parse_detections(text: str) -> list[PaliGemmaDetection]:
    """Objects that a PaliGemma text says, in its order.

    A generated text may say anything, and often ends in the middle of an object, so nothing in it is an error. What is
    not whole is reported as a warning and

    - left out when it has no box: `<seg>` without `<loc>`, more or fewer than four `<loc>` in a row, or one that is not
      four digits up to 1023;
    - kept with its box and label, but without a mask, when its `<seg>` are not sixteen, or one is not three digits
      up to 127.

    Text without such tokens (the prompt, `<eos>`) is ignored. Boxes may be empty or inverted; `to_instances` leaves
    those out.

    Args:
        text: one decoded output, with or without the prompt.
    """
    detections = []
    for match in OBJECT.finditer(text):
        if match[1] or match[2]:
            locations = _numbers(match[1], "loc", digits=4, last=LAST_LOCATION)
            codes = _numbers(match[2], "seg", digits=3, last=NUM_CODES - 1)
            if locations is None or len(locations) != 4:
                logger.warning(f"PaliGemma's text has an object without a whole box, it is left out: {match[0]!r}.")
                continue
            if match[2] and (codes is None or len(codes) != CODES_PER_MASK):
                logger.warning(f"PaliGemma's text has an object without a whole mask, its box is kept: {match[0]!r}.")
                codes = None
            y1, x1, y2, x2 = (location / LAST_LOCATION for location in locations)
            detections.append(PaliGemmaDetection(match[3].strip(), (x1, y1, x2, y2), tuple(codes) if codes else None))
    return detections


def format_detections(detections: Iterable[tuple[str, Sequence[float], Sequence[int] | None]]) -> str:
    """The text that PaliGemma is trained to give for objects; what follows the prompt `segment ...` or `detect ...`.

    `parse_detections` gives the same objects again, their boxes within 1 / 2046 of the image.

    Args:
        detections: (label, box, codes) as in `PaliGemmaDetection`. Boxes are clipped to the image.

    Raises:
        ValueError: a label with ";", "<" or ">", an inverted box or one that is not a number, or codes that are not 16
            numbers from 0 to 127.
    """
    return " ; ".join(_format_detection(*detection) for detection in detections)


@torch.no_grad()
def to_instances(text: str, tokenizer: AiTVQVAEModel | None, image_size: tuple[int, int]) -> dict[str, Any]:
    """Objects of a PaliGemma text in pixels of the image; objects with an empty or inverted box are left out.

    Masks are pasted as PaliGemma's evaluation does: the decoded mask is resized bilinearly with antialiasing to the
    box, its sides rounded down to whole pixels, and a pixel is inside where the decoder's [-1, 1] exceeds 0. That is
    not `paste_masks`, which fades masks out within half of one of their 64 pixels from the frame.

    Args:
        text: see `parse_detections`, which also says what happens to text that is not whole.
        tokenizer: made of the published `vae-oid.npz`, see above; None leaves out the masks.
        image_size: (height, width) of the image, in pixels.

    Returns:
        `boxes` (N, 4) float32 xyxy pixels, `labels`, a list of N strings, and `masks` (N, height, width) bool, of which
        objects without codes, and of less than a pixel, have empty ones. All are on the CPU.

    Raises:
        ValueError: the tokenizer has another number of codes, or of tokens per mask.
    """
    height, width = image_size
    detections = parse_detections(text)
    boxes = torch.tensor([detection.box for detection in detections]).reshape(-1, 4)
    boxes = boxes * torch.tensor([width, height, width, height])
    kept = proper_boxes(boxes)
    detections = [detection for detection, keep in zip(detections, kept.tolist(), strict=True) if keep]
    instances: dict[str, Any] = {"boxes": boxes[kept], "labels": [detection.label for detection in detections]}
    if tokenizer is not None:
        side = _require_mask_tokenizer(tokenizer)
        instances["masks"] = torch.zeros(len(detections), height, width, dtype=torch.bool)
        masked = [index for index, detection in enumerate(detections) if detection.codes is not None]
        codes = torch.tensor([detections[index].codes for index in masked], dtype=torch.long, device=tokenizer.device)
        values = tokenizer.decode(codes.view(-1, side, side)).float().cpu()
        for index, mask in zip(masked, values, strict=True):
            _paste(mask, detections[index].box, instances["masks"][index])
    return instances


@torch.no_grad()
def from_instances(
    labels: Sequence[str],
    boxes: Tensor,
    image_size: tuple[int, int],
    masks: Tensor | None = None,
    tokenizer: AiTVQVAEModel | None = None,
) -> str:
    """Training text of objects in pixels, the inverse of `to_instances`.

    Masks are cut at the box rounded to whole pixels, at least one, and shrunk or enlarged to the tokenizer's size
    bilinearly with antialiasing, not made binary again: what PaliGemma was trained on, which is not `crop_masks`.

    Args:
        labels: class name or description of each object; "" leaves it out.
        boxes: (N, 4) xyxy pixels, clipped to the image.
        image_size: (height, width) of the image, in pixels.
        masks: (N, height, width), nonzero inside; None writes boxes alone.
        tokenizer: see `to_instances`; needed for masks.

    Raises:
        ValueError: unequal numbers, masks of another size than the image or without a tokenizer, and what
            `format_detections` and `to_instances` refuse.
    """
    height, width = image_size
    boxes = boxes.detach().cpu().float()
    if boxes.shape != (len(labels), 4):
        raise ValueError(f"boxes must be ({len(labels)}, 4), one row per label, got {tuple(boxes.shape)}.")
    codes: list[list[int] | None] = [None] * len(labels)
    if masks is not None and len(labels):
        if tokenizer is None:
            raise ValueError("masks need a tokenizer; convert vae-oid.npz, or leave out the masks.")
        if masks.shape != (len(labels), height, width):
            raise ValueError(f"masks must be {(len(labels), height, width)}, got {tuple(masks.shape)}.")
        _require_mask_tokenizer(tokenizer)
        crops = [_crop(mask, box, tokenizer.config.image_size) for mask, box in zip(masks, boxes, strict=True)]
        codes = tokenizer.encode(torch.stack(crops).to(tokenizer.device)).flatten(1).tolist()
    fractions = boxes / torch.tensor([width, height, width, height])
    return format_detections(zip(labels, fractions.tolist(), codes, strict=True))


def _numbers(tokens: str, name: str, digits: int, last: int) -> list[int] | None:
    """Numbers of consecutive tokens; None if one is not written with so many digits or exceeds `last`."""
    written = re.findall(rf"<{name}(\d+)>", tokens, re.ASCII)
    whole = all(len(number) == digits and int(number) <= last for number in written)
    return [int(number) for number in written] if whole else None


def _format_detection(label: str, box: Sequence[float], codes: Sequence[int] | None = None) -> str:
    x1, y1, x2, y2 = box
    if not (x1 <= x2 and y1 <= y2):
        raise ValueError(f"box must be (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2, got {tuple(box)}.")
    if set(label) & set(";<>"):
        raise ValueError(f"label must not hold ';', '<' or '>', which end it when it is read, got {label!r}.")
    sides = (round(min(max(side, 0.0), 1.0) * LAST_LOCATION) for side in (y1, x1, y2, x2))
    parts = ["".join(f"<loc{side:04d}>" for side in sides)]
    if codes is not None:
        if len(codes) != CODES_PER_MASK or not all(0 <= code < NUM_CODES for code in codes):
            raise ValueError(f"codes must be {CODES_PER_MASK} numbers below {NUM_CODES}, got {list(codes)}.")
        parts.append("".join(f"<seg{code:03d}>" for code in codes))
    return " ".join([*parts, label.strip()]).rstrip()


def _require_mask_tokenizer(tokenizer: AiTVQVAEModel) -> int:
    """Side of the grid of codes; raises ValueError unless the tokenizer's sizes are PaliGemma's."""
    config = tokenizer.config
    if (config.kind.name, config.num_codes, config.num_tokens) != ("mask", NUM_CODES, CODES_PER_MASK):
        raise ValueError(
            f"tokenizer must be one of masks with {CODES_PER_MASK} of {NUM_CODES} codes, got one of {config.kind.name} "
            f"with {config.num_tokens} of {config.num_codes}; convert vae-oid.npz with --config paligemma-vqvae-mask."
        )
    return config.grid_size


def _paste(values: Tensor, box: Sequence[float], canvas: Tensor) -> None:
    """Write a decoded mask (1, h, w) around [0, 1] into an empty bool mask (H, W), at a box in fractions of it."""
    height, width = canvas.shape
    # Not from pixels in float32, whose rounding can make 160 of what is 159.99 here and where this comes from.
    left, top, right, bottom = (int(side * size) for side, size in zip(box, (width, height) * 2, strict=True))
    if left < right and top < bottom:
        canvas[top:bottom, left:right] = _resize(values, (bottom - top, right - left)) > MASK_THRESHOLD


def _crop(mask: Tensor, box: Tensor, size: int) -> Tensor:
    """Mask (H, W) inside a box (4,) xyxy pixels, as (1, size, size) float32 in [0, 1]."""
    left, top, right, bottom = box.round().long().tolist()
    left, top = min(max(left, 0), mask.shape[1] - 1), min(max(top, 0), mask.shape[0] - 1)
    inside = mask[top : max(bottom, top + 1), left : max(right, left + 1)] != 0
    return _resize(inside[None].float(), (size, size))


def _resize(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with antialiasing, as Pillow and TensorFlow have it; (1, h, w) to (1, *size)."""
    return F.interpolate(values[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
