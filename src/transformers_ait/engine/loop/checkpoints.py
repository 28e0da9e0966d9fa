"""Training checkpoints that are complete or absent, and from which a run goes on exactly where it was."""

import errno
import hashlib
import json
import pickle
import warnings
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, load
from torch import nn

from ..recipes.reading import RecipeError
from ..run_files import (
    PREFIX,
    DiskFullError,
    checkpoints_in,
    drop_old,
    explain_full_disk,
    free_bytes,
    full_message,
    readable_size,
    remove_partial,
    replace_folder,
)

MANIFEST = "manifest.json"
# Random states, schedule, progress and manifest, which are small whatever the model.
_SMALL_FILES = 1 << 16


def checkpoint_step(checkpoint: Path) -> int:
    """Optimiser steps that had been done when the checkpoint was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def checkpoint_size(model: nn.Module, averaged: bool = False) -> int:
    """Bytes of a checkpoint, about: weights and buffers, and AdamW's two moving averages of all that is trained.

    Args:
        model: what is trained.
        averaged: whether the run keeps a moving average of its weights and buffers too.
    """
    stored = sum(x.numel() * x.element_size() for x in model.state_dict().values())
    trained = sum(x.numel() * x.element_size() for x in model.parameters() if x.requires_grad)
    return stored * (2 if averaged else 1) + 2 * trained + _SMALL_FILES


def check_disk_space(folder: Path, needed: int, keep: int, accelerator: Accelerator) -> None:
    """Check that checkpoints will fit, before training; the main process looks on behalf of all.

    A disk that holds one, but not all that the run would keep and the one being written, is warned of.

    Args:
        folder: the run's folder of checkpoints; it need not exist.
        needed: bytes of a checkpoint, as `checkpoint_size`.
        keep: number of checkpoints that stay.
        accelerator: the processes.

    Raises:
        DiskFullError: not even one fits.
    """
    problem = [_missing_space(folder, needed, keep) if accelerator.is_main_process else None]
    message = broadcast_object_list(problem)[0]
    if message is not None:
        raise DiskFullError(errno.ENOSPC, message)


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, keep: int, needed: int = 0) -> Path:
    """Save everything that `accelerator` prepared or registered, and drop the oldest checkpoints.

    The checkpoint is written beside its place and moved there when it is whole. Every process must call this.

    Args:
        accelerator: holds model, optimiser, scheduler, random states and registered objects.
        folder: the run's folder of checkpoints.
        step: optimiser steps done.
        keep: number of the latest checkpoints to leave.
        needed: bytes of a checkpoint, as `checkpoint_size`, for the error of a full disk; 0 if not known.

    Returns:
        The checkpoint's folder.

    Raises:
        DiskFullError: the disk is full; the partial checkpoint is removed, those before it stay.
    """
    final = folder / f"{PREFIX}{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    if accelerator.is_main_process:
        # Of any step: a run that was killed while it wrote may come by with another interval.
        remove_partial(folder)
        with explain_full_disk(folder, temporary, needed):
            temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    # A process that fails ends alone; its launcher then ends the others, which wait for it.
    with explain_full_disk(folder, temporary, needed):
        accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with explain_full_disk(folder, temporary, needed):
            write_manifest(temporary, accelerator.num_processes)
        replace_folder(temporary, final)
        drop_old(folder, final, keep)
    accelerator.wait_for_everyone()
    return final


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, keep: int | None = None) -> None:
    """Restore what `save_checkpoint` saved, and finish the tidying up that a kill left; every process must call this.

    Args:
        accelerator: as there.
        checkpoint: to restore.
        keep: number of checkpoints up to this one to leave; None leaves all.

    Raises:
        RecipeError: the checkpoint holds other weights than the model, as those of earlier versions may; or it holds
            more than numbers, which nothing here writes.
    """
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    if accelerator.is_main_process:
        remove_partial(checkpoint.parent)
        if keep is not None:
            drop_old(checkpoint.parent, checkpoint, keep)
    if manifest["num_processes"] != accelerator.num_processes:
        warnings.warn(
            f"{checkpoint} was written by {manifest['num_processes']} processes and goes on with "
            f"{accelerator.num_processes}: data order and weights carry over, dropout will differ.",
            stacklevel=2,
        )
    try:
        # Accelerate would let the first run code, and go on without the second where they cannot be read.
        for pattern in ("custom_checkpoint_*.pkl", "random_states_*.pkl"):
            for path in sorted(checkpoint.glob(pattern)):
                load(path, map_location="cpu", weights_only=True)
        accelerator.load_state(str(checkpoint))
    except pickle.UnpicklingError as error:
        raise RecipeError(
            f"{checkpoint} is refused, because it holds more than numbers, which may run code when it is loaded. No "
            "run writes such files: go on from another checkpoint, or start another run."
        ) from error
    except (RuntimeError, ValueError) as error:
        raise RecipeError(
            f"{checkpoint} does not fit the model ({str(error).strip().splitlines()[0]}). If an earlier version wrote "
            "it, end the run with that version, or start another one with model.initialize_from."
        ) from error


def latest_checkpoint(folder: Path, prefix: str = PREFIX) -> Path | None:
    """The latest undamaged checkpoint in `folder`, None if there is none; damaged ones are named in a warning."""
    for checkpoint in reversed(checkpoints_in(folder, prefix)):
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint
        warnings.warn(f"Checkpoint {checkpoint} is damaged ({damage}); trying the one before it.", stacklevel=2)
    return None


def latest_checkpoint_for_all(folder: Path, accelerator: Accelerator) -> Path | None:
    """`latest_checkpoint`, found by the main process on behalf of all."""
    found = [latest_checkpoint(folder) if accelerator.is_main_process else None]
    return broadcast_object_list(found)[0]


def write_manifest(checkpoint: Path, processes: int) -> None:
    """Name every file of a checkpoint with its digest, by its path below it, and how many processes wrote it."""
    paths = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    files = {path.relative_to(checkpoint).as_posix(): _digest(path) for path in paths}
    (checkpoint / MANIFEST).write_text(json.dumps({"num_processes": processes, "files": files}, indent=1))


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


def _missing_space(folder: Path, needed: int, keep: int) -> str | None:
    """What is wrong when one checkpoint does not fit; a warning when one fits, but not all."""
    free = free_bytes(folder)
    if free < needed:
        return full_message(folder, needed, free)
    rest = max(keep + 1 - len(checkpoints_in(folder)), 1)
    if free < rest * needed:
        warnings.warn(
            f"{readable_size(free)} are free for {folder}, but {rest} more checkpoints of about "
            f"{readable_size(needed)} each may lie there at once. Lower run.keep_checkpoints ({keep}), or choose a "
            "run.output on another disk.",
            stacklevel=2,
        )
    return None
