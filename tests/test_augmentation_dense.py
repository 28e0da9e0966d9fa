import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from torchvision import tv_tensors
from torchvision.transforms import v2

from transformers_ait.data import render_room
from transformers_ait.data.augmentation_dense import (
    RandomBrightnessContrast,
    RandomDepthStrip,
    RandomGamma,
    RandomHueSaturationValue,
    dense_training_transform,
    map_training_transform,
    shift_hsv,
)
from transformers_ait.data.patch_mask import RandomPatchMask
from transformers_ait.engine.loop.sampling import MicroBatchSampler, SeededSamples
from transformers_ait.map_kinds_ait import MAP_KINDS

DEPTH = {"depth": MAP_KINDS["depth"]}
KINDS = {
    "normals": MAP_KINDS["normals"],
    "depth": MAP_KINDS["depth"],
    "semantic": MAP_KINDS["classes"],
    "height": MAP_KINDS["values"],
}


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


@pytest.mark.parametrize("name", ["depth", "normals", "classes", "values"])
def test_masked_patches_are_zero_in_every_channel_and_the_rest_is_as_it_was(name):
    kind = MAP_KINDS[name]
    maps = kind.to_tokenizer(room()[1][{"classes": "semantic", "values": "height"}.get(name, name)][None], 16)[0]
    if name == "values":
        maps[:, ::3] = torch.nan
    masked = RandomPatchMask(4, 0.5)(maps)
    zero = (masked == 0).all(0)
    patches = zero.unfold(0, 4, 4).unfold(1, 4, 4).float().mean((2, 3))
    assert (patches == 1).sum() >= patches.numel() // 2
    torch.testing.assert_close(masked[:, ~zero], maps[:, ~zero], rtol=0, atol=0, equal_nan=True)
    assert masked.isnan().any() == (name == "values"), "what is not masked keeps its holes, for the tokenizer to fill"


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


@pytest.mark.slow
def test_depth_alone_is_augmented_bit_for_bit_as_by_torchvisions_transforms():
    """What trained checkpoints were augmented by: every transform, and the order of its draws."""
    colours = (RandomBrightnessContrast(), RandomGamma(), RandomHueSaturationValue())
    reference = v2.Compose(
        [
            RandomDepthStrip(0.25),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomCrop(16),
            *(v2.RandomApply([transform], p=0.5) for transform in colours),
        ]
    )
    alone = v2.Compose([v2.RandomHorizontalFlip(0.5), v2.RandomCrop(16)])
    image, depth = pair()
    for seed in range(200):
        torch.manual_seed(seed)
        expected = reference(image, depth)
        after = torch.get_rng_state()
        torch.manual_seed(seed)
        moved, maps = dense_training_transform(16, DEPTH)(image, {"depth": depth[0].as_subclass(torch.Tensor)})
        assert torch.equal(torch.get_rng_state(), after)
        assert isinstance(moved, tv_tensors.Image) and torch.equal(moved, expected[0])
        assert type(maps["depth"]) is torch.Tensor and torch.equal(maps["depth"], expected[1][0])
        torch.manual_seed(seed)
        expected = alone(depth)
        torch.manual_seed(seed)
        assert torch.equal(map_training_transform(16, DEPTH["depth"])(depth[0].as_subclass(torch.Tensor)), expected[0])


def test_other_tasks_change_no_draw():
    image, maps = room()
    for seed in range(20):
        torch.manual_seed(seed)
        alone, _ = dense_training_transform(40, DEPTH)(image, {"depth": maps["depth"]})
        torch.manual_seed(seed)
        together, _ = dense_training_transform(40, KINDS)(image, maps)
        assert torch.equal(alone, together)


def test_without_depth_there_is_no_strip():
    image, maps = room()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    transform = dense_training_transform(60, {"normals": KINDS["normals"]}, strip=1, flip=0, colour=0)
    same, _ = transform(image[:, :, :60], {"normals": maps["normals"][:, :, :60]})
    assert torch.equal(same, image[:, :, :60])
    torch.set_rng_state(before)
    torch.rand(1 + 3)  # the flip and the colours
    expected = torch.rand(1)
    torch.set_rng_state(before)
    transform(image[:, :, :60], {"normals": maps["normals"][:, :, :60]})
    assert torch.equal(torch.rand(1), expected)


