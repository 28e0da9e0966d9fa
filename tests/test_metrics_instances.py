"""Average precision: exact on the truth, equal between libraries, hand-computed cases, and refusals."""

import copy
import json
import math

import numpy as np
import pytest
from pycocotools import mask as mask_tools

from transformers_ait.metrics import COCO_METRICS, LVIS_METRICS, coco_metrics, instances_evaluate, lvis_metrics

BOTH = ("pycocotools", "faster-coco-eval")


def rectangle(x, y, width, height, size=(60, 80)):
    mask = np.zeros(size, dtype=np.uint8)
    mask[y : y + height, x : x + width] = 1
    encoded = mask_tools.encode(np.asfortranarray(mask))
    return encoded | {"counts": encoded["counts"].decode()}


def result(image_id, category_id, score, box):
    return {
        "image_id": image_id,
        "category_id": category_id,
        "score": score,
        "bbox": [float(x) for x in box],
        "segmentation": rectangle(*box),
    }


def annotation(annotation_id, image_id, category_id, box, **more):
    entry = result(image_id, category_id, 1.0, box) | {"id": annotation_id, "iscrowd": 0, "area": box[2] * box[3]}
    del entry["score"]
    return entry | more


@pytest.fixture
def truth():
    """Two images, two categories, one object of each category in the first image, one in the second."""
    return {
        "images": [{"id": image_id, "height": 60, "width": 80} for image_id in (1, 2)],
        "categories": [{"id": 3, "name": "cup", "frequency": "f"}, {"id": 9, "name": "dog", "frequency": "r"}],
        "annotations": [
            annotation(1, 1, 3, (10, 10, 20, 20)),
            annotation(2, 1, 9, (40, 20, 30, 20)),
            annotation(3, 2, 3, (5, 5, 40, 40)),
        ],
    }


@pytest.fixture(scope="module")
def coco(shared_dir):
    return json.loads((shared_dir / "data" / "coco_small" / "instances.json").read_text())


