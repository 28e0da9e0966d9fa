"""Photographs in all the tasks of a model, and depth and objects of a rendered room beside the truth, as one picture.

    python training/demo.py --output demo.png          # what `make demo` runs
    python training/demo.py --image photo.jpg --photo-model DIRECTORY --model DIRECTORY --instance-model DIRECTORY

The photographs ship inside scikit-image: the Middlebury motorcycle scene, with true disparity, and a portrait. A model
trained on photographs (NYU Depth v2) sees them, and gives all its dense tasks in one pass; models trained on rendered
rooms see the room, which is rendered here. Everything goes through the public route: the Auto classes of processor and
model, `pipeline("depth-estimation")` and `pipeline("image-segmentation")` on checkpoint folders.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, pipeline
from transformers.pipelines import Pipeline
from transformers.utils import logging

import transformers_ait  # noqa: F401  (registers the Auto classes)
from transformers_ait.data import RoomFrame, render_room
from transformers_ait.metrics import depth_metrics
from transformers_ait.visualization import DepthPanelRow, depth_panel, draw_instances, picture_panel, task_panel

REPOSITORY = Path(__file__).resolve().parents[1]
# Calibration of the scene, from the docstring of skimage.data.stereo_motorcycle.
FOCAL_LENGTH, BASELINE, PRINCIPAL_OFFSET = 994.978, 0.193001, 31.086
HELD_OUT_ROOM = 2_000_000_029  # of the test split, chosen for its furniture
ROOM_TITLE = "Rendered room, never trained on"
DEPTH = "depth"
MIN_IOU = 0.5  # of a predicted mask with a true one of its class, to count as found


def motorcycle() -> tuple[Image.Image, np.ndarray]:
    """The photograph and its depth in metres, 0 where disparity is unknown."""
    left, _, disparity = skimage.data.stereo_motorcycle()
    depth = BASELINE * FOCAL_LENGTH / (disparity + PRINCIPAL_OFFSET)
    return Image.fromarray(left), np.nan_to_num(depth, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)


def predict(pipe: Pipeline, name: str, image: Image.Image, **settings: Any) -> Any:
    """Result of a pipeline for an image, printing the time of each stage; `settings` go to its post-processing."""
    start = time.perf_counter()
    inputs = pipe.preprocess(image)
    prepared = time.perf_counter()
    outputs = pipe.forward(inputs)
    decoded = time.perf_counter()
    result = pipe.postprocess(outputs, **settings)
    done = time.perf_counter()
    print(
        f"{name}: {image.width} x {image.height} pixels; preprocess {prepared - start:.3f} s, "
        f"model {decoded - prepared:.3f} s, post-process {done - decoded:.3f} s"
    )
    return result


def load(task: str, model: str) -> Pipeline:
    """A pipeline, printing the time to load it."""
    start = time.perf_counter()
    pipe = pipeline(task, model=model)  # type: ignore[call-overload]
    print(f"loaded {model} in {time.perf_counter() - start:.1f} s on {pipe.device}")
    return pipe


def describe(name: str, depth: np.ndarray, truth: np.ndarray) -> None:
    """Print the metrics, and the error of a constant at the true median for comparison."""
    valid = truth > 0
    constant = np.full_like(truth, np.median(truth[valid]))
    ours, baseline = (depth_metrics(x, truth) for x in (depth, constant))
    print(
        f"{name}: RMSE {ours['rmse']:.3f} m, abs_rel {ours['abs_rel']:.3f}, d1 {ours['d1']:.3f} "
        f"(a constant at the true median: RMSE {baseline['rmse']:.3f} m)"
    )


def depth_row(estimator: Pipeline, title: str, image: Image.Image, truth: np.ndarray | None = None) -> DepthPanelRow:
    """Depth of an image, described where the truth is known."""
    depth = predict(estimator, title, image)["predicted_depth"].numpy()
    if truth is not None:
        describe(title, depth, truth)
    return DepthPanelRow(np.array(image), depth, truth, title=title)


def photograph_pictures(folder: str, photo: Path | None) -> list[Image.Image]:
    """The photographs in all dense tasks of a model, the user's own first."""
    start = time.perf_counter()
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForDepthEstimation.from_pretrained(folder).eval()
    print(f"loaded {folder} in {time.perf_counter() - start:.1f} s on {model.device}")
    shown: list[tuple[str, Image.Image, np.ndarray | None]] = []
    if photo is not None:
        shown.append((photo.name, Image.open(photo).convert("RGB"), None))
    shown.append(("Photograph (Middlebury motorcycle)", *motorcycle()))
    shown.append(("Photograph (no truth)", Image.fromarray(skimage.data.astronaut()), None))
    return [task_picture(model, processor, *entry) for entry in shown]


