"""What stands at the head of a report: command, hardware, versions, date."""

import datetime
import importlib.metadata
import platform
import subprocess

import torch

PACKAGES = ("torch", "torchvision", "transformers", "pillow")


def hardware() -> str:
    """The processor as lscpu names it."""
    try:
        text = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return platform.processor() or platform.machine()
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return f"{lines.get('Model name', '?').strip()}, {lines.get('CPU(s)', '?').strip()} cores"


def heading(title: str, command: str, seconds: float) -> list[str]:
    """First lines of a report."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return [
        f"# {title}",
        "",
        f"- command: `{command}`, {seconds:.0f} s",
        f"- date: {datetime.date.today()}",
        f"- hardware: {hardware()}, {torch.get_num_threads()} threads",
        f"- versions: Python {platform.python_version()}, {versions}",
    ]
