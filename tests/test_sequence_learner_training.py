"""Training on the codes of dense decoders: images alone are enough; what is measured, resumed, refused."""

import json
import re
import shutil
import sys

import pytest
import torch
import yaml
from datasets import load_dataset
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, ResNetConfig, pipeline

from transformers_ait import (
    AiTDenseImageProcessor,
    AiTForDenseAndInstancePrediction,
    AiTOutput,
    AiTPlainDenseConfig,
    AiTPlainDenseModel,
    DenseDecoderConfig,
    DenseDecoderModel,
    describe_teacher,
    load_task_model,
)
from transformers_ait.engine.ablation.ceilings import tokenizer_figures
from transformers_ait.engine.evaluation.inputs import EvaluationError
from transformers_ait.engine.recipes.reading import RecipeError, build_recipe, run_from_command_line
from transformers_ait.engine.recipes.scripts import DenseRecipe
from transformers_ait.engine.reporting.log import LOG_FILE, read_log
from transformers_ait.engine.tasks.dense import DenseTask, build_dense_model, train_dense
from transformers_ait.engine.tasks.dense_codes import ImageCodes
from transformers_ait.engine.tasks.dense_data import DenseRows
from transformers_ait.outputs_ait import DenseMaps
from transformers_ait.teacher_loading_ait import weights_fingerprint

CLASSES = ["wall", "floor"]
TASKS = {"depth": "depth", "normals": "normals", "semantic": "classes"}
SIZE, CODES = 32, 8
# Of the learner, and of each dense decoder, all different.
LEARNER = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
TEACHERS = {
    "depth": {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    "normals": {"image_mean": [0.2, 0.3, 0.4], "image_std": [0.1, 0.2, 0.3]},
    "semantic": {},
}
DECODER = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "max_positions": 16,
    "dropout": 0.0,
    "drop_path_rate": 0.0,
    "initializer_range": 0.2,
}


def backbone():
    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_indices=[1, 2])


@pytest.fixture(scope="module")
def dense_decoders(tmp_path_factory):
    """Folders of a dense decoder of each task with seeded weights, whose encoders tell codes apart."""
    root, folders = tmp_path_factory.mktemp("dense_decoders"), {}
    torch.manual_seed(0)
    entries = [{"name": name, "kind": kind} for name, kind in TASKS.items()]
    entries[2]["class_names"] = CLASSES
    config = AiTPlainDenseConfig(backbone_config=backbone(), dense_tasks=entries, image_size=SIZE, hidden_size=8)
    AiTPlainDenseModel(config).save_pretrained(root / "teacher")
    for task in TASKS:
        teacher = load_task_model(str(root / "teacher"), task=task)
        fields = describe_teacher(teacher, SIZE) | TEACHERS[task] | {"backbone_config": backbone()}
        fields |= {"downsample_ratio": 8, "num_codes": CODES, "code_dim": 4, "hidden_size": 8, "num_layers": 1}
        fields |= {"num_attention_heads": 2, "intermediate_size": 16, "num_groups": 2, "initializer_range": 0.2}
        torch.manual_seed(1)
        model = DenseDecoderModel(DenseDecoderConfig(**fields))
        model.load_head(teacher)
        with torch.no_grad():
            model.quantizer.codebook.normal_()
            model.encoder.compression.projection.weight.mul_(30)
        model.save_pretrained(root / task)
        folders[task] = str(root / task)
    return folders


