"""Recipes: reading them, those of the project, and that the published ones say what was published."""

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate import PartialState
from PIL import Image

from transformers_ait import AiTConfig, AiTForDenseAndInstancePrediction, AiTVQVAEConfig, AiTVQVAEModel
from transformers_ait.configuration_ait import COCO_CLASSES
from transformers_ait.configuration_plain_dense import AiTPlainDenseConfig
from transformers_ait.configuration_unipixtask import DenseDecoderConfig
from transformers_ait.data import NYU40_CLASSES
from transformers_ait.data.rooms_scene import SYNTHETIC_ROOMS_SEMANTIC_CLASSES
from transformers_ait.engine.loop.processes import accumulation_steps, micro_batch_size, number_of_steps
from transformers_ait.engine.loop.run_folder import check_run_folder
from transformers_ait.engine.loop.schedules import learning_rate, make_schedule
from transformers_ait.engine.recipes.dense_decoder import DenseDecoderRecipe
from transformers_ait.engine.recipes.joint import JointRecipe
from transformers_ait.engine.recipes.reading import (
    RecipeError,
    build_config,
    build_recipe,
    describe_recipe,
    load_recipe,
    recipe_dict,
    run_from_command_line,
)
from transformers_ait.engine.recipes.scripts import DenseRecipe, DepthRecipe, InstanceRecipe, VQVAERecipe
from transformers_ait.engine.recipes.sections import OptimRecipe, RunRecipe
from transformers_ait.engine.recipes.tokenizers import _tokenized_kinds, _tokenizer_fields, with_tokenizer
from transformers_ait.engine.tasks.dense import train_dense
from transformers_ait.engine.tasks.instances import train_instance
from transformers_ait.engine.tasks.joint import plan_recipe, train_joint
from transformers_ait.engine.tasks.vqvae import train_vqvae

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "training" / "recipes"
CHANNELS = {"classes": {"id2label": dict(enumerate(SYNTHETIC_ROOMS_SEMANTIC_CLASSES))}}
MINIMAL = {"data": {"dataset": "x"}, "optim": {"lr": 1e-3}, "run": {"output": "o", "batch_size": 4, "steps": 2}}


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "minimal.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return str(path)


def recipe_class(path):
    if path.name.startswith("vqvae"):
        return VQVAERecipe
    if path.name.startswith("dense-decoder"):
        return DenseDecoderRecipe
    if "joint" in path.stem or path.stem == "tiny-rooms":
        return JointRecipe
    if "dense" in path.stem or path.stem.startswith(("plain", "unipixtask")):
        return DenseRecipe
    return InstanceRecipe if any(x in path.stem for x in ("detection", "instance", "coco")) else DepthRecipe


def missing_keys(values, path=""):
    """Dotted keys that the command line has to give."""
    for name, value in values.items():
        key = f"{path}{name}"
        if isinstance(value, dict):
            yield from missing_keys(value, f"{key}.")
        elif isinstance(value, str) and value.startswith("???"):
            yield key


def load(path, *arguments):
    """A recipe of the project, with made-up values for what the command line has to give."""
    missing = missing_keys(yaml.safe_load(path.read_text()))
    given = [x for key in missing for x in (f"--{key}", "[given]" if key.endswith("backgrounds") else "given")]
    return load_recipe(recipe_class(path), [str(path), *given, *arguments])


