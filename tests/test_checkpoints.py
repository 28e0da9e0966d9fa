"""Checkpoints and the loop around them, on datasets in memory: exact resume, damage, rotation, accumulation."""

import copy
import json
import shutil
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed
from PIL import Image
from safetensors.torch import load_file

from transformers_ait import AiTForDenseAndInstancePrediction, AiTVQVAEConfig, AiTVQVAEModel
from transformers_ait.engine.loop.checkpoints import (
    MANIFEST,
    checkpoint_step,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from transformers_ait.engine.loop.processes import make_accelerator, number_of_steps
from transformers_ait.engine.loop.run_folder import check_run_folder
from transformers_ait.engine.loop.trainer import train
from transformers_ait.engine.recipes.reading import RecipeError, build_recipe
from transformers_ait.engine.recipes.scripts import DepthRecipe, VQVAERecipe
from transformers_ait.engine.reporting.log import LOG_FILE, RunLog, read_log
from transformers_ait.engine.run_files import replace_folder
from transformers_ait.engine.tasks.dense import DenseTask, build_dense_model
from transformers_ait.engine.tasks.dense_data import DenseRows
from transformers_ait.engine.tasks.vqvae import VQVAEMapTask
from transformers_ait.map_kinds_ait import MAP_KINDS

SIZE = 32
DEPTH = {"depth": MAP_KINDS["depth"]}
DEPTH_MODEL = {
    "image_size": SIZE,
    "num_bins": 4,
    "num_mask_codes": 2,
    "num_depth_codes": 8,
    "backbone_config": {
        "model_type": "ait_swinv2",
        "embed_dim": 8,
        "depths": [1, 2],
        "num_heads": [1, 2],
        "window_sizes": [4, 4],
        "pretrained_window_sizes": [4, 4],
        "shift_windows": [True, True],
        "drop_path_rate": 0.2,
    },
    "decoder_config": {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "max_positions": 16,
        "dropout": 0.2,
    },
    "depth_tokenizer_config": {
        "model_type": "ait_bin_tokenizer",
        "image_size": SIZE,
        "downsample_ratio": 8,
        "num_codes": 8,
    },
}
VQVAE_MODEL = {"image_size": SIZE, "hidden_size": 4, "downsample_ratio": 8, "num_codes": 16, "code_dim": 8}


def rows(count, seed):
    """Images of random gradients with depth to match, holes included."""
    rng = np.random.default_rng(seed)
    images, depths = [], []
    for _ in range(count):
        ramp = np.linspace(0, 1, SIZE + 8)[None] * rng.uniform(0.5, 4) + rng.uniform(0.5, 3, (SIZE, 1))
        holes = rng.random(ramp.shape) < rng.uniform(0, 0.6)
        depths.append(Image.fromarray((np.where(holes, 0, ramp) * 1000).astype(np.uint16)))
        images.append(Image.fromarray((np.stack([ramp * 30] * 3, -1) % 256).astype(np.uint8)))
    features = datasets.Features({"image": datasets.Image(), "depth": datasets.Image()})
    return DenseRows(datasets.Dataset.from_dict({"image": images, "depth": depths}, features), DEPTH, in_memory=True)


@pytest.fixture(scope="module")
def data():
    return rows(10, 0), rows(3, 1)


def depth_recipe(output, **changes):
    run = {"output": str(output), "steps": 6, "batch_size": 4, "micro_batch": 2, "log_every": 2, "eval_every": 3}
    values = {
        "data": {"dataset": "none"},
        "optim": {"lr": 1e-3, "clip": 1.0, "layer_decay": 0.9, "weight_decay": 0.05},
        "run": {**run, "checkpoint_every": 3, "panels": 1, **changes},
        "model": {"config": DEPTH_MODEL},
    }
    return build_recipe(DepthRecipe, values, "test")


def vqvae_recipe(output, **changes):
    run = {"output": str(output), "steps": 6, "batch_size": 4, "log_every": 2, "eval_every": 3, "checkpoint_every": 3}
    values = {
        "data": {"dataset": "none"},
        "optim": {"lr": 1e-3, "schedule": {"name": "exponential", "every": 2}},
        "run": {**run, "panels": 1, **changes},
        "model": {"config": VQVAE_MODEL},
        "patch_mask": {"patch_size": 8},
        "restart": {"every": 2},
    }
    return build_recipe(VQVAERecipe, values, "test")


def make_task(recipe, data):
    set_seed(recipe.run.seed)
    if isinstance(recipe, DepthRecipe):
        return DenseTask(build_dense_model(recipe.model), *data, recipe)
    return VQVAEMapTask(AiTVQVAEModel(AiTVQVAEConfig(**recipe.model.config)), *data, recipe)


def run(recipe, data, stop_at=None):
    """Train; with `stop_at`, break down in that forward pass."""
    accelerator = make_accelerator(recipe.run)
    task = make_task(recipe, data)
    if stop_at is not None:
        original, calls = task.loss, []

        def breaking(*arguments):
            calls.append(1)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            return original(*arguments)

        task.loss = breaking
    return train(task, recipe, accelerator)


def final_state(folder):
    checkpoint = folder / "checkpoints" / "step-00000006"
    state = load_file(checkpoint / "model.safetensors")
    names = ["optimizer.bin", "scheduler.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl"]
    for name in [*names, *(path.name for path in checkpoint.glob("custom_checkpoint_[!0].pkl"))]:
        state[name] = torch.load(checkpoint / name, weights_only=False)
    state["log"] = (folder / LOG_FILE).read_text()
    state["metrics"] = (folder / "metrics.json").read_text()
    state["model"] = load_file(folder / "model" / "model.safetensors")
    return state


def equal(a, b):
    if isinstance(a, torch.Tensor | np.ndarray):
        return type(a) is type(b) and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


# --- resume ---------------------------------------------------------------------------------------------------------


def averaged_recipe(output, **changes):
    return depth_recipe(output, ema=0.7, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "calls_per_step"),
    [(depth_recipe, 2), (averaged_recipe, 2), (vqvae_recipe, 1)],
)
def test_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path, data, make, calls_per_step):
    run(make(tmp_path / "whole"), data)
    # Breaks down in step 5, after a log line of step 4 that the checkpoint of step 3 knows nothing of.
    with pytest.raises(KeyboardInterrupt):
        run(make(tmp_path / "broken"), data, stop_at=4 * calls_per_step + 1)
    assert [line["step"] for line in read_log(tmp_path / "broken" / LOG_FILE)] == [2, 3, 4]
    assert not (tmp_path / "broken" / "model").exists()
    run(make(tmp_path / "broken", resume=True), data)
    whole, resumed = final_state(tmp_path / "whole"), final_state(tmp_path / "broken")
    different = [name for name in whole if not equal(whole[name], resumed[name])]
    assert different == []


