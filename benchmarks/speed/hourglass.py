"""How much faster models get by the hourglass, measured side by side: whole, pruned, whole, pruned ...

    python -m benchmarks.speed.hourglass            # MixSTE, MotionBERT, AiT-P base at 480 pixels, a ViT
    python -m benchmarks.speed.hourglass --repeats 15

Weights are random: they do not matter for the time, and nothing can be said about results with them.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from transformers import ViTConfig, ViTModel

from transformers_ait import (
    AiTConfig,
    AiTForDenseAndInstancePrediction,
    HourglassForPoseLifting,
    HourglassPoseConfig,
    add_hourglass,
)

HUB_CONFIGS = Path(__file__).resolve().parents[2] / "hub_configs"
RECIPES = HUB_CONFIGS.parent / "training" / "recipes"


def seconds(call: Callable[[], object]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def report(name: str, whole: Callable[[], object], pruned: Callable[[], object], repeats: int) -> None:
    """Print both medians and the median ratio of neighbouring calls."""
    pairs = [(seconds(whole), seconds(pruned)) for _ in range(repeats + 1)][1:]
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{name}: whole {first:.2f} s, pruned {second:.2f} s, ratio {ratio:.2f}", flush=True)


def poses(recipe: str, repeats: int) -> None:
    """A sequence through the model of a recipe."""
    settings = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())["model"]["config"]
    config = HourglassPoseConfig(**settings)
    full = HourglassPoseConfig(**{**settings, "prune_before": [], "num_kept_frames": []})
    models = [HourglassForPoseLifting(c).eval() for c in (full, config)]
    x = torch.randn(1, config.num_frames, config.num_joints, config.input_size)
    name = f"{config.architecture}, {config.num_kept_frames[0]} of {config.num_frames} frames"
    report(name, lambda: models[0](x), lambda: models[1](x), repeats)


def depth_models(repeats: int) -> None:
    """AiT-P base end to end: pixels to depth, one image of 480 x 480."""
    torch.manual_seed(0)
    config = AiTConfig.from_pretrained(HUB_CONFIGS / "ait-p-swinv2-base-depth")
    model, image = AiTForDenseAndInstancePrediction(config).eval(), torch.rand(1, 3, 480, 480)
    for before, cells in ((2, 15), (6, 15), (2, 20), (9, 20)):

        def pruned(before: int = before, cells: int = cells) -> None:
            handle = add_hourglass(model, before, (cells, cells))
            model.generate(image)
            handle.remove()

        name = f"AiT-P base, {cells} x {cells} of 30 x 30 tokens before block {before} of 18"
        report(name, lambda: model.generate(image), pruned, repeats)


def vits(repeats: int) -> None:
    """ViT-B/16 at 384 pixels."""
    model, image = ViTModel(ViTConfig(image_size=384)).eval(), torch.rand(1, 3, 384, 384)

    def pruned() -> None:
        handle = add_hourglass(model, 3, (12, 12))
        model(image)
        handle.remove()

    report("ViT-B/16 at 384, 12 x 12 of 24 x 24 tokens before block 3 of 12", lambda: model(image), pruned, repeats)


@torch.no_grad()
def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7, help="pairs per figure, after one that does not count")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.repeats} pairs")
    poses("pose-mixste-hourglass", options.repeats)
    poses("pose-motionbert-hourglass", options.repeats)
    depth_models(options.repeats)
    vits(options.repeats)


if __name__ == "__main__":
    main()
