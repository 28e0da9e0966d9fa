"""The report: conditions first, then the numbers that the project promised beside those of this run, then the parts."""

import datetime
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .setting import DTYPES, Setting

ALLOCATOR_VARIABLES = ("MALLOC_", "LD_PRELOAD", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
PACKAGES = ("torch", "transformers", "timm")


@dataclass(frozen=True)
class Measured:
    """A number for the table of targets.

    Args:
        value: in the target's unit.
        note: what else to know, a few words.
    """

    value: float
    note: str = ""


@dataclass
class Part:
    """What one part of the benchmark found.

    Args:
        title: of its section.
        lines: Markdown.
        measured: numbers for the table of targets, by the targets' keys.
    """

    title: str
    lines: list[str]
    measured: dict[str, Measured] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A promised number.

    Args:
        key: what parts call it.
        part: the part that measures it.
        quantity: for the table.
        floor: what is promised; None where only an aim was set.
        aim: what is hoped for; None where only a floor was set.
        unit: stands behind every number of the row.
        at_most: smaller is better.
        needs_gpu: no number without a GPU.
    """

    key: str
    part: str
    quantity: str
    floor: float | None
    aim: float | None
    unit: str = "x"
    at_most: bool = False
    needs_gpu: bool = False

    def reached(self, value: float) -> str:
        """Which of aim and floor a value reaches."""
        for name, limit in (("aim", self.aim), ("floor", self.floor)):
            if limit is not None and (value <= limit if self.at_most else value >= limit):
                return name
        return "no"

    def row(self, measured: Measured | None, setting: Setting) -> list[str]:
        """Cells: quantity, floor, aim, measured here, reached."""
        bound = "at most " if self.at_most else ""
        limits = ["" if x is None else f"{bound}{x:g}{self.unit}" for x in (self.floor, self.aim)]
        if measured is None:
            missing = "needs a GPU" if self.needs_gpu and not setting.on_gpu else f"not measured (part {self.part})"
            return [self.quantity, *limits, missing, ""]
        note = f" ({measured.note})" if measured.note else ""
        return [self.quantity, *limits, f"{significant(measured.value)}{self.unit}{note}", self.reached(measured.value)]


LEVEL = 0.9  # of the best smaller batch's rate: a curve above it does not fall

TARGETS = (
    Target("backbone", "plain", "backbone base 480, float32: times as fast as plain", 3.5, 5),
    Target("ceiling", "plain", "the same: share of the measured matrix product's rate", None, 85, " %"),
    Target("backbone_bf16", "plain", "backbone base 480, bfloat16: times as fast as our float32", 1.5, 2.5),
    Target("autoregressive", "plain", "depth AR end to end, one window, float32: times as fast as plain", 3, 5),
    Target("parallel", "plain", "AiT-P end to end, one window: times its backbone's time", 1.15, 1.05, at_most=True),
    Target(
        "depth_anything",
        "rivals",
        "AiT-P base end to end: times Depth-Anything-V2 Base's time at 518",
        0.8,
        0.5,
        at_most=True,
    ),
    Target("depth_decode", "plain", "depth decode, 225 steps: times as fast as plain", 2.2, 4),
    Target("instance_decode", "plain", "instance decode, 2100 steps: times as fast as plain", 2.2, 5),
    Target("memory", "memory", "peak memory, base 480 inference: times plain's", 1, 0.5, at_most=True),
    Target("gpu_parallel", "scaling", "H200: AiT-P base, batch 32, bfloat16", 250, 600, " images/s", needs_gpu=True),
    Target("gpu_autoregressive", "scaling", "H200: AR base, batch 32, bfloat16", 60, 200, " images/s", needs_gpu=True),
    Target(
        "scaling",
        "scaling",
        "batch 1 to 32: images/s over the best at a smaller batch, the worst of every path",
        LEVEL,
        None,
    ),
)


def floor_of(key: str) -> float | None:
    """The promised number of a target."""
    return next(target.floor for target in TARGETS if target.key == key)


def significant(value: float) -> str:
    """Three significant digits, without an exponent for large numbers."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = (header, ["---"] * len(header), *rows)
    return [f"| {' | '.join(line)} |" for line in lines]


def targets_table(measured: Mapping[str, Measured], setting: Setting) -> list[str]:
    """Lines of the table of promised and measured numbers."""
    header = ("quantity", "floor", "aim", "measured here", "reached")
    return table(header, (target.row(measured.get(target.key), setting) for target in TARGETS))


def hardware(setting: Setting) -> str:
    """Name of the device, for the report's title and file name."""
    if setting.on_gpu:
        return torch.cuda.get_device_name(setting.device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores"


def _gpu_conditions(setting: Setting) -> list[str]:
    if not setting.on_gpu:
        return []
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    return [
        f"- CUDA {torch.version.cuda}, cuDNN {convolution.version()}; TF32: matrix products {matmul.allow_tf32}, "
        f"convolutions {convolution.allow_tf32}; cudnn.benchmark {convolution.benchmark}; synchronised before and after"
        " every run"
    ]


def conditions(setting: Setting) -> list[str]:
    """Lines that say under which conditions the numbers were taken."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    settings = {key: value for key, value in os.environ.items() if key.startswith(ALLOCATOR_VARIABLES)}
    allocator = ", ".join(f"{key}={value}" for key, value in settings.items()) or "default"
    dtype = next(name for name, dtype in DTYPES.items() if dtype == setting.dtype)
    return [
        f"# {hardware(setting)}",
        "",
        *(["**Tiny models: these numbers mean nothing.**", ""] if setting.tiny else []),
        f"- date: {datetime.date.today()}",
        f"- command: `{_command()}`",
        f"- versions: Python {platform.python_version()}, {versions}",
        f"- threads: {torch.get_num_threads()}; dtype: {dtype} and batch 1 where nothing else is said; "
        f"allocator: {allocator}",
        f"- medians of {setting.rounds} interleaved rounds (A B A B) after one warm-up each; random weights",
        *_gpu_conditions(setting),
    ]


def _command() -> str:
    """The command line of this process."""
    spec = sys.modules["__main__"].__spec__
    script = sys.argv[0] if spec is None else f"-m {spec.name.removesuffix('.__main__')}"
    return " ".join(["python", script, *sys.argv[1:]])


def full_report(parts: Sequence[Part], setting: Setting) -> str:
    """Conditions, the table of targets, then every part's section."""
    measured = {key: number for part in parts for key, number in part.measured.items()}
    sections = [line for part in parts for line in ("", f"## {part.title}", "", *part.lines)]
    return "\n".join(
        [*conditions(setting), "", "## Numbers to reach", "", *targets_table(measured, setting), *sections, ""]
    )


def report_path(setting: Setting, prefix: str = "") -> Path:
    """Where a report goes: benchmarks/<prefix><hardware>-<threads>t-<date>.md."""
    slug = "".join(c if c.isalnum() else "-" for c in hardware(setting).lower()).replace("--", "-")
    return Path("benchmarks") / f"{prefix}{slug}-{torch.get_num_threads()}t-{datetime.date.today()}.md"


def write_report(text: str, output: Path) -> None:
    """Write the report, its folder included."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)
