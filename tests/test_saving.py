"""Weights on disk in half precision: nothing becomes infinite, and codes that nothing used stay harmless."""

import torch

from transformers_ait import AiTForDenseAndInstancePrediction
from transformers_ait.engine.tasks.saving import save_task_solver


def test_codes_beyond_half_precision_do_not_spoil_the_soft_decode(tiny_model, images, tmp_path):
    model = tiny_model()
    model.depth_tokenizer.quantizer.codebook[3] = 1e6
    assert model.depth_tokenizer.quantizer.codebook.half().isinf().any()
    save_task_solver(model, model.state_dict(), torch.float16, tmp_path)
    again = AiTForDenseAndInstancePrediction.from_pretrained(tmp_path).eval()
    assert again.dtype == torch.float32 and again.depth_tokenizer.quantizer.codebook.isfinite().all()
    assert again(images).predicted_depth.isfinite().all()


def test_weights_within_half_precision_are_only_rounded(tiny_model, tmp_path):
    model = tiny_model()
    save_task_solver(model, model.state_dict(), torch.float16, tmp_path)
    again = AiTForDenseAndInstancePrediction.from_pretrained(tmp_path)
    assert all(torch.equal(x.half().float(), again.state_dict()[name]) for name, x in model.state_dict().items())