# Those of pose lifting are another kind, see test_pose_training.py.
@pytest.mark.parametrize(
    "path", sorted(RECIPES.glob("[!p]*.yaml")) + sorted(RECIPES.glob("plain-*.yaml")), ids=lambda path: path.stem
)
def test_recipes_of_the_project_are_valid(path):
    recipe = load(path)
    assert build_recipe(type(recipe), recipe_dict(recipe), "itself") == recipe
    if isinstance(recipe, VQVAERecipe):
        config = build_config(AiTVQVAEConfig, recipe.model.config_values(), str(path))
        if config.kind.has_scores:
            rooms, nyu = SYNTHETIC_ROOMS_SEMANTIC_CLASSES, NYU40_CLASSES
            assert config.class_names == list(rooms if recipe.data.dataset == "synthetic_rooms" else nyu)
        return
    values = dict(recipe.model.config)
    if isinstance(recipe, DenseDecoderRecipe):  # its teacher is trained by another recipe
        teacher = RECIPES / f"{Path(recipe.model.teacher).parent.name}.yaml"
        if not teacher.is_file():  # on the Hub, see test_unipixtask_configs.py
            return
        described = load(teacher).model.config
        size = described["image_size"]
        config = build_config(DenseDecoderConfig, values | {"image_size": size, "map_kind": "depth"}, str(path))
        assert config.kind.name == "depth" and recipe.data.dataset == load(teacher).data.dataset
        names = [task["name"] for task in described["dense_tasks"]]
        assert set(recipe.data.columns) == {recipe.model.teacher_task or names[0]} <= set(names)
        return
    if isinstance(recipe, DenseRecipe) and recipe.model.plain:
        config = build_config(AiTPlainDenseConfig, values, str(path))
        known = SYNTHETIC_ROOMS_SEMANTIC_CLASSES if recipe.data.dataset == "synthetic_rooms" else NYU40_CLASSES
        assert all(spec.class_names in (None, list(known)) for spec in config.dense.values())
        return
    for task, kind in _tokenized_kinds(values).items():
        # Trained ones come from the command line, or from other recipes.
        size = {"image_size": 32 if kind == "mask" else 128, "downsample_ratio": 8 if kind == "mask" else 16}
        if _tokenizer_fields(values, task)[0].get("model_type") != "ait_bin_tokenizer":
            values = with_tokenizer(values, task, AiTVQVAEConfig(map_kind=kind, **size, **CHANNELS.get(kind, {})), "x")
    if isinstance(recipe, JointRecipe) and "semantic" in values["tasks"]:
        values["id2label"] = dict(enumerate(SYNTHETIC_ROOMS_SEMANTIC_CLASSES))
    config = build_config(AiTConfig, values, str(path))
    assert set(recipe.model.tokenizers if "dense_tasks" in values else []) <= set(config.tasks)


def test_overrides_and_number_syntax(minimal):
    arguments = [minimal, "--optim.lr", "5e-4", "--run.steps=7", "--model.config.tau", "1e-1", "--run.resume", "true"]
    recipe = load_recipe(VQVAERecipe, arguments)
    assert recipe.optim.lr == 5e-4 and isinstance(recipe.optim.lr, float)
    assert recipe.run.steps == 7 and recipe.run.resume is True and recipe.run.batch_size == 4
    assert recipe.model.config == {"tau": 0.1}
    schedule = load_recipe(VQVAERecipe, [minimal, "--optim.schedule.milestones", "[1, 2]"]).optim.schedule
    assert schedule.milestones == [1, 2]
    changed = load_recipe(VQVAERecipe, [minimal, "--run.steps", "null", "--run.epochs", "0.5"])
    assert (changed.run.steps, changed.run.epochs) == (None, 0.5)


def test_values_may_be_written_as_people_write_them(minimal):
    # YAML 1.1 takes a bare no for False.
    arguments = [minimal, "--run.mixed_precision", "no", "--run.resume", "no"]
    recipe = load_recipe(VQVAERecipe, arguments)
    assert recipe.run.mixed_precision == "no" and recipe.run.resume is False
    whole = ["--augmentation.scale", "[1, 3]", "--model.image_mean=[0, 0, 0]", "--model.image_std=[1, 1, 1]"]
    instance = load_recipe(InstanceRecipe, [minimal, *whole])
    assert instance.augmentation.scale == [1, 3] and instance.model.image_mean == [0, 0, 0]


