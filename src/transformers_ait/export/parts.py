"""Which parts a model is exported in, and the proof of each against the model itself."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..configuration_ait import TASK_IDS, AiTConfig
from ..decoding_tokens import decode_autoregressively
from ..modeling_ait import AiTForDenseAndInstancePrediction
from ..sequence_ait import HEADER_LENGTH, depth_grammar, object_grammar
from .driver import Part, choose_next, decode
from .metadata import input_size, used_rows
from .modules import DecodingStep, Detokenizer, MemoryEncoder, ParallelDepth
from .programs import EXAMPLE_BATCH, ExportError, ModulePart

# Largest difference from the model: metres of depth, mask values (0..1), logits.
TOLERANCE = 1e-3


@dataclass
class Deviation:
    """Largest absolute difference between an exported file and the model.

    Args:
        quantity: what was compared.
        batch: how many images at once.
        maximum: the difference.
    """

    quantity: str
    batch: int
    maximum: float


def build_parts(model: AiTForDenseAndInstancePrediction, task: str, batch: int | None) -> dict[str, ModulePart]:
    """Modules by name: `depth` of a parallel model; else `encoder`, `step` and, unless for boxes alone, `detokenizer`.

    Args:
        model: a float32 model in evaluation mode.
        task: one of `config.tasks`.
        batch: images at a time; None leaves it open.
    """
    config, count = model.config, batch or EXAMPLE_BATCH
    images = {"pixel_values": _random_images(config, task, count)}
    if config.parallel:
        return {"depth": ModulePart(ParallelDepth(model), images, ("predicted_depth",), ("pixel_values",))}
    blocks = range(config.decoder_config.num_decoder_layers)
    names = [f"{kind}_{block}" for block in blocks for kind in ("keys", "values")]
    memory = tuple(f"memory_{name}" for name in names)
    parts = {"encoder": ModulePart(MemoryEncoder(model), images, memory, ("pixel_values",))}
    parts["step"] = _step_part(model, task, count, names)
    tokenizer = {"depth": model.depth_tokenizer, "instance": model.mask_tokenizer}.get(task)
    if tokenizer is not None:
        # Masks are decoded for every object of every image.
        maps = count if task == "depth" else count * config.num_objects
        code_logits = {"code_logits": torch.randn(maps, tokenizer.config.num_tokens, tokenizer.config.num_codes)}
        output = "predicted_depth" if task == "depth" else "mask_values"
        detokenizer = Detokenizer(tokenizer, config.soft_decode)
        parts["detokenizer"] = ModulePart(detokenizer, code_logits, (output,), ("code_logits",))
    return parts


def _step_part(model: AiTForDenseAndInstancePrediction, task: str, batch: int, names: list[str]) -> ModulePart:
    config, decoder = model.config, model.config.decoder_config
    rows, heads = used_rows(config, task), decoder.num_attention_heads
    head_dim, length = decoder.hidden_size // heads, config.sequence_length(task)
    inputs = {"token_weights": torch.randn(batch, rows.size), "position": torch.tensor(1)}
    inputs |= {f"memory_{name}": torch.randn(batch, heads, config.grid_size**2, head_dim) for name in names}
    inputs |= {f"past_{name}": torch.randn(batch, heads, length, head_dim) for name in names}
    outputs = ("logits", *(f"present_{name}" for name in names))
    return ModulePart(
        DecodingStep(model, task, rows.rows), inputs, outputs, tuple(name for name in inputs if name != "position")
    )


def _random_images(config: AiTConfig, task: str, batch: int) -> Tensor:
    side = input_size(config, task)
    return torch.rand(batch, config.backbone_config.num_channels, side, side)


def check_parts(
    model: AiTForDenseAndInstancePrediction, task: str, parts: dict[str, Part], settings: dict, batch: int
) -> list[Deviation]:
    """Compare exported parts with the model's own `generate`, on random images.

    Autoregressive parts get the tokens that the model chose, because one near-tie decided otherwise would make every
    later position differ.

    Args:
        model: the model.
        task: the task exported.
        parts: the exported parts by name.
        settings: contents of `export.json`.
        batch: images at once.

    Raises:
        ExportError: a part deviates by more than `TOLERANCE`, or gives something else than numbers.
    """
    images = _random_images(model.config, task, batch)
    expected = model.generate(images, task, top_p=0.0)
    if "depth" in parts:
        depth = parts["depth"]({"pixel_values": images.numpy()})["predicted_depth"]
        return [_require_close("predicted_depth", depth, expected.predicted_depth.numpy(), batch)]
    reference, known = _reference_logits(model, task, images, settings)
    logits = decode(
        parts, settings, images.numpy(), lambda _, position, __: choose_next(settings, position, reference[:, position])
    )
    deviations = [_require_close("logits", np.where(known, logits, 0), reference, batch)]
    if "detokenizer" in parts:
        output = "predicted_depth" if task == "depth" else "mask_values"
        maps = parts["detokenizer"]({"code_logits": _code_logits(logits, settings)})[output]
        deviations.append(_require_close(output, maps, getattr(expected, output).numpy().reshape(maps.shape), batch))
    return deviations


def _reference_logits(
    model: AiTForDenseAndInstancePrediction, task: str, images: Tensor, settings: dict
) -> tuple[np.ndarray, np.ndarray]:
    """The model's own logits (B, L, V'), 0 where the grammar allows nothing, and where (L, V') it allows something."""
    config, rows = model.config, used_rows(model.config, task)
    if task == "depth":
        grammar = depth_grammar(config.vocabulary, config.sequence_length(task), config.soft_feedback)
    else:
        tokens = config.tokens_per_object[task]
        grammar = object_grammar(config.vocabulary, config.num_objects, tokens, config.soft_feedback)
    with torch.no_grad():
        memory = model.get_encoder_memory(images)
    decoded = decode_autoregressively(model.model.decoder, memory, TASK_IDS[task], grammar)
    reference = np.zeros((len(images), len(grammar), rows.size), np.float32)
    known = np.zeros(reference.shape[1:], bool)
    for position, (step, logits) in enumerate(zip(grammar, decoded.step_logits, strict=True)):
        columns = list(range(rows.to_index(step.allowed.start), rows.to_index(step.allowed.stop)))
        columns += [] if step.rival is None else [rows.to_index(step.rival)]
        reference[:, position, columns] = logits.numpy()
        known[position, columns] = True
    return reference, known


def _code_logits(logits: np.ndarray, settings: dict) -> np.ndarray:
    """Code logits of every depth map or mask, of logits (B, L, V')."""
    if settings["task"] == "depth":
        return logits
    grammar = settings["grammar"]
    return logits.reshape(-1, len(grammar), logits.shape[2])[
        :, HEADER_LENGTH:, grammar[-1]["start"] : grammar[-1]["stop"]
    ]


def _require_close(quantity: str, exported: np.ndarray, expected: np.ndarray, batch: int) -> Deviation:
    deviation = Deviation(quantity, batch, float(np.abs(exported - expected).max()))
    # Written so that NaN fails too.
    if not deviation.maximum <= TOLERANCE:
        raise ExportError(
            f"Of {batch} image(s) the exported {quantity} deviate by {deviation.maximum:.2g} from the model's; at most "
            f"{TOLERANCE:g} is allowed. Nothing was kept."
        )
    return deviation
