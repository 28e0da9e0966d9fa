"""Depth metrics of checkpoint folders on held-out rooms, as one Markdown table.

    python training/evaluate.py hub_configs/ait-tiny-rooms-depth
    python training/evaluate.py runs/vqvae/model runs/depth/model runs/parallel/model --output results.json

A VQ-VAE is judged by its reconstruction of the true maps, a task-solver by its prediction from images through its own
image processor; autoregressive ones once with soft tokens and once with hard ones. The last row predicts the same depth
everywhere: the mean of all true depths.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoConfig, AutoImageProcessor
from transformers.utils import logging

import transformers_ait.data  # noqa: F401  (registers synthetic_rooms and the Auto classes)
from transformers_ait import AiTForDenseAndInstancePrediction, AiTVQVAEModel
from transformers_ait.image_processing_ait_depth import MIN_DEPTH
from transformers_ait.metrics import DEPTH_METRICS, DepthMetricAccumulator

Predict = Callable[[list[Image.Image], list[np.ndarray]], list[np.ndarray]]


def vqvae_reconstruction(folder: str) -> Predict:
    """Reconstruct the true maps, cut to whole tokens by the caller."""
    model = AiTVQVAEModel.from_pretrained(folder).eval()

    def predict(images: list[Image.Image], depths: list[np.ndarray]) -> list[np.ndarray]:
        maps = torch.from_numpy(np.stack(depths))[:, None]
        return list(model(maps).reconstruction[:, 0].clamp(min=MIN_DEPTH).numpy())

    return predict


def image_prediction(folder: str, soft: bool) -> Predict:
    """Predict from images; `soft` False feeds back and decodes picked codes."""
    model = AiTForDenseAndInstancePrediction.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    switches = {} if soft else {"soft_feedback": False, "soft_decode": False}

    def predict(images: list[Image.Image], depths: list[np.ndarray]) -> list[np.ndarray]:
        inputs = processor(images, return_tensors="pt")
        outputs = model.generate(inputs["pixel_values"], task="depth", **switches)
        sizes = [(image.height, image.width) for image in images]
        results = processor.post_process_depth_estimation(outputs, sizes)
        return [result["predicted_depth"].numpy() for result in results]

    return predict


def contenders(folder: str) -> Iterator[tuple[str, Predict]]:
    """Named ways to use a checkpoint folder."""
    config = AutoConfig.from_pretrained(folder)
    name = str(Path(folder))
    if config.model_type == "ait_vqvae":
        yield f"{name}: reconstruction of the truth", vqvae_reconstruction(folder)
    elif config.parallel:
        yield f"{name}: parallel", image_prediction(folder, soft=True)
    else:
        yield f"{name}: autoregressive, soft tokens", image_prediction(folder, soft=True)
        yield f"{name}: autoregressive, hard tokens", image_prediction(folder, soft=False)


def evaluate(predict: Predict, rows: datasets.Dataset, batch_size: int, name: str) -> dict[str, float]:
    """Nine metrics, each the mean over images."""
    accumulator = DepthMetricAccumulator()
    for start in tqdm(range(0, len(rows), batch_size), desc=name, leave=False):
        batch = rows[start : start + batch_size]
        depths = [np.asarray(depth, dtype=np.float32) / 1000 for depth in batch["depth"]]
        with torch.no_grad():
            for prediction, truth in zip(predict(batch["image"], depths), depths, strict=True):
                accumulator.update(prediction, truth)
    return accumulator.compute()


def mean_constant(rows: datasets.Dataset) -> Predict:
    """Predict the mean of all valid true depths everywhere."""
    total = count = 0.0
    for depth in rows["depth"]:
        metres = np.asarray(depth, dtype=np.float64) / 1000
        total, count = total + metres.sum(), count + (metres > 0).sum()
    mean = np.float32(total / count)
    return lambda images, depths: [np.full_like(depth, mean) for depth in depths]


def main() -> None:
    """Evaluate every folder and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="checkpoint folders")
    parser.add_argument("--rooms", type=int, default=500, help="held-out rooms (the test split)")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--output", type=Path, default=None, help="also write the metrics as JSON")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    sizes = {"height": arguments.height, "width": arguments.width, "num_test": arguments.rooms}
    rows = datasets.load_dataset("synthetic_rooms", split="test", num_train=0, num_validation=0, num_proc=2, **sizes)
    results = {}
    print("| model | " + " | ".join(DEPTH_METRICS) + " |")
    print("|---|" + "---|" * len(DEPTH_METRICS))
    named = [pair for folder in arguments.folders for pair in contenders(folder)]
    for name, predict in [*named, ("constant", mean_constant(rows))]:
        metrics = results[name] = evaluate(predict, rows, arguments.batch_size, name)
        print(f"| {name} | " + " | ".join(f"{metrics[key]:.3f}" for key in DEPTH_METRICS) + " |", flush=True)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