def test_overrides_merge_into_the_model_configuration(minimal):
    arguments = [minimal, "--model.config", "{a: {b: 1, c: 2}}", "--model.config.a.b", "3"]
    assert load_recipe(DepthRecipe, arguments).model.config == {"a": {"b": 3, "c": 2}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optim.lrr", "1"], ["optim.lrr", "Did you mean optim.lr", "command line"]),
        (["--optin.lr", "1"], ["optin ", "Did you mean optim"]),
        (["--optim.schedule.warmup", "1"], ["optim.schedule.warmup ", "warmup_steps"]),
        (["--optim.lr", "high"], ["optim.lr", "minimal.yaml", "float", "'high'"]),
        (["--run.steps", "2.5"], ["run.steps", "2.5"]),
        (["--run.resume", "1"], ["run.resume", "bool"]),
        (["--run.batch_size", "true"], ["run.batch_size", "bool"]),
        (["--run.mixed_precision", "fp8"], ["run.mixed_precision", "bf16", "fp8"]),
        (["--run.epochs", "3"], ["steps=2", "epochs=3"]),
        (["--run.batch_size", "0"], ["batch_size", "positive"]),
        (["--optim", "3"], ["optim", "section"]),
        (["--run.steps"], ["run.steps", "value"]),
        (["run.steps", "3"], ["run.steps", "--"]),
        (["--run.steps", "[1"], ["run.steps", "YAML"]),
        (["--optim.lr", "-1"], ["lr must be positive"]),
        (["--optim.layer_decay", "0"], ["layer_decay in (0, 1]"]),
        (["--optim.betas", "[0.9]"], ["betas must be two values"]),
        (["--optim.betas", "[0.9, high]"], ["optim.betas", "index 1", "'high'"]),
        (["--optim.clip", "0"], ["clip must be positive", "null"]),
        (["--run.seed", "-1"], ["seed must lie in 0.."]),
        (["--run.panels", "-1"], ["panels must be 0 or more"]),
        (["--data.num_workers", "-1"], ["num_workers must be 0 or more"]),
        (["--patch_mask.patch_size", "0"], ["patch_size must be at least 1"]),
        (["--patch_mask.ratio", "1.5"], ["ratio lie in [0, 1]"]),
    ],
)
def test_errors_name_key_and_place(minimal, arguments, words):
    with pytest.raises(RecipeError) as error:
        load_recipe(VQVAERecipe, [minimal, *arguments])
    assert all(word in str(error.value) for word in words), str(error.value)


def test_unknown_key_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "run": {**MINIMAL["run"], "log_evry": 3}}))
    with pytest.raises(RecipeError, match=r"run\.log_evry in .*wrong\.yaml does not exist.*run\.log_every"):
        load_recipe(VQVAERecipe, [str(path)])


