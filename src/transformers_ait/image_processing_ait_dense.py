"""Dense image processor: photographs and maps to square windows, and predicted windows back to one map per image."""

import json
from collections.abc import Mapping, Sequence
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

from .configuration_dense_tasks import OBJECT_TASKS, task_rows
from .image_inputs_ait import AiTImageProcessorBase, TargetSizes, checked_target_sizes, native_maps
from .image_windows_ait import WINDOW_BLENDINGS, blend_windows, window_layout
from .map_kinds_ait import DENSE_KINDS, MAP_KINDS, MapKind, resize_labels

MAX_WINDOWS = 256  # per image; far more than any image is long, and more would fill the memory


class AiTDenseImageProcessorKwargs(ImagesKwargs, total=False):
    """What can be given at construction or per call, besides the usual arguments of an image processor.

    Args:
        num_windows: square windows per image, evenly spaced along its longer edge; 1 squashes it into one square.
        do_flip_augment: add the horizontal flip of every window; post-processing un-flips and averages.
        map_kinds: kind of map (see `MAP_KINDS`) by task, every dense task of the model in its order.
        task: one of `map_kinds`, the task of a model that does several; None leaves it to the model.
        window_blending: "smooth" or "average", how overlapping windows become one map.
    """

    num_windows: int | None
    do_flip_augment: bool | None
    map_kinds: dict[str, str] | None
    task: str | None
    window_blending: str | None


class DenseFeatures(BatchFeature):
    """A `BatchFeature` that moves and casts the labels of its dense tasks too."""

    def to(self, *args: Any, **kwargs: Any) -> "DenseFeatures":
        """See `BatchFeature.to`."""
        super().to(*args, **kwargs)
        if "dense_labels" in self:
            self["dense_labels"] = BatchFeature(self["dense_labels"]).to(*args, **kwargs).data
        return self


