"""Checkpoints that are damaged, incomplete or of another model: errors of one type that name the file."""

import json

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel

from transformers_ait import (
    AiTConfig,
    AiTDepthImageProcessor,
    AiTForDenseAndInstancePrediction,
    AiTVQVAEConfig,
    AiTVQVAEModel,
    HourglassForPoseLifting,
    HourglassPoseConfig,
    HourglassPoseProcessor,
)

POSE = {"num_frames": 9, "hidden_size": 16, "num_hidden_layers": 2, "prune_before": [1], "num_kept_frames": [3]}
INDEX = "model.safetensors.index.json"


@pytest.fixture(params=["depth", "vqvae", "pose"])
def checkpoint(request, tiny_model, tiny_vqvae_config, tmp_path):
    """Class and folder of a checkpoint of each family."""
    model = {
        "depth": tiny_model,
        "vqvae": lambda: AiTVQVAEModel(tiny_vqvae_config()),
        "pose": lambda: HourglassForPoseLifting(HourglassPoseConfig(**POSE)),
    }[request.param]()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    return type(model), folder


@pytest.mark.parametrize("how", ["truncated", "empty", "garbage", "enormous header"])
def test_damaged_weights(checkpoint, how):
    kind, folder = checkpoint
    path = folder / "model.safetensors"
    data = path.read_bytes()
    changes = {"truncated": data[:-9], "empty": b"", "garbage": b"x" * 99, "enormous header": b"\xff" * 8 + data[8:]}
    path.write_bytes(changes[how])
    for load in (kind.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(OSError, match=r"weights of .*model.* are damaged or incomplete"):
            load(folder)


def test_weights_of_another_configuration(checkpoint):
    kind, folder = checkpoint
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change = {"code_dim": 7} if kind is AiTVQVAEModel else {"hidden_size": 32}
    config = config | change if kind is not AiTForDenseAndInstancePrediction else config | {"num_bins": 99}
    path.write_text(json.dumps(config))
    with pytest.raises(OSError, match=r"not those of its configuration .* ignore_mismatched_sizes") as caught:
        kind.from_pretrained(folder)
    assert isinstance(caught.value, RuntimeError)  # what transformers raises


def test_weights_of_torch_that_are_no_checkpoint(checkpoint):
    kind, folder = checkpoint
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="damaged or incomplete"):
        kind.from_pretrained(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "must hold a JSON object, got list"),
        ({"metadata": {}}, "must hold a weight_map from tensors to files, got None"),
        ({"metadata": {}, "weight_map": 5}, "must hold a weight_map .* got 5"),
        ({"weight_map": {"a": "a.safetensors"}}, "must hold an object as metadata, got None"),
    ],
)
def test_tables_of_weight_files(checkpoint, index, message):
    kind, folder = checkpoint
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(OSError, match=f"{INDEX} {message}"):
        kind.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"5", b'["a"]', b""])
def test_configurations_that_are_no_json_object(checkpoint, content):
    kind, folder = checkpoint
    (folder / "config.json").write_bytes(content)
    for load in (kind.from_pretrained, kind.config_class.from_pretrained):
        with pytest.raises(OSError, match=r"config\.json (is no readable JSON file|must hold a JSON object)"):
            load(folder)


def test_a_missing_configuration_is_not_replaced_by_defaults(checkpoint):
    kind, folder = checkpoint
    (folder / "config.json").rename(folder / "elsewhere.json")
    for load in (kind.from_pretrained, kind.config_class.from_pretrained):
        with pytest.raises(FileNotFoundError, match=r"There is no config\.json in .*model"):
            load(folder)
    (folder / "config.json").mkdir()
    with pytest.raises(FileNotFoundError, match=r"There is no config\.json"):
        kind.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"5"])
@pytest.mark.parametrize("kind", [AiTDepthImageProcessor, HourglassPoseProcessor])
def test_processors_that_are_no_json_object(kind, content, tmp_path):
    (tmp_path / "preprocessor_config.json").write_bytes(content)
    with pytest.raises(OSError, match=r"preprocessor_config\.json (is no readable JSON file|must hold a JSON object)"):
        kind.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": "x"}, ValueError, "dtype must be a type of numbers such as 'float32' or torch.float32, got 'x'"),
        ({"dtype": []}, ValueError, "dtype must be"),
        ({"dtype": torch.float8_e4m3fn}, ValueError, "dtype must be"),
        ({"id2label": ["bed"]}, TypeError, r"id2label must map class ids to names, .* got \['bed'\]"),
        ({"id2label": {"bed": 0}}, ValueError, "id2label must map whole numbers to names, got {'bed': 0}"),
        ({"label2id": 5}, TypeError, "label2id must map class names to ids, .* got 5"),
        ({"num_labels": 2**40}, ValueError, "num_labels must be a whole number of classes, at most 65536"),
        ({"num_labels": "x"}, ValueError, "num_labels must be a whole number"),
        ({"subfolder": 5}, TypeError, "subfolder must be a text, got 5"),
        ({"attn_implementation": []}, TypeError, r"attn_implementation must be a name such as 'sdpa', got \[\]"),
        ({"quantization_config": 5}, TypeError, "quantization_config must be .* got 5"),
        ({"state_dict": 5}, TypeError, "state_dict must map names to tensors, got int"),
    ],
)
def test_arguments_that_cannot_be(checkpoint, arguments, error, message):
    kind, folder = checkpoint
    with pytest.raises(error, match=message):
        kind.from_pretrained(folder, **arguments)


def test_places_that_are_none():
    with pytest.raises(TypeError, match="pretrained_model_name_or_path must be a checkpoint folder .* got int 5"):
        AiTVQVAEModel.from_pretrained(5)
    with pytest.raises(TypeError, match="pretrained_model_name_or_path must be"):
        AiTVQVAEConfig.from_pretrained(b"folder")


def test_replaced_fields_are_checked_together(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match="image_size must be at most 16384, got 1099511627776"):
        AiTForDenseAndInstancePrediction.from_pretrained(tmp_path, image_size=2**40)
    with pytest.raises(StrictDataclassError, match="image_size must be a multiple of feature_stride 8, got 33"):
        AiTConfig.from_pretrained(tmp_path, image_size=33)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_frames": 0}, ValueError, "num_frames must be a whole number from 1 .* got 0"),
        ({"num_joints": "17"}, ValueError, "num_joints must be a whole number"),
        ({"left_joints": [4, "x"]}, TypeError, r"left_joints must be whole numbers, counted from 0, got \[4, 'x'\]"),
        ({"root_joint": None}, TypeError, "root_joint must be whole numbers"),
        ({"output": ["frame"]}, ValueError, "output must be one of"),
    ],
)
def test_pose_processors_name_settings(settings, error, message):
    with pytest.raises(error, match=message):
        HourglassPoseProcessor(**settings)


def test_good_checkpoints_load_as_before(checkpoint):
    kind, folder = checkpoint
    model = kind.from_pretrained(folder, dtype="float32")
    assert all(np.isfinite(p.detach().numpy()).all() for p in model.parameters()) and model.dtype == torch.float32