def test_missing_keys_and_files(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("data: {dataset: x}\n")
    with pytest.raises(RecipeError, match=r"optim is missing in .*short\.yaml"):
        load_recipe(VQVAERecipe, [str(path)])
    path.write_text("data: {}\noptim: {lr: 1.0e-3}\nrun: {}\n")
    with pytest.raises(RecipeError, match=r"data\.dataset is missing"):
        load_recipe(VQVAERecipe, [str(path)])
    path.write_text("just text")
    with pytest.raises(RecipeError, match="mapping"):
        load_recipe(VQVAERecipe, [str(path)])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_recipe(VQVAERecipe, [str(tmp_path / "nowhere.yaml")])
    with pytest.raises(RecipeError, match="first argument"):
        load_recipe(VQVAERecipe, [])


def test_model_configuration_is_checked():
    with pytest.raises(RecipeError, match=r"model\.config\.num_code in here does not exist.*num_codes"):
        build_config(AiTVQVAEConfig, {"num_code": 3}, "here")
    with pytest.raises(RecipeError, match=r"backbone_config\.embed_dims .*embed_dim"):
        build_config(AiTConfig, {"backbone_config": {"model_type": "ait_swinv2", "embed_dims": 3}}, "here")
    with pytest.raises(RecipeError, match=r"model\.config\.num_codes in here .*int"):
        build_config(AiTVQVAEConfig, {"num_codes": "many"}, "here")
    with pytest.raises(RecipeError, match="power of two"):
        build_config(AiTVQVAEConfig, {"downsample_ratio": 3, "image_size": 9}, "here")


def test_help_lists_every_key():
    text = describe_recipe(DepthRecipe)
    assert "--optim.schedule.warmup_steps: int = 0" in text
    assert "--model.depth_tokenizer: str | None = None" in text
    assert "--run.output: str" in text


# Recipe, folder of hub_configs, steps, batch, rate, weight decay, layer decay, clip; rates at steps.
DEPTH_RATES = {0: 0.1, 250: 0.55, 500: 1, 18179: 1, 18180: 0.1, 25250: 0.1}
PUBLISHED = [
    ("depth-base", "ait-swinv2-base-depth", 25250, 24, 2e-4, 0.05, 0.9, 10, DEPTH_RATES),
    ("depth-base-parallel", "ait-p-swinv2-base-depth", 25250, 24, 2e-4, 0.05, 0.9, 10, DEPTH_RATES),
    ("depth-base-hard", "ait-swinv2-base-depth-hard", 25250, 24, 2e-4, 0.05, 0.9, 10, DEPTH_RATES),
    ("depth-large", "ait-swinv2-large-depth", 25250, 24, 1e-4, 0.075, 0.9, 10, DEPTH_RATES),
    ("depth-large-parallel", "ait-p-swinv2-large-depth", 25250, 24, 1e-4, 0.075, 0.9, 10, DEPTH_RATES),
    # On the line from 1 to 0.01: 1 - 0.99 * step / steps.
    ("detection-base", "ait-swinv2-base-detection", 183300, 128, 1e-3, 0.05, 0.85, 1, {18330: 0.901, 183300: 0.01}),
    ("instance-base", "ait-swinv2-base-instance", 366500, 16, 1e-4, 0.05, 0.85, 50, {14660: 0.9604, 366500: 0.01}),
    ("instance-base-hard", "ait-swinv2-base-instance-hard", 366500, 16, 1e-4, 0.05, 0.85, 50, {366500: 0.01}),
    ("joint-base", "ait-swinv2-base-joint", 302875, 64, 8e-4, 0.05, 0.85, 10, {12115: 0.9604, 302875: 0.01}),
]
VQVAES = [
    ("vqvae-nyu-depth", "ait-vqvae-depth", 24231, 60578, 8, 3e-4, {0: 1, 499: 1, 500: 0.98, 1000: 0.98**2}),
    ("vqvae-coco-masks", "ait-vqvae-mask", 849949, 33202, 512, 3e-4, {0: 1e-3, 500: None, 33202: 1 / 300}),
]
TOKENIZERS = {"depth": "ait-vqvae-depth", "instance": "ait-vqvae-mask"}


def hub_values(name):
    values = json.loads((ROOT / "hub_configs" / name / "config.json").read_text())
    return {key: value for key, value in values.items() if key != "architectures"}


def plain(config):
    """What of a configuration is a setting."""
    values = json.loads(config.to_json_string(use_diff=False))
    for part in (values, *(value for value in values.values() if isinstance(value, dict))):
        for name in ("architectures", "transformers_version", "_name_or_path", "dtype"):
            part.pop(name, None)
    return values


@pytest.mark.parametrize(("recipe", "hub"), [row[:2] for row in PUBLISHED])
def test_published_recipes_build_the_published_models(recipe, hub):
    values = dict(load(RECIPES / f"{recipe}.yaml").model.config)
    for task, folder in TOKENIZERS.items():
        if task in values["tasks"]:
            values = with_tokenizer(values, task, AiTVQVAEConfig.from_dict(hub_values(folder)), "x")
    if values["tasks"] != ["depth"]:
        values["id2label"] = dict(enumerate(COCO_CLASSES))
        values["label2id"] = {name: number for number, name in enumerate(COCO_CLASSES)}
    ours, theirs = plain(build_config(AiTConfig, values, recipe)), plain(AiTConfig.from_dict(hub_values(hub)))
    assert ours == theirs
    assert ours["backbone_config"]["drop_path_rate"] == (0.1 if "depth" in recipe else 0.3)


@pytest.mark.parametrize(("recipe", "hub"), [row[:2] for row in VQVAES])
def test_published_tokenizers_are_the_published_ones(recipe, hub):
    config = load(RECIPES / f"{recipe}.yaml").model.config
    assert plain(build_config(AiTVQVAEConfig, config, recipe)) == plain(AiTVQVAEConfig.from_dict(hub_values(hub)))


@pytest.mark.parametrize(
    ("name", "steps", "batch", "lr", "decay", "layers", "clip", "rates"), [(row[0], *row[2:]) for row in PUBLISHED]
)
def test_published_settings_come_out(name, steps, batch, lr, decay, layers, clip, rates):
    recipe = load(RECIPES / f"{name}.yaml")
    run, optim = recipe.run, recipe.optim
    assert (number_of_steps(run, 1), run.batch_size, run.published_batch_size) == (steps, batch, batch)
    assert (optim.lr, optim.weight_decay, optim.layer_decay, optim.clip) == (lr, decay, layers, clip)
    assert run.mixed_precision == "bf16" and learning_rate(optim, run) == lr
    schedule = make_schedule(optim.schedule, steps)
    for step, factor in rates.items():
        assert schedule(step) == pytest.approx(factor, rel=1e-9), step
    # Growing until the warm-up ends.
    warmup = {"depth": 500, "detection": 18330, "instance": 14660, "joint": 12115}[name.split("-")[0]]
    assert optim.schedule.warmup_steps == warmup and schedule(warmup - 1) < schedule(warmup) >= schedule(warmup + 1)


@pytest.mark.parametrize(("name", "rows", "steps", "batch", "lr", "rates"), [(row[0], *row[2:]) for row in VQVAES])
def test_published_tokenizer_settings_come_out(name, rows, steps, batch, lr, rates):
    recipe = load(RECIPES / f"{name}.yaml")
    run, optim = recipe.run, recipe.optim
    assert (run.epochs, run.batch_size, run.published_batch_size) == (20, batch, batch)
    assert number_of_steps(run, rows) == steps
    assert (optim.lr, optim.weight_decay, optim.layer_decay) == (lr, 0.0, 1.0)
    schedule = make_schedule(optim.schedule, steps)
    for step, factor in rates.items():
        if factor is not None:
            assert schedule(step) == pytest.approx(factor, rel=1e-9), step
    masks = name == "vqvae-coco-masks"
    assert recipe.maps == ("masks" if masks else None) and recipe.patch_mask.ratio == (0.0 if masks else 0.5)
    assert optim.schedule.warmup_steps == (500 if masks else 0)


@pytest.mark.parametrize(
    ("name", "processes", "passes"),
    [
        ("depth-base", 1, 8),
        ("depth-base", 4, 2),
        ("depth-base", 8, 1),
        ("depth-base", 24, 1),
        ("detection-base", 1, 32),
        ("instance-base", 2, 4),
    ],
)
def test_fewer_processes_accumulate(name, processes, passes):
    run = load(RECIPES / f"{name}.yaml").run
    assert accumulation_steps(run, processes) == passes
    assert micro_batch_size(run, processes) * processes * passes == run.batch_size


def test_joint_passes_on_fewer_processes():
    recipe = load(RECIPES / "joint-base.yaml")
    assert [plan_recipe(recipe, processes).passes // processes for processes in (1, 2, 8, 16)] == [16, 8, 2, 1]


def test_a_batch_that_cannot_be_shared_out_names_the_ways_out():
    run = RunRecipe(output="o", steps=1, batch_size=24, micro_batch=5, processes=8)
    with pytest.raises(
        RecipeError, match=r"5 x 1.*meant for 8.*got 24.*micro_batch to one of \[1, 2, 3, 4, 6, 8, 12, 24"
    ):
        accumulation_steps(run, 1)
    with pytest.raises(RecipeError, match="start a divisor of 24 processes"):
        accumulation_steps(run, 7)


@pytest.fixture
def accelerate_log(caplog):
    """Whatever Accelerate's loggers, which want to know the process, say."""
    PartialState(cpu=True)
    with caplog.at_level(logging.WARNING):
        yield caplog


def test_another_batch_is_warned_of_and_scales_the_rate(accelerate_log):
    run = RunRecipe(output="o", steps=1, batch_size=6, published_batch_size=24)
    assert learning_rate(OptimRecipe(lr=2e-4), run) == 2e-4
    assert "run.batch_size is 6, published is 24" in accelerate_log.text and "0.25" in accelerate_log.text
    assert learning_rate(OptimRecipe(lr=2e-4, scale_lr=True), run) == pytest.approx(5e-5)
    assert "the rate is 5e-05 in place of 0.0002" in accelerate_log.text
    accelerate_log.clear()
    published = RunRecipe(output="o", steps=1, batch_size=24, published_batch_size=24)
    assert learning_rate(OptimRecipe(lr=2e-4, scale_lr=True), published) == 2e-4 and not accelerate_log.text
    with pytest.raises(RecipeError, match="run.published_batch_size"):
        learning_rate(OptimRecipe(lr=2e-4, scale_lr=True), RunRecipe(output="o", steps=1, batch_size=6))


def test_missing_values_say_what_to_give():
    path = RECIPES / "depth-base.yaml"
    with pytest.raises(RecipeError, match=r"model\.initialize_from is missing in .*depth-base.*SwinV2.*--model\.init"):
        load_recipe(DepthRecipe, [str(path)])
    given = ["--model.initialize_from", "null", "--data.options.train_list", "null"]
    with pytest.raises(RecipeError, match=r"data\.options\.data_dir is missing.*NYU.*--data\.options\.data_dir VALUE"):
        load_recipe(DepthRecipe, [str(path), *given])
    recipe = load_recipe(DepthRecipe, [str(path), *given, "--data.options.data_dir", "nyu"])
    assert recipe.data.options == {"data_dir": "nyu", "train_list": None} and recipe.model.initialize_from is None


def test_runs_that_are_older_than_a_key_can_be_resumed(minimal, tmp_path):
    stored = tmp_path / "run" / "recipe.yaml"
    stored.parent.mkdir()
    recipe = load_recipe(VQVAERecipe, [minimal, "--run.output", str(stored.parent), "--run.resume", "true"])
    values = recipe_dict(recipe)
    del values["run"]["activation_checkpointing"], values["optim"]["scale_lr"]
    stored.write_text(yaml.safe_dump(values))
    one_process = SimpleNamespace(is_main_process=True, num_processes=1, process_index=0)
    assert check_run_folder(recipe, one_process) is None
    stored.write_text(yaml.safe_dump({**values, "optim": {**values["optim"], "scale_lr": True}}))
    with pytest.raises(RecipeError, match="optim.scale_lr"):
        check_run_folder(recipe, one_process)


# The tiny variant of every published recipe: made-up data in the layout of the real, models of some thousand weights.
BACKBONE = {
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_sizes": [4, 3],
    "pretrained_window_sizes": [4, 4],
    "shift_windows": [True, True],
}
DECODER = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "max_positions": 27,
}
TINY_VQVAE = {"downsample_ratio": 8, "hidden_size": 4, "num_resnet_blocks": 1, "num_codes": 8, "code_dim": 6}
TINY_MODEL = {"backbone_config": BACKBONE, "decoder_config": DECODER, "num_bins": 12, "num_objects": 3}
SIDES = {"depth": 32, "mask": 16}
TRAIN = {
    VQVAERecipe: train_vqvae,
    DepthRecipe: train_dense,
    InstanceRecipe: train_instance,
    JointRecipe: train_joint,
}


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    """A few made-up frames and objects in the layout of NYU Depth v2 and COCO, and untrained tokenizers."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for place, count in (("sync", 4), ("official_splits/test", 1)):
        scene = folder / "nyu" / place / "kitchen"
        scene.mkdir(parents=True)
        for number in range(count):
            image = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(image).save(scene / f"rgb_{number:05d}.jpg")
            depth = generator.integers(500, 9000, (40, 48), dtype=np.uint16)
            Image.fromarray(depth).save(scene / f"sync_depth_{number:05d}.png")
    for split in ("train2017", "val2017"):
        write_coco(folder / "coco", split, generator)
    for kind, side in SIDES.items():
        mask = {"symmetric_range": True, "ignore_zero": False} if kind == "mask" else {}
        AiTVQVAEModel(AiTVQVAEConfig(image_size=side, **TINY_VQVAE, **mask)).save_pretrained(folder / kind)
    return folder


def write_coco(root, split, generator):
    """Four photographs with one square each."""
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number in range(4):
        name = f"{number:012d}.jpg"
        Image.fromarray(generator.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(root / split / name)
        images.append({"id": number, "file_name": name, "width": 40, "height": 32})
        square = {"segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]], "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
        annotations.append({"id": number + 1, "image_id": number, "category_id": 1 + number % 2, **square})
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def tiny_variant(name, folder, output):
    """Arguments that shrink a published recipe to a step on made-up data; every other setting stays."""
    path = RECIPES / f"{name}.yaml"
    kind = recipe_class(path)
    values = {"model.initialize_from": None, "run.output": str(output), "run.steps": 1, "run.epochs": None}
    values |= {"run.panels": 0, "run.log_every": 1}
    # The ratio of a joint step stays 15 : 1.
    batch = (16, 15) if kind is JointRecipe else (4, 2)
    values["run.batch_size"], values["run.micro_batch"] = batch
    sections = {"depth_data": "nyu", "instance_data": "coco"} if kind is JointRecipe else {}
    if not sections:
        depth = kind is DepthRecipe or name == "vqvae-nyu-depth"
        sections["data"] = "nyu" if depth else "coco"
    for section, data in sections.items():
        options = {"data_dir": str(folder / data), "cache_dir": str(folder / "cache")}
        values |= {f"{section}.options.{key}": value for key, value in options.items()}
        values |= {f"{section}.num_workers": 0, f"{section}.eval_limit": 1}
        if data == "nyu":
            values[f"{section}.options.train_list"] = None
            values[f"{section}.train_columns"] = None
    if kind is VQVAERecipe:
        del values["model.initialize_from"]
        size = SIDES["depth" if name == "vqvae-nyu-depth" else "mask"]
        values |= {f"model.config.{key}": value for key, value in (TINY_VQVAE | {"image_size": size}).items()}
    else:
        size = 32 if kind is DepthRecipe else 48
        values |= {f"model.config.{key}": value for key, value in (TINY_MODEL | {"image_size": size}).items()}
        values["model.config.backbone_config.model_type"] = "ait_swinv2"
    if kind in (DepthRecipe, JointRecipe):
        values["model.depth_tokenizer"] = str(folder / "depth")
    if kind is JointRecipe or "instance" in name:
        values["model.mask_tokenizer"] = str(folder / "mask")
    return [str(path), *(text for key, value in values.items() for text in (f"--{key}", yaml.safe_dump(value)))]


@pytest.mark.slow
@pytest.mark.parametrize("name", [row[0] for row in VQVAES + PUBLISHED])
def test_the_tiny_variant_of_every_published_recipe_trains(name, small_data, tmp_path):
    path = RECIPES / f"{name}.yaml"
    recipe = load_recipe(recipe_class(path), tiny_variant(name, small_data, tmp_path / "run"))
    folder = TRAIN[type(recipe)](recipe)
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert np.isfinite(line["loss"]) and line["lr"] > 0
    if type(recipe) is VQVAERecipe:
        AiTVQVAEModel.from_pretrained(folder)
        return
    config = AiTForDenseAndInstancePrediction.from_pretrained(folder).config
    published = load(path).model.config
    assert list(config.tasks) == published["tasks"]
    switches = {"parallel": False, "soft_feedback": True, "soft_decode": True, "depth_loss_weight": 1.0}
    assert {key: getattr(config, key) for key in switches} == {k: published.get(k, v) for k, v in switches.items()}


def test_activation_checkpointing_changes_nothing_but_memory(small_data, tmp_path):
    metrics = []
    for value in ("false", "true"):
        arguments = tiny_variant("depth-base", small_data, tmp_path / value)
        recipe = load_recipe(DepthRecipe, [*arguments, "--run.activation_checkpointing", value])
        train_dense(recipe)
        metrics.append(json.loads((tmp_path / value / "log.jsonl").read_text().splitlines()[0]))
        del metrics[-1]["split"]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)
    arguments = tiny_variant("vqvae-nyu-depth", small_data, tmp_path / "vqvae")
    with pytest.raises(RecipeError, match="run.activation_checkpointing"):
        train_vqvae(load_recipe(VQVAERecipe, [*arguments, "--run.activation_checkpointing", "true"]))


@pytest.mark.slow
def test_compiling_changes_nothing_but_speed(small_data, tmp_path, monkeypatch):
    compiled, original = [], torch.nn.Module.compile

    def compile_without_code_generation(module, **settings):
        compiled.append(type(module).__name__)
        original(module, backend="eager", **settings)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_without_code_generation)
    logs = []
    for value in ("false", "true"):
        arguments = tiny_variant("depth-base", small_data, tmp_path / value)
        train_dense(load_recipe(DepthRecipe, [*arguments, "--run.compile", value]))
        logs.append([json.loads(line) for line in (tmp_path / value / "log.jsonl").read_text().splitlines()])
    assert compiled == ["AiTSwinV2Backbone", "AiTEncoder", "AiTTokenDecoder"]
    for before, after in zip(*logs, strict=True):
        assert before.pop("split") == after.pop("split")
        assert before == pytest.approx(after, rel=1e-3)
    AiTForDenseAndInstancePrediction.from_pretrained(tmp_path / "true" / "model")
    arguments = tiny_variant("vqvae-nyu-depth", small_data, tmp_path / "vqvae")
    with pytest.raises(RecipeError, match="run.compile is for task-solvers"):
        train_vqvae(load_recipe(VQVAERecipe, [*arguments, "--run.compile", "true"]))


def test_a_published_recipe_without_its_data_ends_with_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run", str(RECIPES / "instance-base.yaml"), "--model.initialize_from", "null"])
    with pytest.raises(SystemExit):
        run_from_command_line(InstanceRecipe, train_instance, "")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "data.options.data_dir" in error and "COCO 2017" in error
    assert list(tmp_path.iterdir()) == []


def test_recipes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"data: \xff\xfe")
    with pytest.raises(RecipeError, match=r"recipe\.yaml is no text in UTF-8"):
        load_recipe(DepthRecipe, [str(path)])
