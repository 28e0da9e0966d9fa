"""Speed beside a plain formulation of the same model, with results that agree, and the backbone in bfloat16.

The plain formulation is `transformers_ait.conversion.plain`: position bias evaluated in every block, softmax written
out, cross-attention keys recomputed at every step, cache by concatenation. All in float32, except where bfloat16 is
named.
"""

import copy
from collections.abc import Callable, Sequence

import torch

from transformers_ait import AiTForDenseAndInstancePrediction
from transformers_ait.configuration_ait import TASK_IDS
from transformers_ait.conversion.plain.backbone import plain_backbone
from transformers_ait.conversion.plain.decoder import Cache, plain_decoder_step, plain_encoder_memory, plain_start
from transformers_ait.conversion.plain.prediction import plain_decode_depth, plain_predict_depth
from transformers_ait.decoding_tokens import (
    DecodingRequest,
    decode_autoregressively,
    decode_in_parallel,
    decode_together,
    nucleus_choice,
)
from transformers_ait.sequence_ait import TokenStep, map_grammar, object_grammar

from .models import TOKEN_SCALE, build, original_form
from .report import Measured, Part, floor_of, table
from .setting import Setting, limited_threads
from .timing import (
    Comparison,
    Run,
    Timed,
    compare,
    count_flops,
    interleave,
    matrix_product,
    milliseconds,
)

INSTANCE_MEMORY = 400  # positions of a 640 x 640 image at stride 32
HEADER = ("what", "plain (A)", "ours (B)", "A / B", "floor", "deviation")


def plain_decode_objects_cached(
    tensors: dict[str, torch.Tensor],
    config: dict,
    memory: torch.Tensor,
    task_id: int,
    grammar: Sequence[TokenStep],
    top_p: float,
    draws: torch.Tensor,
) -> list[torch.Tensor]:
    """The plain loop over an object sequence: cache by concatenation, the whole vocabulary multiplied at every step.

    Args:
        tensors: original tensors.
        config: original model configuration.
        memory: encoder memory (B, N, d).
        task_id: row of the task and position embeddings.
        grammar: one entry per position.
        top_p: nucleus of the positions that the grammar samples.
        draws: (L,) random numbers in [0, 1), one per position.

    Returns:
        Per step the logits (B, K) of what may stand there.
    """
    embeddings, positions = tensors["transformer.voc_embed"], tensors["transformer.dec_embed"][task_id]
    new = plain_start(tensors, task_id, memory.shape[0])
    cache: Cache | None = None
    collected = []
    for index, step in enumerate(grammar):
        logits, cache = plain_decoder_step(tensors, config, new, memory, cache)
        logits, rows = logits[:, -1, step.allowed.rows], embeddings[step.allowed.rows]
        choice = nucleus_choice(logits, top_p, draws[index]) if step.sampled else logits.argmax(dim=-1)
        following = torch.softmax(logits, dim=-1) @ rows if step.soft else rows[choice]
        new = (following + positions[(index + 1) % len(positions)])[:, None]
        collected.append(logits)
    return collected


def object_decodes(setting: Setting) -> tuple[Run, Run, int]:
    """Plain and our decode of instances (nucleus on coordinates and classes, soft mask codes), and their steps."""
    # A small backbone, which is not run, and the decoder in full size.
    model = setting.place(build(tiny=True, parallel=False))
    decoder, task = model.model.decoder, TASK_IDS["instance"]
    # Codes as they were drawn: fed back softly over 2100 steps, larger ones make a chaos of rounding errors.
    decoder.token_embeddings[model.config.vocabulary.classes.stop :].div_(TOKEN_SCALE)
    tensors, config = original_form(model)
    grammar = object_grammar(model.config.vocabulary, 2 if setting.tiny else 100, tokens_per_object=21, soft=True)
    memory = torch.randn(1, INSTANCE_MEMORY, decoder.config.hidden_size).to(setting.device)
    top_p = model.config.top_p

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def plain() -> torch.Tensor:
        draws = torch.rand(len(grammar), generator=seeded()).to(setting.device)
        return torch.cat(plain_decode_objects_cached(tensors, config, memory, task, grammar, top_p, draws), dim=1)

    def ours() -> torch.Tensor:
        decoded = decode_autoregressively(decoder, memory, task, grammar, top_p, seeded())
        pairs = zip(decoded.step_logits, grammar, strict=True)
        return torch.cat([logits[:, : step.allowed.size] for logits, step in pairs], dim=1)  # without the noise class

    return plain, ours, len(grammar)


