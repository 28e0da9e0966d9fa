"""What transformers' BackboneTesterMixin checks, on `AiTSwinV2Backbone`; the tests are named after the checks.

`docs/transformers-checks.md` lists them. Hidden states and attentions are also held against transformers' own SwinV2.
"""

import copy
import inspect

import pytest
import torch
from test_modeling_ait_swinv2 import stock_weights
from transformers import AutoBackbone, Swinv2Backbone, Swinv2Config
from transformers.backbone_utils import BackboneType

from transformers_ait import AiTConfig, AiTModel, AiTSwinV2Backbone, AiTSwinV2Config

# transformers divides q and k by their norm, this backbone by norm + 5e-5.
TOLERANCE = 2e-3
NAMES = ["stem", "stage1", "stage2", "stage3", "stage4"]


def test_config():
    config = AiTSwinV2Config()
    assert config.stage_names == NAMES and config.out_features == ["stage4"] and config.out_indices == [4]
    config = AiTSwinV2Config(out_features=None, out_indices=None)
    assert config.out_features == ["stage4"] and config.out_indices == [4]
    config = AiTSwinV2Config(out_features=["stem", "stage1"], out_indices=[0, 1])
    assert config.out_features == ["stem", "stage1"] and config.out_indices == [0, 1]
    assert AiTSwinV2Config(out_features=["stage1", "stage3"]).out_indices == [1, 3]
    assert AiTSwinV2Config(out_indices=[0, 2]).out_features == ["stem", "stage2"]
    with pytest.raises(ValueError, match="same stages"):
        AiTSwinV2Config(out_features=["stage1", "stage2"], out_indices=[0, 2])


def test_config_round_trip(tmp_path):
    AiTSwinV2Config(out_features=["stage1", "stage3"]).save_pretrained(tmp_path)
    loaded = AiTSwinV2Config.from_pretrained(tmp_path)
    assert loaded.out_indices == [1, 3] and loaded.stage_names == NAMES
    assert AiTSwinV2Config.from_pretrained(tmp_path, out_indices=[2]).out_features == ["stage2"]
    assert [AiTSwinV2Config(out_indices=[i]).stride for i in (0, 1, 2, 4, -1)] == [4, 4, 8, 32, 32]


def test_forward_signature():
    assert [*inspect.signature(AiTSwinV2Backbone.forward).parameters][1] == "pixel_values"


def test_channels(tiny_backbone_config):
    for features, channels in ((None, [16]), (["stem", "stage2"], [8, 16]), (["stage1"], [8])):
        backbone = AiTSwinV2Backbone(tiny_backbone_config(out_features=features))
        assert backbone.channels == channels and backbone.num_features == [8, 8, 16]


def test_create_from_modified_config(tiny_backbone_config, images):
    config = tiny_backbone_config(out_features=["stem", "stage1", "stage2"])
    assert len(AiTSwinV2Backbone(config)(images).feature_maps) == 3
    for name in ("out_features", "out_indices"):
        changed = copy.deepcopy(config)
        setattr(changed, name, None)
        backbone = AiTSwinV2Backbone(changed)
        assert len(backbone(images).feature_maps) == len(backbone.channels) == 1


def test_backbone_common_attributes(tiny_backbone_config):
    backbone = AiTSwinV2Backbone(tiny_backbone_config(out_indices=[1, 2]))
    assert backbone.backbone_type is BackboneType.TRANSFORMERS and backbone.has_attentions
    assert backbone.out_features == ["stage1", "stage2"] and backbone.out_indices == [1, 2]
    assert backbone.out_feature_channels == {"stem": 8, "stage1": 8, "stage2": 16}


