"""Original checkpoint to a folder of this family: strict, proved by forward passes, and nothing written before that."""

import json
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..configuration_ait import AiTConfig, AiTVQVAEConfig
from ..image_processing_ait_depth import AiTDepthImageProcessor
from ..modeling_ait import AiTForDenseAndInstancePrediction
from ..modeling_ait_vqvae import AiTVQVAEModel
from .checkpoint import CheckpointError, Renamed, read_checkpoint, rename, vqvae_sizes, with_backbone_prefix
from .key_map import NameMap, decoder_names, dropped_shapes, task_solver_names, tokenizer_names, vqvae_names
from .original_config import (
    ait_config_from_original,
    original_from_ait_config,
    original_from_vqvae_config,
    vqvae_config_from_original,
)
from .parity import (
    Comparison,
    ParityError,
    Probe,
    compare,
    dropped_buffer_probes,
    format_table,
    require_parity,
    task_solver_probes,
    vqvae_probes,
)
from .reverser import load_own_config

HUB_CONFIGS = Path(__file__).resolve().parents[3] / "hub_configs"


@dataclass
class Source:
    """What is to be converted.

    Args:
        config: our configuration.
        original: the original one, from which the plain re-computation works.
        tensors: original tensors, tokenizers of other files included.
        names: original name -> our name.
        optional: original names that may be missing, because the file is an initialisation only.
        pretraining: the file is a backbone's pretraining, whose windows may be others.
    """

    config: AiTConfig | AiTVQVAEConfig
    original: dict[str, Any]
    tensors: dict[str, Tensor]
    names: NameMap
    optional: set[str] = field(default_factory=set)
    pretraining: bool = False


@dataclass
class Report:
    """What a conversion did.

    Args:
        output: the folder written.
        comparisons: the proof, taken again after reloading.
        used: number of tensors carried over.
        dropped: reason -> number of original entries deliberately dropped.
        absent: our names that an initialisation lacks.
    """

    output: Path
    comparisons: list[Comparison]
    used: int
    dropped: dict[str, int]
    absent: list[str]

    def __str__(self) -> str:
        lines = [format_table(self.comparisons), f"{self.used} tensors carried over."]
        lines += [f"{count} entries dropped: {reason}." for reason, count in self.dropped.items()]
        if self.absent:
            lines.append(f"INITIALISATION ONLY: {len(self.absent)} tensors are absent, {self.absent[0]} for one.")
        return "\n".join([*lines, f"Written to {self.output}."])


def load_configuration(source: str | Path) -> tuple[AiTConfig | AiTVQVAEConfig, dict[str, Any]]:
    """Our configuration and the original one.

    Args:
        source: name of a folder of hub_configs, such a folder, or a JSON file with an original configuration.

    Raises:
        FileNotFoundError: it is none of these.
        ValueError: one of the two cannot express the other.
    """
    path = Path(source)
    if path.is_file():
        original = json.loads(path.read_text())
        original = original.get("config", original)
        is_vqvae = "downsample_ratio" in original
        return (vqvae_config_from_original if is_vqvae else ait_config_from_original)(original), original
    folder = _hub_folder(source)
    if folder is None:
        known = sorted(entry.name for entry in HUB_CONFIGS.glob("*/"))
        raise FileNotFoundError(f"--config {source} is neither a JSON file nor a folder; known names: {known}.")
    config = load_own_config(folder)
    if isinstance(config, AiTVQVAEConfig):
        return config, original_from_vqvae_config(config)
    return config, original_from_ait_config(config)


def _hub_folder(source: str | Path) -> Path | None:
    return next((folder for folder in (HUB_CONFIGS / source, Path(source)) if folder.is_dir()), None)


def _tensors_kind(tensors: Mapping[str, Tensor]) -> str:
    if any(name.startswith("transformer.decoder.") for name in tensors):
        return "task-solver"
    if any(name.startswith("transformer.") for name in tensors):
        return "encoder"
    return "vqvae" if "_vq_vae._embedding" in tensors else "backbone"


