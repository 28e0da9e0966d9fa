"""Original names and configurations: both ways, complete, and strict about what cannot be represented."""

import copy

import pytest
import torch
from golden_files import TASK_SOLVERS, VQVAES, original_config, original_tensors

from transformers_ait import AiTConfig, AiTForDenseAndInstancePrediction, AiTVQVAEModel
from transformers_ait.conversion.checkpoint import vqvae_sizes
from transformers_ait.conversion.key_map import dropped_reason, invert, task_solver_names, vqvae_names
from transformers_ait.conversion.original_config import (
    ait_config_from_original,
    original_from_ait_config,
    original_from_vqvae_config,
    vqvae_config_from_original,
)


@pytest.mark.parametrize("name", TASK_SOLVERS)
def test_names_cover_the_original_and_our_model(name):
    config, tensors = ait_config_from_original(original_config(name)), original_tensors(name)
    names = task_solver_names(config)
    assert set(names) == {key for key in tensors if dropped_reason(key) is None}
    with torch.device("meta"):
        model = AiTForDenseAndInstancePrediction(config)
    assert set(invert(names)) == set(model.state_dict())
    assert invert(invert(names)) == names


@pytest.mark.parametrize("name", VQVAES)
def test_vqvae_names_cover_the_original_and_our_model(name):
    config = vqvae_config_from_original(original_config(name))
    names = vqvae_names(config)
    assert set(names) == set(original_tensors(name))
    assert set(invert(names)) == set(AiTVQVAEModel(config).state_dict())


def test_a_map_that_is_not_one_to_one_has_no_inverse():
    with pytest.raises(ValueError, match="no inverse"):
        invert({"a": "x", "b": "x"})


def test_only_the_stated_entries_are_dropped():
    assert dropped_reason("backbone.layers.0.blocks.1.attn.relative_coords_table")
    assert dropped_reason("depth_head.transformer.decoder.blocks.0.attn.wk.bias")
    assert dropped_reason("transformer.decoder.blocks.0.attn.wk.bias") is None
    assert dropped_reason("backbone.norm.weight") is None
    assert dropped_reason("backbone.norm.weight", pretraining=True)


def without_defaults(config):
    """The original dictionary less what its absence means as well."""
    config = copy.deepcopy(config)
    config["transformer"].setdefault("parallel", False)
    for name, head in config["task_heads"].items():
        if name != "det":
            head.setdefault("decoder_loss_weight", 5.0 if name == "insseg" else 1.0)
            head["vae_cfg"].setdefault("tau", 1.0)
            head["vae_cfg"].setdefault("use_norm", True)
        if name == "insseg":
            head.setdefault("max_obj_decoderloss", 100)
    return config


@pytest.mark.parametrize("name", TASK_SOLVERS)
def test_configuration_round_trip(name):
    original = original_config(name)
    config = ait_config_from_original(original)
    back = original_from_ait_config(config)
    assert back == without_defaults(original)
    assert ait_config_from_original(back).to_dict() == config.to_dict()


@pytest.mark.parametrize("name", VQVAES)
def test_vqvae_configuration_round_trip(name):
    assert original_from_vqvae_config(vqvae_config_from_original(original_config(name))) == original_config(name)


def test_the_two_dialects_of_a_vqvae_mean_the_same():
    inside = ait_config_from_original(original_config("depth_ar_hard")).depth_tokenizer_config
    assert inside.to_dict() == vqvae_config_from_original(original_config("vqvae_depth")).to_dict()


