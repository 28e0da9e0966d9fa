"""Frames of videos between prediction and writing: their maps are smoothed, and how much they flicker is measured."""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..map_kinds_ait import MAP_KINDS
from ..metrics.flicker import FLICKER_UNITS, Flicker
from ..video_smoothing import TemporalSmoother
from .inputs import Frame
from .predictor import Prediction

Predicted = tuple[Frame, Mapping[str, Prediction]]


class VideoSmoothing:
    """Passes frames on, smoothed; photographs pass as they are, and so do objects.

    Args:
        config: of the model; its table of dense tasks says what kinds of maps there are.
        tasks: that are predicted.
        radius: frames before and after that are averaged; 0 measures alone.

    Attributes:
        report: a line for every video that is complete.
    """

    def __init__(self, config: Any, tasks: list[str], radius: int) -> None:
        specs = {task: config.dense[task] for task in tasks if task in config.dense}
        self.kinds = {task: MAP_KINDS[spec.kind] for task, spec in specs.items()}
        self.radius = radius
        self.smoother = TemporalSmoother(self.kinds, {task: spec.channels for task, spec in specs.items()}, radius)
        self.report: list[str] = []
        self._video: str | None = None
        self._before: dict[str, Flicker] = {}
        self._after: dict[str, Flicker] = {}
        self._waiting: deque[tuple[Predicted, Tensor]] = deque()

    def feed(self, frame: Frame, predictions: Mapping[str, Prediction]) -> Iterator[Predicted]:
        """Take the next frame, and give those that are done.

        Raises:
            ValueError: a frame of another size than those before it in its video.
        """
        if frame.video != self._video:
            yield from self.finish()
            self._video = frame.video
            self._before, self._after = ({task: Flicker(kind) for task, kind in self.kinds.items()} for _ in range(2))
        if frame.video is None:
            yield frame, predictions
            return
        picture = torch.from_numpy(np.array(frame.image)).movedim(-1, 0)
        self._waiting.append(((frame, predictions), picture))
        maps = {task: values for task, values in predictions.items() if isinstance(values, Tensor)}
        for task, values in maps.items():
            self._before[task].update(picture, values)
        yield from map(self._smoothed, self.smoother.push(picture, maps))

    def finish(self) -> Iterator[Predicted]:
        """The frames that are still to come, as their video ends here."""
        yield from map(self._smoothed, self.smoother.flush())
        if self._video is not None and self.kinds:
            self.report.append(self._line())
        self._video = None

    def _smoothed(self, maps: Mapping[str, Tensor]) -> Predicted:
        (frame, predictions), picture = self._waiting.popleft()
        for task, values in maps.items():
            self._after[task].update(picture, values)
        return frame, {**predictions, **maps}

    def _line(self) -> str:
        parts = []
        for task, kind in self.kinds.items():
            figures = [flicker.compute() for flicker in (self._before[task], self._after[task])]
            percent = kind.metric in ("depth", "segmentation")
            texts = [_figure(x, percent) for x in (figures if self.radius else figures[:1])]
            parts.append(f"{task} {' -> '.join(texts)} {FLICKER_UNITS[kind.metric]}".rstrip())
        return f"{self._video}, change of what does not move, from frame to frame: {'; '.join(parts)}"


def _figure(value: float, percent: bool) -> str:
    if math.isnan(value):
        return "unknown"
    return f"{value:.2%}" if percent else f"{value:.3g}"
