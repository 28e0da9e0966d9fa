"""Own data: two folders of images and depth, own COCO files, plain Trainer; and going on with a trained model."""

import json
import runpy
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from transformers_ait import AiTDenseImageProcessor, AiTForDenseAndInstancePrediction, AiTInstanceImageProcessor
from transformers_ait.data.depth_files import DEPTH_UNITS
from transformers_ait.engine.evaluation.inputs import EvaluationSettings
from transformers_ait.engine.evaluation.report import run_evaluation
from transformers_ait.engine.recipes.finetuning import complete_model
from transformers_ait.engine.recipes.joint import JointRecipe, check_joint_tasks
from transformers_ait.engine.recipes.reading import RecipeError, load_recipe
from transformers_ait.engine.recipes.scripts import DenseModelRecipe, DepthRecipe, InstanceModelRecipe, InstanceRecipe
from transformers_ait.engine.tasks import initialization
from transformers_ait.engine.tasks.dense import build_dense_model, train_dense
from transformers_ait.engine.tasks.dense_data import load_dense_rows
from transformers_ait.engine.tasks.instances import build_instance_model, train_instance
from transformers_ait.image_inputs_ait import native_map
from transformers_ait.map_kinds_ait import MAP_KINDS

TRAINING = Path(__file__).parents[1] / "training"
HEIGHT, WIDTH = 48, 64
SHORT = ["--run.steps=2", "--run.batch_size=2", "--run.log_every=1", "--run.panels=1"]
NORMALS = {"image_size": 32, "downsample_ratio": 8, "hidden_size": 4, "num_codes": 7, "code_dim": 6}
KINDS = {"depth": "depth", "normals": "normals"}
LITE = "hub_configs/ait-lite-nyu"
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]


def recipe_path(name):
    return str(TRAINING / "recipes" / f"{name}.yaml")


def metres(number):
    """Depth (H, W) with a hole in the corner."""
    depth = np.random.default_rng(number).uniform(1, 6, (HEIGHT, WIDTH)).astype(np.float32)
    depth[:4, :4] = 0
    return depth


def write_picture(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def write_depth(path, depth, unit):
    path.parent.mkdir(parents=True, exist_ok=True)
    holes = depth == 0
    values = {"millimetres": depth * 1000, "metres": depth, "inverse": 1 / np.where(holes, 1, depth)}[unit]
    values = np.where(holes, np.nan if path.suffix != ".png" else 0, values).astype(np.float32)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values if path.suffix == ".tif" else values.round().astype(np.uint16)).save(path)


def write_folders(root, count=6, unit="millimetres", suffix=".png"):
    for number in range(count):
        write_picture(root / "images" / "a" / f"{number:02}.jpg", number)
        write_depth(root / "depth" / "a" / f"{number:02}{suffix}", metres(number), unit)
    return root


def load_folders(root, cache, **options):
    return datasets.load_dataset("depth_folders", data_dir=str(root), cache_dir=str(cache), **options)


# Two folders


@pytest.mark.parametrize(
    ("unit", "suffix"),
    [("millimetres", ".png"), ("millimetres", ".tif"), ("metres", ".npy"), ("metres", ".tif"), ("inverse", ".npy")],
)
def test_every_unit_becomes_metres(tmp_path, unit, suffix):
    root = write_folders(tmp_path / "data", 2, unit, suffix)
    rows = load_folders(root, tmp_path / "cache", split="train", depth_unit=unit)
    assert rows["name"][:] == ["images/a/00.jpg", "images/a/01.jpg"]
    for number, row in enumerate(rows):
        read = native_map(row["depth"], MAP_KINDS["depth"], "depth").numpy()
        np.testing.assert_allclose(read, metres(number), atol=6e-4)
        assert row["image"].size == (WIDTH, HEIGHT) and (read[:4, :4] == 0).all()


def test_folders_may_lie_in_splits_and_have_other_names(tmp_path):
    for split in ("train", "validation"):
        write_picture(tmp_path / "data" / split / "rgb" / "x.png", 0)
        write_depth(tmp_path / "data" / split / "z" / "x.npy", metres(0), "metres")
    splits = load_folders(tmp_path / "data", tmp_path / "cache", images="rgb", depths="z", depth_unit="metres")
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 1, "validation": 1}


def test_changed_files_are_noticed_and_streams_are_alike(tmp_path):
    root = write_folders(tmp_path / "data", 1)
    load_folders(root, tmp_path / "cache")
    write_depth(root / "depth" / "a" / "00.png", metres(9), "millimetres")
    for streaming in (False, True):
        row = next(iter(load_folders(root, tmp_path / "cache", split="train", streaming=streaming)))
        np.testing.assert_allclose(np.asarray(row["depth"]) / 1000, metres(9), atol=6e-4)


