"""Peak memory of a computation, in a process of its own, of which nothing else can be a part."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .setting import Setting

SIDES = ("plain", "ours")
PROCESS_STATUS = Path("/proc/self/status")
PEAK_RESET = Path("/proc/self/clear_refs")
REPETITIONS = 2


@dataclass(frozen=True)
class Peak:
    """Peak memory of a process, or on a GPU of its tensors.

    Args:
        total: GB, weights, inputs and on a CPU the libraries included.
        beyond: GB, beyond what was held before the computation.
    """

    total: float
    beyond: float


def measure_peak(run: Callable[[], object], setting: Setting) -> Peak:
    """Call `run` twice and weigh it; the process must have done nothing larger before.

    Raises:
        OSError: a CPU's memory is weighed, and this is no Linux.
    """
    before = _reset(setting)
    for _ in range(REPETITIONS):
        run()
    peak = _peak(setting)
    return Peak(peak / 1e9, (peak - before) / 1e9)


def _reset(setting: Setting) -> int:
    """Forget earlier peaks; bytes held now."""
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats(setting.device)
        return torch.cuda.memory_allocated(setting.device)
    if not PROCESS_STATUS.exists():
        raise OSError(f"Peak memory is read from {PROCESS_STATUS}, which only Linux has; leave the part out.")
    PEAK_RESET.write_text("5")
    return _status("VmRSS")


def _peak(setting: Setting) -> int:
    if setting.on_gpu:
        setting.synchronize()
        return torch.cuda.max_memory_allocated(setting.device)
    # Not getrusage, whose peak a new process takes over from the one that starts it.
    return _status("VmHWM")


def _status(name: str) -> int:
    """A size of this process in bytes."""
    line = next(line for line in PROCESS_STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def print_peak(run: Callable[[], object], setting: Setting) -> None:
    """Print what `peak_in_process` reads."""
    peak = measure_peak(run, setting)
    print(peak.total, peak.beyond)


def peak_in_process(module: str, side: str, setting: Setting) -> Peak:
    """Peak memory of `python -m module --memory-of side`, which calls `print_peak`.

    Raises:
        RuntimeError: the module failed; its last words are in the message.
    """
    options = ["--device", setting.device.type, "--threads", str(torch.get_num_threads())]
    command = [sys.executable, "-m", module, "--memory-of", side, *options, *(["--tiny"] if setting.tiny else [])]
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}  # it finds what this process finds
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | path)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed: {done.stderr[-2000:]}")
    total, beyond = done.stdout.splitlines()[-1].split()
    return Peak(float(total), float(beyond))


def peaks(module: str, setting: Setting) -> dict[str, Peak]:
    """Peak memory of both sides, each in a process of its own."""
    return {side: peak_in_process(module, side, setting) for side in SIDES}
