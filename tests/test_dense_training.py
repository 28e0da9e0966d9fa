"""Training of any set of dense tasks through the scripts, up to one that the package has never heard of."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, pipeline

import transformers_ait.data  # noqa: F401 - registers synthetic_rooms
from transformers_ait import AiTDenseImageProcessor, AiTForDenseAndInstancePrediction, AiTVQVAEModel
from transformers_ait.data.rooms_scene import SYNTHETIC_ROOMS_SEMANTIC_CLASSES
from transformers_ait.engine.evaluation.inputs import EvaluationSettings
from transformers_ait.engine.evaluation.report import run_evaluation
from transformers_ait.engine.recipes.reading import RecipeError, load_recipe, run_from_command_line
from transformers_ait.engine.recipes.scripts import DenseModelRecipe, DenseRecipe, VQVAERecipe
from transformers_ait.engine.reporting.log import LOG_FILE, read_log
from transformers_ait.engine.tasks.dense import DenseTask, build_dense_model, train_dense
from transformers_ait.engine.tasks.dense_data import DenseRows
from transformers_ait.engine.tasks.vqvae import VQVAEMapTask, train_vqvae
from transformers_ait.map_kinds_ait import MAP_KINDS
from transformers_ait.modeling_plain_dense import AiTPlainDenseModel

TRAINING = Path(__file__).parents[1] / "training"
ROOMS = {"height": 32, "width": 48, "num_train": 8, "num_validation": 3, "num_test": 0}
NAMES = list(SYNTHETIC_ROOMS_SEMANTIC_CLASSES)
TASKS = {"depth": "depth", "normals": "normals", "semantic": "classes"}
RUN = {"steps": 2, "batch_size": 4, "log_every": 1, "panels": 1}
OPTIM = {"lr": 1e-3, "clip": 1.0, "schedule": {"name": "constant"}}
TOKENIZER = {"image_size": 32, "downsample_ratio": 8, "hidden_size": 4, "num_resnet_blocks": 1, "num_codes": 8}
TOKENIZER |= {"code_dim": 8}
BACKBONE = {
    "model_type": "ait_swinv2",
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_sizes": [4, 4],
    "pretrained_window_sizes": [4, 4],
    "shift_windows": [True, True],
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
BINS = {"model_type": "ait_bin_tokenizer", "image_size": 32, "downsample_ratio": 8}
SOLVER = {"image_size": 32, "backbone_config": BACKBONE, "decoder_config": DECODER, "parallel": True}


def reset_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run_script(name, recipe, folder, *arguments):
    """What a user types; returns the folder of the trained model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "given.yaml").write_text(yaml.safe_dump(recipe))
    command = [name, str(folder / "given.yaml"), "--run.output", str(folder / "run"), *arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        runpy.run_path(str(TRAINING / name), run_name="__main__")
    reset_accelerator()
    return folder / "run" / "model"


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Options of tiny rooms, rendered once."""
    options = {**ROOMS, "cache_dir": str(tmp_path_factory.mktemp("rooms"))}
    datasets.load_dataset("synthetic_rooms", **options)
    return options


def vqvae_recipe(kind, data, **config):
    return {
        "model": {"config": {"map_kind": kind, **TOKENIZER, **config}},
        "patch_mask": {"patch_size": 4},
        "restart": {"every": 1, "until": 1.0},
        "data": data,
        "optim": OPTIM,
        "run": {"output": "", **RUN},
    }


@pytest.fixture(scope="module")
def tokenizers(rooms, tmp_path_factory):
    """Folders of tokenizers of three kinds, each trained by the script."""
    root, folders = tmp_path_factory.mktemp("tokenizers"), {}
    for task, kind in TASKS.items():
        recipe = vqvae_recipe(kind, {"dataset": "synthetic_rooms", "options": rooms, "columns": {kind: task}})
        if kind == "classes":
            recipe["model"]["class_names"] = NAMES
        folders[task] = str(run_script("run_vqvae.py", recipe, root / task))
    return folders


def dense_recipe(rooms, tokenizers, **run):
    entries = [{"name": name, "kind": kind, "tokenizer_config": {"tau": 0.8}} for name, kind in TASKS.items()]
    return {
        "model": {"tokenizers": tokenizers, "align_positions": False, "config": SOLVER | {"dense_tasks": entries}},
        "data": {"dataset": "synthetic_rooms", "options": rooms, "eval_batch": 2},
        "optim": OPTIM,
        "run": {"output": "", **RUN, **run},
    }


@pytest.fixture(scope="module")
def trained(rooms, tokenizers, tmp_path_factory):
    """Folder of the script's run of three tasks."""
    return run_script("run_dense.py", dense_recipe(rooms, tokenizers), tmp_path_factory.mktemp("dense"))


# --- tokenizers of every kind ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "figures"), [("depth", {"rmse", "d1"}), ("normals", {"mean_angle"}), ("semantic", {"miou"})]
)
def test_tokenizers_of_every_kind_train(tokenizers, task, figures):
    folder = Path(tokenizers[task])
    config = AiTVQVAEModel.from_pretrained(folder).config
    assert config.kind.name == TASKS[task]
    assert config.num_channels == {"depth": 1, "normals": 3, "semantic": len(NAMES)}[task]
    if task == "semantic":
        assert config.class_names == NAMES
    log = read_log(folder.parent / LOG_FILE)
    assert figures <= log[-1].keys() and all(np.isfinite(log[-1][name]) for name in figures)
    assert (folder.parent / "panels" / "step-00000002.png").is_file()
    code = re.search("```python\n(.*?)\n```", (folder / "README.md").read_text(), re.S)[1]
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code, names)
    assert names["maps"].shape == (1, config.num_channels, 32, 32)


