"""The losses against plain loops in float64, and their gradients where nothing is valid or everything exact."""

import math

import numpy as np
import pytest
import torch

from transformers_ait.losses_ait import dice_and_squared_error, token_cross_entropies
from transformers_ait.map_kinds_ait import scale_invariant_log_loss


def reference_scale_invariant(prediction, target, factor=0.5, per_image=False):
    """One pixel after the other, in float64; the flags plant mistakes."""
    if per_image:
        return np.mean([reference_scale_invariant(p[None], t[None]) for p, t in zip(prediction, target, strict=True)])
    logs = [
        math.log(t) - math.log(max(p, 1e-3))
        for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True)
        if t > 0
    ]
    mean = sum(logs) / len(logs)
    return math.sqrt(sum(g * g for g in logs) / len(logs) - factor * mean * mean)


@pytest.fixture
def prediction(depths):
    generator = torch.Generator().manual_seed(5)
    prediction = depths * (0.5 + torch.rand(depths.shape, generator=generator))
    prediction[0, :2] = -1.0  # below the smallest depth
    prediction[depths == 0] = 1e6  # at invalid pixels
    return prediction


def test_scale_invariant_loss_is_one_mean_over_all_valid_pixels(prediction, depths):
    depths[1, 4:] = 0  # images with very different numbers of valid pixels
    actual = scale_invariant_log_loss(prediction, depths).item()
    arrays = prediction.double().numpy(), depths.double().numpy()
    assert actual == pytest.approx(reference_scale_invariant(*arrays), rel=1e-5)
    for mistake in ({"factor": 0.85}, {"per_image": True}):
        assert actual != pytest.approx(reference_scale_invariant(*arrays, **mistake), rel=1e-3)


def test_scale_invariant_loss_ignores_invalid_pixels(prediction, depths):
    expected = scale_invariant_log_loss(prediction, depths)
    for value in (0.0, -3.0, 1e9, math.inf):
        assert torch.equal(scale_invariant_log_loss(prediction.where(depths > 0, value), depths), expected)
    assert not torch.equal(scale_invariant_log_loss(prediction * 1.01, depths), expected)


@pytest.mark.parametrize("case", ["nothing valid", "exact", "ordinary"])
def test_scale_invariant_loss_has_a_finite_gradient(prediction, depths, case):
    target = torch.zeros_like(depths) if case == "nothing valid" else depths
    given = (depths.clone() if case == "exact" else prediction).requires_grad_()
    loss = scale_invariant_log_loss(given, target)
    loss.backward()
    assert given.grad.isfinite().all()
    if case == "ordinary":
        assert given.grad.abs().sum() > 0 and (given.grad[depths == 0] == 0).all()
    else:
        assert 0 <= loss.item() < 1e-5
        assert (loss == 0) == (case == "nothing valid")


def test_scale_invariant_gradient_against_finite_differences(depths):
    target = depths[:1, :4, :4].double()
    given = (target + 0.5).requires_grad_()
    assert scale_invariant_log_loss(given.float(), target.float()).isfinite()
    loss = scale_invariant_log_loss(given, target)
    loss.backward()
    row, column = (target[0] > 0).nonzero()[0].tolist()
    arrays = given.detach().numpy(), target.numpy()
    step = 1e-5
    moved = [arrays[0].copy() for _ in range(2)]
    moved[0][0, row, column] += step
    moved[1][0, row, column] -= step
    upper, lower = (reference_scale_invariant(m, arrays[1]) for m in moved)
    assert given.grad[0, row, column].item() == pytest.approx((upper - lower) / (2 * step), rel=1e-3)


def test_token_cross_entropies_against_a_loop():
    logits, targets = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    targets[0, 1:3] = -100
    actual = token_cross_entropies(logits, targets)
    assert actual.shape == (2, 5) and actual.dtype == torch.float32
    for b in range(2):
        for i in range(5):
            if targets[b, i] == -100:
                assert actual[b, i] == 0
                continue
            row = logits[b, i].double()
            assert actual[b, i].item() == pytest.approx((row.exp().sum().log() - row[targets[b, i]]).item(), rel=1e-5)
    assert token_cross_entropies(logits.bfloat16(), targets).dtype == torch.float32


def test_unsupervised_tokens_give_zero_and_a_zero_gradient():
    logits = torch.randn(2, 5, 7, requires_grad=True)
    loss = token_cross_entropies(logits, torch.full((2, 5), -100)).sum()
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_dice_and_squared_error_against_a_loop():
    prediction = 3 * torch.randn(4, 6, 6)  # leaves [0, 1] on both sides
    target = (torch.rand(4, 6, 6) > 0.5).float()
    dice = squared = 0.0
    for p, g in zip(prediction.double(), target.double(), strict=True):
        c = p.clamp(0, 1)
        dice += 1 - (2 * (c * g).sum() + 1) / (c.sum() + g.sum() + 1)
        squared += (p - g).square().mean()
    expected = ((dice + squared) / 4).item()
    assert dice_and_squared_error(prediction, target).item() == pytest.approx(expected, rel=1e-5)
    assert dice_and_squared_error(prediction.clamp(0, 1), target).item() != pytest.approx(expected, rel=1e-2)


def test_dice_and_squared_error_without_objects_is_zero():
    nothing = torch.zeros(0, 6, 6, requires_grad=True)
    loss = dice_and_squared_error(nothing, torch.zeros(0, 6, 6))
    loss.backward()
    assert loss == 0