def without(folder):
    return lambda root: (root / folder).unlink()


def resized(root):
    write_depth(root / "depth" / "a" / "00.png", metres(0)[:24], "millimetres")


def painted(root):
    write_picture(root / "depth" / "a" / "00.png", 0)


def doubled(root):
    write_picture(root / "images" / "a" / "00.png", 0)


@pytest.mark.parametrize(
    ("damage", "options", "words"),
    [
        (without("depth/a/03.png"), {}, ["1 images have no depth map", "images/a/03.jpg", "agree"]),
        (without("images/a/03.jpg"), {}, ["1 depth maps have no image", "depth/a/03.png"]),
        (doubled, {}, ["images/a/00.jpg and images/a/00.png", "keep one"]),
        (resized, {}, ["images/a/00.jpg is 64 x 48", "depth/a/00.png is 64 x 24"]),
        (painted, {}, ["depth/a/00.png", "at least 16 bits"]),
        (None, {"depth_unit": "centimetres"}, ["depth_unit must be one of", "'inverse'", "'centimetres'"]),
        (None, {"depth_unit": "metres"}, ["read as metres", "depth_unit", "depth/a/00.png"]),
        (None, {"depths": "disparity"}, ["no folder 'disparity'", "depth, images"]),
        (None, {"num_held_out": 3}, ["data.options.num_held_out is no option"]),
    ],
)
def test_bad_folders_are_named(tmp_path, damage, options, words):
    root = write_folders(tmp_path / "data", 4)
    if damage is not None:
        damage(root)
    given = {"data_dir": str(root), "cache_dir": str(tmp_path / "cache"), **options}
    recipe = load_recipe(DepthRecipe, [recipe_path("own-depth"), "--data.options", json.dumps(given)])
    with pytest.raises(RecipeError) as caught:
        load_dense_rows(recipe.data, {"depth": MAP_KINDS["depth"]})
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert DEPTH_UNITS == ("millimetres", "metres", "inverse")


# Going on with a model of maps


@pytest.fixture
def dense_source(tiny_model, tmp_path):
    """Folder of a parallel model of normals and depth."""
    dense = [{"name": "normals", "kind": "normals", "tokenizer_config": NORMALS}]
    changes = {"dense_tasks": dense, "tasks": ["normals", "depth"], "default_task": "normals"}
    model = tiny_model(**changes, parallel=True, soft_feedback=False, depth_aux_weight=7.0)
    return save_source(model, tmp_path / "source", AiTDenseImageProcessor, map_kinds=KINDS)


def save_source(model, folder, processor, **settings):
    model.save_pretrained(folder)
    processor(do_normalize=True, image_mean=MEAN, image_std=STD, **sizes(processor), **settings).save_pretrained(folder)
    return str(folder)


def sizes(processor):
    if processor is AiTDenseImageProcessor:
        return {"size": {"height": 32, "width": 32}}
    return {"size": {"longest_edge": 32}, "pad_size": {"height": 32, "width": 32}}


def messages(monkeypatch):
    found = []
    monkeypatch.setattr(initialization.logger, "warning", found.append)
    return found


@pytest.mark.slow
def test_a_part_of_a_models_tasks_goes_on_where_it_was(dense_source, images, monkeypatch):
    said = messages(monkeypatch)
    model = build_dense_model(complete_model(DenseModelRecipe({"tasks": ["depth"]}, finetune=dense_source))).eval()
    earlier = AiTForDenseAndInstancePrediction.from_pretrained(dense_source)
    assert said == [f"{dense_source}: of its tasks, ['depth'] kept, ['normals'] left out; new: none."]
    assert model.config.tasks == ["depth"] and model.config.parallel and model.config.depth_aux_weight == 7.0
    expected = earlier.generate(images, task="depth").predicted_depth
    assert torch.equal(model.generate(images).predicted_depth, expected)
    whole = build_dense_model(complete_model(DenseModelRecipe(finetune=dense_source))).eval()
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in earlier.state_dict().items())
    assert whole.config.default_task == "normals"


def test_fields_change_and_the_rest_stays(dense_source):
    given = {"tasks": ["depth"], "depth_aux_weight": 2.0, "decoder_config": {"dropout": 0.1}}
    recipe = complete_model(DenseModelRecipe(given, finetune=dense_source))
    assert (recipe.image_mean, recipe.image_std) == (MEAN, STD)
    config = build_dense_model(recipe).config
    assert (config.depth_aux_weight, config.decoder_config.dropout) == (2.0, 0.1)
    assert config.decoder_config.hidden_size == 16
    shipped = complete_model(DenseModelRecipe({"tasks": ["depth"]}, finetune=str(TRAINING.parent / LITE)))
    assert shipped.image_mean == [0.5] * 3 and shipped.config["image_size"] == 240 and not shipped.config["dense_tasks"]


