"""Masks between image and box frame: against the goldens of the original, torchvision, and a naive pasting."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torchvision.ops import box_iou, roi_align

from transformers_ait import AiTInstanceImageProcessor
from transformers_ait.mask_geometry_ait import crop_masks, paste_masks, proper_boxes

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDENS / "instance_soft.safetensors")


@pytest.fixture
def random_boxes():
    """Thirty proper boxes within 50 x 70 pixels, some smaller than a pixel."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(30, 2, generator=generator) * torch.tensor([50.0, 30.0])
    side = torch.rand(30, 2, generator=generator) ** 2 * torch.tensor([30.0, 25.0]) + 0.1
    return torch.cat((corner, corner + side), dim=1)


# Goldens


def test_crops_equal_the_originals(golden):
    crops = crop_masks(golden["gt_masks"], golden["gt_boxes"], 64)
    assert torch.equal(crops, golden["gt_mask_crops"])
    shifted = crop_masks(golden["gt_masks"], golden["gt_boxes"] + 0.5, 64)
    assert not torch.equal(shifted, golden["gt_mask_crops"]), "half a pixel must show"
    permuted = golden["gt_mask_crops_permuted"]
    assert not torch.equal(permuted, crops)
    assert {tuple(crop.flatten().tolist()) for crop in permuted} == {tuple(c.flatten().tolist()) for c in crops}


def test_pasted_crops_equal_the_originals(golden):
    pasted = paste_masks(golden["gt_mask_crops"], golden["gt_boxes"], 128, 128)
    expected = golden["gt_mask_crops_pasted"]
    assert (pasted ^ expected).sum() <= 3 and expected.sum() > 1000
    for change in (0.5, -0.5):
        moved = paste_masks(golden["gt_mask_crops"], golden["gt_boxes"] + change, 128, 128)
        assert (moved ^ expected).sum() > 50, "half a pixel must show"


def upright(values, boxes):
    """Inverted boxes turned over, with their masks: the original pasted those as mirror images."""
    mirrored_x, mirrored_y = (boxes[:, 2:] < boxes[:, :2]).unbind(1)
    values = torch.where(mirrored_x[:, None, None], values.flip(2), values)
    values = torch.where(mirrored_y[:, None, None], values.flip(1), values)
    corners = boxes.unflatten(1, (2, 2))
    return values, torch.cat((corners.amin(1), corners.amax(1)), dim=1)


@pytest.mark.parametrize("name", ["instance_soft", "instance_hard"])
def test_predicted_masks_equal_the_originals(name):
    stored = load_file(GOLDENS / f"{name}.safetensors")
    boxes, expected = stored["pred_boxes_scores"][:, :4], stored["pred_masks"]
    values, turned = upright(stored["pred_mask_probs"], boxes)
    sized = proper_boxes(turned)
    assert sized.sum() >= 2 and expected[sized].sum() > 2000
    pasted = paste_masks(values, turned, *expected.shape[1:])
    assert ((pasted ^ expected).flatten(1).sum(1)[sized] <= 3).all()
    moved = paste_masks(values, turned + 1, *expected.shape[1:])
    assert (moved ^ expected).flatten(1).sum(1)[sized].max() > 20, "a pixel must show"


@pytest.mark.parametrize("name", ["instance_soft", "instance_hard"])
def test_improper_boxes_of_the_originals_give_empty_masks(name):
    stored = load_file(GOLDENS / f"{name}.safetensors")
    proper, boxes = stored["pred_box_is_proper"], stored["pred_boxes_scores"][:, :4]
    assert torch.equal(proper_boxes(boxes), proper)
    pasted = paste_masks(stored["pred_mask_probs"], boxes, *stored["pred_masks"].shape[1:])
    assert torch.equal(pasted[proper], stored["pred_masks"][proper]) and not pasted[~proper].any()


@pytest.mark.parametrize("name", ["detection", "instance_soft", "instance_hard"])
def test_processor_finds_the_originals_objects(name):
    """Scale, score and label; inverted boxes are turned over first, because the processor drops them."""
    stored = load_file(GOLDENS / f"{name}.safetensors")
    figures = json.loads((GOLDENS / f"{name}.json").read_text())
    image, transformer = figures["image"], figures["config"]["transformer"]
    tokens = stored["generated_tokens"].view(len(stored["pred_labels"]), -1)[:, :4]
    size = stored["pixel_values"].shape[-1]
    boxes = upright(torch.zeros(len(tokens), 1, 1), tokens.float() * size / transformer["num_bins"])[1]
    outputs = SimpleNamespace(
        boxes=boxes[None], scores=stored["generated_scores"][None], class_labels=stored["pred_labels"][None]
    )
    processor = AiTInstanceImageProcessor(
        size={"longest_edge": image["valid_height"]}, pad_size={"height": size, "width": size}
    )
    original = (image["original_height"], image["original_width"])
    (found,) = processor.post_process_object_detection(outputs, 0.0, [original])
    scores = stored["pred_boxes_scores"][:, 4]
    expected = upright(torch.zeros(len(tokens), 1, 1), stored["pred_boxes_scores"][:, :4])[1]
    expected = expected.clamp(min=0).minimum(torch.tensor([original[1], original[0]] * 2))
    order = scores.argsort(descending=True)
    kept = order[proper_boxes(expected)[order]]
    assert len(kept) >= 2
    assert torch.allclose(found["boxes"], expected[kept], atol=1e-3)
    assert torch.equal(found["labels"], stored["pred_labels"][kept])
    assert torch.allclose(found["scores"], scores[kept], atol=1e-6)


