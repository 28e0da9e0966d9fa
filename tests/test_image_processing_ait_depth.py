"""Depth image processor: every kind of input, the window protocol both ways, depth labels, pipelines, and errors."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as tvF
from transformers import AutoImageProcessor, PreTrainedConfig, PreTrainedModel, pipeline
from transformers.utils import ModelOutput

import transformers_ait  # noqa: F401  # registers the processor
from transformers_ait.image_processing_ait_dense import window_layout
from transformers_ait.image_processing_ait_depth import AiTDepthImageProcessor

SIDE = 32


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def small(**kwargs):
    return AiTDepthImageProcessor(**{"size": {"height": SIDE, "width": SIDE}, **kwargs})


def single_view(**kwargs):
    return small(num_windows=1, do_flip_augment=False, **kwargs)


def pixels(image, **kwargs):
    """The image as the processor sees it: one view, not resized, back in 0..255."""
    height, width = kwargs.pop("shape", (SIDE, SIDE))
    assert height == width
    values = single_view(size={"height": height, "width": width})(image, return_tensors="pt", **kwargs).pixel_values
    return (values[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


# Layout of the windows


@pytest.mark.parametrize(
    ("image_size", "num_windows", "expected"),
    [
        ((480, 640), 2, ((480, 640), -1, (0, 160))),
        ((640, 480), 2, ((640, 480), -2, (0, 160))),
        ((960, 1280), 2, ((480, 640), -1, (0, 160))),
        ((480, 480), 2, ((480, 480), -1, (0, 0))),
        ((100, 900), 2, ((480, 960), -1, (0, 480))),
        ((100, 900), 3, ((480, 1440), -1, (0, 480, 960))),
        ((480, 640), 3, ((480, 640), -1, (0, 80, 160))),
        ((375, 500), 1, ((480, 480), -1, (0,))),
        ((1, 1), 2, ((480, 480), -1, (0, 0))),
    ],
)
def test_window_layout(image_size, num_windows, expected):
    assert tuple(window_layout(image_size, 480, num_windows)) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 700), st.integers(1, 5))
def test_windows_cover_the_canvas_and_stay_inside(height, width, window, num_windows):
    layout = window_layout((height, width), window, num_windows)
    length = layout.canvas[layout.dim]
    covered = set()
    for offset in layout.offsets:
        covered.update(range(offset, offset + window))
    assert covered == set(range(length))
    assert len(layout.offsets) == num_windows
    assert min(layout.canvas) == window
    again = window_layout(layout.canvas, window, num_windows)
    assert (again.canvas, again.offsets) == (layout.canvas, layout.offsets)  # a canvas is its own canvas


# Preprocessing


def test_nyu_frame_is_cut_without_resampling():
    image = photo(480, 640)
    values = AiTDepthImageProcessor()(image, return_tensors="pt")
    assert set(values) == {"pixel_values"}
    expected = torch.from_numpy(image).permute(2, 0, 1) / 255
    left, right, left_flipped, right_flipped = values.pixel_values[0]
    assert torch.equal(left, expected[:, :, :480])
    assert torch.equal(right, expected[:, :, 160:])
    assert torch.equal(left_flipped, expected[:, :, :480].flip(-1))
    assert torch.equal(right_flipped, expected[:, :, 160:].flip(-1))
    # The comparison notices a window that is off by one column.
    assert not torch.equal(right, expected[:, :, 159:639])


@pytest.mark.parametrize(
    ("num_windows", "flip", "shape"),
    [(1, False, (2, 3, SIDE, SIDE)), (1, True, (2, 2, 3, SIDE, SIDE)), (3, False, (2, 3, 3, SIDE, SIDE))],
)
def test_shapes_of_mixed_batches(num_windows, flip, shape):
    processor = small(num_windows=num_windows, do_flip_augment=flip)
    values = processor([photo(20, 50), photo(90, 41)], return_tensors="pt").pixel_values
    assert values.shape == shape and values.dtype == torch.float32


def test_portrait_takes_windows_along_the_height():
    image = photo(48, SIDE)
    values = small(do_flip_augment=False)(image, return_tensors="pt").pixel_values[0]
    expected = torch.from_numpy(image).permute(2, 0, 1) / 255
    assert torch.equal(values, torch.stack([expected[:, :SIDE], expected[:, 16:]]))


def test_resizing_agrees_with_pillow():
    rows, columns = np.mgrid[:70, :90]
    image = np.stack([rows * 3, columns * 2, rows + columns], -1).astype(np.uint8)
    expected = np.array(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    assert np.abs(pixels(image).astype(int) - expected).max() <= 1


def test_batched_equals_single():
    processor, images = small(), [photo(50, 60, 1), photo(61, 40, 2), photo(32, 64, 3)]
    batch = processor(images, return_tensors="pt").pixel_values
    for image, values in zip(images, batch, strict=True):
        assert torch.equal(processor(image, return_tensors="pt").pixel_values[0], values)


def test_kinds_of_arrays():
    image = photo(SIDE, SIDE)
    channels_first = np.ascontiguousarray(image.transpose(2, 0, 1))
    for given_image in (
        image,
        channels_first,
        torch.from_numpy(image),
        torch.from_numpy(channels_first),
        Image.fromarray(image),
        image.astype(np.float32),
        image.astype(np.int64),
        image.astype(np.uint16) * 257,
        torch.from_numpy(image.astype(np.uint16) * 257),
        image[None],
        [torch.from_numpy(channels_first)[None]],
        [[image]],
    ):
        np.testing.assert_array_equal(pixels(given_image), image)
    as_fractions = single_view()(image / np.float32(255), do_rescale=False, return_tensors="pt").pixel_values
    np.testing.assert_allclose(as_fractions[0].permute(1, 2, 0).numpy(), image / np.float32(255), atol=1e-7)


def test_kinds_of_grey():
    grey = photo(SIDE, SIDE)[..., 0]
    expected = np.repeat(grey[..., None], 3, -1)
    wide = grey.astype(np.uint16) * 257
    for given_image in (
        grey,
        torch.from_numpy(grey),
        grey[..., None],
        [grey],
        Image.fromarray(grey),
        Image.fromarray(wide),
        Image.fromarray(wide.astype(np.int32)),
        wide,
    ):
        np.testing.assert_array_equal(pixels(given_image), expected)
    binary = grey > 127
    for given_image in (binary, torch.from_numpy(binary), Image.fromarray(binary)):
        np.testing.assert_array_equal(pixels(given_image)[..., 1], binary * 255)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 60
    path = tmp_path / "grey16.png"
    Image.fromarray(ramp).save(path)
    np.testing.assert_array_equal(pixels(path)[..., 0], np.round(ramp / 257))
    assert (np.array(Image.open(path).convert("RGB")) == 255).mean() > 0.9  # what plain conversion would have given


def test_transparency_is_laid_on_white():
    image = photo(SIDE, SIDE)
    alpha = np.zeros((SIDE, SIDE, 1), np.uint8)
    alpha[:, :16] = 255
    rgba = Image.fromarray(np.concatenate([image, alpha], -1))
    seen = pixels(rgba)
    np.testing.assert_array_equal(seen[:, :16], image[:, :16])
    assert (seen[:, 16:] == 255).all()
    np.testing.assert_array_equal(pixels(np.array(rgba)), seen)


def test_palette_cmyk_and_transparent_palette():
    image = Image.fromarray(photo(SIDE, SIDE)).quantize(16)
    np.testing.assert_array_equal(pixels(image), np.array(image.convert("RGB")))
    image.info["transparency"] = image.getpixel((0, 0))
    assert (pixels(image)[0, 0] == 255).all()
    cmyk = Image.fromarray(photo(SIDE, SIDE)).convert("CMYK")
    np.testing.assert_array_equal(pixels(cmyk), np.array(cmyk.convert("RGB")))


def test_exif_orientation_is_applied(tmp_path):
    upright = photo(40, 24)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated: turn by 90 degrees clockwise to display
    path = tmp_path / "rotated.png"
    Image.fromarray(np.rot90(upright, 1)).save(path, exif=exif)
    processor = single_view()
    expected = processor(upright, return_tensors="pt").pixel_values
    for given_image in (path, str(path), Image.open(path)):
        assert torch.equal(processor(given_image, return_tensors="pt").pixel_values, expected)


def test_normalisation_uses_imagenet_statistics():
    image = photo(SIDE, SIDE)
    values = single_view()(image, do_normalize=True, return_tensors="pt").pixel_values[0]
    plain = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    expected = tvF.normalize(plain, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(values, expected)


def test_return_types_and_device():
    image = photo(SIDE, SIDE)
    assert isinstance(single_view()(image, return_tensors="np").pixel_values, np.ndarray)
    assert isinstance(single_view()(image).pixel_values, list)
    assert single_view()(image, return_tensors="pt", device="cpu").pixel_values.device.type == "cpu"


def test_fractions_given_as_0_to_255_are_warned_about(caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        pixels(photo(SIDE, SIDE) / np.float32(255))
    finally:
        logger.removeHandler(caplog.handler)
    assert "do_rescale=False" in caplog.text


# Depth labels


def test_depth_labels_are_resized_as_pillow_takes_the_nearest_pixel():
    depth = np.random.default_rng(0).uniform(0, 10, (50, 71)).astype(np.float32)
    features = single_view()(photo(50, 71), depth_maps=depth, return_tensors="pt")
    assert features.pixel_values.shape == (1, 3, SIDE, SIDE)
    expected = np.array(Image.fromarray(depth).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(features.depth_labels.numpy(), expected[None])
    shifted = F.interpolate(torch.from_numpy(depth)[None, None], size=(SIDE, SIDE), mode="nearest")
    assert not np.array_equal(shifted[0, 0].numpy(), expected)  # the half-pixel error would be seen


def test_kinds_of_depth(tmp_path):
    millimetres = np.random.default_rng(0).integers(0, 10000, (SIDE, SIDE), dtype=np.uint16)
    path = tmp_path / "depth.png"
    Image.fromarray(millimetres).save(path)
    metres = millimetres.astype(np.float32) / 1000
    image = photo(SIDE, SIDE)
    for depth in (
        metres,
        metres.astype(np.float64),
        torch.from_numpy(metres),
        Image.open(path),
        Image.fromarray(millimetres.astype(np.int32)),
        Image.fromarray(metres),
        [metres],
        metres[None],
    ):
        labels = single_view()(image, depth, return_tensors="pt").depth_labels
        assert labels.dtype == torch.float32 and labels.shape == (1, SIDE, SIDE)
        np.testing.assert_allclose(labels[0].numpy(), metres, rtol=1e-7)


@pytest.mark.parametrize(
    ("depth", "error", "message"),
    [
        (np.ones((SIDE, SIDE - 1), np.float32), ValueError, r"depth_maps\[1\] has shape \(32, 31\).* 32 x 32"),
        (np.ones((SIDE, SIDE), np.uint16), TypeError, r"depth_maps\[1\] has dtype uint16"),
        (np.full((SIDE, SIDE), -1.0), ValueError, r"depth_maps\[1\] must be finite and not negative.*0"),
        (np.full((SIDE, SIDE), np.nan), ValueError, r"depth_maps\[1\] must be finite"),
        (np.full((SIDE, SIDE), np.inf), ValueError, r"depth_maps\[1\] must be finite"),
        (Image.new("L", (SIDE, SIDE)), TypeError, r"depth_maps\[1\] is a PIL image of mode 'L'"),
        ("depth.png", TypeError, r"depth_maps\[1\] must be a PIL image.*got str"),
    ],
)
def test_bad_depth_is_refused(depth, error, message):
    good = np.ones((SIDE, SIDE), np.float32)
    with pytest.raises(error, match=message):
        single_view()([photo(SIDE, SIDE)] * 2, [good, depth])


def test_depth_needs_one_view_and_one_map_per_image():
    depth = np.ones((SIDE, SIDE), np.float32)
    for settings_ in ({"num_windows": 2, "do_flip_augment": False}, {"num_windows": 1, "do_flip_augment": True}):
        with pytest.raises(ValueError, match="num_windows=1, do_flip_augment=False"):
            small(**settings_)(photo(SIDE, SIDE), depth)
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        single_view()([photo(SIDE, SIDE)] * 2, depth)
    with pytest.raises(TypeError, match="depth_maps must be one"):
        single_view()(photo(SIDE, SIDE), 3.0)


# Post-processing


def merged_by_hand(views, image_size, num_windows, flip):
    """Average every canvas pixel over all views that show it, one pixel at a time, then clamp."""
    layout = window_layout(image_size, views.shape[-1], num_windows)
    merged = np.zeros(layout.canvas)
    for row in range(layout.canvas[0]):
        for column in range(layout.canvas[1]):
            seen = []
            for index, offset in enumerate(layout.offsets):
                r, c = (row - offset, column) if layout.dim == -2 else (row, column - offset)
                if 0 <= r < views.shape[-1] and 0 <= c < views.shape[-1]:
                    values = [views[index, r, c]]
                    if flip:
                        values.append(views[num_windows + index, r, views.shape[-1] - 1 - c])
                    seen.append(np.mean(values))
            merged[row, column] = np.mean(seen)
    return np.maximum(merged, 1e-3)


@pytest.mark.parametrize("image_size", [(12, 16), (16, 12), (12, 12), (12, 31)])
@pytest.mark.parametrize(("num_windows", "flip"), [(1, True), (2, False), (2, True), (3, True)])
def test_merging_against_a_loop_over_pixels(image_size, num_windows, flip):
    processor = small(size={"height": 12, "width": 12}, num_windows=num_windows, do_flip_augment=flip)
    num_views = num_windows * (2 if flip else 1)
    views = torch.randn(2, num_views, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    canvas = window_layout(image_size, 12, num_windows).canvas
    results = processor.post_process_depth_estimation(SimpleNamespace(predicted_depth=views), [canvas, canvas])
    for result, single in zip(results, views.numpy(), strict=True):
        expected = merged_by_hand(single, canvas, num_windows, flip)
        np.testing.assert_allclose(result["predicted_depth"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_protocol_of_two_windows_in_96_x_128_and_planted_errors():
    """The released protocol, written out: windows at 0 and 32, flips, one clamp at the end."""
    views = torch.randn(4, 96, 96, generator=torch.Generator().manual_seed(1))
    processor = AiTDepthImageProcessor(size={"height": 96, "width": 96})

    def protocol(unflip=True, clamp_first=False, offset=32):
        a, b, a_flipped, b_flipped = views.clamp(min=1e-3) if clamp_first else views
        a, b = ((x + (y.flip(-1) if unflip else y)) / 2 for x, y in ((a, a_flipped), (b, b_flipped)))
        total, count = torch.zeros(96, 128), torch.zeros(96, 128)
        total[:, :96] += a
        count[:, :96] += 1
        total[:, offset : offset + 96] += b
        count[:, offset : offset + 96] += 1
        return (total / count.clamp(min=1)).clamp(min=1e-3)

    result = processor.post_process_depth_estimation(ModelOutput(predicted_depth=views[None]), [(96, 128)])
    depth = result[0]["predicted_depth"]
    assert torch.equal(depth, protocol())
    for planted in ({"unflip": False}, {"clamp_first": True}, {"offset": 31}):
        assert not torch.allclose(depth, protocol(**planted), atol=1e-3)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(8, 90), st.integers(8, 90), st.integers(1, 3), st.booleans())
def test_merging_undoes_splitting(height, width, num_windows, flip):
    processor = small(size={"height": 24, "width": 24}, num_windows=num_windows, do_flip_augment=flip)
    image = torch.from_numpy(photo(height, width)).permute(2, 0, 1)
    values = processor(image, return_tensors="pt").pixel_values
    result = processor.post_process_depth_estimation(ModelOutput(predicted_depth=values.mean(-3)), [(height, width)])
    canvas = tvF.resize(image, list(window_layout((height, width), 24, num_windows).canvas)) / 255
    expected = F.interpolate(canvas.mean(0).clamp(min=1e-3)[None, None], size=(height, width), mode="bilinear")
    torch.testing.assert_close(result[0]["predicted_depth"], expected[0, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_results_are_float32_and_clamped(dtype):
    outputs = ModelOutput(predicted_depth=torch.tensor([[[-1.0, 2.0], [0.0, 4.0]]], dtype=dtype))
    (result,) = small().post_process_depth_estimation(outputs)
    assert result["predicted_depth"].dtype == torch.float32
    np.testing.assert_array_equal(result["predicted_depth"], np.array([[1e-3, 2], [1e-3, 4]], np.float32))


def test_forms_of_target_sizes():
    outputs = ModelOutput(predicted_depth=torch.rand(2, 8, 8))
    sizes = [(16, 12), (16, 12)]
    expected = small().post_process_depth_estimation(outputs, sizes)
    for given_sizes in (torch.tensor(sizes), np.array(sizes), [torch.tensor(size) for size in sizes], [[16, 12]] * 2):
        for one, other in zip(small().post_process_depth_estimation(outputs, given_sizes), expected, strict=True):
            assert torch.equal(one["predicted_depth"], other["predicted_depth"])
            assert one["predicted_depth"].shape == (16, 12)


@pytest.mark.parametrize(
    ("depth", "target_sizes", "message"),
    [
        (torch.rand(1, 4, SIDE, SIDE), None, "target_sizes is required"),
        (torch.rand(1, 4, SIDE, SIDE), [(32, 48)] * 2, "got 2 for 1"),
        (torch.rand(2, SIDE, SIDE), [(32, 48)], "got 1 for 2"),
        (torch.rand(1, SIDE, SIDE), [(32, 48, 3)], r"target_sizes\[0\] must be \(height, width\)"),
        (torch.rand(1, SIDE, SIDE), [(32, 0)], r"target_sizes\[0\]"),
        (torch.rand(1, SIDE, SIDE), [(32, 1.5)], r"target_sizes\[0\]"),
        (torch.rand(1, SIDE, SIDE), (32, 48), "got 2 for 1"),
        (torch.rand(2, SIDE, SIDE), (32, 48), r"target_sizes\[0\]"),
        (torch.rand(1, 3, SIDE, SIDE), [(32, 48)], "has 3 views.* makes 4"),
        (torch.rand(1, 4, SIDE, SIDE + 1), [(32, 48)], "4 views of 32 x 33"),
        (torch.rand(SIDE, SIDE), None, r"must be \(B, S, S\).*got shape"),
        (None, None, "got None; call the model without labels"),
    ],
)
def test_bad_outputs_and_target_sizes_are_refused(depth, target_sizes, message):
    with pytest.raises(ValueError, match=message):
        small().post_process_depth_estimation(SimpleNamespace(predicted_depth=depth), target_sizes)


# Settings, files, pipelines


def test_round_trip_keeps_every_setting(tmp_path):
    processor = small(num_windows=3, do_flip_augment=False, do_normalize=True, resample=3)
    processor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored["num_windows"] == 3 and stored["do_flip_augment"] is False
    assert stored["size"] == {"height": SIDE, "width": SIDE}
    for cls in (AiTDepthImageProcessor, AutoImageProcessor):
        loaded = cls.from_pretrained(tmp_path)
        assert isinstance(loaded, AiTDepthImageProcessor)
        assert loaded.to_dict() == processor.to_dict()
        image = photo(50, 99)
        assert np.array_equal(
            loaded(image, return_tensors="np").pixel_values, processor(image, return_tensors="np")["pixel_values"]
        )


def test_defaults_are_stored_and_overridable_at_load(tmp_path):
    AiTDepthImageProcessor().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (stored["num_windows"], stored["do_flip_augment"], stored["do_normalize"]) == (2, True, False)
    assert AiTDepthImageProcessor.from_pretrained(tmp_path, num_windows=1).num_windows == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_windows": 0}, "num_windows must be an integer of at least 1, got 0"),
        ({"num_windows": True}, "num_windows"),
        ({"size": {"height": 32, "width": 48}}, "size must be a square"),
        ({"size": {"shortest_edge": 32}}, "size must be a square"),
        ({"do_center_crop": True}, "do_center_crop is not supported"),
        ({"do_pad": True}, "do_pad is not supported"),
    ],
)
def test_bad_settings_are_refused_at_construction_and_at_calls(setting, message):
    with pytest.raises(ValueError, match=message):
        AiTDepthImageProcessor(**setting)
    if setting != {"num_windows": True}:  # refused by type, as another error
        with pytest.raises(ValueError, match=message):
            AiTDepthImageProcessor()(photo(SIDE, SIDE), **setting)


def test_unknown_arguments_and_non_images_are_refused():
    with pytest.raises(TypeError, match="windows"):
        small()(photo(SIDE, SIDE), windows=2)
    with pytest.raises(TypeError, match="got NoneType"):
        small()([photo(SIDE, SIDE), None])
    with pytest.raises(ValueError, match="images is empty"):
        small()([])
    with pytest.raises(ValueError, match=r"got \(0, 5, 3\)"):
        small()(np.zeros((0, 5, 3), np.uint8))
    with pytest.raises(ValueError, match=r"images\[1\] is 40 x 40, but its 2 window\(s\) of 32 pixels need 32 x 32"):
        small()([photo(32, 40), photo(40, 40)], do_resize=False)


def test_unreadable_files_are_named(tmp_path):
    whole, truncated = tmp_path / "whole.jpg", tmp_path / "truncated.jpg"
    Image.fromarray(photo(64, 64)).save(whole)
    truncated.write_bytes(whole.read_bytes()[:-900])
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    for images in (truncated, str(truncated), [whole, truncated], Image.open(truncated)):
        with pytest.raises(OSError, match="truncated.jpg cannot be decoded"):
            small()(images)
    with pytest.raises(OSError, match=r"text\.jpg"):
        small()(text)
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        small()(str(tmp_path / "missing.jpg"))


class EchoModel(PreTrainedModel):
    """A model whose depth is the mean of the channels, so merging must give the image back."""

    config_class = PreTrainedConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.post_init()

    def forward(self, pixel_values):
        return ModelOutput(predicted_depth=pixel_values.mean(-3))


@pytest.mark.parametrize("views", [{}, {"num_windows": 1, "do_flip_augment": False}])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_pipeline_with_mixed_sizes(views, batch_size):
    images = [photo(32, 48, 1), photo(48, 32, 2), photo(32, 32, 3), photo(70, 33, 4)]
    processor = small(**views)
    pipe = pipeline("depth-estimation", model=EchoModel(PreTrainedConfig()), image_processor=processor, device="cpu")
    results = pipe([Image.fromarray(image) for image in images], batch_size=batch_size)
    for image, result in zip(images, results, strict=True):
        assert result["depth"].size == (image.shape[1], image.shape[0])
        canvas = window_layout(image.shape[:2], SIDE, processor.num_windows).canvas
        grey = tvF.resize(torch.from_numpy(image).permute(2, 0, 1), list(canvas)).float().mean(0) / 255
        expected = F.interpolate(grey.clamp(min=1e-3)[None, None], size=image.shape[:2], mode="bilinear")[0, 0]
        torch.testing.assert_close(result["predicted_depth"], expected, atol=1e-5, rtol=1e-5)


def test_real_frames(shared_dir):
    """Files of a camera: windows are the file's own pixels, labels its own millimetres."""
    folder = shared_dir / "data" / "rgbd"
    names = ["nyu_diningroom_1", "nyu_diningroom_3", "tum_fr1_desk_1"]
    paths = [folder / f"{name}_rgb.png" for name in names]
    depths = [Image.open(folder / f"{name}_depth.png") for name in names]
    values = AiTDepthImageProcessor()(paths, return_tensors="pt").pixel_values
    for path, views in zip(paths, values, strict=True):
        frame = tvF.pil_to_tensor(Image.open(path).convert("RGB")) / 255
        assert frame.shape == (3, 480, 640)
        assert torch.equal(views[0], frame[:, :, :480]) and torch.equal(views[1], frame[:, :, 160:])
    features = single_view(size={"height": 480, "width": 480})(paths, depths, return_tensors="pt")
    for depth, labels in zip(depths, features.depth_labels, strict=True):
        millimetres = np.array(depth.resize((480, 480), Image.Resampling.NEAREST), np.float32)
        np.testing.assert_array_equal(labels.numpy(), millimetres / 1000)
        assert (labels == 0).any()  # holes stay holes, none are interpolated
