"""Checkpoints of the page: loaded once, one prediction at a time each, and which ones there are by default."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..cli.inputs import Frame, read_photo
from ..cli.predictor import FoundObjects, Prediction, Predictor, StageSeconds
from ..cli.writing import COCO, COCO_ENDING, ENDINGS, PredictionWriter

MIN_SCORE = 0.05
"""Objects below it are not kept, so the slider of scores starts there."""
SHIPPED = ("ait-lite-nyu", "ait-tiny-rooms", "ait-tiny-rooms-instance")


@dataclass(frozen=True)
class Result:
    """What one visitor's last picture gave. It lives in the visitor's session, and its folder goes when it does.

    Args:
        photo: upright RGB, as the model saw it.
        path: of the upload.
        original_size: (width, height) of the upload, which is larger than the photo where that was made smaller.
        checkpoint: what made the predictions.
        predictions: by task; of objects all with a score of at least `MIN_SCORE`.
        seconds: of the stages.
        folder: for files.
    """

    photo: Image.Image
    path: Path
    original_size: tuple[int, int]
    checkpoint: Checkpoint
    predictions: Mapping[str, Prediction]
    seconds: StageSeconds
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="transformers_ait_app_")))

    @property
    def name(self) -> str:
        """What files are called after."""
        return self.path.stem

    def is_of(self, path: str, checkpoint: Checkpoint) -> bool:
        """Whether this is what a checkpoint makes of an upload, whose path changes with its content."""
        return (self.path, self.checkpoint) == (Path(path), checkpoint)

    def write(self, task: str, format_name: str) -> Path:
        """Write a file of a task as `transformers-ait predict` does; returns its path."""
        return self._write(task, format_name, self.predictions[task])

    def write_objects(self, task: str, found: FoundObjects) -> Path:
        """Write a COCO file of some of the objects of a task; returns its path."""
        return self._write(task, COCO, found)

    def discard(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, task: str, format_name: str, prediction: Prediction) -> Path:
        frame = Frame(self.photo, self.path.name, self.name)
        formats = {task: (format_name,)}
        with PredictionWriter(self.folder, self.checkpoint.config, formats, overwrite=True) as writer:
            writer.write(frame, {task: prediction})
        if format_name == COCO:
            return self.folder / f"{task}.{COCO_ENDING}"
        return self.folder / f"{self.name}.{task}.{ENDINGS[format_name]}"


class Checkpoint:
    """A model that visitors share.

    Args:
        name: folder, or name on the Hub.
        label: what the page calls it.
        device: where the model runs.
        dtype: of the weights; "auto" is as they are stored.

    Raises:
        OSError: no such checkpoint, no weights or no image processor.
        ValueError: a checkpoint that predicts nothing from photographs.
    """

    def __init__(self, name: str, label: str, device: torch.device | str = "cpu", dtype: str = "auto") -> None:
        self.label = label
        self._predictor = Predictor(name, device=device, dtype=dtype)
        # The queue of the page lets one prediction run at a time; this holds for whoever calls without the queue.
        self._lock = threading.Lock()
        self.config: Any = self._predictor.config
        self.tasks: Sequence[str] = self._predictor.tasks
        self.device = torch.device(device)

    def predict(self, path: Path, max_side: int = 0) -> Result:
        """All tasks of a photograph.

        Args:
            path: of the photograph.
            max_side: pixels; a photograph with a longer side is made smaller. 0 is no limit.

        Raises:
            OSError: the file cannot be read as an image.
        """
        photo = read_photo(path)
        original = photo.size
        if max_side and max(original) > max_side:
            photo.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        seconds = StageSeconds()
        with self._lock:
            predictions = self._predictor.predict([photo], MIN_SCORE, with_results=True, seconds=seconds)[0]
        return Result(photo, path, original, self, predictions, seconds)


def above(found: FoundObjects, threshold: float) -> FoundObjects:
    """The objects of at least a score, which are what a prediction with this threshold gives."""
    kept = [index for index, score in enumerate(found.scores) if score >= threshold]
    return FoundObjects(
        [found.labels[index] for index in kept],
        [found.scores[index] for index in kept],
        None if found.masks is None else found.masks[kept],
        None if found.boxes is None else found.boxes[kept],
        [entry for entry in found.results if entry["score"] >= threshold],
    )


def shipped_checkpoints() -> list[str]:
    """Folders of the checkpoints that a clone of the repository holds; empty elsewhere."""
    folder = Path(__file__).resolve().parents[3] / "hub_configs"
    return [str(folder / name) for name in SHIPPED if (folder / name / "model.safetensors").is_file()]


def labels_of(names: Sequence[str]) -> list[str]:
    """What to call checkpoints: the last parts of their names, or whole names where these would be the same."""
    short = [Path(name).name for name in names]
    counts = Counter(short)
    return [name if counts[last] > 1 else last for name, last in zip(names, short, strict=True)]
