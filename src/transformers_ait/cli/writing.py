"""Predictions as files: colours, overlays, 16-bit PNG, NumPy arrays and COCO annotations, each whole or not at all."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image
from torch import Tensor

from ..image_inputs_ait import MILLIMETRES_PER_METRE
from ..map_kinds_ait import MAP_KINDS, MapKind
from ..visualization import MASK_OPACITY, colorize_map, draw_instances
from ..visualization_colors import limits_of, native_array
from .inputs import Frame
from .predictor import FoundObjects, Prediction
from .video_files import VideoFile

COLOUR, OVERLAY, PNG16, NPY, COCO, VIDEO = "colour", "overlay", "png16", "npy", "coco", "video"
FORMATS = (COLOUR, OVERLAY, PNG16, NPY, COCO, VIDEO)
OBJECT_FORMATS = (OVERLAY, COCO)
ENDINGS = {COLOUR: "colour.png", OVERLAY: "overlay.png", PNG16: "16bit.png", NPY: "npy"}
COCO_ENDING = "coco.json"
VIDEO_ENDING = "mp4"
LARGEST = np.iinfo(np.uint16).max


def map_formats(kind: MapKind) -> tuple[str, ...]:
    """What a map of a kind can be written as."""
    return (COLOUR, OVERLAY, PNG16, NPY, VIDEO) if _fits_16_bits(kind) else (COLOUR, OVERLAY, NPY, VIDEO)


def default_formats(kind: MapKind | None) -> tuple[str, ...]:
    """What is written unless asked otherwise: something to look at, and the values. None stands for objects."""
    if kind is None:
        return OBJECT_FORMATS
    return COLOUR, PNG16 if _fits_16_bits(kind) else NPY


def chosen_formats(config: Any, tasks: Sequence[str], asked: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    """Formats by task.

    Args:
        config: of the model; its table of dense tasks says what kinds of maps there are.
        tasks: to write.
        asked: formats, of which every task gets those that it can be written as; None is the default of each.

    Raises:
        ValueError: an unknown format, or one that none of the tasks can be written as.
    """
    kinds = {task: MAP_KINDS[config.dense[task].kind] if task in config.dense else None for task in tasks}
    if asked is None:
        return {task: default_formats(kind) for task, kind in kinds.items()}
    possible = {task: (*OBJECT_FORMATS, VIDEO) if kind is None else map_formats(kind) for task, kind in kinds.items()}
    for name in asked:
        if name not in FORMATS:
            raise ValueError(f"--formats knows {', '.join(FORMATS)}, got {name!r}.")
        if not any(name in formats for formats in possible.values()):
            raise ValueError(f"None of the tasks ({', '.join(tasks)}) can be written as {name}.")
    return {task: tuple(x for x in formats if x in asked) for task, formats in possible.items()}


def sixteen_bits(values: Tensor, kind: MapKind) -> np.ndarray:
    """A native map (H, W) as uint16: millimetres of depth, 0 = unknown and at most 65.535 m; ids of classes.

    Raises:
        ValueError: a kind whose values no 16 bits hold.
    """
    if not _fits_16_bits(kind):
        raise ValueError(f"A map of kind {kind.name!r} has no 16-bit form.")
    array = values.numpy()
    if kind.has_scores:
        return array.astype(np.uint16)
    return np.nan_to_num(array * MILLIMETRES_PER_METRE, posinf=0.0).round().clip(0, LARGEST).astype(np.uint16)


class PredictionWriter:
    """Writes the files of every image, and a COCO file of all images for each task of objects.

    It is a context: leaving it without an error completes the COCO files, leaving it with one discards them.

    Args:
        folder: of the outputs; it is made with the first file.
        config: of the model.
        formats: by task.
        overwrite: replace files that exist; without it they stay as they are.

    Raises:
        FileExistsError: a COCO file exists and may not be overwritten.
    """

    def __init__(
        self, folder: Path, config: Any, formats: Mapping[str, Sequence[str]], overwrite: bool = False
    ) -> None:
        self.folder, self.config, self.formats, self.overwrite = folder, config, formats, overwrite
        paths = {task: folder / f"{task}.{COCO_ENDING}" for task, chosen in formats.items() if COCO in chosen}
        for path in paths.values():
            if path.exists() and not overwrite:
                raise FileExistsError(f"{path} exists; give --overwrite, or another --output")
        self.coco = {task: CocoFile(path, config.id2label) for task, path in paths.items()}
        self.videos = [task for task, chosen in formats.items() if VIDEO in chosen]
        self._video: str | None = None
        self._video_files: dict[str, VideoFile] = {}
        self._limits: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> "PredictionWriter":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self._close_videos(complete=error_type is None)
        for file in self.coco.values():
            file.close(complete=error_type is None)

    def is_wanted(self, key: str) -> bool:
        """Whether an image has anything left to write."""
        return bool(self.coco) or any(self._missing(key, task, name) for task, name in self._own_files())

    def write(self, frame: Frame, predictions: Mapping[str, Prediction]) -> None:
        """Write all files of an image.

        Raises:
            ImportError: colours without matplotlib.
            OSError: a file cannot be written.
        """
        for task, name in self._own_files():
            if self._missing(frame.key, task, name):
                write_whole(self._path(frame.key, task, name), self._content(frame, task, name, predictions[task]))
        for task, file in self.coco.items():
            found = predictions[task]
            assert isinstance(found, FoundObjects)
            file.add(frame.file_name, frame.image.size, found.results)
        if frame.video != self._video:
            self._close_videos(complete=True)
            self._open_videos(frame, predictions)
        for task, video in self._video_files.items():
            video.add(np.asarray(self._picture(frame, task, predictions[task], self._limits.get(task))))

    def _open_videos(self, frame: Frame, predictions: Mapping[str, Prediction]) -> None:
        """Start the files of a video with its first frame, whose colours hold for all."""
        self._video, self._limits = frame.video, {}
        if frame.video is None:
            return
        assert frame.rate is not None
        for task in self.videos:
            path = self.folder / f"{frame.video}.{task}.{VIDEO_ENDING}"
            if path.exists() and not self.overwrite:
                continue
            self._video_files[task] = VideoFile(path, _temporary(path), frame.rate, frame.image.size)
            values = predictions[task]
            if isinstance(values, Tensor):
                kind = MAP_KINDS[self.config.dense[task].kind]
                if kind.colors == "sequential":
                    self._limits[task] = limits_of([native_array(values, kind, task)], kind)

    def _close_videos(self, complete: bool) -> None:
        files = list(self._video_files.values())
        self._video_files = {}
        for file in files:
            file.close(complete)

    def _own_files(self) -> list[tuple[str, str]]:
        """Tasks and formats of the files that every image has of its own."""
        return [(task, name) for task, chosen in self.formats.items() for name in chosen if name not in (COCO, VIDEO)]

    def _path(self, key: str, task: str, name: str) -> Path:
        return self.folder / f"{key}.{task}.{ENDINGS[name]}"

    def _missing(self, key: str, task: str, name: str) -> bool:
        return self.overwrite or not self._path(key, task, name).exists()

    def _content(self, frame: Frame, task: str, name: str, prediction: Prediction) -> bytes:
        if isinstance(prediction, Tensor) and name == NPY:
            buffer = io.BytesIO()
            np.save(buffer, prediction.numpy())
            return buffer.getvalue()
        if isinstance(prediction, Tensor) and name == PNG16:
            return _png(Image.fromarray(sixteen_bits(prediction, MAP_KINDS[self.config.dense[task].kind])))
        picture = self._picture(frame, task, prediction)
        if isinstance(prediction, Tensor) and name == OVERLAY:
            picture = Image.blend(frame.image, picture, MASK_OPACITY)
        return _png(picture)

    def _picture(
        self, frame: Frame, task: str, prediction: Prediction, limits: tuple[float, float] | None = None
    ) -> Image.Image:
        """Colours of a map, or objects over their photograph."""
        if isinstance(prediction, FoundObjects):
            masks, boxes = prediction.masks, prediction.boxes
            return draw_instances(frame.image, prediction.labels, prediction.scores, masks, boxes)
        spec = self.config.dense[task]
        low, high = limits or (None, None)
        return Image.fromarray(colorize_map(prediction, spec.kind, spec.class_names, low, high))


class CocoFile:
    """A COCO annotation file that grows image by image; it has its name once it is complete.

    Args:
        path: of the file.
        class_names: by class index, which is the category id.
    """

    def __init__(self, path: Path, class_names: Mapping[int, str]) -> None:
        self.path = path
        self.categories = [{"id": index, "name": name} for index, name in class_names.items()]
        self.images: list[dict[str, Any]] = []
        self.count = 0
        self.file: TextIO | None = None

    def add(self, file_name: str, size: tuple[int, int], results: Sequence[Mapping[str, Any]]) -> None:
        """Add an image and its objects.

        Args:
            file_name: of the image.
            size: (width, height) pixels.
            results: per object `category_id`, `bbox`, `score`, and `segmentation` where there are masks.
        """
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = _temporary(self.path).open("w")
            self.file.write('{"annotations": [')
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": file_name, "width": size[0], "height": size[1]})
        for result in results:
            self.count += 1
            entry = {"id": self.count, "image_id": number, "iscrowd": 0, "area": _area(result), **result}
            self.file.write(("" if self.count == 1 else ",\n") + json.dumps(entry))

    def close(self, complete: bool) -> None:
        """Finish the file, or remove what there is of it."""
        if self.file is None:
            return
        try:
            if complete:
                rest = f'"images": {json.dumps(self.images)},\n"categories": {json.dumps(self.categories)}'
                self.file.write(f"],\n{rest}}}\n")
            self.file.close()
            if complete:
                os.replace(_temporary(self.path), self.path)
        finally:
            _temporary(self.path).unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is never seen half-written.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _temporary(path).write_bytes(content)
        os.replace(_temporary(path), path)
    finally:
        _temporary(path).unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _fits_16_bits(kind: MapKind) -> bool:
    return kind.has_scores or kind.metric == "depth"


def _area(result: Mapping[str, Any]) -> float:
    """Pixels of the mask, or of the box where there is none."""
    if "segmentation" not in result:
        return result["bbox"][2] * result["bbox"][3]
    from pycocotools import mask  # there is no mask without it

    return float(mask.area(result["segmentation"]))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