@pytest.mark.slow
def test_an_average_of_the_weights_is_evaluated_and_saved(tmp_path, data):
    saved, logs, settings = {}, {}, {"steps": 3, "checkpoint_every": 1, "keep_checkpoints": 3}
    for name, ema in (("last", None), ("averaged", 0.7)):
        saved[name] = load_file(run(depth_recipe(tmp_path / name, ema=ema, **settings), data) / "model.safetensors")
        logs[name] = read_log(tmp_path / name / LOG_FILE)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    paths = sorted((tmp_path / "averaged" / "checkpoints").iterdir())
    first, second, third = (load_file(path / "model.safetensors") for path in paths)
    assert equal(saved["last"], {name: third[name] for name in saved["last"]})
    for name, found in saved["averaged"].items():
        if found.is_floating_point():
            expected = 0.49 * first[name] + 0.21 * second[name] + 0.3 * third[name]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(saved["averaged"]["model.decoder.output_bias"], third["model.decoder.output_bias"])
    # Training goes on from the last weights all the same, and what is measured is the average.
    train, evaluation = ([line for line in logs["last"] if line["split"] == split] for split in ("train", "eval"))
    assert [line for line in logs["averaged"] if line["split"] == "train"] == train
    assert logs["averaged"][-1]["split"] == "eval" and logs["averaged"][-1] != evaluation[-1]


def test_averages_that_cannot_be_are_refused(tmp_path, data):
    with pytest.raises(RecipeError, match=r"run\.ema is for task-solvers"):
        run(vqvae_recipe(tmp_path / "vqvae", ema=0.5), data)
    with pytest.raises(RecipeError, match="ema must lie between 0 and 1"):
        depth_recipe(tmp_path / "x", ema=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("forgotten", ["random state", "optimiser", "sums", "order"])
def test_comparison_sees_what_a_checkpoint_forgets(tmp_path, data, monkeypatch, forgotten):
    run(depth_recipe(tmp_path / "whole"), data)
    with pytest.raises(KeyboardInterrupt):
        run(depth_recipe(tmp_path / "broken"), data, stop_at=9)
    if forgotten == "random state":
        monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    elif forgotten == "optimiser":
        monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda self, state: None)
    elif forgotten == "sums":
        monkeypatch.setattr(
            "transformers_ait.engine.loop.progress.Progress.load_state_dict",
            lambda self, state: setattr(self, "step", 3),
        )
    else:
        monkeypatch.setattr(
            "transformers_ait.engine.loop.sampling.MicroBatchSampler.__iter__",
            lambda self: iter([[(0, 0), (0, 1)]] * 99),
        )
    run(depth_recipe(tmp_path / "broken", resume=True), data)
    assert not equal(final_state(tmp_path / "whole"), final_state(tmp_path / "broken"))