def _decode(model: AiTForDenseAndInstancePrediction, memory: torch.Tensor) -> torch.Tensor:
    """Code logits (B, L, K) of our depth decode."""
    config = model.config
    run = decode_in_parallel if config.parallel else decode_together
    grammar = map_grammar(config.vocabulary.depth_codes, config.sequence_length("depth"), config.soft_feedback)
    requests = [DecodingRequest(TASK_IDS["depth"], grammar)]
    return torch.stack(run(model.model.decoder, memory, requests)[0].step_logits, dim=1)


def compare_decodes(model: AiTForDenseAndInstancePrediction, setting: Setting) -> dict[str, Comparison]:
    """Both step-by-step decodes, and on a CPU with several threads once more on one.

    Two threads that share every small step suffer from anything else that runs; one thread does not.
    """
    tensors, config = original_form(model)
    memory = model.get_encoder_memory(setting.images(1, model.config.image_size, model.config.image_size))
    length = model.config.sequence_length("depth")
    objects_plain, objects_ours, steps = object_decodes(setting)

    def both(suffix: str) -> tuple[Comparison, Comparison]:
        depth = compare(
            f"autoregressive decode, {length} steps{suffix}",
            lambda: plain_decode_depth(tensors, config, memory)[1],
            lambda: _decode(model, memory),
            setting,
            floor_of("depth_decode"),
        )
        return depth, compare(
            f"instance decode, {steps} steps{suffix}",
            objects_plain,
            objects_ours,
            setting,
            floor_of("instance_decode"),
        )

    found = dict(zip(("depth_decode", "instance_decode"), both(""), strict=True))
    if not setting.on_gpu and torch.get_num_threads() > 1:
        with limited_threads(1):
            found |= zip(("depth_decode_1t", "instance_decode_1t"), both(", on one thread"), strict=True)
    return found


def compare_whole(
    model: AiTForDenseAndInstancePrediction, parallel: AiTForDenseAndInstancePrediction, setting: Setting
) -> dict[str, Comparison]:
    """Memory and both depth models end to end; the parallel decode against ours step by step."""
    tensors, config = original_form(model)
    parallel_tensors, parallel_config = original_form(parallel)
    image = setting.images(1, model.config.image_size, model.config.image_size)
    memory = model.get_encoder_memory(image)
    length = model.config.sequence_length("depth")
    return {
        "encoder_memory": compare(
            "memory (backbone + encoder)",
            lambda: plain_encoder_memory(tensors, config, plain_backbone(tensors, config, image)),
            lambda: model.get_encoder_memory(image),
            setting,
        ),
        "parallel_decode": compare(
            f"parallel (B) against autoregressive decode (A), {length} tokens, both ours",
            lambda: _decode(model, memory),
            lambda: _decode(parallel, memory),
            setting,
            agree=False,
        ),
        "autoregressive": compare(
            "depth end to end, autoregressive, one window",
            lambda: plain_predict_depth(tensors, config, image),
            lambda: model.generate(image).predicted_depth,
            setting,
            floor_of("autoregressive"),
        ),
        "parallel_plain": compare(
            "depth end to end, parallel, one window",
            lambda: plain_predict_depth(parallel_tensors, parallel_config, image),
            lambda: parallel.generate(image).predicted_depth,
            setting,
        ),
    }