@pytest.mark.parametrize("kind", ["depth", "normals", "classes", "values"])
def test_masked_patches_are_invalid_and_the_loss_still_asks_for_them(kind, tiny_vqvae_config, tmp_path):
    config = {"classes": {"id2label": {0: "a", 1: "b"}}, "values": {"num_channels": 2}}.get(kind, {})
    model = AiTVQVAEModel(tiny_vqvae_config(map_kind=kind, **config))
    maps = {"depth": np.ones((32, 32), np.float32), "classes": np.ones((32, 32), np.uint8)}
    maps |= {"normals": np.tile(np.uint8([128, 128, 0]), (32, 32, 1)), "values": np.ones((2, 32, 32), np.float32)}
    is_picture = kind != "values"
    feature = datasets.Image() if is_picture else datasets.Array3D((2, 32, 32), "float32")
    value = Image.fromarray(maps[kind]) if is_picture else maps[kind]
    features = datasets.Features({"image": datasets.Image(), kind: feature})
    table = datasets.Dataset.from_dict({"image": [Image.new("RGB", (32, 32))], kind: [value]}, features)
    rows = DenseRows(table, {kind: MAP_KINDS[kind]})
    run = {"output": str(tmp_path), **RUN}
    values = {"data": {"dataset": "x"}, "optim": OPTIM, "run": run, "patch_mask": {"patch_size": 8, "ratio": 0.5}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    task = VQVAEMapTask(model, rows, rows, load_recipe(VQVAERecipe, [str(tmp_path / "r.yaml")]))
    batch = task.collate([task.sample(0)])
    masked, whole = (task.kind.valid(task._tokenizer_form(batch[name])) for name in ("pixel_values", "labels"))
    assert masked.float().mean() == 0.5 and whole.all() and task.weight(batch) == 32 * 32
    assert not masked.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4).float().mean(4).remainder(1).any()
    loss, _ = task.loss(model, batch, torch.ones(()))
    assert loss.isfinite() and loss > 0


def test_values_that_a_tokenizer_cannot_take_are_named(rooms, tmp_path):
    data = {"dataset": "synthetic_rooms", "options": rooms, "columns": {"classes": "semantic"}}
    recipe = vqvae_recipe("classes", data)
    recipe["model"]["class_names"] = ["wall", "floor"]
    recipe["run"]["output"] = str(tmp_path / "run")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError, match=r"The map of row \d+ does not fit model\.config: .*class ids in \[0, 2\)"):
        train_vqvae(load_recipe(VQVAERecipe, [str(tmp_path / "r.yaml")]))
    with pytest.raises(RecipeError, match=r"maps is 'depth', but model\.config describes .* kind 'classes'"):
        train_vqvae(load_recipe(VQVAERecipe, [str(tmp_path / "r.yaml"), "--maps", "depth"]))


