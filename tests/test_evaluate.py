"""Evaluation of checkpoint folders: figures against direct calls, files, processes, and bad input."""

import contextlib
import csv
import importlib.util
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from transformers_ait import AiTDepthImageProcessor, AiTInstanceImageProcessor, AiTVQVAEModel
from transformers_ait.coco_annotations_ait import encode_masks
from transformers_ait.data import SYNTHETIC_ROOMS_CLASSES
from transformers_ait.engine import evaluation_depth, evaluation_instances
from transformers_ait.engine.depth_data import DepthPairs
from transformers_ait.engine.evaluation import run_evaluation
from transformers_ait.engine.evaluation_depth import mean_metrics
from transformers_ait.engine.evaluation_inputs import EvaluationError, EvaluationSettings, evaluate_in_batches
from transformers_ait.engine.evaluation_instances import ImageScore, ObjectEvaluation, image_scores, match_classes
from transformers_ait.metrics import DEPTH_METRICS, coco_metrics, depth_metrics, lvis_metrics

SCRIPT = Path(__file__).parents[1] / "training" / "evaluate.py"
ROOMS = {"num_train": 3, "num_validation": 0, "num_test": 5, "height": 40, "width": 56}
SIZE = {"height": 32, "width": 32}
CATEGORIES = [{"id": 7, "name": "train"}, {"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}]


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Options of five tiny rooms, rendered once."""
    options = {**ROOMS, "cache_dir": str(tmp_path_factory.mktemp("rooms"))}
    datasets.load_dataset("synthetic_rooms", **options)
    return options


@pytest.fixture(scope="module")
def truth(rooms):
    """Depth maps of the rooms in metres."""
    pairs = DepthPairs(datasets.load_dataset("synthetic_rooms", split="test", **rooms))
    return [pairs.depth(index)[0] for index in range(5)]


@pytest.fixture(scope="module")
def depth_folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "depth"
    tiny_model().save_pretrained(folder)
    AiTDepthImageProcessor(size=SIZE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mask_tokenizer(tiny_vqvae_config):
    return tiny_vqvae_config(image_size=8, downsample_ratio=4, num_codes=5, symmetric_range=True, ignore_zero=False)


@pytest.fixture(scope="module")
def object_model(tiny_model, mask_tokenizer, tiny_decoder_config):
    """Function that builds a model of twenty objects with given class names."""

    def build(names, **overrides):
        settings = {
            "tasks": ("instance",),
            "mask_tokenizer_config": mask_tokenizer,
            "decoder_config": tiny_decoder_config(max_positions=180),
            "num_objects": 20,
            "top_p": 0.9,
            "id2label": dict(enumerate(names)),
        }
        model = tiny_model(**(settings | overrides))
        # Otherwise one object is as the other, and few boxes are proper.
        model.model.decoder.position_embeddings.data *= 20
        model.model.decoder.output_bias.data *= 0.1
        return model

    return build


@pytest.fixture(scope="module")
def instance_folder(object_model, tmp_path_factory):
    """An instance model whose classes are those of the rooms, the other way round, and one more."""
    folder = tmp_path_factory.mktemp("models") / "instance"
    object_model(["unicorn", *reversed(SYNTHETIC_ROOMS_CLASSES)]).save_pretrained(folder)
    AiTInstanceImageProcessor(size={"longest_edge": 32}, pad_size=SIZE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mask_vqvae_folder(mask_tokenizer, enliven, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "vqvae-mask"
    torch.manual_seed(0)
    enliven(AiTVQVAEModel(mask_tokenizer)).save_pretrained(folder)
    return folder


def evaluate(folders, options, **settings):
    lines = run_evaluation(EvaluationSettings(folders=folders, options=options, **settings))
    return {line.name.split(": ")[-1]: line for line in lines}


def read_rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def values(row):
    return [float(row[name]) for name in DEPTH_METRICS]


def launch(arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run_script(monkeypatch, *arguments):
    """The script's main function, in this process."""
    spec = importlib.util.spec_from_file_location("evaluate_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    module.main()


# Depth


@torch.no_grad()
def predicted_depths(model, rows, **switches):
    """Predictions one by one, through the public calls alone."""
    processor = AiTDepthImageProcessor(size=SIZE)
    for row in rows:
        outputs = model.generate(processor(row["image"], return_tensors="pt")["pixel_values"], **switches)
        size = [(row["image"].height, row["image"].width)]
        yield processor.post_process_depth_estimation(outputs, size)[0]["predicted_depth"]


def test_depth_figures_are_those_of_a_direct_call(depth_folder, tiny_model, rooms, truth, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(evaluation_depth, "depth_panel", lambda rows, path: shown.append(rows))
    lines = evaluate([depth_folder], rooms, output=tmp_path, batch_size=2, panels=2)
    rows = datasets.load_dataset("synthetic_rooms", split="test", **rooms)
    hard = {"soft_feedback": False, "soft_decode": False}
    for label, switches in (("soft", {}), ("hard", hard)):
        line = lines[f"autoregressive, {label} tokens"]
        expected = [
            depth_metrics(depth, target)
            for depth, target in zip(predicted_depths(tiny_model(), rows, **switches), truth, strict=True)
        ]
        assert list(line.metrics) == list(DEPTH_METRICS)
        means = [np.mean([metrics[name] for metrics in expected]) for name in DEPTH_METRICS]
        assert list(line.metrics.values()) == pytest.approx(means, rel=1e-4)
        written = read_rows(tmp_path / line.files[0])
        assert [int(row["name"]) for row in written] == rows["index"][:]
        for row, metrics in zip(written, expected, strict=True):
            assert values(row) == pytest.approx(list(metrics.values()), rel=1e-4)
    soft = read_rows(tmp_path / lines["autoregressive, soft tokens"].files[0])
    worst = sorted(range(5), key=lambda index: -float(soft[index]["rmse"]))[:2]
    assert [row.title.split(":")[0] for row in shown[0]] == [soft[index]["name"] for index in worst]
    assert [torch.equal(row.truth, truth[index]) for row, index in zip(shown[0], worst, strict=True)] == [True] * 2


def test_constants_are_mean_and_median_of_the_split_asked_for(depth_folder, rooms, truth):
    train = DepthPairs(datasets.load_dataset("synthetic_rooms", split="train", **rooms))
    of_train = torch.cat([train.depth(index).flatten() for index in range(3)]).double()
    of_test = torch.cat([depth.flatten() for depth in truth]).double()
    for split, depths in ((None, of_test), ("train", of_train)):
        lines = evaluate([depth_folder], rooms, baseline_split=split, soft_only=True)
        for label, value in (
            ("constant", depths[depths > 0].mean()),
            ("constant, median", depths[depths > 0].median()),
        ):
            expected = [depth_metrics(torch.full_like(target, float(value)), target) for target in truth]
            assert lines[label].metrics["rmse"] == pytest.approx(np.mean([x["rmse"] for x in expected]), rel=1e-4)
    assert list(lines) == ["autoregressive, soft tokens", "constant", "constant, median"]


def test_a_depth_tokenizer_reconstructs_maps_cut_to_whole_tokens(tiny_vqvae_config, enliven, rooms, truth, tmp_path):
    torch.manual_seed(0)
    model = enliven(AiTVQVAEModel(tiny_vqvae_config(image_size=48, downsample_ratio=16)))
    model.save_pretrained(tmp_path / "vqvae")
    lines = evaluate([tmp_path / "vqvae"], rooms, output=tmp_path / "results")
    expected = []
    for target in truth:
        cut = target[:32, :48]
        with torch.no_grad():
            depth = model(cut[None, None]).reconstruction[0, 0].clamp(min=1e-3)
        expected.append(depth_metrics(depth, cut)["rmse"])
    line = lines["reconstruction of the truth"]
    assert line.metrics["rmse"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert Image.open(tmp_path / "results" / "vqvae-reconstruction-of-the-truth" / "worst.png").width > 100


def test_nyu_protocol_counts_the_crop_alone(depth_folder, tiny_model, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(2):
        folder = tmp_path / "nyu" / "official_splits" / "test" / "attic"
        folder.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 255, (12, 16, 3)).astype(np.uint8)
        Image.fromarray(small).resize((640, 480)).save(folder / f"rgb_{number:05d}.jpg")
        depth = np.full((480, 640), 9000, dtype=np.uint16)
        depth[45:471, 41:601] = rng.integers(1000, 4000, (426, 560))
        Image.fromarray(depth).save(folder / f"sync_depth_{number:05d}.png")
    options = {"data_dir": str(tmp_path / "nyu"), "cache_dir": str(tmp_path / "cache")}
    settings = {"dataset": "nyu_depth_v2", "output": tmp_path / "results", "panels": 0}
    lines = evaluate([depth_folder], options, nyu_crop=True, **settings)
    rows = datasets.load_dataset("nyu_depth_v2", split="test", **options)
    depths = predicted_depths(tiny_model(), rows)
    expected = [
        depth_metrics(depth, np.asarray(row["depth"]).astype(np.float32) / 1000, eval_crop=True)["rmse"]
        for depth, row in zip(depths, rows, strict=True)
    ]
    line = lines["autoregressive, soft tokens"]
    assert line.metrics["rmse"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert [row["name"] for row in read_rows(tmp_path / "results" / line.files[0])] == rows["name"][:]
    whole = evaluate([depth_folder], options, **settings)["constant"].metrics["rmse"]
    assert whole > 1.5 * lines["constant"].metrics["rmse"]


def test_rows_without_truth_are_left_out_of_the_mean():
    row = dict.fromkeys(DEPTH_METRICS, 0.5)
    empty = dict.fromkeys(DEPTH_METRICS, math.nan)
    assert mean_metrics([row, empty]) == row
    with pytest.raises(EvaluationError, match="No row has a valid true depth"):
        mean_metrics([empty])


# Objects


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Four images with random rectangles as polygons, a crowd, and category ids with gaps; options and file."""
    root = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    images, annotations = [], []
    for number in range(4):
        image = {"id": 11 * number + 3, "file_name": f"{number}.jpg", "width": 64, "height": 48}
        Image.fromarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(root / "images" / f"{number}.jpg")
        images.append(image)
        for _ in range(5 if number else 0):  # the first has none
            x, y, width, height = (float(v) for v in rng.integers(2, 24, 4))
            polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
            category = int(rng.choice([1, 7, 90]))
            entry = {"image_id": image["id"], "category_id": category, "bbox": [x, y, width, height], "iscrowd": 0}
            annotations.append(entry | {"area": width * height, "segmentation": [polygon]})
    region = np.zeros((48, 64), dtype=bool)
    region[4:28, 30:60] = True
    crowd = {"image_id": 14, "category_id": 1, "bbox": [30.0, 4.0, 30.0, 24.0], "area": 720.0, "iscrowd": 1}
    annotations.append(crowd | {"segmentation": encode_masks(torch.from_numpy(region)[None])[0]})
    annotations = [{"id": 100 + number, **entry} for number, entry in enumerate(annotations)]
    file = root / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    options = {"validation_annotations": str(file), "validation_images": str(root / "images")}
    return {**options, "cache_dir": str(root / "cache")}, file


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


def load_coco(options):
    return datasets.load_dataset("coco_instances", split="validation", **options)


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
    assert Image.open(tmp_path / "results" / lines["autoregressive, soft tokens"].files[2]).size[0] == 2 * 480


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


def test_a_joint_model_does_what_is_asked(object_model, rooms, tmp_path):
    folder = tmp_path / "joint"
    model = object_model(SYNTHETIC_ROOMS_CLASSES, tasks=("instance", "depth"), default_task="instance")
    model.save_pretrained(folder)
    AiTInstanceImageProcessor(size={"longest_edge": 32}, pad_size=SIZE, task="instance").save_pretrained(folder)
    AiTDepthImageProcessor(size=SIZE, task="depth").save_pretrained(folder / "depth")
    settings = {"limit": 2, "soft_only": True}
    assert "mask_AP" in evaluate([folder], rooms, **settings)["autoregressive, soft tokens"].metrics
    lines = evaluate([folder], rooms, task="depth", **settings)
    assert "rmse" in lines["autoregressive, soft tokens"].metrics
    (folder / "depth" / "preprocessor_config.json").unlink()
    with pytest.raises(EvaluationError, match="no AiTDepthImageProcessor"):
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


# Processes


def test_two_processes_find_what_one_finds(depth_folder, instance_folder, mask_vqvae_folder, rooms, tmp_path):
    folders = [str(folder) for folder in (depth_folder, instance_folder, mask_vqvae_folder)]
    arguments = [*folders, "--options", json.dumps(rooms), "--batch-size", "2", "--soft-only", "--panels", "1"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    table = launch([*torchrun, str(SCRIPT), *arguments, "--output", str(tmp_path / "two")])
    lines = evaluate(folders, rooms, batch_size=2, soft_only=True, panels=1, output=tmp_path / "one")
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert two["hardware"]["processes"] == 2 and one["hardware"]["processes"] == 1
    assert [row["metrics"] for row in two["results"]] == [row["metrics"] for row in one["results"]]
    assert len(one["results"]) == 5 and table.count("| constant |") == 1
    files = [file for row in one["results"] for file in row["files"] if not file.endswith(".png")]
    assert len(files) == 5
    assert all(json.loads((tmp_path / "one" / file).read_text()) for file in files if file.endswith(".json"))
    for file in files:
        assert (tmp_path / "two" / file).read_text() == (tmp_path / "one" / file).read_text(), file
    # Re-encoded masks are measured without boxes.
    vqvae = one["results"][-1]
    assert {name.split("_")[0] for name in vqvae["metrics"]} == {"mask", "boundary"}
    assert list(lines) == [*lines][:1] + ["constant", "constant, median"] + [*lines][3:]


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_processes_begin_with_batches_of_their_own(processes):
    batches = []

    class OneOfSome:
        num_processes = processes
        is_main_process = False
        autocast = staticmethod(contextlib.nullcontext)

        def __init__(self, process_index):
            self.process_index = process_index

    def record(batch):
        batches.append(tuple(batch))
        raise InterruptedError  # before processes would have to meet

    for rank in range(min(processes, 4)):
        with pytest.raises(InterruptedError):
            evaluate_in_batches(record, 11, 3, OneOfSome(rank), "")
    expected = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10)]
    assert batches == expected[:processes]


# The command line and bad input


def test_figures_alone_and_default_options(monkeypatch, depth_folder, rooms, tmp_path, capsys):
    given = ["--options", json.dumps({"cache_dir": rooms["cache_dir"], "num_train": 3}), "--rooms", 5]
    size = ["--height", 40, "--width", 56]
    run_script(monkeypatch, depth_folder, *given, *size, "--output", tmp_path / "new" / "metrics.json")
    figures = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert [name.split(": ")[-1] for name in figures] == [
        "autoregressive, soft tokens",
        "autoregressive, hard tokens",
        "constant",
        "constant, median",
    ]
    assert [*figures["constant"]] == list(DEPTH_METRICS)
    assert f"| constant | {figures['constant']['d1']:.3f} |" in capsys.readouterr().out


def broken_copy(folder, tmp_path, **changes):
    """The folder with another configuration."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    content = json.loads((copy / "config.json").read_text()) | changes
    (copy / "config.json").write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/nowhere"], ["FileNotFoundError", "config.json is missing"]),
        (["{run}"], ["Did you mean", "{run}/model"]),
        (["{bare}"], ["no weights"]),
        (["{initial}"], ["initialisation", "initialization_only"]),
        (["{depth}", "--split", "dev"], ["dev", "'train', 'test'"]),
        (["{depth}", "--dataset", "no_such_data"], ["no_such_data"]),
        (["{depth}", "--task", "instance"], ["task must be one of ['depth']", "'instance'"]),
        (["{depth}", "--dataset", "coco_instances", "--options", "{coco}"], ["column 'depth'", "'objects'"]),
        (["{depth}", "--limit", "0"], ["limit must be at least 1"]),
        (["{depth}", "--batch-size", "0"], ["batch_size must be at least 1"]),
        (["{depth}", "--options", "[1]"], ["--options", "data_dir"]),
        (["{depth}", "--options", "{{"], ["--options", "no JSON"]),
        (["{depth}", "{depth}"], ["more than once"]),
        (["{depth}", "--eval-crop", "nyu"], ["480 x 640", "40 x 56", "--eval-crop none"]),
        (["{instance}", "--dataset", "coco_instances", "--options", "{coco}"], ["id2label", "'unicorn'", "'train'"]),
        (["{instance}", "--annotations", "{tmp}/none.json"], ["annotations", "none.json"]),
        (["{depth}", "--output", "{depth}/config.json2"], []),
    ],
)
def test_bad_input_is_one_line(
    arguments, words, depth_folder, instance_folder, rooms, coco, tmp_path, monkeypatch, capsys
):
    initial = broken_copy(depth_folder, tmp_path, initialization_only=True)
    bare, run = tmp_path / "bare", tmp_path / "run"
    for folder in (bare, run / "model"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text((depth_folder / "config.json").read_text())
    (tmp_path / "taken").write_text("")
    places = {"tmp": tmp_path, "run": run, "bare": bare, "initial": initial, "depth": depth_folder}
    places |= {"instance": instance_folder, "coco": json.dumps(coco[0])}
    given = [fill(argument, places) for argument in arguments]
    if not words:  # a file that is no folder
        given, words = [str(depth_folder), "--output", str(tmp_path / "taken")], ["is a file"]
    if "--options" not in given and "--dataset" not in given:
        given += ["--options", json.dumps(rooms)]
    results = [] if "--output" in given else ["--output", str(tmp_path / "results")]
    with pytest.raises(SystemExit) as exit_info:
        run_script(monkeypatch, *given, *results)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert exit_info.value.code == 2 and "error: " in error
    assert all(fill(word, places) in error for word in words), error
    assert not (tmp_path / "results").exists()


def fill(text, places):
    for name, place in places.items():
        text = text.replace(f"{{{name}}}", str(place))
    return text


def test_other_models_are_refused(depth_folder, rooms, tmp_path):
    with pytest.raises(EvaluationError, match="model_type 'resnet'"):
        evaluate([broken_copy(depth_folder, tmp_path, model_type="resnet")], rooms)


def test_image_and_depth_of_different_sizes_are_named(depth_folder, tmp_path, monkeypatch):
    features = datasets.Features({"image": datasets.Image(), "depth": datasets.Image()})
    picture = Image.new("RGB", (40, 32))
    depth = Image.fromarray(np.full((24, 32), 1000, dtype=np.uint16))
    rows = datasets.Dataset.from_dict({"image": [picture], "depth": [depth]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    with pytest.raises(EvaluationError, match=r"Row 0 .*\(32, 40\).*\(24, 32\)"):
        evaluate([depth_folder], {})


# Real data


def test_real_frames_and_photographs(depth_folder, object_model, shared_dir, tmp_path):
    data = shared_dir / "data"
    options = {"data_dir": str(data / "nyu_depth_v2"), "cache_dir": str(tmp_path / "nyu")}
    settings = {"dataset": "nyu_depth_v2", "split": "train[:3]", "nyu_crop": True, "soft_only": True}
    lines = evaluate([depth_folder], options, **settings, output=tmp_path / "depth", panels=2)
    assert 0.3 < lines["constant"].metrics["rmse"] < 3
    assert (tmp_path / "depth" / lines["autoregressive, soft tokens"].files[1]).exists()
    small = data / "coco_small"
    options = {"validation_annotations": str(small / "instances.json"), "validation_images": str(small / "images")}
    settings = {"dataset": "coco_instances", "split": "validation", "limit": 4, "panels": 2, "soft_only": True}
    rows = load_coco({**options, "cache_dir": str(tmp_path / "coco")})
    model = object_model(rows.features["objects"]["category"].feature.names)
    model.save_pretrained(tmp_path / "model")
    AiTInstanceImageProcessor(size={"longest_edge": 32}, pad_size=SIZE).save_pretrained(tmp_path / "model")
    options["cache_dir"] = str(tmp_path / "coco")
    lines = evaluate([tmp_path / "model"], options, **settings, output=tmp_path / "objects")
    assert lines["autoregressive, soft tokens"].metrics["box_AP"] < 0.1