@pytest.mark.slow
def test_workers_change_nothing(tmp_path, data):
    recipe = depth_recipe(tmp_path / "workers", steps=3)
    recipe.data.num_workers = 1
    run(recipe, data)
    run(depth_recipe(tmp_path / "none", steps=3), data)
    logs = [(tmp_path / name / LOG_FILE).read_text() for name in ("workers", "none")]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_finished_run_resumes_to_its_end(tmp_path, data):
    run(vqvae_recipe(tmp_path / "run"), data)
    before = final_state(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    run(vqvae_recipe(tmp_path / "run", resume=True), data)
    assert equal(before, final_state(tmp_path / "run"))


def test_a_used_folder_is_refused_and_untouched(tmp_path, data):
    recipe = vqvae_recipe(tmp_path / "run", steps=1)
    run(recipe, data)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(FileExistsError, match="--run.resume true"):
        run(recipe, data)
    with pytest.raises(RecipeError, match=r"other values of run\.seed, run\.steps"):
        run(vqvae_recipe(tmp_path / "run", steps=2, seed=1, resume=True), data)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to-keep.txt").write_text("x")
    with pytest.raises(FileExistsError, match="holds no run"):
        run(vqvae_recipe(tmp_path / "letters", resume=True), data)


def test_resume_without_anything_starts(tmp_path):
    assert check_run_folder(vqvae_recipe(tmp_path / "new", resume=True), Accelerator()) is None


# --- damage, rotation, atomicity ------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    accelerator = Accelerator()
    accelerator.prepare(torch.nn.Linear(3, 3))
    for step in (1, 2, 3):
        save_checkpoint(accelerator, tmp_path, step, keep=2)
    return tmp_path


def test_checkpoints_rotate_and_leave_nothing_behind(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["step-00000002", "step-00000003"]
    found = latest_checkpoint(saved)
    assert found is not None and checkpoint_step(found) == 3


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "manifest", "no manifest"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(saved, damage):
    weights, manifest = (saved / "step-00000003" / name for name in ("model.safetensors", MANIFEST))
    content = bytearray(weights.read_bytes())
    if damage == "cut":
        weights.write_bytes(content[:-1])
    elif damage == "flip":
        content[-3] ^= 1
        weights.write_bytes(content)
    elif damage == "missing":
        weights.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:20])
    else:
        manifest.unlink()
    with pytest.warns(UserWarning, match="step-00000003 is damaged"):
        found = latest_checkpoint(saved)
    assert found is not None and found.name == "step-00000002"


def test_an_interrupted_save_leaves_the_checkpoints_before_it(saved, monkeypatch):
    def broken(self, folder):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Accelerator, "save_state", broken)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(Accelerator(), saved, 4, keep=2)
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = latest_checkpoint(saved)
    assert found is not None and found.name == "step-00000003"
    save_checkpoint(Accelerator(), saved, 4, keep=2)
    assert sorted(path.name for path in saved.iterdir()) == ["step-00000003", "step-00000004"]


def test_no_checkpoint_is_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None


def test_folders_are_replaced_as_a_whole(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "new"]
    assert (tmp_path / "old" / "new").is_file()


def test_log_drops_lines_of_lost_work_and_a_cut_off_line(tmp_path):
    (tmp_path / LOG_FILE).write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    log = RunLog(tmp_path, start=2)
    log.write(3, "train", {"loss": 0.5})
    log.close()
    assert read_log(tmp_path / LOG_FILE) == [{"step": 1}, {"step": 2}, {"step": 3, "split": "train", "loss": 0.5}]


# --- accumulation and length ----------------------------------------------------------------------------------------


def gradients(task, batches, shares):
    task.model.zero_grad()
    for batch, share in zip(batches, shares, strict=True):
        (task.loss(task.model, batch, share)[0] / len(batches)).backward()
    return {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}


def part(batch, rows):
    return {name: part(x, rows) if isinstance(x, dict) else x[rows] for name, x in batch.items()}


