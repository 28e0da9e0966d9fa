"""Large photographs in bands: the same bits as in one piece, for every mode and filter, and no large copy."""

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_ait import AiTDenseImageProcessor, AiTInstanceImageProcessor, image_bands_ait
from transformers_ait.map_kinds_ait import MAP_KINDS

PROCESSORS = {
    "dense": lambda **options: AiTDenseImageProcessor(size={"height": 48, "width": 48}, **options),
    "instance": lambda **options: AiTInstanceImageProcessor(
        size={"longest_edge": 48}, pad_size={"height": 48, "width": 48}, **options
    ),
}


def picture(mode, size=(257, 190)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode) if mode != "RGBA" else Image.fromarray(pixels)


@pytest.fixture
def in_bands(monkeypatch):
    """Function that calls another while every picture counts as large; it fails where none was taken in bands."""

    def call(function):
        taken = []
        with monkeypatch.context() as patched:
            patched.setattr(image_bands_ait, "LARGE_PIXELS", 1)
            patched.setattr(image_bands_ait, "BAND_PIXELS", 3000)
            original = image_bands_ait.LargePicture.rows
            patched.setattr(
                image_bands_ait.LargePicture, "rows", lambda self, *band: taken.append(band) or original(self, *band)
            )
            result = function()
        assert len(taken) > 5
        return result

    return call


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
def test_modes(in_bands, name, mode):
    processor, image = PROCESSORS[name](), picture(mode)
    whole = processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(in_bands(lambda: processor(image, return_tensors="pt")["pixel_values"]), whole)


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST])
@pytest.mark.parametrize("size", [(900, 40), (40, 900), (257, 190), (48, 48), (30, 20)])
def test_filters_and_shapes(in_bands, resample, size):
    processor, image = PROCESSORS["dense"](resample=resample), picture("RGB", size)
    whole = processor(image, return_tensors="pt")["pixel_values"]
    if size[0] * size[1] > 20_000:
        assert torch.equal(in_bands(lambda: processor(image, return_tensors="pt")["pixel_values"]), whole)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("stated", [None, "channels_last"])
def test_arrays(in_bands, name, stated):
    processor, array = PROCESSORS[name](), np.array(picture("RGB"))

    def prepare():
        return processor(array, input_data_format=stated, return_tensors="pt")["pixel_values"]

    whole = prepare()
    assert torch.equal(whole, processor(picture("RGB"), return_tensors="pt")["pixel_values"])
    assert torch.equal(in_bands(prepare), whole)


def test_maps_of_large_pictures(in_bands):
    processor = PROCESSORS["dense"](num_windows=1, do_flip_augment=False)
    depth = torch.rand(190, 257) + 1

    def prepare():
        return processor(picture("RGB"), dense_maps={"depth": depth}, return_tensors="pt")

    whole, banded = prepare(), in_bands(prepare)
    assert torch.equal(whole["pixel_values"], banded["pixel_values"])
    assert torch.equal(whole["dense_labels"]["depth"], banded["dense_labels"]["depth"])


def test_a_picture_that_is_not_resized_or_stays_small_is_one_tensor():
    processor = PROCESSORS["dense"](num_windows=1, do_flip_augment=False)
    image = picture("RGB", (48, 48))
    assert processor(image, do_resize=False, return_tensors="pt")["pixel_values"].shape == (1, 3, 48, 48)
    assert not image_bands_ait.can_be_in_bands(image, Image.Resampling.BILINEAR)
    assert not image_bands_ait.can_be_in_bands(Image.new("L", (4096, 2048)), Image.Resampling.LANCZOS)


def test_classes_one_after_the_other(monkeypatch):
    scores = torch.rand(7, 12, 9, generator=torch.Generator().manual_seed(0)).softmax(0)
    whole = MAP_KINDS["classes"].finish(scores, (50, 37))
    monkeypatch.setattr("transformers_ait.map_kinds_ait.MAX_RESIZED", 10)
    single = MAP_KINDS["classes"].finish(scores, (50, 37))
    assert single.dtype == torch.int64 and (single == whole).float().mean() > 0.999
    assert torch.equal(MAP_KINDS["classes"].finish(torch.ones(3, 4, 4), (8, 8)), torch.zeros(8, 8, dtype=torch.int64))
