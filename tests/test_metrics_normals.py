"""Metrics of normals against an independent float64 computation, with planted errors the comparison must notice."""

import math

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from transformers_ait.metrics import NORMALS_METRICS, NormalsMetricAccumulator, normals_evaluate, normals_metrics
from transformers_ait.metrics import normals as module

TOLERANCE = 1e-5
MEDIAN_TOLERANCE = 0.005 + 1e-6  # degrees: half a bin


def unit(vectors, axis):
    return vectors / np.linalg.norm(vectors, axis=axis, keepdims=True)


def reference_angles(pred, target):
    """Degrees of the valid pixels in float64, by the arc cosine."""
    pred, target = (np.moveaxis(x, -3, -1).astype(np.float64).reshape(-1, 3) for x in (pred, target))
    valid = (target != 0).any(1)
    with np.errstate(all="ignore"):
        cosine = (unit(pred[valid], 1) * unit(target[valid], 1)).sum(1)
    return np.where(np.isfinite(cosine), np.degrees(np.arccos(np.clip(cosine, -1, 1))), 90.0)


def reference(pred, target):
    angles = reference_angles(pred, target)
    return {
        "mean_angle": np.mean(angles),
        "median_angle": np.median(angles),
        "rmse_angle": np.sqrt(np.mean(angles**2)),
        "within_5": np.mean(angles < 5),
        "within_11.25": np.mean(angles < 11.25),
        "within_22.5": np.mean(angles < 22.5),
        "within_30": np.mean(angles < 30),
    }


def wrong(actual, expected):
    """Figures that are off by more than they may be."""
    assert tuple(actual) == tuple(expected) == NORMALS_METRICS
    limits = {name: MEDIAN_TOLERANCE if name == "median_angle" else TOLERANCE for name in expected}
    return [name for name in expected if not abs(actual[name] - expected[name]) <= limits[name]]


def noisy(size, noise, seed):
    generator = np.random.default_rng(seed)
    target = unit(generator.normal(size=(3, *size)), 0)
    return target + generator.normal(0, noise, target.shape), target


@pytest.fixture
def maps():
    """Two predictions of any length and truths (3, 30, 40) float32; the second is worse and has invalid pixels."""
    (good, first), (bad, second) = noisy((30, 40), 0.1, 0), noisy((30, 40), 0.6, 1)
    lengths = np.random.default_rng(2).uniform(0.1, 3, (30, 40))
    second[:, 10:20] = 0
    bad[:, 0, :5], bad[:, 0, 5:10], bad[1, 0, 10:15], bad[1, 0, 15] = 0, np.nan, np.nan, np.inf
    return np.stack([good * lengths, bad]).astype(np.float32), np.stack([first, second]).astype(np.float32)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, lambda x: x.astype(np.float64)])
def test_as_float64_computation(maps, convert):
    expected = reference(*maps)
    assert wrong(normals_metrics(*map(convert, maps)), expected) == []
    assert 3 < expected["median_angle"] < expected["mean_angle"] < expected["rmse_angle"] < 60


@given(size=st.integers(1, 4), noise=st.sampled_from([1e-6, 0.01, 0.3, 3.0]), seed=st.integers(0, 10**6))
def test_few_pixels(size, noise, seed):
    """Medians of even and odd numbers of pixels."""
    pred, target = (x.astype(np.float32) for x in noisy((1, size), noise, seed))
    assert wrong(normals_metrics(pred, target), reference(pred, target)) == []


