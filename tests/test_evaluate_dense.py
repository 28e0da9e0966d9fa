"""Evaluation of dense tasks: every kind against direct calls, one prediction for all tasks, constants, bad input."""

import json
import math

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from evaluation_cases import evaluate, read_rows, run_script
from PIL import Image

from transformers_ait import (
    AiTDenseImageProcessor,
    AiTForDenseAndInstancePrediction,
    AiTPlainDenseConfig,
    AiTPlainDenseModel,
    AiTVQVAEModel,
)
from transformers_ait.engine.evaluation import dense as evaluation_dense
from transformers_ait.engine.evaluation.constants import constant_values
from transformers_ait.engine.evaluation.inputs import EvaluationError
from transformers_ait.map_kinds_ait import IGNORED_CLASS, MAP_KINDS
from transformers_ait.metrics import depth_metrics, normals_metrics, segmentation_metrics

pytest_plugins = ["evaluation_cases"]

CLASSES = ["wall", "floor", "lamp"]
HEIGHT, WIDTH, ROWS = 32, 48, 3
KINDS = {"depth": "depth", "normals": "normals", "semantic": "classes", "height": "values"}
COLUMNS = {"semantic": "labels"}
METRICS = {"depth": depth_metrics, "normals": normals_metrics}


@pytest.fixture(scope="module")
def truth():
    """Native maps of three rows by task; a tenth is invalid."""
    generator = torch.Generator().manual_seed(3)
    depth = (1 + 3 * torch.rand(ROWS, HEIGHT, WIDTH, generator=generator)).mul(1000).round() / 1000
    pixels = torch.randn(ROWS, 3, HEIGHT, WIDTH, generator=generator) - torch.tensor([0.5, 0.5, 1.5])[:, None, None]
    pixels = ((torch.nn.functional.normalize(pixels, dim=1) + 1) * 127.5).round()
    normals = torch.nn.functional.normalize(pixels / 127.5 - 1, dim=1)
    semantic = torch.randint(0, 3, (ROWS, HEIGHT, WIDTH), generator=generator)
    height = torch.randn(ROWS, 1, HEIGHT, WIDTH, generator=generator).mul(1000).round() / 1000
    invalid = torch.rand(ROWS, HEIGHT, WIDTH, generator=generator) < 0.1
    depth[invalid] = 0
    normals.movedim(1, -1)[invalid] = 0
    semantic[invalid] = IGNORED_CLASS
    height[:, 0][invalid] = math.nan
    return {"depth": depth, "normals": normals, "semantic": semantic, "height": height}


def as_rows(truth):
    """A dataset with these maps, normals as 8-bit pictures and heights as numbers."""
    size = tuple(truth["depth"].shape[1:])
    rng = np.random.default_rng(0)
    pictures = {name: datasets.Image() for name in ("image", "depth", "normals", "labels", "sevens")}
    features = datasets.Features(pictures | {"height": datasets.Array2D(size, "float32")})
    normals = [((one + 1) * 127.5).round().byte().movedim(0, -1).numpy() for one in truth["normals"]]
    columns = {
        "image": [Image.fromarray(rng.integers(0, 255, (*size, 3)).astype(np.uint8)) for _ in normals],
        "depth": [Image.fromarray((one * 1000).round().numpy().astype(np.uint16)) for one in truth["depth"]],
        "normals": [Image.fromarray(one) for one in normals],
        "labels": [Image.fromarray(one.numpy().astype(np.uint8)) for one in truth["semantic"]],
        "sevens": [Image.new("L", size[::-1], 7) for _ in normals],
        "height": [one[0].numpy() for one in truth["height"]],
    }
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture
def rows(truth, monkeypatch):
    """The dataset, which every name loads."""
    dataset = as_rows(truth)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    return dataset


@pytest.fixture(scope="module")
def tokenizer(tiny_vqvae_config):
    """Function that builds the configuration of a tokenizer of a task."""

    def build(task, **overrides):
        settings = {"map_kind": KINDS[task], "num_codes": 9, "tau": 0.8}
        names = {"id2label": dict(enumerate(CLASSES))} if task == "semantic" else {}
        return tiny_vqvae_config(**(settings | names | overrides))

    return build


@pytest.fixture(scope="module")
def processor():
    return AiTDenseImageProcessor(size={"height": 32, "width": 32}, map_kinds=KINDS)


