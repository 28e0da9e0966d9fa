"""Training of pose lifting by recipe: a run on made-up motions, resumed, and the errors that a user can make."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoFeatureExtractor, AutoModel

from transformers_ait import HourglassPoseConfig
from transformers_ait.engine.pose_training import (
    PoseRecipe,
    PoseWindows,
    evaluate_poses,
    lift_video,
    load_videos,
    train_pose,
)
from transformers_ait.engine.recipes import RecipeError, build_config, build_recipe
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


def recipe(tmp_path, **changes):
    values = {
        "data": {
            "dataset": "synthetic_motions",
            "options": {"num_train": 6, "num_validation": 3, "num_frames": 20, "cache_dir": str(tmp_path / "cache")},
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
    return build_recipe(PoseRecipe, values, "the test")


@pytest.fixture
def without_pictures(monkeypatch):
    """Drawing them takes longer than the training."""
    monkeypatch.setattr("transformers_ait.engine.pose_training.write_pictures", lambda *_: None)


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


def test_videos_with_a_joint_that_is_never_seen_are_left_out(tmp_path, monkeypatch):
    source = recipe(tmp_path)
    whole, _ = load_videos(source, HourglassPoseProcessor(num_frames=9))
    monkeypatch.setattr("transformers_ait.engine.pose_training.never_seen", lambda x: [3] if seen.pop() else [])
    seen = [False, True] * 5
    fewer, _ = load_videos(source, HourglassPoseProcessor(num_frames=9))
    assert len(fewer) < len(whole)


def test_a_lifted_video_has_its_root_at_zero(tmp_path, without_pictures):
    folder = train_pose(recipe(tmp_path, training__max_steps=1))
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoFeatureExtractor.from_pretrained(folder)
    poses = lift_video(model, processor, torch.randn(23, 17, 2))
    assert poses.shape == (23, 17, 3) and (poses[:, 0] == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
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
    assert len(recipes) >= 4
    for path in recipes:
        built = build_recipe(PoseRecipe, yaml.safe_load(path.read_text()), path.name)
        build_config(HourglassPoseConfig, built.model.config, path.name)


def test_an_empty_set_of_videos_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers_ait.engine.pose_training.never_seen", lambda x: [0])
    with pytest.raises(RecipeError, match="it has no video to learn from"):
        train_pose(recipe(tmp_path))


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


def test_the_rate_falls_with_every_epoch(tmp_path, without_pictures):
    source = recipe(tmp_path, epoch_decay=0.5, training__max_steps=12, training__logging_steps=1)
    train_pose(source)
    (state,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-12/trainer_state.json")
    rates = [entry["learning_rate"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]
    videos, _ = load_videos(source, HourglassPoseProcessor(num_frames=9))
    per_epoch = -(-len(PoseWindows(videos, 9)) // 4)
    assert rates == pytest.approx([1e-3 * 0.5 ** (step // per_epoch) for step in range(12)])
    assert per_epoch < 12