def test_everything_that_changes_a_result_is_carried():
    original = original_config("joint")
    changes = {
        "backbone": {"drop_path_rate": 0.3, "use_shift": [True, False, True, False], "window_size": [3, 6, 6, 3]},
        "transformer": {"drop_path": 0.2, "drop_out": 0.4, "dec_length": 150, "top_p": 0.3, "num_vocal": 99},
    }
    for section, values in changes.items():
        original[section].update(values)
    original["task_heads"]["insseg"].update(
        loss_weight=2.0, mask_weight=0.3, decoder_loss_weight=4.0, max_obj_decoderloss=7, norm_val=130, num_query=5
    )
    original["task_heads"]["depth"].update(loss_weight=0.1, decoder_loss_weight=3.0)
    original["task_heads"]["depth"]["vae_cfg"]["tau"] = 0.7
    config = ait_config_from_original(original)
    assert (config.backbone_config.drop_path_rate, config.backbone_config.window_sizes) == (0.3, [3, 6, 6, 3])
    assert config.backbone_config.shift_windows == [True, False, True, False]
    decoder = config.decoder_config
    assert (decoder.drop_path_rate, decoder.dropout, decoder.max_positions) == (0.2, 0.4, 150)
    assert (config.top_p, config.num_spare_tokens, config.image_size) == (0.3, 19, 128)
    assert (config.instance_loss_weight, config.mask_code_weight, config.instance_aux_weight) == (2.0, 0.3, 4.0)
    assert (config.max_aux_objects, config.coordinate_scale, config.num_objects) == (7, 130, 5)
    assert (config.depth_loss_weight, config.depth_aux_weight, config.depth_tokenizer_config.tau) == (0.1, 3.0, 0.7)
    assert original_from_ait_config(config) == without_defaults(original)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("backbone", "ape"), True, "backbone.ape is True"),
        (("backbone", "novelty"), 1, "novelty"),
        (("transformer", "num_vocal"), 79, "take 80"),
        (("transformer", "n_rows"), 5, "square"),
        (("transformer", "in_chans"), 65, "in_chans is 65"),
        (("task_heads", "depth", "depth_token_offset"), 63, "depth_token_offset is 63"),
        (("task_heads", "depth", "soft_vae"), False, "soft_vae is False"),
        (("task_heads", "depth", "vae_cfg", "token_length"), 10, "token_length 10"),
        (("task_heads", "pose"), {}, "pose"),
        (("task_heads", "depth", "vae_cfg", "freeze"), False, "freeze is False"),
        (("transformer", "pred_eos"), True, "pred_eos is True"),
        (("transformer", "pos_enc"), "learned", "pos_enc is 'learned'"),
        (("backbone", "out_indices"), [2, 3], r"out_indices is \[2, 3\]"),
        (("backbone", "qkv_bias"), False, "qkv_bias is False"),
        (("backbone", "attn_drop_rate"), 0.1, "attn_drop_rate is 0.1"),
        (("test_cfg",), {"max_per_img": 10}, "test_cfg is {'max_per_img': 10}"),
    ],
)
def test_what_cannot_be_represented_is_an_error(path, value, message):
    original = original_config("depth_ar_soft")
    section = original
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        ait_config_from_original(original)


@pytest.mark.parametrize("key", ["seq_aug", "sync_cls_avg_factor"])
def test_switches_of_the_training_that_are_always_on(key):
    original = original_config("joint")
    expected = ait_config_from_original(original).to_dict()
    del original["task_heads"]["insseg"][key]
    assert ait_config_from_original(original).to_dict() == expected
    original["task_heads"]["insseg"][key] = False
    with pytest.raises(ValueError, match=f"task_heads.insseg.{key} is False"):
        ait_config_from_original(original)


def test_entries_without_effect_are_accepted():
    original = original_config("joint")
    expected = ait_config_from_original(original).to_dict()
    start = {"init_cfg": {"type": "Pretrained", "checkpoint": "a.pth"}, "pretrained": "b.pth"}
    original |= {**start, "train_cfg": {}, "test_cfg": None}
    original["transformer"] |= start
    original["backbone"] |= {**start, "use_checkpoint": True, "out_indices": (3,), "in_chans": 3, "frozen_stages": -1}
    original["backbone"] |= {"qkv_bias": True, "qk_scale": None, "drop_rate": 0.0, "pretrain_img_size": 224}
    original["task_heads"]["depth"] |= {**start, "test_cfg": {}}
    original["task_heads"]["insseg"]["vae_cfg"] |= start
    assert ait_config_from_original(original).to_dict() == expected


def test_a_missing_entry_is_an_error():
    original = original_config("depth_ar_soft")
    del original["transformer"]["d_model"]
    with pytest.raises(ValueError, match="transformer of the original configuration lacks 'd_model'"):
        ait_config_from_original(original)


def test_a_foreign_backbone_has_no_original():
    config = AiTConfig(backbone_config={"model_type": "ait_swinv2", "patch_size": 4, "layer_norm_eps": 1e-5})
    with pytest.raises(ValueError, match="layer_norm_eps"):
        original_from_ait_config(config)


@pytest.mark.parametrize("name", VQVAES)
def test_sizes_are_read_off_the_tensors(name):
    config, sizes = vqvae_config_from_original(original_config(name)), vqvae_sizes(original_tensors(name))
    assert sizes == {key: getattr(config, key) for key in sizes}
