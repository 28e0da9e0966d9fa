"""Many varied pictures through the released tiny models in float32, bfloat16 and float16: no NaN, and how far apart.

    python -m benchmarks.soundness.precision                # 1,000 pictures, writes benchmarks/precision.md
    python -m benchmarks.soundness.precision --count 20 --output /tmp/precision.md

Photographs lie in `shared/` beside the repository, or where AIT_SHARED_DIR says.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModelForDepthEstimation
from transformers.utils import logging

import transformers_ait  # noqa: F401 - registers the models

from .conditions import heading
from .pictures import REPOSITORY, Picture, pictures

MODELS = {
    "ait-lite-nyu": ("", ("depth", "normals", "semantic")),
    "ait-tiny-rooms": ("depth", ("depth", "normals", "semantic")),
    "ait-tiny-rooms-instance": ("", ("instance",)),
}
"""Folder of hub_configs to the subfolder of its image processor, and its tasks."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BATCH = 20
Figures = dict[str, list[float]]


def load_models(name: str) -> dict[str, Any]:
    """One model per dtype."""
    folder = REPOSITORY / "hub_configs" / name
    return {dtype: AutoModelForDepthEstimation.from_pretrained(folder, dtype=DTYPES[dtype]).eval() for dtype in DTYPES}


def load_processor(name: str, single: bool = True) -> Any:
    """The image processor; a dense one makes a single view per picture, or what its folder says."""
    processor = AutoImageProcessor.from_pretrained(REPOSITORY / "hub_configs" / name, subfolder=MODELS[name][0])
    if single and hasattr(processor, "num_windows"):
        processor.num_windows, processor.do_flip_augment = 1, False
    return processor