def exact(annotations):
    """The truth as predictions, without crowds, which are no objects."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in annotations["images"]}
    results = []
    for entry in annotations["annotations"]:
        if not entry["iscrowd"]:
            parts = mask_tools.frPyObjects(entry["segmentation"], *sizes[entry["image_id"]])
            merged = mask_tools.merge(parts)
            encoded = merged | {"counts": merged["counts"].decode()}
            kept = {name: entry[name] for name in ("image_id", "category_id", "bbox")}
            results.append(kept | {"score": 1.0, "segmentation": encoded})
    return results


def jittered(results, seed=0):
    """Shifted, dropped, doubled and misnamed predictions of random scores."""
    generator = np.random.default_rng(seed)
    changed = []
    for entry in results + results[::3]:
        if generator.random() < 0.15:
            continue
        mask = np.roll(mask_tools.decode(entry["segmentation"]), generator.integers(-4, 5, 2), (0, 1))
        encoded = mask_tools.encode(np.asfortranarray(mask))
        changed.append(
            {
                "image_id": entry["image_id"],
                "category_id": 1 if generator.random() < 0.15 else entry["category_id"],
                "bbox": (np.asarray(entry["bbox"]) + generator.normal(0, 4, 4)).clip(1).tolist(),
                "score": float(generator.random()),
                "segmentation": encoded | {"counts": encoded["counts"].decode()},
            }
        )
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("iou_type", ["bbox", "segm", "boundary"])
def test_truth_has_an_average_precision_of_one(coco, iou_type):
    metrics = coco_metrics(exact(coco), coco, iou_type)
    assert tuple(metrics) == COCO_METRICS
    assert all(metrics[name] == pytest.approx(1) for name in COCO_METRICS if name not in ("AR1", "AR10"))
    assert metrics["AR1"] < metrics["AR10"] < 1, "images hold more objects than that"


@pytest.mark.slow
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_libraries_agree(coco, iou_type):
    predictions = jittered(exact(coco))
    first, second = (coco_metrics(predictions, coco, iou_type, library=library) for library in BOTH)
    assert all(first[name] == pytest.approx(second[name], abs=1e-6) for name in COCO_METRICS)
    assert 0.1 < first["AP"] < 0.6
    ids = [image["id"] for image in coco["images"][:15]]
    first, second = (coco_metrics(predictions, coco, iou_type, ids, library) for library in BOTH)
    assert all(first[name] == pytest.approx(second[name], abs=1e-6, nan_ok=True) for name in COCO_METRICS)
    other = coco_metrics(jittered(exact(coco), seed=1), coco, iou_type, ids)
    assert abs(other["AP"] - first["AP"]) > 1e-4, "other predictions must not pass for these"


@pytest.mark.slow
def test_boundaries_are_stricter_than_masks(coco):
    predictions = jittered(exact(coco))
    boundary, mask = (coco_metrics(predictions, coco, iou_type) for iou_type in ("boundary", "segm"))
    assert boundary["AP"] < mask["AP"] - 0.02
    assert boundary["APl"] < mask["APl"] - 0.1, "a large object's edge is a small part of it"


@pytest.mark.parametrize("library", BOTH)
def test_figures_by_hand(truth, library):
    """A hit, a hit of IoU 0.7 and a miss: AP counts 5 of 10 thresholds for the second category."""
    predictions = [
        result(1, 3, 0.9, (10, 10, 20, 20)),
        result(1, 9, 0.8, (40, 20, 21, 20)),
        result(2, 9, 0.9, (5, 5, 40, 40)),
    ]
    metrics = coco_metrics(predictions, truth, "segm", library=library)
    cup = 51 / 101  # one of two found at full precision: recall thresholds 0 .. 0.5
    dog = 0.5 * 0.5  # behind a false positive: precision 1/2, at IoU thresholds 0.5 .. 0.7
    assert metrics["AP"] == pytest.approx((cup + dog) / 2)
    assert metrics["AP50"] == pytest.approx((cup + 0.5) / 2) and metrics["AP75"] == pytest.approx(cup / 2)
    assert metrics["AR100"] == pytest.approx((0.5 + 0.5) / 2)


@pytest.mark.parametrize("library", BOTH)
def test_masks_count_by_their_own_area(truth, library):
    """A box beside a mask must not decide whether the object is small."""
    predictions = [result(1, 3, 0.9, (10, 10, 20, 20)) | {"bbox": [0.0, 0.0, 80.0, 60.0]}]
    truth["annotations"] = truth["annotations"][:1]
    metrics = coco_metrics(predictions, truth, "segm", library=library)
    assert metrics["APs"] == pytest.approx(1) and math.isnan(metrics["APm"]) and math.isnan(metrics["APl"])


@pytest.mark.parametrize("library", BOTH)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_predictions_and_no_objects(truth, library, iou_type):
    assert coco_metrics([], truth, iou_type, library=library)["AP"] == 0
    truth["annotations"] = []
    metrics = coco_metrics([result(1, 3, 0.9, (1, 1, 9, 9))], truth, iou_type, library=library)
    assert all(math.isnan(value) for value in metrics.values())


@pytest.mark.parametrize("library", BOTH)
def test_crowds_are_neither_hits_nor_misses(truth, library):
    crowd = annotation(4, 2, 9, (0, 0, 80, 60), iscrowd=1, segmentation=rectangle(0, 0, 80, 60))
    truth["annotations"].append(crowd)
    predictions = [result(1, 9, 0.5, (40, 20, 30, 20)), result(2, 9, 0.9, (30, 30, 20, 20))]
    ids = [1, 2]
    assert coco_metrics(predictions, truth, "segm", ids, library)["AP"] == pytest.approx(0.5)
    truth["annotations"].pop()
    assert coco_metrics(predictions, truth, "segm", ids, library)["AP"] == pytest.approx(0.25)


def test_inputs_are_left_alone_and_files_are_read(truth, tmp_path, capsys):
    predictions = [result(1, 3, 0.9, (10, 10, 20, 20))]
    before = copy.deepcopy((predictions, truth))
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    for library in BOTH:
        from_dictionary = coco_metrics(predictions, truth, library=library)
        assert from_dictionary == pytest.approx(coco_metrics(predictions, path, library=library), nan_ok=True)
    assert (predictions, truth) == before
    assert capsys.readouterr().out == ""
    with pytest.raises(FileNotFoundError):
        coco_metrics(predictions, tmp_path / "missing.json")


@pytest.fixture
def lvis_truth(truth):
    for image in truth["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    for entry in truth["annotations"]:
        del entry["iscrowd"]
    return truth


def test_lvis_ignores_unverified_categories(lvis_truth):
    found = [result(a["image_id"], a["category_id"], 0.5, list(map(int, a["bbox"]))) for a in lvis_truth["annotations"]]
    metrics = lvis_metrics(found, lvis_truth)
    assert tuple(metrics) == LVIS_METRICS
    measured = {name: value for name, value in metrics.items() if not math.isnan(value)}
    assert set(LVIS_METRICS) - set(measured) == {"APc", "APl", "ARl"}
    assert all(value == pytest.approx(1) for value in measured.values())
    more = [*found, result(2, 9, 0.9, (1, 1, 9, 9))]
    assert lvis_metrics(more, lvis_truth)["APr"] == pytest.approx(1), "nobody looked for dogs in image 2"
    lvis_truth["images"][1]["neg_category_ids"] = [9]
    assert lvis_metrics(more, lvis_truth)["APr"] == pytest.approx(0.5), "now there are known to be none"
    assert lvis_metrics(more, lvis_truth, "bbox")["APf"] == pytest.approx(1)
    assert lvis_metrics(found, lvis_truth, "boundary")["AP"] == pytest.approx(1)


def test_lvis_takes_three_hundred_detections_of_an_image(lvis_truth):
    hit = result(1, 9, 0.1, (40, 20, 30, 20))
    others = [result(1, 3, 0.5, (10, 10, 20, 20))] * 299
    assert lvis_metrics([*others, hit], lvis_truth)["APr"] == pytest.approx(1)
    assert lvis_metrics([*others, others[0], hit], lvis_truth)["APr"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("source", ["class", "file"])
def test_evaluate_module(coco, tmp_path, source, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if source == "class":
        metric = instances_evaluate.AiTInstanceMetrics(cache_dir=str(tmp_path))
    else:
        import evaluate

        metric = evaluate.load(instances_evaluate.__file__, cache_dir=str(tmp_path))
    predictions = jittered(exact(coco))
    metric.add_batch(predictions=predictions[1:])
    metric.add(prediction=predictions[0])
    computed = metric.compute(ground_truth=coco, iou_type="segm")
    assert computed == pytest.approx(coco_metrics(predictions, coco, "segm"), abs=1e-9)
    boxes = [{name: value for name, value in entry.items() if name != "segmentation"} for entry in predictions]
    computed = metric.compute(predictions=boxes, ground_truth=coco, iou_type="bbox")
    assert computed == pytest.approx(coco_metrics(boxes, coco, "bbox"), abs=1e-9)


@pytest.mark.parametrize(
    ("change", "kwargs", "message"),
    [
        ({}, {"iou_type": "keypoints"}, "iou_type must be one of .*'keypoints'"),
        ({}, {"library": "lvis-api"}, "library must be one of"),
        ({}, {"iou_type": "boundary", "library": "pycocotools"}, "has no iou_type 'boundary'"),
        ({"segmentation": None}, {}, r"predictions\[0\] lacks \['segmentation'\], which iou_type 'segm' needs"),
        ({"bbox": None}, {"iou_type": "bbox"}, r"predictions\[0\] lacks \['bbox'\]"),
        ({"score": None}, {}, r"lacks \['score'\]"),
        ({"image_id": 5}, {}, r"predictions\[0\] has image_id 5, unknown to ground_truth"),
        ({"category_id": 5}, {}, "has category_id 5, unknown"),
        ({"category_id": [5]}, {}, r"predictions\[0\] needs a whole number as category_id, got \[5\]"),
        ({"score": "x"}, {}, r"predictions\[0\] needs a score, a finite number, got 'x'"),
        ({"bbox": [1, 2, 3]}, {"iou_type": "bbox"}, r"predictions\[0\] needs a bbox of four finite numbers"),
        ({"bbox": "x" * 9}, {"iou_type": "bbox"}, r"predictions\[0\] needs a bbox"),
        ({"segmentation": {"size": [1, 1], "counts": [1]}}, {}, r"predictions\[0\] has a mask of size \[1, 1\]"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6]]}, {}, r"predictions\[0\] needs a run-length encoding as segmentation"),
        ({}, {"image_ids": 5}, "image_ids must be a list of the ids of images, got 5"),
        ({}, {"image_ids": [99]}, r"image_ids must be ids of images of ground_truth, got \[99\]"),
    ],
)
def test_bad_arguments_are_refused(truth, change, kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        coco_metrics([result(1, 3, 0.9, (1, 1, 9, 9)) | change], truth, **kwargs)


@pytest.mark.parametrize("measure", [coco_metrics, lvis_metrics])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iscrowd": [1]}, r"ground_truth\['annotations'\]\[0\] has iscrowd \[1\]; it must be 0 or 1"),
        ({"area": None}, r"ground_truth\['annotations'\]\[0\] needs an area"),
        ({"image_id": "x"}, "needs a whole number as image_id, got 'x'"),
        ({"segmentation": [[1, 2]]}, "needs polygons inside of its image, or a run-length encoding"),
        ({"segmentation": [[1e9, 2, 3, 4, 5, 6]]}, "needs polygons inside of its image"),
        ({"segmentation": {"size": [2**20, 2**20], "counts": [2**40]}}, "has a mask of size"),
    ],
)
def test_truth_that_cannot_be_read_is_named(truth, measure, change, message):
    truth["annotations"][0] |= change
    with pytest.raises(ValueError, match=message):
        measure([], truth, "segm")


@pytest.mark.parametrize(
    ("predictions", "given", "message"),
    [
        (5, None, "predictions must be a list of COCO results, got int"),
        (["x"], None, r"predictions\[0\] must be a COCO result, a dictionary, got str"),
        ([], 5, "ground_truth must be a dictionary of COCO annotations or the path .* got int"),
        (
            [],
            {"images": []},
            r"ground_truth must hold the lists images, annotations and categories .* got \['images'\]",
        ),
        (
            [],
            {"images": [5], "categories": [], "annotations": []},
            r"ground_truth\['images'\]\[0\] must be a dictionary",
        ),
    ],
)
def test_other_things_than_lists_are_named(truth, predictions, given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        coco_metrics(predictions, truth if given is None else given)


def test_files_that_are_no_json_are_named(tmp_path):
    path = tmp_path / "truth.json"
    path.write_bytes(b'{"images": \xff')
    with pytest.raises(ValueError, match=r"ground_truth: .*truth\.json is not valid JSON"):
        coco_metrics([], path)


def test_coco_is_not_lvis(truth):
    del truth["categories"][0]["frequency"]
    with pytest.raises(ValueError, match="must give every category a frequency"):
        lvis_metrics([], truth)