def room():
    """Image and native maps of a rendered room, 60 x 80."""
    frame = render_room(7, height=60, width=80)
    image = tv_tensors.Image(torch.from_numpy(frame.image).permute(2, 0, 1).float() / 255)
    maps = {
        "normals": torch.from_numpy(frame.normals).permute(2, 0, 1),
        "depth": torch.from_numpy(frame.depth_dense),
        "semantic": torch.from_numpy(frame.semantic),
        "height": torch.from_numpy(np.stack([frame.depth_dense, -frame.depth_dense])),
    }
    return image, maps


def coordinates():
    """An image whose channels are the number of its pixel, and maps that hold the same number."""
    number = torch.arange(24 * 40, dtype=torch.float32).view(24, 40)
    angle = number / 1000
    maps = {
        "normals": torch.stack((angle.sin(), torch.zeros_like(angle), -angle.cos())),
        "depth": number + 1,
        "semantic": (number % 250).to(torch.uint8),
        "height": torch.stack((number, -number)),
    }
    return tv_tensors.Image((number / 1000).expand(3, -1, -1)), maps


def test_geometry_moves_image_and_maps_together():
    transform = dense_training_transform(16, KINDS, strip=0, flip=0.5, colour=0)
    flipped, corners = set(), set()
    for seed in range(60):
        torch.manual_seed(seed)
        image, maps = transform(*coordinates())
        assert list(maps) == list(KINDS)
        number = (image[0].as_subclass(torch.Tensor) * 1000).round()
        assert number.shape == (16, 16) and torch.equal(maps["depth"], number + 1)
        assert torch.equal(maps["semantic"], (number % 250).to(torch.uint8))
        assert torch.equal(maps["height"], torch.stack((number, -number)))
        mirrored = bool(number[0, 1] < number[0, 0])
        # A mirror turns what faces right to the left.
        x, y, z = maps["normals"]
        torch.testing.assert_close(x, (number / 1000).sin() * (-1 if mirrored else 1))
        assert (y == 0).all() and (z < 0).all()
        flipped.add(mirrored)
        corners.add(int(number.min()))
    assert flipped == {True, False} and len(corners) > 30


@pytest.mark.parametrize("name", ["normals", "depth", "semantic", "height"])
def test_maps_alone_move_as_they_do_with_their_image(name):
    image, maps = coordinates()
    for seed in range(20):
        torch.manual_seed(seed)
        alone = map_training_transform(16, KINDS[name])(maps[name])
        torch.manual_seed(seed)
        _, moved = dense_training_transform(16, {name: KINDS[name]}, 0)(image, {name: maps[name]})
        assert alone.dtype == maps[name].dtype == moved[name].dtype
        # Depth alone draws a strip first.
        assert name == "depth" or torch.equal(alone, moved[name])


def test_mirrored_normals_are_those_of_the_mirrored_surface():
    """Normals computed from a mirrored depth map are the flipped normals; without the change of sign they are not."""
    depth = torch.rand(20, 20, generator=torch.Generator().manual_seed(0)).cumsum(1) + 1

    def normals(depth):
        across, down = depth[1:-1, 2:] - depth[1:-1, :-2], depth[2:, 1:-1] - depth[:-2, 1:-1]
        return torch.nn.functional.normalize(torch.stack((across, down, torch.full_like(down, -2.0))), dim=0)

    flip = map_training_transform(18, KINDS["normals"], flip=1.0)
    torch.testing.assert_close(flip(normals(depth)), normals(depth.flip(-1)))
    assert not torch.allclose(normals(depth).flip(-1), normals(depth.flip(-1)), atol=0.1)


def test_colours_and_strips_leave_maps_alone():
    image, maps = room()
    transform = dense_training_transform(60, KINDS, strip=1, flip=0, colour=1)
    changed, same = transform(image[..., :60], {task: native[..., :60] for task, native in maps.items()})
    assert not torch.equal(changed, image[..., :60])
    assert all(torch.equal(same[task], native[..., :60]) for task, native in maps.items())


