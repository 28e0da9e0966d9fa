"""Error types of objects: one prediction of each kind with its cost by hand, AP50 as pycocotools has it, refusals."""

import copy
import math

import numpy as np
import pytest
from test_metrics_instances import annotation, rectangle, result

from transformers_ait.metrics import OBJECT_ERRORS, coco_metrics, object_errors

FORMS = ("bbox", "segm")


@pytest.fixture
def truth():
    """One image with two cups and a dog, far from each other."""
    boxes = {1: (3, (0, 0, 20, 20)), 2: (3, (40, 0, 20, 20)), 3: (9, (0, 30, 20, 20))}
    return {
        "images": [{"id": 1, "height": 60, "width": 80}],
        "categories": [{"id": 3, "name": "cup"}, {"id": 9, "name": "dog"}],
        "annotations": [annotation(number, 1, category, box) for number, (category, box) in boxes.items()],
    }


def perfect(truth):
    return [result(1, x["category_id"], 0.9 - x["id"] / 10, x["bbox"]) for x in _as_numbers(truth)]


def _as_numbers(truth):
    return [{**entry, "bbox": [int(x) for x in entry["bbox"]]} for entry in truth["annotations"]]


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_wrong_with_the_truth(truth, form):
    before = copy.deepcopy(truth)
    found = object_errors(perfect(truth), truth, form)
    assert list(found) == list(OBJECT_ERRORS)
    assert found == dict.fromkeys(OBJECT_ERRORS, 0.0) | {"AP50": 1.0} and truth == before


# Of a class with two objects, one found: precision 1 up to a recall of 0.5, 51 of 101 points. A wrong prediction above
# it halves that.
HALF, BELOW = 51 / 101, 51 / 101 / 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("changed", "error", "ap", "cost"),
    [
        # The second cup (index 1), as something else is said of it; the first one has the score 0.8, the dog 0.6.
        ({1: (9, 0.95, (40, 0, 20, 20))}, "classification", (HALF + 0.5) / 2, 1 - (HALF + 0.5) / 2),
        ({1: (3, 0.95, (46, 0, 6, 20))}, "localisation", (BELOW + 1) / 2, 1 - (BELOW + 1) / 2),
        ({1: (9, 0.95, (46, 0, 6, 20))}, "both", (HALF + 0.5) / 2, 0.25),
        ({1: (3, 0.95, (60, 40, 10, 10))}, "background", (BELOW + 1) / 2, (HALF - BELOW) / 2),
        ({1: (3, 0.75, (1, 0, 19, 20))}, "duplicate", (HALF + 1) / 2, 0.0),
        ({1: None}, "missed", (HALF + 1) / 2, (1 - HALF) / 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_error_by_hand(truth, form, changed, error, ap, cost):
    predictions = perfect(truth)
    for index, said in changed.items():
        predictions[index] = None if said is None else result(1, said[0], said[1], said[2])
    found = object_errors([x for x in predictions if x is not None], truth, form)
    assert (
        found["AP50"]
        == pytest.approx(ap)
        == pytest.approx(coco_metrics([x for x in predictions if x is not None], truth, form)["AP50"])
    )
    assert found[error] == pytest.approx(cost)
    others = {name: found[name] for name in OBJECT_ERRORS[1:] if name not in (error, "missed")}
    assert others == dict.fromkeys(others, 0.0)
    # The second cup is missed by all that neither its class nor its place would mend.
    assert (found["missed"] > 0) == (error not in ("classification", "localisation"))


def test_of_two_that_mean_one_object_the_surer_is_put_right(truth):
    predictions = perfect(truth)
    predictions[1] = result(1, 3, 0.5, (46, 0, 6, 20))
    predictions.append(result(1, 3, 0.4, (45, 0, 6, 20)))
    found = object_errors(predictions, truth, "bbox")
    assert found["AP50"] + found["localisation"] == pytest.approx(1)
    assert found["duplicate"] == found["missed"] == 0


def test_predictions_in_a_crowd_are_no_errors(truth):
    truth["annotations"][1] |= {"iscrowd": 1, "segmentation": rectangle(40, 0, 20, 20)}
    predictions = perfect(truth)
    predictions[1] = result(1, 3, 0.99, (44, 4, 8, 8))
    found = object_errors(predictions, truth, "segm")
    assert found == dict.fromkeys(OBJECT_ERRORS, 0.0) | {"AP50": 1.0}
    predictions[1]["category_id"] = 9  # of another class it is
    assert object_errors(predictions, truth, "segm")["background"] == pytest.approx(0.25)


def test_masks_of_every_form_are_compared(truth):
    expected = object_errors(perfect(truth), truth, "segm")
    for entry in truth["annotations"]:
        x, y, width, height = entry["bbox"]
        entry["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    assert object_errors(perfect(truth), truth, "segm") == expected
    del truth["images"][0]["height"]
    with pytest.raises(ValueError, match="needs height and width of image 1"):
        object_errors(perfect(truth), truth, "segm")


@pytest.mark.parametrize("seed", range(8))
def test_average_precision_is_that_of_pycocotools(seed):
    generator = np.random.default_rng(seed)
    truth = {
        "images": [{"id": number, "height": 60, "width": 80} for number in range(6)],
        "categories": [{"id": number} for number in (1, 2, 5)],
        "annotations": [],
    }
    predictions = []
    for number in range(6):
        for _ in range(generator.integers(0, 5)):
            box = np.array([*generator.integers(0, 40, 2), *generator.integers(6, 20, 2)])
            category, crowd = int(generator.choice([1, 2, 5])), int(generator.random() < 0.1)
            entry = annotation(len(truth["annotations"]) + 1, number, category, [int(x) for x in box], iscrowd=crowd)
            truth["annotations"].append(entry)
            for _ in range(generator.integers(0, 3)):
                moved = np.maximum(box + generator.integers(-4, 5, 4), (0, 0, 2, 2))
                said = category if generator.random() < 0.8 else int(generator.choice([1, 2, 5]))
                predictions.append(result(number, said, float(generator.random()), [int(x) for x in moved]))
    for form in FORMS:
        found = object_errors(predictions, truth, form)
        assert found["AP50"] == pytest.approx(coco_metrics(predictions, truth, form)["AP50"], abs=1e-6)
        assert all(value >= 0 for value in found.values())


def test_without_objects_there_is_no_figure(truth):
    found = object_errors(perfect(truth), truth | {"annotations": []}, "bbox")
    assert all(math.isnan(value) for value in found.values())


def test_what_does_not_fit_is_named(truth):
    with pytest.raises(ValueError, match="iou_type must be one of"):
        object_errors([], truth, "boundary")
    with pytest.raises(ValueError, match="unknown to ground_truth"):
        object_errors([result(7, 3, 0.5, (0, 0, 5, 5))], truth, "bbox")
