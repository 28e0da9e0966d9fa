"""Detection and instance training as users run them, and what lies below: rows, evaluation, starting points."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

from transformers_ait import AiTForDenseAndInstancePrediction, AiTVQVAEModel
from transformers_ait.configuration_ait import TASK_IDS
from transformers_ait.data import SYNTHETIC_ROOMS_CLASSES
from transformers_ait.engine.recipes.reading import RecipeError, load_recipe, run_from_command_line
from transformers_ait.engine.recipes.scripts import InstanceRecipe, VQVAERecipe
from transformers_ait.engine.recipes.sections import DataRecipe
from transformers_ait.engine.reporting.log import LOG_FILE, read_log
from transformers_ait.engine.tasks.instance_data import InstanceRows, evaluate_objects, load_instance_rows
from transformers_ait.engine.tasks.instances import InstanceTask, build_instance_model, train_instance
from transformers_ait.engine.tasks.vqvae import train_vqvae

TRAINING = Path(__file__).parents[1] / "training"
RUN = ["--run.steps=2", "--run.batch_size=4", "--run.log_every=1", "--run.panels=1", "--data.in_memory=true"]
ROOMS = {"height": 48, "width": 64, "num_train": 8, "num_validation": 3, "num_test": 0}
# A detection sequence of four objects and an instance one share the table of 36 positions.
SMALL = [
    "--model.config",
    "{image_size: 64, num_bins: 20, num_objects: 4, num_mask_codes: 8, decoder_config: {hidden_size: 16, "
    "num_attention_heads: 2, intermediate_size: 32, num_encoder_layers: 1, num_decoder_layers: 1, "
    "max_positions: 36}}",
]
MASKS_SMALL = ["--model.config", "{image_size: 16, hidden_size: 4, downsample_ratio: 8, num_codes: 8, code_dim: 8}"]


def recipe_path(name):
    return str(TRAINING / "recipes" / f"{name}.yaml")


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Overrides that name the tiny rooms, rendered once."""
    cache = tmp_path_factory.mktemp("rooms")
    datasets.load_dataset("synthetic_rooms", cache_dir=str(cache), **ROOMS)
    return ["--data.options", json.dumps({**ROOMS, "cache_dir": str(cache)})]


