"""Peak memory of predictions from photographs of 20 megapixels and from batches of 1 to 64, beside that of a small one.

    python -m benchmarks.soundness.memory    # writes benchmarks/memory.md; Linux

Each case runs in a forked process of its own, from which the peak of resident memory is read. The photograph itself is
there before, and what is asked for in the photograph's own size is taken off.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.speed.memory import PEAK_RESET, PROCESS_STATUS
from PIL import Image
from transformers import AutoModelForDepthEstimation
from transformers.utils import logging

import transformers_ait.image_processing_ait_dense  # noqa: F401 - registers the models

from .conditions import heading
from .pictures import MEGAPIXELS_20, REPOSITORY
from .precision import load_processor

SMALL = (720, 480)  # width and height, of the same shape as the large one
MIXED = ((720, 480), (480, 640), (500, 1), (2000, 300), (33, 31), (1600, 1200))
BATCHES = (1, 2, 4, 8, 16, 32, 64)
LIMIT = 1.2
"""What the peak of a large photograph may be, times that of a small one."""
MIB = 1 << 20
MODELS = {"ait-lite-nyu": "dense", "ait-tiny-rooms-instance": "objects"}
Prepare = Callable[[], Callable[[], Any]]


def photo(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """A decoded photograph: smooth, so that it is made without much memory."""
    small = np.random.default_rng(0).integers(0, 256, (36, 54, 3), np.uint8)
    return Image.fromarray(small).resize(size).convert(mode)


def peak_of(prepare: Prepare) -> int:
    """Bytes that a computation takes at its peak beyond what was there before, less those of the tensors it returns."""
    reading, writing = os.pipe()
    number = os.fork()
    if number == 0:
        status = 1
        try:
            run = prepare()
            PEAK_RESET.write_text("5")
            before = _status("VmRSS")
            returned = run()
            os.write(writing, json.dumps(_status("VmHWM") - before - _bytes(returned)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    if os.waitpid(number, 0)[1] != 0 or not text:
        raise RuntimeError("a case failed; its words stand above")
    return int(json.loads(text))


def _status(name: str) -> int:
    line = next(line for line in PROCESS_STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _bytes(values: Any) -> int:
    if isinstance(values, torch.Tensor):
        return values.numel() * values.element_size()
    if isinstance(values, dict):
        values = values.values()
    return sum(_bytes(value) for value in values) if isinstance(values, (list, tuple, type({}.values()))) else 0


def prediction(kind: str, model: Any, processor: Any, images: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> Any:
    """From pictures to finished maps or objects of some sizes (height, width)."""
    with torch.inference_mode():
        features = processor(list(images), return_tensors="pt")
        if kind == "dense":
            output = model.generate(features["pixel_values"])
            return processor.post_process_dense(output, target_sizes=list(sizes))
        output = model.generate(features["pixel_values"])
        return processor.post_process_instance_segmentation(output, target_sizes=list(sizes), threshold=0.0)


def large_cases(kind: str, model: Any, processor: Any) -> dict[str, Prepare]:
    """One photograph, small and large, in memory and as a file, with results in the small and in its own size."""
    small, large = (SMALL[1], SMALL[0]), (MEGAPIXELS_20[1], MEGAPIXELS_20[0])

    def case(size: tuple[int, int], target: tuple[int, int], mode: str = "RGB", as_array: bool = False) -> Prepare:
        def prepare() -> Callable[[], Any]:
            image: Any = photo(size, mode)
            image = np.asarray(image) if as_array else image
            return partial(prediction, kind, model, processor, [image], [target])

        return prepare

    return {
        "small photo": case(SMALL, small),
        "20 megapixels": case(MEGAPIXELS_20, small),
        "20 megapixels, as an array": case(MEGAPIXELS_20, small, as_array=True),
        "20 megapixels, grey": case(MEGAPIXELS_20, small, "L"),
        "20 megapixels, results in its own size": case(MEGAPIXELS_20, large),
    }


def batch_case(kind: str, model: Any, processor: Any, count: int) -> Prepare:
    """A batch of mixed sizes, results in each one's own."""

    def prepare() -> Callable[[], Any]:
        images = [photo(MIXED[index % len(MIXED)]) for index in range(count)]
        sizes = [(image.height, image.width) for image in images]
        return partial(prediction, kind, model, processor, images, sizes)

    return prepare


def measure(name: str) -> list[str]:
    """Both tables of a model."""
    kind = MODELS[name]
    model = AutoModelForDepthEstimation.from_pretrained(REPOSITORY / "hub_configs" / name).eval()
    processor = load_processor(name, single=False)
    peaks = {case: peak_of(prepare) for case, prepare in large_cases(kind, model, processor).items()}
    small = peaks["small photo"]
    lines = [f"## {name}", "", "| photograph | peak beyond it | times the small one's |", "|---|---|---|"]
    lines += [f"| {case} | {peak / MIB:.0f} MiB | {peak / small:.2f} |" for case, peak in peaks.items()]
    lines += ["", "| batch of mixed sizes | peak | per picture |", "|---|---|---|"]
    for count in BATCHES:
        peak = peak_of(batch_case(kind, model, processor, count))
        lines.append(f"| {count} | {peak / MIB:.0f} MiB | {peak / count / MIB:.1f} MiB |")
    return [*lines, ""]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks" / "memory.md", help="the report")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    torch.set_num_threads(1)  # its threads would be lost by a fork
    start = time.perf_counter()
    sections = [line for name in MODELS for line in measure(name)]
    words = " ".join(sys.argv[1:] if arguments is None else arguments)
    lines = heading(
        "Memory of predictions", f"python -m benchmarks.soundness.memory {words}".strip(), time.perf_counter() - start
    )
    lines += [
        "",
        "Peak of resident memory from picture to finished result, float32, beyond the decoded picture (20 megapixels "
        f"are {MEGAPIXELS_20[0]} x {MEGAPIXELS_20[1]}, the small one is {SMALL[0]} x {SMALL[1]}) and beyond the "
        f"results themselves. A large photograph may take {LIMIT} times what the small one takes.",
        "",
    ]
    text = "\n".join([*lines, *sections])
    options.output.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