# --- several tasks at once ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_tasks_train_in_one_pass(trained, tokenizers):
    model = AiTForDenseAndInstancePrediction.from_pretrained(trained)
    assert list(model.config.tasks) == list(TASKS) and model.config.parallel
    for task, folder in tokenizers.items():
        stored = load_file(Path(folder) / "model.safetensors")
        assert all(torch.equal(x, stored[name]) for name, x in model.tokenizer(task).state_dict().items())
        assert model.config.dense[task].tokenizer_config.tau == 0.8
    log = read_log(trained.parent / LOG_FILE)
    assert {f"{task}_{part}" for task in TASKS for part in ("ce", "aux")} | {"loss"} <= log[0].keys()
    assert {"depth_rmse", "normals_mean_angle", "semantic_miou"} <= log[-1].keys()
    picture = Image.open(trained.parent / "panels" / "step-00000002.png")
    assert picture.height > 1.5 * picture.width / 4  # a row for each task


@pytest.mark.slow
def test_one_folder_serves_all_tasks(trained, rooms):
    image = datasets.load_dataset("synthetic_rooms", split="validation", **rooms)[0]["image"]
    processor = AutoImageProcessor.from_pretrained(trained)
    assert isinstance(processor, AiTDenseImageProcessor) and processor.window_blending == "smooth"
    assert processor.map_kinds == TASKS
    assert {path.parent.name for path in trained.glob("*/preprocessor_config.json")} == {"normals", "semantic"}
    where = {"model": str(trained), "device": "cpu"}
    assert pipeline("depth-estimation", **where)(image)["predicted_depth"].shape == (32, 48)
    own = AutoImageProcessor.from_pretrained(trained / "semantic")
    found = pipeline("image-segmentation", image_processor=own, **where)(image, subtask="semantic")
    assert {entry["label"] for entry in found} <= set(NAMES)
    image.save(trained / "photo.jpg")
    text = (trained / "README.md").read_text()
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        exec(re.search("```python\n(.*?)\n```", text, re.S)[1], names)
    assert names["depth"].shape == (32, 48) and names["maps"]["normals"].shape == (3, 32, 48)
    assert isinstance(names["semantic"], list)
    heads = [line for line in text.splitlines() if line.startswith("| task |")]
    assert len(heads) == 3 and "mean_angle" in heads[1] and "miou" in heads[2]
    assert "`depth` x" not in text and "surface normals and semantic segmentation" in text


@pytest.mark.slow
def test_a_dense_run_resumes_to_the_bit(rooms, tokenizers, tmp_path):
    recipe = dense_recipe(rooms, tokenizers, steps=3, checkpoint_every=1, panels=0, ema=0.5)
    model = run_script("run_dense.py", recipe, tmp_path)
    before = load_file(model / "model.safetensors"), (tmp_path / "run" / LOG_FILE).read_text()
    shutil.rmtree(model)
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").iterdir()))
    run_script("run_dense.py", recipe, tmp_path, "--run.resume", "true")
    after = load_file(model / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before[0].items())
    assert (tmp_path / "run" / LOG_FILE).read_text() == before[1]


