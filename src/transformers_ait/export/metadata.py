"""What the user of an exported file has to know, as `export.json`: preprocessing, names, shapes, units, the grammar."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor

from ..configuration_ait import AiTConfig
from ..map_kinds_ait import MIN_DEPTH
from ..sequence_ait import HEADER_LENGTH, TokenStep, map_grammar, object_grammar
from ..token_vocabulary import IdRange

METADATA_FILE = "export.json"
PROCESSOR_FILE = "preprocessor_config.json"
# What predicted maps hold, by the name of their kind: unit, and what is left to do.
MAP_NOTES = {
    "depth": ("metre", f"not clamped; clamp at {MIN_DEPTH} once windows and flips are averaged"),
    "normals": ("1", "x right, y down, z ahead; divide by the length, also before windows and flips are averaged"),
    "classes": ("logit", "scores of the classes; the largest is the class, of windows and flips after a softmax"),
    "values": ("that of the data", "not clipped"),
}


def processor_path(folder: Path, config: AiTConfig, task: str) -> Path:
    """The image processor's file of a task: the folder's, or a subfolder's where another is needed than by default.

    Raises:
        FileNotFoundError: there is none.
    """
    # One processor serves all maps, another one all objects.
    if (task in config.dense) == (config.default_task in config.dense):
        found = [folder / PROCESSOR_FILE]
    else:
        found = [folder / task / PROCESSOR_FILE, *sorted(folder.glob(f"*/{PROCESSOR_FILE}"))]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"There is no {found[0]}, which says how images become the model's input; save the image processor there "
            "with processor.save_pretrained."
        )
    return path


def in_one_pass(config: AiTConfig, task: str) -> bool:
    """Whether a task is predicted without steps."""
    return config.parallel and task in config.dense


def map_name(config: AiTConfig, task: str) -> str:
    """Name of the maps or masks that a task puts out; empty for boxes alone."""
    if task in config.dense:
        return f"predicted_{task}"
    return "mask_values" if config.tokens_per_object[task] > HEADER_LENGTH else ""


def input_size(config: AiTConfig, task: str) -> int:
    """Side in pixels of the square images that a task takes."""
    return config.dense[task].tokenizer_config.image_size if task in config.dense else config.image_size


def task_grammar(config: AiTConfig, task: str, entries: int) -> list[TokenStep]:
    """What the positions of a task may hold.

    Args:
        config: the model's configuration.
        task: one of its tasks.
        entries: codes of a map, or objects.
    """
    if task in config.dense:
        return map_grammar(config.vocabulary.codes(task), entries, config.soft_feedback)
    return object_grammar(config.vocabulary, entries, config.tokens_per_object[task], config.soft_feedback)


def used_rows(config: AiTConfig, task: str) -> IdRange:
    """The vocabulary ids that a task's step multiplies; `num_tokens` of them."""
    vocabulary = config.vocabulary
    if task in config.dense:
        return vocabulary.codes(task)
    return IdRange(0, vocabulary.noise + 1 if task == "detection" else vocabulary.mask_codes.stop)


def image_metadata(processor_file: Path, config: AiTConfig, task: str) -> dict[str, Any]:
    """The input: a pixel of 0..255 becomes `(pixel * rescale_factor - mean) / std`.

    Args:
        processor_file: a preprocessor_config.json.
        config: the model's configuration.
        task: one of its tasks.
    """
    processor: Any = AutoImageProcessor.from_pretrained(processor_file.parent)
    side = input_size(config, task)
    return {
        "name": "pixel_values",
        "dtype": "float32",
        "shape": ["batch", 3, side, side],
        "channels": "RGB",
        "rescale_factor": processor.rescale_factor if processor.do_rescale else 1.0,
        "mean": list(processor.image_mean) if processor.do_normalize else [0.0, 0.0, 0.0],
        "std": list(processor.image_std) if processor.do_normalize else [1.0, 1.0, 1.0],
        "padding": None if task in config.dense else "zeros at bottom and right, after normalisation",
    }


def output_metadata(config: AiTConfig, task: str) -> dict[str, Any]:
    """Units and ranges of what comes out."""
    side = input_size(config, task)
    if task in config.dense:
        spec = config.dense[task]
        unit, note = MAP_NOTES[spec.kind]
        channels = [spec.channels] if spec.map_kind.has_channels or spec.map_kind.has_scores else []
        entry = {"shape": ["batch", *channels, side, side], "unit": unit, "note": note}
        if spec.class_names is not None:
            entry["class_names"] = list(spec.class_names)
        return {map_name(config, task): entry}
    outputs = {"boxes": {"unit": "pixel", "note": "x1, y1, x2, y2 in the padded image; not clipped, may be inverted"}}
    if task == "instance":
        outputs["mask_values"] = {"unit": "1", "note": "0.5 is the edge; not clipped to [0, 1]; spans the box"}
    return outputs


def grammar_metadata(config: AiTConfig, task: str) -> dict[str, Any]:
    """What the decoding loop of `driver.py` needs: columns allowed per position, lengths, cache shape."""
    rows, decoder = used_rows(config, task), config.decoder_config
    length, heads = config.sequence_length(task), decoder.num_attention_heads
    blocks = range(decoder.num_decoder_layers)
    settings = {
        "length": length,
        "num_tokens": rows.size,
        "grammar": [_columns(step, rows) for step in task_grammar(config, task, 1)],
        "cache_names": [f"{kind}_{block}" for block in blocks for kind in ("keys", "values")],
        "cache_shape": [heads, length, decoder.hidden_size // heads],
    }
    if task not in config.dense:
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
