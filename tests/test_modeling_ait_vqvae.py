"""The VQ-VAE: any size, hard and soft decode, losses against their definition, invalid pixels, storage."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_ait import AiTVQVAEConfig, AiTVQVAEModel


@pytest.fixture
def model(tiny_vqvae_config, enliven):
    return enliven(AiTVQVAEModel(tiny_vqvae_config()))


@pytest.fixture
def maps(depths):
    return depths[:, None]


@pytest.mark.slow
@given(
    halvings=st.integers(1, 5),
    hidden_size=st.integers(1, 5),
    blocks=st.integers(0, 3),
    codes=st.integers(1, 20),
    code_dim=st.integers(1, 9),
    channels=st.integers(1, 4),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    symmetric=st.booleans(),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_any_ratio_width_depth_codebook_and_channels(
    halvings, hidden_size, blocks, codes, code_dim, channels, grid, symmetric
):
    ratio = 2**halvings
    config = AiTVQVAEConfig(
        image_size=4 * ratio,
        num_channels=channels,
        hidden_size=hidden_size,
        downsample_ratio=ratio,
        num_resnet_blocks=blocks,
        num_codes=codes,
        code_dim=code_dim,
        symmetric_range=symmetric,
    )
    model = AiTVQVAEModel(config)
    assert model.encoder.projection.in_channels == config.final_width == hidden_size * ratio // 2
    pixel_values = torch.rand(2, channels, grid[0] * ratio, grid[1] * ratio)
    output = model(pixel_values)
    assert output.reconstruction.shape == pixel_values.shape
    assert output.codes.shape == (2, *grid) and output.codes.min() >= 0 and output.codes.max() < codes
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        hard = model.decode(output.codes)
        logits = 1e4 * torch.nn.functional.one_hot(output.codes, codes).permute(0, 3, 1, 2).float()
        assert torch.allclose(model.decode_soft(logits), hard, atol=1e-5)


def test_reconstruction_is_the_decode_of_the_codes(model, maps):
    output = model(maps)
    assert torch.equal(model.encode(maps), output.codes)
    assert torch.allclose(model.decode(output.codes), output.reconstruction, atol=1e-4)


def test_soft_decode_is_the_decode_of_the_expected_vector_at_temperature_tau(tiny_vqvae_config, enliven):
    model = enliven(AiTVQVAEModel(tiny_vqvae_config(tau=0.5)))
    logits = 3 * torch.randn(2, 12, 4, 4)
    decoded = {}
    for tau in (0.5, 1.0):
        weights = (tau * logits).double().exp()
        weights = weights / weights.sum(1, keepdim=True)
        vectors = torch.einsum("bkhw,kd->bdhw", weights, model.quantizer.codebook.double()).float()
        decoded[tau] = model.decoder(vectors)
    actual = model.decode_soft(logits)
    assert torch.allclose(actual, decoded[0.5], atol=1e-4)
    assert not torch.allclose(actual, decoded[1.0], atol=1e-2), "another temperature must not pass"


def test_soft_decode_passes_gradients_to_the_logits(model):
    logits = torch.randn(1, 12, 4, 4, requires_grad=True)
    model.decode_soft(logits).sum().backward()
    assert logits.grad.abs().sum() > 0 and logits.grad.isfinite().all()


@pytest.mark.parametrize("ignore_zero", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_loss_against_its_definition(tiny_vqvae_config, enliven, maps, ignore_zero, symmetric):
    config = tiny_vqvae_config(ignore_zero=ignore_zero, symmetric_range=symmetric, commitment_cost=0.7)
    model = enliven(AiTVQVAEModel(config))
    maps = maps / maps.max()
    output = model(maps)
    error = (output.reconstruction - maps).double()
    if symmetric:
        error = 2 * error  # the loss is taken in [-1, 1]
    kept = error[maps > 0] if ignore_zero else error
    assert output.reconstruction_loss.item() == pytest.approx(kept.square().mean().item(), rel=1e-5)
    vectors = model.encoder(2 * maps - 1 if symmetric else maps).permute(0, 2, 3, 1)
    commitment = (vectors - model.quantizer.codebook[output.codes]).square().mean()
    assert output.loss.item() == pytest.approx((output.reconstruction_loss + 0.7 * commitment).item(), rel=1e-5)


def test_encoder_learns_from_the_reconstruction_through_the_codebook(tiny_vqvae_config, maps):
    model = AiTVQVAEModel(tiny_vqvae_config(commitment_cost=0.0))
    model(maps).loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.encoder.projection.parameters())


def plant(model, where, value):
    """Add `value` to the decoded map where the mask (B, 1, H, W) is set."""
    return model.decoder.register_forward_hook(lambda module, args, output: output + value * where)


def test_invalid_pixels_have_no_part_in_the_loss(tiny_vqvae_config, enliven, maps):
    model = enliven(AiTVQVAEModel(tiny_vqvae_config()))
    clean = model(maps).reconstruction_loss
    hook = plant(model, maps == 0, 1e3)
    assert torch.equal(model(maps).reconstruction_loss, clean)
    model.config.ignore_zero = False
    assert model(maps).reconstruction_loss > 100 * clean
    model.config.ignore_zero = True
    hook.remove()
    plant(model, torch.zeros_like(maps).index_fill(3, torch.tensor(5), 1.0), 1e3)
    assert model(maps).reconstruction_loss > 100 * clean, "valid pixels must count"


def test_validity_comes_from_the_unaltered_labels(model, maps):
    masked = maps.clone()
    masked[:, :, :16] = 0
    hook = plant(model, (masked == 0) & (maps > 0), 1e3)
    with_plant = model(masked, labels=maps).reconstruction_loss
    hook.remove()
    assert with_plant > 100 * model(masked, labels=maps).reconstruction_loss


def test_maps_without_valid_pixel_leave_the_commitment_loss(model):
    output = model.train()(torch.zeros(2, 1, 32, 32))
    assert output.reconstruction_loss == 0
    assert output.loss.isfinite() and output.loss > 0
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.encoder.parameters())
    assert all(b.isfinite().all() for b in model.buffers())


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 1, 32, 33), "multiples of 8"),
        ((1, 2, 32, 32), r"\(batch, 1, height, width\)"),
        ((1, 32, 32), r"got \(1, 32, 32\)"),
    ],
)
def test_unfit_maps_are_refused(model, shape, message):
    with pytest.raises(ValueError, match=message):
        model(torch.rand(shape))
    with pytest.raises(ValueError, match=message):
        model.encode(torch.rand(shape))


def test_labels_of_another_shape_are_refused(model, maps):
    with pytest.raises(ValueError, match="labels must have the shape of pixel_values"):
        model(maps, labels=maps[:1])


def test_saved_and_loaded_model_is_equal_in_every_tensor(model, maps, tmp_path):
    model.train()(maps)
    model.eval().save_pretrained(tmp_path)
    loaded = AiTVQVAEModel.from_pretrained(tmp_path)
    expected, actual = (dict(m.named_parameters()) | dict(m.named_buffers()) for m in (model, loaded))
    assert (
        expected.keys() == actual.keys() >= {"quantizer.codebook", "quantizer.ema_cluster_size", "quantizer.ema_sums"}
    )
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert torch.equal(loaded(maps).reconstruction, model(maps).reconstruction)


def test_training_under_mixed_precision(model, maps):
    clean = model(maps)
    with torch.autocast("cpu", torch.bfloat16):
        output = model.train()(maps)
    output.loss.backward()
    assert output.reconstruction_loss.dtype == torch.float32, "depth in metres does not fit bfloat16"
    assert output.reconstruction_loss.item() == pytest.approx(clean.reconstruction_loss.item(), rel=0.1)
    assert output.loss.isfinite() and model.quantizer.codebook.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inference(model, maps, dtype):
    expected = model.decode(model.encode(maps))
    half = model.to(dtype)
    decoded = half.decode(half.encode(maps))
    assert decoded.dtype == dtype
    assert (decoded.float() - expected).abs().mean() < 0.1
    assert half.decode_soft(torch.randn(1, 12, 4, 4)).dtype == dtype


def test_tuple_output(model, maps):
    output, values = model(maps), model(maps, return_dict=False)
    assert isinstance(values, tuple) and torch.equal(values[2], output.reconstruction)