def _task_solver_source(
    tensors: dict[str, Tensor], config: AiTConfig, original: dict[str, Any], tokenizer_files: Mapping[str, str | Path]
) -> Source:
    kind = _tensors_kind(tensors)
    tensors = with_backbone_prefix(tensors) if kind == "backbone" else dict(tensors)
    for prefix, file in tokenizer_files.items():
        tokenizer_config = config.depth_tokenizer_config if prefix.startswith("depth") else config.mask_tokenizer_config
        tensors = _with_tokenizer(tensors, prefix, file, tokenizer_config)
    names = task_solver_names(config)
    optional: set[str] = set()
    if kind == "encoder":
        optional = {*decoder_names(config.decoder_config, config.parallel), *tokenizer_names(config)}
    elif kind == "backbone":
        optional = {name for name in names if not name.startswith("backbone.") or name.startswith("backbone.norm")}
    return Source(config, original, tensors, names, optional, pretraining=kind == "backbone")


def _with_tokenizer(
    tensors: dict[str, Tensor], prefix: str, file: str | Path, config: AiTVQVAEConfig | None
) -> dict[str, Tensor]:
    """Add the VQ-VAE of a file; one that the checkpoint already holds must be the same."""
    if config is None:
        raise CheckpointError(f"{file} is of no use: the configuration has no task that needs {prefix}*.")
    vqvae = read_checkpoint(file)
    _check_vqvae_sizes(vqvae, config, file)
    added = {f"{prefix}{name}": tensor for name, tensor in vqvae.items()}
    for name, tensor in added.items():
        if name in tensors and not torch.equal(tensors[name], tensor):
            raise CheckpointError(
                f"{name} {tuple(tensors[name].shape)} of the checkpoint differs from that of {file}: the task-solver "
                "was trained with another VQ-VAE. Leave the option out to keep the one inside."
            )
    return {**tensors, **added}


def read_source(checkpoint: str | Path, config: str | Path, tokenizer_files: Mapping[str, str | Path]) -> Source:
    """Read checkpoint and configuration, and decide what may be missing.

    Args:
        checkpoint: an original file of any kind.
        config: see `load_configuration`.
        tokenizer_files: original prefix of a tokenizer -> file of a VQ-VAE to put there.
    """
    own_config, original = load_configuration(config)
    tensors = read_checkpoint(checkpoint)
    kind = _tensors_kind(tensors)
    if (kind == "vqvae") != isinstance(own_config, AiTVQVAEConfig):
        raise CheckpointError(
            f"{checkpoint} looks like a {kind} file, but --config describes a {own_config.model_type} model; its names "
            f"start with {sorted(tensors)[:3]}."
        )
    if isinstance(own_config, AiTVQVAEConfig):
        _check_vqvae_sizes(tensors, own_config, checkpoint)
        return Source(own_config, original, tensors, vqvae_names(own_config))
    return _task_solver_source(tensors, own_config, original, tokenizer_files)


def _check_vqvae_sizes(tensors: Mapping[str, Tensor], config: AiTVQVAEConfig, file: str | Path) -> None:
    """Compare the sizes that the tensors show with those of the configuration."""
    found = vqvae_sizes(tensors)
    differing = {name: (size, getattr(config, name)) for name, size in found.items() if size != getattr(config, name)}
    if differing:
        listed = ", ".join(f"{name} {theirs} instead of {ours}" for name, (theirs, ours) in differing.items())
        raise CheckpointError(f"{file} holds a VQ-VAE of other sizes than the configuration: {listed}. Another NAME?")


def rename_source(source: Source) -> Renamed:
    """The source's tensors under our names; raises CheckpointError for what does not fit."""
    model_class = _model_class(source.config)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in model_class(source.config).state_dict().items()}
    buffers: dict[str, torch.Size] = {}
    if isinstance(source.config, AiTConfig) and not source.pretraining:
        buffers = dropped_shapes(source.config)
    return rename(source.tensors, source.names, shapes, buffers, source.optional, source.pretraining)


def _model_class(config: AiTConfig | AiTVQVAEConfig) -> type[PreTrainedModel]:
    return AiTVQVAEModel if isinstance(config, AiTVQVAEConfig) else AiTForDenseAndInstancePrediction


def build_model(config: AiTConfig | AiTVQVAEConfig, renamed: Renamed) -> PreTrainedModel:
    """Model in evaluation mode that shares the renamed tensors' memory."""
    return _model_class(config).from_pretrained(None, config=config, state_dict=dict(renamed.tensors))


