"""Training of pose lifting by recipe: a run on made-up motions, resumed, and the errors that a user can make."""

import itertools
import json
import operator
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoFeatureExtractor, AutoModel

from transformers_ait import HourglassForPoseLifting, HourglassPoseConfig
from transformers_ait.engine.recipes.reading import RecipeError, build_config, build_recipe
from transformers_ait.engine.tasks.pose import (
    PoseRecipe,
    PoseWindows,
    evaluate_poses,
    lift_video,
    load_videos,
    train_pose,
)
from transformers_ait.processing_hourglass_pose import HourglassPoseProcessor

MODEL = {
    "num_frames": 9,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "prune_before": [1],
    "num_kept_frames": [3],
    "drop_path_rate": 0.0,
}

MHFORMER = {
    "architecture": "mhformer",
    "output": "frame",
    "num_frames": 9,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "generation_layers": 1,
    "dropout": 0.1,
    "prune_before": [1],
    "num_kept_frames": [3],
}
FEW = {"num_train": 4, "num_validation": 1, "num_frames": 18}


def recipe(tmp_path, **changes):
    values = {
        "data": {
            "dataset": "synthetic_motions",
            "options": {"num_train": 6, "num_validation": 3, "num_frames": 20},
        },
        "output": str(tmp_path / "run"),
        "model": {"config": MODEL},
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "save_steps": 2,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values[section] = {**values[section], name: value}
        else:
            values[section] = value
    values["data"]["options"] = {**values["data"]["options"], "cache_dir": str(tmp_path / "cache")}
    return build_recipe(PoseRecipe, values, "the test")


@pytest.fixture
def without_pictures(monkeypatch):
    """Drawing them takes longer than the training."""
    monkeypatch.setattr("transformers_ait.engine.tasks.pose.write_pictures", lambda *_: None)


@pytest.mark.slow
def test_a_run_leaves_all_that_is_needed(tmp_path):
    folder = train_pose(recipe(tmp_path, epoch_decay=0.9))
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoFeatureExtractor.from_pretrained(folder)
    assert not [*folder.glob("*.bin")], "no pickles beside the weights"
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(figures) == {"eval_mpjpe", "eval_p_mpjpe", "eval_velocity_error"}
    assert Image.open(tmp_path / "run" / "poses.gif").n_frames == 20
    assert Image.open(tmp_path / "run" / "poses.png").width > 500
    _, videos = load_videos(recipe(tmp_path), processor)
    again = evaluate_poses(model, videos)
    assert again["mpjpe"] == pytest.approx(figures["eval_mpjpe"], rel=1e-5)
    with pytest.raises(FileExistsError, match="--resume true"):
        train_pose(recipe(tmp_path))


@pytest.mark.slow
def test_a_resumed_run_is_the_unbroken_one(tmp_path, without_pictures):
    whole = AutoModel.from_pretrained(train_pose(recipe(tmp_path, output=str(tmp_path / "whole"))))
    train_pose(recipe(tmp_path, training__num_train_epochs=1, output=str(tmp_path / "broken")))
    for name in ("model", "checkpoints/checkpoint-4"):
        for path in sorted((tmp_path / "broken" / name).iterdir()):
            path.unlink()
        (tmp_path / "broken" / name).rmdir()
    resumed = AutoModel.from_pretrained(train_pose(recipe(tmp_path, resume=True, output=str(tmp_path / "broken"))))
    assert all(torch.equal(x, resumed.state_dict()[name]) for name, x in whole.state_dict().items())


def test_windows_hold_joints_and_poses_of_the_same_frames(tmp_path):
    videos, _ = load_videos(recipe(tmp_path), HourglassPoseProcessor(num_frames=9))
    windows = PoseWindows(videos, stride=5)
    assert len(windows) == 2 * sum(1 + (len(x) - 9) // 5 for x in videos.keypoints)
    for index in range(len(windows)):
        window = windows[index]
        video, start = windows.places[index // 2]
        mirrored = torch.equal(window["keypoints"], videos.processor.mirror(videos.keypoints[video][start : start + 9]))
        assert mirrored == index % 2
        expected = videos.joints[video][start : start + 9]
        expected = videos.processor.mirror(expected) if mirrored else expected
        assert torch.equal(window["labels"], expected)
        # A camera's picture of the pose: the joint to the right lies to the right, whether mirrored or not.
        labels = window["labels"]
        across = (labels[..., 0] / labels[..., 2]).flatten()
        correlation = torch.corrcoef(torch.stack([across, window["keypoints"][..., 0].flatten()]))[0, 1]
        assert correlation > 0.95  # not 1, by the noise and the filled gaps


@pytest.mark.parametrize("stride", [1, 5, 9, 50])
def test_windows_of_a_frames_model_lie_around_frames(tmp_path, stride):
    """With a stride of 1 they are those of an evaluation, one around every frame; every video has one."""
    processor = HourglassPoseProcessor(num_frames=9, output="frame", do_flip=False)
    videos, _ = load_videos(recipe(tmp_path), processor)
    windows = PoseWindows(videos, stride)
    straight = [windows[index] for index in range(0, len(windows), 2)]
    for number, (keypoints, joints) in enumerate(videos):
        own = [window for window, (video, _) in zip(straight, windows.places, strict=True) if video == number]
        middles = torch.stack([window["labels"][4] for window in own])
        assert torch.equal(middles, joints[min(stride // 2, (len(joints) - 1) // 2) :: stride])
        if stride == 1:
            expected = processor(keypoints)["keypoints"]
            assert torch.equal(torch.stack([window["keypoints"] for window in own]), expected)


def test_videos_with_a_joint_that_is_never_seen_are_left_out(tmp_path, monkeypatch):
    source = recipe(tmp_path)
    whole, _ = load_videos(source, HourglassPoseProcessor(num_frames=9))
    monkeypatch.setattr("transformers_ait.engine.tasks.pose.never_seen", lambda x: [3] if seen.pop() else [])
    seen = [False, True] * 5
    fewer, _ = load_videos(source, HourglassPoseProcessor(num_frames=9))
    assert len(fewer) < len(whole)


@pytest.mark.slow
def test_a_lifted_video_has_its_root_at_zero(tmp_path, without_pictures):
    folder = train_pose(recipe(tmp_path, training__max_steps=1))
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoFeatureExtractor.from_pretrained(folder)
    poses = lift_video(model, processor, torch.randn(23, 17, 2))
    assert poses.shape == (23, 17, 3) and (poses[:, 0] == 0).all()


@pytest.mark.slow
def test_mhformer_learns_resumes_and_lifts_every_frame(tmp_path, without_pictures):
    """Its normalisations of batches and the largest moments of AMSGrad are part of what a resumed run goes on with."""
    changes = {
        "model": {"config": MHFORMER},
        "data__stride": 1,
        "epoch_decay": 0.95,
        "large_decay": 0.5,
        "amsgrad": True,
    }
    changes |= {"training__max_steps": 12, "training__save_steps": 6, "data__options": FEW}
    whole = AutoModel.from_pretrained(train_pose(recipe(tmp_path, **changes, output=str(tmp_path / "whole")))).eval()
    checkpoints = tmp_path / "whole" / "checkpoints"
    moments = torch.load(checkpoints / "checkpoint-12" / "optimizer.pt", weights_only=True)["state"]
    assert all("max_exp_avg_sq" in state for state in moments.values())
    (tmp_path / "broken" / "checkpoints").mkdir(parents=True)
    (checkpoints / "checkpoint-6").rename(tmp_path / "broken" / "checkpoints" / "checkpoint-6")
    broken = recipe(tmp_path, **changes, resume=True, output=str(tmp_path / "broken"))
    resumed = AutoModel.from_pretrained(train_pose(broken))
    assert all(torch.equal(x, resumed.state_dict()[name]) for name, x in whole.state_dict().items())
    processor = AutoFeatureExtractor.from_pretrained(tmp_path / "whole" / "model")
    source = recipe(tmp_path, **changes)
    _, videos = load_videos(source, processor)
    untrained = HourglassForPoseLifting(whole.config)
    assert evaluate_poses(whole, videos)["mpjpe"] < evaluate_poses(untrained, videos)["mpjpe"]
    assert lift_video(whole, processor, torch.randn(23, 17, 2)).shape == (23, 17, 3)


@pytest.mark.slow
def test_the_rate_falls_more_after_every_fifth_epoch(tmp_path, without_pictures):
    changes = {"epoch_decay": 0.9, "large_decay": 0.5, "data__options": {**FEW, "num_train": 1}}
    train_pose(recipe(tmp_path, **changes, training__max_steps=12, training__logging_steps=1))
    (state,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-12/trainer_state.json")
    rates = [entry["learning_rate"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]
    # Two windows, each mirrored too, are one batch of four: every step is an epoch.
    factors = [1e-3, 0.9, 0.9, 0.9, 0.9, 0.5, 0.9, 0.9, 0.9, 0.9, 0.5, 0.9]
    assert rates == pytest.approx([*itertools.accumulate(factors, operator.mul)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"large_decay": 0.5}, "large_decay 0.5 takes the place of epoch_decay .* give epoch_decay too"),
        ({"model__config": {**MHFORMER, "output": "sequence"}}, "output must be 'frame'"),
        ({"training__learning_speed": 1}, "training does not fit transformers.TrainingArguments"),
        ({"model__config": {**MODEL, "hiden_size": 3}}, "hiden_size"),
        (
            {"model__config": {**MODEL, "num_joints": 16, "left_joints": [], "right_joints": []}},
            "does not fit model.config",
        ),
        ({"data__dataset": "no_such_data"}, "cannot be loaded"),
    ],
)
def test_what_a_user_can_get_wrong(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        train_pose(recipe(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_recipes_that_ship_fit_their_model():
    recipes = sorted((Path(__file__).parents[1] / "training" / "recipes").glob("pose-*.yaml"))
    assert len(recipes) >= 5
    for path in recipes:
        built = build_recipe(PoseRecipe, yaml.safe_load(path.read_text()), path.name)
        build_config(HourglassPoseConfig, built.model.config, path.name)


def test_amsgrad_is_an_option_of_adam(tmp_path):
    with pytest.raises(RecipeError, match="amsgrad is an option of Adam and AdamW, but training.optim is .*sgd"):
        train_pose(recipe(tmp_path, amsgrad=True, training__optim="sgd"))


def test_an_empty_set_of_videos_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers_ait.engine.tasks.pose.never_seen", lambda x: [0])
    with pytest.raises(RecipeError, match="it has no video to learn from"):
        train_pose(recipe(tmp_path))


@pytest.mark.slow
def test_the_shipped_checkpoint_lifts_new_people(tmp_path):
    """Far better than the mean pose, and no better than chance on videos of other people."""
    folder = Path(__file__).parents[1] / "hub_configs" / "hourglass-pose-tiny"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4e6
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoFeatureExtractor.from_pretrained(folder)
    source = recipe(tmp_path, data__options={"num_train": 1, "num_validation": 8, "num_frames": 100})
    _, videos = load_videos(source, processor)
    assert evaluate_poses(model, videos)["mpjpe"] < 90
    videos.joints = videos.joints[1:] + videos.joints[:1]
    assert evaluate_poses(model, videos)["mpjpe"] > 150


@pytest.mark.slow
def test_the_rate_falls_with_every_epoch(tmp_path, without_pictures):
    source = recipe(tmp_path, epoch_decay=0.5, training__max_steps=12, training__logging_steps=1)
    train_pose(source)
    (state,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-12/trainer_state.json")
    rates = [entry["learning_rate"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]
    videos, _ = load_videos(source, HourglassPoseProcessor(num_frames=9))
    per_epoch = -(-len(PoseWindows(videos, 9)) // 4)
    assert rates == pytest.approx([1e-3 * 0.5 ** (step // per_epoch) for step in range(12)])
    assert per_epoch < 12
