"""What transformers' ImageProcessingTestMixin checks, on the three image processors; named after the checks.

`docs/transformers-checks.md` lists them, with those that do not apply.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.testing_utils import check_json_file_has_correct_format

from transformers_ait import AiTDenseImageProcessor, AiTDepthImageProcessor, AiTInstanceImageProcessor

SQUARE = {"size": {"height": 32, "width": 32}, "num_windows": 1, "do_flip_augment": False}
KINDS = {AiTDenseImageProcessor: SQUARE, AiTDepthImageProcessor: SQUARE, AiTInstanceImageProcessor: {}}


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.fixture
def processor(kind):
    return kind(**KINDS[kind])


def photographs(channels=3):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (h, w, channels), dtype=np.uint8) for h, w in ((48, 64), (30, 60), (64, 40))]


def pixels(processor, images, **settings):
    return processor(images, return_tensors="pt", **settings).pixel_values


def views_as_images(values):
    return values.flatten(0, -4)


def test_image_processor_to_json_string(processor):
    stored = json.loads(processor.to_json_string())
    assert stored["image_processor_type"] == type(processor).__name__
    assert stored["size"] == dict(processor.to_dict()["size"])


def test_image_processor_to_json_file(kind, processor, tmp_path):
    processor.to_json_file(tmp_path / "processor.json")
    assert kind.from_json_file(tmp_path / "processor.json").to_dict() == processor.to_dict()


def test_image_processor_from_and_save_pretrained(kind, processor, tmp_path):
    check_json_file_has_correct_format(processor.save_pretrained(tmp_path)[0])
    assert kind.from_pretrained(tmp_path).to_dict() == processor.to_dict()


def test_image_processor_save_load_with_autoimageprocessor(kind, processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is kind and loaded.to_dict() == processor.to_dict()


def test_init_without_params(kind):
    assert kind().to_dict()


def test_cast_dtype_device(processor):
    features = processor(photographs()[:1], return_tensors="pt")
    assert features.pixel_values.dtype == torch.float32 and features.pixel_values.device.type == "cpu"
    features["counts"] = torch.tensor([1, 2])
    for dtype in (torch.float16, torch.bfloat16):
        cast = features.to("cpu", dtype)
        assert cast.pixel_values.dtype == dtype and cast["counts"].dtype == torch.int64


@pytest.mark.parametrize("form", ["pil", "numpy", "pytorch"])
def test_call(processor, form):
    images = photographs()
    if form != "numpy":
        convert = Image.fromarray if form == "pil" else lambda x: torch.from_numpy(x).permute(2, 0, 1)
        images = [convert(image) for image in images]
    one, batch = (views_as_images(pixels(processor, x)) for x in (images[0], images))
    assert one.shape[1] == batch.shape[1] == 3 and one.shape[2:] == batch.shape[2:]
    assert len(batch) == 3 * len(one) and (batch[: len(one)] - one).abs().max() < 1e-5
    expected = views_as_images(pixels(processor, photographs()))
    assert (batch - expected).abs().max() < 1e-5


def test_call_numpy_4_channels(processor):
    """A fourth channel is transparency, laid on white, and not passed on: the models see colours alone."""
    images = photographs(4)
    for image in images:
        image[..., 3] = 255
    opaque = [image[..., :3] for image in images]
    assert torch.equal(pixels(processor, images), pixels(processor, opaque))


def test_image_processor_preprocess_arguments(processor):
    with pytest.raises(Exception, match="extra_argument"):
        processor(photographs(), extra_argument=True)


def test_settings_of_a_call_do_not_stay(processor):
    before = processor.to_dict()
    other = pixels(processor, photographs()[:1], do_rescale=False)
    assert processor.to_dict() == before and not torch.equal(other, pixels(processor, photographs()[:1]))