def task_picture(
    model: Any, processor: Any, title: str, image: Image.Image, true_depth: np.ndarray | None
) -> Image.Image:
    """One photograph in all dense tasks, from one pass, with the time of each stage printed."""
    start = time.perf_counter()
    inputs = processor(image, return_tensors="pt")
    prepared = time.perf_counter()
    with torch.no_grad():
        outputs = model(**inputs)
    decoded = time.perf_counter()
    maps = processor.post_process_dense(outputs, [(image.height, image.width)])[0]
    done = time.perf_counter()
    print(
        f"{title}: {', '.join(maps)}; {image.width} x {image.height} pixels; preprocess {prepared - start:.3f} s, "
        f"model {decoded - prepared:.3f} s, post-process {done - decoded:.3f} s"
    )
    if true_depth is not None and DEPTH in maps:
        describe(title, maps[DEPTH].numpy(), true_depth)
    specs = model.config.dense
    shown = {task: (found, specs[task].kind, specs[task].class_names) for task, found in maps.items()}
    return task_panel(image, shown)


def instance_picture(segmenter: Pipeline, frame: RoomFrame, threshold: float) -> Image.Image:
    """Predicted and true objects of the room side by side, a class in one colour."""
    image = Image.fromarray(frame.image)
    found = predict(segmenter, "Objects of the room", image, threshold=threshold)
    truth = [{"label": item.category, "mask": frame.instance_map == item.id} for item in frame.objects]
    describe_objects(found, truth)
    colors = {name: index for index, name in enumerate(sorted({item["label"] for item in found + truth}))}

    def drawn(objects: list[dict[str, Any]], scores: list[float] | None) -> Image.Image:
        labels, masks = ([item[key] for item in objects] for key in ("label", "mask"))
        return draw_instances(image, labels, scores, masks, color_ids=[colors[name] for name in labels], scale=2)

    tiles = [drawn(found, [item["score"] for item in found]), drawn(truth, None)]
    return picture_panel([tiles], [f"Predicted objects (score ≥ {threshold:g})", "True objects"])


def describe_objects(found: list[dict[str, Any]], truth: list[dict[str, Any]]) -> None:
    """Print how many of the true objects a prediction of their class covers."""

    def overlap(predicted: dict[str, Any], true: dict[str, Any]) -> float:
        mask = np.asarray(predicted["mask"]) > 0
        return float((mask & true["mask"]).sum() / (mask | true["mask"]).sum())

    best = [max((overlap(x, true) for x in found if x["label"] == true["label"]), default=0.0) for true in truth]
    hits = sum(value >= MIN_IOU for value in best)
    print(f"Objects of the room: {len(found)} predicted; {hits} of {len(truth)} true ones with mask IoU >= {MIN_IOU:g}")


def stacked(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one width below each other."""
    return Image.fromarray(np.vstack([np.asarray(picture) for picture in pictures]))


def main() -> None:
    """Predict, print, draw."""
    models = REPOSITORY / "hub_configs"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo-model", default=str(models / "ait-lite-nyu"), help="depth of photographs")
    parser.add_argument("--model", default=str(models / "ait-tiny-rooms-depth"), help="depth of the room")
    parser.add_argument("--instance-model", default=str(models / "ait-tiny-rooms-instance"), help="objects of the room")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score of the objects that are shown")
    parser.add_argument("--image", type=Path, default=None, help="a photograph of your own, shown first")
    parser.add_argument("--output", type=Path, default=Path("demo.png"))
    arguments = parser.parse_args()
    logging.disable_progress_bar()

    start = time.perf_counter()
    frame = render_room(HELD_OUT_ROOM, height=480, width=640)
    pictures = photograph_pictures(arguments.photo_model, arguments.image)
    room = Image.fromarray(frame.image)
    estimator = load("depth-estimation", arguments.model)
    pictures.append(depth_panel([depth_row(estimator, ROOM_TITLE, room, frame.depth_dense)]))
    segmenter = load("image-segmentation", arguments.instance_model)
    torch.manual_seed(0)  # objects are sampled from a nucleus
    pictures.append(instance_picture(segmenter, frame, arguments.threshold))
    stacked(pictures).save(arguments.output)
    print(f"wrote {arguments.output} after {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
