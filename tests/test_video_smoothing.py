"""Smoothing of maps along time, and flicker, on made-up videos whose truth is known."""

import math

import pytest
import torch

from transformers_ait.map_kinds_ait import MAP_KINDS
from transformers_ait.metrics.flicker import Flicker, colour_change, map_change, static_pixels
from transformers_ait.video_smoothing import TemporalSmoother

SIZE = (32, 48)


def scene(moving=True, frames=16):
    """Pictures with noise and true depth: a wall at 3 m, before it a box at 1 m, 2 pixels further every frame."""
    generator = torch.Generator().manual_seed(0)
    texture = torch.rand(3, *SIZE, generator=generator) * 0.4
    found = []
    for number in range(frames):
        left = 4 + 2 * number if moving else 10
        picture, depth = texture.clone(), torch.full(SIZE, 3.0)
        picture[:, 10:22, left : left + 10] = 0.9
        depth[10:22, left : left + 10] = 1.0
        noise = 0.01 * torch.randn(picture.shape, generator=generator)
        found.append(((picture + noise).clamp(0, 1), depth))
    return found


def flickering(frames, scale=0.05):
    """Depth whose every frame is off by a factor of its own, as models of single images give it."""
    factors = 1 + scale * torch.randn(len(frames), generator=torch.Generator().manual_seed(1))
    return [(picture, depth * factor) for (picture, depth), factor in zip(frames, factors, strict=True)]


def smoothed(frames, kind="depth", channels=1, radius=3):
    smoother = TemporalSmoother({"task": MAP_KINDS[kind]}, {"task": channels}, radius)
    found = [x for picture, values in frames for x in smoother.push(picture, {"task": values})]
    return [x["task"] for x in [*found, *smoother.flush()]]


def flicker(frames, kind="depth"):
    figure = Flicker(MAP_KINDS[kind])
    for picture, values in frames:
        figure.update(picture, values)
    return figure.compute()


def errors_where_it_moved(maps, truth):
    """Mean absolute error over the pixels whose true depth changed since the frame before."""
    total = [
        (found - depth).abs()[before != depth].mean()
        for found, (_, depth), (_, before) in zip(maps[1:], truth[1:], truth[:-1], strict=True)
    ]
    return float(torch.stack(total).mean())


def test_flicker_of_what_does_not_move_falls():
    shaky = flickering(scene())
    before = flicker(shaky)
    after = flicker([(picture, values) for (picture, _), values in zip(shaky, smoothed(shaky), strict=True)])
    assert 0.04 < before < 0.08
    assert after < 0.35 * before


def test_nothing_trails_behind_what_moves():
    truth = scene()
    shaky = flickering(truth)
    error = errors_where_it_moved([values for _, values in shaky], truth)
    assert errors_where_it_moved(smoothed(shaky), truth) < 1.5 * error
    # The planted fault: an average that does not look at the pictures.
    blind = [(torch.zeros(3, *SIZE), values) for _, values in shaky]
    assert errors_where_it_moved(smoothed(blind), truth) > 5 * error


def test_slow_changes_do_not_lag():
    picture = torch.full((3, *SIZE), 0.5)
    ramp = [(picture, torch.full(SIZE, 1 + 0.1 * number)) for number in range(12)]
    for number, found in list(enumerate(smoothed(ramp)))[3:-3]:
        assert torch.allclose(found, ramp[number][1], atol=1e-5)


def test_every_frame_comes_once_and_in_order():
    for radius in (0, 1, 3, 20):
        smoother = TemporalSmoother({"task": MAP_KINDS["depth"]}, {"task": 1}, radius)
        for _ in range(2):  # a second video starts afresh
            # Pictures without any likeness, so that every result is its own frame.
            frames = [(torch.full((3, 4, 4), float(n % 2)), torch.full((4, 4), 1.0 + n)) for n in range(9)]
            counts = []
            found = []
            for picture, values in frames:
                new = smoother.push(picture, {"task": values})
                counts.append(len(new))
                found += new
            found += smoother.flush()
            assert counts == [0] * min(radius, 9) + [1] * max(0, 9 - radius)
            assert len(found) == 9
            if radius <= 1:
                assert [float(x["task"][0, 0]) for x in found] == [1.0 + n for n in range(9)]


