"""What stands in a converted folder beside weights and configuration: image processor and model card."""

from pathlib import Path
from typing import Any

from transformers import FeatureExtractionMixin
from transformers.image_processing_utils import BaseImageProcessor

from ..configuration_ait import AiTConfig, AiTSwinV2Config, AiTVQVAEConfig
from ..configuration_hourglass_pose import HourglassPoseConfig
from ..image_processing_ait_depth import AiTDepthImageProcessor
from ..image_processing_ait_instance import AiTInstanceImageProcessor
from ..processing_hourglass_pose import HourglassPoseProcessor

OwnConfig = AiTConfig | AiTVQVAEConfig | AiTSwinV2Config | HourglassPoseConfig

CARD_FILE = "README.md"
# The last section of a card of hub_configs, which speaks of a folder without weights.
CARD_WEIGHTS = "## Weights"
CONVERTED = """## Weights

Converted from an original checkpoint with `python -m transformers_ait.conversion`, which compared the result with the
original tensors. The weights' license is that of whoever published them.
"""
INITIALISATION = """
They are an initialisation: part of the model is untrained, so it can start a training but predict nothing.
"""


def processors(config: OwnConfig) -> dict[str, BaseImageProcessor | FeatureExtractionMixin]:
    """Subfolder -> processor with the original's preprocessing; none for a backbone alone.

    Args:
        config: configuration of pose lifting, of a task-solver, or of a VQ-VAE, whose images are depth maps or masks.
            A task-solver's own folder (".") has the processor of the default task; that of depth beside objects lies in
            "depth".
    """
    if isinstance(config, AiTSwinV2Config):
        return {}
    if isinstance(config, HourglassPoseConfig):
        return {".": HourglassPoseProcessor.for_model(config)}
    if isinstance(config, AiTVQVAEConfig):
        depth = _depth_processor(config, num_windows=1, do_flip_augment=False)
        return {".": depth if config.ignore_zero else AiTInstanceImageProcessor()}
    if config.default_task == "depth":
        return {".": _depth_processor(config.depth_tokenizer_config)}
    side = config.image_size
    objects = AiTInstanceImageProcessor(size={"longest_edge": side}, pad_size={"height": side, "width": side})
    if "depth" not in config.tasks:
        return {".": objects}
    return {".": objects, "depth": _depth_processor(config.depth_tokenizer_config, task="depth")}


def _depth_processor(config: AiTVQVAEConfig, **settings: Any) -> AiTDepthImageProcessor:
    return AiTDepthImageProcessor(size={"height": config.image_size, "width": config.image_size}, **settings)


def write_companions(
    folder: Path,
    config: OwnConfig,
    hub_folder: Path | None,
    initialization_only: bool,
) -> None:
    """Write the processors and, for a known model, its card.

    Args:
        folder: the converted folder.
        config: its configuration.
        hub_folder: the folder of hub_configs that the configuration came from.
        initialization_only: whether weights are missing.
    """
    for subfolder, processor in processors(config).items():
        processor.save_pretrained(folder / subfolder)
    if hub_folder is not None and (hub_folder / CARD_FILE).is_file():
        card = (hub_folder / CARD_FILE).read_text().partition(CARD_WEIGHTS)[0]
        (folder / CARD_FILE).write_text(card + CONVERTED + (INITIALISATION if initialization_only else ""))
