"""The table of metrics: every kind of map in one form, and the errors of real values."""

import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from transformers_ait.map_kinds_ait import MAP_KINDS
from transformers_ait.metrics import (
    MAP_METRICS,
    DepthMetricAccumulator,
    NormalsMetricAccumulator,
    SegmentationMetricAccumulator,
    mean_depth_metrics,
)
from transformers_ait.metrics.values import value_figures, value_statistics

NUM_CLASSES = 6
KINDS = {"depth": 1, "normals": 3, "classes": NUM_CLASSES, "values": 2}  # channels


def label(kind, size, generator):
    """Native map of one image; its first row is invalid."""
    maps = {
        "depth": lambda: 1 + 4 * torch.rand(*size, generator=generator),
        "normals": lambda: F.normalize(torch.randn(3, *size, generator=generator), dim=0),
        "classes": lambda: torch.randint(0, NUM_CLASSES, size, generator=generator),
        "values": lambda: torch.randn(2, *size, generator=generator),
    }[kind]()
    maps[..., 0, :] = int(MAP_KINDS[kind].invalid) if kind == "classes" else MAP_KINDS[kind].invalid
    return maps


def prediction(kind, target, generator):
    """Final map that is near the truth."""
    if kind == "classes":
        changed = torch.rand(target.shape, generator=generator) < 0.4
        return torch.where(changed, torch.randint(0, NUM_CLASSES, target.shape, generator=generator), target % 255)
    noise = 0.2 * torch.randn(target.shape, generator=generator)
    return target.nan_to_num() * (1 + noise) + 0.01


@pytest.fixture(params=KINDS)
def case(request):
    """Kind, its metrics, and pairs of prediction and truth of three images of different sizes."""
    generator = torch.Generator().manual_seed(0)
    targets = [label(request.param, size, generator) for size in ((5, 7), (20, 30), (8, 8))]
    pairs = [(prediction(request.param, target, generator), target) for target in targets]
    return request.param, MAP_METRICS[MAP_KINDS[request.param].metric], pairs


def measured(kind, metrics, pairs):
    """Statistics as another process gets them."""
    return [pickle.loads(pickle.dumps(metrics.measure(*pair, KINDS[kind]))) for pair in pairs]


def test_every_kind_has_metrics():
    assert {kind.metric for kind in MAP_KINDS.values()} == set(MAP_METRICS)
    assert all(metrics.leading in metrics.names for metrics in MAP_METRICS.values())
    assert [name for name, metrics in MAP_METRICS.items() if metrics.larger_is_better] == ["segmentation"]


def test_figures_of_images_together(case):
    kind, metrics, pairs = case
    figures = metrics.combine(measured(kind, metrics, pairs))
    assert tuple(figures) == metrics.names
    accumulator = {
        "depth": DepthMetricAccumulator,
        "normals": NormalsMetricAccumulator,
        "classes": lambda: SegmentationMetricAccumulator(NUM_CLASSES),
        "values": lambda: None,
    }[kind]()
    if accumulator is not None:
        for pair in pairs:
            accumulator.update(*pair)
        expected = accumulator.compute()
    else:
        errors = np.concatenate([(p - t)[~t.isnan()].double().numpy() for p, t in pairs])
        expected = {"mae": np.abs(errors).mean(), "rmse": np.sqrt((errors**2).mean())}
    assert figures == pytest.approx(expected, rel=1e-6)
    assert not any(map(math.isnan, figures.values()))
    # Order does not matter, and one image more does.
    assert metrics.combine(measured(kind, metrics, pairs[::-1])) == pytest.approx(figures, rel=1e-9)
    fewer = metrics.combine(measured(kind, metrics, pairs[:-1]))
    assert abs(fewer[metrics.leading] / figures[metrics.leading] - 1) > 1e-4


def test_mean_over_images_is_depths_alone(case):
    """Pixels are pooled elsewhere: the large image counts for more."""
    kind, metrics, pairs = case
    statistics = measured(kind, metrics, pairs)
    alone = [metrics.combine([of_image])[metrics.leading] for of_image in statistics]
    together = metrics.combine(statistics)[metrics.leading]
    assert (abs(np.mean(alone) / together - 1) < 1e-6) == (kind == "depth")


