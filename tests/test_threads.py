"""Eight threads share one model and one image processor, and get what each would get alone."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch

from transformers_ait import AiTDenseImageProcessor, AiTInstanceImageProcessor

THREADS = 8
CALLS = 2  # of each thread


def pictures():
    rng = np.random.default_rng(0)
    sizes = [(40, 60), (33, 32), (64, 20), (32, 48), (50, 50), (31, 90), (48, 36), (20, 21)]
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def dense_prediction(model, processor, picture):
    output = model.generate(processor(picture, return_tensors="pt")["pixel_values"])
    return processor.post_process_depth_estimation(output, target_sizes=[picture.shape[:2]])[0]


def object_prediction(model, processor, picture):
    output = model.generate(processor(picture, return_tensors="pt")["pixel_values"])
    found = processor.post_process_instance_segmentation(output, target_sizes=[picture.shape[:2]], threshold=0.0)[0]
    return {"segmentation": found["segmentation"], "scores": [x["score"] for x in found["segments_info"]]}


def same(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(x, second[name]) for name, x in first.items())
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


@pytest.fixture(params=["dense", "parallel", "instance"])
def shared(request, tiny_model, tiny_vqvae_config):
    """Model, processor, and function that predicts."""
    if request.param == "instance":
        masks = tiny_vqvae_config(
            image_size=8, downsample_ratio=4, num_codes=5, symmetric_range=True, ignore_zero=False
        )
        model = tiny_model(tasks=("instance",), mask_tokenizer_config=masks, num_objects=2, top_p=0.0)
        return model, AiTInstanceImageProcessor(size={"longest_edge": 32}, pad_size={"height": 32, "width": 32})
    model = tiny_model(parallel=request.param == "parallel", soft_feedback=False)
    return model, AiTDenseImageProcessor(size={"height": 32, "width": 32})


@pytest.mark.slow
def test_threads_get_what_they_would_get_alone(shared):
    model, processor = shared
    predict = dense_prediction if isinstance(processor, AiTDenseImageProcessor) else object_prediction
    # What a model keeps from its weights is made by the first call; here all threads make it at once.
    meet, images = Barrier(THREADS), pictures()

    def work(picture):
        meet.wait(timeout=60)
        with torch.inference_mode():
            return [predict(model, processor, picture) for _ in range(CALLS)]

    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(work, images))
    with torch.inference_mode():
        alone = [predict(model, processor, picture) for picture in images]
    assert all(same(one, expected) for results, expected in zip(together, alone, strict=True) for one in results)
    assert not same(alone[0], alone[1]), "the comparison would see another picture's result"
