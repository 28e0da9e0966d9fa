"""Depth pictures: colours against matplotlib's own, grey holes, shared scales, layout of the figure, errors."""

import sys

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from transformers_ait.visualization import (
    DEPTH_CMAP,
    ERROR_CMAP,
    INVALID_GREY,
    DepthPanelRow,
    colorize_depth,
    depth_panel,
)


def matplotlib_colors(shares, cmap):
    return np.array(matplotlib.colormaps[cmap](shares, bytes=True))[..., :3]


def row(**kwargs):
    depth = np.linspace(1, 5, 48 * 64, dtype=np.float32).reshape(48, 64)
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return DepthPanelRow(**{"image": image, "depth": depth, **kwargs})


@pytest.mark.parametrize("cmap", [DEPTH_CMAP, "turbo"])
def test_colours_are_matplotlibs(cmap):
    depth = np.array([[1.0, 2.0, 3.0, 5.0]])
    np.testing.assert_array_equal(colorize_depth(depth, cmap=cmap), matplotlib_colors([[0, 0.25, 0.5, 1.0]], cmap))


def test_invalid_pixels_are_grey_and_do_not_set_the_range():
    depth = torch.tensor([[0.0, torch.nan, torch.inf, -1.0, 2.0, 4.0]])
    picture = colorize_depth(depth)
    assert picture.dtype == np.uint8 and picture.shape == (1, 6, 3)
    assert (picture[0, :4] == INVALID_GREY).all()
    np.testing.assert_array_equal(picture[0, 4:], matplotlib_colors([0, 1.0], DEPTH_CMAP))


def test_shared_range_gives_equal_depth_equal_colour():
    one, other = np.array([[1.0, 2.0]]), np.array([[2.0, 8.0]])
    limits = {"min_depth": 1.0, "max_depth": 4.0}
    np.testing.assert_array_equal(colorize_depth(one, **limits)[0, 1], colorize_depth(other, **limits)[0, 0])
    assert not np.array_equal(colorize_depth(one)[0, 1], colorize_depth(other)[0, 0])  # own ranges would not
    np.testing.assert_array_equal(colorize_depth(other, **limits)[0, 1], matplotlib_colors(1.0, DEPTH_CMAP))  # beyond


def test_maps_of_one_value_or_none():
    assert len(np.unique(colorize_depth(np.full((3, 3), 2.0)).reshape(-1, 3), axis=0)) == 1
    assert (colorize_depth(np.zeros((3, 3))) == INVALID_GREY).all()
    assert (colorize_depth(torch.ones(3, 3, dtype=torch.bfloat16)) != INVALID_GREY).any()
    constant = np.full((48, 64), 2.0)
    assert depth_panel([row(depth=constant, truth=constant)]).mode == "RGB"
    assert depth_panel([row(depth=np.zeros((48, 64)), truth=constant)]).mode == "RGB"


def contains(picture, color, share):
    """Whether at least this share of the picture has about this colour."""
    distance = np.abs(np.asarray(picture).astype(int) - np.asarray(color).astype(int)).max(-1)
    return (distance <= 2).mean() >= share


@pytest.mark.slow
def test_panel_shows_depth_truth_error_and_holes():
    depth, truth = np.full((48, 64), 2.0), np.full((48, 64), 3.0)
    picture = depth_panel([row(depth=depth, truth=truth)], min_depth=1.0, max_depth=5.0, max_error=2.0)
    for color in (
        matplotlib_colors(0.25, DEPTH_CMAP),
        matplotlib_colors(0.5, DEPTH_CMAP),
        matplotlib_colors(0.5, ERROR_CMAP),
    ):
        assert contains(picture, color, 0.1)  # a tile is more than a tenth of the figure
    assert not contains(picture, (INVALID_GREY,) * 3, 0.005)
    truth[:, :32] = 0
    holes = depth_panel([row(depth=depth, truth=truth)], min_depth=1.0, max_depth=5.0, max_error=2.0)
    assert contains(holes, (INVALID_GREY,) * 3, 0.1)  # half of the truth and half of the error
    # Without the 1 m error the error colour is gone.
    right = depth_panel([row(depth=depth, truth=depth)], min_depth=1.0, max_depth=5.0, max_error=2.0)
    assert not contains(right, matplotlib_colors(0.5, ERROR_CMAP), 0.1)


@pytest.mark.slow
def test_panel_layout_and_file(tmp_path):
    path = tmp_path / "panel.png"
    narrow = depth_panel([row()], path)
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(narrow))
    wide = depth_panel([row(truth=np.ones((48, 64)))])
    assert wide.width > 1.9 * narrow.width
    tall = depth_panel([row(truth=np.ones((48, 64)), title="kitchen"), row(title="office")])
    assert tall.height > 1.5 * wide.height and tall.width == wide.width
    portrait = depth_panel([row(image=Image.new("L", (48, 64)), depth=torch.ones(64, 48))])
    assert portrait.height > narrow.height and portrait.width == narrow.width


def test_errors():
    with pytest.raises(ValueError, match="rows is empty"):
        depth_panel([])
    with pytest.raises(TypeError, match=r"rows\[0\] must be a DepthPanelRow, got dict"):
        depth_panel([vars(row())])
    with pytest.raises(ValueError, match=r"truth must have the size of depth, got \(3, 3\) and \(48, 64\)"):
        depth_panel([row(truth=np.ones((3, 3)))])
    with pytest.raises(ValueError, match=r"one \(H, W\) map, got shape \(1, 3, 3\)"):
        colorize_depth(np.ones((1, 3, 3)))
    with pytest.raises(ValueError, match="min_depth must not exceed max_depth, got 5.0 and 1.0"):
        colorize_depth(np.ones((3, 3)), min_depth=5.0)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"transformers_ait\[demo\]"):
        colorize_depth(np.ones((3, 3)))
