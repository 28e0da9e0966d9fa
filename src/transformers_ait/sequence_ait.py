"""Token sequences as pure functions: what each position may hold, and how annotations become inputs and targets."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .token_vocabulary import IdRange, TokenVocabulary

IGNORE_INDEX = -100
NUM_COORDINATES = 4
CLASS_POSITION = 4
HEADER_LENGTH = 5  # four coordinates and the class stand before an object's mask codes
JITTER_SCALE = 0.1


@dataclass(frozen=True)
class TokenStep:
    """What the grammar allows at one position.

    Args:
        allowed: ids that may stand there.
        soft: feed back the expected embedding over `allowed` instead of the chosen id's.
        sampled: choose by nucleus sampling where sampling is on; elsewhere the most probable id is chosen.
        rival: an id that may not be chosen but counts in probabilities (the noise class); its logit is reported last.
    """

    allowed: IdRange
    soft: bool
    sampled: bool = False
    rival: int | None = None


def map_grammar(codes: IdRange, length: int, soft: bool) -> list[TokenStep]:
    """Grammar of a dense map: `length` codes of its task's ids, in row-major order."""
    return [TokenStep(codes, soft)] * length


def object_grammar(
    vocabulary: TokenVocabulary, num_objects: int, tokens_per_object: int, soft: bool
) -> list[TokenStep]:
    """Grammar of `num_objects` objects: x1, y1, x2, y2, class, then mask codes; no end token."""
    coordinate = TokenStep(vocabulary.coordinates, soft=False, sampled=True)
    label = TokenStep(vocabulary.classes, soft=False, sampled=True, rival=vocabulary.noise)
    code = TokenStep(vocabulary.mask_codes, soft)
    header = [coordinate] * NUM_COORDINATES + [label]
    return (header + [code] * (tokens_per_object - HEADER_LENGTH)) * num_objects


def map_sequence(codes: Tensor, supervised: Tensor, ids: IdRange) -> tuple[Tensor, Tensor]:
    """Teacher-forcing inputs and targets of dense maps (AiT, arXiv 2301.02229).

    Args:
        codes: (B, h, w) codes.
        supervised: (B,) bool, False for maps without any valid pixel.
        ids: the task's ids in the vocabulary.

    Returns:
        Input ids (B, L - 1), which stand behind the task embedding, and target ids (B, L), -100 where unsupervised.
    """
    tokens = ids.to_ids(codes.flatten(1))
    return tokens[:, :-1], torch.where(supervised[:, None], tokens, IGNORE_INDEX)


def boxes_to_bins(boxes: Tensor, num_bins: int, scale: float) -> Tensor:
    """Coordinate bins (..., 4) of boxes (..., 4) in pixels: `num_bins * pixel / scale`, half rounded to even."""
    return (boxes * (num_bins / scale)).round().long().clamp(0, num_bins)


def bins_to_boxes(bins: Tensor, num_bins: int, scale: float) -> Tensor:
    """Boxes (..., 4) in pixels of coordinate bins (..., 4); inverse of `boxes_to_bins` up to rounding."""
    return bins.float() * (scale / num_bins)


