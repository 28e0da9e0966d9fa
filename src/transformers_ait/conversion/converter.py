"""Original checkpoint to a folder of this family: strict, proved by forward passes, and nothing written before that."""

import json
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from ..configuration_ait import AiTConfig, AiTSwinV2Config, AiTVQVAEConfig
from ..configuration_hourglass_pose import HourglassPoseConfig
from ..modeling_ait import AiTForDenseAndInstancePrediction
from ..modeling_ait_swinv2 import AiTSwinV2Backbone
from ..modeling_ait_vqvae import AiTVQVAEModel
from ..modeling_hourglass_pose import HourglassForPoseLifting
from .checkpoint import CheckpointError, Renamed, read_checkpoint, rename, vqvae_sizes, with_backbone_prefix
from .companions import OwnConfig, write_companions
from .key_map import (
    NameMap,
    backbone_names,
    decoder_names,
    dropped_shapes,
    task_solver_names,
    tokenizer_names,
    vqvae_names,
)
from .original_config import (
    ait_config_from_original,
    backbone_config_from_original,
    original_from_ait_config,
    original_from_vqvae_config,
    vqvae_config_from_original,
)
from .parity import (
    Comparison,
    ParityError,
    Probe,
    backbone_probes,
    compare,
    dropped_buffer_probes,
    format_table,
    require_parity,
    task_solver_probes,
    vqvae_probes,
)
from .pose import FIRST_NAMES, in_our_shapes, pose_names, pose_probes
from .reverser import load_own_config

# There in a checkout of the repository, not in an installed package.
HUB_CONFIGS = Path(__file__).resolve().parents[3] / "hub_configs"

MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    AiTConfig.model_type: AiTForDenseAndInstancePrediction,
    AiTVQVAEConfig.model_type: AiTVQVAEModel,
    AiTSwinV2Config.model_type: AiTSwinV2Backbone,
    HourglassPoseConfig.model_type: HourglassForPoseLifting,
}


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

    config: OwnConfig
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


def load_configuration(source: str | Path) -> tuple[OwnConfig, dict[str, Any]]:
    """Our configuration and the original one.

    Args:
        source: name of a folder of hub_configs, such a folder, or a JSON file with an original configuration: that of a
            task-solver (what the original file calls `model`), of a VQ-VAE, or of a backbone (`backbone` alone).

    Raises:
        FileNotFoundError: it is none of these.
        ValueError: the file is no such JSON, or one of the two configurations cannot express the other.
    """
    if Path(source).is_file():
        return _read_original_configuration(Path(source))
    folder = _hub_folder(source)
    if folder is None:
        known = sorted(entry.name for entry in HUB_CONFIGS.glob("*/"))
        hint = (
            f"known names: {known}."
            if known
            else (
                "names stand for the folders of hub_configs, which a checkout of the repository has and an installed "
                "package has not. Give the path of such a folder, or a JSON file with the original configuration."
            )
        )
        raise FileNotFoundError(f"--config {source} is neither a JSON file nor a folder; {hint}")
    config = load_own_config(folder)
    if isinstance(config, AiTVQVAEConfig):
        return config, original_from_vqvae_config(config)
    if isinstance(config, HourglassPoseConfig):
        return config, {}  # original files of pose lifting come without configuration
    return config, original_from_ait_config(config)


def _read_original_configuration(path: Path) -> tuple[OwnConfig, dict[str, Any]]:
    try:
        original = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"--config {path} is not JSON ({error}); write the dictionary `model` of the original configuration to a "
            "JSON file."
        ) from error
    if not isinstance(original, dict) or "model_type" in original:
        raise ValueError(
            f"--config {path} holds no original configuration; for a configuration of this family give its folder."
        )
    original = original.get("model", original.get("config", original))
    if not isinstance(original, dict):
        raise ValueError(f"--config {path} must hold a dictionary of sections, got {original!r:.80}.")
    try:
        if set(original) == {"backbone"}:
            return backbone_config_from_original(original["backbone"]), original
        is_vqvae = "downsample_ratio" in original
        return (vqvae_config_from_original if is_vqvae else ait_config_from_original)(original), original
    except (TypeError, ArithmeticError, LookupError, AttributeError, StrictDataclassError) as error:
        # What has another type is named by our fields, or not at all.
        raise ValueError(
            f"--config {path} has an original configuration with a value that cannot be ({error}); correct it."
        ) from error


