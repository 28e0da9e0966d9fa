"""Depth of one real photograph and of one rendered room, beside the truth, as one picture.

    python training/demo.py --output demo.png          # what `make demo` runs
    python training/demo.py --model DIRECTORY --image photo.jpg

The photograph is the Middlebury motorcycle scene that ships inside scikit-image, with true disparity; the room is
rendered here. Everything goes through the public route: `pipeline("depth-estimation")` on a checkpoint folder.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from transformers import pipeline
from transformers.pipelines import DepthEstimationPipeline
from transformers.utils import logging

import transformers_ait  # noqa: F401  (registers the Auto classes)
from transformers_ait.data import render_room
from transformers_ait.metrics import depth_metrics
from transformers_ait.visualization import DepthPanelRow, depth_panel

REPOSITORY = Path(__file__).resolve().parents[1]
# Calibration of the scene, from the docstring of skimage.data.stereo_motorcycle.
FOCAL_LENGTH, BASELINE, PRINCIPAL_OFFSET = 994.978, 0.193001, 31.086
HELD_OUT_ROOM = 2_000_000_029  # of the test split, chosen for its furniture


def motorcycle() -> tuple[Image.Image, np.ndarray]:
    """The photograph and its depth in metres, 0 where disparity is unknown."""
    left, _, disparity = skimage.data.stereo_motorcycle()
    depth = BASELINE * FOCAL_LENGTH / (disparity + PRINCIPAL_OFFSET)
    return Image.fromarray(left), np.nan_to_num(depth, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)


def room() -> tuple[Image.Image, np.ndarray]:
    """A rendered room that no training run has seen, and its depth in metres."""
    frame = render_room(HELD_OUT_ROOM, height=480, width=640)
    return Image.fromarray(frame.image), frame.depth_dense


def predict(estimator: DepthEstimationPipeline, name: str, image: Image.Image) -> np.ndarray:
    """Depth in metres at the image's size, printing the time of each stage."""
    start = time.perf_counter()
    inputs = estimator.preprocess(image)
    prepared = time.perf_counter()
    outputs = estimator.forward(inputs)
    decoded = time.perf_counter()
    depth = estimator.postprocess(outputs)["predicted_depth"].numpy()
    done = time.perf_counter()
    print(
        f"{name}: {image.width} x {image.height} pixels; preprocess {prepared - start:.3f} s, "
        f"model {decoded - prepared:.3f} s, post-process {done - decoded:.3f} s"
    )
    return depth


def describe(name: str, depth: np.ndarray, truth: np.ndarray) -> None:
    """Print the metrics, and the error of a constant at the true median for comparison."""
    valid = truth > 0
    constant = np.full_like(truth, np.median(truth[valid]))
    ours, baseline = (depth_metrics(x, truth) for x in (depth, constant))
    print(
        f"{name}: RMSE {ours['rmse']:.3f} m, abs_rel {ours['abs_rel']:.3f}, d1 {ours['d1']:.3f} "
        f"(a constant at the true median: RMSE {baseline['rmse']:.3f} m)"
    )


def main() -> None:
    """Predict, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REPOSITORY / "hub_configs" / "ait-tiny-rooms-depth"))
    parser.add_argument("--image", type=Path, default=None, help="a photograph of your own, shown first")
    parser.add_argument("--output", type=Path, default=Path("demo.png"))
    arguments = parser.parse_args()
    logging.disable_progress_bar()

    start = time.perf_counter()
    estimator = pipeline("depth-estimation", model=arguments.model)
    print(f"loaded {arguments.model} in {time.perf_counter() - start:.1f} s on {estimator.device}")
    scenes = {"Photograph (Middlebury motorcycle)": motorcycle(), "Rendered room, never trained on": room()}
    rows = []
    if arguments.image is not None:
        photo = Image.open(arguments.image).convert("RGB")
        rows.append(DepthPanelRow(np.array(photo), predict(estimator, "yours", photo), title=arguments.image.name))
    for title, (image, truth) in scenes.items():
        depth = predict(estimator, title, image)
        describe(title, depth, truth)
        rows.append(DepthPanelRow(np.array(image), depth, truth, title=title))
    depth_panel(rows, path=arguments.output)
    print(f"wrote {arguments.output} after {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