@given(
    angle=st.floats(0, 180),
    direction=st.floats(0, 2 * math.pi),
    length=st.floats(1e-40, 1e38),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_rotations_by_a_known_angle(angle, direction, length, dtype):
    """Small, straight and in between, of any length: the arc cosine of float32 would be 0.02 degrees off."""
    tilt = math.radians(angle)
    ahead = [math.sin(tilt) * math.cos(direction), math.sin(tilt) * math.sin(direction), math.cos(tilt)]
    pred = (torch.tensor(ahead, dtype=torch.float64) * length).to(dtype)
    target = torch.tensor([0.0, 0.0, 1.0], dtype=dtype)
    figures = normals_metrics(pred.view(3, 1, 1), target.view(3, 1, 1))
    # Numbers below 1e-38 keep few digits in float32.
    tolerance = 1e-5 if dtype == torch.float64 or length > 1e-36 else 0.01
    assert figures["mean_angle"] == pytest.approx(angle, abs=tolerance)
    assert figures["rmse_angle"] == pytest.approx(angle, abs=tolerance)
    assert figures["median_angle"] == pytest.approx(angle, abs=MEDIAN_TOLERANCE + tolerance)


def of_angles(*degrees):
    """Prediction and truth (3, 1, N) at these angles."""
    angles = np.radians(degrees)
    pred = np.stack([np.sin(angles), np.zeros_like(angles), np.cos(angles)])[:, None]
    return pred, np.broadcast_to(np.array([0.0, 0.0, 1.0])[:, None, None], pred.shape)


def test_thresholds():
    figures = normals_metrics(*of_angles(4.99, 5.01, 11.24, 11.26, 22.49, 22.51, 29.99, 30.01))
    assert [figures[name] for name in NORMALS_METRICS[3:]] == [1 / 8, 3 / 8, 5 / 8, 7 / 8]


def test_exact_predictions():
    figures = normals_metrics(*of_angles(0, 0, 0))
    assert list(figures.values()) == [0, 0, 0, 1, 1, 1, 1]
    assert normals_metrics(*of_angles(180))["median_angle"] == 180


def test_median_is_of_the_middle_pixels():
    assert normals_metrics(*of_angles(1, 2, 50))["median_angle"] == 2
    assert normals_metrics(*of_angles(1, 2, 50, 60))["median_angle"] == 26
    assert normals_metrics(*of_angles(12.347))["median_angle"] == 12.35, "rounded, not cut off"


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf])
def test_predictions_without_direction_count_as_90_degrees(value):
    target = of_angles(0)[1]
    for pred in (np.full_like(target, value), np.where([[[1]], [[0]], [[0]]], value, target * (value != 0))):
        assert normals_metrics(pred, target)["mean_angle"] == 90


def cosine(pred, target):
    return (pred * target).sum(1)[(target != 0).any(1)].clamp(-1, 1)


