import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from torchvision import tv_tensors
from torchvision.transforms import v2

from transformers_ait.data.augmentation_depth import (
    RandomBrightnessContrast,
    RandomDepthStrip,
    RandomGamma,
    RandomHueSaturationValue,
    depth_map_transform,
    depth_training_transform,
    shift_hsv,
)
from transformers_ait.data.patch_mask import RandomPatchMask
from transformers_ait.engine.sampling import MicroBatchSampler, SeededSamples


def pair(height=24, width=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = tv_tensors.Image(torch.rand(3, height, width, generator=generator))
    return image, tv_tensors.Mask(torch.rand(1, height, width, generator=generator) * 9 + 0.5)


# --- patch mask -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 2, 4, 16]), st.floats(0, 1), st.integers(0, 1000))
def test_patch_mask_sets_an_exact_number_of_whole_patches_to_zero(rows, columns, size, ratio, seed):
    torch.manual_seed(seed)
    depth = torch.rand(1, rows * size, columns * size) + 1
    masked = RandomPatchMask(size, ratio)(depth)
    patches = masked.unfold(1, size, size).unfold(2, size, size).reshape(rows * columns, -1)
    zeros = (patches == 0).float().mean(1)
    assert set(zeros.tolist()) <= {0.0, 1.0}
    assert int(zeros.sum()) == math.ceil(ratio * rows * columns)
    assert torch.equal(masked[masked > 0], depth[masked > 0])


def test_patch_mask_leaves_its_input_alone_and_differs_between_draws():
    depth = torch.ones(1, 64, 64)
    masks = torch.stack([RandomPatchMask(16)(depth) for _ in range(400)])
    assert (depth == 1).all()
    # Every patch is masked in half of the draws; 400 draws deviate by 5 standard deviations at most.
    assert ((masks.mean(0) - 0.5).abs() < 5 * 0.5 / 20).all()


def test_patch_mask_is_one_mask_for_all_inputs_of_a_call():
    first, second = RandomPatchMask(4)(*(tv_tensors.Mask(torch.ones(1, 16, 16)) for _ in range(2)))
    assert torch.equal(first, second) and first.sum() == 128


@pytest.mark.parametrize(("size", "ratio"), [(0, 0.5), (16, 1.5), (16, -0.1)])
def test_patch_mask_checks_its_arguments(size, ratio):
    with pytest.raises(ValueError, match=f"patch_size={size}, ratio={ratio}"):
        RandomPatchMask(size, ratio)


def test_patch_mask_needs_whole_patches():
    with pytest.raises(ValueError, match="multiples of patch_size 16, got 16 x 20"):
        RandomPatchMask(16)(torch.ones(1, 16, 20))


# --- strip ----------------------------------------------------------------------------------------------------------


def test_strip_is_where_the_formula_says():
    image, depth = pair()
    for seed in range(50):
        torch.manual_seed(seed)
        pasted, same = RandomDepthStrip(p=1.0)(image, depth)
        torch.manual_seed(seed)
        _, a, b = torch.rand(3).tolist()
        left, width = int(a * 40), int(max((1 - a) * 40 * b * 0.75, 1))
        expected = image.clone()
        for channel in range(3):
            expected[channel, :, left : left + width] = depth[0, :, left : left + width] / 10
        torch.testing.assert_close(pasted, expected)
        assert 0 < width <= 40 - left
        assert same is depth


def test_strip_comes_with_one_image_in_four():
    image, depth = pair()
    torch.manual_seed(0)
    count = sum(not torch.equal(RandomDepthStrip()(image, depth)[0], image) for _ in range(2000))
    assert abs(count - 500) < 5 * math.sqrt(2000 * 0.25 * 0.75)


# --- colours --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.floats(-1, 1), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.integers(0, 100))
def test_hsv_shift_agrees_with_matplotlib(hue, saturation, value, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.random((6, 7, 3))
    pixels[0, 0] = 0
    pixels[0, 1] = 1
    pixels[0, 2] = 0.3
    pixels[0, 3] = (0.2, 0.7, 0.7)
    hsv = rgb_to_hsv(pixels)
    hsv[..., 0] = (hsv[..., 0] + hue) % 1
    hsv[..., 1:] = np.clip(hsv[..., 1:] + (saturation, value), 0, 1)
    ours = shift_hsv(torch.from_numpy(pixels).permute(2, 0, 1), hue, saturation, value)
    np.testing.assert_allclose(ours.permute(1, 2, 0), hsv_to_rgb(hsv), atol=1e-9)


def test_brightness_contrast_is_affine_and_gamma_a_power():
    image, _ = pair()
    torch.manual_seed(3)
    draws = (2 * torch.rand(2) - 1) * 0.2
    torch.manual_seed(3)
    torch.testing.assert_close(
        RandomBrightnessContrast()(image).as_subclass(torch.Tensor),
        (image.as_subclass(torch.Tensor) * (1 + draws[0]) + draws[1]).clamp(0, 1),
    )
    torch.manual_seed(3)
    gamma = 0.8 + 0.4 * torch.rand(()).item()
    torch.manual_seed(3)
    torch.testing.assert_close(RandomGamma()(image).as_subclass(torch.Tensor), image.as_subclass(torch.Tensor) ** gamma)


@pytest.mark.parametrize("transform", [RandomBrightnessContrast(), RandomGamma(), RandomHueSaturationValue()])
def test_colours_stay_in_range_and_leave_depth_alone(transform):
    image, depth = pair()
    for _ in range(20):
        coloured, same = transform(image, depth)
        assert isinstance(coloured, tv_tensors.Image) and coloured.min() >= 0 and coloured.max() <= 1
        assert not torch.equal(coloured, image)
        assert torch.equal(same, depth)


# --- the whole ------------------------------------------------------------------------------------------------------


def test_geometry_moves_image_and_depth_together():
    coordinates = torch.arange(24 * 40, dtype=torch.float32).view(1, 24, 40) / 1000
    transform = depth_training_transform(16, strip=0, flip=0.5, colour=0)
    flipped, corners = set(), set()
    for seed in range(60):
        torch.manual_seed(seed)
        image, depth = transform(tv_tensors.Image(coordinates.expand(3, -1, -1)), tv_tensors.Mask(coordinates))
        assert image.shape == (3, 16, 16) and depth.shape == (1, 16, 16)
        assert torch.equal(image[0].as_subclass(torch.Tensor), depth[0].as_subclass(torch.Tensor))
        flipped.add(bool(depth[0, 0, 1] < depth[0, 0, 0]))
        corners.add(round(float(depth.min()) * 1000))
    assert flipped == {True, False} and len(corners) > 30


def test_switched_off_augmentation_is_a_crop():
    image, depth = pair(16, 16)
    same_image, same_depth = depth_training_transform(16, 0, 0, 0)(image, depth)
    assert torch.equal(same_image, image) and torch.equal(same_depth, depth)
    assert torch.equal(depth_map_transform(16, 0)(depth), depth)
    with pytest.raises(ValueError, match="crop size"):
        depth_map_transform(17)(depth)


def test_valid_pixels_stay_valid_and_holes_stay_holes():
    image, depth = pair()
    depth[:, ::3] = 0
    for _ in range(20):
        _, moved = depth_training_transform(16)(image, depth)
        assert set(moved.unique().tolist()) <= set(depth.unique().tolist())


# --- reproducible order and draws -----------------------------------------------------------------------------------


def draw(index):
    image, depth = pair()
    transformed = v2.Compose([depth_training_transform(16)])(image, depth)
    return {"index": torch.tensor(index), "image": transformed[0].as_subclass(torch.Tensor)}


def test_samples_depend_on_seed_epoch_and_row_alone():
    samples = SeededSamples(draw, seed=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = samples[0, 5]["image"]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(100)
    assert torch.equal(samples[0, 5]["image"], first)
    others = (samples[1, 5], samples[0, 6], SeededSamples(draw, seed=2)[0, 5])
    assert all(not torch.equal(other["image"], first) for other in others)


def keys(**arguments):
    settings = {"num_rows": 10, "seed": 3, "steps": range(7), "batch_size": 4, "micro_batch": 4, **arguments}
    return list(MicroBatchSampler(**settings))


def test_every_epoch_sees_every_row_once_in_a_new_order():
    flat = [key for batch in keys(steps=range(5)) for key in batch]
    epochs = [[row for epoch, row in flat if epoch == number] for number in range(2)]
    assert [sorted(rows) for rows in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]


def test_order_does_not_depend_on_processes_micro_batches_or_resuming():
    whole = keys()
    assert keys(steps=range(3, 7)) == whole[3:]
    assert sum(keys(micro_batch=1), []) == sum(whole, [])
    ranks = [keys(micro_batch=1, rank=rank, processes=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        shares = [key for rank in ranks for micro in rank[2 * step : 2 * step + 2] for key in micro]
        assert sorted(shares) == sorted(batch)
    assert len(MicroBatchSampler(10, 3, range(7), 4, 1, 0, 2)) == len(ranks[0]) == 14
