"""Blending of windows: no seam, and the weighted mean that it should be."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_ait.image_windows_ait import blend_windows, window_layout


def ramp_and_step(blending, portrait=False):
    """Two windows that differ by a constant of 1, merged on 96 x 128."""
    windows = torch.stack([torch.zeros(96, 96), torch.ones(96, 96)])
    return blend_windows(windows, window_layout((128, 96) if portrait else (96, 128), 96, 2), blending)


@pytest.mark.parametrize("portrait", [False, True])
def test_smooth_blending_leaves_no_step_at_the_borders_of_windows(portrait):
    merged = ramp_and_step("smooth", portrait)
    steps = merged.diff(dim=-2 if portrait else -1)
    assert merged.min() == 0 and merged.max() == 1 and (steps >= 0).all()
    assert steps.max() < 2 / 64, "64 pixels overlap"
    across = merged.diff(dim=-1 if portrait else -2)
    assert torch.equal(across, torch.zeros_like(across))
    # The plain average steps by half of the difference where the second window begins, and where the first one ends.
    planted = ramp_and_step("average", portrait).diff(dim=-2 if portrait else -1)
    assert planted.max() == 0.5 and (planted == 0.5).sum() == 2 * 96


def test_blending_against_a_loop_over_pixels():
    windows = torch.randn(3, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    for blending in ("smooth", "average"):
        layout = window_layout((12, 26), 12, 3)
        expected = torch.zeros(2, 12, 26)
        for column in range(26):
            seen = [(i, column - offset) for i, offset in enumerate(layout.offsets) if 0 <= column - offset < 12]
            weights = [np.sin(np.pi * (c + 0.5) / 12) ** 2 if blending == "smooth" else 1.0 for _, c in seen]
            total = sum(w * windows[i, :, :, c] for w, (i, c) in zip(weights, seen, strict=True))
            expected[:, :, column] = total / sum(weights)
        torch.testing.assert_close(blend_windows(windows, layout, blending), expected)
        upright = blend_windows(windows.mT, window_layout((26, 12), 12, 3), blending)
        torch.testing.assert_close(upright, expected.mT)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 40), st.integers(1, 4))
def test_windows_of_one_map_give_it_back(height, width, window, num_windows):
    layout = window_layout((height, width), window, num_windows)
    canvas = torch.rand(2, *layout.canvas, generator=torch.Generator().manual_seed(0))
    windows = torch.stack([canvas.narrow(layout.dim, offset, window) for offset in layout.offsets])
    torch.testing.assert_close(blend_windows(windows, layout, "smooth"), canvas)
    if num_windows == 1:
        assert torch.equal(blend_windows(windows, layout, "smooth"), canvas)
