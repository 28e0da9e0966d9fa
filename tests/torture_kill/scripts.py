"""The training scripts with recipes of seconds, and the data that they train on, made once."""

import os
import runpy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import yaml
from PIL import Image

import transformers_ait.data  # noqa: F401 - registers the builders
from transformers_ait import AiTVQVAEConfig, AiTVQVAEModel

TRAINING = Path(__file__).resolve().parents[2] / "training"
STEPS = 6
ROOMS = {"height": 32, "width": 48, "num_train": 8, "num_validation": 2, "num_test": 0}
MOTIONS = {"num_train": 4, "num_validation": 1, "num_frames": 9}
TOKENIZER = {"downsample_ratio": 8, "hidden_size": 4, "num_resnet_blocks": 1, "num_codes": 8, "code_dim": 6}
MASKS = {"image_size": 16, "symmetric_range": True, "ignore_zero": False, **TOKENIZER}
# Dropout and stochastic depth, so that the random state counts.
BACKBONE = {
    "model_type": "ait_swinv2",
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_sizes": [4, 4],
    "pretrained_window_sizes": [4, 4],
    "shift_windows": [True, True],
    "drop_path_rate": 0.1,
}
DECODER = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "max_positions": 36,
    "dropout": 0.1,
    "drop_path_rate": 0.1,
}
SOLVER = {"image_size": 32, "feature_stride": 8, "backbone_config": BACKBONE, "decoder_config": DECODER}
OBJECTS = {"num_bins": 12, "num_objects": 3, "num_mask_codes": 8}
BINS = {"model_type": "ait_bin_tokenizer", "image_size": 32, "downsample_ratio": 8}
DENSE_TASKS = [
    {"name": "depth", "tokenizer_config": {**BINS, "num_codes": 8}},
    {"name": "normals", "kind": "normals", "tokenizer_config": {**BINS, "num_codes": 9}},
]
OPTIM = {"lr": 1e-3, "weight_decay": 0.05, "clip": 1.0, "schedule": {"name": "cosine", "warmup_steps": 2}}
# Log lines and evaluations fall between checkpoints as well as on them.
RUN = {
    "steps": STEPS,
    "batch_size": 4,
    "log_every": 3,
    "eval_every": 4,
    "checkpoint_every": 2,
    "keep_checkpoints": 2,
    "panels": 0,
}
POSE_TRAINING = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_steps": 2,
    "save_total_limit": 2,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}
POSE_MODEL = {
    "num_frames": 9,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "prune_before": [1],
    "num_kept_frames": [3],
    "drop_path_rate": 0.1,
}


def _on_rooms(folder: Path, model: Mapping[str, Any], **sections: Any) -> dict[str, Any]:
    """A recipe on the rendered rooms; `run` and `data` among the sections change single keys."""
    rows = {"dataset": "synthetic_rooms", "options": {**ROOMS, "cache_dir": str(folder / "rooms")}, "eval_batch": 2}
    run, more = {**RUN, **sections.pop("run", {})}, sections.pop("data", {})
    return {"model": dict(model), "data": {**rows, **more}, "optim": OPTIM, "run": run, **sections}


def _vqvae(data: Path) -> dict[str, Any]:
    model = {"config": {"image_size": 32, **TOKENIZER}}
    restart = {"every": 3, "until": 1.0, "min_cluster_size": 2.0}
    return _on_rooms(
        data, model, restart=restart, patch_mask={"patch_size": 4}, data={"num_workers": 1}, run={"panels": 1}
    )


def _masks(data: Path) -> dict[str, Any]:
    return _on_rooms(data, {"config": MASKS}, patch_mask={"ratio": 0.0}, data={"in_memory": True})


def _depth(data: Path) -> dict[str, Any]:
    model = {"config": {**SOLVER, "tasks": ["depth"]}, "depth_tokenizer": str(data / "depth_tokenizer")}
    return _on_rooms(data, model, run={"ema": 0.9})


def _dense(data: Path) -> dict[str, Any]:
    config = {**SOLVER, "num_depth_codes": 8, "dense_tasks": DENSE_TASKS, "parallel": True, "soft_feedback": False}
    model = {"config": config}
    stream = {"streaming": True, "eval_limit": 2, "shuffle_buffer": 4}
    return _on_rooms(data, model, data=stream, run={"micro_batch": 2, "save_dtype": "float16"})


