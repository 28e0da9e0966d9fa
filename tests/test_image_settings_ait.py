"""Settings of image processors that are refused where they are given."""

import pytest
from PIL import Image

from transformers_ait import AiTDepthImageProcessor, AiTInstanceImageProcessor

SIZE = {"height": 32, "width": 32}
KINDS = [
    (AiTDepthImageProcessor, {"size": SIZE}),
    (AiTInstanceImageProcessor, {"size": {"longest_edge": 32}, "pad_size": SIZE}),
]
REFUSED = [
    ({"size": 2**40}, "size must be at most 16384 pixels, got 1099511627776"),
    ({"size": "32"}, "size"),
    ({"size": [3]}, "size must be whole pixels"),
    ({"size": {"height": 1.5, "width": 1.5}}, "size"),
    ({"crop_size": "x"}, "crop_size"),
    ({"resample": 1.5}, r"resample must be one of 0 \(nearest\), .* got 1.5"),
    ({"resample": "instance"}, "resample must be one of"),
    ({"rescale_factor": 0.0}, "rescale_factor must be a finite number other than 0, .* got 0.0"),
    ({"rescale_factor": float("nan")}, "rescale_factor must be a finite number"),
    ({"image_mean": {}}, "image_mean"),
    ({"image_mean": [0.1, None, 0.2]}, "image_mean"),
    ({"image_std": [0.1, 0.0, 0.1]}, "image_std must not be 0"),
    ({"image_mean": [0.1] * 4, "do_normalize": True}, "image_mean has 4 values for images of 3 channels"),
    ({"return_tensors": "tf"}, "return_tensors"),
    ({"device": "cuda:99"}, "device"),
    ({"device": "meta"}, "device 'meta'|device must hold values"),
    ({"input_data_format": "x"}, "input_data_format"),
    ({"do_resize": "yes"}, "do_resize"),
]


@pytest.mark.parametrize(("kind", "settings"), KINDS, ids=["depth", "instance"])
@pytest.mark.parametrize(("odd", "message"), REFUSED, ids=[str(odd) for odd, _ in REFUSED])
def test_odd_settings_are_named_at_construction_and_at_calls(kind, settings, odd, message):
    image = Image.new("RGB", (6, 4))
    with pytest.raises((TypeError, ValueError), match=message):
        kind(**(settings | odd))(image)
    with pytest.raises(Exception, match=message) as caught:
        kind(**settings)(image, **odd)
    assert isinstance(caught.value, TypeError | ValueError) or "StrictDataclass" in caught.type.__name__


def test_more_windows_than_memory():
    with pytest.raises(ValueError, match="num_windows must be at most 256, got 1048576"):
        AiTDepthImageProcessor(num_windows=2**20)