def backbone_runs(model: AiTForDenseAndInstancePrediction, setting: Setting) -> tuple[dict[str, Run], dict[str, int]]:
    """Every way to run the backbone, and the matrix products that bound it; floating-point operations of both kinds."""
    tensors, config = original_form(model)
    image = setting.images(1, model.config.image_size, model.config.image_size)
    converted = copy.deepcopy(model.model).to(torch.bfloat16)

    def autocast() -> torch.Tensor:
        with torch.autocast(setting.device.type, dtype=torch.bfloat16):
            return model.get_image_features(image)

    product, product_flops = matrix_product(setting)
    runs: dict[str, Run] = {
        "plain": lambda: plain_backbone(tensors, config, image),
        "ours": lambda: model.get_image_features(image),
        "bfloat16 by autocast": autocast,
        "converted to bfloat16": lambda: converted.get_image_features(image),
        "product": product,
    }
    # Ours counts no position bias, once cached: only what has to be done for every image.
    runs["ours"]()
    return runs, {"backbone": count_flops(runs["ours"]), "product": product_flops}


def relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference over the reference's norm."""
    return ((result.float() - reference).norm() / reference.norm()).item()


def ceiling_share(timed: dict[str, Timed], flops: dict[str, int]) -> float:
    """The backbone's rate over the matrix product's, percent."""
    rate = flops["backbone"] / timed["ours"].median
    return 100 * rate * timed["product"].median / flops["product"]


def bfloat16_part(timed: dict[str, Timed]) -> tuple[list[str], Measured]:
    """Table of the two ways to run the backbone in bfloat16, and the better ratio."""
    ours = timed["ours"]
    forms = ("bfloat16 by autocast", "converted to bfloat16")
    ratios = {form: ours.median / timed[form].median for form in forms}
    errors = {form: 100 * relative_error(timed[form].result, ours.result) for form in forms}
    best = max(forms, key=lambda form: ratios[form])
    rows = [(form, milliseconds(timed[form].median), f"{ratios[form]:.2f}x", f"{errors[form]:.2f} %") for form in forms]
    lines = table(("backbone", "time", "float32 time / this", "relative error against float32"), rows)
    return lines, Measured(ratios[best], f"{best}, {errors[best]:.1f} % error")


def overhead(parallel: AiTForDenseAndInstancePrediction, setting: Setting) -> tuple[str, Measured]:
    """AiT-P's time over its own backbone's."""
    image = setting.images(1, parallel.config.image_size, parallel.config.image_size)
    runs: dict[str, Callable] = {
        "whole": lambda: parallel.generate(image),
        "backbone": lambda: parallel.get_image_features(image),
    }
    timed = interleave("AiT-P and its backbone", runs, setting)
    whole, backbone = timed["whole"].median, timed["backbone"].median
    line = (
        f"AiT-P end to end takes {milliseconds(whole)}, its backbone {milliseconds(backbone)}: {whole / backbone:.3f}x."
    )
    return line, Measured(whole / backbone)


def measure(setting: Setting) -> Part:
    """All comparisons, in float32."""
    setting = setting.in_float32
    model, parallel = (setting.place(build(setting.tiny, parallel=kind)) for kind in (False, True))
    runs, flops = backbone_runs(model, setting)
    timed = interleave("backbone", runs, setting)
    deviation = (timed["plain"].result - timed["ours"].result).abs().max().item()
    backbone = Comparison("backbone", timed["plain"], timed["ours"], deviation, floor_of("backbone"))
    print(" | ".join(backbone.cells()), flush=True)
    share = ceiling_share(timed, flops)
    bfloat16_lines, bfloat16 = bfloat16_part(timed)
    del runs
    overhead_line, overhead_ratio = overhead(parallel, setting)
    found = {"backbone": backbone, **compare_whole(model, parallel, setting), **compare_decodes(model, setting)}
    measured = {
        "ceiling": Measured(share),
        "backbone_bf16": bfloat16,
        "parallel": overhead_ratio,
        **{key: Measured(comparison.ratio) for key, comparison in found.items()},
    }
    rate = flops["product"] / timed["product"].median / 1e9
    lines = [
        "Plain: `transformers_ait.conversion.plain`, float32. Deviation: largest absolute difference of the results.",
        "",
        *table(HEADER, (comparison.cells() for comparison in found.values())),
        "",
        f"The backbone takes {flops['backbone'] / 1e9:.0f} GFLOP. The matrix product, timed in the same rounds, runs "
        f"at {rate:.0f} GFLOP/s, and the backbone at {share:.0f} % of that.",
        "",
        overhead_line,
        "",
        *bfloat16_lines,
    ]
    return Part("Against the plain formulation", lines, measured)