@pytest.fixture(scope="module")
def tokenizer(rooms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqvae") / "run"
    arguments = [recipe_path("vqvae-tiny-rooms-masks"), "--run.output", str(folder)]
    train_vqvae(load_recipe(VQVAERecipe, [*arguments, *RUN, *MASKS_SMALL, *rooms]))
    return folder


def detection_arguments(folder, rooms):
    start = ["--model.initialize_from", "null", "--run.output", str(folder)]
    return [recipe_path("tiny-rooms-detection"), *start, *RUN, *SMALL, *rooms]


def instance_arguments(folder, rooms, tokenizer, detection):
    start = ["--model.mask_tokenizer", str(tokenizer / "model"), "--model.initialize_from", str(detection / "model")]
    return [recipe_path("tiny-rooms-instance"), *start, "--run.output", str(folder), *RUN, *SMALL, *rooms]


@pytest.fixture(scope="module")
def detection(rooms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("detection") / "run"
    train_instance(load_recipe(InstanceRecipe, detection_arguments(folder, rooms)))
    return folder


@pytest.fixture(scope="module")
def instance(rooms, tokenizer, detection, tmp_path_factory):
    """Folder of an instance run by the script itself."""
    folder = tmp_path_factory.mktemp("instance") / "run"
    command = [sys.executable, str(TRAINING / "run_instance.py")]
    done = subprocess.run(
        [*command, *instance_arguments(folder, rooms, tokenizer, detection)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_mask_tokenizer_run(tokenizer):
    model = AiTVQVAEModel.from_pretrained(tokenizer / "model")
    assert model.config.symmetric_range and not model.config.ignore_zero
    last = read_log(tokenizer / LOG_FILE)[-1]
    assert {"mask_AP", "mask_AP50", "mask_AP75", "boundary_AP"} <= last.keys()
    assert [path.name for path in (tokenizer / "panels").iterdir()] == ["step-00000002.png"]


@pytest.mark.slow
def test_detection_run_gives_a_model_for_the_pipeline(detection, rooms):
    image = datasets.load_dataset("synthetic_rooms", split="validation", **json.loads(rooms[1]))[0]["image"]
    detector = pipeline("object-detection", model=str(detection / "model"), device="cpu")
    found = detector(image, threshold=0.0)
    assert {entry["label"] for entry in found} <= set(SYNTHETIC_ROOMS_CLASSES)
    log = read_log(detection / LOG_FILE)
    assert {"detection_box_ce", "detection_class_ce", "loss", "grad_norm"} <= log[0].keys()
    assert {"box_AP", "box_AP50", "box_AP75"} <= log[-1].keys() and "mask_AP" not in log[-1]


@pytest.mark.slow
def test_instance_run_gives_a_model_for_the_pipeline(instance, tokenizer, rooms):
    model = AiTForDenseAndInstancePrediction.from_pretrained(instance / "model")
    trained = load_file(tokenizer / "model" / "model.safetensors")
    largest = torch.finfo(torch.float16).max  # at which codes that nothing used are cut
    for key, x in model.mask_tokenizer.state_dict().items():
        assert torch.equal(x, trained[key].clamp(-largest, largest).half().float())
    assert list(model.config.id2label.values()) == list(SYNTHETIC_ROOMS_CLASSES)
    image = datasets.load_dataset("synthetic_rooms", split="validation", **json.loads(rooms[1]))[0]["image"]
    segmenter = pipeline("image-segmentation", model=str(instance / "model"), device="cpu")
    assert all(entry["mask"].size == image.size for entry in segmenter(image, threshold=0.0))
    assert {"mask_AP", "box_AP"} <= read_log(instance / LOG_FILE)[-1].keys()


@pytest.mark.slow
def test_instances_start_from_the_detection_decoder(detection, rooms, tokenizer, tmp_path):
    recipe = load_recipe(InstanceRecipe, instance_arguments(tmp_path, rooms, tokenizer, detection))
    started = build_instance_model(recipe.model, list(SYNTHETIC_ROOMS_CLASSES)).model.decoder
    earlier = AiTForDenseAndInstancePrediction.from_pretrained(detection / "model").model.decoder
    assert torch.equal(started.token_embeddings, earlier.token_embeddings)
    # Task 0 is detection; objects are 5 tokens long there, and 9 here.
    tables = {name: decoder.position_embeddings for name, decoder in (("new", started), ("old", earlier))}
    for number in range(4):
        new = tables["new"][TASK_IDS["instance"], number * 9 : number * 9 + 5]
        assert torch.equal(new, tables["old"][TASK_IDS["detection"], number * 5 : number * 5 + 5])
    without = load_recipe(
        InstanceRecipe,
        [*instance_arguments(tmp_path, rooms, tokenizer, detection), "--model.initialize_decoder", "false"],
    )
    fresh = build_instance_model(without.model, list(SYNTHETIC_ROOMS_CLASSES)).model
    assert not torch.equal(fresh.decoder.token_embeddings, earlier.token_embeddings)
    assert torch.equal(fresh.encoder.input_projection.weight, started_encoder(detection))


def started_encoder(folder):
    return AiTForDenseAndInstancePrediction.from_pretrained(folder / "model").model.encoder.input_projection.weight


@pytest.fixture(scope="module")
def data(rooms):
    options = json.loads(rooms[1])
    return load_instance_rows(DataRecipe("synthetic_rooms", options=options, in_memory=True))


def test_rows_agree_with_the_rendered_rooms(data, rooms):
    rows = datasets.load_dataset("synthetic_rooms", split="train", **json.loads(rooms[1]))
    for index in range(len(rows)):
        objects, row = data[0].objects(index), rows[index]
        numbers = np.array(row["instance_map"])
        assert objects.class_labels.tolist() == row["objects"]["category"]
        for mask, number in zip(objects.masks, row["objects"]["id"], strict=True):
            assert np.array_equal(mask.numpy(), numbers == number)
        assert torch.equal(data[0].image(index).permute(1, 2, 0), torch.from_numpy(np.array(row["image"])))


def test_samples_repeat_and_do_not_depend_on_the_batch(data, rooms, tokenizer, detection, tmp_path):
    recipe = load_recipe(InstanceRecipe, instance_arguments(tmp_path, rooms, tokenizer, detection))
    model = build_instance_model(recipe.model, data[0].class_names).eval()
    task = InstanceTask(model, "instance", *data, recipe)
    torch.manual_seed(0)
    samples = [task.sample(index) for index in range(4)]
    whole = task.loss(model, task.collate(samples), torch.ones(()))[0]
    weights = [task.weight(task.collate([sample])) for sample in samples]
    # Different global randomness: what is drawn depends on each label's seed alone.
    torch.manual_seed(1)
    parts = [task.loss(model, task.collate([sample]), torch.ones(()))[0] for sample in samples]
    mean = sum(part * weight for part, weight in zip(parts, weights, strict=True)) / sum(weights)
    assert whole.item() == pytest.approx(mean.item(), rel=1e-4)
    del samples[0]["instance_labels"]["seed"]
    other = task.loss(model, task.collate(samples), torch.ones(()))[0]
    assert abs(other.item() - whole.item()) > 1e-4


def perfect(rows):
    def predict(indices):
        truth = rows.ground_truth(len(rows))["annotations"]
        chosen = [entry for entry in truth if entry["image_id"] in indices]
        return [
            {key: entry[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 1.0}
            for entry in chosen
        ]

    return predict


def test_evaluation_of_the_truth_is_perfect_and_of_moved_boxes_is_not(data):
    rows = data[1]
    metrics = evaluate_objects(rows, len(rows), perfect(rows), ("bbox", "segm", "boundary"), 2, Accelerator(cpu=True))
    assert all(value == pytest.approx(1.0) for value in metrics.values()) and len(metrics) == 9

    def moved(indices):
        results = perfect(rows)(indices)
        return [{**entry, "bbox": [entry["bbox"][0] + entry["bbox"][2], *entry["bbox"][1:]]} for entry in results]

    assert evaluate_objects(rows, len(rows), moved, ("bbox",), 2, Accelerator(cpu=True))["box_AP50"] < 0.1


def coco_rows(segmentation, **changes):
    """One row as `coco_instances` gives it."""
    entry = {"id": 7, "category": 1, "bbox": [2.0, 3.0, 10.0, 8.0], "area": 80.0, "iscrowd": 0, **changes}
    objects = {name: [value] for name, value in entry.items()} | {"segmentation": [json.dumps(segmentation)]}
    values = {name: datasets.List(datasets.Value("float32")) for name in ("area",)}
    features = {
        "image": datasets.Image(),
        "objects": {
            "id": datasets.List(datasets.Value("int64")),
            "category": datasets.List(datasets.ClassLabel(names=["cat", "dog"])),
            "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
            "iscrowd": datasets.List(datasets.Value("int64")),
            "segmentation": datasets.List(datasets.Value("string")),
            **values,
        },
    }
    image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    return datasets.Dataset.from_dict({"image": [image], "objects": [objects]}, datasets.Features(features))


def test_polygons_of_coco_become_masks():
    rows = InstanceRows(coco_rows([[2, 3, 12, 3, 12, 11, 2, 11]]))
    objects = rows.objects(0)
    assert objects.boxes.tolist() == [[2, 3, 12, 11]] and objects.class_labels.tolist() == [1]
    assert objects.masks.sum() == 80 and objects.masks[0, 3:11, 2:12].all()
    assert rows.index_objects() == [(0, 0)]


@pytest.mark.parametrize("changes", [{"iscrowd": 1}, {"bbox": [2.0, 3.0, 0.0, 8.0]}])
def test_crowds_and_boxes_without_area_are_not_learnt(changes):
    rows = InstanceRows(coco_rows([[2, 3, 12, 3, 12, 11, 2, 11]], **changes))
    assert len(rows.objects(0).boxes) == 0 and rows.index_objects() == []


def test_unusable_annotations_are_named():
    with pytest.raises(ValueError, match="Annotation 7 of row 0"):
        InstanceRows(coco_rows({"size": [20, 31], "counts": "abc"})).objects(0)


def test_missing_columns_are_named():
    rows = coco_rows([[2, 3, 12, 3, 12, 11, 2, 11]])
    with pytest.raises(RecipeError, match="no column \\['objects'\\]"):
        InstanceRows(rows.remove_columns("objects"))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("tiny-rooms-instance", [], ["model.mask_tokenizer is missing"]),
        ("tiny-rooms-instance", ["--model.mask_tokenizer", "nowhere"], ["model.mask_tokenizer nowhere", "config.json"]),
        ("tiny-rooms-detection", ["--model.mask_tokenizer", "somewhere"], ["for the task instance"]),
        ("tiny-rooms-detection", ["--model.config.tasks", "[depth]"], ["model.config.tasks", "depth"]),
        ("tiny-rooms-detection", ["--augmentation.scale", "[2.0, 1.0]"], ["scale", "least first"]),
    ],
)
def test_bad_recipes_end_with_one_line(tmp_path, monkeypatch, capsys, rooms, name, arguments, words):
    given = ["run", recipe_path(name), "--run.output", str(tmp_path / "run"), *RUN, *SMALL, *rooms, *arguments]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit):
        run_from_command_line(InstanceRecipe, train_instance, "")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and all(word in error for word in words), error
    assert list(tmp_path.iterdir()) == []