def _hub_folder(source: str | Path) -> Path | None:
    return next((folder for folder in (HUB_CONFIGS / source, Path(source)) if folder.is_dir()), None)


def _tensors_kind(tensors: Mapping[str, Tensor]) -> str:
    if any(name.startswith("transformer.decoder.") for name in tensors):
        return "task-solver"
    if any(name.startswith("transformer.") for name in tensors):
        return "encoder"
    if any(name in tensors for name in FIRST_NAMES):
        return "pose lifting"
    return "vqvae" if any(name.startswith("_vq_vae.") for name in tensors) else "backbone"


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


def _backbone_source(tensors: dict[str, Tensor], config: AiTSwinV2Config, original: dict[str, Any]) -> Source:
    names = backbone_names(config, ours="")
    final_norm = {name for name in names if name.startswith("backbone.norm")}
    return Source(config, original, with_backbone_prefix(tensors), names, final_norm, pretraining=True)


def make_source(
    checkpoint: str | Path,
    tensors: dict[str, Tensor],
    configuration: tuple[OwnConfig, dict[str, Any]],
    tokenizer_files: Mapping[str, str | Path],
) -> Source:
    """Decide by the tensors' names what may be missing.

    Args:
        checkpoint: the file, for messages.
        tensors: its tensors.
        configuration: see `load_configuration`.
        tokenizer_files: original prefix of a tokenizer -> file of a VQ-VAE to put there.

    Raises:
        CheckpointError: the tensors are of another kind of model than the configuration.
    """
    config, original = configuration
    kind = _tensors_kind(tensors)
    fitting = {AiTVQVAEConfig: ("vqvae",), AiTSwinV2Config: ("backbone",), HourglassPoseConfig: ("pose lifting",)}
    if kind not in fitting.get(type(config), ("task-solver", "encoder", "backbone")):
        raise CheckpointError(
            f"{checkpoint} looks like a {kind} file, but --config describes a {config.model_type} model; its names "
            f"start with {sorted(tensors)[:3]}."
        )
    if isinstance(config, AiTVQVAEConfig):
        names = vqvae_names(config)
        # Of a file that merely lacks tensors, `rename` lists those; its sizes would be counted wrong.
        if not set(tensors) < set(names):
            _check_vqvae_sizes(tensors, config, checkpoint)
        return Source(config, original, tensors, names)
    if isinstance(config, HourglassPoseConfig):
        return Source(config, original, in_our_shapes(tensors), pose_names(config))
    if isinstance(config, AiTSwinV2Config):
        return _backbone_source(tensors, config, original)
    return _task_solver_source(tensors, config, original, tokenizer_files)


def _check_vqvae_sizes(tensors: Mapping[str, Tensor], config: AiTVQVAEConfig, file: str | Path) -> None:
    """Compare the sizes that the tensors show with those of the configuration."""
    found = vqvae_sizes(tensors)
    differing = {name: (size, getattr(config, name)) for name, size in found.items() if size != getattr(config, name)}
    if differing:
        listed = ", ".join(f"{name} {theirs} instead of {ours}" for name, (theirs, ours) in differing.items())
        raise CheckpointError(f"{file} holds a VQ-VAE of other sizes than the configuration: {listed}. Another NAME?")


