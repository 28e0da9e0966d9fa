"""Evaluation of objects: average precision against pycocotools and direct calls, LVIS, classes, scores per image."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from evaluation_cases import SIZE, evaluate, load_coco, read_rows, run_script
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from transformers_ait import AiTDepthImageProcessor, AiTInstanceImageProcessor
from transformers_ait.coco_annotations_ait import encode_masks
from transformers_ait.data import SYNTHETIC_ROOMS_CLASSES
from transformers_ait.engine.evaluation import instances as evaluation_instances
from transformers_ait.engine.evaluation.inputs import EvaluationError, EvaluationSettings
from transformers_ait.engine.evaluation.instances import ImageScore, ObjectEvaluation, image_scores, match_classes
from transformers_ait.metrics import coco_metrics, lvis_metrics

pytest_plugins = ["evaluation_cases"]
TOKENS = "autoregressive, soft tokens"


def noisy_truth(evaluation, indices):
    """True objects, moved a little and some left out, as results."""
    results = []
    for index in indices:
        rng = np.random.default_rng(index)
        objects = evaluation.rows.objects(index)
        of_row = []
        for box, label, mask in zip(objects.boxes, objects.class_labels, objects.masks, strict=True):
            if rng.random() < 0.2:
                continue
            shift = int(rng.integers(-2, 3))
            x1, y1, x2, y2 = box.tolist()
            entry = {"image_id": index, "category_id": int(label), "score": float(rng.random())}
            rle = encode_masks(mask.roll(shift, 1)[None])[0]
            of_row.append(entry | {"bbox": [x1 + shift, y1, x2 - x1, y2 - y1], "segmentation": rle})
        results.append(of_row)
    return results


def coco_settings(options, **settings):
    given = {"folders": [], "dataset": "coco_instances", "split": "validation", "options": options, "batch_size": 3}
    return EvaluationSettings(**(given | settings))


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_average_precision_is_that_of_pycocotools_on_the_written_file(coco, tmp_path, iou_type):
    options, file = coco
    evaluation = ObjectEvaluation(load_coco(options), coco_settings(options), Accelerator(cpu=True))
    figures, found = evaluation.measure(lambda rows: noisy_truth(evaluation, rows), (iou_type,), "noisy truth")
    evaluation.write(found, iou_type, tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        results = json.loads((tmp_path / "predictions.json").read_text())
        form = "bbox" if iou_type == "bbox" else "segmentation"
        kept = [{name: x[name] for name in ("image_id", "category_id", "score", form)} for x in results]
        run = COCOeval(truth, truth.loadRes(kept), iou_type)
        run.evaluate()
        run.accumulate()
        run.summarize()
    kind = {"bbox": "box", "segm": "mask"}[iou_type]
    assert 0.1 < run.stats[0] < 0.9
    names = ("AP", "AP50", "AP75")
    assert [figures[f"{kind}_{name}"] for name in names] == pytest.approx(list(run.stats[:3]))
    assert [int(row["image_id"]) for row in read_rows(tmp_path / "per_image.csv")] == [3, 14, 25, 36]
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert errors["AP50"] == pytest.approx(run.stats[1]) and errors["iou_type"] == iou_type


def test_lvis_figures_need_and_use_its_columns(coco, tmp_path):
    options, file = coco
    content = json.loads(file.read_text())
    for image, absent in zip(content["images"], ([90], [], [7], [1]), strict=True):
        image |= {"neg_category_ids": absent, "not_exhaustive_category_ids": [7] if image["id"] == 14 else []}
    for category, frequency in zip(content["categories"], "rcf", strict=True):
        category["frequency"] = frequency
    lvis = tmp_path / "lvis.json"
    lvis.write_text(json.dumps(content))
    options = options | {"validation_annotations": str(lvis), "cache_dir": str(tmp_path / "cache")}
    rows = load_coco(options)
    evaluation = ObjectEvaluation(rows, coco_settings(options), Accelerator(cpu=True))

    def predict(indices):
        extra = {"category_id": 2, "score": 0.9, "bbox": [1.0, 1.0, 20.0, 20.0]}
        return [
            [*of_row, {"image_id": index, **extra}]
            for index, of_row in zip(indices, noisy_truth(evaluation, indices), strict=True)
        ]

    figures, found = evaluation.measure(predict, ("bbox",), "noisy truth")
    evaluation.write(found, "bbox", tmp_path)
    expected = lvis_metrics(json.loads((tmp_path / "predictions.json").read_text()), lvis, "bbox")
    assert figures == {f"box_{name}": pytest.approx(value, nan_ok=True) for name, value in expected.items()}
    assert 0 < figures["box_AP"] < 1
    found_alone = {name: value for name, value in expected.items() if name == "APf"}
    assert found_alone != {"APf": coco_metrics([], lvis, "bbox")["AP"]}
    moved = rows.rename_column("image_id", "number")
    with pytest.raises(EvaluationError, match="--annotations"):
        ObjectEvaluation(moved, EvaluationSettings(folders=[], dataset="other"), Accelerator(cpu=True))


@pytest.mark.slow
@torch.no_grad()
def test_instance_predictions_are_those_of_a_direct_call(object_model, coco, tmp_path):
    """Classes stand in another order in the model; "cat" is unknown to the data, "train" to the model."""
    options, file = coco
    folder = tmp_path / "model"
    model = object_model(["toothbrush", "cat", "person"])
    model.save_pretrained(folder)
    processor = AiTInstanceImageProcessor(size={"longest_edge": 32}, pad_size=SIZE)
    processor.save_pretrained(folder)
    lines = evaluate(
        [folder], options, dataset="coco_instances", split="validation", output=tmp_path / "results", panels=2
    )
    hard = {"soft_feedback": False, "soft_decode": False}
    for label, switches in (("soft", {}), ("hard", hard)):
        expected = []
        for row in load_coco(options):
            pixels = processor(row["image"], return_tensors="pt")["pixel_values"]
            outputs = model.generate(pixels, generator=torch.Generator().manual_seed(0), **switches)
            ids = {90: 0, -1: 1, 1: 2}
            expected += processor.post_process_coco(outputs, [row["image_id"]], ids, [(48, 64)])
        expected = [entry for entry in expected if entry["category_id"] != -1]
        line = lines[f"autoregressive, {label} tokens"]
        written = json.loads((tmp_path / "results" / line.files[0]).read_text())
        assert {entry["category_id"] for entry in written} and len(written) == len(expected) > 2
        for mine, theirs in zip(written, expected, strict=True):
            assert (mine["image_id"], mine["category_id"]) == (theirs["image_id"], theirs["category_id"])
            assert mine["score"] == pytest.approx(theirs["score"], rel=1e-4)
            assert mine["bbox"] == pytest.approx(theirs["bbox"], abs=1e-3)
        assert line.metrics["mask_AP"] == pytest.approx(coco_metrics(expected, file, "segm")["AP"], abs=1e-6)
        assert line.classes == {"unknown_to_the_model": ["train"], "not_in_the_data": ["cat"]}
    stored = json.loads((tmp_path / "results" / "results.json").read_text())
    assert [row["name"] for row in stored["results"]] == [line.name for line in lines.values()]
    table = (tmp_path / "results" / "results.md").read_text()
    assert "| model | box AP | box AP50 | box AP75 | mask AP |" in table and "boundary AP |" in table
    assert Image.open(tmp_path / "results" / lines["autoregressive, soft tokens"].files[3]).size[0] == 2 * 480


@pytest.mark.slow
def test_detection_is_measured_by_boxes_alone(object_model, coco, tmp_path, monkeypatch):
    options, _ = coco
    folder = tmp_path / "detection"
    tasks = {"tasks": ("detection",), "mask_tokenizer_config": None}
    object_model(["person", "train", "toothbrush"], **tasks).save_pretrained(folder)
    AiTInstanceImageProcessor(size={"longest_edge": 32}, pad_size=SIZE).save_pretrained(folder)
    arguments = [folder, "--dataset", "coco_instances", "--options", json.dumps(options), "--limit", 2]
    run_script(monkeypatch, *arguments, "--dtype", "bf16", "--output", tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["name"].split(": ")[1] for row in stored["results"]] == ["detection"] and stored["rows"] == 2
    assert all(name.startswith("box_") for name in stored["results"][0]["metrics"])
    assert {"command", "date", "versions", "hardware", "settings"} <= stored.keys()
    assert stored["settings"]["split"] == "validation" and stored["versions"]["torch"] == torch.__version__


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "mode"), [(False, "autoregressive, soft tokens"), (True, "parallel")])
def test_a_joint_model_does_all_or_what_is_asked(parallel, mode, object_model, rooms, tmp_path):
    folder = tmp_path / "joint"
    tasks = {"tasks": ("instance", "depth"), "default_task": "instance", "parallel": parallel}
    model = object_model(SYNTHETIC_ROOMS_CLASSES, **tasks)
    model.save_pretrained(folder)
    AiTInstanceImageProcessor(size={"longest_edge": 32}, pad_size=SIZE, task="instance").save_pretrained(folder)
    AiTDepthImageProcessor(size=SIZE, task="depth").save_pretrained(folder / "depth")
    settings = {"limit": 2, "soft_only": True}
    evaluate([folder], rooms, **settings, output=tmp_path / "results", panels=0)
    stored = json.loads((tmp_path / "results" / "results.json").read_text())["results"]
    names = [f"{folder}: depth: {mode}", "constant", "constant, median", f"{folder}: instance: {TOKENS}"]
    assert [line["name"] for line in stored] == names
    assert "rmse" in stored[0]["metrics"] and "mask_AP" in stored[3]["metrics"]
    alone = evaluate([folder], rooms, task="instance", **settings)
    assert list(alone) == [TOKENS] and alone[TOKENS].metrics["mask_AP"] == stored[3]["metrics"]["mask_AP"]
    assert "rmse" in evaluate([folder], rooms, task="depth", **settings)[mode].metrics
    (folder / "depth" / "preprocessor_config.json").unlink()
    with pytest.raises(EvaluationError, match="no AiTDenseImageProcessor"):
        evaluate([folder], rooms, task="depth", **settings)


def test_perfect_masks_score_perfectly(coco):
    options, _ = coco
    evaluation = ObjectEvaluation(load_coco(options), coco_settings(options), Accelerator(cpu=True))
    truth = evaluation.truth
    perfect = [[] for _ in truth["images"]]
    for entry in truth["annotations"]:
        if not entry["iscrowd"]:
            perfect[entry["image_id"]].append({**entry, "score": 1.0})
    for form in ("bbox", "segm"):
        assert [score.f1 for score in image_scores(truth, perfect, form)] == [1.0] * 4
    assert [(x.objects, x.matched) for x in image_scores(truth, perfect, "segm")] == [(0, 0), (5, 5), (5, 5), (5, 5)]


def test_image_scores_count_by_hand():
    def box(x, category=0, **more):
        return {"image_id": 0, "category_id": category, "bbox": [x, 0.0, 10.0, 10.0], **more}

    images = [{"id": 0, "height": 20, "width": 100}]
    true = [box(0.0, iscrowd=0), box(20.0, iscrowd=0), box(60.0, iscrowd=1)]
    found = [
        box(1.0, score=0.9),  # matches
        box(0.0, score=0.8),  # its object is taken
        box(20.0, category=1, score=0.9),  # another class
        box(20.0, score=0.2),  # not certain enough
        box(62.0, score=0.9),  # on the crowd
    ]
    (score,) = image_scores({"images": images, "annotations": true}, [found], "bbox")
    assert score == ImageScore(objects=2, predictions=3, matched=1) and score.f1 == pytest.approx(0.4)
    assert image_scores({"images": images, "annotations": []}, [[]], "bbox")[0].f1 == 1.0


def test_classes_are_matched_by_name():
    match = match_classes(["dog", "cat", "car"], ["car", "bus", "dog"])
    assert match.to_data == {0: 2, 2: 0} and match.unknown == ["bus"] and match.unused == ["cat"]
    with pytest.raises(EvaluationError, match=r"'LABEL_0'.*'car'.*id2label"):
        match_classes(["LABEL_0", "LABEL_1"], ["car", "bus"])


def test_unknown_classes_are_named(object_model, coco, tmp_path, monkeypatch):
    options, _ = coco
    messages = []
    monkeypatch.setattr(evaluation_instances.logger, "warning", messages.append)
    object_model(["person", "cat", "dog"]).save_pretrained(tmp_path)
    AiTInstanceImageProcessor(size={"longest_edge": 32}, pad_size=SIZE).save_pretrained(tmp_path)
    evaluate([tmp_path], options, dataset="coco_instances", split="validation", limit=1)
    assert len(messages) == 1 and "'train', 'toothbrush'" in messages[0]
