"""Read an original checkpoint and rename its tensors, strictly: every key is used, or dropped for a stated reason."""

import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..data.restricted_npz import require_whole_arrays
from .key_map import NameMap, dropped_reason

TORCH_SUFFIXES = (".pth", ".pt")
WRAPPERS = ("state_dict", "model", "weights")
# What may precede the backbone's names in a pretraining file; the empty prefix last.
BACKBONE_PREFIXES = ("backbone.", "encoder.", "")

# A likely cause of a misfit, by what the offending key looks like; the first match counts.
CAUSES = {
    r"transformer\.mask_embed": "parallel (AiT-P) models have it, autoregressive ones do not: another NAME?",
    r"transformer\.(voc_embed|outp_bias)": "the vocabulary differs: depth-only and instance models have their own",
    r"transformer\.enc_embed": "the image size differs: 480- and 640-pixel models have their own NAME",
    r".*relative_(coords_table|position_index)": "the window sizes differ: another NAME?",
    r"depth_head\.vqvae\..*": "the depth VQ-VAE is not in the checkpoint or is another one; pass --vqvae-depth FILE",
    r"insseg_head\.vqvae\..*": "the mask VQ-VAE is not in the checkpoint or is another one; pass --vqvae-mask FILE",
    r".*\.wk\.bias": "key biases change no output, but every original checkpoint has them: is the file complete?",
    r"backbone\..*": "another backbone size (base or large): another NAME?",
    r"transformer\..*": "another number of blocks or another width: another NAME?",
    r"(encoder|decoder|_vq_vae)\..*": "a VQ-VAE of other sizes (downsample ratio, width, codes): another NAME? Or an "
    "incomplete file: copy or download it again",
    r"(det|insseg|depth)_head\..*": "a head of another task: another NAME?",
    r".*": "no name of an original AiT checkpoint: another NAME, or a file of another project?",
}
# What torch.load says when it refuses to run code from a file.
REFUSED_CODE = re.compile(r"(?:global|class)\s+([\w.]+)", re.IGNORECASE)
MAX_LISTED = 8


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the configuration."""


@dataclass
class Renamed:
    """Tensors under our names.

    Args:
        tensors: our name -> tensor.
        dropped: original name -> why it was not carried over.
        absent: our names that the checkpoint was allowed to lack, and lacks.
    """

    tensors: dict[str, Tensor]
    dropped: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Tensors of an original checkpoint under their original names, in float32, memory-mapped where that is possible.

    Wrapping dictionaries (`state_dict`, `model`, `weights`) and a common prefix `module.` are removed; `meta`,
    `optimizer` and other companions are ignored.

    Args:
        path: a .pth, .pt, .safetensors or .npz file; the last is what PaliGemma's mask tokenizer is published as.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is of another kind, damaged, or holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        tensors = _unwrap(_read_torch(path), path)
    elif path.suffix == ".npz":
        tensors = _read_npz(path)
    else:
        raise CheckpointError(f"{path} must be a .pth, .pt, .safetensors or .npz file.")
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    # Float32 tensors stay memory-mapped; half-precision ones are widened once, for the model and its proof.
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dictionary
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file, it is damaged, incomplete or of another kind ({error}); "
            "copy or download it again."
        ) from error


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        # Without the check NumPy would take a file of another kind for a pickle, and say so.
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is no zip archive")
        require_whole_arrays(path)
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a readable .npz file of numbers, it is damaged, incomplete or of another kind ({error}); "
            "copy or download it again."
        ) from error


def _read_torch(path: Path) -> object:
    try:
        # Files of PyTorch before 1.6 are no zip archives and cannot be memory-mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        # Not the whole message: torch.load advises weights_only=False, which would run code from the file.
        refused = REFUSED_CODE.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused:
            raise CheckpointError(
                f"{path} is refused, because it holds more than tensors: loading it would run {refused[1]}. It is only "
                "read with weights_only=True. If you trust the file, keep its tensors alone, in a process where that "
                "code may run: torch.save({'state_dict': ...}, NEW_FILE)."
            ) from error
        reason = [line for line in str(error).splitlines() if "weights_only" not in line and line.strip()]
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch checkpoint, it is damaged, incomplete or of another kind "
            f"({reason[0].strip() if reason else type(error).__name__}); copy or download it again."
        ) from error


def _unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        wrapper = next((key for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        inner = loaded if wrapper is None else loaded[wrapper]
        if inner and all(isinstance(value, Tensor) for value in inner.values()):
            return dict(inner)
    raise CheckpointError(
        f"{path} must hold a dictionary of tensors, by itself or under one of {list(WRAPPERS)}; found "
        f"{sorted(map(str, loaded)) if isinstance(loaded, Mapping) else type(loaded).__name__}."
    )


def with_backbone_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a backbone pretraining file under the names they have in a task-solver (`backbone.*`).

    Raises:
        CheckpointError: there is no patch embedding under any known prefix.
    """
    prefix = next((p for p in BACKBONE_PREFIXES if f"{p}patch_embed.proj.weight" in tensors), None)
    if prefix is None:
        raise CheckpointError(
            f"No patch_embed.proj.weight under any of {list(BACKBONE_PREFIXES)}: neither a task-solver nor a SwinV2 "
            f"backbone. The file starts with {sorted(tensors)[:MAX_LISTED]}."
        )
    outside = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    return {
        f"backbone.{name.removeprefix(prefix)}": t for name, t in tensors.items() if name.startswith(prefix)
    } | outside


