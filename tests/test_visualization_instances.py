"""Objects drawn over photographs: fills, contours, labels, and refusals."""

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_ait.visualization import draw_instances

COLOR = (68, 159, 242)  # of the first object


@pytest.fixture
def grey():
    return Image.new("RGB", (200, 120), (100, 100, 100))


@pytest.fixture
def masks():
    """A large and a small rectangle, the small one inside."""
    masks = np.zeros((2, 120, 200), dtype=bool)
    masks[0, 40:110, 30:180] = True
    masks[1, 70:90, 60:90] = True
    return masks


def test_regions_are_filled_and_contoured(grey, masks):
    pixels = np.asarray(draw_instances(grey, ["dog"], [0.5], masks[:1]))
    assert pixels.shape == (120, 200, 3) and (np.asarray(grey) == 100).all(), "the photograph itself is left alone"
    assert (pixels[112:] == 100).all() and (pixels[:, 182:] == 100).all()
    fill = pixels[100, 100]
    assert np.allclose(fill, 0.55 * 100 + 0.45 * np.asarray(COLOR), atol=2)
    assert np.allclose(pixels[40:42, 100], COLOR, atol=1) and np.allclose(pixels[80, 178:180], COLOR, atol=1)
    assert np.allclose(pixels[43, 100], fill, atol=1), "the contour is a thin line"


def test_contours_close_along_the_border(grey):
    pixels = np.asarray(draw_instances(grey, ["dog"], masks=[np.ones((120, 200))]))
    for edge in (pixels[-1], pixels[30:, 0], pixels[30:, -1]):
        assert np.allclose(edge, COLOR, atol=1)


def test_small_objects_lie_over_large_ones(grey, masks):
    both = np.asarray(draw_instances(grey, ["dog", "cat"], masks=masks))
    reverse = np.asarray(draw_instances(grey, ["cat", "dog"], masks=masks[::-1]))
    alone = np.asarray(draw_instances(grey, ["dog"], masks=masks[:1]))
    assert not np.allclose(both[80, 75], alone[80, 75], atol=5)
    assert np.allclose(both[100, 150], alone[100, 150], atol=1)
    assert not np.allclose(reverse[80, 75], reverse[100, 150], atol=5)


def test_labels_name_class_and_score(grey, masks):
    plain, other, scored = (
        np.asarray(draw_instances(grey, [name], scores, masks[:1]))
        for name, scores in (("dog", None), ("cat", None), ("dog", torch.tensor([0.87])))
    )
    assert np.array_equal(plain[45:], other[45:]) and not np.array_equal(plain[:45], other[:45])
    width = [(np.abs(pixels[30].astype(int) - 100).sum(-1) > 0).sum() for pixels in (plain, scored)]
    assert width[1] > width[0] > 10, "the label stands above its object, longer with a score"


@pytest.mark.parametrize("box", [(0, 0, 30, 30), (190, 5, 200, 20), (-20, -20, 500, 500), (150, 118, 199, 119)])
def test_boxes_alone_and_labels_at_the_border(grey, box):
    pixels = np.asarray(draw_instances(grey, ["a long name of a class"], boxes=[box]))
    changed = np.abs(pixels.astype(int) - 100).sum(-1) > 0
    assert pixels.shape == (120, 200, 3) and changed.sum() > 200


def test_forms_of_masks_agree(grey, masks):
    expected = np.asarray(draw_instances(grey, ["a", "b"], [0.5, 0.25], masks))
    for form in (torch.from_numpy(masks), [Image.fromarray(m.astype(np.uint8) * 255) for m in masks], list(masks)):
        assert np.array_equal(np.asarray(draw_instances(np.asarray(grey), ["a", "b"], [0.5, 0.25], form)), expected)


def test_nothing_to_draw(grey, masks):
    assert np.array_equal(np.asarray(draw_instances(grey, [], [], [])), np.asarray(grey))
    assert np.array_equal(np.asarray(draw_instances(grey, ["none"], masks=masks[:1] & False)), np.asarray(grey))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs masks or boxes"),
        ({"scores": [0.5, 0.5], "boxes": [(0, 0, 1, 1)]}, "scores must hold one entry per label, got 2 for 1"),
        ({"boxes": []}, "boxes must hold one"),
        ({"masks": [np.ones((200, 120))]}, r"masks must be \(H, W\) of the image, \(120, 200\), got \(200, 120\)"),
    ],
)
def test_bad_arguments_are_refused(grey, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_instances(grey, ["dog"], **arguments)