def _plain(data: Path) -> dict[str, Any]:
    config = {"image_size": 32, "dense_tasks": [{"name": "depth", "kind": "depth"}], "hidden_size": 16}
    model = {"plain": True, "config": {**config, "backbone_config": BACKBONE}}
    pairs = {"dataset": "depth_folders", "options": {"data_dir": str(data / "pairs"), "cache_dir": str(data / "cache")}}
    return _on_rooms(data, model, data=pairs, run={"mixed_precision": "bf16"})


def _instance(data: Path) -> dict[str, Any]:
    model = {"config": {**SOLVER, **OBJECTS, "tasks": ["instance"]}, "mask_tokenizer": str(data / "mask_tokenizer")}
    return _on_rooms(data, model, augmentation={"scale": [0.8, 1.25]})


def _joint(data: Path) -> dict[str, Any]:
    tokenizers = {f"{name}_tokenizer": str(data / f"{name}_tokenizer") for name in ("mask", "depth")}
    model = {"config": {**SOLVER, **OBJECTS, "tasks": ["instance", "depth"]}, **tokenizers}
    recipe = _on_rooms(data, model, mix={"instance": 3, "depth": 1}, run={"batch_size": 4})
    rows = recipe.pop("data")
    return {**recipe, "instance_data": rows, "depth_data": rows}


def _pose(data: Path) -> dict[str, Any]:
    options = {**MOTIONS, "cache_dir": str(data / "motions")}
    rows = {"dataset": "synthetic_motions", "options": options}
    return {"data": rows, "output": "unset", "model": {"config": POSE_MODEL}, "training": POSE_TRAINING}


@dataclass(frozen=True)
class Script:
    """A training script with a recipe.

    Args:
        file: name of the script.
        recipe: folder of the data to the values of a recipe.
        section: what stands before the keys `output` and `resume`.
        checkpoints: pattern of the names of checkpoints.
    """

    file: str
    recipe: Callable[[Path], dict[str, Any]]
    section: str = "run."
    checkpoints: str = "step-*"


SCRIPTS = {
    "vqvae": Script("run_vqvae.py", _vqvae),
    "masks": Script("run_vqvae.py", _masks),
    "depth": Script("run_depth.py", _depth),
    "dense": Script("run_dense.py", _dense),
    "plain": Script("run_dense.py", _plain),
    "instance": Script("run_instance.py", _instance),
    "joint": Script("run_joint.py", _joint),
    "pose": Script("run_pose.py", _pose, section="", checkpoints="checkpoint-*"),
}


def prepare(data: Path) -> None:
    """Render rooms and motions, write pairs of files, tokenizers and recipes."""
    datasets.load_dataset("synthetic_rooms", cache_dir=str(data / "rooms"), **ROOMS)
    datasets.load_dataset("synthetic_motions", cache_dir=str(data / "motions"), **MOTIONS)
    write_pairs(data / "pairs")
    for number, (name, settings) in enumerate({"mask": MASKS, "depth": {"image_size": 32, **TOKENIZER}}.items()):
        torch.manual_seed(number)
        tokenizer = AiTVQVAEModel(AiTVQVAEConfig(**settings))
        with torch.no_grad():
            tokenizer.decoder.output.bias += 3.0 if name == "depth" else 0.0  # metres
        tokenizer.save_pretrained(data / f"{name}_tokenizer")
    for name, script in SCRIPTS.items():
        (data / f"{name}.yaml").write_text(yaml.safe_dump(script.recipe(data)))


def write_pairs(folder: Path) -> None:
    """Images and depth maps as files, which rows name and training opens."""
    rng = np.random.default_rng(0)
    for split, count in {"train": 8, "validation": 2}.items():
        for part in ("images", "depth"):
            (folder / split / part).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (32, 48, 3), np.uint8)
            Image.fromarray(pixels).save(folder / split / "images" / f"{number}.png")
            depth = rng.integers(800, 6000, (32, 48)).astype(np.uint16)
            Image.fromarray(depth).save(folder / split / "depth" / f"{number}.png")


def arguments(name: str, data: Path, output: Path) -> list[str]:
    """Command line of a script, which goes on with what lies in the folder of its output."""
    section = SCRIPTS[name].section
    return [str(data / f"{name}.yaml"), f"--{section}output={output}", f"--{section}resume=true"]


def run_script(name: str, words: list[str]) -> None:
    """The script itself, in this process; it ends in SystemExit where it says what is wrong."""
    path = TRAINING / SCRIPTS[name].file
    sys.argv = [str(path), *words]
    runpy.run_path(str(path), run_name="__main__")


def exec_script(name: str, words: list[str]) -> None:
    """The script in place of this process, from the start of Python on."""
    os.execv(sys.executable, [sys.executable, str(TRAINING / SCRIPTS[name].file), *words])
