"""UniPixTask's configurations and recipes: the paper's sizes, settings and tables, and models that they build."""

import dataclasses
import functools
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import PreTrainedConfig

from transformers_ait import (
    AiTConfig,
    AiTForDenseAndInstancePrediction,
    AiTPlainDenseConfig,
    DenseDecoderConfig,
    DenseDecoderModel,
)
from transformers_ait.data import ADE20K_CLASSES
from transformers_ait.engine.loop.processes import number_of_steps
from transformers_ait.engine.loop.schedules import make_schedule
from transformers_ait.engine.recipes.dense_decoder import DenseDecoderRecipe
from transformers_ait.engine.recipes.reading import build_config, load_recipe
from transformers_ait.engine.recipes.scripts import DenseRecipe
from transformers_ait.engine.recipes.tokenizers import with_tokenizer
from transformers_ait.teacher_loading_ait import model_class_of
from transformers_ait.teachers_ait import TASK_MODELS

ROOT = Path(__file__).parents[1]
HUB_CONFIGS, RECIPES = ROOT / "hub_configs", ROOT / "training" / "recipes"
NAMES = ("ade20k", "nyu-normals", "nyu-depth")
# Of the paper: task, kind, side, pixels per code (text), code length (tables 9 to 11), codes (text), rate, clip.
PUBLISHED = {
    "ade20k": ("semantic", "classes", 640, 32, 16, 20, 6e-5, None),
    "nyu-normals": ("normals", "normals", 480, 16, 64, 30, 3.6e-4, 0.1),
    "nyu-depth": ("depth", "depth", 480, 16, 64, 30, 6e-4, None),
}
# Rows of tables 1 to 3: as the paper's text has them, and the card's.
TABLES = {
    "ade20k": {
        "Dense Decoder (Ours) Swin-B 640×640": "50.5 52.0",
        "UniPixTask (Ours) Swin-B 640×640": "48.7 50.5",
        "Baseline Swin-B 640×640": "41.4 -",
        "MaskFormer (Cheng et al., 2021) Swin-B 640×640": "52.7 53.9",
    },
    "nyu-normals": {
        "Dense Decoder (Ours)": "16.7 9.4 24.7 55.8 75.7 82.8",
        "UniPixTask (Ours)": "17.1 9.8 25.2 54.6 75.0 82.2",
        "Baseline": "48.3 47.1 54.5 6.6 19.9 29.4",
        "EAU (Bae et al., 2021)": "14.9 7.5 23.5 62.2 79.3 85.2",
    },
    "nyu-depth": {
        "Dense Decoder (Ours) Swin-B": "0.888 0.985 0.997 0.116 0.386",
        "UniPixTask (Ours) Swin-B": "0.864 0.979 0.995 0.126 0.414",
        "Baseline Swin-B": "0.365 0.627 0.798 0.374 1.163",
        "AdaBins (Bhat et al., 2021) EfficientNet-B5": "0.903 0.984 0.997 0.103 0.364",
    },
}
# Tables 4 and 5: mIoU by code length, of codebooks of 256, 1024 and 4096.
CODEBOOKS = {
    "dense-decoder": {16: "49.1 50.5 51.3", 64: "48.3 49.2 49.4", 256: "47.1 48.4 48.0"},
    "unipixtask": {16: "48.5 48.7 48.5", 64: "45.2 47.1 46.7", 256: "44.8 46.1 46.5"},
}
FOLDERS = [f"{kind}-swin-base-{name}" for kind in CODEBOOKS for name in NAMES]
COMMON_KEYS = {"model_type", "architectures", "id2label", "label2id"}


def read_config(folder):
    return json.loads((HUB_CONFIGS / folder / "config.json").read_text())


def classes_of(folder):
    if folder.startswith("dense-decoder"):
        return DenseDecoderConfig, DenseDecoderModel
    return AiTConfig, AiTForDenseAndInstancePrediction


def load(folder):
    return classes_of(folder)[0].from_pretrained(HUB_CONFIGS / folder)


@functools.cache
def build(folder):
    with torch.device("meta"):
        return classes_of(folder)[1](load(folder))


