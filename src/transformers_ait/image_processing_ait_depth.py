"""Depth image processor: photographs to square windows, and predicted windows back to depth maps in metres."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
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

from .configuration_ait import TASK_IDS
from .image_inputs_ait import SIXTEEN_BIT_MODES, AiTImageProcessorBase, TargetSizes, checked_target_sizes

logger = logging.get_logger(__name__)

MIN_DEPTH = 1e-3  # metres; predictions are clamped here once, after windows and flips are averaged
MILLIMETRES_PER_METRE = 1000.0


class AiTDepthImageProcessorKwargs(ImagesKwargs, total=False):
    """What can be given at construction or per call, besides the usual arguments of an image processor.

    Args:
        num_windows: square windows per image, evenly spaced along its longer edge; 1 squashes it into one square.
        do_flip_augment: add the horizontal flip of every window; post-processing un-flips and averages.
        task: "depth", the task of a model that does several; None leaves it to the model.
    """

    num_windows: int | None
    do_flip_augment: bool | None
    task: str | None


class WindowLayout(NamedTuple):
    """How one image is covered by square windows.

    Args:
        canvas: (height, width) the image is resized to.
        dim: dimension the windows move along: -2 in portrait images, else -1.
        offsets: first row or column of each window on the canvas.
    """

    canvas: tuple[int, int]
    dim: int
    offsets: tuple[int, ...]


def window_layout(image_size: tuple[int, int], window: int, num_windows: int) -> WindowLayout:
    """Canvas and offsets of the test protocol: two windows at 0 and 160 in a 480 x 640 image (released configuration).

    The shorter edge becomes `window`, keeping aspect; the longer is then limited to `window`..`num_windows * window`,
    so that the windows always cover it and only more elongated images are squashed.

    Args:
        image_size: (height, width) of the image, upright.
        window: side of the square windows in pixels.
        num_windows: windows per image.
    """
    height, width = image_size
    length = round(max(height, width) * window / min(height, width))
    length = min(max(length, window), num_windows * window)
    step = (length - window) / max(num_windows - 1, 1)
    offsets = tuple(round(index * step) for index in range(num_windows))
    if height > width:
        return WindowLayout((length, window), -2, offsets)
    return WindowLayout((window, length), -1, offsets)


class AiTDepthImageProcessor(AiTImageProcessorBase):
    """Turns photographs into views for depth models, and the predicted depth of the views into one map per image.

    An image becomes `num_windows` square windows (see `window_layout`), followed by their horizontal flips. Every image
    gives the same number of views, so images of any sizes stack to one batch. AiT's own backbones take pixels in 0..1;
    set `do_normalize=True` for a backbone pretrained with ImageNet mean and standard deviation.

    Args:
        do_resize: resize to the canvas of the windows; without it, images must already have that size.
        size: {"height": S, "width": S}, the windows; the model's square input.
        resample: filter for images; depth maps always take the nearest pixel.
        do_rescale: divide by 255.
        do_normalize: subtract `image_mean`, divide by `image_std`.
        num_windows: windows per image; 1 squashes the image into one square.
        do_flip_augment: add the horizontal flip of every window.
        task: "depth" for a model that does several tasks (a joint one); None leaves it to the model.
    """

    valid_kwargs = AiTDepthImageProcessorKwargs
    model_input_names = ["pixel_values"]

    do_convert_rgb = True
    do_resize = True
    size = {"height": 480, "width": 480}
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = False
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    num_windows = 2
    do_flip_augment = True
    task = None

    def __init__(self, **kwargs: Unpack[AiTDepthImageProcessorKwargs]):
        super().__init__(**kwargs)  # type: ignore[misc]

    # Called at construction and at every call, so a bad setting is refused where it is given.
    def _standardize_kwargs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        kwargs = super()._standardize_kwargs(*args, **kwargs)
        size, num_windows = kwargs.get("size"), kwargs.get("num_windows")
        if size is None or not size.height or size.height != size.width:
            given = None if size is None else dict(size)
            raise ValueError(f"size must be a square such as {{'height': 480, 'width': 480}}, got {given}.")
        if isinstance(num_windows, bool) or not isinstance(num_windows, int) or num_windows < 1:
            raise ValueError(f"num_windows must be an integer of at least 1, got {num_windows!r}.")
        if kwargs.get("task") not in (None, "depth"):
            raise ValueError(f"task must be 'depth' or None, got {kwargs['task']!r}.")
        for name in ("do_center_crop", "do_pad"):
            if kwargs.get(name):
                raise ValueError(f"{name} is not supported: the windows already cover the whole image; leave it out.")
        return kwargs

    def preprocess(
        self,
        images: ImageInput,
        depth_maps: Any = None,
        **kwargs: Unpack[AiTDepthImageProcessorKwargs],
    ) -> BatchFeature:
        """Prepare images, and for training their depth maps.

        Args:
            images: one image or a list: PIL in any mode (EXIF orientation is applied, transparency laid on white),
                NumPy or torch of shape (H, W), (H, W, C), (C, H, W), or a batch of the latter two; paths and URLs.
                16-bit images are scaled to 8 bits. Floating-point pixels are 0..255; pass `do_rescale=False` for 0..1.
            depth_maps: one map (H, W) or a list, of the images' sizes: floating-point metres, or PIL 16-bit
                millimetres; 0 = invalid. Needs one view per image: `num_windows=1, do_flip_augment=False`.
            **kwargs: settings that replace the processor's own in this call, and `return_tensors`, `device`.

        Returns:
            `pixel_values` (B, 3, S, S) with one view per image, else (B, V, 3, S, S) with V = windows, then flipped
            windows; `depth_labels` (B, S, S) metres when `depth_maps` are given; `task_ids` (B,) when `task` is set.

        Raises:
            OSError: a file cannot be read as an image.
            TypeError: `depth_maps` of integers other than PIL 16-bit, or something that is no image.
            ValueError: settings or sizes that do not fit, negative or non-finite depth.
        """
        return super().preprocess(images, depth_maps, **kwargs)

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self, images: ImageInput, depth_maps: Any = None, **kwargs: Any
    ) -> BatchFeature:
        prepared = self._prepare_image_like_inputs(images, **kwargs)
        if not prepared:
            raise ValueError("images is empty; give at least one image.")
        depths = None if depth_maps is None else self._prepare_depth_maps(depth_maps, prepared, **kwargs)
        features = self._preprocess(prepared, **kwargs)
        if depths is not None:
            if kwargs["do_resize"]:
                size = [kwargs["size"].height, kwargs["size"].width]
                # NEAREST_EXACT samples at pixel centres, as the image's filter does; NEAREST is half a pixel off.
                depths = [tvF.resize(depth[None], size, InterpolationMode.NEAREST_EXACT)[0] for depth in depths]
            features.update(BatchFeature({"depth_labels": depths}, tensor_type=kwargs["return_tensors"]))
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
        num_windows: int,
        do_flip_augment: bool,
        return_tensors: str | TensorType | None,
        task: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        window, pixel_values = size["height"], []
        for index, image in enumerate(images):
            given = (image.shape[-2], image.shape[-1])
            layout = window_layout(given, window, num_windows)
            if do_resize:
                image = self.resize(image, SizeDict(height=layout.canvas[0], width=layout.canvas[1]), resample)
            elif given != layout.canvas:
                raise ValueError(
                    f"images[{index}] is {given[0]} x {given[1]}, but its {num_windows} window(s) of {window} pixels "
                    f"need {layout.canvas[0]} x {layout.canvas[1]}; resize it or pass do_resize=True."
                )
            image = self.rescale_and_normalize(image, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
            image = image.to(torch.float32)
            views = torch.stack([image.narrow(layout.dim, offset, window) for offset in layout.offsets])
            if do_flip_augment:
                views = torch.cat([views, views.flip(-1)])
            pixel_values.append(views[0] if len(views) == 1 else views)
        data: dict[str, Any] = {"pixel_values": pixel_values}
        if task is not None:
            data["task_ids"] = [TASK_IDS[task]] * len(images)
        return BatchFeature(data, tensor_type=return_tensors)

    def _prepare_depth_maps(
        self, depth_maps: Any, images: list[Tensor], num_windows: int, do_flip_augment: bool, **kwargs: Any
    ) -> list[Tensor]:
        if num_windows != 1 or do_flip_augment:
            raise ValueError(
                f"depth_maps need one view per image, got num_windows={num_windows} and "
                f"do_flip_augment={do_flip_augment}; pass num_windows=1, do_flip_augment=False."
            )
        if isinstance(depth_maps, Image.Image) or getattr(depth_maps, "ndim", None) == 2:
            depth_maps = [depth_maps]
        if not isinstance(depth_maps, (list, tuple, np.ndarray, Tensor)):
            raise TypeError(f"depth_maps must be one (H, W) map or a list of maps, got {type(depth_maps).__name__}.")
        if len(depth_maps) != len(images):
            raise ValueError(f"depth_maps must hold one map per image, got {len(depth_maps)} for {len(images)} images.")
        return [
            _depth_tensor(depth, f"depth_maps[{index}]", image)
            for index, (depth, image) in enumerate(zip(depth_maps, images, strict=True))
        ]

    def post_process_depth_estimation(
        self, outputs: ModelOutput, target_sizes: TargetSizes = None
    ) -> list[dict[str, Tensor]]:
        """Merge the views of each image, clamp, and resize to the images' own sizes (test protocol of AiT).

        Flips are turned back and averaged, then windows are averaged where they overlap; the result is clamped at 1 mm
        once, and resized bilinearly.

        Args:
            outputs: has `predicted_depth` in metres, (B, S, S), or (B, V, S, S) with the views as `preprocess` orders
                them.
            target_sizes: (height, width) of each image, upright; a list or a (B, 2) tensor. Required with views,
                because the layout of the windows follows from them; without views None keeps the predicted size.

        Returns:
            One {"predicted_depth": (h, w) float32 metres, at least 0.001} per image.

        Raises:
            ValueError: no prediction, a number of views other than this processor makes, or unfit `target_sizes`.
        """
        depth = getattr(outputs, "predicted_depth", None)
        if depth is None or depth.ndim not in (3, 4):
            got = "None" if depth is None else f"shape {tuple(depth.shape)}"
            raise ValueError(
                f"outputs.predicted_depth must be (B, S, S) or (B, V, S, S), got {got}; call the model without labels."
            )
        depth = depth.detach().to(torch.float32)
        sizes = checked_target_sizes(target_sizes, len(depth))
        if depth.ndim == 4:
            if sizes is None:
                raise ValueError(
                    "target_sizes is required for predictions of several views, because the layout of the windows "
                    "follows from the image size; pass the (height, width) of each image."
                )
            merged = [self._merge_views(views, image_size) for views, image_size in zip(depth, sizes, strict=True)]
        else:
            merged = list(depth)
        clamped = [single.clamp(min=MIN_DEPTH) for single in merged]
        if sizes is not None:
            clamped = [_resize_depth(single, image_size) for single, image_size in zip(clamped, sizes, strict=True)]
        return [{"predicted_depth": single} for single in clamped]

    def _merge_views(self, views: Tensor, image_size: tuple[int, int]) -> Tensor:
        expected = self.num_windows * (2 if self.do_flip_augment else 1)
        if len(views) != expected or views.shape[-2] != views.shape[-1]:
            raise ValueError(
                f"outputs.predicted_depth has {len(views)} views of {views.shape[-2]} x {views.shape[-1]}, but this "
                f"processor makes {expected} square ones (num_windows={self.num_windows}, "
                f"do_flip_augment={self.do_flip_augment}); set these on the processor itself, not per call."
            )
        window = views.shape[-1]
        layout = window_layout(image_size, window, self.num_windows)
        if self.do_flip_augment:
            straight, flipped = views.chunk(2)
            views = (straight + flipped.flip(-1)) / 2
        total = views.new_zeros(layout.canvas)
        count = views.new_zeros(layout.canvas)
        for view, offset in zip(views, layout.offsets, strict=True):
            total.narrow(layout.dim, offset, window).add_(view)
            count.narrow(layout.dim, offset, window).add_(1)
        return total / count


def _depth_tensor(depth: Any, name: str, image: Tensor) -> Tensor:
    """Check one depth map and convert it to (H, W) float32 metres beside its image."""
    if isinstance(depth, Image.Image):
        if depth.mode in SIXTEEN_BIT_MODES:
            depth = np.array(depth, dtype=np.float32) / MILLIMETRES_PER_METRE
        elif depth.mode == "F":
            depth = np.array(depth)
        else:
            raise TypeError(f"{name} is a PIL image of mode {depth.mode!r}; use 16-bit millimetres or mode 'F' metres.")
    if not isinstance(depth, (np.ndarray, Tensor)):
        raise TypeError(f"{name} must be a PIL image, NumPy array or torch tensor, got {type(depth).__name__}.")
    tensor = torch.as_tensor(depth)
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} has dtype {depth.dtype}, but depth is floating-point metres; millimetres are `depth / 1000.0`."
        )
    if tensor.shape != image.shape[-2:]:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, but its upright image is {image.shape[-2]} x {image.shape[-1]}; "
            "give the depth map at the image's size."
        )
    tensor = tensor.to(image.device, torch.float32)
    if not torch.isfinite(tensor).all() or (tensor < 0).any():
        raise ValueError(f"{name} has negative, NaN or infinite depth; mark invalid pixels with 0.")
    return tensor


def _resize_depth(depth: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(depth.shape) == size:
        return depth
    return F.interpolate(depth[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


__all__ = ["AiTDepthImageProcessor", "AiTDepthImageProcessorKwargs", "WindowLayout", "window_layout"]