def test_a_cut_is_not_smoothed_over():
    dark, bright = torch.zeros(3, *SIZE), torch.ones(3, *SIZE)
    frames = [(dark, torch.full(SIZE, 1.0))] * 5 + [(bright, torch.full(SIZE, 4.0))] * 5
    assert all(torch.allclose(x, y, atol=1e-4) for x, (_, y) in zip(smoothed(frames), frames, strict=True))


def test_other_kinds_of_maps():
    picture = torch.full((3, *SIZE), 0.5)
    ids = [torch.full(SIZE, 7 if number == 4 else 2) for number in range(9)]
    found = smoothed([(picture, x) for x in ids], "classes", 10)
    assert all(x.dtype == torch.int64 and (x == 2).all() for x in found)
    up, ahead = (torch.tensor(x)[:, None, None].expand(3, *SIZE) for x in ([0.0, -1.0, 0.0], [0.0, 0.0, -1.0]))
    found = smoothed([(picture, up if number % 2 else ahead) for number in range(9)], "normals", 3)
    assert all(torch.allclose(x.norm(dim=0), torch.ones(SIZE)) for x in found)
    assert 15 < float(map_change(found[4], ahead, MAP_KINDS["normals"]).mean()) < 75
    values = [torch.full((2, *SIZE), float(number)) for number in range(9)]
    found = smoothed([(picture, x) for x in values], "values", 2)
    assert torch.allclose(found[4], values[4], atol=1e-5)


def test_what_counts_as_static():
    still = scene(moving=False)
    assert static_pixels(still[0][0], still[1][0]).all()  # noise is no motion
    moving = scene()
    static = static_pixels(moving[0][0], moving[1][0])
    assert not static[12:20, 4:6].any() and not static[12:20, 14:16].any()
    assert static[28:, :].all()
    as_bytes = [(picture * 255).round().byte() for picture, _ in moving[:2]]
    assert torch.allclose(colour_change(*as_bytes), colour_change(moving[0][0], moving[1][0]), atol=0.004)


def test_figures_of_every_kind():
    one, two = torch.full(SIZE, 2.0), torch.full(SIZE, 2.5)
    picture = torch.full((3, *SIZE), 0.5)
    assert math.isclose(flicker([(picture, one), (picture, two)]), 0.25)
    ids = torch.zeros(SIZE, dtype=torch.long)
    changed = ids.clone()
    changed[:, :12] = 1
    assert math.isclose(flicker([(picture, ids), (picture, changed)], "classes"), 0.25)
    assert math.isnan(flicker([(picture, one)]))
    assert math.isnan(flicker([(picture, one), (1 - picture * 2, two)]))  # everything changes
    up, ahead = (torch.tensor(x)[:, None, None].expand(3, *SIZE) for x in ([0.0, -1.0, 0.0], [0.0, 0.0, -1.0]))
    assert math.isclose(flicker([(picture, up), (picture, ahead)], "normals"), 90.0)
    assert math.isclose(flicker([(picture, one[None]), (picture, two[None])], "values"), 0.5)


def test_frames_of_another_size_are_refused():
    smoother = TemporalSmoother({"task": MAP_KINDS["depth"]}, {"task": 1}, 1)
    smoother.push(torch.zeros(3, 8, 8), {"task": torch.ones(8, 8)})
    with pytest.raises(ValueError, match="Frames of a video must have one size"):
        smoother.push(torch.zeros(3, 8, 9), {"task": torch.ones(8, 9)})
    with pytest.raises(ValueError, match="radius must be 0 or more"):
        TemporalSmoother({}, {}, -1)
