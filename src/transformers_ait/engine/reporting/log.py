"""Where a run writes what it measures: JSON lines always, TensorBoard when installed, pictures as PNG."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..run_files import explain_full_disk, replace_text

LOG_FILE = "log.jsonl"


class RunLog:
    """Log of a run in `log.jsonl` and, when installed, TensorBoard.

    Lines hold no times, so that a resumed run writes what an uninterrupted one would.

    Args:
        folder: the run's folder.
        start: optimiser steps already done; later lines, of work that was lost, are removed.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self.folder = folder
        self.path = folder / LOG_FILE
        kept = [line for line in read_log(self.path) if line["step"] <= start]
        replace_text(self.path, "".join(_format(line) for line in kept))
        self.tensorboard = _tensorboard(folder / "tensorboard", start)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Add one line and one TensorBoard point per value.

        Raises:
            DiskFullError: the disk is full; a line that was cut off is dropped when the run goes on.
        """
        with explain_full_disk(self.folder), self.path.open("a") as file:
            file.write(_format({"step": step, "split": split, **values}))
        if self.tensorboard is not None:
            for name, value in values.items():
                self.tensorboard.add_scalar(f"{split}/{name}", value, step)

    def picture(self, step: int, picture: Image.Image) -> None:
        """Save an evaluation picture as `panels/step-N.png`.

        Raises:
            DiskFullError: the disk is full.
        """
        path = self.folder / "panels" / f"step-{step:08d}.png"
        temporary = path.with_name(f".{path.name}")
        with explain_full_disk(self.folder, temporary):
            path.parent.mkdir(exist_ok=True)
            picture.save(temporary, "PNG")
        os.replace(temporary, path)
        if self.tensorboard is not None:
            self.tensorboard.add_image("panel", np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        """Flush TensorBoard."""
        if self.tensorboard is not None:
            self.tensorboard.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Lines of a log file; none if it does not exist. A last line that was cut off is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _format(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"


def _tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start + 1)
