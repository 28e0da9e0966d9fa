"""Where the backbone's time goes, operator by operator, and how far each kind of product is from the plain one."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile

from .models import build
from .report import Part, table
from .setting import Setting
from .timing import interleave, matrix_product, milliseconds

KINDS = {
    "linear layers": ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::linear", "mkldnn"),
    "attention kernel": ("scaled_dot_product", "flash_attention"),
    "softmax": ("softmax",),
    "norms": ("layer_norm", "aten::norm", "linalg_vector_norm", "normalize"),
    "GELU": ("gelu",),
    "convolution": ("conv",),
    "copies and gathers": ("copy_", "clone", "index", "roll", "cat", "contiguous", "_to_copy", "constant_pad"),
    "sums and products by element": ("aten::add", "aten::mul", "aten::div", "aten::sub", "clamp", "exp"),
}
"""Kinds of operators by parts of their names; the first that fits holds, `other` where none does."""
OTHER = "other"
HEADER = ("kind", "calls", "time", "share", "GFLOP", "of the product's rate")


@dataclass
class Spent:
    """What the operators of a kind took in one pass.

    Args:
        calls: number of calls.
        seconds: in the operators themselves, without those that they call.
        flops: of their products; 0 where PyTorch counts none.
    """

    calls: int = 0
    seconds: float = 0.0
    flops: int = 0


def kind_of(operator: str) -> str:
    """Kind of an operator, by its name in PyTorch's profiler."""
    return next((kind for kind, parts in KINDS.items() if any(part in operator for part in parts)), OTHER)


def by_kind(events: Iterable[Any], passes: int) -> dict[str, Spent]:
    """Time per pass of each kind, longest first, of a profile's averaged events over so many passes."""
    spent: dict[str, Spent] = defaultdict(Spent)
    for event in events:
        kind = spent[kind_of(event.key)]
        kind.calls += event.count // passes
        kind.seconds += event.self_cpu_time_total / 1e6 / passes
        kind.flops += int(event.flops) // passes
    return dict(sorted(spent.items(), key=lambda item: -item[1].seconds))


def measure(setting: Setting) -> Part:
    """One pass of the backbone over one image, profiled `setting.rounds` times after a warm-up."""
    model = setting.place(build(setting.tiny, parallel=True))
    side = model.config.image_size
    image = setting.images(1, side, side)
    backbone = model.model.backbone
    backbone(image)
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiled:
        for _ in range(setting.rounds):
            backbone(image)
    spent = by_kind(profiled.key_averages(), setting.rounds)
    product, product_flops = matrix_product(setting)
    ceiling = product_flops / interleave("product", {"product": product}, setting)["product"].median
    whole = sum(kind.seconds for kind in spent.values())
    rows = [_cells(name, kind, whole, ceiling) for name, kind in spent.items()]
    rows.append(_cells("all", _sum(spent.values()), whole, ceiling))
    lines = [
        f"One pass of the backbone, {side} x {side}, profiled; the profiler's own cost is in it. Of operators that run "
        "on a GPU, the launch alone is seen.",
        "",
        *table(HEADER, rows),
    ]
    return Part("Operators of the backbone", lines)


def _sum(kinds: Iterable[Spent]) -> Spent:
    kinds = list(kinds)
    return Spent(sum(k.calls for k in kinds), sum(k.seconds for k in kinds), sum(k.flops for k in kinds))


def _cells(name: str, kind: Spent, whole: float, ceiling: float) -> list[str]:
    share = f"{100 * kind.seconds / max(whole, 1e-12):.1f} %"
    rate = f"{100 * kind.flops / max(kind.seconds, 1e-12) / ceiling:.0f} %" if kind.flops else ""
    flops = f"{kind.flops / 1e9:.1f}" if kind.flops else ""
    return [name, str(kind.calls), milliseconds(kind.seconds), share, flops, rate]
