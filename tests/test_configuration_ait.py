"""Configurations: round trips, derived values, and errors that name the argument and the fix."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, ResNetConfig, TimmBackboneConfig

from transformers_ait import AiTBinTokenizerConfig, AiTConfig, AiTSwinV2Config, AiTTokenDecoderConfig, AiTVQVAEConfig

SUB_CONFIGS = {
    "backbone_config": AiTSwinV2Config,
    "decoder_config": AiTTokenDecoderConfig,
    "depth_tokenizer_config": AiTVQVAEConfig,
    "mask_tokenizer_config": AiTVQVAEConfig,
}


def test_defaults_are_the_released_base_model():
    config = AiTConfig(tasks=("depth", "instance"), image_size=480)
    assert config.backbone_config.stride == config.feature_stride == 32
    assert config.backbone_config.num_features == 1024
    assert config.depth_tokenizer_config.num_tokens == 225 and config.depth_tokenizer_config.final_width == 256
    assert config.mask_tokenizer_config.num_tokens == 16 and config.mask_tokenizer_config.final_width == 128
    assert config.depth_tokenizer_config.tau == 0.8 and config.mask_tokenizer_config.tau == 1.0
    assert config.sequence_length("depth") == 225 and config.sequence_length("instance") == 2100
    assert config.vocabulary.size == 2339
    assert config.num_labels == 80 and config.id2label[0] == "person" and config.id2label[79] == "toothbrush"
    assert config.default_task == "depth" and config.grid_size == 15 and config.coordinate_scale == 480


@pytest.mark.parametrize(
    "config",
    [
        AiTSwinV2Config(
            embed_dim=16,
            depths=(1, 2),
            num_heads=(1, 2),
            window_sizes=(4, 4),
            pretrained_window_sizes=(4, 4),
            shift_windows=(True, False),
        ),
        AiTVQVAEConfig(image_size=64, tau=0.5, num_channels=3),
        AiTBinTokenizerConfig(max_value=80),
        AiTTokenDecoderConfig(hidden_size=64),
    ],
    ids=lambda config: config.model_type,
)
def test_small_configurations_survive_a_round_trip(config, tmp_path):
    config.save_pretrained(tmp_path)
    assert type(config).from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"tasks": ("detection",), "depth_tokenizer_config": None},
        {"parallel": True, "soft_feedback": False, "num_spare_tokens": 7, "depth_aux_weight": 0},
        {"backbone_config": ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1], out_indices=[2]), "feature_stride": 8},
        {
            "backbone_config": TimmBackboneConfig(backbone="test_resnet", use_pretrained_backbone=False),
            "feature_stride": 32,
        },
        {"depth_tokenizer_config": AiTBinTokenizerConfig(image_size=32, downsample_ratio=8, num_codes=12)},
    ],
)
def test_whole_configuration_survives_a_round_trip(tiny_config, tmp_path, overrides):
    config = tiny_config(**overrides)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is AiTConfig
    loaded._name_or_path = config._name_or_path
    assert loaded.to_dict() == config.to_dict()
    for name in SUB_CONFIGS:
        assert type(getattr(loaded, name)) is type(getattr(config, name))
    assert AiTConfig(**json.loads((tmp_path / "config.json").read_text())).to_dict() == config.to_dict()


def test_sub_configurations_may_be_dictionaries(tiny_config):
    config = tiny_config()
    names = [name for name in SUB_CONFIGS if getattr(config, name) is not None]
    from_dictionaries = tiny_config(**{name: getattr(config, name).to_dict() for name in names})
    assert all(type(getattr(from_dictionaries, name)) is SUB_CONFIGS[name] for name in names)
    assert from_dictionaries.to_dict() == config.to_dict()


def test_nested_overrides_while_loading(tiny_config, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(
        tmp_path, backbone_config={"drop_path_rate": 0.3}, depth_tokenizer_config={"tau": 0.5}, soft_feedback=False
    )
    assert loaded.backbone_config.drop_path_rate == 0.3 and loaded.backbone_config.embed_dim == 8
    assert loaded.depth_tokenizer_config.tau == 0.5 and loaded.depth_tokenizer_config.num_codes == 12
    assert loaded.soft_feedback is False


def test_number_of_classes(tiny_config, tmp_path):
    assert tiny_config(num_labels=5).vocabulary.classes.size == 5
    named = tiny_config(id2label={0: "bed", 1: "lamp"})
    assert named.vocabulary.classes.size == 2
    named.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).id2label == {0: "bed", 1: "lamp"}


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"tasks": ("depht",)}, r"tasks must name at least one of .*'depth'.*got \['depht'\]"),
        ({"tasks": ()}, "tasks must name at least one"),
        ({"tasks": "depth"}, "tasks"),
        ({"default_task": "instance"}, r"default_task must be one of tasks \['depth'\], got 'instance'"),
        ({"image_size": 36}, "image_size must be a multiple of feature_stride 8, got 36"),
        ({"image_size": 24}, "image_size of the depth tokenizer must not exceed"),
        ({"feature_stride": 16}, "feature_stride must be 8, .*got 16"),
        (
            {"num_depth_codes": 128},
            "num_depth_codes is 128, but the depth tokenizer has 12 codes.*set num_depth_codes=12",
        ),
        ({"backbone_config": {"model_type": "swinv3"}}, "backbone_config has model_type 'swinv3'"),
        ({"backbone_config": {"embed_dim": 8}}, "et `model_type` in the dictionary"),
        (
            {"decoder_config": {"max_positions": 8}},
            "max_positions must be at least 16, the sequence length of task 'depth'",
        ),
        ({"decoder_config": {"hidden_size": 18, "num_attention_heads": 3}}, "hidden_size must be divisible"),
        (
            {"tasks": ("instance",), "num_mask_codes": 5},
            "num_mask_codes is 5, but the instance tokenizer has 128 codes",
        ),
        ({"soft_feedback": "yes"}, "soft_feedback"),
    ],
)
def test_contradictions_are_named(tiny_config, overrides, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        tiny_config(**overrides)


@pytest.mark.parametrize(
    "config_class, settings, message",
    [
        (AiTVQVAEConfig, {"downsample_ratio": 3}, "downsample_ratio must be a power of two >= 2, got 3"),
        (AiTVQVAEConfig, {"downsample_ratio": 0}, "downsample_ratio must be a power of two >= 2, got 0"),
        (AiTVQVAEConfig, {"image_size": 100}, r"image_size must be a multiple of downsample_ratio \(32\), got 100"),
        (AiTBinTokenizerConfig, {"image_size": 100}, "image_size must be a multiple"),
        (AiTSwinV2Config, {"window_sizes": (8, 8)}, "window_sizes must have one entry per stage"),
        (AiTSwinV2Config, {"embed_dim": 90}, r"num_heads\[0\] must divide"),
        (AiTSwinV2Config, {"mlp_ratio": "4"}, "mlp_ratio"),
    ],
)
def test_impossible_sub_configurations_are_named(config_class, settings, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        config_class(**settings)


@pytest.mark.parametrize(
    "config_class, settings",
    [
        (AiTBinTokenizerConfig, {"downsample_ratio": 0}),
        (AiTSwinV2Config, {"num_heads": (0, 8, 16, 32)}),
        (AiTSwinV2Config, {"window_sizes": (0, 8, 8, 8)}),
        (AiTSwinV2Config, {"patch_size": 0}),
        (AiTVQVAEConfig, {"num_codes": 0}),
        (AiTVQVAEConfig, {"hidden_size": 0}),
        (AiTConfig, {"feature_stride": 0}),
        (AiTConfig, {"depth_tokenizer_config": {"model_type": "resnet"}}),
        (AiTConfig, {"tasks": ("instance",), "parallel": True}),
    ],
)
def test_impossible_sizes_and_kinds_are_refused_with_the_argument_s_name(config_class, settings):
    with pytest.raises((ValueError, StrictDataclassError), match=list(settings)[-1]):
        config_class(**settings)
