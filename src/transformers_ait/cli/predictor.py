"""A checkpoint of images with its image processors: RGB images in, final maps and objects out."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation

from ..configuration_ait import AiTConfig
from ..configuration_checks_ait import check_json
from ..configuration_plain_dense import AiTPlainDenseConfig
from ..export.metadata import processor_path
from ..prediction_ait import AiTOutput

SEED = 0  # classes of objects are sampled; a run gives the same objects twice


@dataclass(frozen=True)
class FoundObjects:
    """Objects of an image, the most certain first.

    Args:
        labels: class names.
        scores: in [0, 1].
        masks: (n, H, W) bool; None where the task gives boxes alone.
        boxes: (n, 4) xyxy pixels; None where the task gives masks.
        results: per object `category_id` (the class index), `bbox`, `score` and, with masks, `segmentation`, as COCO
            writes results; empty unless asked for.
    """

    labels: list[str]
    scores: list[float]
    masks: Tensor | None
    boxes: Tensor | None
    results: list[dict[str, Any]]


Prediction = Tensor | FoundObjects
"""A native map ([C,] H, W) on the CPU, or objects."""


@dataclass
class StageSeconds:
    """Where the time of a prediction goes, in seconds; every prediction that it is given to adds its own.

    Args:
        processor: resizing and normalising the images, and moving them to the device.
        model: the forward pass, decoding included.
        post_processing: maps and objects at the images' own sizes, on the CPU.
    """

    processor: float = 0.0
    model: float = 0.0
    post_processing: float = 0.0

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of a `with` block to a stage, a field of this class."""
        start = time.perf_counter()
        yield
        setattr(self, stage, getattr(self, stage) + time.perf_counter() - start)


class Predictor:
    """A model, its tasks, and an image processor for each group of tasks that take the same images.

    Args:
        name: checkpoint folder, or name on the Hub.
        tasks: some of the checkpoint's; None is all.
        device: where the model runs.
        dtype: of the weights, such as "bfloat16"; "auto" is as they are stored.

    Raises:
        OSError: no such checkpoint, no weights or no image processor.
        ValueError: a checkpoint of another kind, one that is not trained, or tasks that it does not do.
    """

    def __init__(
        self,
        name: str,
        tasks: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
        dtype: str = "auto",
    ) -> None:
        folder = _checkpoint_folder(name)
        self.config = AutoConfig.from_pretrained(folder)
        self.tasks = _chosen_tasks(name, self.config, tasks)
        self.groups = _groups(folder, self.config, self.tasks)
        self.model = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=dtype).eval().to(device)
        self.device = device

    @torch.inference_mode()
    def predict(
        self,
        images: Sequence[Image.Image],
        threshold: float = 0.5,
        with_results: bool = False,
        seconds: StageSeconds | None = None,
    ) -> list[dict[str, Prediction]]:
        """Maps and objects of every image, by task.

        Args:
            images: upright RGB, of any sizes.
            threshold: least score of objects.
            with_results: give COCO results of objects too.
            seconds: gets the time of each stage.

        Raises:
            ImportError: COCO results of masks without pycocotools.
        """
        sizes = [(image.height, image.width) for image in images]
        found: list[dict[str, Prediction]] = [{} for _ in images]
        seconds = seconds or StageSeconds()
        for processor, tasks in self.groups:
            with seconds.measure("processor"):
                pixels = processor(list(images), return_tensors="pt")["pixel_values"].to(self.device)
            outputs: Any
            if tasks[0] in self.config.dense:
                with seconds.measure("model"):
                    outputs = self.model(pixel_values=pixels, task=tasks)
                    self._finish()
                with seconds.measure("post_processing"):
                    maps = processor.post_process_dense(outputs, sizes)
                    for of_image, by_task in zip(found, maps, strict=True):
                        of_image |= {task: values.cpu() for task, values in by_task.items()}
                continue
            with seconds.measure("model"):
                outputs = self.model.generate_tasks(pixels, tasks, generator=torch.Generator().manual_seed(SEED))
                self._finish()
            with seconds.measure("post_processing"):
                for task, output in outputs.items():
                    objects = self._objects(processor, output, sizes, threshold, with_results)
                    for of_image, of_task in zip(found, objects, strict=True):
                        of_image[task] = of_task
        return [{task: of_image[task] for task in self.tasks} for of_image in found]

    def _finish(self) -> None:
        """Wait for the device, so that its time counts where it was spent."""
        if torch.device(self.device).type != "cpu":
            torch.accelerator.synchronize()

    def _objects(
        self, processor: Any, output: AiTOutput, sizes: list[tuple[int, int]], threshold: float, with_results: bool
    ) -> list[FoundObjects]:
        """Objects of every image, of the outputs of one task."""
        results: list[list[dict[str, Any]]] = [[] for _ in sizes]
        if with_results:
            classes = {index: index for index in self.config.id2label}
            for entry in processor.post_process_coco(output, range(len(sizes)), classes, sizes, threshold):
                results[entry.pop("image_id")].append(entry)
        names = self.config.id2label
        found = []
        if output.mask_values is None:
            boxes = processor.post_process_object_detection(output, threshold, sizes)
            for one, of_image in zip(boxes, results, strict=True):
                labels = [names[index] for index in one["labels"].tolist()]
                found.append(FoundObjects(labels, one["scores"].tolist(), None, one["boxes"].cpu(), of_image))
            return found
        segments = processor.post_process_instance_segmentation(
            output, threshold, target_sizes=sizes, return_binary_maps=True
        )
        for one, of_image in zip(segments, results, strict=True):
            labels, scores = ([info[key] for info in one["segments_info"]] for key in ("label_id", "score"))
            masks = one["segmentation"].cpu()
            found.append(FoundObjects([names[index] for index in labels], scores, masks, None, of_image))
        return found


def _checkpoint_folder(name: str) -> Path:
    """The folder, or a local copy of the repository on the Hub."""
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name))
    except (OSError, ValueError) as error:
        raise OSError(f"--model {name} is no folder, and the Hub does not give it: {error}") from error


def _chosen_tasks(name: str, config: Any, tasks: Sequence[str] | None) -> list[str]:
    """The tasks to do, or a ValueError."""
    if not isinstance(config, AiTConfig | AiTPlainDenseConfig):
        raise ValueError(
            f"{name} is of model_type {config.model_type!r}, which predicts nothing from photographs; give a folder of "
            f"{AiTConfig.model_type!r} or {AiTPlainDenseConfig.model_type!r}."
        )
    known = list(config.tasks or ())
    unknown = [task for task in tasks or () if task not in known]
    if unknown:
        raise ValueError(f"{name} does not do {', '.join(unknown)}; its tasks are {', '.join(known)}.")
    if getattr(config, "initialization_only", False):
        raise ValueError(f"{name} is an initialisation: part of its weights is untrained, so it cannot predict.")
    return known if tasks is None else list(dict.fromkeys(tasks))


def _groups(folder: Path, config: Any, tasks: Sequence[str]) -> list[tuple[Any, list[str]]]:
    """Image processors, each with the tasks that take what it makes in one pass."""
    groups: list[tuple[Any, list[str]]] = []
    for task in tasks:
        path = processor_path(folder, config, task)
        check_json(path.parent, {}, path.name)  # the Auto class does not say which file it cannot read
        processor = AutoImageProcessor.from_pretrained(path.parent)
        for known, members in groups:
            if known.to_dict() | {"task": None} == processor.to_dict() | {"task": None}:
                members.append(task)
                break
        else:
            groups.append((processor, [task]))
    return groups
