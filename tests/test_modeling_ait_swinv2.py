"""The backbone: against transformers' own SwinV2 where the two coincide, its bias cache, and what must not matter."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import Swinv2Config, Swinv2Model

from transformers_ait import AiTSwinV2Backbone, AiTSwinV2Config, modeling_ait_swinv2
from transformers_ait.modeling_ait_swinv2 import relative_coordinates

TOLERANCE = 1e-5


@pytest.fixture
def backbone(tiny_backbone_config, enliven):
    """A lively backbone, with padded windows and shifts."""
    return enliven(AiTSwinV2Backbone(tiny_backbone_config()))


def feature(backbone, images):
    return backbone(images).feature_maps[0]


def deviation(first, second):
    assert first.shape == second.shape
    return (first - second).abs().max().item()


def without_cache(backbone):
    """A copy that has never computed its bias."""
    twin = type(backbone)(backbone.config).to(backbone.dtype).eval()
    twin.load_state_dict(backbone.state_dict())
    return twin


# --- against an implementation of other authors ---


def stock_weights(stock):
    """The state of transformers' SwinV2 under this backbone's names."""
    renamed = {}
    for name, value in stock.state_dict().items():
        name = name.replace("embeddings.patch_embeddings.", "embeddings.").replace("encoder.layers.", "stages.")
        name = name.replace("attention.self.", "attention.").replace("attention.output.dense", "attention.projection")
        name = name.replace("continuous_position_bias_mlp", "position_mlp").replace("query.bias", "q_bias")
        name = (
            name.replace("value.bias", "v_bias")
            .replace("intermediate.dense", "mlp.fc1")
            .replace("output.dense", "mlp.fc2")
        )
        name = (
            name.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2").replace("layernorm", "norm")
        )
        renamed[name] = value
    for name in [n for n in renamed if n.endswith("query.weight")]:
        parts = [renamed.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        renamed[name.replace("query", "qkv")] = torch.cat(parts)
    return renamed


@pytest.fixture
def stock_pair(enliven):
    """transformers' SwinV2 and this backbone with its weights.

    Stock SwinV2 knows one window size, and shifts every stage whose map is larger than the window: with 40 pixels the
    maps are 10 and 5 positions wide, so both stages shift and both pad (the second an odd map).
    """
    shared = {"patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "layer_norm_eps": 1e-6}
    stock = Swinv2Model(
        Swinv2Config(image_size=40, window_size=4, pretrained_window_sizes=[3, 2], drop_path_rate=0.0, **shared),
        add_pooling_layer=False,
    )
    enliven(stock)
    config = AiTSwinV2Config(
        window_sizes=(4, 4), pretrained_window_sizes=(3, 2), shift_windows=(True, True), drop_path_rate=0.0, **shared
    )
    backbone = AiTSwinV2Backbone(config).eval()
    backbone.load_state_dict(stock_weights(stock))
    return stock, backbone


@torch.no_grad()
def stock_deviation(stock, backbone):
    images = torch.rand(2, 3, 40, 40)
    expected = stock(images).last_hidden_state.transpose(1, 2).unflatten(2, (5, 5))
    return deviation(feature(backbone, images), expected)


# The stock model divides q and k by their norm, this one by norm + 5e-5: hence not 1e-5.
def test_equals_stock_swinv2_where_they_coincide(stock_pair):
    assert stock_deviation(*stock_pair) < 2e-3


def perturb_weight(name, change):
    def plant(backbone):
        parameter = dict(backbone.named_parameters())[name]
        with torch.no_grad():
            parameter.copy_(change(parameter))

    return plant


def no_shift(backbone):
    for block in backbone.stages[1].blocks:
        block.attention.shift = 0


def swap_merged_neighbours(backbone):
    weight = backbone.stages[0].downsample.reduction.weight.data
    weight.copy_(weight.unflatten(1, (4, -1))[:, [0, 2, 1, 3]].flatten(1))


def wrong_pretrained_window(backbone):
    backbone.stages[0].blocks[0].attention.coordinates.copy_(relative_coordinates(4, 4))


@pytest.mark.parametrize(
    "plant",
    [
        perturb_weight(
            "stages.0.blocks.1.attention.logit_scale", lambda w: w + torch.tensor([0.3, 0.0])[:, None, None]
        ),
        perturb_weight("stages.1.blocks.0.attention.position_mlp.2.weight", lambda w: w.roll(1, 0)),
        perturb_weight("stages.0.blocks.0.attention.q_bias", lambda w: w + 0.1),
        perturb_weight("stages.1.blocks.1.attention.v_bias", lambda w: w.flip(0)),
        no_shift,
        swap_merged_neighbours,
        wrong_pretrained_window,
    ],
)
def test_comparison_with_stock_swinv2_notices_planted_errors(stock_pair, plant):
    plant(stock_pair[1])
    assert stock_deviation(*stock_pair) > 1e-2


def test_relative_coordinates_are_log_spaced_and_normalised_by_the_pretraining_window():
    table = relative_coordinates(window=3, pretrained_window=5)
    assert table.shape == (25, 2)
    assert table[0].tolist() == pytest.approx([-(5.0**0.0) * torch.log2(torch.tensor(5.0)).item() / 3] * 2)
    assert table[12].tolist() == [0, 0]
    assert torch.equal(table, -table.flip(0))


# --- what must not matter ---


@torch.no_grad()
def test_eager_equals_fused_attention(backbone, images):
    assert backbone.config._attn_implementation == "sdpa"
    fused = feature(backbone, images)
    backbone.set_attn_implementation("eager")
    assert backbone.stages[0].blocks[0].attention.config._attn_implementation == "eager"
    assert deviation(feature(backbone, images), fused) < TOLERANCE


@torch.no_grad()
def test_batched_equals_single(backbone, images):
    single = torch.cat([feature(backbone, image[None]) for image in images])
    assert deviation(feature(backbone, images), single) < TOLERANCE
    assert deviation(single[:1], single[1:2]) > 1e-2, "images must differ for this to show anything"


@pytest.mark.parametrize("height, width", [(40, 24), (36, 44), (8, 60), (13, 33), (4, 4)])
@torch.no_grad()
def test_any_image_size(backbone, height, width):
    image = torch.rand(1, 3, height, width)
    output = feature(backbone, image)
    assert output.shape == (1, 16, -(-height // 8), -(-width // 8))
    assert output.isfinite().all()
    # The patch embedding pads to whole patches with zeros.
    padded = torch.nn.functional.pad(image, (0, -width % 4, 0, -height % 4))
    assert torch.equal(output, feature(backbone, padded))


@torch.no_grad()
def test_shifting_is_a_switch_per_stage(tiny_backbone_config, backbone, images):
    for shifts in ((False, False), (True, True)):
        other = AiTSwinV2Backbone(tiny_backbone_config(shift_windows=shifts)).eval()
        other.load_state_dict(backbone.state_dict())
        assert deviation(feature(other, images), feature(backbone, images)) > 1e-3


@pytest.mark.parametrize("stages", [1, 3])
def test_any_number_of_stages(stages):
    config = AiTSwinV2Config(
        embed_dim=8,
        depths=(1,) * stages,
        num_heads=(2,) * stages,
        window_sizes=(3,) * stages,
        pretrained_window_sizes=(1,) * stages,
        shift_windows=(True,) * stages,
    )
    assert config.stride == 4 * 2 ** (stages - 1)
    assert feature(AiTSwinV2Backbone(config), torch.rand(1, 3, 32, 32)).shape[1:] == (
        config.num_features,
        32 // config.stride,
        32 // config.stride,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(backbone, images, dtype):
    expected = feature(backbone, images)
    output = feature(backbone.to(dtype), images)
    assert output.dtype == dtype
    assert (output.float() - expected).abs().mean() < 0.05


def gradients(backbone, images):
    backbone.zero_grad()
    feature(backbone, images).square().sum().backward()
    return {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_changes_nothing(backbone, images):
    expected = gradients(backbone.train(), images)
    assert len(expected) == len(list(backbone.parameters()))
    backbone.gradient_checkpointing_enable()
    actual = gradients(backbone, images)
    assert all(torch.allclose(actual[name], expected[name], rtol=1e-4, atol=1e-4) for name in expected)


# --- the cached bias ---


@pytest.fixture(params=["off", "compact", "full"])
def any_cache(request, backbone):
    """The lively backbone under every cache policy."""
    backbone.config.position_bias_cache = request.param
    return backbone


@pytest.fixture(params=["compact", "full"])
def caching(request, backbone):
    """The lively backbone under the policies that keep something."""
    backbone.config.position_bias_cache = request.param
    return backbone


def kept_bytes(backbone):
    return sum(module._kept.nbytes for module in backbone.modules() if hasattr(module, "_kept"))


@torch.no_grad()
def test_a_policy_changes_memory_and_nothing_else(backbone, images):
    features, kept = [], []
    for policy in ("full", "compact", "off"):
        backbone.config.position_bias_cache = policy
        features.append(feature(backbone, images))
        kept.append(kept_bytes(backbone))
    assert torch.equal(features[0], features[1]) and torch.equal(features[0], features[2])
    assert kept[0] > kept[1] > kept[2]


@torch.no_grad()
def test_copies_and_pickles_leave_the_kept_bias_behind(caching, images):
    expected = feature(caching, images)
    for twin in (copy.deepcopy(caching), pickle.loads(pickle.dumps(caching))):
        assert kept_bytes(twin) == 0
        assert torch.equal(feature(twin, images), expected)


def test_unknown_policy_is_refused(backbone, images):
    backbone.config.position_bias_cache = "Full"
    with pytest.raises(ValueError, match="position_bias_cache must be one of .*'Full'"):
        feature(backbone, images)
    with pytest.raises(StrictDataclassError, match="position_bias_cache must be one of .*'all'"):
        AiTSwinV2Config(position_bias_cache="all")


def test_cached_bias_equals_computed_bias_with_and_without_gradient(any_cache, images):
    recorded = feature(any_cache, images)
    with torch.no_grad():
        first, second = feature(any_cache, images), feature(any_cache, images)
    assert torch.equal(first, second)
    assert deviation(first, recorded.detach()) < TOLERANCE


def test_gradient_is_the_same_after_the_cache_was_used(any_cache, images):
    expected = gradients(any_cache, images)
    with torch.no_grad():
        feature(any_cache, images)
    actual = gradients(any_cache, images)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def optimiser_step(backbone):
    optimiser = torch.optim.AdamW(backbone.parameters(), lr=0.05)
    feature(backbone, torch.rand(1, 3, 32, 32)).square().mean().backward()
    optimiser.step()
    return backbone


def load_other_weights(backbone):
    state = {name: value + 0.1 * torch.randn_like(value) for name, value in backbone.state_dict().items()}
    backbone.load_state_dict(state)
    return backbone


def assign_other_weights(backbone):
    state = {name: value + 0.1 * torch.randn_like(value) for name, value in backbone.state_dict().items()}
    backbone.load_state_dict(state, assign=True)
    return backbone


def deepcopy_and_change(backbone):
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        twin.stages[0].blocks[0].attention.position_mlp[2].weight.mul_(2)
    return twin


def change_in_inference_mode(backbone):
    with torch.inference_mode():
        twin = copy.deepcopy(backbone)
        feature(twin, torch.rand(1, 3, 32, 32))
        twin.stages[0].blocks[0].attention.position_mlp[2].weight.mul_(2)
    return twin


@pytest.mark.parametrize(
    "change",
    [
        optimiser_step,
        load_other_weights,
        assign_other_weights,
        deepcopy_and_change,
        change_in_inference_mode,
        lambda b: b.half(),
        lambda b: b.to(torch.bfloat16),
        lambda b: b.double(),
    ],
)
def test_cached_bias_follows_the_weights(any_cache, images, change):
    with torch.no_grad():
        before = feature(any_cache, images)
        feature(any_cache, images)  # the table is cached now
    changed = change(any_cache)
    with torch.no_grad():
        actual = feature(changed, images)
        assert torch.equal(actual, feature(without_cache(changed), images))
        assert not torch.equal(actual.double(), before.double()), "the change must show"


def test_stale_bias_would_be_noticed(caching, images):
    attention = caching.stages[0].blocks[0].attention
    with torch.no_grad():
        feature(caching, images)
        for kept in attention._kept._entry[2].values():
            kept.mul_(1.1)
        assert deviation(feature(caching, images), feature(without_cache(caching), images)) > 1e-3


def test_model_trains_on_after_inference_mode(any_cache, images):
    with torch.inference_mode():
        inferred = feature(any_cache, images)
    assert (
        torch.equal(feature(any_cache, images).detach(), inferred)
        or deviation(feature(any_cache, images).detach(), inferred.clone()) < TOLERANCE
    )
    changed = optimiser_step(any_cache)
    with torch.inference_mode():
        assert deviation(feature(changed, images), feature(without_cache(changed), images)) < TOLERANCE


def test_cache_is_not_saved_and_non_persistent_tables_are_rebuilt(any_cache, images, tmp_path):
    with torch.no_grad():
        expected = feature(any_cache, images)
    any_cache.save_pretrained(tmp_path)
    loaded = AiTSwinV2Backbone.from_pretrained(tmp_path)
    assert not any("cached" in name or "coordinates" in name for name in loaded.state_dict())
    expected_buffers, buffers = dict(any_cache.named_buffers()), dict(loaded.named_buffers())
    assert expected_buffers.keys() == buffers.keys() and buffers
    assert all(torch.equal(buffers[name], expected_buffers[name]) for name in buffers)
    with torch.no_grad():
        assert torch.equal(feature(loaded, images), expected)


@torch.no_grad()
def test_autocast_neither_reads_nor_leaves_another_bias(any_cache, images):
    def mixed(model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return feature(model, images)

    single, mixture = feature(copy.deepcopy(any_cache), images), mixed(copy.deepcopy(any_cache))
    assert torch.equal(mixed(any_cache), mixture)
    assert torch.equal(feature(any_cache, images), single)
    assert torch.equal(mixed(any_cache), mixture)


@torch.no_grad()
def test_temporary_weights_at_recycled_addresses_are_noticed(any_cache, images):
    state = dict(any_cache.named_parameters())
    for step in range(1, 7):
        other = {name: value * (1 + 0.1 * step) if "position_mlp" in name else value for name, value in state.items()}
        actual = torch.func.functional_call(any_cache, other, (images,)).feature_maps[0]
        twin = without_cache(any_cache)
        twin.load_state_dict(other)
        assert deviation(actual, feature(twin, images)) < TOLERANCE
        del other, twin


@torch.no_grad()
def test_quantised_position_weights_are_told_apart(caching, images):
    quantization = pytest.importorskip("torchao.quantization")
    for factor in (1, 3):
        for module in caching.modules():
            if hasattr(module, "position_mlp"):
                layer = torch.nn.Linear(512, module.num_heads, bias=False)
                layer.weight.copy_(factor * torch.linspace(-1, 1, layer.weight.numel()).view_as(layer.weight))
                quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
                module.position_mlp[2] = layer
        kept = feature(caching, images)
        caching.eval()
        assert torch.equal(kept, feature(caching, images))


@pytest.mark.slow
def test_threads_may_share_a_model(any_cache, images):
    with torch.no_grad():
        expected = feature(any_cache, images)

    def work(_):
        with torch.no_grad():
            any_cache.eval()
            return feature(any_cache, images)

    with ThreadPoolExecutor(3) as pool:
        assert all(deviation(result, expected) < TOLERANCE for result in pool.map(work, range(60)))


@torch.no_grad()
def test_workspace_tells_devices_and_owners_apart(backbone):
    workspace = modeling_ait_swinv2.Workspace()
    here = workspace.tensor("bias", (2,), torch.zeros(1))
    assert workspace.tensor("bias", (2,), torch.zeros(1)) is here
    assert workspace.tensor("bias", (2,), torch.zeros(1, device="meta")).is_meta
    first, second = backbone.stages
    assert [workspace.take_over(here, owner) for owner in (first, first, second, first)] == [True, False, True, True]


def test_compiled_modules_can_be_pickled(backbone, images):
    attention = backbone.stages[0].blocks[0].attention
    attention.compile(backend="eager")
    pickle.loads(pickle.dumps(attention))


# --- batches in chunks ---


def chunk_sizes(backbone, images, monkeypatch, limit):
    """The batch sizes that the first block of every stage sees under a limit on its widest tensor."""
    monkeypatch.setattr(modeling_ait_swinv2, "CPU_CHUNK_BYTES", limit)
    seen = [[] for _ in backbone.stages]
    hooks = [
        stage.blocks[0].register_forward_pre_hook(lambda _, args, sizes=sizes: sizes.append(len(args[0])))
        for stage, sizes in zip(backbone.stages, seen, strict=True)
    ]
    result = feature(backbone, images)
    for hook in hooks:
        hook.remove()
    return seen, result


# A position's widest vector is 32 numbers in the first stage, on 8 x 8 positions, and 64 in the second, on 4 x 4.
@pytest.mark.parametrize(
    "limit, expected",
    [(1, [[1, 1, 1], [1, 1, 1]]), (2 * 8 * 8 * 32 * 4, [[2, 1], [3]]), (2**30, [[3], [3]])],
)
@torch.no_grad()
def test_chunks_change_nothing(any_cache, images, monkeypatch, limit, expected):
    sizes, result = chunk_sizes(any_cache, images, monkeypatch, limit)
    assert sizes == expected
    monkeypatch.undo()
    assert deviation(result, feature(any_cache, images)) < TOLERANCE


@torch.no_grad()
def test_chunks_leave_what_hooks_saw(backbone, images, monkeypatch):
    monkeypatch.setattr(modeling_ait_swinv2, "CPU_CHUNK_BYTES", 1)
    seen = []
    for module in (backbone.embeddings, backbone.stages[0], backbone.stages[0].downsample, backbone.stages[1]):
        module.register_forward_hook(lambda _, __, output: seen.append((output, output.clone())))
    feature(backbone, images)
    assert len(seen) == 4 and all(torch.equal(output, copied) for output, copied in seen)


def test_training_is_not_chunked(backbone, images, monkeypatch):
    expected = gradients(backbone, images)
    monkeypatch.setattr(modeling_ait_swinv2, "CPU_CHUNK_BYTES", 1)
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients(backbone, images).items())


# Scratch memory shared between blocks must never reach a recorded graph, whichever weights are frozen.
@pytest.mark.parametrize("frozen", ["position_mlp", ""])
def test_frozen_weights_leave_the_other_gradients_as_they_were(backbone, images, frozen):
    images.requires_grad_()
    expected = gradients(backbone, images)
    image_gradient, images.grad = images.grad, None
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(frozen not in name)
    backbone.zero_grad(set_to_none=True)
    actual = gradients(backbone, images)
    assert set(actual) == {name for name in expected if frozen not in name}
    actual["image"], expected["image"] = images.grad, image_gradient
    # Not equal to the last bit: the fused kernel differs with and without a gradient of the bias.
    assert all((actual[name] - expected[name]).norm() < 1e-4 * (1 + expected[name].norm()) for name in actual)


@pytest.mark.slow
@torch.no_grad()
def test_compiles_to_one_graph(backbone, images):
    expected = feature(backbone, images)
    compiled = torch.compile(backbone, fullgraph=True)
    assert deviation(compiled(images).feature_maps[0], expected) < 1e-4
