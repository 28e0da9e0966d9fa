"""Instance image processor: photographs and COCO annotations to padded squares, and predictions back to photographs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import ModelOutput, TensorType

from .coco_annotations_ait import encode_masks
from .configuration_dense_tasks import OBJECT_TASKS, TASK_IDS
from .found_objects_ait import (
    FoundObjects,
    check_objects,
    coco_entries,
    proper_objects,
    require_masks,
    segmentation_map,
    separate_masks,
)
from .image_inputs_ait import AiTImageProcessorBase, TargetSizes, checked_target_sizes
from .instance_annotations_ait import (
    AnnotationReader,
    FittedSize,
    check_categories,
    checked_targets,
    fitted_size,
    pad_map,
)
from .mask_geometry_ait import MASK_THRESHOLD


class AiTInstanceImageProcessorKwargs(ImagesKwargs, total=False):
    """What can be given at construction or per call, besides the usual arguments of an image processor.

    Args:
        task: "detection" or "instance", the task of a model that does several; None leaves it to the model.
    """

    task: str | None


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
        if annotations is not None:
            check_categories(category_to_index)
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
        targets = None if annotations is None else checked_targets(annotations, len(prepared))
        features = self._preprocess(prepared, **kwargs)
        if targets is not None:
            reader = AnnotationReader(category_to_index or {}, return_segmentation_masks, Counter())
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
                image = pad_map(image, (pad_size["height"], pad_size["width"]))
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
        require_masks(outputs, mask_threshold)
        found = self._found_objects(outputs, threshold, target_sizes)
        if return_coco_annotation or return_binary_maps:
            return [separate_masks(objects, mask_threshold, return_coco_annotation) for objects in found]
        return [segmentation_map(objects, mask_threshold, overlap_mask_area_threshold) for objects in found]

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
            require_masks(outputs, mask_threshold)
        found = self._found_objects(outputs, threshold, target_sizes)
        if len(image_ids) != len(found):
            raise ValueError(f"image_ids must hold one id per image, got {len(image_ids)} for {len(found)} images.")
        category_ids = {index: category_id for category_id, index in category_to_index.items()}
        results: list[dict[str, Any]] = []
        for image_id, objects in zip(image_ids, found, strict=True):
            entries = coco_entries(objects, int(image_id), category_ids)
            if has_masks:
                encoded = [rle for mask in objects.masks(mask_threshold) for rle in encode_masks(mask[None])]
                entries = [entry | {"segmentation": rle} for entry, rle in zip(entries, encoded, strict=True)]
            results += entries
        return results

    def _found_objects(self, outputs: ModelOutput, threshold: float, target_sizes: TargetSizes) -> list[FoundObjects]:
        """The objects of every image that have a proper box and at least the score `threshold`."""
        boxes = getattr(outputs, "boxes", None)
        if boxes is None or boxes.ndim != 3:
            got = "None" if boxes is None else f"shape {tuple(boxes.shape)}"
            raise ValueError(
                f"outputs.boxes must be (B, N, 4), got {got}; call the model without labels, and with the task "
                "'detection' or 'instance'."
            )
        check_objects(outputs)
        if not isinstance(threshold, Real):
            raise TypeError(f"threshold must be a number, the least score of an object, got {threshold!r:.80}.")
        sizes = checked_target_sizes(target_sizes, len(boxes))
        padded = (self.pad_size["height"], self.pad_size["width"])
        found = []
        for index in range(len(boxes)):
            image_size = padded if sizes is None else sizes[index]
            scaled = sizes is not None and self.do_resize
            scale = fitted_size(image_size, self.size["longest_edge"]).scale if scaled else 1.0
            found.append(proper_objects(outputs, index, threshold, scale, image_size))
        return found


def _fit(image_size: tuple[int, int], settings: Mapping[str, Any]) -> FittedSize:
    if settings["do_resize"]:
        return fitted_size(image_size, settings["size"]["longest_edge"])
    return FittedSize(*image_size, 1.0)


def _padded_size(image_size: tuple[int, int], settings: Mapping[str, Any]) -> tuple[int, int]:
    if settings["do_pad"]:
        return settings["pad_size"]["height"], settings["pad_size"]["width"]
    fitted = _fit(image_size, settings)
    return fitted.height, fitted.width


__all__ = ["AiTInstanceImageProcessor", "AiTInstanceImageProcessorKwargs"]
