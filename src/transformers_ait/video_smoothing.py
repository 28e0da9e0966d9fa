"""Steadier maps of a video: a symmetric temporal bilateral filter (after Tomasi and Manduchi, ICCV 1998, along time).

Every pixel becomes the mean of what the frames before and after say at the same place, weighted by how alike the
pictures are there. What does not move gets steady, what moves is left alone; and since as many frames ahead count as
behind, nothing trails. Where the whole picture moves there is little to average, and maps stay as they are.
"""

import math
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from .map_kinds_ait import MapKind
from .metrics.flicker import colour_change

SIMILARITY = 0.02  # change of colour at which a frame's weight has fallen to exp(-1)


class TemporalSmoother:
    """Smooths the maps of a video, which come one frame at a time.

    Args:
        kinds: the kind of each task's maps.
        channels: of each kind's tokenizer form.
        radius: frames before and after that are averaged. So many frames, and as many results again, are held, and a
            result comes so many frames late. 0 changes nothing.

    Raises:
        ValueError: a negative radius.
    """

    def __init__(self, kinds: Mapping[str, MapKind], channels: Mapping[str, int], radius: int = 3) -> None:
        if radius < 0:
            raise ValueError(f"radius must be 0 or more frames, got {radius}.")
        self.kinds, self.channels, self.radius = dict(kinds), dict(channels), radius
        # Frames by age: up to `radius` that are done, then those that wait for later ones.
        self._frames: deque[tuple[Tensor, Mapping[str, Tensor]]] = deque()
        self._done = 0

    def push(self, picture: Tensor, maps: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Take a frame, and give the result of the one `radius` frames before, once there is one.

        Args:
            picture: (3, H, W) uint8, or float in [0, 1].
            maps: final native maps ([C,] H, W) by task.

        Returns:
            No result or one: maps by task in the form of `maps`.

        Raises:
            ValueError: a frame of another size than those before.
        """
        self._frames.append((picture, maps))
        return [self._next()] if len(self._frames) - self._done > self.radius else []

    def flush(self) -> list[dict[str, Tensor]]:
        """The results that are still to come, as the video ends here; the next frame starts another video."""
        rest = [self._next() for _ in range(len(self._frames) - self._done)]
        self._frames.clear()
        self._done = 0
        return rest

    def _next(self) -> dict[str, Tensor]:
        """The result of the oldest frame that has none."""
        centre = self._done
        weights = self._weights(centre)
        result = {task: self._average(task, weights) for task in self.kinds}
        if self._done == self.radius:
            self._frames.popleft()
        else:
            self._done += 1
        return result

    def _weights(self, centre: int) -> list[Tensor]:
        """Weights (H, W) of all frames that are held, for the result of one of them."""
        picture = self._frames[centre][0]
        weights = []
        for place, (other, _) in enumerate(self._frames):
            change = colour_change(picture, other) if place != centre else torch.zeros(picture.shape[-2:])
            distance = (place - centre) / max(self.radius, 1)
            weights.append((-((change / SIMILARITY) ** 2)).exp() * math.exp(-(distance**2)))
        return weights

    def _average(self, task: str, weights: list[Tensor]) -> Tensor:
        kind = self.kinds[task]
        total: Tensor | None = None
        for weight, (_, maps) in zip(weights, self._frames, strict=True):
            form = kind.to_tokenizer(maps[task][None], self.channels[task]) * weight
            total = form if total is None else total + form
        assert total is not None
        return kind.finish(kind.from_tokenizer(total / sum(weights))[0], None)


__all__ = ["TemporalSmoother"]
