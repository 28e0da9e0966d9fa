"""A run that is killed with SIGKILL, and started again, ends as if nothing had happened, bit for bit."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

import transformers_ait.data  # noqa: F401 - registers synthetic_rooms
from transformers_ait.engine.loop.checkpoints import MANIFEST
from transformers_ait.engine.recipes.reading import load_recipe
from transformers_ait.engine.recipes.scripts import VQVAERecipe
from transformers_ait.engine.reporting.log import LOG_FILE, read_log
from transformers_ait.engine.tasks.vqvae import train_vqvae

TRAINING = Path(__file__).parents[1] / "training"
RECIPE = str(TRAINING / "recipes" / "vqvae-tiny-rooms-depth.yaml")
ROOMS = {"height": 32, "width": 48, "num_train": 8, "num_validation": 2, "num_test": 0}
STEPS = 60
# Restarts draw from the random state that checkpoints carry.
RUN = [
    f"--run.steps={STEPS}",
    "--run.batch_size=2",
    "--run.log_every=2",
    "--run.eval_every=20",
    "--run.panels=0",
    "--data.in_memory=true",
    "--model.config={image_size: 32, downsample_ratio: 8, hidden_size: 4, num_codes: 16, code_dim: 8}",
    "--restart={every: 7, until: 1.0, min_cluster_size: 2.0}",
]
PATIENCE = 240  # seconds


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    cache = tmp_path_factory.mktemp("rooms")
    datasets.load_dataset("synthetic_rooms", cache_dir=str(cache), **ROOMS)
    return ["--data.options", json.dumps({**ROOMS, "cache_dir": str(cache)})]


@pytest.fixture(scope="module")
def whole(rooms, tmp_path_factory):
    """Folder of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_here(folder, rooms)
    return folder


@pytest.fixture(scope="module")
def killed(rooms, tmp_path_factory):
    """Folder of a run that was killed at a random step."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    step = random.SystemRandom().randint(6, 24)
    process = start(folder, rooms, 5)
    kill_when(process, lambda: last_step(folder) >= step)
    print(f"asked to be killed at step {step}, killed after step {last_step(folder)}")
    assert not (folder / "model").exists(), "the run was over before it was killed"
    return folder


def arguments(folder, rooms, every):
    return [RECIPE, "--run.output", str(folder), *RUN, f"--run.checkpoint_every={every}", *rooms]


def train_here(folder, rooms, *more):
    train_vqvae(load_recipe(VQVAERecipe, [*arguments(folder, rooms, 5), *more]))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def start(folder, rooms, every, *more):
    """The training script in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(TRAINING / "run_vqvae.py"), *arguments(folder, rooms, every), *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kill_when(process, condition):
    """Wait for the condition, then kill the process, which has to be alive until then."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline, "the run came to no point to kill it at"
        time.sleep(0.002)
    process.kill()
    process.wait()


def last_step(folder):
    return max((line["step"] for line in read_log(folder / LOG_FILE)), default=0)


def final_state(folder):
    """All that a run leaves: checkpoint with optimiser, schedule, random states and progress; log, metrics, model."""
    checkpoint = folder / "checkpoints" / f"step-{STEPS:08d}"
    state = {path.name: torch.load(path, weights_only=False) for path in checkpoint.iterdir() if path.suffix in PICKLED}
    assert {"optimizer.bin", "scheduler.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl"} <= state.keys()
    state["weights"] = load_file(checkpoint / "model.safetensors")
    state["model"] = load_file(folder / "model" / "model.safetensors")
    return state | {name: (folder / name).read_text() for name in (LOG_FILE, "metrics.json")}


PICKLED = {".bin", ".pkl"}


def differences(first, second, path=""):
    """Dotted names of all that is not equal bit for bit."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = {*first, *second}
        return [name for key in keys for name in differences(first.get(key), second.get(key), f"{path}.{key}")]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [name for index, pair in pairs for name in differences(*pair, f"{path}.{index}")]
    if isinstance(first, torch.Tensor | np.ndarray):
        same = type(first) is type(second) and first.shape == second.shape and bool((first == second).all())
        return [] if same else [path]
    return [] if first == second else [path]


@pytest.mark.slow  # tests/torture_kill does more of it
def test_killed_at_a_random_step(rooms, whole, killed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    # What a kill within the writing of a checkpoint would leave.
    partial = folder / "checkpoints" / f".step-{STEPS - 5:08d}.tmp"
    partial.mkdir(exist_ok=True)
    (partial / "model.safetensors").write_bytes(b"half")
    done = start(folder, rooms, 5, "--run.resume", "true")
    _, errors = done.communicate(timeout=PATIENCE)
    assert done.returncode == 0, errors[-3000:]
    assert differences(final_state(whole), final_state(folder)) == []
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert left == [f"step-{step:08d}" for step in (STEPS - 5, STEPS)]


@pytest.mark.slow
@pytest.mark.parametrize("forgotten", ["optimizer.bin", "random_states_0.pkl"])
def test_comparison_sees_a_state_that_does_not_come_back(rooms, whole, killed, tmp_path, forgotten):
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    checkpoint = max((folder / "checkpoints").glob("step-*"))
    state = torch.load(checkpoint / forgotten, weights_only=False)
    if forgotten == "optimizer.bin":
        state["state"][0]["exp_avg"] *= 2
    else:
        state["torch_manual_seed"] = torch.Generator().manual_seed(1).get_state()
    torch.save(state, checkpoint / forgotten)
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"][forgotten] = hashlib.sha256((checkpoint / forgotten).read_bytes()).hexdigest()
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    train_here(folder, rooms, "--run.resume=true")
    found = differences(final_state(whole), final_state(folder))
    assert any(name.startswith(".model.") for name in found)


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written(rooms, whole, tmp_path):
    folder = tmp_path / "run"
    checkpoints = folder / "checkpoints"

    def partial():
        return list(checkpoints.glob(".step-*.tmp"))

    more, kills = [], 0
    while not partial():
        step, kills = last_step(folder) + 4, kills + 1
        assert kills <= 5, "no kill met the writing of a checkpoint"
        process = start(folder, rooms, 1, *more)
        kill_when(process, lambda step=step: last_step(folder) >= step and partial())
        more = ["--run.resume=true"]
    assert not (folder / "model").exists(), "the run was over before it was killed"
    train_here(folder, rooms, "--run.resume=true")
    assert differences(final_state(whole), final_state(folder)) == []
    assert partial() == []
