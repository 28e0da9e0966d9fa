"""Pose lifting against the goldens of the original: through the command line, frame by frame, losses and gradients."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoFeatureExtractor, AutoModel

from transformers_ait import HourglassForPoseLifting, HourglassPoseConfig
from transformers_ait.conversion.__main__ import main
from transformers_ait.conversion.pose import pose_names
from transformers_ait.hourglass import Hourglass
from transformers_ait.losses_pose import JOINT_WEIGHTS, pose_losses, total_pose_loss
from transformers_ait.token_pruning import select_by_density, select_uniform

GOLDENS = Path(__file__).parent / "goldens"
NAMES = ("hourglass_mixste", "hourglass_mixste_pruned")
WEIGHTS = "weights."


def golden(name):
    return load_file(GOLDENS / f"{name}.safetensors"), json.loads((GOLDENS / f"{name}.json").read_text())


def golden_config(stored, described):
    layers = sum(name.startswith(f"{WEIGHTS}STEblocks.") and name.endswith("norm1.bias") for name in stored)
    return HourglassPoseConfig(
        num_frames=described["frames"],
        hidden_size=described["channels"],
        num_hidden_layers=layers,
        prune_before=[described["block"]],
        num_kept_frames=[described["kept"]],
        output="frame" if "kept_frames" in stored else "sequence",
    )


@pytest.fixture(scope="module", params=NAMES)
def converted(request, tmp_path_factory):
    """(model, tensors of the golden, its description), the model converted by the command line."""
    stored, described = golden(request.param)
    folder = tmp_path_factory.mktemp("pose")
    golden_config(stored, described).save_pretrained(folder / "config")
    weights = {name.removeprefix(WEIGHTS): x for name, x in stored.items() if name.startswith(WEIGHTS)}
    torch.save({f"module.{name}": x for name, x in weights.items()}, folder / "original.pth")
    options = ["--checkpoint", str(folder / "original.pth"), "--config", str(folder / "config")]
    assert main([*options, "--output", str(folder / "model")]) == 0
    processor = AutoFeatureExtractor.from_pretrained(folder / "model")
    assert processor.num_frames == described["frames"]
    return AutoModel.from_pretrained(folder / "model").eval(), stored, described


@pytest.fixture
def golden_choice(converted, monkeypatch):
    """The frames that the original chose, whatever rounding makes of two that are each other's nearest."""
    _, stored, _ = converted
    frames = stored.get("kept_frames", stored["index"])
    seen = []

    def choose(features, count, always):
        assert count == frames.shape[1]
        seen.append(features)
        return frames

    monkeypatch.setattr("transformers_ait.hourglass.select_by_density", choose)
    return seen


def test_frames_are_those_of_the_original(converted):
    """Of what the original pooled, the choice is exact; so is the middle frame's place in it."""
    _, stored, described = converted
    if "kept_frames" not in stored:
        assert torch.equal(select_by_density(stored["pooled"], described["kept"]), stored["index"])
        return
    middle = (described["frames"] - 1) // 2
    assert torch.equal(select_by_density(stored["pooled"], described["kept"], always=middle), stored["kept_frames"])
    others = [frames[frames != middle] for frames in stored["kept_frames"]]
    assert torch.equal(torch.stack(others), stored["index"])


def test_features_poses_losses_and_gradients(converted, golden_choice):
    model, stored, described = converted
    model.zero_grad()
    output = model(stored["input"])
    (pooled,) = golden_choice
    assert (pooled - stored["pooled"]).abs().max() < 2e-6
    poses = output.poses if output.kept_poses is None else output.kept_poses
    assert (poses - stored["output"]).abs().max() < 1e-4
    losses = pose_losses(poses, stored["target"])
    assert losses.keys() == described["losses"].keys() - {"total"}
    total = total_pose_loss(losses)
    for name, value in {**losses, "total": total}.items():
        assert value.item() == pytest.approx(described["losses"][name], rel=1e-5), name
    total.backward()
    names, parameters = pose_names(model.config), dict(model.named_parameters())
    assert names.keys() == described["gradient_norms"].keys()
    for original, expected in described["gradient_norms"].items():
        found = parameters[names[original]].grad.norm().item()
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6), original


def kept_but_for_ties(features, kept, always):
    """Whether, of the frames without a twin, those kept are the best by the paper's score.

    Two frames that are each other's nearest have the same density, so that rounding decides which of them is near a
    denser one; the score of all others is definite.
    """
    x = features.double()
    distances = (x[:, None] - x[None]).norm(dim=-1) / x.shape[1] ** 0.5
    nearest = (distances + torch.eye(len(x)).double() * 1e9).argmin(1)
    density = (-distances.sort(1).values[:, :2].square().mean(1)).exp()
    # Twins' densities are equal but for the last digits of this computation too.
    is_denser = density[None] > density[:, None] * (1 + 1e-12)
    score = density * distances.where(is_denser, distances.max()).amin(1)
    alone = [i for i in range(len(x)) if nearest[nearest[i]] != i and i != always]
    ranked = sorted(alone, key=lambda i: -score[i].item())
    chosen = {*kept.tolist()} & {*alone}
    return chosen == {*ranked[: len(chosen)]}


