"""Decode with exported parts: NumPy and onnxruntime alone, so that this file can be copied to wherever they run."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]
Part = Callable[[Arrays], Arrays]


def load_parts(folder: str | Path, providers: tuple[str, ...] = ("CPUExecutionProvider",)) -> tuple[dict, dict]:
    """Settings of an export, and its parts as functions from named arrays to named arrays.

    Args:
        folder: what `python -m transformers_ait.export` wrote, with `--format onnx`.
        providers: onnxruntime's execution providers.
    """
    settings = json.loads((Path(folder) / "export.json").read_text())
    return settings, {name: load_part(Path(folder) / file, providers) for name, file in settings["files"].items()}


def load_part(file: str | Path, providers: tuple[str, ...] = ("CPUExecutionProvider",), threads: int = 0) -> Part:
    """One .onnx file as a function of named arrays, which ignores arrays of other names; 0 threads are ort's choice."""
    import onnxruntime  # here, so that files of other formats are checked without it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=list(providers))
    inputs = [entry.name for entry in session.get_inputs()]
    outputs = [entry.name for entry in session.get_outputs()]
    return lambda arrays: dict(zip(outputs, session.run(outputs, {name: arrays[name] for name in inputs}), strict=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def choose_next(settings: dict, position: int, logits: np.ndarray) -> np.ndarray:
    """What is fed back: the most probable token of those allowed at a position, or their probabilities where soft."""
    allowed = settings["grammar"][position % len(settings["grammar"])]
    columns = slice(allowed["start"], allowed["stop"])
    weights = np.zeros_like(logits)
    if allowed["soft"]:
        weights[:, columns] = softmax(logits[:, columns])
    else:
        weights[np.arange(len(logits)), allowed["start"] + logits[:, columns].argmax(axis=1)] = 1
    return weights


def decode(
    parts: dict[str, Part],
    settings: dict,
    pixel_values: np.ndarray,
    choose: Callable[[dict, int, np.ndarray], np.ndarray] = choose_next,
) -> np.ndarray:
    """Logits (B, L, V') of every position of images (B, 3, S, S)."""
    state = parts["encoder"]({"pixel_values": pixel_values})
    cache = np.zeros((len(pixel_values), *settings["cache_shape"]), np.float32)
    for name in settings["cache_names"]:
        state[f"past_{name}"] = cache
    weights = np.zeros((len(pixel_values), settings["num_tokens"]), np.float32)
    all_logits = []
    for position in range(settings["length"]):
        state |= {"token_weights": weights, "position": np.array(position)}
        outputs = parts["step"](state)
        state |= {f"past_{name}": outputs[f"present_{name}"] for name in settings["cache_names"]}
        all_logits.append(outputs["logits"])
        weights = choose(settings, position, outputs["logits"])
    return np.stack(all_logits, axis=1)


def predict_map(parts: dict[str, Part], settings: dict, pixel_values: np.ndarray) -> np.ndarray:
    """Map (B, [C,] S, S) of images (B, 3, S, S); `settings["outputs"]` says what its values are."""
    (output,) = settings["outputs"]
    if "grammar" not in settings:  # a task that is predicted in one pass is a single part
        return parts[settings["task"]]({"pixel_values": pixel_values})[output]
    code_logits = decode(parts, settings, pixel_values)
    return parts["detokenizer"]({"code_logits": code_logits})[output]


def predict_depth(parts: dict[str, Part], settings: dict, pixel_values: np.ndarray) -> np.ndarray:
    """Depth (B, S, S) in metres, not clamped, of images (B, 3, S, S)."""
    return predict_map(parts, settings, pixel_values)


def predict_objects(parts: dict[str, Part], settings: dict, pixel_values: np.ndarray) -> Arrays:
    """Objects of images (B, 3, S, S), chosen greedily.

    Returns:
        boxes (B, N, 4), xyxy pixels, not clipped, possibly inverted; class_labels (B, N); scores (B, N); of an
        instance model also mask_values (B, N, h, w), 0.5 is the edge, not clipped to [0, 1].
    """
    grammar, logits = settings["grammar"], decode(parts, settings, pixel_values)
    logits = logits.reshape(len(logits), -1, len(grammar), settings["num_tokens"])  # (B, objects, tokens of one, V')
    allowed = [logits[:, :, i, entry["start"] : entry["stop"]] for i, entry in enumerate(grammar)]
    chosen = [x.argmax(axis=-1) for x in allowed]
    # The noise class may not be chosen, but counts in the probabilities.
    rivals = np.concatenate((allowed[4], logits[:, :, 4, settings["noise"], None]), axis=-1)
    scores = np.take_along_axis(softmax(rivals), chosen[4][..., None], axis=-1)[..., 0]
    objects = {
        "boxes": np.stack(chosen[:4], axis=-1) * settings["pixels_per_bin"],
        "class_labels": chosen[4],
        "scores": scores,
    }
    if "detokenizer" in parts:
        code_logits = np.stack(allowed[5:], axis=2)
        masks = parts["detokenizer"]({"code_logits": code_logits.reshape(-1, *code_logits.shape[2:])})["mask_values"]
        objects["mask_values"] = masks.reshape(*code_logits.shape[:2], *masks.shape[1:])
    return objects
