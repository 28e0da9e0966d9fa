"""One process with a batch of 4, two with 2 each, and one that accumulates 4 times 1 learn and measure the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from many_processes import CASES, TOKENIZERS

from transformers_ait import AiTForDenseAndInstancePrediction

ROOT = Path(__file__).parents[1]
SHARED = ("two", "accumulated")
EXACT = [case for case in CASES if case != "depth-soft"]
# Relative; what is planted is off by 100 times as much.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Function from how and case to what the training left; everything runs in one launch."""
    folder = tmp_path_factory.mktemp("many")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "tests" / "many_processes.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return lambda way, case: torch.load(folder / way / f"{case}.pt", weights_only=False)


def distance(found, expected):
    """Norm of the difference of named tensors over that of what is expected."""
    assert found.keys() == expected.keys()
    pairs = [(found[name].flatten().double(), x.flatten().double()) for name, x in expected.items()]
    first, second = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
    return ((first - second).norm() / second.norm()).item()


def lines(result, split):
    return [
        {name: x for name, x in line.items() if name != "split"} for line in result["log"] if line["split"] == split
    ]


def farthest(found, expected):
    """The largest `distance` of a tensor; codes that nothing is assigned to are huge, and would hide the others."""
    return max(distance({name: found[name]}, {name: x}) for name, x in expected.items())


def far(found, expected):
    """The largest relative difference of a logged value that is normalised over the whole batch."""
    names = [name for name in ("loss", "reconstruction") if name in expected]
    return max(abs(found[name] - expected[name]) / abs(expected[name]) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("way", SHARED)
@pytest.mark.parametrize("case", EXACT)
def test_losses_and_gradients_are_those_of_one_process(results, case, way):
    one, other = results("one", case), results(way, case)
    assert other["processes"] == (2 if way == "two" else 1)
    steps = zip(other["gradients"], one["gradients"], strict=True)
    assert max(distance(*step) for step in steps) < TOLERANCE
    for mine, theirs in zip(lines(other, "train"), lines(one, "train"), strict=True):
        assert far(mine, theirs) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("way", SHARED)
@pytest.mark.parametrize("case", EXACT)
def test_comparison_sees_micro_batches_that_mind_only_themselves(results, case, way):
    one, planted = results("one", case), results(way, f"{case}-planted")
    # Every crop has equally many pixels, and images count alike, so that only the codebook can go wrong.
    if case in ("vqvae-masks", "dense-decoder"):
        assert farthest(planted["codebook"], one["codebook"]) > 100 * TOLERANCE
    else:
        assert distance(planted["gradients"][0], one["gradients"][0]) > 100 * TOLERANCE
        steps = zip(lines(planted, "train"), lines(one, "train"), strict=True)
        # An untrained decoder's loss is much the same for all images.
        assert max(far(*step) for step in steps) > (100 if case != "dense" else 50) * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("way", SHARED)
@pytest.mark.parametrize("case", TOKENIZERS)
def test_codebook_statistics_are_those_of_one_process(results, case, way):
    one, other, planted = (results(*key)["codebook"] for key in (("one", case), (way, case), (way, f"{case}-planted")))
    assert {name.rsplit(".", 1)[1] for name in one} == {"codebook", "ema_cluster_size", "ema_sums"}
    assert farthest(other, one) < TOLERANCE
    assert farthest(planted, one) > 100 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("way", SHARED)
@pytest.mark.parametrize("case", EXACT)
def test_evaluation_is_that_of_one_process(results, case, way):
    mine, theirs = (lines(results(*key), "eval")[-1] for key in ((way, case), ("one", case)))
    assert mine == pytest.approx(theirs, rel=1e-4)
    if "objects" in results("one", case):
        # Untrained detectors find nothing, but this one does.
        mine, theirs = (results(*key)["objects"] for key in ((way, case), ("one", case)))
        assert mine == theirs and all(0.05 < value < 0.95 for value in theirs.values())


@pytest.mark.slow
def test_comparison_sees_an_evaluation_that_counts_a_row_twice(results):
    one, two = (results(way, "vqvae-depth") for way in ("one", "two"))
    assert one["naive evaluation"] == pytest.approx(lines(one, "eval")[-1]["rmse"], rel=1e-5)
    assert abs(two["naive evaluation"] / one["naive evaluation"] - 1) > 100 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("way", SHARED)
def test_soft_decode_is_off_by_a_known_amount(results, way):
    """The auxiliary loss is the root of one mean per forward pass, so that splitting a batch changes it a little."""
    one, other = results("one", "depth-soft"), results(way, "depth-soft")
    loss = far(lines(other, "train")[0], lines(one, "train")[0])
    gradient = distance(other["gradients"][0], one["gradients"][0])
    print(f"{way}: soft decode changes the loss by {loss:.2%}, its gradient by {gradient:.2%}")
    assert TOLERANCE < loss < 0.02 and TOLERANCE < gradient < 0.05


@pytest.mark.slow
def test_sharded_blocks_learn_as_a_whole_model(results):
    """The model under torch's FSDP; Accelerate's needs accelerators, on CPUs it leaves sharding out without a word."""
    found = results("two", "sharding")
    assert distance(found["sharded"], found["whole"]) < TOLERANCE
    assert distance(found["own"], found["whole"]) > 100 * TOLERANCE
    # Each process holds about half of everything.
    assert sum(found["parts"].values()) / len(found["parts"]) < 0.6


def test_fsdp_wraps_blocks_that_the_model_has(tiny_model):
    config = load_config_from_file(str(ROOT / "training" / "accelerate_configs" / "fsdp.yaml"))
    wrapped = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(",")
    assert sorted(wrapped) == sorted(AiTForDenseAndInstancePrediction._no_split_modules)
    assert set(wrapped) <= {type(module).__name__ for module in tiny_model().modules()}
    assert config.fsdp_config["fsdp_version"] == 2
    # What checkpoints and the model's folder are written from.
    assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
