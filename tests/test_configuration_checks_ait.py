"""What configurations refuse before anything is derived from it."""

import numpy as np
import pytest
from huggingface_hub.errors import StrictDataclassError

from transformers_ait import (
    AiTBinTokenizerConfig,
    AiTConfig,
    AiTPlainDenseConfig,
    AiTSwinV2Config,
    AiTTokenDecoderConfig,
    AiTVQVAEConfig,
    HourglassPoseConfig,
)

EVERY = (
    *(AiTConfig, AiTSwinV2Config, AiTTokenDecoderConfig, AiTVQVAEConfig, AiTBinTokenizerConfig, AiTPlainDenseConfig),
    HourglassPoseConfig,
)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id2label": 7}, "id2label must map class ids to names, .* got 7"),
        ({"id2label": ["a"]}, "id2label must map class ids to names"),
        ({"id2label": {0: None}}, "id2label must map whole numbers to names, got {0: None}"),
        ({"label2id": "x"}, "label2id must map class names to ids, .* got 'x'"),
        ({"num_labels": []}, r"num_labels must be a whole number of classes, at most 65536, got \[\]"),
        ({"num_labels": 1.5}, "num_labels must be a whole number"),
        ({"dtype": []}, r"dtype must be a type of numbers such as 'float32' or torch.float32, got \[\]"),
        ({"dtype": "x"}, "dtype must be a type of numbers"),
        ({"architectures": 5}, "architectures must be a list of names, got 5"),
        ({"return_dict": np.arange(3)}, "return_dict must be True or False"),
    ],
)
def test_fields_that_all_configurations_have(kind, settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        kind(**settings)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("given", [5, None, ["a"], "x", {1: 2}])
def test_dictionaries_that_are_none(kind, given):
    with pytest.raises(TypeError, match="config_dict must "):
        kind.from_dict(given)


@pytest.mark.parametrize(
    ("kind", "settings", "name"),
    [
        (AiTVQVAEConfig, {"num_resnet_blocks": 2**63}, "num_resnet_blocks must be at most 1024"),
        (AiTVQVAEConfig, {"hidden_size": 10**400}, "hidden_size must be at most 1048576"),
        (AiTSwinV2Config, {"depths": (2, 2, 2**31, 2)}, "depths must be at most 1024"),
        (AiTTokenDecoderConfig, {"num_tasks": 2**31 - 1}, "num_tasks must be at most 1024"),
        (AiTTokenDecoderConfig, {"num_encoder_layers": 2**40}, "num_encoder_layers must be at most 1024"),
        (AiTTokenDecoderConfig, {"hidden_size": 0}, "hidden_size must be at least 1"),
        (AiTConfig, {"image_size": 2**40}, "image_size must be at most 16384"),
        (AiTConfig, {"num_bins": 2**40}, "num_bins must be at most 1048576"),
        (HourglassPoseConfig, {"num_frames": 2**63}, "num_frames must be at most 1048576"),
        (AiTSwinV2Config, {"out_indices": []}, "out_indices must be at least one stage"),
        (AiTSwinV2Config, {"out_indices": [99]}, r"out_indices must lie in -5\.\.4, got \[99\]"),
        (AiTSwinV2Config, {"out_indices": 5}, "out_indices must be a list of stages, got 5"),
        (AiTSwinV2Config, {"out_features": "stage1"}, "out_features must be a list of stages, got 'stage1'"),
        (AiTConfig, {"dense_tasks": 5}, "dense_tasks must be a list of tasks"),
        (AiTPlainDenseConfig, {"dense_tasks": 0.5}, "dense_tasks must be a list of tasks"),
        (
            AiTConfig,
            {"backbone_config": {"model_type": []}},
            r"backbone_config must have a name as model_type, got \[\]",
        ),
    ],
)
def test_sizes_and_lists_that_cannot_be(kind, settings, name):
    with pytest.raises((TypeError, ValueError, StrictDataclassError), match=name):
        kind(**settings)


def test_empty_tables_of_classes_are_named():
    stored = AiTConfig().to_dict()
    with pytest.raises((ValueError, StrictDataclassError), match="id2label|num_labels"):
        AiTConfig.from_dict(stored, id2label={}, num_labels=3)
