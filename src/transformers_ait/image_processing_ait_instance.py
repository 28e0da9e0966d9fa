"""Instance image processor: photographs and COCO annotations to padded squares, and predictions back to photographs."""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import ModelOutput, TensorType, logging

from .coco_annotations_ait import annotation_box, annotation_mask, encode_masks
from .configuration_dense_tasks import OBJECT_TASKS, TASK_IDS
from .image_inputs_ait import AiTImageProcessorBase, TargetSizes, checked_target_sizes
from .mask_geometry_ait import MASK_THRESHOLD, paste_masks, proper_boxes

logger = logging.get_logger(__name__)

BACKGROUND = -1  # in segmentation maps; segment ids count from 0


class AiTInstanceImageProcessorKwargs(ImagesKwargs, total=False):
    """What can be given at construction or per call, besides the usual arguments of an image processor.

    Args:
        task: "detection" or "instance", the task of a model that does several; None leaves it to the model.
    """

    task: str | None


class FittedSize(NamedTuple):
    """Size of a resized image, and the factor from its own pixels to the resized ones.

    Args:
        height: pixels.
        width: pixels.
        scale: resized pixels per original pixel, the same along both axes.
    """

    height: int
    width: int
    scale: float


def fitted_size(image_size: tuple[int, int], longest_edge: int) -> FittedSize:
    """Size of an image whose longest side becomes `longest_edge`, keeping aspect, half a pixel rounded up.

    Boxes are multiplied by `scale` on the way in, and divided by it on the way out.
    """
    scale = longest_edge / max(image_size)
    height, width = (max(1, int(side * scale + 0.5)) for side in image_size)
    return FittedSize(height, width, scale)


@dataclass(frozen=True)
class _Objects:
    """Predicted objects of one image in its own pixels, the most certain first.

    `mask_boxes` are the predicted boxes, in whose frame `mask_values` are; `boxes` are clipped to the image.
    """

    boxes: Tensor
    mask_boxes: Tensor
    scores: Tensor
    labels: Tensor
    mask_values: Tensor | None
    image_size: tuple[int, int]

    def masks(self, threshold: float) -> Iterator[Tensor]:
        """Masks (H, W) bool, one object at a time, which bounds the memory."""
        assert self.mask_values is not None, "checked by _require_masks"
        # Bilinear sampling is linear and zero outside, so scaled values at one fixed threshold are values at another.
        values = self.mask_values * (MASK_THRESHOLD / threshold)
        for mask_values, box in zip(values, self.mask_boxes, strict=True):
            yield paste_masks(mask_values[None], box[None], *self.image_size)[0]

    def segment(self, index: int, segment_id: int) -> dict[str, Any]:
        """What transformers tells of a segment."""
        score, label = self.scores[index].item(), self.labels[index].item()
        return {"id": segment_id, "label_id": label, "was_fused": False, "score": round(score, 6)}


