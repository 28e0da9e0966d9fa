"""The baseline tokenizer: bins against torchvision's resize, invalid pixels, decode, storage."""

import pytest
import torch
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