def test_a_model_to_start_from_lends_its_tokenizers(dense_source, tiny_config):
    earlier = AiTForDenseAndInstancePrediction.from_pretrained(dense_source)
    config = tiny_config().to_dict()
    names = ("backbone_config", "decoder_config", "image_size", "num_bins", "num_mask_codes", "num_objects")
    # Further entries of these dictionaries are what every configuration has.
    given = {name: getattr(tiny_config(), name) for name in names} | {"id2label": config["id2label"]}
    model = build_dense_model(DenseModelRecipe(given | {"tasks": ["depth"]}, initialize_from=dense_source))
    for name, tensor in earlier.depth_tokenizer.state_dict().items():
        assert torch.equal(model.depth_tokenizer.state_dict()[name], tensor)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["two folders", "imagefolder"])
def test_own_depth_trains(dense_source, tmp_path, layout):
    root = write_folders(tmp_path / "data", 10)
    options = {"data_dir": str(root), "cache_dir": str(tmp_path / "cache")}
    given = [recipe_path("own-depth"), "--model.finetune", dense_source, *SHORT, "--run.output", str(tmp_path / "run")]
    if layout == "imagefolder":
        lines = [{"file_name": f"images/a/{i:02}.jpg", "depth_file_name": f"depth/a/{i:02}.png"} for i in range(10)]
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
        given += ["--data.dataset", layout, "--data.train_split", "train[:80%]", "--data.eval_split", "train[80%:]"]
    folder = train_dense(load_recipe(DepthRecipe, [*given, "--data.options", json.dumps(options)]))
    model = AiTForDenseAndInstancePrediction.from_pretrained(folder)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert model.config.tasks == ["depth"] and processor["image_mean"] == MEAN and processor["size"]["height"] == 32
    card = (folder / "README.md").read_text()
    assert "- finetune: `source`" in card and "train[80%:]" in card
    if layout != "imagefolder":
        split = {"dataset": "depth_folders", "split": "train[80%:]", "options": options}
        lines = run_evaluation(EvaluationSettings([dense_source, folder], **split, panels=0))
        assert {dense_source, str(folder)} <= {line.name.split(":")[0] for line in lines}


def test_options_of_another_dataset_do_not_leak(tmp_path):
    given = [recipe_path("lite-nyu-depth"), "--data.options.data_dir", "mine", "--data.dataset", "imagefolder"]
    data = load_recipe(DepthRecipe, given).data
    assert data.options == {"data_dir": "mine"} and data.train_size == [240, 320]
    same = load_recipe(DepthRecipe, [recipe_path("lite-nyu-depth"), "--data.dataset", "nyu_depth_v2"]).data
    assert same.options == {"num_held_out": 145, "held_out_seed": 0}
    other = load_recipe(DepthRecipe, [recipe_path("own-depth"), "--data.dataset", "imagefolder"]).data
    assert (other.options, other.train_split, other.eval_split) == ({}, "train", "validation")


# Own objects


@pytest.fixture
def object_source(tiny_model, tiny_vqvae_config, tiny_decoder_config, tmp_path):
    """Folder of a model of instances of three classes."""
    masks = tiny_vqvae_config(image_size=8, downsample_ratio=4, num_codes=5, symmetric_range=True, ignore_zero=False)
    names = {0: "cat", 1: "dog", 2: "cow"}
    decoder = tiny_decoder_config(max_positions=30)
    changes = {"mask_tokenizer_config": masks, "decoder_config": decoder, "id2label": names, "tasks": ["instance"]}
    model = tiny_model(**changes, depth_tokenizer_config=None)
    return save_source(model, tmp_path / "source", AiTInstanceImageProcessor)