class AiTInstanceImageProcessor(AiTImageProcessorBase):
    """Turns photographs and COCO annotations into inputs of detection and instance models, and predictions back.

    The longest side becomes `size`, aspect kept; after normalisation, zeros fill up to `pad_size` at bottom and right.

    A joint checkpoint serves "image-segmentation", "object-detection" and "depth-estimation" pipelines from one folder:
    the image processor decides, its `task` goes to the model with the pixels. Pass the one that is not the folder's own
    as `image_processor`: `AiTDepthImageProcessor(task="depth")`, `AiTInstanceImageProcessor(task="instance")`.

    Args:
        do_resize: resize to `size`; without it, images must fit into `pad_size` as they are.
        size: {"longest_edge": L}.
        resample: filter for images; masks always take the nearest pixel.
        do_rescale: divide by 255.
        do_normalize: subtract `image_mean`, divide by `image_std`.
        do_pad: pad with zeros to `pad_size`.
        pad_size: {"height": S, "width": S}, the model's square input.
        task: "detection" or "instance" for a model that does several tasks; None leaves it to the model.
    """

    valid_kwargs = AiTInstanceImageProcessorKwargs
    model_input_names = ["pixel_values"]

    do_convert_rgb = True
    do_resize = True
    size = {"longest_edge": 640}
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_pad = True
    pad_size = {"height": 640, "width": 640}
    task = None

    def __init__(self, **kwargs: Unpack[AiTInstanceImageProcessorKwargs]):
        super().__init__(**kwargs)  # type: ignore[misc]

    # Called at construction and at every call, so a bad setting is refused where it is given.
    def _standardize_kwargs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        kwargs = super()._standardize_kwargs(*args, **kwargs)
        size, pad_size = kwargs.get("size"), kwargs.get("pad_size")
        if size is None or set(dict(size)) != {"longest_edge"} or size.longest_edge < 1:
            given = None if size is None else dict(size)
            raise ValueError(f"size must be of the form {{'longest_edge': 640}}, got {given}.")
        if pad_size is None or min(pad_size.height or 0, pad_size.width or 0) < 1:
            given = None if pad_size is None else dict(pad_size)
            raise ValueError(f"pad_size must be of the form {{'height': 640, 'width': 640}}, got {given}.")
        padded = min(pad_size.height, pad_size.width)
        if kwargs.get("do_resize") and kwargs.get("do_pad") and size.longest_edge > padded:
            raise ValueError(f"pad_size must hold images of size {dict(size)}, got {dict(pad_size)}; set both.")
        if kwargs.get("task") not in (None, *OBJECT_TASKS):
            raise ValueError(f"task must be one of {list(OBJECT_TASKS)} or None, got {kwargs['task']!r}.")
        if kwargs.get("do_center_crop"):
            raise ValueError("do_center_crop is not supported: boxes and masks would be cut off; leave it out.")
        return kwargs

    def preprocess(
        self,
        images: ImageInput,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        category_to_index: Mapping[int, int] | None = None,
        return_segmentation_masks: bool = True,
        **kwargs: Unpack[AiTInstanceImageProcessorKwargs],
    ) -> BatchFeature:
        """Prepare images, and for training their annotations.

        Crowds and annotations without area (COCO has both) are left out, with one warning that counts them.

        Args:
            images: one image or a list: PIL in any mode (EXIF orientation is applied, transparency laid on white),
                NumPy or torch of shape (H, W), (H, W, C), (C, H, W), or a batch of the latter two; paths and URLs.
                16-bit images are scaled to 8 bits. Floating-point pixels are 0..255; pass `do_rescale=False` for 0..1.
            annotations: per image {"image_id": int, "annotations": [...]}, each annotation in COCO's form: `id`,
                `category_id`, `bbox` (x, y, width, height) in pixels of the upright image, `iscrowd`, `segmentation`
                (polygons, run-length encoding, or an (H, W) array).
            category_to_index: class index of every category id, see `contiguous_categories`; required with annotations.
            return_segmentation_masks: False leaves out the masks, which detection does not need.
            **kwargs: settings that replace the processor's own in this call, and `return_tensors`, `device`.

        Returns:
            `pixel_values` (B, 3, S, S); `task_ids` (B,) when `task` is set; with annotations `instance_labels`, per
            image `boxes` (N, 4) float32 xyxy pixels of the padded input, `class_labels` (N,), `image_size` (height,
            width) before padding, and `masks` (N, S, S) bool; where the ids are integers also `image_id` () and
            `annotation_ids` (N,), by which errors can name an object.

        Raises:
            ImportError: polygons or run-length encodings without pycocotools.
            OSError: a file cannot be read as an image.
            TypeError: something that is no image or no annotation.
            ValueError: settings or sizes that do not fit; an annotation that is unusable, named by image and id.
        """
        if annotations is not None and not isinstance(category_to_index, Mapping):
            raise ValueError(
                "category_to_index is required with annotations, because COCO's category ids are no class indices; "
                "pass contiguous_categories(coco['categories'])."
            )
        return super().preprocess(images, annotations, category_to_index, return_segmentation_masks, **kwargs)

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self,
        images: ImageInput,
        annotations: Any = None,
        category_to_index: Mapping[int, int] | None = None,
        return_segmentation_masks: bool = True,
        **kwargs: Any,
    ) -> BatchFeature:
        prepared = self._prepare_image_like_inputs(images, **kwargs)
        if not prepared:
            raise ValueError("images is empty; give at least one image.")
        sizes = [(image.shape[-2], image.shape[-1]) for image in prepared]
        targets = None if annotations is None else _checked_targets(annotations, len(prepared))
        features = self._preprocess(prepared, **kwargs)
        if targets is not None:
            reader = _AnnotationReader(category_to_index or {}, return_segmentation_masks, Counter())
            features["instance_labels"] = [
                reader.read(target, size, _fit(size, kwargs), _padded_size(size, kwargs))
                for target, size in zip(targets, sizes, strict=True)
            ]
            reader.warn_of_skipped()
        return features

    def _preprocess(  # type: ignore[override]
        self,
        images: list[Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | InterpolationMode | int | None,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float],
        image_std: float | list[float],
        do_pad: bool,
        pad_size: SizeDict,
        task: str | None,
        return_tensors: str | TensorType | None,
        **kwargs: Any,
    ) -> BatchFeature:
        pixel_values = []
        for index, image in enumerate(images):
            given = (image.shape[-2], image.shape[-1])
            if do_resize:
                fitted = fitted_size(given, size["longest_edge"])
                image = self.resize(image, SizeDict(height=fitted.height, width=fitted.width), resample)
            elif do_pad and (given[0] > pad_size["height"] or given[1] > pad_size["width"]):
                raise ValueError(
                    f"images[{index}] is {given[0]} x {given[1]}, larger than pad_size {dict(pad_size)}; resize it or "
                    "pass do_resize=True."
                )
            image = self.rescale_and_normalize(image, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
            image = image.to(torch.float32)
            if do_pad:
                image = _pad(image, (pad_size["height"], pad_size["width"]))
            pixel_values.append(image)
        data: dict[str, Any] = {"pixel_values": pixel_values}
        if task is not None:
            data["task_ids"] = [TASK_IDS[task]] * len(images)
        return BatchFeature(data, tensor_type=return_tensors)

    def post_process_object_detection(
        self, outputs: ModelOutput, threshold: float = 0.5, target_sizes: TargetSizes = None
    ) -> list[dict[str, Tensor]]:
        """Boxes in the images' own pixels, clipped to the image, the most certain first.

        Inverted and empty boxes, and those outside the image, are dropped with their objects.

        Args:
            outputs: has `boxes` (B, N, 4) xyxy pixels of the padded input, `scores` and `class_labels` (B, N).
            threshold: least score.
            target_sizes: (height, width) of each image, upright; a list or a (B, 2) tensor. None keeps the pixels of
                the padded input.

        Returns:
            Per image `scores` (n,), `labels` (n,) class indices, and `boxes` (n, 4) float32 xyxy pixels.

        Raises:
            ValueError: no boxes in the outputs, or unfit `target_sizes`.
        """
        return [
            {"scores": found.scores, "labels": found.labels, "boxes": found.boxes}
            for found in self._found_objects(outputs, threshold, target_sizes)
        ]

    def post_process_instance_segmentation(
        self,
        outputs: ModelOutput,
        threshold: float = 0.5,
        mask_threshold: float = MASK_THRESHOLD,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: TargetSizes = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
    ) -> list[dict[str, Any]]:
        """Segments in the images' own pixels, the most certain first.

        In the segmentation map a pixel belongs to the most certain object that covers it. The two other forms keep
        overlapping masks whole.

        Args:
            outputs: has `mask_values` (B, N, h, w) besides what `post_process_object_detection` needs.
            threshold: least score.
            mask_threshold: mask values of at least this are inside; above 0.
            overlap_mask_area_threshold: share of its mask that an object must keep after overlaps, or it is dropped;
                applies to the segmentation map alone.
            target_sizes: (height, width) of each image, upright; a list or a (B, 2) tensor. None keeps the pixels of
                the padded input.
            return_coco_annotation: give run-length encodings of the masks instead of the map.
            return_binary_maps: give masks instead of the map.

        Returns:
            Per image `segmentation`: (H, W) int32 segment ids, -1 for background; or a list of COCO run-length
            encodings; or (n, H, W) bool; and `segments_info`: per segment `id`, `label_id`, `was_fused`, `score`.
            Objects without any pixel are left out.

        Raises:
            ImportError: `return_coco_annotation` without pycocotools.
            ValueError: no masks in the outputs, unfit `target_sizes`, or both other forms at once.
        """
        if return_coco_annotation and return_binary_maps:
            raise ValueError("return_coco_annotation and return_binary_maps exclude each other; set one.")
        _require_masks(outputs, mask_threshold)
        found = self._found_objects(outputs, threshold, target_sizes)
        if return_coco_annotation or return_binary_maps:
            return [_separate_masks(objects, mask_threshold, return_coco_annotation) for objects in found]
        return [_segmentation_map(objects, mask_threshold, overlap_mask_area_threshold) for objects in found]

    def post_process_coco(
        self,
        outputs: ModelOutput,
        image_ids: Sequence[int],
        category_to_index: Mapping[int, int],
        target_sizes: TargetSizes = None,
        threshold: float = 0.0,
        mask_threshold: float = MASK_THRESHOLD,
    ) -> list[dict[str, Any]]:
        """Predictions as COCO results, ready for JSON and for `transformers_ait.metrics`.

        Args:
            outputs: as `post_process_object_detection` takes; masks are exported when it has `mask_values`.
            image_ids: COCO's id of each image.
            category_to_index: class index of every category id, as in `preprocess`.
            target_sizes: (height, width) of each image, upright.
            threshold: least score; evaluation wants all, 0.
            mask_threshold: mask values of at least this are inside; above 0.

        Returns:
            Per object `image_id`, `category_id`, `bbox` (x, y, width, height), `score`, and with masks `segmentation`,
            a compressed run-length encoding.

        Raises:
            ImportError: masks without pycocotools.
            ValueError: as `post_process_object_detection`; another number of ids than images; a class without category.
        """
        has_masks = getattr(outputs, "mask_values", None) is not None
        if has_masks:
            _require_masks(outputs, mask_threshold)
        found = self._found_objects(outputs, threshold, target_sizes)
        if len(image_ids) != len(found):
            raise ValueError(f"image_ids must hold one id per image, got {len(image_ids)} for {len(found)} images.")
        category_ids = {index: category_id for category_id, index in category_to_index.items()}
        results: list[dict[str, Any]] = []
        for image_id, objects in zip(image_ids, found, strict=True):
            entries = _coco_entries(objects, int(image_id), category_ids)
            if has_masks:
                encoded = [rle for mask in objects.masks(mask_threshold) for rle in encode_masks(mask[None])]
                entries = [entry | {"segmentation": rle} for entry, rle in zip(entries, encoded, strict=True)]
            results += entries
        return results

    def _found_objects(self, outputs: ModelOutput, threshold: float, target_sizes: TargetSizes) -> list[_Objects]:
        """The objects of every image that have a proper box and at least the score `threshold`."""
        boxes = getattr(outputs, "boxes", None)
        if boxes is None or boxes.ndim != 3:
            got = "None" if boxes is None else f"shape {tuple(boxes.shape)}"
            raise ValueError(
                f"outputs.boxes must be (B, N, 4), got {got}; call the model without labels, and with the task "
                "'detection' or 'instance'."
            )
        sizes = checked_target_sizes(target_sizes, len(boxes))
        padded = (self.pad_size["height"], self.pad_size["width"])
        found = []
        for index in range(len(boxes)):
            image_size = padded if sizes is None else sizes[index]
            scaled = sizes is not None and self.do_resize
            scale = fitted_size(image_size, self.size["longest_edge"]).scale if scaled else 1.0
            found.append(_proper_objects(outputs, index, threshold, scale, image_size))
        return found


@dataclass(frozen=True)
class _AnnotationReader:
    """Reads the annotations of one call and counts what it skips."""

    category_to_index: Mapping[int, int]
    with_masks: bool
    skipped: Counter[str]

    def read(
        self, target: Mapping[str, Any], size: tuple[int, int], fitted: FittedSize, padded: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Labels of one image, whose own size is `size`."""
        boxes, classes, masks, ids = [], [], [], []
        for annotation in target["annotations"]:
            where = f"Annotation {annotation.get('id')} of image {target.get('image_id')}"
            read = self._read_object(annotation, size, fitted, where)
            if read is not None:
                boxes.append(read[0])
                classes.append(self._class_index(annotation, where))
                ids.append(annotation.get("id"))
                masks += [] if read[1] is None else [_pad(read[1], padded)]
        label = {
            "boxes": torch.stack(boxes) if boxes else torch.zeros(0, 4),
            "class_labels": torch.tensor(classes, dtype=torch.long),
            "image_size": torch.tensor([fitted.height, fitted.width]),
        }
        if self.with_masks:
            label["masks"] = torch.stack(masks) if masks else torch.zeros(0, *padded, dtype=torch.bool)
        if _are_whole([target.get("image_id"), *ids]):
            label |= {"image_id": torch.tensor(int(target["image_id"])), "annotation_ids": torch.tensor(ids).long()}
        return label

    def warn_of_skipped(self) -> None:
        """One warning for the whole call."""
        if self.skipped:
            counts = " and ".join(f"{count} {kind}" for kind, count in sorted(self.skipped.items()))
            logger.warning(f"Skipped annotations that hold no object to learn: {counts}.")

    def _read_object(
        self, annotation: Mapping[str, Any], size: tuple[int, int], fitted: FittedSize, where: str
    ) -> tuple[Tensor, Tensor | None] | None:
        """Box and mask in resized pixels; None for an annotation that is skipped."""
        crowd = annotation.get("iscrowd", 0)
        if not isinstance(crowd, Integral) or crowd not in (0, 1):
            raise ValueError(f"{where} has iscrowd {crowd!r:.60}; it must be 0 or 1.")
        if crowd:
            self.skipped["crowd"] += 1
            return None
        box = annotation_box(annotation, size, where)
        scaled = None if box is None else (box * fitted.scale).float()
        if scaled is None or not proper_boxes(scaled):
            self.skipped["without area"] += 1
            return None
        mask = annotation_mask(annotation, size, where) if self.with_masks else None
        if mask is not None and not mask.any():
            self.skipped["without area"] += 1
            return None
        if mask is not None and size != (fitted.height, fitted.width):
            # NEAREST_EXACT samples at pixel centres, as the image's filter does; NEAREST is half a pixel off.
            resized = tvF.resize(mask[None].byte(), [fitted.height, fitted.width], InterpolationMode.NEAREST_EXACT)
            mask = resized[0].bool()
        return scaled, mask

    def _class_index(self, annotation: Mapping[str, Any], where: str) -> int:
        category_id: Any = annotation.get("category_id")
        hashable = isinstance(category_id, Hashable)
        if not hashable or category_id not in self.category_to_index:
            raise ValueError(
                f"{where} has category_id {category_id!r:.60}, which category_to_index does not hold; it holds "
                f"{len(self.category_to_index)} ids: {list(self.category_to_index)}."
            )
        return int(self.category_to_index[category_id])


def _checked_targets(annotations: Any, count: int) -> Sequence[Mapping[str, Any]]:
    targets = [annotations] if isinstance(annotations, Mapping) else annotations
    form = '{"image_id": 1, "annotations": [...]} per image'
    if not isinstance(targets, Sequence) or not all(isinstance(target, Mapping) for target in targets):
        raise TypeError(f"annotations must be {form}, got {type(annotations).__name__}.")
    if len(targets) != count:
        raise ValueError(f"annotations must be {form}, got {len(targets)} for {count} images.")
    for index, target in enumerate(targets):
        entries = target.get("annotations")
        if not isinstance(entries, Sequence) or not all(isinstance(entry, Mapping) for entry in entries):
            raise TypeError(f"annotations[{index}] must be {form}, got the keys {sorted(target)}.")
    return targets


def _are_whole(ids: Sequence[Any]) -> bool:
    """Whether all ids fit int64; COCO's do, but nothing is trained on them."""
    return all(isinstance(number, Integral) and -(2**63) <= int(number) < 2**63 for number in ids)


def _fit(image_size: tuple[int, int], settings: Mapping[str, Any]) -> FittedSize:
    if settings["do_resize"]:
        return fitted_size(image_size, settings["size"]["longest_edge"])
    return FittedSize(*image_size, 1.0)


def _padded_size(image_size: tuple[int, int], settings: Mapping[str, Any]) -> tuple[int, int]:
    if settings["do_pad"]:
        return settings["pad_size"]["height"], settings["pad_size"]["width"]
    fitted = _fit(image_size, settings)
    return fitted.height, fitted.width


def _pad(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Zeros at bottom and right of (..., H, W)."""
    return F.pad(image, (0, size[1] - image.shape[-1], 0, size[0] - image.shape[-2]))


def _proper_objects(outputs: Any, index: int, threshold: float, scale: float, image_size: tuple[int, int]) -> _Objects:
    boxes, scores = (getattr(outputs, name)[index].detach().to(torch.float32) for name in ("boxes", "scores"))
    labels = outputs.class_labels[index]
    boxes = boxes / scale
    limit = boxes.new_tensor([image_size[1], image_size[0]] * 2)
    clipped = boxes.clamp(min=0).minimum(limit)
    order = scores.argsort(descending=True, stable=True)
    kept = order[(proper_boxes(boxes) & proper_boxes(clipped) & (scores >= threshold))[order]]
    values = getattr(outputs, "mask_values", None)
    masks = None if values is None else values[index, kept].detach().to(torch.float32)
    return _Objects(clipped[kept], boxes[kept], scores[kept], labels[kept], masks, image_size)


def _require_masks(outputs: Any, mask_threshold: float) -> None:
    if getattr(outputs, "mask_values", None) is None:
        raise ValueError(
            "outputs.mask_values is None, so there are no masks; call the model without labels, and with the task "
            "'instance'."
        )
    if not mask_threshold > 0:
        raise ValueError(f"mask_threshold must be above 0, the value outside of boxes, got {mask_threshold}.")


def _segmentation_map(objects: _Objects, mask_threshold: float, overlap_threshold: float) -> dict[str, Any]:
    device = objects.boxes.device
    segmentation = torch.full(objects.image_size, BACKGROUND, dtype=torch.int32, device=device)
    segments: list[dict[str, Any]] = []
    for index, mask in enumerate(objects.masks(mask_threshold)):
        visible = mask & (segmentation == BACKGROUND)
        if visible.sum() > overlap_threshold * mask.sum():
            segmentation[visible] = len(segments)
            segments.append(objects.segment(index, len(segments)))
    return {"segmentation": segmentation, "segments_info": segments}


def _separate_masks(objects: _Objects, mask_threshold: float, encoded: bool) -> dict[str, Any]:
    segments: list[dict[str, Any]] = []
    forms: list[Any] = []
    for index, mask in enumerate(objects.masks(mask_threshold)):
        if mask.any():
            segments.append(objects.segment(index, len(segments)))
            forms += encode_masks(mask[None]) if encoded else [mask[None]]
    if encoded:
        return {"segmentation": forms, "segments_info": segments}
    empty = torch.zeros(0, *objects.image_size, dtype=torch.bool, device=objects.boxes.device)
    return {"segmentation": torch.cat([empty, *forms]), "segments_info": segments}


def _coco_entries(objects: _Objects, image_id: int, category_ids: Mapping[int, int]) -> list[dict[str, Any]]:
    unknown = sorted(set(objects.labels.tolist()) - category_ids.keys())
    if unknown:
        raise ValueError(f"category_to_index names no category for the class indices {unknown}; pass the model's own.")
    origin, corner = objects.boxes.chunk(2, dim=1)
    boxes = torch.cat((origin, corner - origin), dim=1)
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for label, box, score in zip(objects.labels.tolist(), boxes.tolist(), objects.scores.tolist(), strict=True)
    ]


__all__ = ["AiTInstanceImageProcessor", "AiTInstanceImageProcessorKwargs", "FittedSize", "fitted_size"]