def test_images_without_valid_pixel(case):
    kind, metrics, pairs = case
    pred, target = pairs[0]
    target = target[..., :1, :].expand_as(target)  # the invalid row
    nothing = measured(kind, metrics, [(pred, target)])
    statistics = measured(kind, metrics, pairs)
    assert metrics.combine(nothing + statistics) == metrics.combine(statistics)
    for empty in ([], nothing, nothing * 2):
        figures = metrics.combine(empty)
        assert tuple(figures) == metrics.names and all(map(math.isnan, figures.values()))


def test_leading_figure_tells_better_from_worse(case):
    kind, metrics, pairs = case
    targets = [target for _, target in pairs]
    spoilt = [(pred.flip(-1), target) for pred, target in pairs]
    exact = [(target % 255 if kind == "classes" else target.nan_to_num(), target) for target in targets]
    worse, better, best = (
        metrics.combine(measured(kind, metrics, some))[metrics.leading] for some in (spoilt, pairs, exact)
    )
    assert worse < better < best if metrics.larger_is_better else worse > better > best


def test_what_a_kind_finishes_can_be_measured(case):
    """Truth through the forms of a map, as a perfect tokenizer would hand it back."""
    kind, metrics, pairs = case
    map_kind = MAP_KINDS[kind]
    target = pairs[1][1]
    decoded = map_kind.fill(map_kind.to_tokenizer(target[None], KINDS[kind]))
    final = map_kind.finish(map_kind.to_average(map_kind.from_tokenizer(decoded))[0], None)
    figures = metrics.combine(measured(kind, metrics, [(final, target)]))
    if kind == "classes":
        assert set(figures.values()) == {1.0}
    else:
        assert figures[metrics.leading] == pytest.approx(0, abs=1e-4)


def test_statistics_of_large_class_tables_are_small():
    metrics = MAP_METRICS["segmentation"]
    ids = torch.arange(900).view(30, 30) % 50
    statistics = metrics.measure(ids.flip(0), ids, 1000)
    assert len(pickle.dumps(statistics)) < 10_000
    assert metrics.combine([statistics])["pixel_accuracy"] == (ids == ids.flip(0)).double().mean()


def test_mean_depth_keeps_figures_that_are_nan_for_themselves():
    statistics = [{"d1": 0.5, "rmse_log": math.nan}, {"d1": 1.0, "rmse_log": 1.0}, {"d1": math.nan, "rmse_log": 7.0}]
    names = MAP_METRICS["depth"].names
    figures = mean_depth_metrics([dict.fromkeys(names, 0.0) | row for row in statistics])
    assert figures["d1"] == 0.75 and math.isnan(figures["rmse_log"]) and figures["rmse"] == 0


def test_values_by_hand():
    target = np.array([[[1.0, 2.0, np.nan]], [[0.0, np.nan, 5.0]]])  # (2, 1, 3): the first pixel alone is complete
    pred = np.array([[[4.0, 9.0, 9.0]], [[4.0, 9.0, 9.0]]])
    assert value_figures(value_statistics(pred, target)) == {"mae": 3.5, "rmse": math.sqrt(12.5)}
    pred[0, 0, 0] = np.nan
    assert all(map(math.isnan, value_figures(value_statistics(pred, target)).values())), "faults stay visible"


def test_values_sum_in_float64():
    """Small errors of large maps far from 0."""
    target = torch.full((1, 600, 600), 1000.0)
    figures = value_figures(value_statistics(target + 0.5, target))
    assert figures == {"mae": 0.5, "rmse": 0.5}


@pytest.mark.parametrize(
    ("pred", "target", "error", "message"),
    [
        (np.ones((1, 2, 3)), np.ones((1, 3, 2)), ValueError, "must have one shape"),
        (
            np.ones((1, 2, 3)),
            np.ones((1, 2, 3), np.int64),
            TypeError,
            "target must be floating-point values, got int64",
        ),
        (np.ones((2, 3)), np.ones((2, 3)), ValueError, r"pred must be \(C, H, W\) or \(B, C, H, W\), got \(2, 3\)"),
        (np.ones((1, 2, 3)), np.full((1, 2, 3), np.inf), ValueError, "target must be finite"),
        (3.0, np.ones((1, 2, 3)), TypeError, "pred must be a torch tensor or NumPy array, got float"),
    ],
)
def test_bad_values_are_refused(pred, target, error, message):
    with pytest.raises(error, match=message):
        value_statistics(pred, target)
