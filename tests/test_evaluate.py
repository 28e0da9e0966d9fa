"""Evaluation of checkpoint folders: depth against direct calls, files, processes, and bad input."""

import contextlib
import json
import math

import datasets
import numpy as np
import pytest
import torch
from evaluation_cases import SCRIPT, SIZE, evaluate, launch, load_coco, read_rows, run_script
from PIL import Image

from transformers_ait import AiTDepthImageProcessor, AiTInstanceImageProcessor, AiTVQVAEModel
from transformers_ait.engine.evaluation import dense as evaluation_dense
from transformers_ait.engine.evaluation.dense import mean_figures
from transformers_ait.engine.evaluation.inputs import DenseTarget, EvaluationError
from transformers_ait.engine.loop.evaluation_batches import evaluate_in_batches
from transformers_ait.engine.tasks.dense_data import DenseRows
from transformers_ait.map_kinds_ait import MAP_KINDS
from transformers_ait.metrics import DEPTH_METRICS, depth_metrics

pytest_plugins = ["evaluation_cases"]
DEPTH = {"depth": MAP_KINDS["depth"]}


@pytest.fixture(scope="module")
def truth(rooms):
    """Depth maps of the rooms in metres."""
    rows = DenseRows(datasets.load_dataset("synthetic_rooms", split="test", **rooms), DEPTH)
    return [rows.map(index, "depth") for index in range(5)]


def values(row):
    return [float(row[name]) for name in DEPTH_METRICS]


@torch.no_grad()
def predicted_depths(model, rows, **switches):
    """Predictions one by one, through the public calls alone."""
    processor = AiTDepthImageProcessor(size=SIZE)
    for row in rows:
        outputs = model.generate(processor(row["image"], return_tensors="pt")["pixel_values"], **switches)
        size = [(row["image"].height, row["image"].width)]
        yield processor.post_process_depth_estimation(outputs, size)[0]["predicted_depth"]


@pytest.mark.slow
def test_depth_figures_are_those_of_a_direct_call(depth_folder, tiny_model, rooms, truth, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(evaluation_dense, "dense_panel", lambda rows, *_: shown.append(rows))
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
    train = DenseRows(datasets.load_dataset("synthetic_rooms", split="train", **rooms), DEPTH)
    of_train = torch.cat([train.map(index, "depth").flatten() for index in range(3)]).double()
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    target = DenseTarget(MAP_KINDS["depth"], 1, "depth")
    assert mean_figures("depth", target, [row, empty]) == row
    with pytest.raises(EvaluationError, match="No row has a valid true depth"):
        mean_figures("depth", target, [empty])


# Processes


@pytest.mark.slow
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
    assert len(files) == 7
    assert all(json.loads((tmp_path / "one" / file).read_text()) for file in files if file.endswith(".json"))
    for file in files:
        both = [(tmp_path / name / file).read_text() for name in ("one", "two")]
        if file.endswith("errors.json"):
            first, second = (json.loads(text) for text in both)
            assert first.pop("iou_type") == second.pop("iou_type") and first == pytest.approx(second, nan_ok=True)
            continue
        if file.endswith(".json"):
            # Where memory lies decides over the last bit of a matrix product, and so of a score.
            both = [json.loads(text) for text in both]
            scores = [[entry.pop("score") for entry in entries] for entries in both]
            assert scores[0] == pytest.approx(scores[1], rel=1e-6), file
        assert both[0] == both[1], file
    # Re-encoded masks are measured without boxes.
    vqvae = one["results"][-1]
    assert {name.split("_")[0] for name in vqvae["metrics"]} == {"mask", "boundary"}
    assert list(lines) == [*lines][:1] + ["constant", "constant, median"] + [*lines][3:]


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_processes_begin_with_batches_of_their_own_and_call_equally_often(processes):
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

    for rank in range(processes):
        with pytest.raises(InterruptedError):
            evaluate_in_batches(record, 11, 3, OneOfSome(rank), "")
    expected = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10)]
    # Wrapped models may communicate in every call, so that processes without a batch of their own repeat the last.
    assert batches == [expected[min(rank, 3)] for rank in range(processes)]


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


@pytest.mark.slow
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


def test_folders_are_looked_at_before_data_is_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("data was read"))
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        evaluate([str(tmp_path / "missing")], {"num_test": 10**6})
