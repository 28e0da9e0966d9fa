"""Peak memory of a prediction beside the plain formulation's, each in a process of its own.

python -m benchmarks.speed.footprint --memory-of ours   # such a process: GB in all, and beyond weights
"""

import argparse
from collections.abc import Callable

import torch

from transformers_ait.conversion.plain.prediction import plain_predict_depth

from .memory import SIDES, peaks, print_peak
from .models import build, original_form
from .report import Measured, Part, table
from .setting import Setting, add_arguments, setting_of


def prediction(side: str, setting: Setting) -> Callable[[], torch.Tensor]:
    """One autoregressive depth prediction of the base model, plain or ours, in float32."""
    setting = setting.in_float32
    model = setting.place(build(setting.tiny, parallel=False))
    image = setting.images(1, model.config.image_size, model.config.image_size)
    if side == "ours":
        return lambda: model.generate(image).predicted_depth
    tensors, config = original_form(model)
    return lambda: plain_predict_depth(tensors, config, image)


def measure(setting: Setting) -> Part:
    """Peak memory of a prediction on both sides."""
    found = peaks("benchmarks.speed.footprint", setting)
    plain, ours = (found[side] for side in SIDES)
    rows = [(side, f"{found[side].total:.2f} GB", f"{found[side].beyond:.2f} GB") for side in SIDES]
    lines = [
        "Autoregressive depth of one image, float32; each side in a process of its own. The ratio that is promised is "
        f"that of the last column, {ours.beyond / plain.beyond:.2f}; of the whole peak it is "
        f"{ours.total / plain.total:.2f}.",
        "",
        *table(("side", "peak", "beyond weights and inputs"), rows),
    ]
    note = f"{ours.total / plain.total:.2f}x with weights and libraries"
    return Part("Peak memory", lines, {"memory": Measured(ours.beyond / plain.beyond, note)})


def main() -> None:
    """Weigh one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=1)
    parser.add_argument("--memory-of", choices=SIDES, required=True, help="the side to weigh")
    arguments = parser.parse_args()
    setting = setting_of(arguments)
    with torch.no_grad():
        print_peak(prediction(arguments.memory_of, setting), setting)


if __name__ == "__main__":
    main()
