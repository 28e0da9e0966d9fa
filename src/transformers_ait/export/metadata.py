"""What the user of an exported file has to know, as `export.json`: preprocessing, names, shapes, units, the grammar."""

import json
from pathlib import Path
from typing import Any

from ..configuration_ait import AiTConfig
from ..image_processing_ait_depth import MIN_DEPTH, AiTDepthImageProcessor
from ..image_processing_ait_instance import AiTInstanceImageProcessor
from ..sequence_ait import TokenStep, depth_grammar, object_grammar
from ..token_vocabulary import IdRange

METADATA_FILE = "export.json"
PROCESSOR_FILE = "preprocessor_config.json"


def processor_path(folder: Path, config: AiTConfig, task: str) -> Path:
    """The image processor's file of a task; where depth is not the default one, it lies in a subfolder.

    Raises:
        FileNotFoundError: there is none.
    """
    own = task == "depth" and config.default_task != "depth"
    path = folder / "depth" / PROCESSOR_FILE if own else folder / PROCESSOR_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}, which says how images become the model's input; save the image processor there with "
            "processor.save_pretrained."
        )
    return path


def input_size(config: AiTConfig, task: str) -> int:
    """Side in pixels of the square images that a task takes."""
    return config.depth_tokenizer_config.image_size if task == "depth" else config.image_size


def used_rows(config: AiTConfig, task: str) -> IdRange:
    """The vocabulary ids that a task's step multiplies; `num_tokens` of them."""
    vocabulary = config.vocabulary
    if task == "depth":
        return vocabulary.depth_codes
    return IdRange(0, vocabulary.noise + 1 if task == "detection" else vocabulary.mask_codes.stop)


def image_metadata(processor_file: Path, config: AiTConfig, task: str) -> dict[str, Any]:
    """The input: a pixel of 0..255 becomes `(pixel * rescale_factor - mean) / std`.

    Args:
        processor_file: a preprocessor_config.json.
        config: the model's configuration.
        task: "depth", "instance" or "detection".
    """
    processor_class = AiTDepthImageProcessor if task == "depth" else AiTInstanceImageProcessor
    processor: Any = processor_class.from_pretrained(processor_file.parent)
    side = input_size(config, task)
    return {
        "name": "pixel_values",
        "dtype": "float32",
        "shape": ["batch", 3, side, side],
        "channels": "RGB",
        "rescale_factor": processor.rescale_factor if processor.do_rescale else 1.0,
        "mean": list(processor.image_mean) if processor.do_normalize else [0.0, 0.0, 0.0],
        "std": list(processor.image_std) if processor.do_normalize else [1.0, 1.0, 1.0],
        "padding": None if task == "depth" else "zeros at bottom and right, after normalisation",
    }


def output_metadata(config: AiTConfig, task: str) -> dict[str, Any]:
    """Units and ranges of what comes out."""
    side = input_size(config, task)
    if task == "depth":
        note = f"not clamped; clamp at {MIN_DEPTH} once windows and flips are averaged"
        return {"predicted_depth": {"shape": ["batch", side, side], "unit": "metre", "note": note}}
    outputs = {"boxes": {"unit": "pixel", "note": "x1, y1, x2, y2 in the padded image; not clipped, may be inverted"}}
    if task == "instance":
        outputs["mask_values"] = {"unit": "1", "note": "0.5 is the edge; not clipped to [0, 1]; spans the box"}
    return outputs


def grammar_metadata(config: AiTConfig, task: str) -> dict[str, Any]:
    """What the decoding loop of `driver.py` needs: columns allowed per position, lengths, cache shape."""
    rows, decoder = used_rows(config, task), config.decoder_config
    if task == "depth":
        pattern = depth_grammar(config.vocabulary, 1, config.soft_feedback)
    else:
        pattern = object_grammar(config.vocabulary, 1, config.tokens_per_object[task], config.soft_feedback)
    length, heads = config.sequence_length(task), decoder.num_attention_heads
    blocks = range(decoder.num_decoder_layers)
    settings = {
        "length": length,
        "num_tokens": rows.size,
        "grammar": [_columns(step, rows) for step in pattern],
        "cache_names": [f"{kind}_{block}" for block in blocks for kind in ("keys", "values")],
        "cache_shape": [heads, length, decoder.hidden_size // heads],
    }
    if task != "depth":
        settings["noise"] = rows.to_index(config.vocabulary.noise)
        settings["pixels_per_bin"] = config.coordinate_scale / config.num_bins
        names: dict[Any, str] = config.id2label
        settings["class_names"] = [names[index] for index in range(config.num_labels)]
    return settings


def _columns(step: TokenStep, rows: IdRange) -> dict[str, Any]:
    return {"start": rows.to_index(step.allowed.start), "stop": rows.to_index(step.allowed.stop), "soft": step.soft}


def write_metadata(folder: Path, settings: dict[str, Any]) -> None:
    """Write `export.json`."""
    (folder / METADATA_FILE).write_text(json.dumps(settings, indent=2) + "\n")