@pytest.mark.slow
def test_a_model_lends_its_tokenizers_to_one_of_more_tasks(trained, tokenizers, rooms, tmp_path):
    recipe = dense_recipe(rooms, {task: str(trained) for task in TASKS})
    # Without a trained tokenizer, and before the others, so that their places move.
    entry = {"name": "far", "kind": "depth", "tokenizer_config": BINS}
    recipe["model"]["config"]["dense_tasks"].insert(0, entry)
    recipe["model"]["initialize_from"] = str(trained)
    recipe["data"]["columns"] = {"far": "depth"}
    folder = run_script("run_dense.py", recipe, tmp_path, "--optim.lr", "1e-9")
    model, earlier = (AiTForDenseAndInstancePrediction.from_pretrained(x) for x in (folder, trained))
    assert model.config.tasks == ["far", *TASKS] and list(model.config.dense) == ["depth", "far", "normals", "semantic"]
    for task in TASKS:
        now, then = (x.model.decoder.token_embeddings[x.config.vocabulary.codes(task).rows] for x in (model, earlier))
        assert torch.allclose(now, then, atol=1e-6), task
    assert {"far_rmse", "semantic_miou"} <= read_log(tmp_path / "run" / LOG_FILE)[-1].keys()


@pytest.mark.slow
def test_the_plain_baseline_trains_on_the_same_data(rooms, tmp_path):
    recipe = dense_recipe(rooms, {})
    entries = [{"name": name, "kind": kind} for name, kind in TASKS.items()]
    entries[2]["class_names"] = NAMES
    recipe["model"] = {"plain": True, "config": {"image_size": 32, "backbone_config": BACKBONE, "hidden_size": 8}}
    recipe["model"]["config"]["dense_tasks"] = entries
    folder = run_script("run_dense.py", recipe, tmp_path, "--run.ema", "0.9")
    AiTPlainDenseModel.from_pretrained(folder)
    log = read_log(tmp_path / "run" / LOG_FILE)
    assert {"depth_aux", "semantic_aux"} <= log[0].keys() and {"depth_rmse", "semantic_miou"} <= log[-1].keys()
    Image.new("RGB", (48, 32)).save(folder / "photo.jpg")
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(re.search("```python\n(.*?)\n```", (folder / "README.md").read_text(), re.S)[1], names)
    assert names["maps"]["semantic"].shape == (32, 48)
    with pytest.raises(RecipeError, match="plain models have no tokens"):
        load_recipe(DenseRecipe, [str(tmp_path / "given.yaml"), "--model.align_positions", "true", "--run.output", "x"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.tokenizers.normals", "{depth}"], ["model.tokenizers.normals", "kind 'depth'", "kind 'normals'"]),
        (["--model.tokenizers.normal", "x"], ["model.tokenizers.normal is for the task normal", "'normals'"]),
        (["--model.tokenizers.normals", "nowhere"], ["model.tokenizers.normals nowhere", "config.json is missing"]),
        (["--data.columns", "{semantic: labels}"], ["no column ['labels']", "data.columns"]),
        (["--data.columns", "{semantics: semantic}"], ["data.columns names ['semantics']", "'semantic'"]),
        (["--model.config.dense_tasks", "[{name: depth, kid: x}, %s]"], ["'depth'", "'kid'", "'kind'"]),
        (["--model.config.dense_tasks", "[{name: depth}, {name: depth}, %s]"], ["different names"]),
        (["--model.config.tasks", "[depth, instance]"], ["['instance']", "run_joint.py"]),
        (["--augmentation.scale", "[2.0, 1.0]"], ["scale", "least first"]),
        (["--run.ema", "2.0"], ["ema must lie between 0 and 1"]),
    ],
)
def test_bad_recipes_end_with_one_line(rooms, tokenizers, tmp_path, monkeypatch, capsys, arguments, words):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(dense_recipe(rooms, tokenizers)))
    others = "{name: normals, kind: normals}, {name: semantic, kind: classes}"
    arguments = [argument.replace("{depth}", tokenizers["depth"]).replace("%s", others) for argument in arguments]
    given = ["run", str(tmp_path / "r.yaml"), "--run.output", str(tmp_path / "run"), *arguments]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit):
        run_from_command_line(DenseRecipe, train_dense, "")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"name": "two words"}, "letter"),
        ({"name": "depth", "kind": "normals"}, "depth"),
        ({"name": "a", "kind": "smell"}, "smell"),
        (
            {"name": "a", "tokenizer_config": BINS | {"num_code": 3}},
            r"dense_tasks\.0\.tokenizer_config\.num_code .*codes",
        ),
    ],
)
def test_bad_tasks_are_named_with_their_key(entry, words):
    recipe = DenseModelRecipe(config=SOLVER | {"dense_tasks": [{"tokenizer_config": BINS} | entry]})
    with pytest.raises(RecipeError, match=rf"model\.config.*{words}"):
        build_dense_model(recipe)


