"""Joint training: the mix at any number of processes, the losses' weights, resuming, and what a run leaves behind."""

import json
import multiprocessing
import os
import runpy
import shutil
import socket
import sys
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed
from safetensors.torch import load_file
from transformers import AutoImageProcessor, pipeline

from transformers_ait import AiTConfig, AiTForDenseAndInstancePrediction, AiTVQVAEConfig, AiTVQVAEModel
from transformers_ait.data import SYNTHETIC_ROOMS_CLASSES
from transformers_ait.data.rooms_scene import SYNTHETIC_ROOMS_SEMANTIC_CLASSES
from transformers_ait.engine.loop.sampling import SeededSamples
from transformers_ait.engine.recipes.joint import JointRecipe, dense_part, instance_part
from transformers_ait.engine.recipes.reading import RecipeError, load_recipe, run_from_command_line
from transformers_ait.engine.reporting.log import LOG_FILE, read_log
from transformers_ait.engine.tasks.dense import DenseTask
from transformers_ait.engine.tasks.dense_data import load_dense_rows
from transformers_ait.engine.tasks.initialization import initialize_from
from transformers_ait.engine.tasks.instance_data import load_instance_rows
from transformers_ait.engine.tasks.instances import InstanceTask
from transformers_ait.engine.tasks.joint import build_joint_model, train_joint
from transformers_ait.engine.tasks.joint_sampling import JointSampler, Mix, plan_mix, split_batch

TRAINING = Path(__file__).parents[1] / "training"
ROOMS = {"height": 32, "width": 48, "num_train": 12, "num_validation": 2, "num_test": 0}
PUBLISHED = {"instance": 60, "depth": 4}
# Without batch normalisation, whose statistics depend on the micro-batches.
BACKBONE = {
    "model_type": "ait_swinv2",
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_sizes": [4, 3],
    "pretrained_window_sizes": [4, 4],
    "shift_windows": [True, True],
    "drop_path_rate": 0.0,
}
DECODER = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "max_positions": 27,
    "dropout": 0.0,
    "drop_path_rate": 0.0,
}
MODEL = {
    "image_size": 48,
    "feature_stride": 8,
    "num_bins": 12,
    "num_objects": 3,
    "backbone_config": BACKBONE,
    "decoder_config": DECODER,
}
TOKENIZER = {"downsample_ratio": 8, "hidden_size": 4, "num_resnet_blocks": 1, "num_codes": 8, "code_dim": 6}
TOKENIZERS = {
    "mask_tokenizer": {"image_size": 16, "symmetric_range": True, "ignore_zero": False, **TOKENIZER},
    "depth_tokenizer": {"image_size": 32, **TOKENIZER},
}
RUN = {"steps": 2, "batch_size": 8, "micro_batch": 6, "log_every": 1, "panels": 1, "save_dtype": "float32"}


def reset_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, enliven):
    """Tiny rooms, rendered once, untrained tokenizers, a model to start from, and the tiny recipe shrunk to fit."""
    folder = tmp_path_factory.mktemp("joint")
    options = {**ROOMS, "cache_dir": str(folder / "rooms")}
    datasets.load_dataset("synthetic_rooms", **options)
    values = yaml.safe_load((TRAINING / "recipes" / "tiny-rooms-joint.yaml").read_text())
    values["model"]["config"] |= MODEL
    for number, (name, settings) in enumerate(TOKENIZERS.items()):
        torch.manual_seed(number)
        tokenizer = AiTVQVAEModel(AiTVQVAEConfig(**settings))
        if name == "depth_tokenizer":
            tokenizer.decoder.output.bias.data += 3.0  # metres
        tokenizer.save_pretrained(folder / name)
        values["model"][name] = str(folder / name)
    for section in ("instance_data", "depth_data"):
        values[section] |= {"options": options, "eval_limit": 2, "eval_batch": 2}
    values["mix"] = {"instance": 3, "depth": 1}
    values["optim"] |= {"clip": 1e4, "schedule": {"name": "constant"}}
    values["run"] |= RUN
    values["model"]["initialize_from"] = None
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    # Zero padding is a constant under a new model's zero biases, and layer norms of constants have huge gradients.
    start = build_joint_model(recipe_of(folder, folder), list(SYNTHETIC_ROOMS_CLASSES))
    enliven(start.model, scale=0.05)
    start.save_pretrained(folder / "start")
    values["model"]["initialize_from"] = str(folder / "start")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder


def recipe_of(folder, output, *arguments):
    return load_recipe(JointRecipe, [str(folder / "recipe.yaml"), "--run.output", str(output), *arguments])


