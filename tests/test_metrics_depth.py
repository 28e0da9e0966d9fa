"""Depth metrics against the figures of the original evaluation, with planted errors the comparison must notice."""

import json
import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

from transformers_ait.metrics import (
    DEPTH_METRICS,
    NYU_EVAL_CROP,
    DepthMetricAccumulator,
    depth_evaluate,
    depth_metrics,
    depth_metrics_per_image,
)
from transformers_ait.metrics import depth as depth_module

GOLDENS = Path(__file__).parent / "goldens"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden():
    """Predicted depth, true depth, and the stored figures."""
    maps = np.load(GOLDENS / "depth_metrics.npz")
    return maps["pred"], maps["gt"], json.loads((GOLDENS / "depth_metrics.json").read_text())


def deviation(actual, expected):
    assert actual.keys() == expected.keys() == set(DEPTH_METRICS)
    return max(abs(actual[name] - expected[name]) / abs(expected[name]) for name in expected)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, lambda x: x.astype(np.float64)])
@pytest.mark.parametrize("crop", [True, (45, 471, 41, 601), list(NYU_EVAL_CROP)])
def test_golden(golden, convert, crop):
    pred, target, figures = golden
    per_image = depth_metrics_per_image(convert(pred), convert(target), eval_crop=crop)
    for actual, expected in zip(per_image, figures["per_image"], strict=True):
        assert deviation(actual, expected["metrics"]) < TOLERANCE
    assert deviation(depth_metrics(convert(pred), convert(target), eval_crop=crop), figures["mean"]) < TOLERANCE


def test_one_image_without_batch_dimension(golden):
    pred, target, figures = golden
    assert deviation(depth_metrics(pred[1], target[1], True), figures["per_image"][1]["metrics"]) < TOLERANCE


def test_planted_crop_is_noticed(golden):
    pred, target, figures = golden
    for crop in (None, False, (44, 471, 41, 601), (45, 472, 41, 601), (45, 471, 40, 601)):
        assert deviation(depth_metrics(pred, target, crop), figures["mean"]) > TOLERANCE


def test_every_edge_of_the_nyu_crop():
    """Only the outermost pixels inside the crop are right; one row or column more or fewer changes the mean."""
    pred, target = np.full((480, 640), 2.0), np.ones((480, 640))
    pred[45:471, 41:601] = 1.0
    assert depth_metrics(pred, target, True)["abs_rel"] == 0
    for inner in ((slice(46, 471), slice(41, 601)), (slice(45, 470), slice(41, 601))):
        shrunk = np.full((480, 640), 2.0)
        shrunk[inner] = 1.0
        assert depth_metrics(shrunk, target, True)["abs_rel"] == pytest.approx(1 / 426)
    for inner in ((slice(45, 471), slice(42, 601)), (slice(45, 471), slice(41, 600))):
        shrunk = np.full((480, 640), 2.0)
        shrunk[inner] = 1.0
        assert depth_metrics(shrunk, target, True)["abs_rel"] == pytest.approx(1 / 560)


def test_planted_mean_over_pixels_of_the_batch_is_noticed(golden):
    pred, target, figures = golden
    as_one_image = depth_metrics(pred.reshape(1, -1, 640), target.reshape(1, -1, 640))
    cropped = (slice(None), slice(45, 471), slice(41, 601))
    as_one_crop = depth_metrics(pred[cropped].reshape(1, -1, 560), target[cropped].reshape(1, -1, 560))
    assert deviation(as_one_image, figures["mean"]) > TOLERANCE
    assert deviation(as_one_crop, figures["mean"]) > 1e-3


@pytest.mark.parametrize("limits", [{"min_depth": 1e-2}, {"max_depth": 9.9}, {"max_depth": 10.5}, {"min_depth": 0.5}])
def test_planted_limits_are_noticed(golden, limits):
    pred, target, figures = golden
    assert deviation(depth_metrics(pred, target, True, **limits), figures["mean"]) > TOLERANCE


def test_planted_factor_100_in_silog_is_noticed(golden, monkeypatch):
    pred, target, figures = golden
    original = depth_module._metrics_of_pixels
    monkeypatch.setattr(
        depth_module, "_metrics_of_pixels", lambda p, t: {**original(p, t), "silog": 100 * original(p, t)["silog"]}
    )
    assert deviation(depth_metrics(pred, target, True), figures["mean"]) > TOLERANCE


def test_planted_clamping_of_predictions_is_noticed(golden):
    pred, target, figures = golden
    assert deviation(depth_metrics(np.clip(pred, 1e-3, 10), target, True), figures["mean"]) > TOLERANCE
    finite = np.nan_to_num(pred, nan=10.0, posinf=1e-3)  # the two replacements exchanged
    assert deviation(depth_metrics(finite, target, True), figures["mean"]) > TOLERANCE


