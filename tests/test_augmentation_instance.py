"""Augmentation of images with objects, on hand-made arrays."""

import pytest
import torch
from torchvision import tv_tensors

from transformers_ait.data.augmentation_instance import (
    DropSmallBoxes,
    RandomScaleCrop,
    instance_training_transform,
)
from transformers_ait.data.mask_crops import box_crop

HEIGHT, WIDTH = 60, 80


def scene(boxes):
    """An image whose first channel marks the objects, with boxes and masks to match."""
    masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    image[0] = masks.any(0).byte() * 255
    framed = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "image": tv_tensors.Image(image),
        "boxes": tv_tensors.BoundingBoxes(framed, format="XYXY", canvas_size=(HEIGHT, WIDTH)),
        "masks": tv_tensors.Mask(masks),
        "labels": torch.arange(len(boxes)),
    }


def bounds(mask):
    y, x = mask.nonzero().unbind(1)
    return torch.stack((x.min(), y.min(), x.max() + 1, y.max() + 1)).float()


@pytest.mark.parametrize("scale", [(0.1, 0.5), (0.9, 1.1), (2.0, 3.0)])
def test_image_boxes_and_masks_stay_together(scale):
    transform = instance_training_transform(80, scale)
    seen = 0
    for seed in range(30):
        torch.manual_seed(seed)
        moved = transform(scene([(10, 10, 40, 40), (50, 20, 80, 60)]))
        assert moved["masks"].shape[1:] == moved["image"].shape[1:]
        assert max(moved["image"].shape[1:]) <= 80
        for box, mask in zip(moved["boxes"].as_subclass(torch.Tensor), moved["masks"], strict=True):
            if min(mask.any(0).sum(), mask.any(1).sum()) < 8:
                continue  # grey edges would be most of it
            seen += 1
            assert torch.allclose(box, bounds(mask), atol=1.01), (box, bounds(mask))
            inside = moved["image"][0].float()[mask]
            assert (inside > 127).float().mean() > 0.85
    assert seen > 15


def test_scale_is_relative_to_the_longest_side():
    for factor, expected in ((0.5, (30, 40)), (1.0, (60, 80)), (0.1, (6, 8))):
        moved = RandomScaleCrop(80, (factor, factor))(scene([(10, 10, 40, 40)]))
        assert tuple(moved["image"].shape[1:]) == expected
        assert torch.allclose(moved["boxes"].as_subclass(torch.Tensor), torch.tensor([[10.0, 10, 40, 40]]) * factor)


def test_large_factors_cut_windows_at_random_places():
    transform = RandomScaleCrop(80, (3.0, 3.0))
    sizes, corners = set(), set()
    for seed in range(10):
        torch.manual_seed(seed)
        moved = transform(scene([(0, 0, 80, 60)]))
        sizes.add(tuple(moved["image"].shape[1:]))
        window = transform.make_params([scene([])["image"]])
        corners.add((window["top"], window["left"]))
        # 80 pixels at three times the size show 27 of the original's.
        assert window["height"] == window["width"] == 27
    assert sizes == {(80, 80)} and len(corners) > 5


def test_flip_mirrors_everything():
    moved = instance_training_transform(80, (1.0, 1.0), flip=1.0)(scene([(10, 10, 40, 40)]))
    assert moved["boxes"].tolist() == [[40, 10, 70, 40]]
    assert bounds(moved["masks"][0]).tolist() == [40, 10, 70, 40]
    assert moved["image"][0, 20, 45] == 255 and moved["image"][0, 20, 20] == 0


def test_thin_boxes_are_dropped_with_their_objects():
    sample = scene([(10, 10, 40, 40), (0, 0, 5, 5)])
    sample["boxes"][1, 2] = 0.005
    kept = DropSmallBoxes()(sample)
    assert kept["labels"].tolist() == [0] and len(kept["masks"]) == len(kept["boxes"]) == 1
    assert isinstance(kept["boxes"], tv_tensors.BoundingBoxes)


def test_a_crop_may_hold_no_object():
    empty = instance_training_transform(80)(scene([]))
    assert empty["boxes"].shape == (0, 4) and empty["masks"].shape[0] == 0


def test_draws_come_from_torchs_generator():
    transform = instance_training_transform(80)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(transform(scene([(10, 10, 40, 40)])))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("scale", [(0.0, 1.0), (2.0, 1.0), (1.0,)])
def test_bad_factors_are_refused(scale):
    with pytest.raises(ValueError, match="scale must be two positive factors"):
        RandomScaleCrop(80, scale)


def test_box_crop_cuts_out_whole_pixels():
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[4:12, 6:14] = True
    assert box_crop(mask, torch.tensor([6.0, 4, 14, 12]), 8).eq(1).all()
    half = box_crop(mask, torch.tensor([-2.0, 4, 14, 12]), 14)
    assert half.shape == (1, 14, 14) and half[0, :, :5].eq(0).all() and half[0, :, 8:].eq(1).all()
    edge = box_crop(mask, torch.tensor([30.0, 20, 30, 20]), 4)
    assert edge.shape == (1, 4, 4) and edge.eq(0).all()
