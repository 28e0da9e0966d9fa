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

    Raises:
        OSError: a file is missing or damaged.
        ValueError: export.json does not say what an export says.
    """
    path = Path(folder) / "export.json"
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as error:
        raise OSError(
            f"{path} is no readable JSON file ({error}); copy it, or export the checkpoint, again."
        ) from error
    files = settings.get("files") if isinstance(settings, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, str) and file for file in files.values()):
        raise ValueError(f"{path} must hold `files`, a file name for each part, got {files!r:.80}; export again.")
    return settings, {name: load_part(Path(folder) / file, providers) for name, file in files.items()}


def load_part(file: str | Path, providers: tuple[str, ...] = ("CPUExecutionProvider",), threads: int = 0) -> Part:
    """One .onnx file as a function of named arrays, which ignores arrays of other names; 0 threads are ort's choice.

    Raises:
        OSError: the file is missing or damaged; of the function ValueError, for arrays that do not fit.
    """
    import onnxruntime  # here, so that files of other formats are checked without it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"There is no {file}, which export.json names; copy it, or export the checkpoint, again."
        )
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=list(providers))
    except Exception as error:  # onnxruntime's own types, one for each kind of damage
        raise OSError(f"{file} is no program that onnxruntime can read ({error}); copy it or export again.") from error
    inputs = [entry.name for entry in session.get_inputs()]
    outputs = [entry.name for entry in session.get_outputs()]

    def run(arrays: Arrays) -> Arrays:
        given = {name: arrays[name] for name in inputs}
        try:
            return dict(zip(outputs, session.run(outputs, given), strict=True))
        except Exception as error:
            forms = ", ".join(f"{name} {x.dtype} {x.shape}" for name, x in given.items())
            raise ValueError(f"{file} cannot take {forms} ({error}); see `input` in export.json.") from error

    return run


def check_pixels(pixel_values: np.ndarray) -> None:
    """Raise an error for what is no batch of images (B, 3, S, S) as float32."""
    if not isinstance(pixel_values, np.ndarray) or pixel_values.dtype != np.float32:
        form = getattr(pixel_values, "dtype", type(pixel_values).__name__)
        raise TypeError(f"pixel_values must be a float32 array, got {form}; see `input` in export.json.")
    if pixel_values.ndim != 4 or 0 in pixel_values.shape:
        raise ValueError(f"pixel_values must be (batch, 3, height, width), got the shape {pixel_values.shape}.")


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
    check_pixels(pixel_values)
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
    outputs, task = settings.get("outputs"), settings.get("task")
    if not isinstance(outputs, dict) or len(outputs) != 1:
        raise ValueError(f"export.json must hold `outputs` with the one map of the task, got {outputs!r:.80}.")
    (output,) = outputs
    if "grammar" not in settings:  # a task that is predicted in one pass is a single part
        check_pixels(pixel_values)
        if not isinstance(task, str) or task not in parts:
            raise ValueError(f"export.json must name as `task` one of its parts {[*parts]}, got {task!r:.80}.")
        made = parts[task]({"pixel_values": pixel_values})
        if output not in made:
            raise ValueError(f"export.json must name as `outputs` one of {[*made]}, got {output!r:.80}.")
        return made[output]
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