def build_probes(source: Source) -> list[Probe]:
    """Questions to the converted model, answered by the plain re-computation from the source's original tensors."""
    if isinstance(source.config, AiTVQVAEConfig):
        config = source.config
        return vqvae_probes("VQ-VAE", source.tensors, config.downsample_ratio, source.original["use_norm"], config.tau)
    probes = task_solver_probes(source.tensors, source.original, source.names)
    return probes if source.pretraining else [*dropped_buffer_probes(source.tensors, source.original), *probes]


def _checksums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: zlib.crc32(tensor.contiguous().numpy().data) for name, tensor in tensors.items()}


def _write(source: Source, folder: Path, hub_folder: Path | None) -> tuple[list[Probe], dict[str, int], Renamed]:
    """Build the model, prove it, and only then write weights, configuration, preprocessor and model card.

    Returns:
        The probes and checksums for the reloaded model, and what was renamed, without the tensors.
    """
    renamed = rename_source(source)
    model = build_model(source.config, renamed)
    probes = build_probes(source)
    require_parity(compare(model, probes), "before saving")
    checksums = _checksums(renamed.tensors)
    if renamed.absent:
        model.config.initialization_only = True
    model.save_pretrained(folder, state_dict=dict(renamed.tensors))
    if hub_folder is not None:
        for name in ("preprocessor_config.json", "README.md"):
            if (hub_folder / name).is_file():
                shutil.copyfile(hub_folder / name, folder / name)
    elif isinstance(model.config, AiTConfig) and "depth" in model.config.tasks:
        side = model.config.depth_tokenizer_config.image_size
        AiTDepthImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    renamed.tensors.clear()
    return probes, checksums, renamed


def _reload(
    model_class: type[PreTrainedModel], folder: Path, probes: list[Probe], checksums: dict[str, int], absent: list[str]
) -> list[Comparison]:
    """Load the written folder and prove it again, bit by bit and by the same probes."""
    loaded: Any = model_class.from_pretrained(folder, output_loading_info=True)
    model, info = loaded
    if info["unexpected_keys"] or info["mismatched_keys"] or set(info["missing_keys"]) != set(absent):
        raise ParityError(f"The written folder does not load as it was saved: {info}. Nothing was kept.")
    tensors = model.state_dict()
    reloaded = _checksums({name: tensors[name] for name in checksums})
    differing = sorted(name for name, checksum in checksums.items() if reloaded[name] != checksum)
    if differing:
        raise ParityError(f"{len(differing)} tensors changed on the way to disk: {differing}. Nothing was kept.")
    comparisons = compare(model, probes)
    require_parity(comparisons, "after reloading")
    return comparisons


def convert(
    checkpoint: str | Path,
    config: str | Path,
    output: str | Path,
    vqvae_depth: str | Path | None = None,
    vqvae_mask: str | Path | None = None,
) -> Report:
    """Convert an original checkpoint.

    Args:
        checkpoint: task-solver, VQ-VAE, backbone pretraining or decoder-less file (.pth, .pt, .safetensors).
        config: name of a folder of hub_configs, a folder, or a JSON file with an original configuration.
        output: folder to write; must not exist or be empty.
        vqvae_depth: file of the depth VQ-VAE, if the checkpoint holds none.
        vqvae_mask: file of the mask VQ-VAE, if the checkpoint holds none.

    Returns:
        What was compared, carried over and dropped.

    Raises:
        FileExistsError: `output` is not empty.
        FileNotFoundError: a file or configuration does not exist.
        CheckpointError: a key is missing, left over or misshapen; the message names it.
        ParityError: the converted model does not compute what the original tensors say.
        ValueError: the original configuration cannot be represented.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"--output {output} exists and is not an empty folder; choose another one.")
    files = {"depth_head.vqvae.": vqvae_depth, "insseg_head.vqvae.": vqvae_mask}
    source = read_source(checkpoint, config, {prefix: file for prefix, file in files.items() if file is not None})
    model_class = _model_class(source.config)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as parent:
        folder = Path(parent) / output.name
        probes, checksums, renamed = _write(source, folder, _hub_folder(config))
        source.tensors.clear()  # the reloaded model must be the only copy in memory
        comparisons = _reload(model_class, folder, probes, checksums, renamed.absent)
        if output.exists():
            output.rmdir()
        folder.rename(output)
    dropped = dict(Counter(renamed.dropped.values()))
    return Report(output, comparisons, len(checksums), dropped, renamed.absent)
