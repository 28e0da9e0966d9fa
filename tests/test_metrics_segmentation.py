"""Segmentation metrics against scikit-learn and by hand, with planted errors the comparison must notice."""

import math
import warnings

import evaluate
import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from transformers_ait.metrics import (
    SEGMENTATION_METRICS,
    SegmentationMetricAccumulator,
    confusion_matrix,
    segmentation_evaluate,
    segmentation_metrics,
)
from transformers_ait.metrics import segmentation as module

TOLERANCE = 1e-12
NUM_CLASSES = 5


def reference(pred, target, ignore_index=255):
    """The three figures by scikit-learn."""
    valid = target != ignore_index
    truth, guess = target[valid], pred[valid]
    # All classes that occur, which is scikit-learn's own choice too, but for the one that is ignored.
    labels = sorted((set(truth.tolist()) | set(guess.tolist())) - {ignore_index})
    return {
        "miou": sk.jaccard_score(truth, guess, average="macro", labels=labels, zero_division=0),
        "pixel_accuracy": sk.accuracy_score(truth, guess),
        "mean_accuracy": sk.recall_score(truth, guess, average="macro", labels=np.unique(truth)),
    }


def deviation(actual, expected):
    assert tuple(actual) == tuple(expected) == SEGMENTATION_METRICS
    return max(abs(actual[name] - expected[name]) for name in expected)


@pytest.fixture
def maps():
    """Two predictions and truths of five classes. Class 3 never occurs, 4 is predicted alone, a fifth is invalid."""
    generator = np.random.default_rng(0)
    target = generator.choice(4, (2, 30, 40), p=[0.6, 0.3, 0.1, 0.0])
    target[1] = np.where(target[1] == 2, 1, target[1])
    wrong = generator.choice([0, 1, 2, 4], target.shape)
    pred = np.where(generator.random(target.shape) < 0.7, target, wrong)
    target[generator.random(target.shape) < 0.2] = 255
    return pred, target


@pytest.mark.slow
@given(
    pred=arrays(np.int64, (2, 3, 4), elements=st.integers(0, NUM_CLASSES - 1)),
    target=arrays(np.int64, (2, 3, 4), elements=st.sampled_from([*range(NUM_CLASSES), 255])),
    ignore_index=st.sampled_from([255, 2]),
)
def test_as_scikit_learn(pred, target, ignore_index):
    if ignore_index != 255:
        target = np.where(target == 255, 0, target)
    if (target == ignore_index).all():
        return
    figures = segmentation_metrics(pred, target, NUM_CLASSES, ignore_index)
    assert deviation(figures, reference(pred, target, ignore_index)) < TOLERANCE


def test_matrix_and_classes_as_scikit_learn(maps):
    pred, target = maps
    truth, guess = target[target != 255], pred[target != 255]
    expected = sk.confusion_matrix(truth, guess, labels=range(NUM_CLASSES))
    assert np.array_equal(confusion_matrix(pred, target, NUM_CLASSES), expected)
    assert not np.array_equal(expected, expected.T), "a transposed matrix must not pass"
    accumulator = SegmentationMetricAccumulator(NUM_CLASSES)
    accumulator.update(pred, target)
    per_class = accumulator.iou_per_class(["wall", "floor", "bed", "lamp", "sofa"])
    assert list(per_class) == ["wall", "floor", "bed", "lamp", "sofa"]
    assert math.isnan(per_class.pop("lamp")) and per_class["sofa"] == 0
    expected = sk.jaccard_score(truth, guess, average=None, labels=[0, 1, 2, 4])
    assert np.allclose(list(per_class.values()), expected, atol=TOLERANCE, rtol=0)
    assert accumulator.compute()["miou"] == pytest.approx(np.mean(expected))
    assert list(accumulator.iou_per_class()) == ["0", "1", "2", "3", "4"]