def test_switched_off_augmentation_is_a_crop():
    image, depth = pair(16, 16)
    same_image, maps = dense_training_transform(16, DEPTH, 0, 0, 0)(image, {"depth": depth[0]})
    assert torch.equal(same_image, image) and torch.equal(maps["depth"], depth[0])
    assert torch.equal(map_training_transform(16, DEPTH["depth"], 0)(depth[0]), depth[0])
    with pytest.raises(ValueError, match="crop size"):
        map_training_transform(17, DEPTH["depth"])(depth[0])


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.7, 1.5)])
def test_no_map_is_interpolated(scale):
    image, maps = room()
    maps["depth"][::3] = 0
    maps["normals"][:, ::4] = 0
    maps["semantic"][::5] = 255
    maps["height"][:, ::6] = torch.nan
    before = {task: set(native.unique().tolist()) for task, native in maps.items() if task != "height"}
    transform = dense_training_transform(32, KINDS, flip=0, scale=scale)
    for _ in range(20):
        _, moved = transform(image, maps)
        assert set(moved["semantic"].unique().tolist()) <= before["semantic"] and moved["semantic"].dtype == torch.uint8
        assert set(moved["normals"].unique().tolist()) <= before["normals"]
        assert torch.equal(moved["height"][0].isnan(), moved["height"][1].isnan()) and moved["height"].isnan().any()
        assert (moved["depth"] == 0).float().mean() == pytest.approx(1 / 3, abs=0.1)


def test_what_is_enlarged_comes_nearer():
    image, maps = coordinates()
    for factor in (0.75, 1.0, 1.6):
        transform = dense_training_transform(16, KINDS, 0, 0, 0, scale=(factor, factor))
        moved, scaled = transform(image, maps)
        number = moved[0, 2:-2, 2:-2].as_subclass(torch.Tensor) * 1000  # rows lie 40 apart, blurred by at most a pixel
        assert (number - scaled["height"][0, 2:-2, 2:-2]).abs().max() < 45
        torch.testing.assert_close(scaled["depth"], (scaled["height"][0] + 1) / factor)
        step = scaled["height"][0].diff(dim=0).mean() / 40
        assert step == pytest.approx(1 / factor, rel=0.12)


def test_scaled_images_fit_the_crop_and_factors_vary():
    _, maps = coordinates()
    steps = []
    for seed in range(40):
        torch.manual_seed(seed)
        transform = dense_training_transform(22, KINDS, 0, 0, 0, scale=(0.1, 2.0))
        image, scaled = transform(tv_tensors.Image(torch.rand(3, 24, 40)), maps)
        assert image.shape == (3, 22, 22) and image.min() >= 0 and image.max() <= 1
        steps.append(float(scaled["height"][0].diff(dim=0).mean() / 40))
    assert max(steps) < 1.25 and min(steps) < 0.6 and len({round(step, 2) for step in steps}) > 7


@pytest.mark.parametrize("scale", [(0.0, 1.0), (1.5, 1.0), (-1.0, 1.0)])
def test_bad_factors_are_refused(scale):
    with pytest.raises(ValueError, match="scale must be two positive factors, the least first"):
        dense_training_transform(16, DEPTH, scale=scale)


def test_maps_that_do_not_belong_are_refused():
    image, depth = pair()
    with pytest.raises(ValueError, match=r"maps must be of the tasks \['depth'\], got \['normals'\]"):
        dense_training_transform(16, DEPTH)(image, {"normals": depth})
    with pytest.raises(ValueError, match="crop size"):
        dense_training_transform(32, DEPTH)(image, {"depth": depth[0]})
    with pytest.raises(ValueError, match="multiple HxW"):
        dense_training_transform(16, {"n": KINDS["normals"]})(image, {"n": torch.zeros(3, 24, 39)})


# --- reproducible order and draws -----------------------------------------------------------------------------------


def draw(index):
    image, depth = pair()
    transformed, _ = dense_training_transform(16, DEPTH)(image, {"depth": depth[0]})
    return {"index": torch.tensor(index), "image": transformed.as_subclass(torch.Tensor)}


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
