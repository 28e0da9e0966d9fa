"""Export a checkpoint folder that loads with `trust_remote_code=True` where this package is not installed."""

import os
import tempfile
from pathlib import Path

from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

AUTO_MAP = {
    "AutoConfig": "configuration_ait.AiTConfig",
    "AutoModel": "modeling_ait.AiTModel",
    "AutoModelForDepthEstimation": "modeling_ait.AiTForDenseAndInstancePrediction",
    "AutoModelForImageSegmentation": "modeling_ait.AiTForDenseAndInstancePrediction",
    "AutoModelForInstanceSegmentation": "modeling_ait.AiTForDenseAndInstancePrediction",
    "AutoModelForObjectDetection": "modeling_ait.AiTForDenseAndInstancePrediction",
    "AutoModelForSemanticSegmentation": "modeling_ait.AiTForDenseAndInstancePrediction",
    "AutoModelForUniversalSegmentation": "modeling_ait.AiTForDenseAndInstancePrediction",
}


def save_with_code(
    model: PreTrainedModel, directory: str | Path, image_processor: BaseImageProcessor | None = None
) -> None:
    """Save an AiT checkpoint together with the modules that define it; a new folder is complete or absent.

    Args:
        model: an `AiTForDenseAndInstancePrediction`.
        directory: folder to write; created when missing. In one that holds files, those of the same names are replaced.
        image_processor: saved beside the model, with its code.

    Raises:
        TypeError: the model is of another family.
    """
    # By name, not class: a model that was loaded as remote code has a class of its own.
    if type(model).__name__ != AUTO_MAP["AutoModelForDepthEstimation"].split(".")[1]:
        raise TypeError(
            f"model must be an AiT task-solver (AiTForDenseAndInstancePrediction), got {type(model).__name__}."
        )
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as parent:
        written = Path(parent) / directory.name
        _save_model_with_code(model, written)
        if image_processor is not None:
            _save_processor_with_code(image_processor, written)
        if not directory.exists():
            written.rename(directory)
            return
        for path in [path for path in written.rglob("*") if path.is_file()]:
            place = directory / path.relative_to(written)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)


def _save_model_with_code(model: PreTrainedModel, directory: Path) -> None:
    model_class, config = type(model), model.config
    earlier_class, earlier_map = model_class._auto_class, getattr(config, "auto_map", None)
    model_class.register_for_auto_class("AutoModelForDepthEstimation")
    config.auto_map = dict(AUTO_MAP)
    try:
        model.save_pretrained(directory)
    finally:
        # Otherwise every later save_pretrained in this process would copy the code too.
        model_class._auto_class = earlier_class
        if earlier_map is None:
            del config.auto_map
        else:
            config.auto_map = earlier_map


def _save_processor_with_code(image_processor: BaseImageProcessor, directory: Path) -> None:
    processor_class = type(image_processor)
    earlier_class, earlier_map = processor_class._auto_class, getattr(image_processor, "auto_map", None)
    processor_class.register_for_auto_class("AutoImageProcessor")
    try:
        image_processor.save_pretrained(directory)
    finally:
        processor_class._auto_class = earlier_class
        if earlier_map is None:
            vars(image_processor).pop("auto_map", None)
        else:
            vars(image_processor)["auto_map"] = earlier_map
