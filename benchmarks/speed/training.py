"""Time and weigh a training step against a plain formulation of the same model, and count samples per second.

    python -m benchmarks.speed.training                     # half-size model; part of `make bench`
    python -m benchmarks.speed.training --tiny --rounds 1   # a smoke test that takes seconds

A step is forward pass, losses, backward pass and AdamW, of the autoregressive depth model at 480 x 480, batch 1,
float32. Plain is `transformers_ait.conversion.plain`, differentiated by autograd, with PyTorch's unfused AdamW. Memory
is the peak of a process of its own that makes two steps, less what the process needs before the first. Samples are made
by the training pipelines of depth and instances, from JPEG and PNG bytes of rendered rooms, by one process.
"""

import argparse
import time
from collections.abc import Callable

import datasets
import torch
from torch import Tensor

from transformers_ait import AiTConfig, AiTForDenseAndInstancePrediction
from transformers_ait.conversion.plain.backbone import plain_backbone
from transformers_ait.conversion.plain.decoder import plain_encoder_memory
from transformers_ait.conversion.plain.prediction import plain_depth_losses
from transformers_ait.data import SyntheticRooms  # noqa: F401  (registers synthetic_rooms)
from transformers_ait.data.augmentation_dense import dense_training_transform
from transformers_ait.engine.recipes.scripts import InstanceAugmentationRecipe
from transformers_ait.engine.tasks.dense import augmented_dense_sample
from transformers_ait.engine.tasks.dense_data import DenseRows
from transformers_ait.engine.tasks.instance_data import InstanceRows
from transformers_ait.engine.tasks.instances import InstanceAugmentation
from transformers_ait.map_kinds_ait import MAP_KINDS

from .memory import SIDES, peaks, print_peak
from .models import original_form, tiny_config
from .plain import HEADER
from .report import conditions, report_path, table, write_report
from .setting import Setting, add_arguments, limited_threads, setting_of
from .timing import Comparison, compare

LEARNING_RATE = 1e-6  # both sides stay where they are, so that their losses can be compared
HALF_SIZE = {"embed_dim": 64, "num_heads": [2, 4, 8, 16]}
ROOMS = 16


def build(tiny: bool) -> AiTForDenseAndInstancePrediction:
    """A model with random weights in training mode, without dropout, which the plain formulation has not."""
    torch.manual_seed(0)
    values = tiny_config(parallel=False) if tiny else {"backbone_config": {"model_type": "ait_swinv2", **HALF_SIZE}}
    values["backbone_config"]["drop_path_rate"] = 0.0
    values["decoder_config"] = {"dropout": 0.0, "drop_path_rate": 0.0}
    return AiTForDenseAndInstancePrediction(AiTConfig(**values)).train()


def our_step(model: AiTForDenseAndInstancePrediction, image: Tensor, depth: Tensor) -> Callable[[], Tensor]:
    """A step as the training loop makes it; returns the loss."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)

    def step() -> Tensor:
        loss = model(image, task="depth", depth_labels=depth).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def plain_step(model: AiTForDenseAndInstancePrediction, image: Tensor, depth: Tensor) -> Callable[[], Tensor]:
    """The same step by the plain formulas, on copies of the weights."""
    tensors, config = original_form(model)
    frozen = ("depth_head.vqvae.",)
    weights = {
        name: tensor.clone().requires_grad_(tensor.is_floating_point() and not name.startswith(frozen))
        for name, tensor in tensors.items()
    }
    trained = [tensor for tensor in weights.values() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, foreach=False, fused=False)

    def step() -> Tensor:
        memory = plain_encoder_memory(weights, config, plain_backbone(weights, config, image))
        loss = plain_depth_losses(weights, config, memory, depth)["depth_loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


STEPS = dict(zip(SIDES, (plain_step, our_step), strict=True))


def inputs(model: AiTForDenseAndInstancePrediction) -> tuple[Tensor, Tensor]:
    """An image (1, 3, S, S) and a depth map (1, S, S) in metres, on the model's device."""
    size = model.config.image_size
    image, depth = torch.rand(1, 3, size, size), 1 + 5 * torch.rand(1, size, size)
    return image.to(model.device), depth.to(model.device)


def compare_steps(setting: Setting) -> Comparison:
    """Seconds per step of both, interleaved."""
    model = build(setting.tiny).to(setting.device)  # type: ignore[arg-type]
    data = inputs(model)
    return compare("training step", plain_step(model, *data), our_step(model, *data), setting, floor=1.5)


def single_step(side: str, setting: Setting) -> Callable[[], Tensor]:
    """A step of one side alone."""
    model = build(setting.tiny).to(setting.device)  # type: ignore[arg-type]
    return STEPS[side](model, *inputs(model))


def samples_per_second(tiny: bool) -> dict[str, float]:
    """Samples of the published recipes' pipelines, made by one process on one thread."""
    count, height, width = (2, 60, 80) if tiny else (ROOMS, 480, 640)
    rows = datasets.load_dataset(
        "synthetic_rooms", split="train", num_train=count, num_validation=0, num_test=0, height=height, width=width
    )
    kinds = {"depth": MAP_KINDS["depth"]}
    maps, objects = DenseRows(rows, kinds), InstanceRows(rows)
    transform = dense_training_transform(height, kinds)
    makers: dict[str, Callable[[int], object]] = {
        "depth, 480 x 640 to 480 x 480": lambda index: augmented_dense_sample(maps, index, transform),
        "instance, 480 x 640 to 640 x 640": InstanceAugmentation(objects, width, InstanceAugmentationRecipe()),
    }
    rates = {}
    with limited_threads(1):
        for name, make in makers.items():
            make(0)
            start = time.perf_counter()
            for index in range(2 * count):
                make(index % count)
            rates[name] = 2 * count / (time.perf_counter() - start)
    return rates


def main() -> None:
    """Parse arguments, run, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=3)
    parser.add_argument("--memory-of", choices=SIDES, default=None, help="print the peak memory of one side")
    arguments = parser.parse_args()
    setting = setting_of(arguments).in_float32
    if arguments.memory_of:
        print_peak(single_step(arguments.memory_of, setting), setting)
        return
    steps = compare_steps(setting)
    memory = peaks("benchmarks.speed.training", setting)
    plain, ours = (memory[side].beyond for side in SIDES)
    rates = samples_per_second(setting.tiny)
    lines = [
        *conditions(setting),
        "",
        *table(HEADER, [steps.cells()]),
        "",
        f"Peak memory of a step beyond weights and inputs: plain {plain:.2f} GB, ours {ours:.2f} GB, "
        f"{ours / plain:.2f} of plain (at most 0.7 is promised).",
        "",
        *(f"- {name}: {rate:.1f} samples/s by one process on one thread" for name, rate in rates.items()),
        "",
    ]
    output = arguments.output or report_path(setting, "training-")
    write_report("\n".join(lines), output)
    print("\n".join(["", *lines, f"Written to {output}."]))


if __name__ == "__main__":
    main()