def recipe_of(dense_decoders, pictures, folder, **config):
    backbone_config = backbone().to_dict() | {"out_indices": [1, 2]}
    kept = ("model_type", "embedding_size", "hidden_sizes", "depths", "layer_type", "out_indices")
    entries = [{"name": name, "kind": TASKS[name]} for name in dense_decoders]
    return {
        "model": {
            "tokenizers": dict(dense_decoders),
            **LEARNER,
            "config": {
                "dense_tasks": entries,
                "feature_stride": 8,
                "feature_pyramid": True,
                "backbone_config": {name: backbone_config[name] for name in kept},
                "decoder_config": DECODER,
                "parallel": True,
                "num_bins": 1,
                "num_mask_codes": 1,
            }
            | config,
        },
        "data": {
            "dataset": "imagefolder",
            "options": {"data_dir": str(pictures), "cache_dir": str(folder / "cache")},
            "eval_split": "train[:3]",
            "eval_batch": 2,
        },
        "optim": {"lr": 1e-3, "schedule": {"name": "constant"}},
        "run": {
            "output": str(folder / "run"),
            "steps": 2,
            "batch_size": 4,
            "log_every": 1,
            "checkpoint_every": 1,
            "panels": 1,
        },
    }


def built(values):
    return build_recipe(DenseRecipe, values, "test")


def train_of(values, **run):
    return train_dense(built(values | {"run": values["run"] | run}))


@pytest.fixture(scope="module")
def trained(dense_decoders, pictures, tmp_path_factory):
    """Folder of a learner that was trained on pictures alone."""
    return train_of(recipe_of(dense_decoders, pictures, tmp_path_factory.mktemp("trained")), ema=0.9)


@pytest.mark.slow
def test_pictures_and_dense_decoders_are_enough(dense_decoders, trained):
    log = read_log(trained.parent / LOG_FILE)
    assert {f"{task}_{part}" for task in TASKS for part in ("ce", "aux")} <= log[0].keys()
    figures = json.loads((trained.parent / "metrics.json").read_text())
    assert {"depth_agreement_rmse", "normals_agreement_mean_angle", "semantic_agreement_miou"} <= figures.keys()
    assert "depth_rmse" not in figures, "there are no labels to measure against"
    model = AiTForDenseAndInstancePrediction.from_pretrained(trained)
    assert model.config.vocabulary.codes("depth").size == CODES and model.config.image_size == SIZE
    for task, folder in dense_decoders.items():
        stored = load_file(f"{folder}/model.safetensors")
        own = model.tokenizer(task).state_dict()
        assert all(torch.equal(own[name], stored[name]) for name in own)
        assert not any(name.startswith("encoder.") for name in own)
    assert (trained.parent / "panels" / "step-00000002.png").is_file()


@pytest.mark.slow
def test_a_dense_decoder_is_no_ceiling(trained):
    with pytest.raises(EvaluationError, match="reads images: it reconstructs no truth"):
        tokenizer_figures(trained, "depth", {"dataset": "synthetic_rooms"})


@pytest.mark.slow
def test_one_folder_serves_all_tasks(trained):
    image = Image.effect_noise((48, 32), 60).convert("RGB")
    where = {"model": str(trained), "device": "cpu"}
    assert pipeline("depth-estimation", **where)(image)["predicted_depth"].shape == (32, 48)
    own = AutoImageProcessor.from_pretrained(trained / "semantic")
    found = pipeline("image-segmentation", image_processor=own, **where)(image, subtask="semantic")
    assert {entry["label"] for entry in found} <= set(CLASSES)
    assert list(own.image_mean) == LEARNER["image_mean"] and own.do_normalize
    image.save(trained / "photo.jpg")
    text = (trained / "README.md").read_text()
    assert "dense decoder" in text and "linear bins" not in text and "agreement_" in text
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        exec(re.search("```python\n(.*?)\n```", text, re.S)[1], names)
    assert names["depth"].shape == (32, 48) and names["maps"]["normals"].shape == (3, 32, 48)


def task_of(values, rows_of=None):
    """What a run trains, without the run."""
    recipe = built(values)
    model = build_dense_model(recipe.model)
    found = {task: DenseDecoderModel.from_pretrained(folder).eval() for task, folder in recipe.model.tokenizers.items()}
    return model, DenseTask(model, rows_of, rows_of, recipe, ImageCodes(found)), found


