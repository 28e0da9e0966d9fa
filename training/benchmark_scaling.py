"""Images per second at growing batches."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from benchmark_models import build, build_instance
from benchmark_report import Measured, Part, significant, table
from benchmark_setting import Setting
from benchmark_timing import interleave
from tqdm import tqdm

from transformers_ait import AiTForDenseAndInstancePrediction

BATCHES = (1, 2, 4, 8, 16, 32)
TINY_BATCHES = (1, 2)
FEW_OBJECTS = 2
CUDA_GRAPHS = "AR base, CUDA graphs"
LEVEL = 0.9
# A CPU takes seconds per image, so that one large batch is an average by itself.
LARGEST_REPEATED_BATCH_ON_CPU = 4


def images_per_second(
    model: AiTForDenseAndInstancePrediction, name: str, options: dict[str, Any], setting: Setting
) -> dict[int, float]:
    """Rates of `model.generate` by batch size; ends early where a GPU's memory does.

    On a CPU the large batches run once, without a warm-up.
    """
    side, rates = model.config.image_size, {}
    for batch in tqdm(_batches(setting), desc=f"batches of {name}", leave=False):
        image = setting.images(batch, side, side)
        repeated = setting.on_gpu or batch <= LARGEST_REPEATED_BATCH_ON_CPU
        chosen = setting if repeated else replace(setting, rounds=1)
        runs = {name: partial(model.generate, image, **options)}
        try:
            timed = interleave(f"{name}, batch {batch}", runs, chosen, warm_up=repeated)
        except torch.cuda.OutOfMemoryError:
            break
        rates[batch] = batch / timed[name].median
    return rates


def worst_step(rates: dict[int, float]) -> float:
    """The least ratio of a batch's rate to the best rate at any smaller batch; 1 or more means growth throughout."""
    values = list(rates.values())
    best = itertools.accumulate(values, max)
    return min((rate / top for rate, top in zip(values[1:], best, strict=False)), default=1.0)


def measure(setting: Setting) -> Part:
    """AiT-P base, AR base, and base instances with few objects, at every batch size."""
    paths: dict[str, tuple[Callable[[], AiTForDenseAndInstancePrediction], dict[str, Any]]] = {
        "AiT-P base": (lambda: build(setting.tiny, parallel=True), {}),
        "AR base": (lambda: build(setting.tiny, parallel=False), {}),
        f"base instances, {FEW_OBJECTS} objects": (lambda: build_instance(setting.tiny), {"max_objects": FEW_OBJECTS}),
    }
    if setting.on_gpu:
        paths[CUDA_GRAPHS] = (lambda: build(setting.tiny, parallel=False), {"cuda_graphs": True})
    rates = {}
    for name, (make, options) in paths.items():
        rates[name] = images_per_second(setting.place(make()), name, options, setting)
        print(name, {batch: significant(rate) for batch, rate in rates[name].items()}, flush=True)
    worst = {name: worst_step(found) for name, found in rates.items()}
    batches = _batches(setting)
    rows = [[name, *_rate_cells(found, batches), verdict(worst[name])] for name, found in rates.items()]
    lines = [
        "Images/s of `generate`. Level: no batch is more than 10 % slower per image than the best smaller one.",
        "",
        *table(["path", *(f"batch {batch}" for batch in batches), "curve"], rows),
    ]
    return Part("Batch scaling", lines, {"scaling": Measured(min(worst.values())), **_gpu_rates(rates, setting)})


def _batches(setting: Setting) -> tuple[int, ...]:
    return TINY_BATCHES if setting.tiny else BATCHES


def _rate_cells(rates: dict[int, float], batches: tuple[int, ...]) -> list[str]:
    return [significant(rates[batch]) if batch in rates else "no memory" for batch in batches]


def verdict(worst: float) -> str:
    """A curve in words, by its `worst_step`."""
    if worst >= 1:
        return "grows"
    return f"level (worst step {worst:.2f}x)" if worst >= LEVEL else f"falls (worst step {worst:.2f}x)"


def _gpu_rates(rates: dict[str, dict[int, float]], setting: Setting) -> dict[str, Measured]:
    """The rates that are promised on a GPU: largest batch, bfloat16, the faster of the paths to the same result."""
    if not setting.on_gpu or setting.dtype != torch.bfloat16:
        return {}
    paths = {"gpu_parallel": ("AiT-P base",), "gpu_autoregressive": ("AR base", CUDA_GRAPHS)}
    device, batch = torch.cuda.get_device_name(setting.device), _batches(setting)[-1]
    measured = {}
    for key, names in paths.items():
        found = {name: rates[name][batch] for name in names if batch in rates[name]}
        if found:
            best = max(found, key=lambda name: found[name])
            measured[key] = Measured(found[best], f"{best}, {device}")
    return measured