# Cropping


def test_crops_are_thresholded_averages(random_boxes):
    masks = torch.rand(30, 50, 90, generator=torch.Generator().manual_seed(1)) > 0.5
    rois = [box[None] for box in random_boxes]
    averages = roi_align(masks.float()[:, None], rois, 16, sampling_ratio=-1, aligned=True)[:, 0]
    crops = crop_masks(masks, random_boxes, 16)
    assert torch.equal(crops, (averages >= 0.5).float())
    assert torch.equal(crop_masks(masks.byte() * 255, random_boxes, 16), crops)


def test_no_objects():
    assert crop_masks(torch.zeros(0, 8, 8), torch.zeros(0, 4), 16).shape == (0, 16, 16)
    assert paste_masks(torch.zeros(0, 16, 16), torch.zeros(0, 4), 8, 9).shape == (0, 8, 9)


def test_one_pixel_mask_survives_the_round_trip():
    mask = torch.zeros(1, 20, 30)
    mask[0, 7, 11] = 1
    box = torch.tensor([[11.0, 7.0, 12.0, 8.0]])
    crop = crop_masks(mask, box, 64)
    assert crop[0, 32, 32] == 1
    assert torch.equal(paste_masks(crop, box, 20, 30), mask.bool())


def test_pasting_undoes_cropping(random_boxes):
    generator = torch.Generator().manual_seed(3)
    for box in random_boxes[(random_boxes[:, 2:] - random_boxes[:, :2]).amin(1) > 8]:
        x1, y1, x2, y2 = box.tolist()
        rows, columns = torch.meshgrid(torch.arange(60) + 0.5, torch.arange(90) + 0.5, indexing="ij")
        angle = torch.rand((), generator=generator)
        ellipse = ((columns - (x1 + x2) / 2) / (x2 - x1) * 2) ** 2 + ((rows - (y1 + y2) / 2) / (y2 - y1) * 2) ** 2
        mask = (ellipse < 0.6 + 0.4 * angle)[None]
        pasted = paste_masks(crop_masks(mask, box[None], 64), box[None], 60, 90)
        assert (pasted & mask).sum() / (pasted | mask).sum() > 0.9


# Pasting


def naive_paste(values, box, height, width):
    """Bilinear interpolation at pixel centres in plain Python; zero outside the mask's own pixels."""
    x1, y1, x2, y2 = box.tolist()
    pasted = torch.zeros(height, width)
    rows, columns = values.shape
    for y in range(height):
        for x in range(width):
            u = (x + 0.5 - x1) / (x2 - x1) * columns - 0.5
            v = (y + 0.5 - y1) / (y2 - y1) * rows - 0.5
            left, top = int(u // 1), int(v // 1)
            for row, column, weight in (
                (top, left, (1 - (v - top)) * (1 - (u - left))),
                (top, left + 1, (1 - (v - top)) * (u - left)),
                (top + 1, left, (v - top) * (1 - (u - left))),
                (top + 1, left + 1, (v - top) * (u - left)),
            ):
                if 0 <= row < rows and 0 <= column < columns:
                    pasted[y, x] += weight * values[row, column]
    return pasted


def test_pasting_is_bilinear_at_pixel_centres(random_boxes):
    values = torch.rand(6, 7, 9, generator=torch.Generator().manual_seed(2)) * 1.6 - 0.2
    boxes = torch.cat((random_boxes[:5], torch.tensor([[-10.0, -5, 80, 60]])))
    pasted = paste_masks(values, boxes, 20, 30)
    for value, box, mask in zip(values, boxes, pasted, strict=True):
        expected = naive_paste(value, box, 20, 30)
        unsure = (expected - 0.5).abs() < 1e-4
        assert torch.equal(mask | unsure, (expected >= 0.5) | unsure)


def paste_everywhere(values, boxes, height, width):
    """The same sampling over the whole image, as the original does it; takes 13 bytes per pixel and object."""
    x, y = (
        (torch.arange(length) + 0.5 - boxes[:, i, None]) / (boxes[:, i + 2] - boxes[:, i])[:, None] * 2 - 1
        for i, length in ((0, width), (1, height))
    )
    grid = torch.stack((x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)), dim=-1)
    return F.grid_sample(values[:, None], grid, align_corners=False)[:, 0] >= 0.5


