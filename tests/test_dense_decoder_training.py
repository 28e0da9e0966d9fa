"""Training of dense decoders by a teacher, without labels: a folder of pictures is enough."""

import json
import re
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from transformers import AutoModel, ResNetConfig

from transformers_ait import AiTDenseImageProcessor, AiTPlainDenseConfig, AiTPlainDenseModel, DenseDecoderModel
from transformers_ait.engine.evaluation.inputs import EvaluationError, EvaluationSettings
from transformers_ait.engine.evaluation.report import run_evaluation
from transformers_ait.engine.recipes.dense_decoder import DenseDecoderModelRecipe, DenseDecoderRecipe
from transformers_ait.engine.recipes.reading import RecipeError, build_recipe, run_from_command_line
from transformers_ait.engine.reporting.log import LOG_FILE, read_log
from transformers_ait.engine.tasks.dense_decoder import build_dense_decoder, train_dense_decoder
from transformers_ait.engine.tasks.dense_decoder_start import fit_scales
from transformers_ait.teacher_loading_ait import fingerprint, load_task_model

TASKS = ({"name": "depth", "kind": "depth"}, {"name": "semantic", "kind": "classes", "class_names": ["wall", "floor"]})
CONFIG = {
    "downsample_ratio": 8,
    "num_codes": 8,
    "code_dim": 4,
    "hidden_size": 8,
    "num_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_groups": 2,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Folder of a plain decoder with random weights, normalised as its image processor says."""
    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_indices=[1, 2]
    )
    config = AiTPlainDenseConfig(backbone_config=backbone, dense_tasks=TASKS, image_size=32, hidden_size=8)
    folder = tmp_path_factory.mktemp("teacher")
    AiTPlainDenseModel(config).save_pretrained(folder)
    normalization = {"do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    AiTDenseImageProcessor(
        map_kinds={"depth": "depth"}, size={"height": 32, "width": 32}, **normalization
    ).save_pretrained(folder)
    return folder


def recipe_of(teacher, pictures, folder, **model):
    return {
        "model": {"teacher": str(teacher), "backbone_from_teacher": True, "config": CONFIG, **model},
        "data": {
            "dataset": "imagefolder",
            "options": {"data_dir": str(pictures), "cache_dir": str(folder / "cache")},
            "eval_split": "train[:3]",
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


def train_of(values, **run):
    return train_dense_decoder(build_recipe(DenseDecoderRecipe, values | {"run": values["run"] | run}, "test"))


@pytest.fixture(scope="module")
def trained(teacher, pictures, tmp_path_factory):
    """Folder of a model that was trained on pictures alone."""
    root = tmp_path_factory.mktemp("trained")
    values = recipe_of(teacher, pictures, root, teacher_task="semantic") | {"restart": {"every": 1, "until": 1.0}}
    return train_of(values)


@pytest.mark.slow
def test_a_folder_of_pictures_and_a_teacher_are_enough(teacher, trained):
    log = read_log(trained.parent / LOG_FILE)
    assert {"features", "codebook", "commitment", "codes_used", "perplexity"} <= log[0].keys()
    figures = json.loads((trained.parent / "metrics.json").read_text())
    assert {"agreement_miou", "feature_error", "codes_used", "perplexity"} <= figures.keys()
    assert not {"miou", "teacher_miou"} & figures.keys(), "there are no labels to measure against"
    assert 1 <= figures["perplexity"] <= 8 and 0 < figures["codes_used"] <= 1
    model = AutoModel.from_pretrained(trained)
    assert isinstance(model, DenseDecoderModel) and model.config.class_names == ["wall", "floor"]
    assert model.config.teacher_name == str(teacher) and list(model.config.image_mean) == [0.5] * 3
    known = load_task_model(str(teacher), task="semantic")
    assert model.config.teacher_fingerprint == fingerprint(known)
    for name, weight in model.head.model.state_dict().items():
        assert torch.equal(weight, known.model.state_dict()[name]), "the task head is frozen"
    first = "embedder.embedder.convolution.weight"
    assert not torch.equal(model.encoder.backbone.state_dict()[first], known.backbone.state_dict()[first])
    Image.new("RGB", (48, 32)).save(trained / "photo.jpg")
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        exec(re.search("```python\n(.*?)\n```", (trained / "README.md").read_text(), re.S)[1], names)
    assert names["maps"].shape[1:] == (2, 32, 32)


def test_a_run_is_not_resumed_with_another_teacher(teacher, trained, tmp_path):
    values = yaml.safe_load((trained.parent / "recipe.yaml").read_text())
    assert values["model"]["teacher_fingerprint"] == fingerprint(load_task_model(str(teacher)))
    other = AiTPlainDenseModel.from_pretrained(teacher)
    with torch.no_grad():
        next(other.backbone.parameters()).add_(1e-3)
    other.save_pretrained(tmp_path)
    values["model"]["teacher"] = str(tmp_path)
    with pytest.raises(RecipeError, match="has changed: its fingerprint"):
        train_of(values, resume=True)
    values["model"]["teacher_fingerprint"] = None
    with pytest.raises(RecipeError, match="other values of .*model.teacher_fingerprint"):
        train_of(values, resume=True)


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_training_starts_with_scales_and_codes_that_fit(teacher, update):
    known = load_task_model(str(teacher), task="semantic")
    shape = {"hidden_size": 16, "num_codes": 32, "codebook_update": update}
    recipe = DenseDecoderModelRecipe(str(teacher), backbone_from_teacher=True, config=CONFIG | shape)
    model = build_dense_decoder(recipe, known).eval()
    # Textures of several scales, so that positions differ.
    images = F.interpolate(torch.randn(24, 3, 8, 8), size=32) + torch.randn(24, 3, 32, 32) / 4
    features = known.features(images)

    def figures():
        latent = model.encoder.pyramid(model.encoder.backbone(images).feature_maps, model.encoder.size)
        vectors = model.encoder(images).flatten(0, 2)
        restored = model(images, teacher_features=features).features
        spread = [
            (mine.std((0, 2, 3)) / true.std((0, 2, 3))).mean() for mine, true in zip(restored, features, strict=True)
        ]
        offset = [(mine - true).mean((0, 2, 3)).abs().max() for mine, true in zip(restored, features, strict=True)]
        used = model.encode(images).unique().numel() / 32
        return torch.tensor([latent.std(), vectors.std(0).mean(), vectors.mean(0).abs().max(), *spread, *offset, used])

    expected = torch.tensor([1, 1, 0, 0.5, 0, 1])
    with torch.no_grad():
        assert ((figures() - expected).abs() > 0.02).sum() >= 5, "nothing fits by itself"
        fit_scales(model, images, features)
        assert (figures()[:-1] - expected[:-1]).abs().max() < 0.01
        assert figures()[-1] > 0.8
    assert set(model.state_dict()) == set(build_dense_decoder(recipe, known).state_dict())


@pytest.mark.slow
def test_evaluation_by_folder_is_that_of_the_training(teacher, pictures, tmp_path):
    values = recipe_of(teacher, pictures, tmp_path, teacher_task="depth")
    options = {"height": 36, "width": 40, "num_train": 4, "num_validation": 3, "num_test": 0}
    options["cache_dir"] = str(tmp_path / "cache")
    values["data"] = {"dataset": "synthetic_rooms", "options": options, "columns": {"depth": "depth"}}
    folder = train_of(values)
    expected = json.loads((folder.parent / "metrics.json").read_text())
    rows = run_evaluation(EvaluationSettings([folder], split="validation", options=options, panels=0, batch_size=2))
    assert [row.name.rpartition(": ")[2] for row in rows] == ["dense decoder", "constant", "constant, median"]
    assert rows[0].metrics == pytest.approx({name: expected[name] for name in rows[0].metrics}, rel=1e-5)
    DenseDecoderModel.from_pretrained(folder).without_encoder().save_pretrained(tmp_path / "decoding")
    with pytest.raises(EvaluationError, match="makes no codes of images"):
        run_evaluation(EvaluationSettings([tmp_path / "decoding"], split="validation", options=options))


@pytest.mark.slow
def test_a_resumed_run_goes_on_to_the_same_weights(teacher, pictures, tmp_path):
    whole = train_of(recipe_of(teacher, pictures, tmp_path / "whole"))
    values = recipe_of(teacher, pictures, tmp_path / "parts")
    train_of(values)
    shutil.rmtree(tmp_path / "parts" / "run" / "checkpoints" / "step-00000002")
    again = train_of(values, resume=True)
    first, second = (DenseDecoderModel.from_pretrained(folder).state_dict() for folder in (whole, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"teacher": "nowhere"}, ["model.teacher 'nowhere' cannot be loaded"]),
        ({"teacher_task": "heights"}, ["model.teacher", "'heights'", "'semantic'"]),
        ({"config": CONFIG | {"image_size": 48}}, ["image_size 32"]),
        ({"config": CONFIG | {"num_channels": 1}}, ["model.config must leave ['num_channels'] out"]),
        ({"backbone_weights": "x.pth"}, ["leave backbone_weights and config"]),
        ({"image_mean": [0.5] * 3}, ["image_mean and image_std must both be given"]),
    ],
)
def test_bad_recipes_end_with_one_line(teacher, pictures, tmp_path, monkeypatch, capsys, changes, words):
    values = recipe_of(teacher, pictures, tmp_path)
    values["model"] |= changes
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setattr(sys, "argv", ["run", str(tmp_path / "r.yaml")])
    with pytest.raises(SystemExit):
        run_from_command_line(DenseDecoderRecipe, train_dense_decoder, "help")
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not (tmp_path / "run").exists()
