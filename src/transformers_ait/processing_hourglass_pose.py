"""2-D joints of videos of any length to what pose lifting takes, and its poses back to the videos."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, FeatureExtractionMixin

from .configuration_checks_ait import MAX_SIZE, check_json
from .configuration_hourglass_pose import LEFT_JOINTS, OUTPUTS, RIGHT_JOINTS, HourglassPoseConfig, middle_frame

Keypoints = Tensor | np.ndarray | Sequence[Any]


class HourglassPoseProcessor(FeatureExtractionMixin):
    """Normalises 2-D joints, fills gaps, cuts videos into windows, and merges the poses of windows and mirror images.

    Args:
        num_frames: F, length of a window.
        num_joints: J.
        input_size: channels of a joint: 2, or 3 with a confidence.
        output: "sequence" for models that predict all frames of a window, "frame" for its middle one.
        left_joints: joints that change places with `right_joints` in a mirrored pose.
        right_joints: see there.
        root_joint: joint that poses are relative to.
        do_flip: predict the mirrored video too and average both, as the published test does.
        kwargs: of `FeatureExtractionMixin`.
    """

    model_input_names = ["keypoints"]

    def __init__(
        self,
        num_frames: int = 243,
        num_joints: int = 17,
        input_size: int = 2,
        output: str = "sequence",
        left_joints: Sequence[int] = LEFT_JOINTS,
        right_joints: Sequence[int] = RIGHT_JOINTS,
        root_joint: int = 0,
        do_flip: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        _check_settings(
            {"num_frames": num_frames, "num_joints": num_joints, "input_size": input_size},
            {"left_joints": left_joints, "right_joints": right_joints, "root_joint": [root_joint]},
        )
        if not isinstance(output, str) or output not in OUTPUTS:
            raise ValueError(f"output must be one of {OUTPUTS}, got {output!r}.")
        if len(left_joints) != len(right_joints):
            raise ValueError(f"left_joints and right_joints must be pairs, got {left_joints} and {right_joints}.")
        joints = [*left_joints, *right_joints, root_joint]
        if not all(0 <= joint < num_joints for joint in joints):
            raise ValueError(
                f"left_joints, right_joints and root_joint must lie in 0..{num_joints - 1}, got {joints}; for other "
                "joints than Human3.6M's 17 give all three."
            )
        self.num_frames = num_frames
        self.num_joints = num_joints
        self.input_size = input_size
        self.output = output
        self.left_joints = [*left_joints]
        self.right_joints = [*right_joints]
        self.root_joint = root_joint
        self.do_flip = do_flip

    @classmethod
    def get_feature_extractor_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """See `FeatureExtractionMixin`.

        Raises:
            OSError: preprocessor_config.json cannot be read as a JSON object.
        """
        check_json(pretrained_model_name_or_path, kwargs, "preprocessor_config.json")
        return super().get_feature_extractor_dict(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def for_model(cls, config: HourglassPoseConfig, **kwargs: Any) -> "HourglassPoseProcessor":
        """The processor that fits a model.

        Args:
            config: of the model.
            kwargs: other settings, such as `do_flip`.
        """
        names = ("num_frames", "num_joints", "input_size", "output", "left_joints", "right_joints", "root_joint")
        return cls(**{name: getattr(config, name) for name in names}, **kwargs)

    def __call__(
        self,
        keypoints: Keypoints | Sequence[Keypoints],
        image_size: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Windows of one or several videos.

        A joint that is NaN in some frames is filled in linearly over time, and repeated past its first and last frame;
        a confidence there is 0.

        Args:
            keypoints: (T, J, 2 or 3) of one video, or a sequence of such arrays; with `image_size` in pixels, x to the
                right and y down, else already normalised: x in [-1, 1] over the width, y in the same unit.
            image_size: (height, width) in pixels of the video, or of each.
            return_tensors: "pt" or "np".

        Returns:
            `keypoints` (windows, F, J, channels), those of mirrored videos last; `post_process_poses` takes them apart.

        Raises:
            ValueError: another number of joints or channels, an empty video, infinite values, a joint that is NaN in
                all frames, or sizes that do not fit the videos.
        """
        videos = _listed(keypoints)
        sizes: Any = image_size
        if sizes is None or isinstance(sizes[0], int | np.integer):
            sizes = [sizes] * len(videos)
        if len(sizes) != len(videos):
            raise ValueError(
                f"image_size must be one (height, width) or one per video, {len(videos)}, got {len(sizes)}."
            )
        prepared = [self.prepare(video, size) for video, size in zip(videos, sizes, strict=True)]
        if self.do_flip:
            prepared += [self.mirror(video) for video in prepared]
        windows = torch.cat([video[self._frames(len(video))] for video in prepared])
        return BatchFeature({"keypoints": windows.numpy() if return_tensors != "pt" else windows}, return_tensors)

    def mirror(self, joints: Tensor) -> Tensor:
        """Joints (..., J, 2 or 3) mirrored: the first coordinate is negated, left and right change places."""
        order = [*range(self.num_joints)]
        for left, right in zip(self.left_joints, self.right_joints, strict=True):
            order[left], order[right] = right, left
        joints = joints[..., order, :].clone()
        joints[..., 0] *= -1
        return joints

    def normalize(self, keypoints: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Pixels (..., 2 or 3) to units of half the image's width, from its middle.

        Args:
            keypoints: pixels.
            image_size: (height, width).
        """
        height, width = image_size
        if not (height > 0 and width > 0):
            raise ValueError(f"image_size must be a positive (height, width) in pixels, got {image_size}.")
        middle = torch.tensor([width / 2, height / 2], dtype=keypoints.dtype)
        return torch.cat([(keypoints[..., :2] - middle) / (width / 2), keypoints[..., 2:]], -1)

    def post_process_poses(self, outputs: Any, num_frames: int | Sequence[int]) -> list[Tensor]:
        """Poses of every video.

        Args:
            outputs: of the model, for all windows of one call of this processor.
            num_frames: T of the video, or of each.

        Returns:
            For each video (T, J, 3) metres, root joint at 0; where windows overlap, their mean.

        Raises:
            ValueError: the poses are not those of such videos.
        """
        lengths = [num_frames] if isinstance(num_frames, int) else [*num_frames]
        return self.merge(outputs.poses.detach().float().cpu(), lengths)

    def merge(self, poses: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """`post_process_poses` of the poses alone.

        Args:
            poses: (windows, F, J, 3), or (windows, 1, J, 3) of the output "frame".
            lengths: T of every video.
        """
        frames = [self._frames(length) for length in lengths]
        counts = [len(numbers) for numbers in frames] * (2 if self.do_flip else 1)
        if sum(counts) != len(poses):
            raise ValueError(
                f"num_frames {lengths} make {sum(counts)} windows, but there are poses of {len(poses)}; give the "
                "lengths of the videos as the processor took them."
            )
        parts = poses.split(counts)
        merged = [
            self._merge(part, *where)
            for part, where in zip(parts, [*zip(frames, lengths, strict=True)] * 2, strict=False)
        ]
        if self.do_flip:
            straight, mirrored = merged[: len(lengths)], merged[len(lengths) :]
            merged = [(one + self.mirror(other)) / 2 for one, other in zip(straight, mirrored, strict=True)]
        return [video - video[:, self.root_joint : self.root_joint + 1] for video in merged]

    def prepare(self, keypoints: Keypoints, image_size: tuple[int, int] | None = None) -> Tensor:
        """One video, checked, its gaps filled, and normalised.

        Args:
            keypoints: (T, J, 2 or 3), see the call.
            image_size: (height, width) in pixels; None where they are normalised already.

        Returns:
            (T, J, channels) float32.
        """
        x = torch.as_tensor(np.asarray(keypoints), dtype=torch.float32)
        if x.ndim != 3 or len(x) == 0 or x.shape[1:] != (self.num_joints, self.input_size):
            raise ValueError(
                f"keypoints of a video must be (T, {self.num_joints}, {self.input_size}) with at least one frame, got "
                f"{tuple(x.shape)}; another skeleton needs a model and a processor with its num_joints."
            )
        if x.isinf().any():
            raise ValueError("keypoints must be finite, or NaN where a joint was not seen; got infinity.")
        x = filled(x)
        return x if image_size is None else self.normalize(x, image_size)

    def _frames(self, length: int) -> Tensor:
        """Numbers (windows, F) of the frames in every window; past the ends the first and the last are repeated."""
        if self.output == "frame":
            starts = torch.arange(length) - middle_frame(self.num_frames)
        else:
            starts = torch.arange(0, max(length - self.num_frames, 0) + self.num_frames, self.num_frames)
            starts = starts.clamp(max=max(length - self.num_frames, 0))
        return (starts[:, None] + torch.arange(self.num_frames)).clamp(0, length - 1)

    def _merge(self, poses: Tensor, frames: Tensor, length: int) -> Tensor:
        """Poses (T, J, 3) of windows (windows, F or 1, J, 3)."""
        if self.output == "frame":
            return poses[:, 0]
        # Repeated frames past the end of a short video are left out.
        real = torch.arange(self.num_frames) + frames[:, :1] < length
        numbers, poses = frames[real], poses[real]
        total = torch.zeros(length, *poses.shape[1:]).index_add_(0, numbers, poses)
        return total / torch.bincount(numbers, minlength=length)[:, None, None]


def never_seen(keypoints: Tensor) -> list[int]:
    """Joints of (T, J, 2 or 3) that are NaN in every frame."""
    return keypoints[..., :2].isnan().any(-1).all(0).nonzero().flatten().tolist()


def filled(keypoints: Tensor) -> Tensor:
    """Joints with NaN frames filled in linearly over time, the nearest seen frame past the ends.

    Args:
        keypoints: (T, J, 2), or (T, J, 3) with a confidence, which becomes 0 where a coordinate was NaN.

    Raises:
        ValueError: a joint is NaN in every frame.
    """
    missing = keypoints[..., :2].isnan().any(-1)
    if never := never_seen(keypoints):
        raise ValueError(f"keypoints of joints {never} are NaN in all {len(keypoints)} frames; leave this video out.")
    if not keypoints.isnan().any():
        return keypoints
    x, time = keypoints.clone(), np.arange(len(keypoints))
    for joint in missing.any(0).nonzero().flatten().tolist():
        seen = ~missing[:, joint].numpy()
        for axis in range(2):
            known = keypoints[:, joint, axis].numpy()
            x[:, joint, axis] = torch.from_numpy(np.interp(time, time[seen], known[seen])).float()
    if x.shape[-1] > 2:
        x[..., 2] = x[..., 2].nan_to_num(0.0).masked_fill(missing, 0.0)
    return x


def _check_settings(sizes: dict[str, Any], joints: dict[str, Any]) -> None:
    """Raise an error for sizes and joints that are no whole numbers, or sizes below 1."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) <= MAX_SIZE:
            raise ValueError(f"{name} must be a whole number from 1 to {MAX_SIZE}, got {value!r:.80}.")
    for name, value in joints.items():
        if not isinstance(value, list | tuple) or not all(isinstance(joint, Integral) for joint in value):
            raise TypeError(f"{name} must be whole numbers, counted from 0, got {value!r:.80}.")


def _listed(keypoints: Any) -> list[Any]:
    """The videos of a call."""
    if isinstance(keypoints, Tensor | np.ndarray):
        return [*keypoints] if keypoints.ndim == 4 else [keypoints]
    first = keypoints[0] if len(keypoints) else keypoints
    is_batch = isinstance(first, Tensor | np.ndarray) and first.ndim == 3
    is_batch = is_batch or (isinstance(first, Sequence) and np.asarray(first, dtype=object).ndim >= 3)
    return [*keypoints] if is_batch else [keypoints]


__all__ = ["HourglassPoseProcessor"]