def vqvae_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes of an original VQ-VAE as its tensors show them, under the names of `AiTVQVAEConfig`.

    Raises:
        CheckpointError: the tensors are not those of a VQ-VAE.
    """
    missing = sorted({"_vq_vae._embedding", "encoder.0.weight"} - set(tensors))
    if missing:
        raise CheckpointError(
            f"These are not the tensors of a VQ-VAE, as {' and '.join(missing)} is missing; found "
            f"{sorted(tensors)[:MAX_LISTED]}."
        )
    encoder = {name: tensor for name, tensor in tensors.items() if re.fullmatch(r"encoder\.\d+\.weight", name)}
    odd = {name: 2 for name in ("_vq_vae._embedding",) if tensors[name].ndim != 2}
    odd |= {name: 4 for name, tensor in encoder.items() if tensor.ndim != 4}
    if odd:
        name, dimensions = next(iter(odd.items()))
        raise CheckpointError(
            f"{name} has shape {tuple(tensors[name].shape)}, but that of a VQ-VAE has {dimensions} dimensions: an "
            "incomplete file? Copy or download it again."
        )
    num_codes, code_dim = tensors["_vq_vae._embedding"].shape
    hidden_size, num_channels = encoder["encoder.0.weight"].shape[:2]
    return {
        "num_channels": num_channels,
        "hidden_size": hidden_size,
        "downsample_ratio": 2 ** sum(tensor.shape[-1] == 4 for tensor in encoder.values()),
        "num_resnet_blocks": sum(bool(re.fullmatch(r"encoder\.\d+\.net\.0\.weight", name)) for name in tensors),
        "num_codes": num_codes,
        "code_dim": code_dim,
    }


def rename(
    tensors: Mapping[str, Tensor],
    names: NameMap,
    shapes: Mapping[str, torch.Size],
    buffers: Mapping[str, torch.Size],
    optional: Collection[str] = (),
    pretraining: bool = False,
) -> Renamed:
    """Rename original tensors to ours and check that nothing is missing, left over or misshapen.

    Args:
        tensors: original name -> tensor.
        names: original name -> our name, of everything the configuration has.
        shapes: our name -> shape.
        buffers: original name -> shape, of what is dropped because the configuration determines it.
        optional: original names that may be missing.
        pretraining: the tensors come from a backbone pretraining file.

    Returns:
        The renamed tensors, sharing memory with the original ones.

    Raises:
        CheckpointError: names every offending key, its shape and the likely cause.
    """
    dropped = {name: reason for name in tensors if name not in names and (reason := dropped_reason(name, pretraining))}
    expected = {name: shapes[mine] for name, mine in names.items()}
    problems = [
        *_misshapen(tensors, {**expected, **buffers}),
        *(f"{n} holds {tensors[n].dtype}, expected floating point" for n in names if _is_discrete(n, tensors.get(n))),
        *(
            f"{n} {tuple(expected[n])} is missing{_cause(n)}"
            for n in expected
            if n not in tensors and n not in optional
        ),
        *(
            f"{name} {tuple(tensor.shape)} is not expected{_cause(name)}"
            for name, tensor in tensors.items()
            if name not in names and name not in dropped
        ),
        *_differing_duplicates(tensors, dropped),
    ]
    if problems:
        more = f"\n  ... and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        raise CheckpointError(
            f"The checkpoint does not fit the configuration ({len(problems)} problems):\n  "
            + "\n  ".join(problems[:MAX_LISTED])
            + more
        )
    present = {name: mine for name, mine in names.items() if name in tensors}
    renamed = {mine: tensors[name] for name, mine in present.items()}
    return Renamed(renamed, dropped, [mine for name, mine in names.items() if name not in tensors])


def _is_discrete(name: str, tensor: Tensor | None) -> bool:
    """Whether a tensor holds whole numbers where it should not; batches that a BatchNorm has seen are counted."""
    return tensor is not None and not tensor.is_floating_point() and not name.endswith(".num_batches_tracked")


def _misshapen(tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> list[str]:
    """One line for every tensor whose shape is not the expected one."""
    return [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(shape)}{_cause(name)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]


def _differing_duplicates(tensors: Mapping[str, Tensor], dropped: Mapping[str, str]) -> list[str]:
    """One line for every `*_head.transformer.*` that is not identical to its `transformer.*`."""
    problems = []
    for name in dropped:
        _, found, rest = name.partition("_head.transformer.")
        twin = tensors.get(f"transformer.{rest}")
        if found and (twin is None or twin.shape != tensors[name].shape or not torch.equal(twin, tensors[name])):
            problems.append(
                f"{name} {tuple(tensors[name].shape)} differs from transformer.{rest}, whose copy it should be"
            )
    return problems


def _cause(name: str) -> str:
    return f" ({next(cause for pattern, cause in CAUSES.items() if re.fullmatch(pattern, name))})"