@pytest.mark.parametrize("seed", range(20))
def test_sampling_near_the_box_equals_sampling_the_whole_image(seed):
    """Bit for bit: boxes within, across and beyond the image, below a pixel and huge, and values as far as 3."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(40, 2, generator=generator) * torch.tensor([110.0, 80.0]) - 10
    side = 10 ** (torch.rand(40, 2, generator=generator) * 5 - 2)
    boxes = torch.cat((corner, corner + side), dim=1)
    boxes[::3] = boxes[::3].round()
    boxes = boxes[proper_boxes(boxes)]
    height, width = (60, 90) if seed % 2 else (61, 83)
    samples = (8, 64, 1, 5)[seed % 4]
    values = torch.rand(len(boxes), samples, samples + seed % 3, generator=generator) * 4 - 1
    expected = paste_everywhere(values, boxes, height, width)
    assert expected.flatten(1).any(1).sum() > 5 and not expected.flatten(1).any(1).all()
    assert torch.equal(paste_masks(values, boxes, height, width), expected)


def test_high_values_reach_beyond_their_box():
    """Up to half a value of the mask, so that sampling must not end at the box."""
    values, boxes = torch.full((1, 4, 4), 3.0), torch.tensor([[40.0, 20, 72, 52]])
    rows, columns = paste_masks(values, boxes, 60, 90)[0].nonzero().unbind(1)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (37, 17, 74, 54)


@pytest.mark.parametrize("box", [[-torch.inf, 0, 20, 20], [5, 5, torch.inf, 9], [-torch.inf] * 2 + [torch.inf] * 2])
def test_endless_boxes_give_masks(box):
    assert paste_masks(torch.ones(1, 8, 8), torch.tensor([box]), 20, 30).shape == (1, 20, 30)


def test_improper_boxes_give_empty_masks():
    boxes = torch.tensor(
        [[9.0, 2, 3, 8], [3, 8, 9, 2], [3, 3, 3, 9], [40, 2, 50, 9], [2, -9, 8, -1], [torch.nan, 0, 5, 5], [2, 2, 8, 8]]
    )
    assert proper_boxes(boxes).tolist() == [False, False, False, True, True, False, True]
    pasted = paste_masks(torch.ones(7, 8, 8), boxes, 20, 30)
    assert pasted.flatten(1).any(1).tolist() == [False] * 6 + [True]


def test_a_full_mask_fills_its_box(random_boxes):
    pasted = paste_masks(torch.ones(30, 32, 32), random_boxes.round(), 60, 90)
    sized = (random_boxes.round()[:, 2:] > random_boxes.round()[:, :2]).all(1)
    for mask, box in zip(pasted[sized], random_boxes.round()[sized], strict=True):
        rows, columns = mask.nonzero().unbind(1)
        found = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        assert box_iou(found[None], box[None]) == 1 and mask.sum() == (box[2] - box[0]) * (box[3] - box[1])


# Not resource.getrusage, whose peak a child inherits from its parent.
MEMORY = """
import re, sys, torch
from types import SimpleNamespace
from test_mask_geometry import paste_everywhere
from transformers_ait import AiTInstanceImageProcessor
from transformers_ait.mask_geometry_ait import paste_masks

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024

torch.set_num_threads(1)
boxes, values = torch.tensor([[5.0, 10.0, 635.0, 630.0]]).repeat(100, 1), torch.linspace(0, 1, 64).repeat(100, 64, 1)
processor, outputs = AiTInstanceImageProcessor(), SimpleNamespace(
    boxes=boxes[None], mask_values=values[None], scores=torch.rand(1, 100), class_labels=torch.zeros(1, 100).long()
)
segment = processor.post_process_instance_segmentation
runs = {
    "map": lambda size: segment(outputs, 0.0, target_sizes=[size], overlap_mask_area_threshold=0.0),
    "encodings": lambda size: segment(outputs, 0.0, target_sizes=[size], return_coco_annotation=True),
    "results": lambda size: processor.post_process_coco(outputs, [1], {1: 0}, [size]),
    "pasting": lambda size: paste_masks(values, boxes * 1.5, *size),
    "masks": lambda size: segment(outputs, 0.0, target_sizes=[size], return_binary_maps=True),
    "everywhere": lambda size: paste_everywhere(values[:60], boxes[:60] * 1.5, *size),
}
for run in runs.values():
    run((50, 50))
before = peak()
for name, run in runs.items():
    run((1000, 1000))
    print(name, peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.slow
def test_a_hundred_large_masks_take_bounded_memory():
    """Peaks in MB, in the order of the runs; sixty masks sampled everywhere at once take more than is allowed."""
    command = [sys.executable, "-c", MEMORY]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert finished.returncode == 0, finished.stderr[-2000:]
    peaks = {name: int(peak) for name, peak in map(str.split, finished.stdout.splitlines())}
    assert len(peaks) == 6 and 90 < peaks["masks"] < 600 < peaks["everywhere"]
    assert max(peaks[name] for name in ("map", "encodings", "results")) < 200, "the masks alone would take 95"
