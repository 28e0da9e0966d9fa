"""The hourglass around trained image backbones: nothing lost where nothing is pruned, biases gathered, clear errors."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoBackbone,
    AutoModelForDepthEstimation,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from transformers_ait import AiTSwinV2Backbone, AiTSwinV2Config, add_hourglass
from transformers_ait.token_pruning import gather_tokens

SMALL = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
VITS = {
    "vit": (ViTModel, ViTConfig(image_size=32, patch_size=4, **SMALL)),
    "deit": (DeiTModel, DeiTConfig(image_size=32, patch_size=4, **SMALL)),
    "dinov2": (Dinov2Model, Dinov2Config(image_size=32, patch_size=4, mlp_ratio=2, **SMALL)),
    "registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(image_size=32, patch_size=4, num_register_tokens=3, mlp_ratio=2, **SMALL),
    ),
}
SELECTIONS = {"centroid": (4, 4), "cell": (4, 4), "density": 16, "uniform": 16}


def vit(name):
    torch.manual_seed(0)
    model_class, config = VITS[name]
    return model_class(config).eval()


def swin(shifts=(True, True, False, False), window=8):
    """Its third stage has 6 blocks on 8 x 8 tokens at 128 pixels, one window."""
    torch.manual_seed(0)
    config = AiTSwinV2Config(
        embed_dim=8, depths=[1, 1, 6, 1], num_heads=[1, 2, 4, 8], window_sizes=[window] * 3 + [4],
        pretrained_window_sizes=[window] * 3 + [4], shift_windows=list(shifts),
    )  # fmt: skip
    model = AiTSwinV2Backbone(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def images(size=32, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def last(model, pixels):
    output = model(pixels)
    return output.feature_maps[-1] if isinstance(model, AiTSwinV2Backbone) else output.last_hidden_state


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("name", VITS)
def test_vits_keep_their_shape_and_come_back(name, selection):
    model = vit(name)
    whole, names = last(model, images()), set(model.state_dict())
    counts = []
    probe = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))[2]
    probe.register_forward_pre_hook(lambda module, inputs: counts.append(inputs[0].shape[1]))
    handle = add_hourglass(model, 1, SELECTIONS[selection], selection=selection)
    pruned = last(model, images())
    prefix = whole.shape[1] - 64
    assert counts == [prefix + 16]
    assert pruned.shape == whole.shape and not torch.equal(pruned, whole)
    assert set(model.state_dict()) == names
    handle.remove()
    handle.remove()
    assert torch.equal(last(model, images()), whole)


@pytest.mark.parametrize("selection", ["cell", "density", "uniform"])
def test_keeping_all_tokens_changes_nothing(selection):
    everything = (8, 8) if selection == "cell" else 64
    for model, size in ((vit("vit"), 32), (swin(), 128)):
        whole = last(model, images(size))
        add_hourglass(model, 1, everything, selection=selection, recovery="nearest")
        assert (last(model, images(size)) - whole).abs().max() < 1e-5


def test_the_deviation_falls_with_more_tokens():
    for model, size in ((vit("vit"), 32), (swin(), 128)):
        whole, deviations = last(model, images(size)), []
        for side in (1, 2, 4, 6):
            handle = add_hourglass(model, 1, (side, side))
            deviations.append(((last(model, images(size)) - whole).norm() / whole.norm()).item())
            handle.remove()
        assert deviations[-1] < deviations[0]


def test_swin_tokens_see_the_biases_of_their_places():
    """Of a window, some tokens' block is the whole block's where all other keys are hidden."""
    attention = swin().stages[2].blocks[0].attention
    x = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(2))
    kept = torch.tensor([[0, 9, 17, 40, 63], [3, 4, 11, 50, 62]])
    positions = torch.arange(64)[None]
    from transformers_ait.modeling_ait_swinv2 import Workspace

    with torch.no_grad():
        whole = attention(x.unflatten(1, (8, 8)), Workspace()).flatten(1, 2)
        assert (attention.forward_tokens(x, positions) - whole).abs().max() < 1e-5
        some = attention.forward_tokens(gather_tokens(x, kept), kept)
        bias = attention._compute_table()
        for sample, places in enumerate(kept):
            rows, columns = places // 8, places % 8
            index = (rows[:, None] - rows + 7) * 15 + columns[:, None] - columns + 7
            qkv = torch.nn.functional.linear(x[sample, places], attention.qkv.weight)
            qkv = qkv + torch.cat([attention.q_bias, 0 * attention.q_bias, attention.v_bias])
            query, key, value = qkv.view(5, 3, 4, 8).permute(1, 2, 0, 3)
            query, key = (torch.nn.functional.normalize(v, dim=-1) for v in (query, key))
            scores = attention.logit_scale.clamp(max=4.6052).exp() * query @ key.transpose(1, 2) + bias[:, index]
            expected = attention.projection((scores.softmax(-1) @ value).transpose(0, 1).flatten(1))
            assert (some[sample] - expected).abs().max() < 1e-3
        # A bias of other places would be seen.
        assert (attention.forward_tokens(gather_tokens(x, kept), kept.flip(0)) - some).abs().max() > 1e-3


@pytest.mark.slow
def test_the_encoder_of_a_model_with_a_convolutional_backbone():
    folder = Path(__file__).parents[1] / "hub_configs" / "ait-lite-nyu"
    model = AutoModelForDepthEstimation.from_pretrained(folder).eval()
    pixels = torch.rand(1, 3, 240, 240, generator=torch.Generator().manual_seed(0))
    whole, counts = model.generate(pixels, "depth").predicted_depth, []
    model.model.encoder.blocks[1].register_forward_pre_hook(lambda module, inputs: counts.append(inputs[0].shape[1]))
    handle = add_hourglass(model, 0, (8, 8))
    pruned = model.generate(pixels, "depth").predicted_depth
    handle.remove()
    assert torch.equal(model.generate(pixels, "depth").predicted_depth, whole)
    assert counts == [64, 225]
    assert 0 < ((pruned - whole).abs() / whole).mean() < 0.2


def test_swin_recovers_before_the_last_blocks():
    model, seen = swin(), []
    whole = last(model, images(128))
    for block in model.stages[2].blocks:
        block.attention.projection.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1:-1]))
    add_hourglass(model, 1, (4, 4), until=4)
    assert last(model, images(128)).shape == whole.shape
    assert [shape.numel() for shape in seen] == [64, 16, 16, 16, 64, 64]


def test_threads_share_a_wrapped_model():
    model = vit("vit")
    add_hourglass(model, 1, (4, 4))
    inputs = [torch.randn(1, 3, 32, 32 + 4 * number) for number in range(4)]

    def run(pixels):
        return model(pixels, interpolate_pos_encoding=True).last_hidden_state

    with torch.no_grad():
        alone = [run(pixels) for pixels in inputs]
        with ThreadPoolExecutor(4) as pool:
            together = [*pool.map(run, inputs * 4)]
    for number, found in enumerate(together):
        assert (found - alone[number % 4]).abs().max() < 1e-5


def test_settings_that_do_not_fit():
    model = vit("vit")
    with pytest.raises(ValueError, match="0 <= before < until <= 4"):
        add_hourglass(model, 4, (4, 4))
    with pytest.raises(ValueError, match="recovery must be one of"):
        add_hourglass(model, 1, (4, 4), recovery="attention")
    with pytest.raises(ValueError, match="needs the grid of the tokens, and as kept the cells"):
        add_hourglass(model, 1, 16)
    add_hourglass(model, 1, (4, 4), num_prefix=2)
    with pytest.raises(ValueError, match="has an hourglass already"):
        add_hourglass(model, 1, (4, 4))
    with pytest.raises(ValueError, match="num_prefix=2 do not make the 65 tokens"):
        model(images())
    with pytest.raises(TypeError, match="convolutional backbones have no tokens to prune"):
        add_hourglass(ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])), 1, (4, 4))


def test_swin_settings_that_do_not_fit():
    with pytest.raises(ValueError, match="stage 0 shifts its windows"):
        add_hourglass(swin(), 0, (4, 4), stage=0)
    with pytest.raises(ValueError, match=r"stage must lie in 0..3"):
        add_hourglass(swin(), 0, (4, 4), stage=4)
    model = swin()
    add_hourglass(model, 1, (4, 4))
    with pytest.raises(ValueError, match="has an hourglass already"):
        add_hourglass(model, 1, (4, 4))
    with pytest.raises(ValueError, match="one window of 8 x 8 tokens, got 10 x 8"):
        model(torch.zeros(1, 3, 160, 128))
    model = swin()
    add_hourglass(model, 1, (9, 4))
    with pytest.raises(ValueError, match="cells must be one number in 1..length per axis"):
        last(model, images(128))


def test_feature_maps_must_not_come_from_the_middle():
    config = Dinov2Config(image_size=32, patch_size=4, mlp_ratio=2, out_indices=[2, 4], **SMALL)
    backbone = AutoBackbone.from_config(config).eval()
    with pytest.raises(
        ValueError, match=r"feature maps \[2\] of out_indices \[2, 4\] come from blocks with fewer tokens"
    ):
        add_hourglass(backbone, 1, (4, 4))
    stem = AutoBackbone.from_config(Dinov2Config(image_size=32, patch_size=4, mlp_ratio=2, out_indices=[0, 4], **SMALL))
    with pytest.raises(ValueError, match=r"feature maps \[0\]"):
        add_hourglass(stem, 0, (4, 4))
    add_hourglass(backbone, 2, (4, 4))
    with torch.no_grad():
        assert [m.shape for m in backbone(images()).feature_maps] == [(2, 16, 8, 8)] * 2


def test_gradients_flow_through_the_middle():
    model = vit("vit").train()
    add_hourglass(model, 1, (4, 4))
    model(images()).last_hidden_state.square().mean().backward()
    assert all(
        p.grad is not None for name, p in model.named_parameters() if "pooler" not in name and "mask" not in name
    )