def rename_source(source: Source) -> Renamed:
    """The source's tensors under our names; raises CheckpointError for what does not fit."""
    with torch.device("meta"):
        model = MODEL_CLASSES[source.config.model_type](source.config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    buffers: dict[str, torch.Size] = {}
    if isinstance(source.config, AiTConfig) and not source.pretraining:
        buffers = dropped_shapes(source.config)
    return rename(source.tensors, source.names, shapes, buffers, source.optional, source.pretraining)


def read_and_rename(
    checkpoint: str | Path, config: str | Path, tokenizer_files: Mapping[str, str | Path]
) -> tuple[Source, Renamed]:
    """Source and its tensors under our names; where they do not fit, the error names the configurations that do.

    Args:
        checkpoint: an original file of any kind.
        config: see `load_configuration`.
        tokenizer_files: original prefix of a tokenizer -> file of a VQ-VAE to put there.
    """
    configuration = load_configuration(config)
    tensors = read_checkpoint(checkpoint)
    try:
        source = make_source(checkpoint, tensors, configuration, tokenizer_files)
        return source, rename_source(source)
    except CheckpointError as error:
        names = _fitting_names(checkpoint, tensors, tokenizer_files) if _hub_folder(config) else []
        if not names:
            raise
        raise CheckpointError(f"{error}\nIt does fit --config {' or '.join(names)}.") from error


def _fitting_names(
    checkpoint: str | Path, tensors: dict[str, Tensor], tokenizer_files: Mapping[str, str | Path]
) -> list[str]:
    """Names of hub_configs that a checkpoint fits."""
    names = []
    for folder in sorted(HUB_CONFIGS.glob("*/")):
        try:
            rename_source(make_source(checkpoint, tensors, load_configuration(folder), tokenizer_files))
        except ValueError:
            continue
        names.append(folder.name)
    return names


def build_model(config: OwnConfig, renamed: Renamed) -> PreTrainedModel:
    """Model in evaluation mode that shares the renamed tensors' memory."""
    model_class = MODEL_CLASSES[config.model_type]
    return model_class.from_pretrained(None, config=config, state_dict=dict(renamed.tensors))


def build_probes(source: Source) -> list[Probe]:
    """Questions to the converted model, answered by the plain re-computation from the source's original tensors."""
    config = source.config
    if isinstance(config, AiTVQVAEConfig):
        return vqvae_probes("VQ-VAE", source.tensors, config.downsample_ratio, source.original["use_norm"], config.tau)
    if isinstance(config, HourglassPoseConfig):
        return pose_probes(source.tensors, config)
    if isinstance(config, AiTSwinV2Config):
        return backbone_probes(source.tensors, source.original, source.names)
    probes = task_solver_probes(source.tensors, source.original, source.names)
    return probes if source.pretraining else [*dropped_buffer_probes(source.tensors, source.original), *probes]


def _checksums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: zlib.crc32(tensor.contiguous().numpy().data) for name, tensor in tensors.items()}


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without transformers' progress bars and its report on missing tensors, which are checked and reported here."""
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()


def _write(
    source: Source, renamed: Renamed, folder: Path, hub_folder: Path | None
) -> tuple[list[Probe], dict[str, int]]:
    """Build the model, prove it, and only then write weights, configuration and what else belongs to a folder.

    Returns:
        The probes and checksums for the reloaded model.
    """
    model = build_model(source.config, renamed)
    probes = build_probes(source)
    require_parity(compare(model, probes), "before saving")
    checksums = _checksums(renamed.tensors)
    if isinstance(model.config, AiTConfig):
        model.config.initialization_only = bool(renamed.absent)
    model.save_pretrained(folder, state_dict=dict(renamed.tensors))
    write_companions(folder, source.config, hub_folder, bool(renamed.absent))
    renamed.tensors.clear()
    return probes, checksums


def _reload(
    model_class: type[PreTrainedModel], folder: Path, probes: list[Probe], checksums: dict[str, int], absent: list[str]
) -> list[Comparison]:
    """Load the written folder and prove it again, bit by bit and by the same probes."""
    loaded: Any = model_class.from_pretrained(folder, output_loading_info=True)
    model, info = loaded
    if info["unexpected_keys"] or info["mismatched_keys"] or not set(info["missing_keys"]) <= set(absent):
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
        checkpoint: task-solver, VQ-VAE, backbone pretraining or decoder-less file (.pth, .pt, .safetensors, .npz).
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
    given = {prefix: file for prefix, file in files.items() if file is not None}
    source, renamed = read_and_rename(checkpoint, config, given)
    model_class = MODEL_CLASSES[source.config.model_type]
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as parent, _quiet_loading():
        folder = Path(parent) / output.name
        probes, checksums = _write(source, renamed, folder, _hub_folder(config))
        source.tensors.clear()  # the reloaded model must be the only copy in memory
        comparisons = _reload(model_class, folder, probes, checksums, renamed.absent)
        if output.exists():
            output.rmdir()
        folder.rename(output)
    dropped = dict(Counter(renamed.dropped.values()))
    return Report(output, comparisons, len(checksums), dropped, renamed.absent)