@pytest.mark.slow
def test_learner_and_teachers_see_the_image_as_each_expects_it(dense_decoders, pictures, tmp_path):
    rows = DenseRows(load_dataset("imagefolder", data_dir=str(pictures), split="train", cache_dir=str(tmp_path)), {})
    model, task, found = task_of(recipe_of(dense_decoders, pictures, tmp_path), rows)
    seen = {}
    forward = model.forward

    def spied(*args, **kwargs):
        seen.update(kwargs, pixels=args[0])
        return forward(*args, **kwargs)

    model.forward = spied
    batch = task.collate([task.sample(index) for index in range(2)])
    loss, _ = task.loss(model, batch, torch.ones(3))
    assert loss.isfinite() and task.weight(batch).tolist() == [2, 2, 2]
    image = batch["images"]
    assert 0 <= image.min() < 0.1 and 0.9 < image.max() <= 1
    torch.testing.assert_close(seen["pixels"], (image - 0.5) / 0.5)
    for name, decoder in found.items():
        values = TEACHERS[name] or {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
        mean, std = (torch.tensor(values[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
        assert torch.equal(seen["dense_codes"][name], decoder.encode((image - mean) / std))
    other = {name: decoder.encode(seen["pixels"]) for name, decoder in found.items()}
    assert any(not torch.equal(other[name], seen["dense_codes"][name]) for name in found)


@pytest.mark.slow
@torch.no_grad()
def test_agreement_is_with_what_the_dense_decoder_itself_predicts(dense_decoders, pictures, tmp_path):
    rows = DenseRows(load_dataset("imagefolder", data_dir=str(pictures), split="train", cache_dir=str(tmp_path)), {})
    _, task, found = task_of(recipe_of(dense_decoders, pictures, tmp_path), rows)
    images = [rows.image(index) for index in (0, 1)]
    maps = task._dense_decoders_maps(images, torch.device("cpu"))
    sizes = [tuple(image.shape[1:]) for image in images]
    for name, decoder in found.items():
        settings = TEACHERS[name] | {"do_normalize": bool(TEACHERS[name]), "size": {"height": SIZE, "width": SIZE}}
        processor = AiTDenseImageProcessor(map_kinds={name: TASKS[name]}, **settings)
        views = processor(images, return_tensors="pt")["pixel_values"]
        native = decoder.config.kind.from_tokenizer(decoder.decode(decoder.encode(views.flatten(0, 1))))
        output = AiTOutput(dense_maps=DenseMaps({name: native.unflatten(0, views.shape[:2])}))
        for mine, theirs in zip(maps, processor.post_process_dense(output, sizes), strict=True):
            if name == "semantic":
                assert (mine[name] == theirs[name]).float().mean() > 0.99
            else:
                torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_labels_of_a_column_are_measured_against_and_not_trained_on(dense_decoders, tmp_path):
    options = {"height": 32, "width": 40, "num_train": 4, "num_validation": 2, "num_test": 0}
    values = recipe_of({"depth": dense_decoders["depth"]}, tmp_path, tmp_path, parallel=False, soft_feedback=False)
    data = {"dataset": "synthetic_rooms", "options": options | {"cache_dir": str(tmp_path / "cache")}}
    values["data"] = data | {"columns": {"depth": "depth"}}
    folder = train_of(values)
    figures = json.loads((folder.parent / "metrics.json").read_text())
    assert {"rmse", "agreement_rmse"} <= figures.keys() and figures["rmse"] != figures["agreement_rmse"]


@pytest.mark.slow
def test_a_resumed_run_goes_on_to_the_same_weights(dense_decoders, pictures, tmp_path):
    whole = load_file(train_of(recipe_of(dense_decoders, pictures, tmp_path / "whole")) / "model.safetensors")
    values = recipe_of(dense_decoders, pictures, tmp_path / "parts")
    model = train_of(values)
    shutil.rmtree(model)
    shutil.rmtree(tmp_path / "parts" / "run" / "checkpoints" / "step-00000002")
    again = load_file(train_of(values, resume=True) / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.fixture
def another(dense_decoders, tmp_path):
    """A dense decoder of depth that was trained a little longer, in a folder of its own."""
    model = DenseDecoderModel.from_pretrained(dense_decoders["depth"])
    with torch.no_grad():
        model.quantizer.codebook.add_(0.05)
    model.save_pretrained(tmp_path / "another")
    return str(tmp_path / "another")


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_dense_decoder(dense_decoders, pictures, trained, another):
    values = yaml.safe_load((trained.parent / "recipe.yaml").read_text())
    known = values["model"]["dense_decoder_fingerprints"]
    first = DenseDecoderModel.from_pretrained(dense_decoders["depth"])
    assert known["depth"] == weights_fingerprint(first) and known.keys() == TASKS.keys()
    values["model"]["tokenizers"]["depth"] = another
    with pytest.raises(RecipeError, match="dense decoder of 'depth' has changed: its fingerprint"):
        train_of(values, resume=True)
    values["model"]["dense_decoder_fingerprints"] = {}
    with pytest.raises(RecipeError, match=r"other values of model\.dense_decoder_fingerprints\.depth"):
        train_of(values, resume=True)


@pytest.mark.slow
def test_a_trained_learner_is_finetuned_with_its_own_dense_decoders(
    dense_decoders, pictures, trained, another, tmp_path
):
    values = recipe_of(dense_decoders, pictures, tmp_path)
    values["model"] = {"finetune": str(trained), "tokenizers": dict(dense_decoders), "config": {}}
    folder = train_of(values, steps=1)
    assert AiTForDenseAndInstancePrediction.from_pretrained(folder).config.feature_pyramid
    values["model"]["tokenizers"] |= {"depth": another}
    with pytest.raises(RecipeError, match="another dense decoder of 'depth': the code vectors are others"):
        train_of(values, resume=False, output=str(tmp_path / "other"))
    model = DenseDecoderModel.from_pretrained(dense_decoders["depth"])
    model.config.teacher_fingerprint = "0" * 64
    model.save_pretrained(tmp_path / "stranger")
    values["model"]["tokenizers"] |= {"depth": str(tmp_path / "stranger")}
    with pytest.raises(RecipeError, match="the teacher has changed, its fingerprint was"):
        train_of(values, output=str(tmp_path / "other"))
    del values["model"]["tokenizers"]
    with pytest.raises(RecipeError, match=r"model\.tokenizers\.depth is missing: name the folder of the dense decoder"):
        train_of(values, output=str(tmp_path / "other"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes, words",
    [
        ({"tokenizers": {"depth": "{normals}"}}, ["model.tokenizers.depth", "kind 'normals'", "kind 'depth'"]),
        ({"tokenizers": {"depth": "{trained}"}}, ["model.tokenizers.depth", "no encoded mapping", "only what decodes"]),
        ({"tokenizers": {"depth": "nowhere"}}, ["model.tokenizers.depth nowhere", "config.json is missing"]),
        ({"config": {"image_size": 16}}, ["image_size of the depth tokenizer must not exceed", "16, got 32"]),
        ({"config": {"num_depth_codes": 4}}, ["num_depth_codes is 4, but the depth tokenizer has 8 codes"]),
        ({"dense_decoder_fingerprints": {"depth": "00"}}, ["dense decoder of 'depth' has changed"]),
        ({"plain": True}, ["plain models have no tokens"]),
    ],
)
def test_bad_recipes_end_with_one_line(
    dense_decoders, pictures, trained, tmp_path, monkeypatch, capsys, changes, words
):
    values = recipe_of({"depth": dense_decoders["depth"]}, pictures, tmp_path)
    for name, value in changes.items():
        given = values["model"].get(name)
        values["model"][name] = {**given, **value} if isinstance(given, dict) else value
    places = {"{normals}": dense_decoders["normals"], "{trained}": str(trained)}
    values["model"]["tokenizers"] = {k: places.get(v, v) for k, v in values["model"]["tokenizers"].items()}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setattr(sys, "argv", ["run", str(tmp_path / "r.yaml")])
    with pytest.raises(SystemExit):
        run_from_command_line(DenseRecipe, train_dense, "help")
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not (tmp_path / "run").exists()