def count(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def card(folder):
    return (HUB_CONFIGS / folder / "README.md").read_text()


def card_rows(folder):
    """Cells of every row of the card's tables by the first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card(folder).splitlines() if "|" in line]
    return {first: cells for first, *cells in rows}


def recipe(kind, name):
    """A recipe of UniPixTask with made-up values for what the command line has to give."""
    path = RECIPES / f"{kind}-base-{name}.yaml"
    missing = [
        f"--{section}.{key}"
        for section, values in yaml.safe_load(path.read_text()).items()
        for key, value in [*values.items(), *((f"options.{k}", v) for k, v in values.get("options", {}).items())]
        if isinstance(value, str) and value.startswith("???")
    ]
    given = [word for key in missing for word in (key, "given")]
    return load_recipe(DenseDecoderRecipe if kind == "dense-decoder" else DenseRecipe, [str(path), *given])


def settings(config):
    """What of a configuration is a setting."""
    values = json.loads(config.to_json_string(use_diff=False))
    for name in ("architectures", "transformers_version", "_name_or_path", "dtype"):
        for part in (values, *(value for value in values.values() if isinstance(value, dict))):
            part.pop(name, None)
    return values


def tokenizer_config(folder):
    config = load(folder)
    return config if folder.startswith("dense-decoder") else config.dense[config.default_task].tokenizer_config


@pytest.mark.parametrize("folder", FOLDERS)
def test_keys_are_complete_and_known(folder):
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    config = read_config(folder)
    own = {field.name for field in dataclasses.fields(classes_of(folder)[0])} - inherited
    # Named by whoever trains: which weights the head is of.
    unnamed = {"num_channels", "teacher_name", "teacher_revision", "teacher_fingerprint", "teacher_task"}
    assert set(config) - own - COMMON_KEYS == set() and own - set(config) <= unnamed


@pytest.mark.parametrize("folder", FOLDERS)
def test_sizes_are_the_papers(folder):
    task, kind, side, stride, code_dim, codes, *_ = PUBLISHED[folder.partition("-base-")[2]]
    config = tokenizer_config(folder)
    assert (config.map_kind, config.image_size, config.downsample_ratio) == (kind, side, stride)
    assert (config.grid_size, config.code_dim, config.num_codes) == (codes, code_dim, 1024)
    assert (config.hidden_size, config.num_layers, config.num_attention_heads) == (512, 3, 8)
    assert (config.intermediate_size, config.dropout, config.codebook_update) == (2048, 0.1, "gradient")
    assert (config.codebook_weight, config.commitment_weight, config.relative_features) == (1, 1, False)
    backbone = load(folder).backbone_config
    swin = (backbone.embed_dim, list(backbone.depths), list(backbone.num_heads), backbone.window_size)
    assert swin == (128, [2, 2, 18, 2], [4, 8, 16, 32], 12) and backbone.out_features[-1] == "stage4"
    if kind == "classes":
        assert config.class_names == list(ADE20K_CLASSES)
    if folder.startswith("unipixtask"):
        solver = load(folder)
        decoder = solver.decoder_config
        assert (decoder.num_decoder_layers, decoder.num_encoder_layers, decoder.dropout) == (6, 0, 0.1)
        assert (decoder.hidden_size, decoder.intermediate_size, decoder.num_attention_heads) == (512, 2048, 8)
        assert solver.tasks == [task] and solver.sequence_length(task) == codes**2 and not config.has_encoder
        switches = solver.soft_feedback, solver.soft_decode, solver.parallel, solver.top_p, solver.feature_pyramid
        assert switches == (False, False, False, 0, True)


@pytest.mark.parametrize("folder", FOLDERS)
def test_cards_count_what_is_built(folder):
    model, rows = build(folder), card_rows(folder)
    dense = folder.startswith("dense-decoder")
    tokenizer = model if dense else model.tokenizer(model.config.default_task)
    whole = model.encoder if dense else model.model
    expected = {"backbone, Swin-B": whole.backbone, "feature pyramid": whole.pyramid, "total": model}
    expected |= {"codebook": tokenizer.quantizer, "decoded mapping": tokenizer.decoder}
    expected |= {"task head, frozen": tokenizer.head}
    expected |= {"compression": whole.compression} if dense else {"encoder, in and out": whole.encoder}
    expected |= {} if dense else {"token decoder": whole.decoder}
    assert {part: rows[part] for part in expected} == {part: [f"{count(x):,}"] for part, x in expected.items()}
    assert count(model) == sum(count(module) for part, module in expected.items() if part != "total")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_features_are_the_teachers(name):
    config = load(f"dense-decoder-swin-base-{name}")
    model = build(f"dense-decoder-swin-base-{name}")
    teacher_config = type(model.head.model.config).from_dict(config.teacher_config)
    with torch.device("meta"), torch.no_grad():
        teacher = TASK_MODELS[teacher_config.model_type](model_class_of(teacher_config)(teacher_config))
        found = teacher.features(torch.empty(1, 3, config.image_size, config.image_size))
    assert [list(x.shape[1:]) for x in found] == config.feature_shapes
    # The encoded mapping's backbone can start as a copy of the teacher's.
    shapes = {key: x.shape for key, x in teacher.backbone.state_dict().items()}
    assert shapes == {key: x.shape for key, x in model.encoder.backbone.state_dict().items()}


@pytest.mark.parametrize("folder", FOLDERS)
def test_cards_quote_the_published_tables(folder):
    kind, _, name = folder.partition("-swin-base-")
    rows = [cells for first, cells in card_rows(folder).items() if ", published, " in first]
    assert rows == [row.split() for row in TABLES[name].values()]
    text = " ".join(card(folder).split())
    assert "Unifying Pixel-Labeling Vision Tasks by Sequence Modeling" in text and "holds no weights" in text
    assert f"training/recipes/{kind}-base-{name}.yaml" in text
    if name == "ade20k":
        assert {length: card_rows(folder)[str(length)] for length in (16, 64, 256)} == {
            length: row.split() for length, row in CODEBOOKS[kind].items()
        }


def test_quoted_tables_are_those_of_the_papers_text(shared_dir):
    path = shared_dir / "reference" / "unipixtask_paper.txt"
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    text = path.read_text().replace("\n", " ")
    for rows in TABLES.values():
        for method, row in rows.items():
            assert f"{method} {row}" in text
    for rows in CODEBOOKS.values():
        for length, row in rows.items():
            assert re.search(rf"{length}\s*{row}", text)


@pytest.mark.parametrize("name", NAMES)
def test_recipes_build_the_configurations(name):
    task = PUBLISHED[name][0]
    dense, solver = load(f"dense-decoder-swin-base-{name}"), load(f"unipixtask-swin-base-{name}")
    hub = read_config(f"dense-decoder-swin-base-{name}")
    values = recipe("dense-decoder", name).model.config
    # What a recipe takes from its teacher.
    taken = {"teacher_config", "teacher_name", "teacher_task", "feature_shapes", "map_kind", "image_mean", "image_std"}
    taken |= {"image_size", "id2label", "backbone_config"}
    fields = {key: hub[key] for key in taken & hub.keys()} | values
    assert settings(build_config(DenseDecoderConfig, fields, "recipe")) == settings(dense)
    tokenizer = tokenizer_config(f"unipixtask-swin-base-{name}")
    chosen = with_tokenizer(recipe("unipixtask", name).model.config, task, tokenizer, "x")
    ours, theirs = settings(build_config(AiTConfig, chosen, "recipe")), settings(solver)
    for values in (ours, theirs):
        values.pop("label2id", None)
    assert ours == theirs
    if name != "ade20k":
        teacher = recipe("plain", name)
        described = settings(build_config(AiTPlainDenseConfig, teacher.model.config, "teacher"))
        assert described == settings(AiTPlainDenseConfig.from_dict(dense.teacher_config))
        assert recipe("dense-decoder", name).model.teacher == f"{teacher.run.output}/model"
    assert recipe("unipixtask", name).model.tokenizers == {task: f"runs/dense-decoder-base-{name}/model"}


@pytest.mark.parametrize("kind", CODEBOOKS)
@pytest.mark.parametrize("name", NAMES)
def test_settings_are_the_papers(kind, name):
    chosen, (*_, rate, clip) = recipe(kind, name), PUBLISHED[name]
    assert (chosen.optim.lr, chosen.optim.clip, chosen.optim.weight_decay) == (rate, clip, 0.01)
    assert (chosen.run.batch_size, chosen.augmentation.flip) == (16, 0.5)
    assert chosen.augmentation.colour == (0.5 if name == "nyu-normals" else 0.0)
    assert chosen.data.dataset == ("ade20k" if name == "ade20k" else "nyu_depth_v2")
    schedule = make_schedule(chosen.optim.schedule, number_of_steps(chosen.run, 1))
    last = number_of_steps(chosen.run, 1)
    if name == "ade20k":
        assert chosen.optim.schedule.warmup_steps == 1500 and schedule(750) < schedule(1500) > schedule(5000)
        assert rate * schedule(last) == pytest.approx(1e-6, rel=1e-4)
    else:
        assert schedule(0) == schedule(last) == 1