@pytest.mark.parametrize("size", [(32, 32), (36, 30)])
def test_backbone_outputs(tiny_backbone_config, images, size, enliven):
    images = images[..., : size[0], : size[1]] if min(size) < 32 else images
    images = torch.nn.functional.pad(images, (0, 0, 0, size[0] - images.shape[2]))
    backbone = enliven(AiTSwinV2Backbone(tiny_backbone_config(out_features=["stem", "stage1", "stage2"])))
    with torch.no_grad():
        plain = backbone(images)
        full = backbone(images, output_hidden_states=True, output_attentions=True)
    assert type(plain.feature_maps) is tuple and plain.hidden_states is None and plain.attentions is None
    fine = [-(-side // 4) for side in size]
    sizes = [(8, *fine), (8, *fine), (16, *(-(-side // 2) for side in fine))]
    assert [tuple(x.shape[1:]) for x in plain.feature_maps] == sizes
    for found, hidden, expected in zip(full.feature_maps, full.hidden_states, plain.feature_maps, strict=True):
        assert (found - expected).abs().max() < 1e-4
        assert torch.equal(hidden.transpose(1, 2), found.flatten(2))
    assert [len(x) % len(images) for x in full.attentions] == [0] * 4
    assert all((x.sum(-1) - 1).abs().max() < 1e-5 for x in full.attentions)


def test_what_is_not_asked_for_does_not_change_what_is(tiny_backbone_config, images, enliven):
    """The last map is bit by bit the same alone, among others and with hidden states."""
    one, several = (
        AiTSwinV2Backbone(tiny_backbone_config(out_features=names)) for names in (None, ["stem", "stage1", "stage2"])
    )
    several.load_state_dict(enliven(one).state_dict())
    several.eval()
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            last = one(images).feature_maps[0]
            assert torch.equal(several(images).feature_maps[-1], last)
            assert torch.equal(one(images, output_hidden_states=True).feature_maps[0], last)


def test_stages_after_the_last_map_do_not_run(tiny_backbone_config, images):
    backbone = AiTSwinV2Backbone(tiny_backbone_config(out_features=["stage1"])).eval()
    calls = []
    backbone.stages[1].register_forward_hook(lambda *args: calls.append(1))
    assert backbone(images).feature_maps[0].shape == (3, 8, 8, 8) and not calls
    backbone(images, output_hidden_states=True)
    assert calls


def test_maps_states_and_weights_are_those_of_transformers(enliven):
    """On padded and shifted windows of 40 pixels; only the last stage's LayerNorm is missing there."""
    shape = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "drop_path_rate": 0.0, "layer_norm_eps": 1e-6}
    shape |= {"out_features": ["stem", "stage1", "stage2"], "pretrained_window_sizes": (3, 2)}
    stock = enliven(Swinv2Backbone(Swinv2Config(image_size=40, window_size=4, **shape)))
    stock.set_attn_implementation("eager")
    own = AiTSwinV2Backbone(AiTSwinV2Config(window_sizes=(4, 4), shift_windows=(True, True), **shape)).eval()
    missing, unexpected = own.load_state_dict(stock_weights(stock), strict=False)
    assert missing == ["norm.weight", "norm.bias"] and all("relative" in name for name in unexpected)
    images = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        expected = stock(images, output_hidden_states=True, output_attentions=True)
        found = own(images, output_hidden_states=True, output_attentions=True)
    for index in (0, 1):
        assert (found.feature_maps[index] - expected.feature_maps[index]).abs().max() < TOLERANCE
        assert (found.hidden_states[index] - expected.hidden_states[index]).abs().max() < TOLERANCE
    last = torch.nn.functional.layer_norm(expected.hidden_states[2], (16,), own.norm.weight, own.norm.bias, 1e-6)
    assert (found.hidden_states[2] - last).abs().max() < TOLERANCE
    # Ours are of every block, transformers' of every stage's last, which shifts its windows.
    for block, weights in zip((1, 3), expected.attentions, strict=True):
        assert found.attentions[block].shape == weights.shape
        assert (found.attentions[block] - weights).abs().max() < TOLERANCE


def test_return_dict_and_autobackbone(tiny_backbone_config, images):
    backbone = AutoBackbone.from_config(tiny_backbone_config(out_features=["stage1", "stage2"])).eval()
    assert type(backbone) is AiTSwinV2Backbone
    maps, hidden = backbone(images, return_dict=False, output_hidden_states=True)
    assert len(maps) == 2 and len(hidden) == 3
    assert backbone.forward_with_filtered_kwargs(images, output_attentions=False).attentions is None


def test_a_coarser_or_finer_map_feeds_the_task_solver(tiny_config, tiny_backbone_config, images):
    backbone = tiny_backbone_config(out_features=["stage1"])
    config: AiTConfig = tiny_config(backbone_config=backbone)
    assert config.feature_stride == 4 and config.grid_size == 8
    assert AiTModel(config)(images).last_hidden_state.shape == (3, 64, 16)


def test_attentions_of_an_hourglass_are_refused(tiny_backbone_config, images):
    backbone = AiTSwinV2Backbone(tiny_backbone_config()).eval()
    backbone.stages[1].hourglass = lambda x, blocks, workspace: x
    assert backbone(images).feature_maps
    with pytest.raises(ValueError, match="hourglass"):
        backbone(images, output_attentions=True)