# --- a task that the package has never heard of ---------------------------------------------------------------------


def height_above_the_floor(row):
    """Metres (1, H, W) above z = 0 of the world, NaN where depth has no measurement."""
    depth, camera = np.array(row["depth"]) / 1000.0, row["camera"]
    height, width = depth.shape
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([(u - camera["cx"]) / camera["fx"], (v - camera["cy"]) / camera["fy"], np.ones_like(depth)])
    pose = np.array(camera["pose"])
    world_z = np.einsum("c,chw->hw", pose[2, :3], rays * depth) + pose[2, 3]
    return np.where(depth > 0, world_z, np.nan)[None].astype(np.float32)


@pytest.fixture(scope="module")
def heights(rooms, tmp_path_factory):
    """A dataset on disk with the columns `image` and `altitude`, as a recipe's section of data."""
    folder, files = tmp_path_factory.mktemp("heights"), {}
    shape = (1, ROOMS["height"], ROOMS["width"])
    features = datasets.Features({"image": datasets.Image(), "altitude": datasets.Array3D(shape, "float32")})
    for split in ("train", "validation"):
        rows = list(datasets.load_dataset("synthetic_rooms", split=split, **rooms))
        columns = {"image": [row["image"] for row in rows], "altitude": [height_above_the_floor(row) for row in rows]}
        files[split] = str(folder / f"{split}.parquet")
        datasets.Dataset.from_dict(columns, features).to_parquet(files[split])
    return {"dataset": "parquet", "options": {"data_files": files, "cache_dir": str(folder / "cache")}}


def test_heights_are_heights(heights):
    rows = datasets.load_dataset("parquet", split="train", **heights["options"])
    values = np.array([row["altitude"] for row in rows])
    # Floors are at 0, up to the noise of depth, and walls end at a room's height.
    assert values.shape == (8, 1, 32, 48) and np.isnan(values).any()
    assert -0.2 < np.nanmin(values) < 0.1 and 1.5 < np.nanmax(values) < 4.0


@pytest.fixture(scope="module")
def height_model(heights, tmp_path_factory):
    """Folders of tokenizer and model of a new task, which two recipes describe."""
    root = tmp_path_factory.mktemp("height")
    long = {"steps": 40, "log_every": 10, "eval_every": 40}
    recipe = vqvae_recipe("values", heights | {"columns": {"values": "altitude"}}, value_scale=1.5)
    recipe["run"] |= long
    tokenizer = run_script("run_vqvae.py", recipe, root / "tokenizer")
    model = {
        "model": {
            "tokenizers": {"height": str(tokenizer)},
            "align_positions": True,
            "config": SOLVER | {"feature_stride": 8, "dense_tasks": [{"name": "height", "kind": "values"}]},
        },
        "data": heights | {"columns": {"height": "altitude"}},
        "optim": OPTIM,
        "run": {"output": "", **RUN, **long},
    }
    return tokenizer, run_script("run_dense.py", model, root / "model")


def test_a_new_task_is_trained_saved_and_drawn(height_model):
    for folder in height_model:
        lines = [line for line in read_log(folder.parent / LOG_FILE) if line["split"] == "train"]
        assert lines[-1]["loss"] < lines[0]["loss"]
        assert np.isfinite(read_log(folder.parent / LOG_FILE)[-1]["rmse"])
        assert Image.open(folder.parent / "panels" / "step-00000040.png").width > 500
    card = (height_model[1] / "README.md").read_text()
    assert "maps of height" in card and "16 of 8 codes" not in card and "height: 4 x 4 of 8 codes" in card


