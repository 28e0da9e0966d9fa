"""Which parts a model is exported in, and the proof of each against the model itself."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..configuration_ait import AiTConfig
from ..decoding_tokens import decode_autoregressively
from ..modeling_ait import AiTForDenseAndInstancePrediction
from ..sequence_ait import HEADER_LENGTH
from .driver import Part, choose_next, decode
from .metadata import in_one_pass, input_size, map_name, task_grammar, used_rows
from .modules import DecodingStep, Detokenizer, MemoryEncoder, ParallelMap
from .programs import EXAMPLE_BATCH, ExportError, ModulePart

# Largest difference from the model: metres of depth, values of other maps by their scale, mask values (0..1), logits.
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
    """Modules by name: a parallel model's dense task; else `encoder`, `step` and, unless for boxes, `detokenizer`.

    Args:
        model: a float32 model in evaluation mode.
        task: one of `config.tasks`.
        batch: images at a time; None leaves it open.
    """
    config, count = model.config, batch or EXAMPLE_BATCH
    images = {"pixel_values": _random_images(config, task, count)}
    output = map_name(config, task)
    if in_one_pass(config, task):
        return {task: ModulePart(ParallelMap(model, task), images, (output,), ("pixel_values",))}
    blocks = range(config.decoder_config.num_decoder_layers)
    names = [f"{kind}_{block}" for block in blocks for kind in ("keys", "values")]
    memory = tuple(f"memory_{name}" for name in names)
    parts = {"encoder": ModulePart(MemoryEncoder(model), images, memory, ("pixel_values",))}
    parts["step"] = _step_part(model, task, count, names)
    if output:
        tokenizer, spec = model.tokenizer(task), config.dense.get(task)
        # Masks are decoded for every object of every image.
        maps = count * config.num_objects if spec is None else count
        code_logits = {"code_logits": torch.randn(maps, tokenizer.config.num_tokens, tokenizer.config.num_codes)}
        detokenizer = Detokenizer(tokenizer, config.soft_decode, None if spec is None else spec.map_kind)
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
    output, spec = map_name(model.config, task), model.config.dense.get(task)
    maps = expected.mask_values if spec is None else expected.dense_maps[task]
    scale = 1.0 if spec is None else getattr(spec.tokenizer_config, "value_scale", 1.0)
    if in_one_pass(model.config, task):
        found = parts[task]({"pixel_values": images.numpy()})[output]
        return [_require_close(output, found / scale, maps.numpy() / scale, batch)]
    reference, known = _reference_logits(model, task, images, settings)
    logits = decode(
        parts, settings, images.numpy(), lambda _, position, __: choose_next(settings, position, reference[:, position])
    )
    deviations = [_require_close("logits", np.where(known, logits, 0), reference, batch)]
    if output:
        code_logits = _mask_logits(logits, settings) if spec is None else logits
        found = parts["detokenizer"]({"code_logits": code_logits})[output]
        deviations.append(_require_close(output, found / scale, maps.numpy().reshape(found.shape) / scale, batch))
    return deviations


def _reference_logits(
    model: AiTForDenseAndInstancePrediction, task: str, images: Tensor, settings: dict
) -> tuple[np.ndarray, np.ndarray]:
    """The model's own logits (B, L, V'), 0 where the grammar allows nothing, and where (L, V') it allows something."""
    config, rows = model.config, used_rows(model.config, task)
    grammar = task_grammar(config, task, config.sequence_length(task) if task in config.dense else config.num_objects)
    with torch.no_grad():
        memory = model.get_encoder_memory(images)
    decoded = decode_autoregressively(model.model.decoder, memory, config.task_ids[task], grammar)
    reference = np.zeros((len(images), len(grammar), rows.size), np.float32)
    known = np.zeros(reference.shape[1:], bool)
    for position, (step, logits) in enumerate(zip(grammar, decoded.step_logits, strict=True)):
        columns = list(range(rows.to_index(step.allowed.start), rows.to_index(step.allowed.stop)))
        columns += [] if step.rival is None else [rows.to_index(step.rival)]
        reference[:, position, columns] = logits.numpy()
        known[position, columns] = True
    return reference, known


def _mask_logits(logits: np.ndarray, settings: dict) -> np.ndarray:
    """Code logits of every mask, of logits (B, L, V')."""
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
