"""The training scripts as users run them, on a handful of tiny rooms."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from transformers import pipeline

import transformers_ait.data  # noqa: F401 - registers synthetic_rooms
from transformers_ait import AiTForDenseAndInstancePrediction, AiTVQVAEModel
from transformers_ait.engine.recipes.reading import load_recipe, run_from_command_line
from transformers_ait.engine.recipes.scripts import DepthRecipe, VQVAERecipe
from transformers_ait.engine.reporting.log import LOG_FILE, read_log
from transformers_ait.engine.tasks.dense import train_dense
from transformers_ait.engine.tasks.vqvae import train_vqvae

ROOT = Path(__file__).parents[1]
TRAINING = ROOT / "training"
VQVAE = str(TRAINING / "recipes" / "vqvae-tiny-rooms-depth.yaml")
ROOMS = {"height": 32, "width": 48, "num_train": 8, "num_validation": 3, "num_test": 0}
RUN = ["--run.steps=2", "--run.batch_size=4", "--run.log_every=1", "--run.panels=1", "--data.in_memory=true"]
VQVAE_SMALL = ["--model.config", "{image_size: 32, downsample_ratio: 8, num_codes: 16, code_dim: 8}"]
# Stride 8, so that tokens and memory form equal grids of 4 x 4.
DEPTH_SMALL = [
    "--model.config",
    "{image_size: 32, feature_stride: 8, backbone_config: {out_indices: [2]}, decoder_config: {hidden_size: 32}}",
]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Overrides that name the tiny rooms, rendered once."""
    cache = tmp_path_factory.mktemp("rooms")
    datasets.load_dataset("synthetic_rooms", cache_dir=str(cache), **ROOMS)
    options = json.dumps({**ROOMS, "cache_dir": str(cache)})
    return ["--data.options", options]


@pytest.fixture(scope="module")
def tokenizer(rooms, tmp_path_factory):
    """Folder of a VQ-VAE run through `accelerate launch`."""
    folder = tmp_path_factory.mktemp("vqvae") / "run"
    config = ["--config_file", str(TRAINING / "accelerate_configs" / "cpu.yaml")]
    script = [str(TRAINING / "run_vqvae.py"), VQVAE, "--run.output", str(folder)]
    launch([*ACCELERATE, *config, *script, *RUN, *VQVAE_SMALL, *rooms])
    return folder


@pytest.fixture(scope="module")
def parallel(tokenizer, rooms, tmp_path_factory):
    """Folder of a parallel run, which starts from the ImageNet weights that the recipe names."""
    folder = tmp_path_factory.mktemp("parallel") / "run"
    arguments = ["--model.depth_tokenizer", str(tokenizer / "model"), "--run.output", str(folder)]
    recipe = [recipe_path("tiny-rooms-depth-parallel"), *arguments, *RUN, *DEPTH_SMALL, *rooms]
    train_dense(load_recipe(DepthRecipe, recipe))
    return folder