def order_objects(boxes: Tensor, order: str, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Indices (M,) of the first `count` true objects in the order in which a sequence trains on them.

    Args:
        boxes: (N, 4) xyxy pixels.
        order: "random", drawn anew at every call (AiT, arXiv 2301.02229), or "area", the largest box first.
        count: M at most.
        generator: source of randomness, on the CPU.
    """
    if order == "random":
        return torch.randperm(len(boxes), generator=generator)[:count]
    sides = boxes[:, 2:] - boxes[:, :2]
    return sides.prod(dim=1).argsort(descending=True, stable=True)[:count].cpu()


@dataclass(frozen=True)
class NoiseObjects:
    """Boxes that the model must learn to call noise.

    Args:
        boxes: (M, 4) xyxy pixels.
        sources: (M,) index of the true object whose mask is cropped at the box, -1 for an empty mask.
    """

    boxes: Tensor
    sources: Tensor


def draw_noise_objects(
    boxes: Tensor, image_size: tuple[int, int], count: int, generator: torch.Generator | None = None
) -> NoiseObjects:
    """Draw noise objects (AiT, arXiv 2301.02229; after Pix2Seq).

    A uniform random number of them are true boxes with jittered sides; the others are random boxes, or true boxes
    moved to a random place, with an empty mask. Shuffled and clipped to the image.

    Args:
        boxes: (N, 4) true boxes, xyxy pixels; N may be 0, then all are random boxes.
        image_size: height and width in pixels.
        count: how many to draw.
        generator: source of randomness, on the CPU.
    """
    device, boxes = boxes.device, boxes.cpu().float()
    limit = boxes.new_tensor([image_size[1], image_size[0]] * 2)
    jittered_count = int(torch.randint(0, count + 1, (), generator=generator)) if len(boxes) else 0
    jittered, sources = _jittered_boxes(boxes, jittered_count, generator)
    others = _displaced_boxes(boxes, limit, count - jittered_count, generator)
    sources = torch.cat((sources, torch.full((len(others),), -1)))
    order = torch.randperm(count, generator=generator)
    noise = torch.cat((jittered, others))[order].clamp(min=0).minimum(limit)
    return NoiseObjects(noise.to(device), sources[order].to(device))


def _jittered_boxes(boxes: Tensor, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    if count == 0:
        return boxes.new_zeros(0, 4), torch.zeros(0, dtype=torch.long)
    sources = torch.randint(0, len(boxes), (count,), generator=generator)
    chosen = boxes[sources]
    sides = (chosen[:, 2:] - chosen[:, :2]).repeat(1, 2)
    noise = torch.nn.init.trunc_normal_(torch.empty(count, 4), generator=generator) / 2 * JITTER_SCALE
    return chosen + noise * sides, sources


def _displaced_boxes(boxes: Tensor, limit: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Random boxes and true boxes at random places, half of each on average; random ones alone without true boxes."""
    centre = torch.rand(count, 2, generator=generator) * limit[:2]
    size = torch.rand(count, 2, generator=generator) * limit[:2]
    if len(boxes):
        true_size = (boxes[:, 2:] - boxes[:, :2])[torch.randint(0, len(boxes), (count,), generator=generator)]
        size = torch.where(torch.rand(count, 1, generator=generator) < 0.5, size, true_size)
    return torch.cat((centre - size / 2, centre + size / 2), dim=1)


def corrupt_classes(class_ids: Tensor, vocabulary: TokenVocabulary, generator: torch.Generator | None = None) -> Tensor:
    """Class tokens of the INPUT sequence: half random classes, half the noise token, true objects included."""
    random = torch.randint(vocabulary.classes.start, vocabulary.classes.stop, class_ids.shape, generator=generator)
    keep = torch.rand(class_ids.shape, generator=generator) < 0.5
    return torch.where(keep, random, vocabulary.noise).to(class_ids.device)


def object_sequence(
    bins: Tensor, class_index: Tensor, codes: Tensor | None, input_class_ids: Tensor, vocabulary: TokenVocabulary
) -> tuple[Tensor, Tensor]:
    """Teacher-forcing inputs and targets of one image's objects.

    Args:
        bins: (M, 4) coordinate bins of true objects, then noise objects.
        class_index: (M,) class of true objects, -1 of noise objects.
        codes: (M, T) mask codes; None for detection.
        input_class_ids: (M,) vocabulary ids that stand for the class in the input.
        vocabulary: the token map.

    Returns:
        Input ids (M * (5 + T) - 1,) and target ids (M * (5 + T),). Of noise objects only the class is supervised.
    """
    noise = class_index < 0
    coordinates = vocabulary.coordinates.to_ids(bins)
    labels = torch.where(noise, vocabulary.noise, vocabulary.classes.to_ids(class_index))
    tail = [] if codes is None else [vocabulary.mask_codes.to_ids(codes)]
    inputs = torch.cat((coordinates, input_class_ids[:, None], *tail), dim=1)
    targets = torch.cat((coordinates, labels[:, None], *tail), dim=1)
    unsupervised = noise[:, None].expand_as(targets).clone()
    unsupervised[:, CLASS_POSITION] = False
    return inputs.flatten()[:-1], targets.masked_fill(unsupervised, IGNORE_INDEX).flatten()


def parse_objects(
    sequences: Tensor, tokens_per_object: int, vocabulary: TokenVocabulary
) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse of `object_sequence` for complete sequences.

    Args:
        sequences: (B, M * tokens_per_object) ids.
        tokens_per_object: 5 and the mask codes of an object.
        vocabulary: the token map.

    Returns:
        Coordinate bins (B, M, 4), class indices (B, M) (outside [0, classes) where no class stands) and mask codes
        (B, M, T).
    """
    objects = sequences.unflatten(1, (-1, tokens_per_object))
    return (
        vocabulary.coordinates.to_index(objects[..., :NUM_COORDINATES]),
        vocabulary.classes.to_index(objects[..., CLASS_POSITION]),
        vocabulary.mask_codes.to_index(objects[..., HEADER_LENGTH:]),
    )


def true_objects(target_ids: Tensor, tokens_per_object: int, vocabulary: TokenVocabulary) -> Tensor:
    """Which objects (B, M) of target sequences (B, M * tokens_per_object) are true ones, not noise."""
    labels = target_ids.unflatten(1, (-1, tokens_per_object))[..., CLASS_POSITION]
    return (labels >= vocabulary.classes.start) & (labels < vocabulary.classes.stop)


def token_weights(length: int, tokens_per_object: int, mask_code_weight: float) -> Tensor:
    """Cross-entropy weights (length,) of an object sequence: `mask_code_weight` for mask codes, 1 elsewhere."""
    weights = F.pad(torch.ones(HEADER_LENGTH), (0, tokens_per_object - HEADER_LENGTH), value=mask_code_weight)
    return weights.repeat(length // tokens_per_object)


def check_instance_label(label: Mapping[str, Tensor], size: tuple[int, int], classes: int, needs_masks: bool) -> None:
    """Raise a ValueError that names the entry at fault."""
    needed = ("boxes", "class_labels", "masks") if needs_masks else ("boxes", "class_labels")
    missing = [name for name in needed if name not in label]
    if missing:
        raise ValueError(f"instance_labels need {list(needed)} (or input_ids and target_ids); missing {missing}.")
    count = len(label["class_labels"])
    if label["boxes"].shape != (count, 4):
        raise ValueError(
            f"boxes must be ({count}, 4), xyxy pixels, one per class label; got {tuple(label['boxes'].shape)}."
        )
    if count and not (label["boxes"].isfinite().all() and (label["boxes"][:, 2:] > label["boxes"][:, :2]).all()):
        raise ValueError("boxes must be finite with x2 > x1 and y2 > y1; drop empty ones before training.")
    bad = ((label["class_labels"] < 0) | (label["class_labels"] >= classes)).nonzero().flatten().tolist()
    if bad and "annotation_ids" in label:
        raise ValueError(
            f"Annotation {int(label['annotation_ids'][bad[0]])} of image {int(label['image_id'])} has class index "
            f"{int(label['class_labels'][bad[0]])}, but class_labels must lie in [0, {classes}); category_to_index "
            "does not fit config.id2label."
        )
    if bad:
        raise ValueError(f"class_labels must lie in [0, {classes}), got {label['class_labels'].tolist()}.")
    if needs_masks and label["masks"].shape != (count, *size):
        raise ValueError(
            f"masks must be ({count}, {size[0]}, {size[1]}), one per box and as large as pixel_values; got "
            f"{tuple(label['masks'].shape)}."
        )
