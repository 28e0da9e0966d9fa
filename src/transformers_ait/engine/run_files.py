"""Files of a run: complete or absent, and what is said when the disk is full or may not be written to."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PREFIX = "step-"
"""Of the folders of checkpoints."""


class RunKeys(NamedTuple):
    """What a recipe calls the things that errors advise on.

    Args:
        output: key of the run's folder.
        keep: key of the number of checkpoints that stay.
        resume: option to go on with a run.
        prefix: of the folders of checkpoints.
    """

    output: str = "run.output"
    keep: str = "run.keep_checkpoints"
    resume: str = "--run.resume true"
    prefix: str = PREFIX


RUN_KEYS = RunKeys()


class DiskFullError(OSError):
    """A disk has no room for what a run writes; what it wrote before is untouched."""


class ReadOnlyFolderError(OSError):
    """A run may not write to its folder; what it wrote before is untouched."""


@contextmanager
def explain_full_disk(
    folder: Path, temporary: Path | None = None, needed: int = 0, keys: RunKeys = RUN_KEYS
) -> Iterator[None]:
    """Around the writing of files: when it fails, remove what is partial, and say why where a user can help.

    Args:
        folder: a folder on the disk that is written to.
        temporary: file or folder that is partial until the block ends; None if there is nothing to remove.
        needed: bytes that the block writes, about; 0 if few.
        keys: what the recipe calls things.

    Raises:
        DiskFullError: the disk is full.
        ReadOnlyFolderError: it may not be written to; other errors pass through.
    """
    try:
        yield
    except Exception as error:
        # Before the partial files go, since they are what filled the disk.
        free, written = free_bytes(folder), _size(temporary)
        _remove(temporary)
        if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise ReadOnlyFolderError(error.errno, _read_only_message(folder, error, keys)) from error
        if not _is_full(error, free, needed - written):
            raise
        raise DiskFullError(errno.ENOSPC, full_message(folder, needed, free + written, keys)) from error


def replace_folder(temporary: Path, final: Path) -> None:
    """Move a finished folder to its place; one that was there goes away only then."""
    stale = final.with_name(f".{final.name}.old")
    shutil.rmtree(stale, ignore_errors=True)
    if final.exists():
        os.replace(final, stale)
    os.replace(temporary, final)
    shutil.rmtree(stale, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is never seen with some of its files."""
    stale = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(stale, ignore_errors=True)
    os.replace(folder, stale)
    shutil.rmtree(stale)


def drop_old(folder: Path, last: Path, keep: int, prefix: str = PREFIX, also: str | None = None) -> None:
    """Remove the oldest checkpoints before one, which stays.

    Args:
        folder: of checkpoints.
        last: the one that was just written, or that a run goes on from; later ones are none of its.
        keep: how many stay, it among them.
        prefix: of the checkpoints' names.
        also: path of a further one that stays.
    """
    step = int(last.name.removeprefix(prefix))
    older = [path for path in checkpoints_in(folder, prefix) if int(path.name.removeprefix(prefix)) < step]
    surplus = len(older) + 1 - keep
    for old in [path for path in older if str(path) != also][: max(surplus, 0)]:
        remove_folder(old)


def remove_partial(folder: Path, prefix: str = PREFIX) -> None:
    """Remove what a kill left of checkpoints that were being written or removed; they are hidden."""
    for partial in folder.glob(f".{prefix}*"):
        shutil.rmtree(partial, ignore_errors=True)


def partial_text(path: Path) -> Path:
    """Where `replace_text` writes; what a kill leaves there means nothing."""
    return path.with_name(f".{path.name}.tmp")


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that it is never seen half-written."""
    temporary = partial_text(path)
    with explain_full_disk(path.parent, temporary):
        temporary.write_text(text)
    os.replace(temporary, path)


def checkpoints_in(folder: Path, prefix: str = PREFIX) -> list[Path]:
    """Checkpoints in the order of their steps, which stand behind a prefix."""
    found = [path for path in folder.glob(f"{prefix}*") if path.name.removeprefix(prefix).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(prefix)))


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk of a folder, which need not exist."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def full_message(folder: Path, needed: int, free: int, keys: RunKeys = RUN_KEYS) -> str:
    """What to say of a full disk: what is needed and free (bytes), what is whole, and what to do."""
    return (
        f"The disk of {folder} is full: "
        + (f"a checkpoint needs about {readable_size(needed)}, " if needed else "")
        + f"{readable_size(free)} are free. "
        + _whole(folder, keys)
        + f"Free space there, lower {keys.keep}, or choose another disk for {keys.output} (move the run's folder "
        f"there to go on with it by {keys.resume})."
    )


def _read_only_message(folder: Path, error: OSError, keys: RunKeys) -> str:
    return (
        f"{error.filename or folder} may not be written ({error.strerror}). {_whole(folder, keys)}Make {folder} "
        f"writable, or choose another {keys.output} (move the run's folder there), and go on by {keys.resume}."
    )


def _whole(folder: Path, keys: RunKeys) -> str:
    """What to say of the checkpoints in a folder."""
    kept = checkpoints_in(folder, keys.prefix)
    return f"The checkpoints up to {kept[-1].name} are whole. " if kept else ""


def readable_size(count: int) -> str:
    """Bytes as text with a unit."""
    for power, unit in ((30, "GiB"), (20, "MiB")):
        if count >= 1 << power:
            return f"{count / (1 << power):.1f} {unit}"
    return f"{max(count, 0) / 1024:.0f} KiB"


def _is_full(error: Exception, free: int, missing: int) -> bool:
    """Whether a full disk or quota is why writing failed; torch and safetensors raise errors of their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left" in str(error) or "quota exceeded" in str(error) or free < missing


def _size(path: Path | None) -> int:
    if path is None or not path.exists():
        return 0
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def _remove(path: Path | None) -> None:
    if path is not None and path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path is not None:
        path.unlink(missing_ok=True)