@pytest.mark.parametrize("make", [depth_recipe, vqvae_recipe])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, data, make):
    recipe = copy.deepcopy(make(tmp_path))
    if make is depth_recipe:
        # The auxiliary loss is a root of means over the batch, so only cross-entropies add up exactly.
        recipe.model.config["soft_decode"] = False
    task = make_task(recipe, data)
    task.model.eval()
    samples = [task.sample(index) for index in range(4)]
    batch = task.collate(samples)
    labels = batch["dense_labels"]["depth"] if make is depth_recipe else batch["labels"]
    labels[1] = 0
    micro = [part(batch, slice(0, 2)), part(batch, slice(2, 4))]
    weights = torch.stack([task.weight(x).float() for x in micro])
    assert weights[0] != weights[1]
    whole = gradients(task, [batch], torch.ones_like(weights[:1]))
    added = gradients(task, micro, weights / weights.mean(dim=0))
    naive = gradients(task, micro, torch.ones_like(weights))
    for name, expected in whole.items():
        torch.testing.assert_close(added[name], expected, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(naive[name], whole[name], rtol=1e-2, atol=1e-6) for name in whole)


@pytest.mark.slow
def test_accumulation_gives_the_codebook_of_the_whole_batch(tmp_path, data):
    states = {}
    for micro in (4, 2, 1):
        run(vqvae_recipe(tmp_path / str(micro), micro_batch=micro), data)
        states[micro] = load_file(tmp_path / str(micro) / "model" / "model.safetensors")
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    for micro in (2, 1):
        for name, expected in states[4].items():
            torch.testing.assert_close(states[micro][name], expected, rtol=1e-3, atol=1e-4, msg=f"{micro} {name}")


def test_batch_sizes_must_divide(tmp_path):
    with pytest.raises(RecipeError, match=r"run\.batch_size must be a multiple .*\(3 x 1\), got 4"):
        make_accelerator(vqvae_recipe(tmp_path, micro_batch=3).run)


def test_steps_follow_from_epochs(tmp_path):
    assert number_of_steps(vqvae_recipe(tmp_path, steps=None, epochs=2.5).run, 10) == 7
    assert number_of_steps(vqvae_recipe(tmp_path).run, 10) == 6


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, data):
    recipe = vqvae_recipe(tmp_path / "run")
    task = make_task(recipe, data)
    with torch.no_grad():
        task.model.decoder.output.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 2.*optim.lr"):
        train(task, recipe, make_accelerator(recipe.run))


def test_nothing_to_learn_from_is_refused_before_anything_is_written(tmp_path, data):
    recipe = vqvae_recipe(tmp_path / "run", steps=None, epochs=1)
    task = make_task(recipe, data)
    task.num_rows = 0
    with pytest.raises(RecipeError, match="training data is empty"):
        train(task, recipe, make_accelerator(recipe.run))
    assert list(tmp_path.iterdir()) == []


def test_rows_are_resized_with_real_depths_alone():
    features = datasets.Features({"image": datasets.Image(), "depth": datasets.Image()})
    depth = np.random.default_rng(0).integers(700, 9000, (40, 60)).astype(np.uint16)
    image = Image.fromarray((depth[..., None] // 40).astype(np.uint8).repeat(3, -1))
    data = datasets.Dataset.from_dict({"image": [image], "depth": [Image.fromarray(depth)]}, features)
    pairs = DenseRows(data, DEPTH, size=(20, 30))
    assert pairs.image(0).shape == (3, 20, 30) and pairs.map(0, "depth").shape == (20, 30)
    cut = DenseRows(data, DEPTH, crop_columns=(41, 57))
    assert cut.image(0).shape == (3, 40, 16)
    assert np.array_equal(np.round(cut.map(0, "depth").numpy() * 1000), depth[:, 41:57])
    # Averages of neighbours would be depths that nothing in the picture has.
    assert np.isin(np.round(pairs.map(0, "depth").numpy() * 1000), depth).all()


def test_depth_rows_need_their_columns():
    with pytest.raises(RecipeError, match=r"no column \['depth'\]"):
        DenseRows(datasets.Dataset.from_dict({"image": [1]}), DEPTH)


def test_trained_model_loads_and_metrics_are_those_of_the_last_evaluation(tmp_path, data):
    folder = run(depth_recipe(tmp_path / "run", steps=2), data)
    AiTForDenseAndInstancePrediction.from_pretrained(folder)
    stored = json.loads((tmp_path / "run" / "metrics.json").read_text())
    last = read_log(tmp_path / "run" / LOG_FILE)[-1]
    assert last.pop("split") == "eval" and last == stored
    assert (tmp_path / "run" / "panels" / "step-00000002.png").is_file()


def test_a_checkpoint_of_other_weights_is_refused_in_one_line(tmp_path):
    model = torch.nn.Linear(2, 2)
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(model)
    accelerator.save_state(str(tmp_path))
    (tmp_path / MANIFEST).write_text(json.dumps({"num_processes": 1}))
    load_checkpoint(accelerator, tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    other = Accelerator(cpu=True)
    other.prepare(torch.nn.Linear(3, 2))
    with pytest.raises(RecipeError, match="does not fit the model .*start another one with model.initialize_from"):
        load_checkpoint(other, tmp_path)