def test_thresholds_are_strict():
    # 1.25 and its powers are exact in float32, and so are these ratios: `<=` would count them.
    target = np.ones((1, 3), np.float32)
    pred = np.array([[1.25, 1.25**2, 1.25**3]], np.float32)
    metrics = depth_metrics(pred, target)
    assert metrics["d1"] == 0
    assert metrics["d2"] == pytest.approx(1 / 3)
    assert metrics["d3"] == pytest.approx(2 / 3)


def test_limits_of_valid_depth_are_strict():
    target = np.array([[1e-3, 10.0, 2.0, 0.0, np.nan, -1.0, np.inf]], np.float32)
    pred = np.full_like(target, 4.0)
    assert depth_metrics(pred, target)["abs_rel"] == 1.0  # only the pixel at 2 m counts


def test_formulas_in_float64():
    generator = np.random.default_rng(0)
    target = generator.uniform(0.5, 9.5, (40, 50))
    pred = target * np.exp(generator.normal(0, 0.3, target.shape))
    error = np.log(pred) - np.log(target)
    expected = {
        **{f"d{i}": np.mean(np.maximum(pred / target, target / pred) < 1.25**i) for i in (1, 2, 3)},
        "abs_rel": np.mean(np.abs(pred - target) / target),
        "sq_rel": np.mean((pred - target) ** 2 / target),
        "rmse": np.sqrt(np.mean((pred - target) ** 2)),
        "rmse_log": np.sqrt(np.mean(error**2)),
        "log10": np.mean(np.abs(np.log10(pred) - np.log10(target))),
        "silog": np.sqrt(np.mean(error**2) - 0.5 * np.mean(error) ** 2),
    }
    assert deviation(depth_metrics(pred, target), expected) < TOLERANCE


def test_negative_predictions_stay_visible():
    metrics = depth_metrics(np.full((2, 2), -1.0), np.ones((2, 2)))
    assert metrics["rmse"] == 2.0
    assert math.isnan(metrics["rmse_log"])


def test_images_without_valid_pixels_are_left_out(golden):
    pred, target, figures = golden
    empty = np.zeros_like(target[:1])
    per_image = depth_metrics_per_image(np.concatenate([empty, pred]), np.concatenate([empty, target]), True)
    assert all(math.isnan(value) for value in per_image[0].values())
    mean = depth_metrics(np.concatenate([empty, pred]), np.concatenate([empty, target]), True)
    assert deviation(mean, figures["mean"]) < TOLERANCE
    with pytest.raises(ValueError, match="No image has a target pixel"):
        depth_metrics(pred[:1], empty)


def test_accumulator_over_batches(golden):
    pred, target, figures = golden
    accumulator = DepthMetricAccumulator(eval_crop=True)
    with pytest.raises(ValueError, match="No image"):
        accumulator.compute()
    accumulator.update(pred[:1], target[:1])
    accumulator.update(torch.from_numpy(pred[1]), torch.from_numpy(target[1]))
    assert accumulator.num_images == 2
    assert deviation(accumulator.compute(), figures["mean"]) < TOLERANCE


@pytest.mark.parametrize("source", ["class", "file"])
def test_evaluate_module(golden, tmp_path, source, monkeypatch):
    pred, target, figures = golden
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if source == "class":
        metric = depth_evaluate.AiTDepthMetrics(cache_dir=str(tmp_path))
    else:
        metric = evaluate.load(depth_evaluate.__file__, cache_dir=str(tmp_path))
    metric.add_batch(predictions=pred[:1], references=target[:1])
    metric.add(prediction=pred[1], reference=target[1])
    assert deviation(metric.compute(eval_crop=True), figures["mean"]) < TOLERANCE


@pytest.mark.parametrize(
    ("pred", "target", "kwargs", "error", "message"),
    [
        (np.ones((2, 3)), np.ones((3, 2)), {}, ValueError, r"one shape, got \(1, 2, 3\) and \(1, 3, 2\)"),
        (np.ones((2, 3), np.uint16), np.ones((2, 3)), {}, TypeError, "pred must be floating-point metres, got uint16"),
        (np.ones((2, 3)), torch.ones(2, 3, dtype=torch.int32), {}, TypeError, "target must be floating-point"),
        ([[1.0]], np.ones((1, 1)), {}, TypeError, "pred must be a torch tensor or NumPy array, got list"),
        (np.ones(3), np.ones(3), {}, ValueError, r"pred must be \(H, W\) or \(B, H, W\), got \(3,\)"),
        (np.ones((48, 64)), np.ones((48, 64)), {"eval_crop": True}, ValueError, "480 x 640 images, got 48 x 64"),
        (np.ones((4, 4)), np.ones((4, 4)), {"eval_crop": (0, 5, 0, 4)}, ValueError, "inside 4 x 4"),
        (np.ones((4, 4)), np.ones((4, 4)), {"min_depth": 2.0, "max_depth": 1.0}, ValueError, "min_depth < max_depth"),
    ],
)
def test_bad_arguments_are_refused(pred, target, kwargs, error, message):
    with pytest.raises(error, match=message):
        depth_metrics(pred, target, **kwargs)