class AiTDenseImageProcessor(AiTImageProcessorBase):
    """Turns photographs into views for models of dense tasks, and the predicted maps of the views into one per image.

    An image becomes `num_windows` square windows (see `window_layout`), followed by their horizontal flips. Every image
    gives the same number of views, so images of any sizes stack to one batch. AiT's own backbones take pixels in 0..1;
    set `do_normalize=True` for a backbone pretrained with ImageNet mean and standard deviation.

    Args:
        do_resize: resize to the canvas of the windows; without it, images must already have that size.
        size: {"height": S, "width": S}, the windows; the model's square input.
        resample: filter for images; maps always take the nearest pixel.
        do_rescale: divide by 255.
        do_normalize: subtract `image_mean`, divide by `image_std`.
        num_windows: windows per image; 1 squashes the image into one square.
        do_flip_augment: add the horizontal flip of every window.
        map_kinds: what the values of each task's maps mean: "depth", "normals", "classes" or "values". It must name
            every dense task of the model in the order of its configuration, because the row of `task` follows from it.
        task: one of `map_kinds` for a model that does several tasks; None leaves it to the model.
        window_blending: "smooth" weighs each window less towards its borders, so that no seam shows; "average" is the
            plain mean of AiT's test protocol.
    """

    valid_kwargs = AiTDenseImageProcessorKwargs
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
    map_kinds = {"depth": "depth"}
    task = None
    window_blending = "smooth"

    def __init__(self, **kwargs: Unpack[AiTDenseImageProcessorKwargs]):
        super().__init__(**kwargs)  # type: ignore[misc]

    def to_json_string(self) -> str:
        """Settings as JSON; unlike the base class's, it keeps the order of `map_kinds`, which decides rows."""
        return json.dumps(dict(sorted(self.to_dict().items())), indent=2) + "\n"

    # Called at construction and at every call, so a bad setting is refused where it is given.
    def _standardize_kwargs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        kwargs = super()._standardize_kwargs(*args, **kwargs)
        size, num_windows = kwargs.get("size"), kwargs.get("num_windows")
        if size is None or not size.height or size.height != size.width or size.height < 1:
            given = None if size is None else dict(size)
            raise ValueError(f"size must be a square such as {{'height': 480, 'width': 480}}, got {given}.")
        if isinstance(num_windows, bool) or not isinstance(num_windows, int) or num_windows < 1:
            raise ValueError(f"num_windows must be an integer of at least 1, got {num_windows!r}.")
        if num_windows > MAX_WINDOWS:
            raise ValueError(f"num_windows must be at most {MAX_WINDOWS}, got {num_windows}.")
        kinds = kwargs.get("map_kinds")
        if not isinstance(kinds, Mapping) or not kinds or not all(kind in DENSE_KINDS for kind in kinds.values()):
            raise ValueError(f"map_kinds must map every dense task to one of {list(DENSE_KINDS)}, got {kinds!r}.")
        if set(kinds) & set(OBJECT_TASKS):
            raise ValueError(f"map_kinds must not name {list(OBJECT_TASKS)}, which predict no maps, got {kinds!r}.")
        if kwargs.get("task") not in (None, *kinds):
            known = " or ".join(map(repr, [*kinds, None]))
            raise ValueError(f"task must be {known}, got {kwargs['task']!r}; further tasks stand in map_kinds.")
        if kwargs.get("window_blending") not in WINDOW_BLENDINGS:
            raise ValueError(
                f"window_blending must be one of {list(WINDOW_BLENDINGS)}, got {kwargs.get('window_blending')!r}."
            )
        for name in ("do_center_crop", "do_pad"):
            if kwargs.get(name):
                raise ValueError(f"{name} is not supported: the windows already cover the whole image; leave it out.")
        return kwargs

    def preprocess(
        self,
        images: ImageInput,
        dense_maps: Mapping[str, Any] | None = None,
        **kwargs: Unpack[AiTDenseImageProcessorKwargs],
    ) -> BatchFeature:
        """Prepare images, and for training their maps.

        Args:
            images: one image or a list: PIL in any mode (EXIF orientation is applied, transparency laid on white),
                NumPy or torch of shape (H, W), (H, W, C), (C, H, W), or a batch of the latter two; paths and URLs.
                16-bit images are scaled to 8 bits. Floating-point pixels are 0..255; pass `do_rescale=False` for 0..1.
            dense_maps: by task one map or a list, of the images' sizes, in the forms of `native_map`. Needs one view
                per image: `num_windows=1, do_flip_augment=False`.
            **kwargs: settings that replace the processor's own in this call, and `return_tensors`, `device`.

        Returns:
            `pixel_values` (B, 3, S, S) with one view per image, else (B, V, 3, S, S) with V = windows, then flipped
            windows; `dense_labels`, (B, [C,] S, S) by task, when `dense_maps` are given; `task_ids` (B,) when `task` is
            set.

        Raises:
            OSError: a file cannot be read as an image.
            TypeError: something that is no image or no map.
            ValueError: settings, tasks or sizes that do not fit, map values that the kind cannot have.
        """
        return super().preprocess(images, dense_maps, **kwargs)

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self, images: ImageInput, dense_maps: Any = None, **kwargs: Any
    ) -> BatchFeature:
        prepared = self._prepare_image_like_inputs(images, **kwargs)
        if not prepared:
            raise ValueError("images is empty; give at least one image.")
        labels = None if dense_maps is None else self._prepare_labels(dense_maps, prepared, **kwargs)
        features = DenseFeatures(self._preprocess(prepared, **kwargs).data)
        if labels is not None:
            features["dense_labels"] = BatchFeature(labels, tensor_type=kwargs["return_tensors"]).data
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
        map_kinds: Mapping[str, str],
        task: str | None,
        return_tensors: str | TensorType | None,
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
            data["task_ids"] = [task_rows(map_kinds)[task]] * len(images)
        return BatchFeature(data, tensor_type=return_tensors)

    def _prepare_labels(
        self,
        dense_maps: Any,
        images: list[Tensor],
        num_windows: int,
        do_flip_augment: bool,
        map_kinds: Mapping[str, str],
        do_resize: bool,
        size: SizeDict,
        **kwargs: Any,
    ) -> dict[str, list[Tensor]]:
        if num_windows != 1 or do_flip_augment:
            raise ValueError(
                f"{self._name_of_maps()} need one view per image, got num_windows={num_windows} and "
                f"do_flip_augment={do_flip_augment}; pass num_windows=1, do_flip_augment=False."
            )
        if not isinstance(dense_maps, Mapping):
            raise TypeError(f"dense_maps must map tasks to maps, got {type(dense_maps).__name__}.")
        unknown = [task for task in dense_maps if task not in map_kinds]
        if unknown:
            raise ValueError(f"dense_maps has the tasks {unknown}, but map_kinds is {dict(map_kinds)}; set map_kinds.")
        labels = {
            task: native_maps(maps, images, MAP_KINDS[map_kinds[task]], self._name_of_maps(task))
            for task, maps in dense_maps.items()
        }
        if do_resize:
            side = size["height"], size["width"]
            labels = {task: [resize_labels(one, side) for one in labels[task]] for task in labels}
        return labels

    def _name_of_maps(self, task: str | None = None) -> str:
        """What errors call the maps that `preprocess` is given."""
        return "dense_maps" if task is None else f"dense_maps[{task!r}]"

    def post_process_dense(self, outputs: ModelOutput, target_sizes: TargetSizes = None) -> list[dict[str, Tensor]]:
        """Merge the views of every predicted map, and resize to the images' own sizes.

        Flips are turned back and averaged, then windows are blended where they overlap (see `window_blending`). Depth
        is clamped at 1 mm, normals get length 1, and classes are picked by the largest averaged probability.

        Args:
            outputs: has `dense_maps`, predicted maps `(B, [V,] [C,] S, S)` by task, views as `preprocess` orders
                them; classes as scores.
            target_sizes: (height, width) of each image, upright; a list or a (B, 2) tensor. Required with views,
                because the layout of the windows follows from them; without views None keeps the predicted size.

        Returns:
            Per image the maps by task: depth (h, w) float32 metres, at least 0.001; normals (3, h, w) float32; classes
            (h, w) int64; values (C, h, w) float32.

        Raises:
            ValueError: no prediction, a task that `map_kinds` does not name, a number of views other than this
                processor makes, or unfit `target_sizes`.
        """
        maps = getattr(outputs, "dense_maps", None)
        if not maps or not set(maps) <= set(self.map_kinds):
            got = None if maps is None else list(maps)
            raise ValueError(
                f"outputs.dense_maps must hold tasks of map_kinds {self.map_kinds}, got {got}; call the model without "
                "labels, and set map_kinds to the kinds of all its dense tasks."
            )
        finished = [self._finished_task(outputs, task, target_sizes) for task in maps]
        return [dict(zip(maps, single, strict=True)) for single in zip(*finished, strict=True)]

    def post_process_depth_estimation(
        self, outputs: ModelOutput, target_sizes: TargetSizes = None
    ) -> list[dict[str, Tensor]]:
        """One {"predicted_depth": (h, w) float32 metres, at least 0.001} per image; see `post_process_dense`.

        Args:
            outputs: has `dense_maps` with depth, of several such tasks the processor's `task` counts, else the first;
                or `predicted_depth`, (B, S, S) or (B, V, S, S) metres.
            target_sizes: as there.

        Raises:
            ValueError: as there; no depth in the outputs.
        """
        tasks = self._tasks_of_kind(outputs, "depth")
        depth = getattr(outputs, "predicted_depth", None)
        # It is the first of these, and the one that the pipelines move to the CPU.
        if not tasks or (depth is not None and self.task not in tasks[1:]):
            finished = self._finished(depth, MAP_KINDS["depth"], "outputs.predicted_depth", target_sizes)
        else:
            finished = self._finished_kind(outputs, "depth", target_sizes)
        return [{"predicted_depth": depth} for depth in finished]

    def post_process_semantic_segmentation(
        self, outputs: ModelOutput, target_sizes: TargetSizes = None
    ) -> list[Tensor]:
        """Class ids (h, w) int64 on the CPU, as the "image-segmentation" pipeline takes them; see `post_process_dense`.

        Args:
            outputs: has `dense_maps` with classes; of several such tasks the processor's `task` counts, else the first.
            target_sizes: as there.

        Raises:
            ValueError: as there; no classes in the outputs.
        """
        # The pipeline takes them for NumPy's, and moves no tensors of a mapping to the CPU.
        return [ids.cpu() for ids in self._finished_kind(outputs, "classes", target_sizes)]

    def post_process_normals(self, outputs: ModelOutput, target_sizes: TargetSizes = None) -> list[dict[str, Tensor]]:
        """One {"normals": (3, h, w) float32 of length 1} per image; see `post_process_dense`.

        Args:
            outputs: has `dense_maps` with normals; of several such tasks the processor's `task` counts, else the first.
            target_sizes: as there.

        Raises:
            ValueError: as there; no normals in the outputs.
        """
        return [{"normals": normals} for normals in self._finished_kind(outputs, "normals", target_sizes)]

    def _tasks_of_kind(self, outputs: ModelOutput, kind: str) -> list[str]:
        maps = getattr(outputs, "dense_maps", None) or ()
        return [task for task in maps if self.map_kinds.get(task) == kind]

    def _finished_kind(self, outputs: Any, kind: str, target_sizes: TargetSizes) -> list[Tensor]:
        """Finished maps of the processor's own task where it is of that kind, else of the first that is."""
        tasks = self._tasks_of_kind(outputs, kind)
        if not tasks:
            held = list(getattr(outputs, "dense_maps", None) or ())
            raise ValueError(
                f"outputs.dense_maps must hold a {kind!r} task, got {held}, and map_kinds is {self.map_kinds}; "
                "call the model without labels and for such a task, or set map_kinds."
            )
        task = next((task for task in tasks if task == self.task), tasks[0])
        return self._finished_task(outputs, task, target_sizes)

    def _finished_task(self, outputs: Any, task: str, target_sizes: TargetSizes) -> list[Tensor]:
        kind = MAP_KINDS[self.map_kinds[task]]
        return self._finished(outputs.dense_maps[task], kind, f"outputs.dense_maps[{task!r}]", target_sizes)

    def _finished(self, maps: Tensor | None, kind: MapKind, name: str, target_sizes: TargetSizes) -> list[Tensor]:
        """One map per image, merged and resized, of predicted maps (B, [V,] [C,] S, S)."""
        channels = kind.has_channels or kind.has_scores
        if maps is None or maps.ndim - channels not in (3, 4):
            got = "None" if maps is None else f"shape {tuple(maps.shape)}"
            form = "C, S, S)" if channels else "S, S)"
            raise ValueError(f"{name} must be (B, {form} or (B, V, {form}, got {got}; call the model without labels.")
        sizes: Sequence[Any] = checked_target_sizes(target_sizes, len(maps)) or [None] * len(maps)
        return [self._finished_map(single, kind, name, size) for single, size in zip(maps, sizes, strict=True)]

    def _finished_map(self, maps: Tensor, kind: MapKind, name: str, size: tuple[int, int] | None) -> Tensor:
        """The map of one image."""
        maps = maps.detach().to(torch.float32)
        if maps.ndim - (kind.has_channels or kind.has_scores) == 2:
            return kind.finish(kind.to_average(maps), size)
        if size is None:
            raise ValueError(
                "target_sizes is required for predictions of several views, because the layout of the windows "
                "follows from the image size; pass the (height, width) of each image."
            )
        expected = self.num_windows * (2 if self.do_flip_augment else 1)
        if len(maps) != expected or maps.shape[-2] != maps.shape[-1]:
            raise ValueError(
                f"{name} has {len(maps)} views of {maps.shape[-2]} x {maps.shape[-1]}, but this processor makes "
                f"{expected} square ones (num_windows={self.num_windows}, do_flip_augment={self.do_flip_augment}); set "
                "these on the processor itself, not per call."
            )
        views = kind.to_average(maps)
        if self.do_flip_augment:
            straight, flipped = views.chunk(2)
            views = (straight + kind.flip(flipped)) / 2
        layout = window_layout(size, maps.shape[-1], self.num_windows)
        return kind.finish(blend_windows(views, layout, self.window_blending), size)


__all__ = [
    "AiTDenseImageProcessor",
    "AiTDenseImageProcessorKwargs",
    "DenseFeatures",
    "window_layout",
]
