"""Training checkpoints that are complete or absent, and from which a run goes on exactly where it was."""

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

MANIFEST = "manifest.json"
_PREFIX = "step-"


def checkpoint_step(checkpoint: Path) -> int:
    """Optimiser steps that had been done when the checkpoint was written."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, keep: int) -> Path:
    """Save everything that `accelerator` prepared or registered, and drop the oldest checkpoints.

    The checkpoint is written beside its place and moved there when it is whole. Every process must call this.

    Args:
        accelerator: holds model, optimiser, scheduler, random states and registered objects.
        folder: the run's folder of checkpoints.
        step: optimiser steps done.
        keep: number of the latest checkpoints to leave.

    Returns:
        The checkpoint's folder.
    """
    final = folder / f"{_PREFIX}{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        files = {path.name: _digest(path) for path in sorted(temporary.rglob("*")) if path.is_file()}
        manifest = {"num_processes": accelerator.num_processes, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        replace_folder(temporary, final)
        for old in _checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> None:
    """Restore what `save_checkpoint` saved; every process must call this."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    if manifest["num_processes"] != accelerator.num_processes:
        warnings.warn(
            f"{checkpoint} was written by {manifest['num_processes']} processes and goes on with "
            f"{accelerator.num_processes}: data order and weights carry over, dropout will differ.",
            stacklevel=2,
        )
    accelerator.load_state(str(checkpoint))


def latest_checkpoint(folder: Path) -> Path | None:
    """The latest undamaged checkpoint in `folder`, None if there is none; damaged ones are named in a warning."""
    for checkpoint in reversed(_checkpoints(folder)):
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint
        warnings.warn(f"Checkpoint {checkpoint} is damaged ({damage}); trying the one before it.", stacklevel=2)
    return None


def latest_checkpoint_for_all(folder: Path, accelerator: Accelerator) -> Path | None:
    """`latest_checkpoint`, found by the main process on behalf of all."""
    found = [latest_checkpoint(folder) if accelerator.is_main_process else None]
    return broadcast_object_list(found)[0]


def replace_folder(temporary: Path, final: Path) -> None:
    """Move a finished folder to its place; one that was there goes away only then."""
    stale = final.with_name(f".{final.name}.old")
    shutil.rmtree(stale, ignore_errors=True)
    if final.exists():
        os.replace(final, stale)
    os.replace(temporary, final)
    shutil.rmtree(stale, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that it is never seen half-written."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in the order of their steps."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit())


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if nothing is."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    for name, digest in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if _digest(path) != digest:
            return f"{name} has changed or is cut off"
    return None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