ACCELERATE = ["-m", "accelerate.commands.launch"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def launch(arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def recipe_path(name):
    return str(TRAINING / "recipes" / f"{name}.yaml")


@pytest.mark.slow
def test_vqvae_run_leaves_what_it_promises(tokenizer):
    names = {path.name for path in tokenizer.iterdir()}
    expected = {"recipe.yaml", LOG_FILE, "metrics.json", "model", "panels", "checkpoints"}
    assert expected <= names and not any(name.endswith(".tmp") for name in names)
    AiTVQVAEModel.from_pretrained(tokenizer / "model")
    card = (tokenizer / "model" / "README.md").read_text()
    assert "library_name: transformers" in card and "rmse" in card and str(tokenizer) not in card
    log = read_log(tokenizer / LOG_FILE)
    assert [line["step"] for line in log if line["split"] == "train"] == [1, 2]
    assert {"loss", "reconstruction", "commitment", "codes_used", "lr", "grad_norm"} <= log[0].keys()
    assert {"d1", "rmse", "abs_rel"} <= log[-1].keys()


def half_precision(tensor):
    """What half precision keeps of a tensor; codes that nothing used are cut at its largest number."""
    largest = torch.finfo(torch.float16).max
    return tensor.clamp(-largest, largest).half().float()


def check_depth_run(folder, tokenizer):
    model = AiTForDenseAndInstancePrediction.from_pretrained(folder / "model")
    assert model.dtype == torch.float32
    assert model.config.depth_tokenizer_config.tau == 0.8 and model.config.num_depth_codes == 16
    trained = load_file(tokenizer / "model" / "model.safetensors")
    for key, x in model.depth_tokenizer.state_dict().items():
        assert torch.equal(x, half_precision(trained[key]))
    stored = load_file(folder / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float16}
    assert [path.name for path in (folder / "panels").iterdir()] == ["step-00000002.png"]
    return model


@pytest.mark.slow
def test_parallel_run(parallel, tokenizer):
    assert check_depth_run(parallel, tokenizer).config.parallel


@pytest.mark.slow
def test_autoregressive_run_starts_from_the_parallel_one(parallel, tokenizer, rooms, tmp_path):
    arguments = ["--model.depth_tokenizer", str(tokenizer / "model"), "--run.output", str(tmp_path / "run")]
    start = ["--model.initialize_from", str(parallel / "model")]
    recipe = [recipe_path("tiny-rooms-depth"), *arguments, *start, *RUN, *DEPTH_SMALL, *rooms, "--optim.lr", "1e-9"]
    train_dense(load_recipe(DepthRecipe, recipe))
    model = check_depth_run(tmp_path / "run", tokenizer)
    earlier = AiTForDenseAndInstancePrediction.from_pretrained(parallel / "model")
    assert not model.config.parallel
    theirs = dict(earlier.model.named_parameters())
    assert all(torch.allclose(x, theirs[name], atol=1e-3) for name, x in model.model.named_parameters())


@pytest.mark.slow
def test_bins_run_gives_a_model_for_the_pipeline(rooms, tmp_path):
    script = [str(TRAINING / "run_depth.py"), recipe_path("tiny-rooms-depth-bins"), "--model.initialize_from", "null"]
    bins = ["--model.config.depth_tokenizer_config", "{image_size: 32, downsample_ratio: 8}"]
    launch([*script, "--run.output", str(tmp_path / "run"), *RUN, *DEPTH_SMALL, *bins, *rooms])
    folder = tmp_path / "run" / "model"
    image = datasets.load_dataset("synthetic_rooms", split="validation", **json.loads(rooms[1]))[0]["image"]
    depth = pipeline("depth-estimation", model=str(folder), device="cpu")(image)["predicted_depth"]
    assert depth.shape == (32, 48) and np.isfinite(depth).all()
    assert json.loads((folder / "preprocessor_config.json").read_text())["size"] == {"height": 32, "width": 32}


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(rooms, tmp_path):
    arguments = [VQVAE, *RUN, *VQVAE_SMALL, *rooms, "--run.output"]
    launch([*TORCHRUN, str(TRAINING / "run_vqvae.py"), *arguments, str(tmp_path / "two")])
    train_vqvae(load_recipe(VQVAERecipe, [*arguments, str(tmp_path / "one")]))
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, rtol=1e-4, atol=1e-5), name
    logs = [read_log(tmp_path / name / LOG_FILE) for name in ("one", "two")]
    for mine, theirs in zip(*logs, strict=True):
        assert mine.keys() == theirs.keys() and mine["split"] == theirs["split"]
        # Codes used are counted per process.
        names = mine.keys() - {"split", "codes_used"}
        assert [theirs[name] for name in names] == pytest.approx([mine[name] for name in names], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run.log_evry", "2"], ["run.log_evry", "run.log_every"]),
        (["--model.config.num_code", "2"], ["model.config.num_code", "num_codes"]),
        (["--run.steps", "many"], ["run.steps", "int"]),
        (["--data.dataset", "no_such_rooms"], ["data.dataset", "no_such_rooms"]),
        (["--data.eval_split", "dev"], ["data.dataset", "dev"]),
        (["--run.micro_batch", "3"], ["run.batch_size", "multiple"]),
        (["--data.eval_limit", "0"], ["eval_limit", "positive"]),
        (["--patch_mask.patch_size", "5"], ["patch_mask.patch_size must divide", "128", "got 5"]),
        (["--maps", "masks"], ["model.config.ignore_zero must be false"]),
    ],
)
def test_bad_input_ends_with_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, rooms, arguments, words):
    monkeypatch.setattr(sys, "argv", ["run", VQVAE, "--run.output", str(tmp_path / "run"), *RUN, *rooms, *arguments])
    with pytest.raises(SystemExit) as exit_info:
        run_from_command_line(VQVAERecipe, train_vqvae, "")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert exit_info.value.code == 2
    assert error.startswith("error: ") and all(word in error for word in words), error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["model.depth_tokenizer is missing", "ait_bin_tokenizer"]),
        (["--model.depth_tokenizer", "{run}"], ["FileNotFoundError", "config.json", "Did you mean", "model"]),
        (["--model.depth_tokenizer", "nowhere"], ["FileNotFoundError", "nowhere"]),
        (
            ["--model.depth_tokenizer", "{run}/model", "--model.config.depth_tokenizer_config", "{num_codes: 3}"],
            ["only hold tau", "num_codes"],
        ),
    ],
)
def test_bad_tokenizers_are_named(tmp_path, monkeypatch, capsys, tokenizer, rooms, arguments, words):
    arguments = [argument.replace("{run}", str(tokenizer)) for argument in arguments]
    given = ["run", recipe_path("tiny-rooms-depth"), "--run.output", str(tmp_path / "run"), *RUN, *DEPTH_SMALL, *rooms]
    monkeypatch.setattr(sys, "argv", [*given, *arguments])
    with pytest.raises(SystemExit):
        run_from_command_line(DepthRecipe, train_dense, "")
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", sorted((TRAINING / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path):
    # Raises on keys that accelerate does not know.
    assert load_config_from_file(str(path)).num_processes >= 1


def test_help_lists_the_keys(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", "--help"])
    run_from_command_line(VQVAERecipe, train_vqvae, "What it does.")
    text = capsys.readouterr().out
    assert text.startswith("What it does.") and "--patch_mask.ratio: float | int = 0.5" in text