@pytest.fixture(scope="module")
def parallel_folder(tiny_model, tokenizer, processor, tmp_path_factory):
    """A parallel model of four dense tasks."""
    tables = [
        {"name": x, "kind": KINDS[x], "tokenizer_config": tokenizer(x)} for x in ("normals", "semantic", "height")
    ]
    folder = tmp_path_factory.mktemp("models") / "parallel"
    model = tiny_model(dense_tasks=tables, tasks=list(KINDS), parallel=True, id2label=dict(enumerate(CLASSES)))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classes_folder(tokenizer, enliven, tmp_path_factory):
    """A tokenizer of classes."""
    folder = tmp_path_factory.mktemp("models") / "vqvae"
    torch.manual_seed(0)
    enliven(AiTVQVAEModel(tokenizer("semantic"))).save_pretrained(folder)
    return folder


def figures(task, found, true):
    """Figures of one map or of several, by the public functions."""
    if task == "semantic":
        return segmentation_metrics(found, true, len(CLASSES))
    if task == "height":
        error = (found - true)[~true.isnan()]
        return {"mae": error.abs().mean().item(), "rmse": error.square().mean().sqrt().item()}
    return METRICS[task](found, true)


@pytest.mark.slow
def test_every_task_of_a_parallel_model_is_predicted_once_and_measured_like_a_direct_call(
    parallel_folder, processor, rows, truth, tmp_path, monkeypatch
):
    calls, shown = [], {}
    generate = AiTForDenseAndInstancePrediction.generate

    def counted(self, pixel_values, task, **switches):
        calls.append((len(pixel_values), list(task)))
        return generate(self, pixel_values, task, **switches)

    monkeypatch.setattr(AiTForDenseAndInstancePrediction, "generate", counted)
    monkeypatch.setattr(
        evaluation_dense,
        "dense_panel",
        lambda panel, kind, path, task, names: shown.update({task: (panel, kind, names)}),
    )
    settings = {"columns": COLUMNS, "batch_size": 2, "panels": 1, "output": tmp_path}
    lines = evaluate([parallel_folder], {}, **settings)
    # Each row once for all tasks; then, for the picture of each task, its worst row again.
    assert calls == [(2, list(KINDS)), (1, list(KINDS)), *[(1, list(KINDS))] * 4]
    monkeypatch.undo()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    stored = json.loads((tmp_path / "results.json").read_text())["results"]
    model = AiTForDenseAndInstancePrediction.from_pretrained(parallel_folder)
    pixels = processor(rows["image"][:], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = processor.post_process_dense(model(pixels), [(HEIGHT, WIDTH)] * ROWS)
    for task, true in truth.items():
        (line,) = [line for line in stored if line["task"] == task and line["folder"] is not None]
        assert line["name"] == f"{parallel_folder}: {task}: parallel"
        maps = torch.stack([image[task] for image in found])
        assert line["metrics"] == pytest.approx(figures(task, maps, true), rel=1e-3)
        of_image = [figures(task, one, other) for one, other in zip(maps, true, strict=True)]
        written = read_rows(tmp_path / line["files"][0])
        assert line["files"][0] == f"parallel-{task}-parallel/per_image.csv"
        for row, expected in zip(written, of_image, strict=True):
            assert {name: float(row[name]) for name in expected} == pytest.approx(expected, rel=1e-3)
        leading = {"depth": "rmse", "normals": "mean_angle", "semantic": "miou", "height": "rmse"}[task]
        values = [row[leading] for row in of_image]
        (panel,), kind, names = shown[task]
        assert panel.title == f"{np.argmin(values) if task == 'semantic' else np.argmax(values)}: {panel.title[3:]}"
        assert (kind.name, names) == (KINDS[task], CLASSES if task == "semantic" else None)
    # One table a column, each with its constants; classes and normals have one of them.
    assert [line["name"].split(": ", 1)[-1] for line in stored] == [
        *("depth: parallel", "constant", "constant, median"),
        *("normals: parallel", "constant"),
        *("semantic: parallel", "constant"),
        *("height: parallel", "constant", "constant, median"),
    ]
    assert len({line["name"] for line in stored}) == len(stored)
    assert (tmp_path / "results.md").read_text().count("| model |") == 4
    # One task is what it is among others.
    single = evaluate([parallel_folder], {}, task="semantic", columns=COLUMNS)
    assert single["parallel"].metrics == pytest.approx(stored[5]["metrics"], rel=1e-4)
    assert list(single) == ["parallel", "constant"] and len(lines) > 2


def test_a_model_with_its_own_loop_per_task_gives_what_its_tasks_give(
    tiny_model, tokenizer, processor, rows, truth, tmp_path
):
    tables = [{"name": x, "kind": KINDS[x], "tokenizer_config": tokenizer(x)} for x in ("normals", "height")]
    model = tiny_model(dense_tasks=tables)
    model.save_pretrained(tmp_path)
    kinds = {x: KINDS[x] for x in ("normals", "height")}
    processor = AiTDenseImageProcessor(size={"height": 32, "width": 32}, map_kinds=kinds, num_windows=1)
    processor.save_pretrained(tmp_path)
    lines = evaluate([tmp_path], {}, output=tmp_path / "results", panels=0)
    assert list(lines) == ["autoregressive, soft tokens", "autoregressive, hard tokens", "constant", "constant, median"]
    stored = json.loads((tmp_path / "results" / "results.json").read_text())["results"]
    pixels = processor(rows["image"][:], return_tensors="pt")["pixel_values"]
    for task in kinds:
        (line,) = [line for line in stored if line["name"].endswith(f"{task}: autoregressive, hard tokens")]
        outputs = model.generate(pixels, task, soft_feedback=False, soft_decode=False)
        found = processor.post_process_dense(outputs, [(HEIGHT, WIDTH)] * ROWS)
        expected = figures(task, torch.stack([image[task] for image in found]), truth[task])
        assert line["metrics"] == pytest.approx(expected, rel=1e-3)


def test_a_plain_decoder_stands_beside_a_model(parallel_folder, processor, rows, truth, tmp_path):
    tables = [{"name": "normals", "kind": "normals"}, {"name": "semantic", "kind": "classes", "class_names": CLASSES}]
    backbone = {"model_type": "timm_backbone", "backbone": "test_resnet", "out_indices": [2, 3]}
    config = AiTPlainDenseConfig(backbone_config=backbone, dense_tasks=tables, image_size=32, hidden_size=16)
    model = AiTPlainDenseModel(config).eval()
    model.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    lines = evaluate([parallel_folder, tmp_path / "plain"], {}, task="semantic", columns=COLUMNS)
    assert list(lines) == ["parallel", "plain decoder", "constant"]
    pixels = processor(rows["image"][:], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = processor.post_process_semantic_segmentation(model(pixels), [(HEIGHT, WIDTH)] * ROWS)
    expected = segmentation_metrics(torch.stack(found), truth["semantic"], len(CLASSES))
    assert lines["plain decoder"].metrics == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("task", ["normals", "semantic", "height"])
def test_a_tokenizer_of_any_kind_is_judged_by_reconstructions(task, tokenizer, enliven, rows, truth, tmp_path):
    torch.manual_seed(0)
    model = enliven(AiTVQVAEModel(tokenizer(task, downsample_ratio=32)))
    model.save_pretrained(tmp_path)
    kind = MAP_KINDS[KINDS[task]]
    # The kind's name stands for the task unless one is given; its column is found by either.
    given = {"task": task, "columns": COLUMNS} if task == "semantic" else {"columns": {kind.name: task}}
    line = evaluate([tmp_path], {}, **given)["reconstruction of the truth"]
    true = truth[task][..., :32]
    with torch.no_grad():
        decoded = kind.from_tokenizer(model(kind.to_tokenizer(true, model.config.num_channels)).reconstruction)
    found = decoded.argmax(1) if task == "semantic" else decoded
    assert line.metrics == pytest.approx(figures(task, found, true), rel=1e-4)


def test_constants_by_hand(truth):
    def constants(task, channels):
        values = constant_values(MAP_KINDS[KINDS[task]], channels, lambda row: truth[task][row], ROWS, Accelerator())
        return {name: value.tolist() for name, value in values.items()}

    depth = truth["depth"][truth["depth"] > 0].double()
    expected = {"constant": [depth.mean().item()], "constant, median": [depth.quantile(0.5).item()]}
    assert constants("depth", 1) == {name: pytest.approx(value, abs=1e-6) for name, value in expected.items()}
    height = truth["height"][~truth["height"].isnan()].double()
    expected = {"constant": [height.mean().item()], "constant, median": [height.quantile(0.5).item()]}
    assert constants("height", 1) == {name: pytest.approx(value, abs=1e-6) for name, value in expected.items()}
    normals = truth["normals"].movedim(1, -1)[truth["normals"].any(1)].mean(0)
    assert constants("normals", 3) == {"constant": pytest.approx(normals.tolist(), abs=1e-6)}
    shares = torch.bincount(truth["semantic"][truth["semantic"] < 3], minlength=3) / (truth["semantic"] < 3).sum()
    assert constants("semantic", 3) == {"constant": pytest.approx(shares.tolist(), abs=1e-6)}


def test_constants_are_direction_and_most_frequent_class(parallel_folder, rows, truth, tmp_path):
    evaluate([parallel_folder], {}, columns=COLUMNS, output=tmp_path, panels=0)
    stored = json.loads((tmp_path / "results.json").read_text())["results"]
    by_name = {line["name"]: line["metrics"] for line in stored}
    direction = truth["normals"].movedim(1, -1)[truth["normals"].any(1)].mean(0)
    everywhere = direction[None, :, None, None].expand_as(truth["normals"])
    assert by_name["normals: constant"] == pytest.approx(normals_metrics(everywhere, truth["normals"]), rel=1e-4)
    frequent = torch.bincount(truth["semantic"][truth["semantic"] < 3]).argmax()
    everywhere = torch.full_like(truth["semantic"], int(frequent))
    expected = segmentation_metrics(everywhere, truth["semantic"], 3)
    assert by_name["labels: constant"] == pytest.approx(expected, rel=1e-4)


def test_the_crop_of_nyu_counts_for_every_kind(classes_folder, monkeypatch):
    labels = torch.full((1, 480, 640), 2)
    labels[:, 45:471, 41:601] = 1  # the most frequent one, and all of the crop
    truth = {"semantic": labels, "depth": torch.ones(1, 480, 640), "height": torch.zeros(1, 1, 480, 640)}
    truth["normals"] = torch.tensor([0.0, 0.0, -1.0])[None, :, None, None].expand(1, 3, 480, 640)
    dataset = as_rows(truth)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    settings = {"task": "labels"}
    assert evaluate([classes_folder], {}, **settings)["constant"].metrics["pixel_accuracy"] < 0.8
    cropped = evaluate([classes_folder], {}, **settings, nyu_crop=True)
    assert cropped["constant"].metrics == {"miou": 1.0, "pixel_accuracy": 1.0, "mean_accuracy": 1.0}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--columns", '{"semantc": "labels"}'], ["columns names ['semantc']"]),
        (["--columns", '{"semantic": "label"}'], ["needs the column 'label'", "'labels'", "--columns"]),
        (["--columns", "[1]"], ["--columns", "must be an object"]),
        (
            ["--task", "semantic"],
            ["['semantic']", "needs the column 'semantic'", '--columns \'{"semantic": "COLUMN"}\''],
        ),
        (["--task", "flow"], ["task must be one of ['depth', 'normals', 'semantic', 'height']", "'flow'"]),
        (["--task", "semantic", "--columns", '{"semantic": "sevens"}'], ["'sevens' of row 0", "class ids in [0, 3)"]),
        (["--task", "normals", "--columns", '{"normals": "labels"}'], ["labels of row 0", "mode 'L'"]),
        (["--columns", '{"semantic": "depth"}'], ["'depth'", "'classes'", "two calls"]),
    ],
)
def test_bad_input_is_one_line(arguments, words, parallel_folder, rows, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run_script(monkeypatch, parallel_folder, *arguments)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert exit_info.value.code == 2
    assert all(word in error for word in words), error


def test_a_processor_of_other_tasks_is_not_enough(parallel_folder, processor, rows, tmp_path):
    AiTForDenseAndInstancePrediction.from_pretrained(parallel_folder).save_pretrained(tmp_path)
    kinds = {task: kind for task, kind in KINDS.items() if task != "height"}
    AiTDenseImageProcessor(size={"height": 32, "width": 32}, map_kinds=kinds).save_pretrained(tmp_path)
    with pytest.raises(EvaluationError, match=r"no AiTDenseImageProcessor for \['depth', 'height', 'normals', 'sem"):
        evaluate([tmp_path], {}, columns=COLUMNS)
    processor.save_pretrained(tmp_path / "dense")
    assert "parallel" in evaluate([tmp_path], {}, columns=COLUMNS, limit=1)