@pytest.fixture(scope="module")
def one(folder):
    """Folder of the script's run in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run", str(folder / "recipe.yaml"), "--run.output", str(folder / "one")])
        runpy.run_path(str(TRAINING / "run_joint.py"), run_name="__main__")
    return folder / "one"


def step_rows(mix, processes, steps=range(3)):
    """Rows of every step, collected from all processes."""
    samplers = [iter(JointSampler((90, 7), mix, 5, steps, rank, processes)) for rank in range(processes)]
    per_process = mix.passes // processes
    return [Counter(key for sampler in samplers for _ in range(per_process) for key in next(sampler)) for _ in steps]


def test_every_step_holds_the_same_rows_at_any_number_of_processes():
    whole = step_rows(plan_mix(64, PUBLISHED, 64, 1), 1)
    for rows in whole:
        depth = [row for _, row in rows.elements() if row >= 90]
        assert len(depth) == 4 and rows.total() == 64
    assert whole[0] != whole[1]
    for processes, micro_batch in [(1, 4), (1, 5), (2, 16), (3, 16), (4, 4), (8, 8), (16, 4), (32, 4), (64, 1)]:
        mix = plan_mix(64, PUBLISHED, micro_batch, processes)
        assert max(mix.sizes) <= micro_batch and mix.passes % processes == 0
        assert step_rows(mix, processes) == whole, (processes, micro_batch)


def test_passes_are_few_and_keep_depth_together():
    assert plan_mix(64, PUBLISHED, 64, 1) == Mix((60, 4), (1, 1))
    # As published: one of 16 processes has the depth images.
    assert plan_mix(64, PUBLISHED, 4, 16) == Mix((4, 4), (15, 1))
    assert plan_mix(64, PUBLISHED, 8, 8) == Mix((4, 4), (15, 1))
    assert split_batch(48, PUBLISHED) == (45, 3)
    three = {"instance": 8, "detection": 4, "depth": 4}
    assert plan_mix(16, three, 8, 1) == Mix((8, 4, 4), (1, 1, 1))
    assert plan_mix(16, three, 8, 2) == Mix((4, 4, 4), (2, 1, 1))


def test_three_groups_share_a_step():
    mix = plan_mix(16, {"instance": 2, "detection": 1, "depth": 1}, 8, 1)
    dense, instance, detection = JointSampler((90, 90, 7), mix, 5, range(1))
    assert [len(keys) for keys in (dense, instance, detection)] == [4, 8, 4]
    assert all(180 <= row < 187 for _, row in dense) and all(90 <= row < 180 for _, row in detection)
    assert all(row < 90 for _, row in instance)


def test_a_resumed_sampler_goes_on():
    mix = plan_mix(16, {"instance": 3, "depth": 1}, 4, 2)
    whole = list(JointSampler((10, 3), mix, 0, range(6), 1, 2))
    assert list(JointSampler((10, 3), mix, 0, range(4, 6), 1, 2)) == whole[-len(whole) // 3 :]
    assert len(JointSampler((10, 3), mix, 0, range(6), 1, 2)) == len(whole)


@pytest.mark.parametrize(
    ("batch_size", "processes", "words"),
    [
        (60, 1, ["multiple of 16", "60 : 4", "nearest is 64"]),
        (64, 40, ["images: 60 of instance, 4 of depth", "40 processes", "[1, 2, 3", "16", "one of [80"]),
    ],
)
def test_impossible_mixes_say_what_is_possible(batch_size, processes, words):
    with pytest.raises(RecipeError) as error:
        plan_mix(batch_size, PUBLISHED, 4, processes)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.slow
def test_both_losses_have_their_weights(folder, one):
    recipe = recipe_of(folder, folder / "unused")
    objects = load_instance_rows(recipe.instance_data)[0]
    set_seed(recipe.run.seed)
    model = build_joint_model(recipe, list(SYNTHETIC_ROOMS_CLASSES)).train()
    depths = load_dense_rows(recipe.depth_data, {"depth": model.config.dense["depth"].map_kind})[0]
    tasks = (
        InstanceTask(model, "instance", objects, objects, instance_part(recipe)),
        DenseTask(model, depths, depths, dense_part(recipe)),
    )
    rows, mix = (len(objects), len(depths)), Mix((6, 2), (1, 1))
    depth_keys, instance_keys = JointSampler(rows, mix, recipe.run.seed, range(1))
    dispatch = SeededSamples(lambda i: tasks[0].sample(i) if i < 12 else tasks[1].sample(i - 12), recipe.run.seed)
    instance, depth = (
        model(task=name, **task.collate([dispatch[key] for key in keys]))
        for name, task, keys in zip(("instance", "depth"), tasks, (instance_keys, depth_keys), strict=True)
    )
    logged = read_log(one / LOG_FILE)[0]
    # The configuration's weight is in the model's own loss.
    unweighted = depth.loss_dict["depth_ce"] + depth.loss_dict["depth_aux"]
    assert model.config.depth_loss_weight == 0.2 and depth.loss.item() == pytest.approx(0.2 * unweighted.item())
    # The logged loss is a mean over the step's two passes, which the optimiser's gradient is as well.
    assert logged["loss"] == pytest.approx((instance.loss + depth.loss).item(), rel=1e-5)
    for name, value in (instance.loss_dict | depth.loss_dict).items():
        assert logged[name] == pytest.approx(value.item(), rel=1e-5), name
    (instance.loss + depth.loss).backward()
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    assert logged["grad_norm"] == pytest.approx(torch.stack(norms).norm().item(), rel=1e-4)


def same_run(one, other):
    """Whether two runs learned and logged the same, up to rounding."""
    weights, others = (load_file(run / "model" / "model.safetensors") for run in (one, other))
    for name, tensor in weights.items():
        assert torch.allclose(others[name], tensor, rtol=0, atol=1e-5), name
    for mine, theirs in zip(*(read_log(run / LOG_FILE) for run in (one, other)), strict=True):
        assert mine.keys() == theirs.keys()
        names = [name for name in mine if mine["split"] == "train" and name not in ("split", "lr")]
        # Parts of the instance loss are means over passes, not over each kind of token; they only show in the log.
        names = [name for name in names if not name.startswith("instance_")]
        assert [theirs[name] for name in names] == pytest.approx([mine[name] for name in names], rel=1e-4)


def train_as(rank, port, recipe):
    """What the launcher would start as process `rank` of two."""
    # Whatever the process that this one was forked from had.
    reset_accelerator()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    train_joint(recipe)
    torch.distributed.destroy_process_group()


def train_on_two(recipe):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Forked, since starting Python twice takes many times as long as training.
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=train_as, args=(rank, port, recipe)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.fixture(scope="module")
def two(folder):
    """Folder of a run on two processes: one has the images of depth, the other those with objects."""
    train_on_two(recipe_of(folder, folder / "two"))
    return folder / "two"


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(one, two):
    same_run(one, two)


@pytest.mark.slow
def test_accumulation_learns_what_one_pass_learns(folder, one):
    # Three images of objects in a pass, and both depth images still in one.
    train_joint(recipe_of(folder, folder / "accumulated", "--run.micro_batch", "3"))
    same_run(one, folder / "accumulated")


@pytest.mark.slow
def test_resumed_runs_are_equal_to_the_bit(folder):
    settings = ["--run.steps=3", "--run.checkpoint_every=1", "--model.config.decoder_config.dropout=0.2"]
    output = folder / "resumed"
    train_joint(recipe_of(folder, output, *settings))
    before = (output / LOG_FILE).read_text(), load_file(output / "model" / "model.safetensors")
    shutil.rmtree(output / "model")
    shutil.rmtree(max((output / "checkpoints").iterdir()))
    fresh = recipe_of(folder, output, *settings, "--run.resume", "true")
    train_joint(fresh)
    assert (output / LOG_FILE).read_text() == before[0]
    after = load_file(output / "model" / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before[1].items())


@pytest.mark.slow
def test_one_folder_serves_three_pipelines(folder, one):
    model = AiTForDenseAndInstancePrediction.from_pretrained(one / "model")
    assert list(model.config.tasks) == ["instance", "depth"] and model.config.default_task == "instance"
    assert list(model.config.id2label.values()) == list(SYNTHETIC_ROOMS_CLASSES)
    for name in TOKENIZERS:
        trained = load_file(folder / name / "model.safetensors")
        assert all(torch.equal(x, trained[key]) for key, x in getattr(model, name).state_dict().items())
    options = json.loads(json.dumps(recipe_of(folder, one).depth_data.options))
    image = datasets.load_dataset("synthetic_rooms", split="validation", **options)[0]["image"]
    where = {"model": str(one / "model"), "device": "cpu"}
    assert all(
        entry["mask"].size == image.size for entry in pipeline("image-segmentation", **where)(image, threshold=0.0)
    )
    assert {entry["label"] for entry in pipeline("object-detection", **where)(image, threshold=0.0)} <= set(
        SYNTHETIC_ROOMS_CLASSES
    )
    processor = AutoImageProcessor.from_pretrained(one / "model" / "depth")
    assert processor.task == "depth" and list(processor.image_mean) == [0.5, 0.5, 0.5]
    depth = pipeline("depth-estimation", image_processor=processor, **where)(image)["predicted_depth"]
    assert depth.shape == (32, 48) and bool(torch.isfinite(torch.as_tensor(depth)).all())


@pytest.mark.slow
def test_one_evaluation_for_both_tasks(one):
    last = read_log(one / LOG_FILE)[-1]
    assert {"instance_box_AP", "instance_mask_AP", "depth_rmse", "depth_d1"} <= last.keys()
    assert [path.name for path in (one / "panels").iterdir()] == ["step-00000002.png"]


def test_detection_gives_backbone_and_encoder(folder, tmp_path):
    recipe = recipe_of(folder, tmp_path, "--model.initialize_from", "null")
    classes = list(SYNTHETIC_ROOMS_CLASSES)
    settings = {**MODEL, "tasks": ["detection"], "id2label": dict(enumerate(classes[:2]))}
    detection = AiTForDenseAndInstancePrediction(AiTConfig(**settings))
    detection.save_pretrained(tmp_path / "detection")
    recipe.model.initialize_from = str(tmp_path / "detection")
    recipe.model.initialize_decoder = False
    model = build_joint_model(recipe, classes).model
    theirs = dict(detection.model.named_parameters())
    for name, parameter in model.named_parameters():
        equal = parameter.shape == theirs[name].shape and torch.equal(parameter, theirs[name])
        if not name.startswith("decoder."):
            assert equal, name
    assert not torch.equal(model.decoder.task_embeddings, detection.model.decoder.task_embeddings)
    settings["num_bins"] = 13
    AiTForDenseAndInstancePrediction(AiTConfig(**settings)).save_pretrained(tmp_path / "detection")
    with pytest.raises(RecipeError, match="another architecture; it has 14 ids for coordinates, this model 13"):
        initialize_from(build_joint_model(recipe_of(folder, folder), classes), str(tmp_path / "detection"))


@pytest.fixture(scope="module")
def every(folder, enliven):
    """Folder with the recipe of every task, shrunk to fit, untrained tokenizers of all maps, a run in one process."""
    values = yaml.safe_load((TRAINING / "recipes" / "tiny-rooms.yaml").read_text())
    base = yaml.safe_load((folder / "recipe.yaml").read_text())
    values["model"]["config"] |= MODEL
    names = {"id2label": dict(enumerate(SYNTHETIC_ROOMS_SEMANTIC_CLASSES))}
    kinds = {"depth": {}, "normals": {"map_kind": "normals"}, "semantic": {"map_kind": "classes", **names}}
    for number, (task, settings) in enumerate(kinds.items()):
        torch.manual_seed(number)
        tokenizer = AiTVQVAEModel(AiTVQVAEConfig(image_size=32, **TOKENIZER, **settings))
        tokenizer.decoder.output.bias.data += 3.0 if task == "depth" else 0.0  # metres
        tokenizer.save_pretrained(folder / f"every-{task}")
    values["model"]["tokenizers"] = {task: str(folder / f"every-{task}") for task in kinds}
    values["model"]["config"] |= {
        "tasks": [*kinds, "instance", "detection"],
        "dense_tasks": [
            {"name": task, "kind": kind, "loss_weight": 0.2, "tokenizer_config": {"tau": 0.8}}
            for task, kind in {"depth": "depth", "normals": "normals", "semantic": "classes"}.items()
        ],
    }
    values["model"] |= {"mask_tokenizer": base["model"]["mask_tokenizer"], "initialize_from": None}
    # Without soft decoding, whose loss of depth is a root over each pass.
    values["model"]["config"]["soft_decode"] = False
    values |= {name: base[name] for name in ("instance_data", "depth_data", "optim")}
    values["mix"] = {"instance": 2, "detection": 1, "depth": 1}
    values["run"] |= RUN | {"micro_batch": 4, "ema": None}
    folder = folder / "every"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    start = build_joint_model(recipe_of(folder, folder), list(SYNTHETIC_ROOMS_CLASSES))
    enliven(start.model, scale=0.05)
    start.save_pretrained(folder / "start")
    values["model"]["initialize_from"] = str(folder / "start")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    train_joint(recipe_of(folder, folder / "one"))
    reset_accelerator()
    return folder


@pytest.mark.slow
def test_every_task_learns_alike_on_two_processes(every):
    # A step has a pass of maps, one of detection and one of instances; two processes take four passes.
    train_on_two(recipe_of(every, every / "two", "--run.micro_batch=2"))
    same_run(every / "one", every / "two")
    log = read_log(every / "one" / LOG_FILE)
    parts = {f"{task}_{part}" for task in ("depth", "normals", "semantic") for part in ("ce", "aux")}
    objects = {"instance_box_ce", "instance_mask_ce", "detection_box_ce", "detection_class_ce"}
    assert parts | objects <= log[0].keys() and all(log[0][name] > 0 for name in parts if name.endswith("ce"))
    figures = {"depth_rmse", "normals_mean_angle", "semantic_miou", "instance_mask_AP", "detection_box_AP"}
    assert figures <= log[-1].keys()


@pytest.mark.slow
def test_comparison_sees_tasks_that_share_their_weights(every, monkeypatch):
    def summed(self, batches):
        weights = torch.stack([self.task.weight(batch).float() for batch in batches])
        return (weights.sum(1, keepdim=True) / weights.sum(1).mean()).expand_as(weights)

    monkeypatch.setattr("transformers_ait.engine.loop.trainer._Trainer._shares", summed)
    train_joint(recipe_of(every, every / "planted"))
    with pytest.raises(AssertionError):
        same_run(every / "one", every / "planted")


@pytest.mark.slow
def test_one_folder_serves_every_task(every):
    where = every / "one" / "model"
    model = AiTForDenseAndInstancePrediction.from_pretrained(where)
    assert list(model.config.id2label.values()) == list(SYNTHETIC_ROOMS_SEMANTIC_CLASSES)
    recipe = recipe_of(every, every)
    image = datasets.load_dataset("synthetic_rooms", split="validation", **recipe.depth_data.options)[0]["image"]
    pixel_values = AutoImageProcessor.from_pretrained(where)(image, return_tensors="pt")["pixel_values"]
    assert list(model(pixel_values).dense_maps) == ["depth", "normals", "semantic"]
    folders = sorted(path.parent.name for path in where.glob("*/preprocessor_config.json"))
    assert folders == ["detection", "instance", "normals", "semantic"]
    for task, options in {"semantic": {"subtask": "semantic"}, "instance": {"threshold": 0.0}}.items():
        processor = AutoImageProcessor.from_pretrained(where / task)
        segmenter = pipeline("image-segmentation", model=str(where), image_processor=processor, device="cpu")
        assert all(entry["mask"].size == image.size for entry in segmenter(image, **options)), task
    depth = pipeline("depth-estimation", model=str(where), device="cpu")(image)["predicted_depth"]
    assert depth.shape == (32, 48)


@pytest.mark.slow
def test_objects_take_their_places_in_the_table_of_classes(every):
    recipe = recipe_of(every, every)
    model = build_joint_model(recipe, list(SYNTHETIC_ROOMS_CLASSES))
    rows = load_instance_rows(recipe.instance_data)[0]
    task = InstanceTask(model, "instance", rows, rows, instance_part(recipe))
    torch.manual_seed(0)
    labels = task.sample(0)["instance_labels"]["class_labels"]
    names = {SYNTHETIC_ROOMS_CLASSES[label] for label in rows.objects(0).class_labels}
    assert len(labels) and {model.config.id2label[int(label)] for label in labels} <= names
    with pytest.raises(RecipeError, match=r"objects have the classes \['unicorn'\], which the task 'semantic' has not"):
        build_joint_model(recipe, ["bed", "unicorn"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mix.detection", "1"], ["mix", "['instance']", "['detection', 'instance']"]),
        # A model to start from would lend its own.
        (
            ["--model.mask_tokenizer", "null", "--model.initialize_from", "null"],
            ["model.mask_tokenizer is missing", "masks"],
        ),
        (["--model.depth_tokenizer", "nowhere"], ["model.depth_tokenizer nowhere", "config.json"]),
        (["--model.config.tasks", "[instance]"], ["model.config.tasks", "depth"]),
        (["--run.batch_size", "9"], ["run.batch_size", "multiple of 4", "3 : 1"]),
        (["--mix.depth", "0"], ["mix", "at least 1"]),
        (["--depth_data.datset", "x"], ["depth_data.datset", "depth_data.dataset"]),
    ],
)
def test_bad_recipes_end_with_one_line(folder, tmp_path, monkeypatch, capsys, arguments, words):
    given = ["run", str(folder / "recipe.yaml"), "--run.output", str(tmp_path / "run"), *arguments]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit):
        run_from_command_line(JointRecipe, train_joint, "")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and all(word in error for word in words), error
    assert list(tmp_path.iterdir()) == []
