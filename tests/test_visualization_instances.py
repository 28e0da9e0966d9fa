"""Objects drawn over photographs: fills, contours, labels, and refusals."""

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_ait.visualization import DepthPanelRow, depth_panel, draw_instances, picture_panel

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


def text_pixels(picture):
    """Pixels of dark text, which colour 1 has, and nothing else in these pictures."""
    return (np.asarray(picture).max(-1) < 75).sum()


def test_labels_keep_clear_of_each_other():
    """Objects at one place: every text is seen whole."""
    picture, masks = Image.new("RGB", (300, 200), (100, 100, 100)), np.zeros((6, 200, 300), dtype=bool)
    for index, mask in enumerate(masks):
        mask[60 + index : 140 - index, 60 + index : 240 - index] = True
    alone = text_pixels(draw_instances(picture, ["dog"], [0.5], masks[:1], color_ids=[1]))
    together = text_pixels(draw_instances(picture, ["dog"] * 6, [0.5] * 6, masks, color_ids=[1] * 6))
    assert alone > 20 and together == pytest.approx(6 * alone, rel=0.1)


@pytest.mark.parametrize("scale", [1, 2])
def test_labels_stay_within_the_picture(scale):
    """Boxes at all corners: a chip is as large as in the middle."""
    picture, size = Image.new("RGB", (300, 200), (100, 100, 100)), []
    for x, y in ((140, 100), (-40, -30), (290, -10), (-20, 195), (290, 195)):
        drawn = draw_instances(picture, ["dog"], boxes=[(x, y, x + 50, y + 40)], color_ids=[1], scale=scale)
        assert drawn.size == (300 * scale, 200 * scale)
        size.append(text_pixels(drawn))
    assert size[0] > 10 and all(count == pytest.approx(size[0], rel=0.1) for count in size)


def test_color_ids_name_the_colours(grey, masks):
    swapped = np.asarray(draw_instances(grey, ["a", "b"], masks=masks, color_ids=[1, 0]))
    plain = np.asarray(draw_instances(grey, ["a", "b"], masks=masks))
    assert np.allclose(plain[100, 178:180], COLOR, atol=1) and not np.allclose(swapped[100, 178:180], COLOR, atol=20)
    assert np.allclose(swapped[89, 75], COLOR, atol=1)
    shared = np.asarray(draw_instances(grey, ["a", "a"], masks=masks, color_ids=[0, 0]))
    assert np.allclose(shared[89, 75], shared[100, 179], atol=1)


def test_many_colours_differ():
    names, picture = [str(i) for i in range(20)], Image.new("RGB", (400, 20))
    boxes = [(20 * i, 0, 20 * i + 19, 19) for i in range(20)]
    pixels = np.asarray(draw_instances(picture, names, boxes=boxes))[19, 10::20].astype(int)
    distance = np.abs(pixels[:, None] - pixels[None]).sum(-1) + 1000 * np.eye(20, dtype=int)
    assert distance.min() > 25


def test_scale_enlarges_picture_and_objects_together(grey, masks):
    once, twice = (draw_instances(grey, ["dog"], masks=masks[1:], scale=scale) for scale in (1, 2))
    assert twice.size == (400, 240)
    small, large = (np.asarray(drawn).astype(int)[:, :, 2] > 130 for drawn in (once, twice.resize((200, 120))))
    assert (small ^ large)[72:].sum() < 60 and small[72:].sum() > 400
    boxed = np.asarray(draw_instances(grey, ["dog"], boxes=[(60, 70, 89, 89)], scale=2))
    assert np.allclose(boxed[178, 120:178], COLOR, atol=1)


@pytest.mark.slow
def test_pictures_stand_in_rows_as_wide_as_depth(grey):
    red = Image.new("RGB", (200, 120), (200, 0, 0))
    panel = picture_panel([[grey, red], [red, grey]], ["Left", "Right"], ["one", None])
    depth = depth_panel([DepthPanelRow(grey, np.ones((120, 200)), np.ones((120, 200)))])
    assert panel.width == depth.width and panel.height > 2 * 0.45 * panel.width * 120 / 200
    pixels = np.asarray(panel).astype(int)
    row, other = panel.height // 4 + 60, 3 * panel.height // 4
    left, right = panel.width // 4, 3 * panel.width // 4
    assert np.allclose(pixels[row, left], 100, atol=2) and np.allclose(pixels[row, right], (200, 0, 0), atol=2)
    assert np.allclose(pixels[other, left], (200, 0, 0), atol=2) and np.allclose(pixels[other, right], 100, atol=2)
    for tiles in ([], [[grey]], [[grey, red], [red]]):
        with pytest.raises(ValueError, match="tiles must be rows of 2 pictures"):
            picture_panel(tiles, ["Left", "Right"])


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
        ({"boxes": [(0, 0, 1, 1)], "color_ids": []}, "color_ids must hold one entry per label, got 0 for 1"),
        ({"masks": [np.ones((200, 120))]}, r"masks must be \(H, W\) of the image, \(120, 200\), got \(200, 120\)"),
    ],
)
def test_bad_arguments_are_refused(grey, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_instances(grey, ["dog"], **arguments)