def test_a_new_task_is_loaded_and_predicts(height_model, heights, tmp_path):
    model = AiTForDenseAndInstancePrediction.from_pretrained(height_model[1])
    assert list(model.config.tasks) == ["height"] and model.config.dense["height"].kind == "values"
    processor = AutoImageProcessor.from_pretrained(height_model[1])
    image = datasets.load_dataset("parquet", split="validation", **heights["options"])[0]["image"]
    outputs = model(**processor(image, return_tensors="pt"))
    found = processor.post_process_dense(outputs, [(image.height, image.width)])[0]["height"]
    assert found.shape == (1, 32, 48) and found.isfinite().all()
    # The card's own code says the same.
    image.save(height_model[1] / "photo.jpg", quality=95)
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(height_model[1])
        exec(re.search("```python\n(.*?)\n```", (height_model[1] / "README.md").read_text(), re.S)[1], names)
    assert names["maps"]["height"].shape == (1, 32, 48)


@pytest.mark.slow
def test_a_new_task_is_evaluated(height_model, heights, tmp_path):
    settings = EvaluationSettings(
        folders=[height_model[1]],
        dataset=heights["dataset"],
        options=heights["options"],
        split="validation",
        columns={"height": "altitude"},
        output=tmp_path / "results",
        panels=2,
    )
    lines = run_evaluation(settings)
    ours = next(line for line in lines if line.folder is not None)
    assert ours.task == "height" and ours.metrics["rmse"] > 0
    stored = json.loads((height_model[1].parent / "metrics.json").read_text())
    assert ours.metrics["rmse"] == pytest.approx(stored["rmse"], rel=1e-3)
    assert any(path.name == "worst.png" for path in (tmp_path / "results").rglob("*.png"))


@pytest.mark.slow
def test_a_new_task_can_be_streamed(heights, tmp_path):
    entry = {"name": "height", "kind": "values", "tokenizer_config": BINS | {"num_codes": 8, "max_value": 3}}
    recipe = {
        "model": {"config": SOLVER | {"dense_tasks": [entry]}},
        "data": heights | {"columns": {"height": "altitude"}, "streaming": True, "eval_limit": 2},
        "optim": OPTIM,
        "run": {"output": "", **RUN},
    }
    run_script("run_dense.py", recipe, tmp_path)
    assert "rmse" in read_log(tmp_path / "run" / LOG_FILE)[-1]


def test_images_without_labels_of_a_task_do_not_count_for_it(heights, tmp_path):
    entries = [{"name": name, "kind": "values", "tokenizer_config": BINS} for name in ("near", "far")]
    values = {
        "model": {"config": SOLVER | {"dense_tasks": entries, "soft_decode": False}},
        "data": heights | {"columns": {"near": "altitude", "far": "altitude"}},
        "optim": OPTIM,
        "run": {"output": str(tmp_path / "run"), **RUN},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    recipe = load_recipe(DenseRecipe, [str(tmp_path / "r.yaml")])
    model = build_dense_model(recipe.model).eval()
    rows = DenseRows(
        datasets.load_dataset("parquet", split="train", **heights["options"]),
        dict.fromkeys(("near", "far"), MAP_KINDS["values"]),
        recipe.data.columns,
    )
    task = DenseTask(model, rows, rows, recipe)
    samples = [task.sample(index) for index in range(4)]
    for number in (0, 1, 2):
        samples[number]["dense_labels"]["far"].fill_(float("nan"))
    batch = task.collate(samples)
    assert task.weight(batch).tolist() == [4, 1]
    # Each task's loss is a mean over its own images, in one pass or in four.
    whole, parts = task.loss(model, batch, torch.ones(2))
    single = [task.collate([sample]) for sample in samples]
    weights = torch.stack([task.weight(x).float() for x in single])
    shares = weights / weights.mean(dim=0)
    added = sum(task.loss(model, x, share)[0] for x, share in zip(single, shares, strict=True)) / 4
    assert added.item() == pytest.approx(whole.item(), rel=1e-5)
    alike = weights.sum(1, keepdim=True).expand_as(weights) / weights.sum(1).mean()
    wrong = sum(task.loss(model, x, share)[0] for x, share in zip(single, alike, strict=True)) / 4
    assert abs(wrong.item() / whole.item() - 1) > 1e-3 and {"near_ce", "far_ce"} <= parts.keys()