PLANTED = {
    "lengths are not divided out": lambda p, t: cosine(p, t).arccos().rad2deg().nan_to_num(90.0),
    "invalid pixels count": lambda p, t: module.normal_angles(
        p, torch.where((t == 0).all(1, keepdim=True), 3**-0.5, t)
    ),
    "no direction counts as nothing": lambda p, t: module.normal_angles(
        p, t * ((p != 0).any(1, keepdim=True) & p.isfinite().all(1, keepdim=True))
    ),
    "radians": lambda p, t: module.normal_angles(p, t).deg2rad(),
    "the flip of x is forgotten": lambda p, t: module.normal_angles(p * torch.tensor([-1.0, 1, 1]).view(3, 1, 1), t),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_errors_are_noticed(maps, name, monkeypatch):
    expected = reference(*maps)
    angles = PLANTED[name](*map(torch.from_numpy, maps)).double()
    monkeypatch.setattr(module, "normal_angles", lambda pred, target: angles)
    assert {"mean_angle", "median_angle", "rmse_angle"} <= set(wrong(normals_metrics(*maps), expected))


def test_planted_mean_over_images_is_noticed(maps):
    first, second = (normals_metrics(*pair) for pair in zip(*maps, strict=True))
    mean = {name: (first[name] + second[name]) / 2 for name in first}
    assert set(wrong(mean, reference(*maps))) == set(NORMALS_METRICS)


def test_real_surfaces(shared_dir):
    """Normals of a photographed room, from its depth and from its depth with noise."""
    file = shared_dir / "data" / "nyu_depth_v2" / "sync" / "labelled" / "sync_depth_00002.png"
    depth = np.asarray(Image.open(file)).astype(np.float64)[::4, ::4] / 1000

    def normals(metres):
        rows, columns = np.gradient(metres)
        return unit(np.stack([columns, rows, np.full_like(metres, -0.02)]), 0).astype(np.float32)

    target = normals(depth)
    target[:, depth > 3] = 0
    pred = 2 * normals(depth + np.random.default_rng(0).normal(0, 0.005, depth.shape))
    assert wrong(normals_metrics(pred, target), reference(pred, target)) == []


def test_accumulator_over_batches(maps):
    pred, target = maps
    accumulator = NormalsMetricAccumulator()
    with pytest.raises(ValueError, match="No pixel of target is valid"):
        accumulator.compute()
    accumulator.update(pred[:1, :, :7], target[:1, :, :7])
    accumulator.update(torch.from_numpy(pred[0, :, 7:]), torch.from_numpy(target[0, :, 7:]))
    accumulator.update(pred[1], np.zeros_like(target[1]))
    size = accumulator.total.numel()
    accumulator.update(torch.from_numpy(pred[1]), target[1])
    assert accumulator.total.numel() == size, "memory does not grow"
    assert wrong(accumulator.compute(), reference(pred, target)) == []


def test_half_precision(maps):
    pred, target = torch.from_numpy(maps[0][:1]), torch.from_numpy(maps[1][:1])
    for dtype in (torch.float16, torch.bfloat16):
        rounded = pred.to(dtype)
        assert wrong(normals_metrics(rounded, target), reference(rounded.float().numpy(), target.numpy())) == []


@pytest.mark.parametrize("source", ["class", "file"])
def test_evaluate_module(maps, tmp_path, source, monkeypatch):
    pred, target = maps
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if source == "class":
        metric = normals_evaluate.AiTNormalsMetrics(cache_dir=str(tmp_path))
    else:
        metric = evaluate.load(normals_evaluate.__file__, cache_dir=str(tmp_path))
    metric.add_batch(predictions=pred[:1], references=target[:1])
    metric.add(prediction=pred[1, :, 3:], reference=target[1, :, 3:])  # another size
    metric.add(prediction=pred[1, :, :3], reference=target[1, :, :3])
    assert wrong(metric.compute(), reference(pred, target)) == []
    assert "count as 90 degrees" in metric.inputs_description


UP = np.zeros((3, 2, 4), np.float32)
UP[1] = -1


@pytest.mark.parametrize(
    ("pred", "target", "error", "message"),
    [
        (UP, UP[:, :1], ValueError, r"one shape, got \(1, 3, 2, 4\) and \(1, 3, 1, 4\)"),
        (UP.astype(np.uint8), UP, TypeError, "pred must be floating-point vectors, got uint8; .* `pred / 127.5 - 1`"),
        (UP, torch.ones(3, 2, 4, dtype=torch.int64), TypeError, "target must be floating-point vectors"),
        ([[[1.0]]], UP, TypeError, "pred must be a torch tensor or NumPy array, got list"),
        (UP[0], UP[0], ValueError, r"pred must be \(3, H, W\) or \(B, 3, H, W\), got \(2, 4\)"),
        (UP.transpose(1, 2, 0), UP.transpose(1, 2, 0), ValueError, r"must be \(3, H, W\).*, got \(1, 2, 4, 3\)"),
        (UP, UP * 0.5, ValueError, "target must be vectors of length 1, .*, got a length of 0.5"),
        (UP, UP * np.nan, ValueError, "target must be vectors of length 1, .*, got a length of nan"),
        (UP, UP * 0, ValueError, "No pixel of target is valid"),
    ],
)
def test_bad_arguments_are_refused(pred, target, error, message):
    with pytest.raises(error, match=message):
        normals_metrics(pred, target)
