"""UniPixTask's dense decoder: its modules against the paper's formulas, losses, interface of a tokenizer, errors."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from teacher_cases import CLASSES, teacher_case
from transformers import AutoConfig, ResNetConfig

from transformers_ait import DenseDecoderConfig, DenseDecoderModel, describe_teacher
from transformers_ait.feature_restoration import FeatureOutput
from transformers_ait.teachers_ait import TASK_MODELS

WIDTH, DIM, CODES = 16, 6, 11


@pytest.fixture(scope="module")
def described():
    """Teachers of a plain decoder's tasks, and what a configuration takes from them."""
    found = {}
    for task in ("depth", "semantic"):
        model = teacher_case("plain").model()
        teacher = TASK_MODELS[model.config.model_type](model, task)
        found[task] = teacher, describe_teacher(teacher, 64)
    return found


def backbone():
    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_indices=[1, 2])


def config_of(fields, **overrides):
    settings = {
        "backbone_config": backbone(),
        "downsample_ratio": 16,
        "num_codes": CODES,
        "code_dim": DIM,
        "hidden_size": WIDTH,
        "num_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_groups": 4,
        "initializer_range": 0.2,
        "teacher_name": "runs/teacher",
    }
    return DenseDecoderConfig(**(fields | settings | overrides))


