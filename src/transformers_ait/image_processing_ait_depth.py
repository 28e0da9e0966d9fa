"""Depth image processor: `AiTDenseImageProcessor` as folders with depth alone know it."""

from typing import Any

from transformers.image_processing_base import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import Unpack

from .image_processing_ait_dense import AiTDenseImageProcessor, AiTDenseImageProcessorKwargs
from .map_kinds_ait import MIN_DEPTH


class AiTDepthImageProcessorKwargs(AiTDenseImageProcessorKwargs, total=False):
    """See `AiTDenseImageProcessorKwargs`."""


class AiTDepthImageProcessor(AiTDenseImageProcessor):
    """Turns photographs into views for depth models, and the predicted depth of the views into one map per image.

    It is `AiTDenseImageProcessor` for the one task "depth", with the plain average of AiT's test protocol unless
    `window_blending` says otherwise, and with depth maps by a name of their own.

    Args:
        **kwargs: as `AiTDenseImageProcessor` takes; `task` is "depth" for a model that does several tasks (a joint
            one), None leaves it to the model.
    """

    valid_kwargs = AiTDepthImageProcessorKwargs
    window_blending = "average"

    def __init__(self, **kwargs: Unpack[AiTDepthImageProcessorKwargs]):
        super().__init__(**kwargs)

    def _standardize_kwargs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        kwargs = super()._standardize_kwargs(*args, **kwargs)
        if kwargs["map_kinds"] != AiTDepthImageProcessor.map_kinds:
            raise ValueError(
                f"map_kinds must be {AiTDepthImageProcessor.map_kinds}, got {kwargs['map_kinds']}; use "
                "AiTDenseImageProcessor for other tasks."
            )
        return kwargs

    def to_dict(self) -> dict[str, Any]:
        """Settings; without those at their default that folders did not have from the start."""
        defaults = {"map_kinds": self.map_kinds, "window_blending": AiTDepthImageProcessor.window_blending}
        return {key: value for key, value in super().to_dict().items() if (key, value) not in defaults.items()}

    def preprocess(
        self,
        images: ImageInput,
        depth_maps: Any = None,
        **kwargs: Unpack[AiTDepthImageProcessorKwargs],
    ) -> BatchFeature:
        """Prepare images, and for training their depth maps.

        Args:
            images: as `AiTDenseImageProcessor.preprocess` takes.
            depth_maps: one map (H, W) or a list, of the images' sizes: floating-point metres, or PIL 16-bit
                millimetres; 0 = invalid. Needs one view per image: `num_windows=1, do_flip_augment=False`.
            **kwargs: settings that replace the processor's own in this call, and `return_tensors`, `device`.

        Returns:
            `pixel_values` and `task_ids` as there; `depth_labels` (B, S, S) metres when `depth_maps` are given.

        Raises:
            OSError: a file cannot be read as an image.
            TypeError: `depth_maps` of integers other than PIL 16-bit, or something that is no image.
            ValueError: settings or sizes that do not fit, negative or non-finite depth.
        """
        features = super().preprocess(images, None if depth_maps is None else {"depth": depth_maps}, **kwargs)
        if depth_maps is not None:
            features["depth_labels"] = features.pop("dense_labels")["depth"]
        return features

    def _name_of_maps(self, task: str | None = None) -> str:
        return "depth_maps"


__all__ = ["MIN_DEPTH", "AiTDepthImageProcessor", "AiTDepthImageProcessorKwargs"]
