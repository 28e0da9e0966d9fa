"""Where the time of a depth prediction goes: backbone, encoder, decode, detokenize, post-process."""

from typing import Any

import torch

from transformers_ait import AiTDepthImageProcessor, AiTForDenseAndInstancePrediction
from transformers_ait.configuration_ait import TASK_IDS
from transformers_ait.decoding_tokens import DecodingRequest, decode_in_parallel, decode_together
from transformers_ait.sequence_ait import map_grammar

from .models import build
from .report import Part, table
from .setting import Setting
from .timing import Run, count_flops, interleave, matrix_product, milliseconds

PHOTO_SIZE = (480, 640)
COMPONENTS = ("backbone", "encoder", "decode", "detokenize", "post-process")
WHOLE, PRODUCT = "whole", "product"


def component_runs(model: AiTForDenseAndInstancePrediction, setting: Setting) -> dict[str, Run]:
    """Every component on inputs of its own, and the whole of them, for one image."""
    config, decoder = model.config, model.model.decoder
    processor = AiTDepthImageProcessor(size={"height": config.image_size, "width": config.image_size})
    grammar = map_grammar(config.vocabulary.depth_codes, config.sequence_length("depth"), config.soft_feedback)
    requests = [DecodingRequest(TASK_IDS["depth"], grammar)]
    decode = decode_in_parallel if config.parallel else decode_together
    image = setting.images(1, config.image_size, config.image_size)
    features = model.get_image_features(image)
    memory = model.model.encoder(features)
    outputs: Any = model.generate(image)
    side = config.depth_tokenizer_config.grid_size
    grid = outputs.code_logits.float().transpose(1, 2).unflatten(2, (side, side))

    def whole() -> list[dict[str, torch.Tensor]]:
        return processor.post_process_depth_estimation(model.generate(image), [PHOTO_SIZE])

    return {
        "backbone": lambda: model.get_image_features(image),
        "encoder": lambda: model.model.encoder(features),
        "decode": lambda: torch.stack(decode(decoder, memory, requests)[0].step_logits, dim=1),
        "detokenize": lambda: model.depth_tokenizer.decode_soft(grid),
        "post-process": lambda: processor.post_process_depth_estimation(outputs, [PHOTO_SIZE]),
        WHOLE: whole,
    }


def component_cells(model: AiTForDenseAndInstancePrediction, name: str, setting: Setting) -> dict[str, list[str]]:
    """Per row of the table, the time and the share of the whole; the backbone's share of the ceiling besides."""
    product, product_flops = matrix_product(setting)
    runs = component_runs(model, setting) | {PRODUCT: product}
    timed = interleave(f"components of {name}", runs, setting)
    total = timed[WHOLE].median
    cells = {
        key: [milliseconds(timed[key].median), f"{100 * timed[key].median / total:.1f} %"]
        for key in (*COMPONENTS, WHOLE)
    }
    rate = count_flops(runs["backbone"]) / timed["backbone"].median
    ceiling = product_flops / timed[PRODUCT].median
    cells["backbone's rate"] = [f"{rate / 1e9:.0f} GFLOP/s", f"{100 * rate / ceiling:.0f} % of the ceiling"]
    cells["matrix product's rate, the ceiling"] = [f"{ceiling / 1e9:.0f} GFLOP/s", ""]
    return cells


def measure(setting: Setting) -> Part:
    """Components of AiT-P base and AR base, batch 1."""
    names = {"AiT-P base": True, "AR base": False}
    columns = [
        component_cells(setting.place(build(setting.tiny, parallel)), name, setting) for name, parallel in names.items()
    ]
    header = ["component", *(cell for name in names for cell in (name, "share of the whole"))]
    rows = [[key, *(cell for column in columns for cell in column[key])] for key in columns[0]]
    lines = [
        f"One image; the post-process resizes to {PHOTO_SIZE[0]} x {PHOTO_SIZE[1]}. Components run one by one on "
        "inputs of their own, so that their shares need not add up to 100 %.",
        "",
        *table(header, rows),
    ]
    return Part("Components", lines)
