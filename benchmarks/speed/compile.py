"""What torch.compile gains, and the time that it takes first."""

import copy

import torch

from .models import build
from .report import Part, table
from .setting import Setting
from .timing import Run, interleave, milliseconds, seconds

HEADER = ("what", "as it is (A)", "compiled (B)", "A / B", "first call")


def measure(setting: Setting) -> Part:
    """The backbone, and the autoregressive decode whose step is compiled."""
    model = setting.place(build(setting.tiny, parallel=False))
    side = model.config.image_size
    image = setting.images(1, side, side)
    memory = model.get_encoder_memory(image)
    backbone = model.model.backbone
    compiled = copy.deepcopy(backbone)
    compiled.compile(fullgraph=True)
    pairs: dict[str, tuple[Run, Run]] = {
        "backbone": (lambda: backbone(image), lambda: compiled(image)),
        f"depth from its memory, {model.config.sequence_length('depth')} steps": (
            lambda: model.generate(image, encoder_memory=memory),
            lambda: model.generate(image, encoder_memory=memory, compiled=True),
        ),
    }
    torch.compiler.reset()  # so that the first call compiles, whatever ran before
    rows = []
    for name, (plain, fast) in pairs.items():
        first = seconds(fast, setting)
        timed = interleave(name, {"plain": plain, "compiled": fast}, setting)
        before, after = timed["plain"].median, timed["compiled"].median
        rows.append((name, milliseconds(before), milliseconds(after), f"{before / after:.2f}x", f"{first:.0f} s"))
        print(" | ".join(rows[-1]), flush=True)
    lines = ["One image. The first call compiles; results agree, which the tests show.", "", *table(HEADER, rows)]
    return Part("torch.compile", lines)