def model_of(described, task="depth", **overrides):
    """A model with seeded weights, and codes that its encoder tells apart."""
    teacher, fields = described[task]
    torch.manual_seed(0)
    model = DenseDecoderModel(config_of(fields, **overrides)).eval()
    model.load_head(teacher)
    with torch.no_grad():
        model.quantizer.codebook.normal_()
        if model.encoder is not None:
            model.encoder.compression.projection.weight.mul_(20)
    return model


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def attention(x, weights, name):
    """Two heads, scaled by the square root of their width, from the formula."""

    def part(which):
        y = x @ weights[f"{name}.{which}.weight"].T + weights[f"{name}.{which}.bias"]
        return y.view(*y.shape[:2], 2, -1).transpose(1, 2)

    scores = part("query") @ part("key").transpose(2, 3) / math.sqrt(WIDTH // 2)
    y = (scores.softmax(-1) @ part("value")).transpose(1, 2).flatten(2)
    return y @ weights[f"{name}.projection.weight"].T + weights[f"{name}.projection.bias"]


def transformer(x, weights, name, mistake):
    """Pre-norm blocks over positions that a table of sines and cosines tells apart; the first channels encode rows."""
    rows, columns = x.shape[2:]
    table = torch.zeros(rows, columns, WIDTH)
    for row in range(rows):
        for column in range(columns):
            for pair in range(WIDTH // 4):
                for start, place in ((0, row), (WIDTH // 2, column)):
                    angle = place / 10000 ** (2 * pair / (WIDTH // 2))
                    table[row, column, start + 2 * pair] = math.sin(angle)
                    table[row, column, start + 2 * pair + 1] = math.cos(angle)

    def norm(y, which):
        mean, variance = y.mean(-1, keepdim=True), y.var(-1, keepdim=True, unbiased=False)
        return (y - mean) / (variance + 1e-5).sqrt() * weights[f"{which}.weight"] + weights[f"{which}.bias"]

    def linear(y, which):
        return y @ weights[f"{which}.weight"].T + weights[f"{which}.bias"]

    y = x.flatten(2).transpose(1, 2)
    y = y if mistake == "positions" else y + table.flatten(0, 1)
    for block in (f"{name}.blocks.{index}" for index in range(2)):
        y = y + attention(norm(y, f"{block}.norm1"), weights, f"{block}.attention")
        y = y + linear(F.gelu(linear(norm(y, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return norm(y, f"{name}.norm").transpose(1, 2).unflatten(2, (rows, columns))


def decoded_mapping(vectors, weights, shapes, mistake=None):
    """g before the task head, of code vectors (B, h, w, d), in the order of section 4.1 and table 8."""

    def convolve(y, name, padding):
        return F.conv2d(y, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)

    activation = F.relu if mistake == "activation" else torch.tanh
    x = vectors.permute(0, 3, 1, 2)
    x = convolve(activation(convolve(x, "channel_restoration.expand", 1)), "channel_restoration.mix", 1)
    x = transformer(x, weights, "channel_restoration.transformer", mistake)
    # A transposed convolution adds weight[:, :, i, j] at 2 * place + (i, j) - 1.
    kernel = weights["spatial_restoration.upsample.weight"]
    wide = torch.zeros(len(x), WIDTH, 2 * x.shape[2] + 2, 2 * x.shape[3] + 2)
    for i in range(3):
        for j in range(3):
            part = torch.einsum("bchw,cd->bdhw", x, kernel[:, :, i, j])
            wide[:, :, i : i + 2 * x.shape[2] : 2, j : j + 2 * x.shape[3] : 2] += part
    x = wide[:, :, 1:-1, 1:-1] + weights["spatial_restoration.upsample.bias"][:, None, None]
    groups = x.unflatten(1, (4, -1))
    axes = (2, 3, 4)
    mean, variance = groups.mean(axes, keepdim=True), groups.var(axes, keepdim=True, unbiased=False)
    x = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
    x = x * weights["spatial_restoration.norm.weight"][:, None, None]
    x = x + weights["spatial_restoration.norm.bias"][:, None, None]
    x = x if mistake == "smooth" else transformer(x, weights, "smooth_transformer", mistake)
    mixed, found = activation(convolve(x, "output.mix", 1)), []
    for level, (channels, height, _) in enumerate(shapes):
        name, factor = f"output.projections.{level}", height // x.shape[2]
        if factor > 1:  # a position's outputs are those of factor x factor pixels, channel by channel
            y = convolve(mixed, name, 0).unflatten(1, (channels, factor, factor))
            found.append(y.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3))
        else:
            found.append(convolve(F.avg_pool2d(mixed, x.shape[2] // height), name, 0))
    return found


@torch.no_grad()
@pytest.mark.parametrize("mistake", [None, "activation", "positions", "smooth"])
def test_restoration_follows_the_papers_formulas(described, mistake):
    model = model_of(described)
    vectors = torch.randn(2, 4, 4, DIM)
    for name, parameter in model.decoder.named_parameters():
        if "bias" in name or "norm" in name:
            parameter.normal_(std=0.3)
    found = model.decoder(vectors)
    expected = decoded_mapping(vectors, dict(model.decoder.named_parameters()), model.config.feature_shapes, mistake)
    assert [x.shape for x in found] == [x.shape for x in expected]
    error = max((a - b).abs().max() for a, b in zip(found, expected, strict=True))
    assert error < 1e-5 if mistake is None else error > 1e-3


@torch.no_grad()
def test_compression_follows_table_8(described, images):
    model = model_of(described)
    weights = dict(model.encoder.named_parameters())
    first, second = model.encoder.backbone(images).feature_maps
    z = F.conv2d(first, *(weights[f"pyramid.convolutions.0.{x}"] for x in ("weight", "bias")), padding=1)
    other = F.conv2d(second, *(weights[f"pyramid.convolutions.1.{x}"] for x in ("weight", "bias")), padding=1)
    z = F.avg_pool2d(z, 2) + other  # strides 4 and 8, at the latent features' 8
    z = F.conv2d(z, *(weights[f"compression.downsample.{x}"] for x in ("weight", "bias")), stride=2, padding=1)
    z = F.conv2d(z.tanh(), *(weights[f"compression.projection.{x}"] for x in ("weight", "bias")))
    torch.testing.assert_close(model.encoder(images), z.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)
    distances = torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), model.quantizer.codebook)
    assert torch.equal(model.encode(images).flatten(), distances.argmin(1))


@pytest.mark.parametrize("update, relative", [("gradient", False), ("ema", True)])
def test_losses_are_equations_2_and_3(described, images, update, relative):
    settings = {
        "codebook_update": update,
        "codebook_weight": 0.5,
        "commitment_weight": 2,
        "relative_features": relative,
    }
    model, teacher = model_of(described, **settings), described["depth"][0]
    features = teacher.features(images)
    before = model.quantizer.codebook.detach().clone()
    output = model(images, teacher_features=features)
    compressed = model.encoder(images)
    nearest = before[model.encode(images)]
    distance = (compressed - nearest).square().mean()
    errors = [(a - b).square() for a, b in zip(model.decoder(nearest), features, strict=True)]
    scales = [x.var() if relative else 1 for x in features]
    expected = sum(error.mean() / scale for error, scale in zip(errors, scales, strict=True)) / len(errors)
    torch.testing.assert_close(output.feature_loss, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output.commitment_loss, distance, rtol=1e-4, atol=1e-6)
    codebook = distance if update == "gradient" else torch.zeros(())
    torch.testing.assert_close(output.codebook_loss, codebook, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output.loss, expected + 0.5 * codebook + 2 * distance, rtol=1e-4, atol=1e-6)
    assert output.maps is None and output.codes.shape == (2, 4, 4)


def test_gradients_go_straight_through_the_codes_and_stop_where_equation_2_says(described, images):
    model, teacher = model_of(described).train(), described["depth"][0]

    def gradients(loss):
        wanted = [model.quantizer.codebook, model.encoder.compression.projection.weight]
        return torch.autograd.grad(loss, wanted, allow_unused=True)

    output = model(images, teacher_features=teacher.features(images))
    codebook, encoder = gradients(output.codebook_loss)
    assert codebook.abs().sum() > 0 and encoder is None
    output = model(images, teacher_features=teacher.features(images))
    codebook, encoder = gradients(output.commitment_loss)
    assert codebook is None and encoder.abs().sum() > 0
    output = model(images, teacher_features=teacher.features(images))
    codebook, encoder = gradients(output.feature_loss)
    assert codebook is None and encoder.abs().sum() > 0, "the decoder's gradient goes past the codes to the encoder"
    output = model(images, teacher_features=teacher.features(images))
    output.loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None and not name.startswith("head.")]
    assert not [name for name, p in model.head.named_parameters() if p.requires_grad or p.grad is not None]
    assert model.training and not model.head.training


@torch.no_grad()
@pytest.mark.parametrize("task, channels", [pytest.param("depth", 1, marks=pytest.mark.slow), ("semantic", 3)])
def test_it_has_the_interface_of_a_tokenizer(described, images, task, channels):
    model = model_of(described, task)
    codes = model.encode(images)
    assert codes.shape == (2, 4, 4) and codes.dtype == torch.int64 and codes.unique().numel() > 2
    maps = model.decode(codes)
    assert maps.shape == (2, channels, 64, 64) == (2, model.config.num_channels, 64, 64)
    certain = 1e4 * F.one_hot(codes, CODES).movedim(-1, 1).float()
    torch.testing.assert_close(model.decode_soft(certain), maps, rtol=1e-5, atol=1e-5)
    uncertain = model.decode_soft(torch.randn(2, CODES, 4, 4))
    assert uncertain.shape == maps.shape and (uncertain - maps).abs().max() > 1e-3
    output = model(images)
    torch.testing.assert_close(output.maps, maps, rtol=1e-5, atol=1e-5)
    # The head is the teacher's, and what it was given are restored features.
    teacher = described[task][0]
    expected = teacher(model.restore(codes), 64)
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-5)
    assert model.config.kind.name == {"depth": "depth", "semantic": "classes"}[task]
    assert (model.config.grid_size, model.config.num_tokens, model.config.encodes_images) == (4, 16, True)
    if task == "semantic":
        assert model.config.class_names == list(CLASSES)
    smaller = model.encode(images[:, :, :50, :40])
    assert torch.equal(smaller, model.encode(F.pad(images[:, :, :50, :40], (0, 24, 0, 14))))


def test_gradients_of_soft_decoding_reach_the_logits(described):
    model = model_of(described)
    logits = torch.randn(1, CODES, 4, 4, requires_grad=True)
    model.decode_soft(logits).sum().backward()
    assert logits.grad.abs().sum() > 0


@torch.no_grad()
def test_checkpoints_hold_the_head_and_the_teachers_identity(described, images, tmp_path):
    model = model_of(described, "semantic", code_dim=4)
    model.save_pretrained(tmp_path)
    loaded, info = DenseDecoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    output, expected = loaded(images), model(images)
    assert torch.equal(output.codes, expected.codes) and torch.equal(output.maps, expected.maps)
    assert not loaded.head.training and not any(p.requires_grad for p in loaded.head.parameters())
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["teacher_name"] == "runs/teacher" and len(fields["teacher_fingerprint"]) == 64
    assert isinstance(AutoConfig.from_pretrained(tmp_path), DenseDecoderConfig)
    half = DenseDecoderModel.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.quantizer.codebook.dtype == torch.float32 and half.decoder.output.mix.weight.dtype == torch.float16


@torch.no_grad()
def test_without_its_encoder_it_decodes(described, images, tmp_path):
    model = model_of(described)
    codes = model.encode(images)
    model.without_encoder().save_pretrained(tmp_path)
    loaded = DenseDecoderModel.from_pretrained(tmp_path)
    assert loaded.encoder is None and torch.equal(loaded.decode(codes), model.decode(codes))
    assert loaded.num_parameters() < model.num_parameters()
    with pytest.raises(ValueError, match="no encoded mapping"):
        loaded.encode(images)


def test_moving_averages_train_the_codebook_where_they_are_asked_for(described, images):
    teacher = described["depth"][0]
    for update in ("gradient", "ema"):
        model = model_of(described, codebook_update=update).train()
        before = model.quantizer.codebook.detach().clone()
        model(images, teacher_features=teacher.features(images))
        moved = not torch.equal(before, model.quantizer.codebook)
        assert moved == (update == "ema")
        assert model.quantizer.ema_cluster_size.sum() > 0
        assert isinstance(model.quantizer.codebook, torch.nn.Parameter) == (update == "gradient")
        assert model.restart_dead_codes([images], min_cluster_size=0.01) > 0


@torch.no_grad()
def test_states_and_attentions_are_returned_where_they_are_asked_for(described, images):
    model = model_of(described)
    output = model(images, output_hidden_states=True, output_attentions=True)
    assert [x.shape for x in output.hidden_states] == [(2, 16, WIDTH)] * 2 + [(2, 64, WIDTH)] * 2
    assert [x.shape for x in output.attentions] == [(2, 2, 16, 16)] * 2 + [(2, 2, 64, 64)] * 2
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(images).maps, output.maps, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_feature_maps_of_any_size_are_restored():
    shapes = [(3, 16, 16), (5, 8, 8), (4, 2, 2), (6, 1, 1), (2, 12, 12), (2, 5, 5)]
    found = FeatureOutput(8, 8, shapes)(torch.randn(2, 8, 8, 8))
    assert [tuple(x.shape[1:]) for x in found] == shapes


def test_parameters_at_the_published_sizes_are_those_of_table_8(described):
    fields = described["depth"][1] | {"image_size": 640, "feature_shapes": [[256, 40, 40]]}
    with torch.device("meta"):
        model = DenseDecoderModel(DenseDecoderConfig(**fields, backbone_config=backbone()))
    width, hidden, dim, out = 512, 2048, 16, 256
    layer = 4 * width * (width + 1) + width * (hidden + 1) + hidden + width * hidden + 4 * width
    square, norm = 9 * width * width + width, 2 * width
    expected = {
        "decoder.channel_restoration": 9 * dim * width + width + square + 3 * layer + norm,
        "decoder.spatial_restoration": square + norm,
        "decoder.smooth_transformer": 3 * layer + norm,
        "decoder.output": square + width * out + out,
        "encoder.compression": square + width * dim + dim,
        "encoder.pyramid": 2 * (9 * 8 * width + width),
        "quantizer": 1024 * dim,
    }
    counted = {
        name: sum(p.numel() for p in model.get_submodule(name).parameters() if p.requires_grad) for name in expected
    }
    assert counted == expected


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"downsample_ratio": 15, "image_size": 60}, "downsample_ratio must be even"),
        ({"image_size": 60}, "image_size must be a multiple of downsample_ratio"),
        ({"hidden_size": 18}, "hidden_size must be divisible by num_groups"),
        ({"num_attention_heads": 3}, "hidden_size must be divisible by num_attention_heads"),
        ({"num_codes": 0}, "num_codes must be at least 1"),
        ({"map_kind": "mask"}, "map_kind must not be 'mask'"),
        ({"map_kind": "heights"}, "map_kind must be one of"),
        ({"num_channels": 2}, "num_channels must be 1"),
        ({"commitment_weight": -1}, "commitment_weight must be 0 or more"),
        ({"codebook_update": "none"}, "codebook_update"),
        ({"teacher_config": {"hidden_size": 3}}, "teacher_config must be a configuration with its model_type"),
        ({"feature_shapes": [[3, 4]]}, "feature_shapes must hold"),
        ({"feature_shapes": []}, "feature_shapes must hold"),
        ({"feature_shapes": 3}, "feature_shapes must be a list"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean and image_std must both be given"),
    ],
)
def test_configurations_that_cannot_be_are_refused(described, overrides, message):
    with pytest.raises((StrictDataclassError, ValueError, TypeError)) as error:
        config_of(described["depth"][1], **overrides)
    assert message in str(error.value) or message in str(error.value.__cause__)


def test_inputs_that_cannot_be_are_refused(described, images):
    model, teacher = model_of(described), described["depth"][0]
    with pytest.raises(TypeError, match=r"without labels, got \['depth_labels'\]"):
        model(images, depth_labels=torch.zeros(2, 64, 64))
    with pytest.raises(TypeError, match="unexpected keyword arguments"):
        model(images, teacher_feature=None)
    features = teacher.features(images)
    with pytest.raises(ValueError, match=r"teacher_features must have the shapes"):
        model(images, teacher_features=features * 2)
    with pytest.raises(ValueError, match=r"sides of at most 64"):
        model(torch.zeros(1, 3, 80, 64))
    with pytest.raises(ValueError, match="teacher_config must describe the task model"):
        DenseDecoderModel(DenseDecoderConfig(backbone_config=backbone()))
    fields = described["depth"][1] | {"teacher_config": {"model_type": "resnet"}}
    with pytest.raises(ValueError, match="task model of type"):
        DenseDecoderModel(config_of(fields))
