"""Images per second at growing batches, each timed beside single images, so that a drifting machine bends no curve."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from transformers_ait import AiTForDenseAndInstancePrediction

from .models import build, build_instance
from .report import LEVEL, Measured, Part, significant, table
from .setting import Setting
from .timing import interleave

BATCHES = (1, 2, 4, 8, 16, 32)
TINY_BATCHES = (1, 2)
FEW_OBJECTS = 2
CUDA_GRAPHS = "AR base, CUDA graphs"
# A CPU takes seconds per image, so that one large batch is an average by itself.
LARGEST_REPEATED_BATCH_ON_CPU = 4


def images_per_second(
    model: AiTForDenseAndInstancePrediction, name: str, options: dict[str, Any], setting: Setting
) -> tuple[dict[int, float], dict[int, float]]:
    """Rates of `model.generate` by batch size, and how many times the rate of single images timed just before and after
    they are; ends early where a GPU's memory does.

    On a CPU the large batches run once, without a warm-up.
    """
    side = model.config.image_size
    rates: dict[int, float] = {}
    gains: dict[int, float] = {}
    single = partial(model.generate, setting.images(1, side, side), **options)
    for batch in tqdm(_batches(setting), desc=f"batches of {name}", leave=False):
        image = setting.images(batch, side, side)
        repeated = setting.on_gpu or batch <= LARGEST_REPEATED_BATCH_ON_CPU
        chosen = setting if repeated else replace(setting, rounds=1)
        runs = {"before": single, "batch": partial(model.generate, image, **options), "after": single}
        try:
            timed = interleave(f"{name}, batch {batch}", runs, chosen, warm_up=repeated)
        except torch.cuda.OutOfMemoryError:
            break
        rates[batch] = batch / timed["batch"].median
        gains[batch] = rates[batch] * (timed["before"].median + timed["after"].median) / 2
    return rates, gains


def worst_step(rates: dict[int, float]) -> float:
    """The least ratio of a batch's rate, or gain, to the best at any smaller batch; 1 or more is growth throughout."""
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
    rates: dict[str, dict[int, float]] = {}
    worst, rows, batches = {}, [], _batches(setting)
    for name, (make, options) in paths.items():
        rates[name], gains = images_per_second(setting.place(make()), name, options, setting)
        worst[name] = worst_step(gains)
        rows.append([name, *_cells(rates[name], gains, batches), verdict(worst[name])])
        print(" | ".join(rows[-1]), flush=True)
    lines = [
        "Images/s of `generate`; in brackets, times the rate of single images timed just before and after. Level: no "
        "batch's bracket is more than 10 % below the best smaller batch's.",
        "",
        *table(["path", *(f"batch {batch}" for batch in batches), "curve"], rows),
    ]
    return Part("Batch scaling", lines, {"scaling": Measured(min(worst.values())), **_gpu_rates(rates, setting)})


def _batches(setting: Setting) -> tuple[int, ...]:
    return TINY_BATCHES if setting.tiny else BATCHES


def _cells(rates: dict[int, float], gains: dict[int, float], batches: tuple[int, ...]) -> list[str]:
    return [f"{significant(rates[b])} ({gains[b]:.2f}x)" if b in rates else "no memory" for b in batches]


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
