"""The baseline tokenizer: bins against torchvision's resize, invalid pixels, decode, storage."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torchvision.transforms.v2 import functional as tvF

from transformers_ait import AiTBinTokenizer, AiTBinTokenizerConfig


@pytest.fixture
def tokenizer(bin_tokenizer_config):
    return AiTBinTokenizer(bin_tokenizer_config)


def test_codes_are_linear_bins_of_the_shrunken_map(tokenizer):
    depth = 10 * torch.rand(2, 1, 32, 32).clamp(min=0.01)
    shrunk = tvF.resize(depth, [4, 4], antialias=True)
    codes = tokenizer.encode(depth)
    assert codes.shape == (2, 4, 4) and codes.dtype == torch.int64
    assert torch.equal(codes, (shrunk[:, 0] * 12 / 10).long())


def test_constant_maps_come_back_within_half_a_bin(tokenizer):
    for value in (0.2, 3.0, 9.99):
        depth = torch.full((1, 1, 32, 32), value)
        assert (tokenizer.decode(tokenizer.encode(depth)) - depth).abs().max() <= 10 / 12 / 2 + 1e-5
    assert tokenizer.encode(torch.full((1, 1, 32, 32), 25.0)).unique().tolist() == [11]


def test_invalid_pixels_have_no_part(tokenizer):
    depth = torch.full((1, 1, 32, 32), 6.0)
    holes = depth.clone()
    holes[..., ::2] = 0
    assert torch.equal(tokenizer.encode(holes), tokenizer.encode(depth))
    assert tokenizer.encode(torch.zeros(1, 1, 32, 32)).unique().tolist() == [0]


def test_soft_decode_of_certain_logits_is_the_hard_decode(tokenizer):
    codes = torch.randint(12, (2, 4, 4))
    logits = 1e4 * torch.nn.functional.one_hot(codes, 12).permute(0, 3, 1, 2).float()
    hard = tokenizer.decode(codes)
    assert hard.shape == (2, 1, 32, 32)
    assert torch.allclose(tokenizer.decode_soft(logits), hard, atol=1e-5)
    assert torch.allclose(tokenizer.decode_soft(torch.zeros(1, 12, 4, 4)), torch.tensor(5.0))


def test_soft_decode_passes_gradients(tokenizer):
    logits = torch.zeros(1, 12, 4, 4, requires_grad=True)
    tokenizer.decode_soft(logits).sum().backward()
    assert logits.grad.abs().sum() > 0


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AiTBinTokenizer.from_pretrained(tmp_path)
    assert loaded.config.num_codes == 12
    depth = 10 * torch.rand(1, 1, 32, 32)
    assert torch.equal(loaded.encode(depth), tokenizer.encode(depth))


def test_refuses_maps_that_are_not_whole_tokens():
    tokenizer = AiTBinTokenizer(AiTBinTokenizerConfig(image_size=32, downsample_ratio=8))
    for shape in ((1, 1, 32, 33), (1, 3, 32, 32), (32, 32)):
        with pytest.raises(ValueError, match="pixel_values"):
            tokenizer.encode(torch.rand(shape))


@pytest.mark.parametrize("kind, settings", [("normals", {}), ("values", {"num_channels": 2, "num_codes": 49})])
def test_real_valued_maps_come_back_within_half_a_bin(kind, settings):
    tokenizer = AiTBinTokenizer(
        AiTBinTokenizerConfig(map_kind=kind, image_size=32, downsample_ratio=8, min_value=-1, max_value=1, **settings)
    )
    side = tokenizer.config.bins_per_axis
    assert tokenizer.config.num_codes == side**2 and side == (32 if kind == "normals" else 7)
    flat = torch.randn(5, tokenizer.config.num_channels, 1, 1).clamp(-0.9, 0.9)
    if kind == "normals":
        flat[:, 2] = -flat[:, 2].abs() - 0.1
        flat = torch.nn.functional.normalize(flat, dim=1)
    maps = flat.expand(-1, -1, 32, 32)
    back = tokenizer.decode(tokenizer.encode(maps))
    assert back.shape == maps.shape and (back - maps)[:, :2].abs().max() <= 1 / side + 1e-5
    if kind == "normals":
        assert torch.allclose(back.norm(dim=1), torch.tensor(1.0), atol=1e-5) and (back[:, 2] <= 0).all()
    certain = 1e4 * torch.nn.functional.one_hot(tokenizer.encode(maps), side**2).permute(0, 3, 1, 2).float()
    assert torch.allclose(tokenizer.decode_soft(certain), back, atol=1e-5)


def test_a_token_of_classes_is_its_cells_majority():
    config = AiTBinTokenizerConfig(
        map_kind="classes", image_size=8, downsample_ratio=4, id2label=dict(enumerate("abc"))
    )
    tokenizer = AiTBinTokenizer(config)
    ids = torch.tensor([[0, 1], [2, 1]]).repeat_interleave(4, 0).repeat_interleave(4, 1)[None]
    ids[:, 0, :3] = 2  # a minority
    maps = torch.nn.functional.one_hot(ids, 3).permute(0, 3, 1, 2).float()
    codes = tokenizer.encode(maps)
    assert config.num_codes == 3 and codes.tolist() == [[[0, 1], [2, 1]]]
    assert torch.equal(tokenizer.decode(codes).argmax(1)[:, 1::4, 1::4], codes)
    maps[:, :, :4, :4] = 0  # not a valid pixel
    assert tokenizer.encode(maps)[0, 0, 0] == 0


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"map_kind": "mask"}, "map_kind must not be 'mask'"),
        ({"map_kind": "heights"}, "map_kind must be one of"),
        ({"map_kind": "normals", "num_codes": 1000}, "to the power of 2, got 1000"),
        ({"map_kind": "normals", "num_channels": 2}, "num_channels must be 3"),
        ({"map_kind": "classes", "num_channels": 3, "num_codes": 4}, "num_codes must be the number of classes 3"),
        ({"max_value": 0}, "max_value must exceed"),
    ],
)
def test_impossible_bins_are_named(settings, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        AiTBinTokenizerConfig(**settings)