class ProductsInFloat32(TorchDispatchMode):
    """Convolutions and matrix products of half-precision numbers, summed up in float32 and rounded at the end.

    That is what GPUs and CPUs with kernels for them do. Without, PyTorch takes a hundred times as long on a CPU.
    """

    OPERATORS = ("conv2d", "conv_transpose2d", "convolution", "linear", "matmul", "addmm", "mm", "bmm", "baddbmm")

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operator, on wider numbers where it is one of these."""
        halves = [x.dtype for x in args if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)]
        if not halves or function.overloadpacket.__name__ not in self.OPERATORS:
            return function(*args, **(kwargs or {}))
        wide = [x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
        return function(*wide, **(kwargs or {})).to(halves[0])


def predict(model: Any, pixels: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
    """Every number that a prediction holds, by name."""
    with ProductsInFloat32():
        # Greedily, as chance would hide what precision does.
        output = model.generate(pixels.to(model.dtype), task=tasks[0] if len(tasks) == 1 else list(tasks), top_p=0.0)
    if tasks == ("instance",):
        names = ("boxes", "scores", "class_labels", "mask_values")
        return {name: output[name] for name in names if output.get(name) is not None}
    return {task: output.dense_maps[task] for task in tasks}


def not_finite(found: dict[str, Tensor]) -> list[str]:
    """Names of what holds NaN or infinity."""
    return [name for name, values in found.items() if values.is_floating_point() and not values.isfinite().all()]


def deviations(found: dict[str, Tensor], exact: dict[str, Tensor]) -> Figures:
    """How far a prediction is from that in float32, a number per picture."""
    figures: Figures = {}
    if "depth" in exact:
        # Below a centimetre nothing is measured, and a ratio means nothing.
        relative = (found["depth"].float() / exact["depth"].clamp(min=0.01) - 1).abs().flatten(1)
        figures["depth, mean relative difference"] = relative.mean(1).tolist()
        figures["depth, largest relative difference"] = relative.amax(1).tolist()
    if "normals" in exact:
        cosine = torch.cosine_similarity(found["normals"].float(), exact["normals"].float(), dim=1).clamp(-1, 1)
        figures["normals, mean angle in degrees"] = cosine.acos().rad2deg().flatten(1).mean(1).tolist()
    if "semantic" in exact:
        changed = found["semantic"].argmax(1) != exact["semantic"].argmax(1)
        figures["classes, share of pixels that change"] = changed.flatten(1).float().mean(1).tolist()
    if "scores" in exact:
        difference = (found["scores"].float() - exact["scores"].float()).abs()
        figures["objects, mean difference of scores"] = difference.mean(1).tolist()
        figures["objects, largest difference of scores"] = difference.amax(1).tolist()
        changed = (found["class_labels"] != exact["class_labels"]) & (exact["scores"] > 0.5)
        certain = (exact["scores"] > 0.5).sum(1)
        share = changed.sum(1) / certain.clamp(min=1)
        figures["objects above 0.5, share whose class changes"] = share[certain > 0].tolist()
    return figures


def batched_pictures(source: Iterator[Picture]) -> Iterator[tuple[Picture, ...]]:
    """As `itertools.batched`, which Python 3.11 has not."""
    held: list[Picture] = []
    for picture in source:
        held.append(picture)
        if len(held) == BATCH:
            yield tuple(held)
            held = []
    if held:
        yield tuple(held)


def run(count: int, seed: int) -> tuple[dict[tuple[str, str], Figures], list[str], dict[str, int]]:
    """All pictures through all models in all dtypes.

    Returns:
        Figures by model and dtype, what is not finite, and the number of pictures of each kind.
    """
    models = {name: load_models(name) for name in MODELS}
    processors = {name: load_processor(name) for name in MODELS}
    figures: dict[tuple[str, str], Figures] = defaultdict(lambda: defaultdict(list))
    broken: list[str] = []
    kinds: dict[str, int] = defaultdict(int)
    with tqdm(total=count, unit="picture", disable=None) as bar:
        for group in batched_pictures(pictures(count, seed)):
            for picture in group:
                kinds[picture.kind] += 1
            for name, (_, tasks) in MODELS.items():
                pixels = processors[name]([picture.image for picture in group], return_tensors="pt")["pixel_values"]
                exact: dict[str, Tensor] = {}
                for dtype, model in models[name].items():
                    found = predict(model, pixels, tasks)
                    exact = exact or found
                    for wrong in not_finite(found):
                        broken.append(f"{name}, {dtype}, {wrong}: {[picture.name for picture in group]}")
                    for figure, values in deviations(found, exact).items():
                        figures[name, dtype][figure] += values
            bar.update(len(group))
    return figures, broken, kinds


def report(
    figures: dict[tuple[str, str], Figures], broken: list[str], kinds: dict[str, int], command: str, seconds: float
) -> str:
    """The report."""
    rows = []
    for (name, dtype), found in figures.items():
        if dtype == "float32":
            continue
        for figure, values in found.items():
            numbers = torch.tensor(values, dtype=torch.float64)
            cells = (numbers.mean(), numbers.quantile(0.5), numbers.quantile(0.99), numbers.max())
            rows.append(f"| {name} | {dtype} | {figure} | " + " | ".join(f"{x.item():.2g}" for x in cells) + " |")
    lines = [
        *heading("Half precision beside float32", command, seconds),
        "",
        f"{sum(kinds.values())} pictures ({', '.join(f'{count} {kind}' for kind, count in kinds.items())}) in batches "
        f"of {BATCH} of mixed sizes, one view each. Not finite: {len(broken)} predictions.",
        "",
        "Per picture one number; the columns are over pictures. Tokenizers stay in float32, as `from_pretrained` "
        "leaves them. Convolutions and matrix products take half-precision numbers, sum up in float32 and round, as "
        "GPUs do. Objects are decoded greedily and compared in their order; where one coordinate is read differently, "
        "all later ones may be.",
        "",
        "| model | dtype | figure | mean | median | 99 % | largest |",
        "|---|---|---|---|---|---|---|",
        *rows,
        *(["", "## Not finite", "", *(f"- {line}" for line in broken)] if broken else []),
    ]
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and write the report; 1 where anything is not finite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="pictures; default: 1000")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks" / "precision.md", help="the report")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    start = time.perf_counter()
    with torch.inference_mode():
        figures, broken, kinds = run(options.count, options.seed)
    words = " ".join(sys.argv[1:] if arguments is None else arguments)
    command = f"python -m benchmarks.soundness.precision {words}".strip()
    text = report(figures, broken, kinds, command, time.perf_counter() - start)
    options.output.write_text(text)
    print(text)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