def test_by_hand():
    target = np.array([[0, 0, 0, 1], [1, 1, 2, 255]], np.uint8)
    pred = np.array([[0, 0, 1, 1], [1, 1, 0, 7]], np.uint8)  # any id will do where the truth is invalid
    figures = segmentation_metrics(pred, target, 4)
    # Hits 2, 3, 0; unions 4, 4, 1. Class 3 is nowhere.
    assert figures["miou"] == pytest.approx((2 / 4 + 3 / 4 + 0) / 3)
    assert figures["pixel_accuracy"] == pytest.approx(5 / 7)
    assert figures["mean_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def mean_over_all_classes(confusion, ignore_index):
    hits = confusion.diagonal().double()
    return hits / (confusion.sum(0) + confusion.sum(1) - hits).clamp(min=1)


PLANTED = {
    "absent classes count as 0": ("class_iou", mean_over_all_classes),
    "Dice instead of IoU": ("class_iou", lambda c, i: 2 * c.diagonal() / (c.sum(0) + c.sum(1))),
    "transposed": ("confusion_matrix", lambda *args, **kwargs: confusion_matrix(*args, **kwargs).T),
    "invalid pixels count": (
        "confusion_matrix",
        lambda p, t, num_classes, ignore_index: confusion_matrix(p, np.where(t == 255, 0, t), num_classes),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_errors_are_noticed(maps, monkeypatch, name):
    pred, target = maps
    monkeypatch.setattr(module, *PLANTED[name])
    assert deviation(segmentation_metrics(pred, target, NUM_CLASSES), reference(pred, target)) > 1e-3


def test_planted_mean_over_images_is_noticed(maps):
    pred, target = maps
    per_image = [segmentation_metrics(p, t, NUM_CLASSES) for p, t in zip(pred, target, strict=True)]
    mean = {name: (per_image[0][name] + per_image[1][name]) / 2 for name in SEGMENTATION_METRICS}
    assert deviation(mean, reference(pred, target)) > 1e-3


def test_ignored_class_of_the_table(maps):
    """As where 39 of 40 classes is "anything else": no figure of its own, and an error where it is predicted."""
    pred, target = maps[0], np.where(maps[1] == 255, 2, maps[1])
    accumulator = SegmentationMetricAccumulator(NUM_CLASSES, ignore_index=2)
    accumulator.update(pred, target)
    assert deviation(accumulator.compute(), reference(pred, target, 2)) < TOLERANCE
    assert math.isnan(accumulator.iou_per_class()["2"])
    predicted_elsewhere = ((pred == 2) & (target != 2)).sum()
    assert predicted_elsewhere > 0
    assert accumulator.total[:, 2].sum() == predicted_elsewhere


def test_real_labels(shared_dir):
    """Frames of NYU Depth v2, moved and partly of another class, in both ways to mark 39 as invalid."""
    files = sorted((shared_dir / "data" / "nyu_depth_v2" / "sync" / "labelled").glob("labels40_*.png"))[:3]
    assert files
    target = np.stack([np.asarray(Image.open(file)) for file in files])
    pred = np.roll(target, (9, -14), (1, 2))
    figures = segmentation_metrics(pred, target, 40, ignore_index=39)
    assert deviation(figures, reference(pred, target, 39)) < TOLERANCE
    assert 0.3 < figures["miou"] < figures["pixel_accuracy"] < 0.95
    marked = np.where(target == 39, 255, target)
    assert deviation(segmentation_metrics(pred, marked, 39 + 1), figures) > 1e-3, "39 is a class like another there"
    assert segmentation_metrics(target, marked, 39) == dict.fromkeys(SEGMENTATION_METRICS, 1.0)


def test_accumulator_over_batches(maps):
    pred, target = maps
    accumulator = SegmentationMetricAccumulator(NUM_CLASSES)
    with pytest.raises(ValueError, match="No pixel of target is valid"):
        accumulator.compute()
    assert all(map(math.isnan, accumulator.iou_per_class().values()))
    accumulator.update(pred[:1, :7], target[:1, :7])
    accumulator.update(torch.from_numpy(pred[0, 7:]), torch.from_numpy(target[0, 7:]))
    accumulator.update(pred[1], np.full_like(target[1], 255))
    accumulator.update(torch.from_numpy(pred[1]), target[1])
    assert deviation(accumulator.compute(), reference(pred, target)) < TOLERANCE


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint64"])
def test_integers_of_any_width(maps, dtype):
    pred, target = (x.astype(dtype) for x in maps)
    target.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = segmentation_metrics(pred, target, NUM_CLASSES)
        flipped = segmentation_metrics(pred[..., ::-1], target[..., ::-1], NUM_CLASSES)
    assert deviation(figures, reference(*maps)) < TOLERANCE
    assert figures == flipped


@pytest.mark.parametrize("source", ["class", "file"])
def test_evaluate_module(maps, tmp_path, source, monkeypatch):
    pred, target = maps
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if source == "class":
        metric = segmentation_evaluate.AiTSegmentationMetrics(cache_dir=str(tmp_path))
    else:
        metric = evaluate.load(segmentation_evaluate.__file__, cache_dir=str(tmp_path))
    metric.add_batch(predictions=pred[:1], references=target[:1])
    metric.add(prediction=pred[1, 3:], reference=target[1, 3:])  # another size
    metric.add(prediction=pred[1, :3], reference=target[1, :3])
    figures = metric.compute(num_classes=NUM_CLASSES, class_names=list("abcde"))
    per_class = figures.pop("iou_per_class")
    assert deviation(figures, reference(pred, target)) < TOLERANCE
    assert np.nanmean([per_class[name] for name in "abcde"]) == pytest.approx(figures["miou"])
    assert "ignore_index" in metric.inputs_description


def ids(*shape, dtype=np.int64):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("pred", "target", "error", "message"),
    [
        (ids(2, 3), ids(3, 2), ValueError, r"one shape, got \(1, 2, 3\) and \(1, 3, 2\)"),
        (ids(2, 3), ids(2, 3, dtype=np.float32), TypeError, "target must be integer class ids, got float32"),
        (torch.zeros(2, 2, 3), ids(2, 3), TypeError, r"pred must be integer class ids, got torch.float32; .*argmax"),
        ([[1]], ids(1, 1), TypeError, "pred must be a torch tensor or NumPy array, got list"),
        (ids(1, 4, 2, 3), ids(2, 3), ValueError, r"pred must be \(H, W\) or \(B, H, W\), got \(1, 4, 2, 3\)"),
        (ids(2, 3) + 4, ids(2, 3), ValueError, r"pred must be class ids in \[0, 4\) where .*ignore_index=255, got 4"),
        (ids(2, 3), ids(2, 3) + 4, ValueError, r"target must be class ids in \[0, 4\) .*, got 4"),
        (ids(2, 3) + 255, ids(2, 3), ValueError, r"pred must be class ids in \[0, 4\) .*, got 255"),
        (ids(2, 3), ids(2, 3) - 1, ValueError, r"target must be class ids in \[0, 4\) .*, got -1"),
        (ids(2, 3), ids(2, 3) + 255, ValueError, "No pixel of target is valid"),
    ],
)
def test_bad_arguments_are_refused(pred, target, error, message):
    with pytest.raises(error, match=message):
        segmentation_metrics(pred, target, 4)


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "b"]])
def test_bad_class_names_are_refused(names):
    with pytest.raises(ValueError, match="names must be 3 different class names, got"):
        SegmentationMetricAccumulator(3).iou_per_class(names)