def test_the_models_own_choice_differs_by_ties_alone(converted):
    """Features that agree to 2e-6 may exchange the two of a pair whose densities differ by rounding, and no others."""
    model, stored, described = converted
    with torch.no_grad():
        found = model(stored["input"]).kept_frames
    is_frame = "kept_frames" in stored
    expected, always = stored["kept_frames" if is_frame else "index"], model.config.middle_frame if is_frame else None
    pairs = list(zip(stored["pooled"], found, expected, strict=True))
    assert all(kept_but_for_ties(x, ours, always) and kept_but_for_ties(x, theirs, always) for x, ours, theirs in pairs)
    # Planted: even frames, and a choice by half of the channels.
    half = stored["pooled"].shape[-1] // 2
    others = (
        select_uniform(stored["pooled"], described["kept"], always),
        select_by_density(stored["pooled"][..., :half], described["kept"], always),
    )
    for choice in others:
        assert not any(kept_but_for_ties(x, frames, always) for x, frames in zip(stored["pooled"], choice, strict=True))


def test_planted_errors_are_seen(converted, golden_choice):
    """The comparison fails for a wrong table, a wrong order of the two norms, and other joint weights."""
    model, stored, described = converted
    poses = lambda out: out.poses if out.kept_poses is None else out.kept_poses  # noqa: E731
    with torch.no_grad():
        model.joint_norm, model.frame_norm = model.frame_norm, model.joint_norm
        assert (poses(model(stored["input"])) - stored["output"]).abs().max() > 1e-3
        model.joint_norm, model.frame_norm = model.frame_norm, model.joint_norm
        assert (poses(model(stored["input"])) - stored["output"]).abs().max() < 1e-4
    assert described["joint_weights"] == [*JOINT_WEIGHTS]
    wrong = pose_losses(stored["output"].roll(1, 2), stored["target"].roll(1, 2))["weighted_mpjpe"]
    assert wrong.item() != pytest.approx(described["losses"]["weighted_mpjpe"], rel=1e-5)


def test_the_way_back_gives_the_same_file(converted, tmp_path):
    model, stored, _ = converted
    model.save_pretrained(tmp_path / "ours")
    assert (
        main(["--checkpoint", str(tmp_path / "ours"), "--reverse", "--output", str(tmp_path / "back.safetensors")]) == 0
    )
    weights = {name.removeprefix(WEIGHTS): x for name, x in stored.items() if name.startswith(WEIGHTS)}
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("output", ["sequence", "frame"])
def test_motionbert_there_and_back(output, tmp_path, capsys):
    """Random weights under the original's names, whose table of frames has another shape."""
    config = HourglassPoseConfig(
        architecture="motionbert", num_frames=9, input_size=3, hidden_size=16, num_hidden_layers=2, mlp_ratio=4,
        num_attention_heads=2, representation_size=8, prune_before=[1], num_kept_frames=[4], output=output,
    )  # fmt: skip
    torch.manual_seed(0)
    model = HourglassForPoseLifting(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path / "ours")
    assert main(["--checkpoint", str(tmp_path / "ours"), "--reverse", "--output", str(tmp_path / "original.pth")]) == 0
    original = torch.load(tmp_path / "original.pth", weights_only=True)
    assert original["temp_embed"].shape == (1, 9, 1, 16)
    arguments = ["--checkpoint", str(tmp_path / "original.pth"), "--config", str(tmp_path / "ours")]
    assert main([*arguments, "--output", str(tmp_path / "again")]) == 0
    again = AutoModel.from_pretrained(tmp_path / "again")
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())
    original["blocks_ts.1.attn_t.qkv.weight"][0] += 1
    save_file({name: x.clone() for name, x in original.items() if name != "norm.bias"}, tmp_path / "short.safetensors")
    arguments[1] = str(tmp_path / "short.safetensors")
    assert main([*arguments, "--output", str(tmp_path / "short")]) == 1
    assert "norm.bias (16,) is missing" in capsys.readouterr().err
    assert not (tmp_path / "short").exists()


def test_a_wrong_map_of_names_does_not_pass_for_a_conversion(converted, tmp_path, monkeypatch, capsys):
    """The plain forward pass finds blocks that were exchanged."""
    model, stored, _ = converted
    names = pose_names(model.config)
    for part in ("weight", "bias"):
        first, second = f"STEblocks.0.norm1.{part}", f"STEblocks.1.norm1.{part}"
        names[first], names[second] = names[second], names[first]
    weights = {name.removeprefix(WEIGHTS): x.clone() for name, x in stored.items() if name.startswith(WEIGHTS)}
    generator = torch.Generator().manual_seed(0)
    weights["STEblocks.0.norm1.weight"] = torch.rand(weights["STEblocks.0.norm1.weight"].shape, generator=generator)
    save_file(weights, tmp_path / "original.safetensors")
    model.config.save_pretrained(tmp_path / "config")
    monkeypatch.setattr("transformers_ait.conversion.converter.pose_names", lambda config: names)
    options = ["--checkpoint", str(tmp_path / "original.safetensors"), "--config", str(tmp_path / "config")]
    assert main([*options, "--output", str(tmp_path / "model")]) == 1
    assert "pose lifting: poses" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_hourglass_owns_no_blocks():
    assert not [*Hourglass([1], [4]).parameters()]
