"""Where and how a benchmark runs: device, number type, threads, rounds, and the arguments that choose them.

All handling of devices is here and in `memory`.
"""

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Setting:
    """Conditions that every measurement of a run shares.

    Args:
        device: where models and inputs live.
        dtype: of models and inputs, except where a comparison names its own.
        rounds: timed rounds after one warm-up.
        tiny: models that run in milliseconds, to see that everything works; their numbers mean nothing.
    """

    device: torch.device
    dtype: torch.dtype
    rounds: int
    tiny: bool

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA one."""
        return self.device.type == "cuda"

    @property
    def in_float32(self) -> "Setting":
        """The same setting in float32, in which results are compared."""
        return replace(self, dtype=torch.float32)

    def synchronize(self) -> None:
        """Wait until the device has done everything asked of it; a CPU has."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def place(self, model: Any) -> Any:
        """Move a model to the device, in evaluation mode and in the setting's dtype.

        The tokenizers of this package's models stay in float32, as `from_pretrained` leaves them.
        """
        network: nn.Module = model.model if hasattr(model, "depth_tokenizer") else model
        network.to(self.dtype)
        return model.eval().to(self.device)

    def images(self, batch: int, height: int, width: int) -> torch.Tensor:
        """Random images (batch, 3, height, width) in [0, 1] on the device, in the setting's dtype."""
        return torch.rand(batch, 3, height, width).to(self.device, self.dtype)


@contextlib.contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Run the body on `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def add_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add the arguments that `setting_of` reads, and `--output`."""
    parser.add_argument("--rounds", type=int, default=rounds, help="interleaved rounds per comparison")
    parser.add_argument("--threads", type=int, default=None, help="torch threads; default: all cores")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to see that everything runs")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None, help="default: cuda where there is one")
    parser.add_argument("--output", type=Path, default=None, help="report file; default: in benchmarks/")


def setting_of(arguments: argparse.Namespace) -> Setting:
    """The setting that parsed arguments ask for; sets the number of threads.

    Raises:
        ValueError: no round at all, or CUDA where there is none.
    """
    if arguments.rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {arguments.rounds}.")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a CUDA device and a build of torch for it; use --device cpu.")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = getattr(arguments, "dtype", None) or ("bfloat16" if device.type == "cuda" else "float32")
    return Setting(device, DTYPES[name], arguments.rounds, arguments.tiny)