def write_coco(root, masks=True):
    """Five images with a dog and a fox each."""
    images, annotations = [], []
    for number in range(5):
        write_picture(root / "pictures" / f"{number}.jpg", number)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT})
        for category in (3, 8):
            left, top = 4 + category, 6 + number
            outline = [left, top, left + 20, top, left + 20, top + 16, left, top + 16]
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "area": 320}
            annotations.append(entry | {"bbox": [left, top, 20, 16], "segmentation": [outline] if masks else []})
    categories = [{"id": 3, "name": "fox"}, {"id": 8, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "mine.json").write_text(json.dumps(content))
    return {"train_annotations": str(root / "mine.json"), "train_images": str(root / "pictures")}


def own_coco(root, source, *more, masks=True):
    options = write_coco(root, masks) | {"cache_dir": str(root / "cache")}
    given = [recipe_path("own-coco"), "--model.finetune", source, *SHORT, "--run.output", str(root / "run")]
    return load_recipe(InstanceRecipe, [*given, "--data.options", json.dumps(options), *more])


@pytest.mark.slow
def test_own_classes_replace_a_models(object_source, tmp_path, monkeypatch):
    said = messages(monkeypatch)
    folder = train_instance(own_coco(tmp_path, object_source, "--optim.lr", "1e-9"))
    assert said == [f"{object_source}: of its classes, ['dog'] kept, ['cat', 'cow'] left out; new: ['fox']."]
    model, earlier = (AiTForDenseAndInstancePrediction.from_pretrained(x) for x in (folder, object_source))
    assert model.config.id2label == {0: "fox", 1: "dog"} and model.config.tasks == ["instance"]
    now, before = (x.model.decoder.token_embeddings[x.config.vocabulary.classes.rows] for x in (model, earlier))
    torch.testing.assert_close(now[1], before[1], atol=1e-6, rtol=0)
    tables = {"decoder.token_embeddings", "decoder.output_bias"}
    kept = {name: tensor for name, tensor in earlier.model.state_dict().items() if name not in tables}
    for name, tensor in kept.items():
        torch.testing.assert_close(model.model.state_dict()[name], tensor, atol=1e-6, rtol=0)
    for name, tensor in earlier.mask_tokenizer.state_dict().items():
        assert torch.equal(model.mask_tokenizer.state_dict()[name], tensor)
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_std"] == STD


@pytest.mark.slow
def test_boxes_alone_train_a_detector(object_source, tmp_path):
    wanted = ["--model.config.tasks", "[detection]"]
    folder = train_instance(own_coco(tmp_path, object_source, *wanted, masks=False))
    assert AiTForDenseAndInstancePrediction.from_pretrained(folder).config.tasks == ["detection"]
    started = build_instance_model(
        complete_model(InstanceModelRecipe({"tasks": ["detection"]}, finetune=object_source)), ["dog"]
    ).model.decoder
    earlier = AiTForDenseAndInstancePrediction.from_pretrained(object_source).model.decoder
    # Objects are 9 tokens long there, and 5 here; task 0 is detection, 1 instance.
    for number in range(3):
        learnt = earlier.position_embeddings[1, number * 9 : number * 9 + 5]
        assert torch.equal(started.position_embeddings[0, number * 5 : number * 5 + 5], learnt)
    with pytest.raises(RecipeError, match=r"Annotation .* has no segmentation.*\[detection\]"):
        train_instance(own_coco(tmp_path, object_source, "--run.output", str(tmp_path / "other"), masks=False))


# What cannot be


def test_what_finetuning_cannot_do_is_named(dense_source, object_source, tmp_path):
    with pytest.raises(RecipeError, match=r"a model for \['instance', 'detection'\].*\['depth'\].*initialize_from"):
        complete_model(DenseModelRecipe({"tasks": ["depth"]}, finetune=object_source))
    with pytest.raises(RecipeError, match=r"model\.config\.decoder_config\.dropuot"):
        complete_model(InstanceModelRecipe({"decoder_config": {"dropuot": 0.1}}, finetune=object_source))
    (Path(object_source) / "preprocessor_config.json").unlink()
    with pytest.raises(RecipeError, match=r"no preprocessor_config\.json.*model\.image_mean"):
        complete_model(InstanceModelRecipe(finetune=object_source))
    with pytest.raises(FileNotFoundError, match=r"model\.finetune nowhere"):
        complete_model(InstanceModelRecipe(finetune="nowhere"))
    both = ["--model.initialize_from", "x", "--data.options.data_dir", "x"]
    with pytest.raises(RecipeError, match=r"whole trained model: leave \['initialize_from'\] out"):
        load_recipe(DepthRecipe, [recipe_path("own-depth"), *both])
    joint = load_recipe(JointRecipe, [recipe_path("tiny-rooms-joint"), "--model.initialize_from", "null"])
    joint.model.finetune = "x"
    with pytest.raises(RecipeError, match=r"model\.finetune is not for joint training"):
        check_joint_tasks(joint)


# The plain Trainer


@pytest.mark.slow
def test_plain_trainer(dense_source, tmp_path, monkeypatch, capsys):
    script = TRAINING / "examples" / "finetune_depth_trainer.py"
    assert len(script.read_text().splitlines()) < 40
    root, output = write_folders(tmp_path / "data", 10), tmp_path / "run"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sys, "argv", [str(script), dense_source, str(root), str(output), "2"])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.count("'eval_rmse'") >= 2
    AiTForDenseAndInstancePrediction.from_pretrained(output)
